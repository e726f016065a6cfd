"""The entry point of ``otel-connector`` and ``python -m otel_connector``.

It knows only how to start the command line, or to report that its dependencies are not installed.

Used by the command ``otel-connector``.
"""

from __future__ import annotations

import os
import signal
import sys

from otel_connector._record import one_line


def main() -> None:
    """Run the command line; without the ``cli`` extra, print how to install it and exit with 2."""
    if os.getpid() == 1:  # of a container: the kernel discards a signal that has no handler
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _exit)
    try:
        from otel_connector.cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "typer"}:
            raise
        sys.stderr.write(f"otel-connector: the command line needs {error.name}: pip install 'otel-connector[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:  # while it loads
        sys.exit(130)
    try:
        run()
    except OSError as error:  # of the output: the commands handle the errors of their files
        sys.stderr.write(f"otel-connector: the output cannot be written: {one_line(error.strerror or str(error))}\n")
        sys.exit(2)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
