"""Runs an SQL query (``review --sql``), and formats its result as JSON, CSV or Markdown. Does not know the terminal.

Used by ``cli._review_command`` and ``cli._review_view``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from otel_connector.review._formats import csv_text, markdown_table
from otel_connector.review._json import plain

if TYPE_CHECKING:
    from otel_connector.review._load import Calls


class Answer:
    """The result of a query.

    Args:
        calls: The loaded calls. The query can read the tables ``calls``, ``log`` and ``calls_compact``.
        query: DuckDB's SQL; of several statements, the result of the last one is returned.

    Raises:
        ValueError: DuckDB cannot run the query, or two columns of the result have the same name.
    """

    def __init__(self, calls: Calls, query: str) -> None:
        import duckdb

        try:
            cursor = calls.connection.execute(query)
            description = cursor.description
            self.columns = [str(column[0]) for column in description or ()]
            self.rows: list[tuple[Any, ...]] = cursor.fetchall() if description else []
        except (AttributeError, duckdb.Error) as error:  # AttributeError: `execute` returned None
            message = "the query is empty" if isinstance(error, AttributeError) else calls.named(str(error))
            raise ValueError(message) from None
        for name in self.columns:
            if self.columns.count(name) > 1:  # JSON objects would lose one of them
                raise ValueError(f"two columns of the result are named {name!r}; rename one with AS")

    def as_json(self) -> str:
        """Return a JSON list with one object per row."""
        rows = [dict(zip(self.columns, plain(row), strict=True)) for row in self.rows]
        return json.dumps(rows, indent=2, ensure_ascii=False, default=str)

    def as_csv(self) -> str:
        """Return CSV with a header. NULL is an empty cell, and a formula gets a leading ``'``."""
        return csv_text(self.columns, self.rows)

    def as_markdown(self) -> str:
        """Return a table in Markdown."""
        numbers = range(len(self.columns))
        return "\n".join(markdown_table(self.columns, self.texts(), texts=numbers)) + "\n"

    def texts(self) -> list[list[str]]:
        """Return the rows as texts."""
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]
