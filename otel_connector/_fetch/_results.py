"""The file that the results of a fetch are written to, and the sink that writes outcomes to it.

How a line gets into the file:

1. `ResultsFile.write` adds the line to the waiting lines, and waits for its future.
2. If no batch is in progress, all waiting lines form one. A thread packs and appends it, so a slow disk does not block
   the event loop. Lines that arrive meanwhile form the next batch; so a thousand concurrent callers cost a few writes.
3. When the write of a batch has returned, the loop starts the next batch and completes the futures of this one. So a
   line whose `write` has returned is in the file, even after ``kill -9``.

If an append fails, the file is truncated to the end of the last complete batch, and all further writes fail. If this
fails too, or the process is killed during the append, the file ends with a part of a batch. The next `ResultsFile` that
resumes recognizes and cuts it. No `write` of a line of that batch has returned.

This file knows neither how calls are made nor the log.

Used by ``_fetch._chunk``, ``_fetch._fetch`` and ``cli._fetch_command``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from otel_connector._csv._lock import try_lock
from otel_connector._csv._ownership import open_own
from otel_connector._fetch._result_formats import format_of
from otel_connector._fetch._result_line import calls, result_line
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector._serial_executor import SerialExecutor

if TYPE_CHECKING:
    from otel_connector._bulk import Outcome

_LineBatch: TypeAlias = "dict[asyncio.Future[OSError | None], bytes]"
"""Lines, each under the future its caller awaits. The future's result is the error, or None if the line is written."""


