"""What the exit codes of all commands mean, and how they say why."""

from __future__ import annotations

WRONG = 1  # what the command is to find out about is not as it should be
USAGE = 2  # it could not be found out
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def reason(error: Exception) -> str:
    """Say what went wrong, the file first if it is about one."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
