"""Makes the picture of the demo in the documents: run ``python -m support.demo_picture`` in ``tests``.

It shows what `otel-connector demo` prints on this machine, in a terminal of 100 columns and without a collector.
"""

from __future__ import annotations

import html
import io
import re
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from support import processes
from support.documents import DOCS

PICTURE = DOCS / "assets" / "demo.svg"
COLUMNS = 100
FONTS = re.compile(r"\s*@font-face \{\{.*?\}\}", re.DOTALL)
TEMPLATE = FONTS.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", "monospace")  # loads nothing


def output() -> str:
    """Return what the demo prints, with colours; the folder of its log is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        done = processes.run(
            [sys.executable, "-m", "otel_connector", "demo"],
            cwd=folder,
            env=processes.clean_environment({"FORCE_COLOR": "1"}),
            capture_output=True,
            text=True,
            check=True,
        )
        return str(done.stdout).replace(str(Path(folder).resolve()), "/home/you")


def shown(picture: str) -> str:
    """Return the text in a picture."""
    return " ".join(html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", picture)).replace(
        "\xa0", " "
    )


def main() -> None:
    """Make the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in Text.from_ansi(output().rstrip()).split("\n", allow_blank=True):
        line.rstrip()
        line.truncate(COLUMNS, overflow="ellipsis")
        console.print(line, no_wrap=True)
    console.save_svg(str(PICTURE), title="otel-connector demo", unique_id="demo", code_format=TEMPLATE)


if __name__ == "__main__":
    main()