class ResultsFile:
    """Appends lines to one file, for many concurrent callers. It serves one event loop at a time.

    The constructor and `close` block, for as long as it takes to read a compressed file. Call them before and after the
    loop runs, or in a thread.

    Args:
        path: The file; created with mode 0600 if it does not exist. ``.gz`` and ``.zst`` are compressed.
        resume: Append to a file that already has results.

    Attributes:
        path: The file.
        cut: Bytes of an unfinished end that were cut; the `write` of such lines never returned. Those of a plain file
            are kept in ``<path>.torn``.

    Raises:
        FileExistsError: It has results, and `resume` is False.
        BlockingIOError: Another process is writing it.
        OSError: It cannot be opened, is not a regular file, or it or its symbolic link belongs to another user.
        ValueError: It does not contain JSON lines in this compression, or is damaged before its end; it is not changed.
        ImportError: The compression is zstd, and no library for it is installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool) -> None:
        self.path = os.fspath(path)
        self.cut = 0
        self._format = format_of(self.path)  # first, so that no file is created if the library is missing
        fd = open_own(self.path, os.O_RDWR | os.O_APPEND, 0o600)
        try:
            self._prepare(fd, resume=resume)
            self._end = os.fstat(fd).st_size
        except BaseException:  # raised again; the descriptor must not stay open
            os.close(fd)
            raise
        self._fd = fd
        self._executor = SerialExecutor("results")
        self._finalizer = weakref.finalize(self, _close, fd, self._executor)
        self._finalizer.atexit = False  # a batch may be in progress, and the system closes the file
        self._closed: Future[OSError | None] | None = None
        self._failure: OSError | None = None  # set by the thread only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: _LineBatch = {}
        self._busy = False  # whether a batch is being written; its end starts the next batch

    def calls(self) -> Iterator[tuple[str, float | None]]:
        """Read the file, and yield ``call_id`` and ``t`` of each result. Blocks, as the constructor."""
        return calls(self._format.lines(self._fd))

    async def write(self, line: bytes) -> None:
        r"""Append a line. It is in the file when this returns; only a power failure can still lose it.

        If this is cancelled, the line may be in the file or not.

        Args:
            line: One line, with its ``\n``.

        Raises:
            OSError: This line or an earlier one could not be written. The file ends with the lines before that one.
            ValueError: It is not one line, or the file is closed.
            RuntimeError: Another event loop is writing.
        """
        if not line or line.find(b"\n") + 1 != len(line):
            raise ValueError("line must be one line, with the line end")
        if self._closed is not None:
            raise ValueError("the results file is closed")
        self._raise(self._failure)
        loop = self._use_running_loop()
        self._executor.start()
        written: asyncio.Future[OSError | None] = loop.create_future()
        self._waiting[written] = line
        if not self._busy:
            self._start_batch(loop)
        try:
            failure = await written
        finally:
            self._waiting.pop(written, None)  # still there only if this call was cancelled
        self._raise(failure)

    async def aclose(self) -> None:
        """Write the queued lines, close the file and end the thread. May be called again, and after a cancellation.

        Raises:
            OSError: The system call ``close`` failed, as it does on some file systems that are full.
        """
        # Shielded: cancelling this must not cancel the job
        self._raise(await asyncio.shield(asyncio.wrap_future(self._start_close())))

    def close(self) -> None:
        """Do the same without a running event loop. May be called again.

        Raises:
            OSError: As with `aclose`.
        """
        self._raise(self._start_close().result())

    def _prepare(self, fd: int, *, resume: bool) -> None:
        """Lock the file, and cut an unfinished end."""
        if not try_lock(fd):
            why = "another process is writing this file; end that process first, or use another name"
            raise BlockingIOError(errno.EWOULDBLOCK, why, self.path)
        if os.fstat(fd).st_size == 0:
            return
        if not resume:
            why = "this file already has results; continue it (--resume), or use another name"
            raise FileExistsError(errno.EEXIST, why, self.path)
        try:
            self.cut = self._format.repair(fd)
        except ValueError as error:
            raise ValueError(f"{self.path!r} {error}; nothing was changed") from error

    def _start_close(self) -> Future[OSError | None]:
        if self._closed is None:
            self._executor.start()
            if self._waiting and self._loop is not None:
                self._start_batch(self._loop)
            self._closed = self._executor.submit(self._finalizer)
        return self._closed

    def _use_running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. If the last loop has ended, drop the callers that waited there."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._busy and self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("the results file is being written from another event loop")
            self._loop, self._waiting, self._busy = loop, {}, False
        return loop

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Pass all waiting lines to the thread."""
        batch, self._waiting, self._busy = self._waiting, {}, True
        self._executor.submit(partial(self._write_batch, loop, batch))

    def _end_batch(self, loop: asyncio.AbstractEventLoop, batch: _LineBatch, failure: OSError | None) -> None:
        """Start the next batch first, so that the disk is busy while the callers continue."""
        self._busy = False
        if self._waiting:
            self._start_batch(loop)
        for written in batch:
            if not written.done():  # else its caller was cancelled
                written.set_result(failure)

    def _raise(self, failure: OSError | None) -> None:
        if failure is not None:  # a new error for each caller, because a raised error holds the caller's traceback
            raise OSError(failure.errno, failure.strerror, self.path) from failure

    # In the thread

    def _write_batch(self, loop: asyncio.AbstractEventLoop, batch: _LineBatch) -> None:
        if self._failure is None:
            try:
                self._append(self._format.pack(b"".join(batch.values())))
            except OSError as error:
                self._failure = error
            except BaseException as error:  # noqa: BLE001 - any error (no memory) must end the wait of the callers
                self._failure = OSError(errno.EIO, f"{type(error).__name__}: {error}")
        with suppress(RuntimeError):  # the loop is closed, so no caller waits
            loop.call_soon_threadsafe(self._end_batch, loop, batch, self._failure)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BaseException:  # raised again
            with suppress(OSError):  # else the partial batch stays, and the next `ResultsFile` cuts it
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)


def _close(fd: int, executor: SerialExecutor) -> OSError | None:
    """Close the file and end the thread: by `close`, or if the `ResultsFile` is garbage-collected."""
    executor.stop()
    try:
        os.close(fd)
    except OSError as error:
        return error
    return None


class ResultsSink:
    """A sink for `AsyncConnector.get_many` that writes each outcome as a JSON line. Its value must be the body (bytes).

    Args:
        results: The file.
        redacted: Query parameters whose values are not written. Otherwise the URL is written as it was given.
    """

    def __init__(self, results: ResultsFile, redacted: Iterable[str] = DEFAULT_REDACTED_PARAMS) -> None:
        self._results = results
        self._redact = Redactor(frozenset(redacted)).url
        self._stored: set[int] | None = None

    def holds(self, call_id: str, t: float) -> bool:
        """Return whether the file had the result of a call at the first call of this method, which reads the file."""
        if self._stored is None:
            # Hashes of 64 bits take a third of the memory of the ids
            self._stored = {hash(each) for each in self._results.calls()}
        return hash((call_id, t)) in self._stored or hash((call_id, None)) in self._stored

    async def __call__(self, outcome: Outcome) -> None:
        """Write the outcome of one successful call."""
        record = outcome.record
        body: bytes = outcome.value or b""  # 204 and similar responses have no body
        url = self._redact(str(outcome.url))
        await self._results.write(result_line(url, record.call_id, record.t, record.response_code, body))
