"""How a log is written: the options that the exporter passes to its writer and its file, as one value.

This file only checks them. It does not know what they are used for.

Used by ``_csv._file``, ``_csv._writer`` and ``csv_exporter``.
"""

from __future__ import annotations

from dataclasses import dataclass

from otel_connector._arguments import check_bool, checked_int, checked_seconds

BACKLOG_BYTES = 64 * 2**20  # some 300,000 rows of a usual length

_OWNER_MODE, _FULL_MODE = 0o600, 0o777


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How a log is written. The fields are the options of `CSVSpanExporter`, which describes them.

    Attributes:
        overwrite: Empty the file first.
        permissions: Mode of a file that is created, regardless of the umask.
        backlog_bytes: Bytes of rows that may wait while they cannot be written; further rows are lost.
        fsync_interval: Seconds after which written rows are on the disk; 0 for each row, None for never.
        rotate_rows: Rows that a file may contain; None for any number.
        rotate_bytes: Bytes that a file may have, unless a single row is longer; None for any size.

    Raises:
        TypeError, ValueError: A field is invalid; the message names it.
    """

    overwrite: bool = False
    permissions: int = 0o600
    backlog_bytes: int = BACKLOG_BYTES
    fsync_interval: float | None = None
    rotate_rows: int | None = None
    rotate_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_bool("overwrite", self.overwrite)
        mode = checked_int("permissions", self.permissions, least=0)
        if mode > _FULL_MODE or mode & _OWNER_MODE != _OWNER_MODE:
            raise ValueError(f"permissions must let the owner read and write, such as 0o640, not {oct(mode)}")
        checked_int("backlog_bytes", self.backlog_bytes)
        if self.fsync_interval is not None:
            checked_seconds("fsync_interval", self.fsync_interval)
        for name in ("rotate_rows", "rotate_bytes"):
            if (value := getattr(self, name)) is not None:
                checked_int(name, value)
