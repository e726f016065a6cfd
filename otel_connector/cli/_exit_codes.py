"""Level 8: what the exit codes of all commands mean."""

from __future__ import annotations

WRONG = 1  # what the command is to find out about is not as it should be
USAGE = 2  # it could not be found out
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
