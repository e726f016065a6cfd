"""``otel-connector`` and ``python -m otel_connector``, that is the command line, or how to get it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the ``cli`` extra say how to install it and exit with 2."""
    try:
        from otel_connector.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "typer"}:
            raise
        sys.stderr.write(f"otel-connector: the command line needs {error.name}: pip install 'otel-connector[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:  # while it loads
        sys.exit(130)
    try:
        app(prog_name="otel-connector")
    except OSError as error:  # of the output, for the commands answer for their own files
        sys.stderr.write(f"otel-connector: the output cannot be written: {error.strerror or error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
