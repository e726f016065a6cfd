r"""Level 2: the results of many calls as JSON lines, in a file that survives kill -9 at any moment.

Who awaited the write of a line and got an answer has it in the file. Lines that come while others are being written
wait and are the next batch, so that a thousand callers cost a few writes; a thread of its own does them. In a
compressed file each batch is a whole gzip member or zstd frame, so that what was written before it can always be read,
and what a killed program tore can be told apart and cut. Knows neither calls nor the log.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import re
import threading
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from typing import Any, NoReturn, Protocol, TypeAlias

from otel_connector._csv._torn_tail import blocks, cut_torn_tail, open_regular, refuse_strangers_links

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so one process per file (see the README)
    fcntl = None

_PIECE = 8_192  # bytes unpacked at once: a finished member's decoder copies what is behind it, so not a whole block
_PAUSE = 0.001  # seconds between two looks at whether the thread has ended
_GZIP = 16 + zlib.MAX_WBITS
_ZSTD_LEVEL = 3  # the library's own choice; its window of 2 MiB is what a reader has to hold

# File systems that know no locks; there one process writes a file, as on Windows
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

# What some readers take for the end of a line, and JSON for a letter like any other
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_LONGEST_HEAD = 2**17  # bytes of a line in which its call_id is looked for; a URL is shorter

# As `result_line` writes it: nothing inside the URL before it can look like this, because its quotes are escaped
_CALL_ID = re.compile(rb'","call_id":"([0-9a-f]+-[0-9a-f]+)","status":')
_TO_SPACES = str.maketrans("\r\n", "  ")

_Batch: TypeAlias = "dict[asyncio.Future[OSError | None], bytes]"
"""Lines, each under what its caller waits for."""


def result_line(url: str, call_id: str, status: int | None, body: bytes) -> bytes:
    r"""Return the JSON line of one result, with its ``\n``: the body under ``json``, ``text`` or ``base64``.

    JSON is taken over as it is spelt, so that numbers keep every digit and objects their order; only line breaks, which
    mean nothing there, become spaces. JSON that Python itself would not read back (nested too deeply, an integer of
    more digits than it converts) is text, so that no body can break the line's readers.

    Args:
        url: The URL asked for. Lone surrogates, which no strict reader takes, are written as in the log: ``\ud800``.
        call_id: The id of its row.
        status: The HTTP status, if there is one.
        body: The body, undecoded.
    """
    known = f'"url":{_quoted(url)},"call_id":{_quoted(call_id)},"status":{json.dumps(status)}'
    return f"{{{known},{_content(body)}}}\n".encode()


def _content(body: bytes) -> str:
    try:
        return f'"json":{_as_spelt(body)}'
    except (ValueError, RecursionError):  # no JSON, or not in the encoding it seems to be in
        pass
    try:
        return f'"text":{_quoted(body.decode())}'
    except UnicodeDecodeError:
        return f'"base64":"{base64.b64encode(body).decode()}"'


def _as_spelt(body: bytes) -> str:
    """Return JSON on one line.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
    """
    text = body.decode(json.detect_encoding(body))
    json.loads(text, parse_constant=_refuse_constant)
    # Inside a string a line break is an escape already, and the other line ends can be nowhere else
    return text.translate(_TO_SPACES).translate(_LINE_ENDS)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _quoted(text: str) -> str:
    """Return a JSON string that is one line to every reader."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return json.dumps(whole, ensure_ascii=False).translate(_LINE_ENDS)


class ResultsFile:
    """Appends lines to one file, for many callers at once. For one event loop at a time.

    The constructor and `close` block, for as long as it takes to read a compressed file: they are for before and after
    the loop, or for a thread.

    Args:
        path: The file; created with mode 0600 if it is not there. ``.gz`` and ``.zst`` are compressed.
        resume: Go on with a file that has results.

    Attributes:
        path: The file.
        cut: Bytes of an unfinished end that were taken off, of lines whose `write` never returned. Those of a plain
            file are kept in ``<path>.torn``.

    Raises:
        FileExistsError: It has results, and `resume` is False.
        BlockingIOError: Another program is writing it.
        OSError: It cannot be opened, is not a regular file, or is a symbolic link of somebody else's.
        ValueError: It does not hold JSON lines in this compression, or is damaged before its end; nothing was changed.
        ImportError: The compression is zstd, and nothing installed provides it.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool) -> None:
        self.path = os.fspath(path)
        self.cut = 0
        self._format = _format_of(self.path)  # before a file is created that nobody can write
        fd = _open(self.path)
        try:
            _lock(fd, self.path)
            if os.fstat(fd).st_size:
                self._take_over(fd, resume=resume)
            self._end = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closing = weakref.finalize(self, _let_go, fd, self._jobs)
        self._closing.atexit = False  # the system closes it, and a batch may be on its way
        self._thread: threading.Thread | None = None
        self._closed = False
        self._close_error: OSError | None = None
        self._failure: OSError | None = None  # set by the thread only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: _Batch = {}
        self._busy = False  # whether a batch is on its way, which sends the next one when it is back

    def call_ids(self) -> Iterator[str]:
        """Read the file from its beginning, and yield the ``call_id`` of each result. Blocks, as the constructor."""
        head, passed = b"", False  # of a line: its beginning, and whether that told what there is to know
        for data in self._format.contents(self._fd):
            for number, piece in enumerate(data.split(b"\n")):
                if number:
                    head, passed = b"", False
                if passed:
                    continue
                head += piece
                if (found := _CALL_ID.search(head)) is not None:
                    yield found[1].decode()
                passed = found is not None or len(head) > _LONGEST_HEAD

    async def write(self, line: bytes) -> None:
        r"""Append a line; it is in the file when this returns, though a power cut may still take it.

        Cancelled, it may have been written or not.

        Args:
            line: One line, with its ``\n``.

        Raises:
            OSError: The disk refused it, or an earlier one: the file ends with what was written before.
            ValueError: It is not one line, or the file is closed.
            RuntimeError: Another event loop is writing.
        """
        if not line or line.find(b"\n") + 1 != len(line):
            raise ValueError("line: it must be one line, with the line end")
        if self._closed:
            raise ValueError("the results file is closed")
        self._refuse(self._failure)
        loop = self._on_this_loop()
        self._start_thread()
        future: asyncio.Future[OSError | None] = loop.create_future()  # its result is why the line is not there
        self._waiting[future] = line
        if not self._busy:
            self._send(loop)
        try:
            failure = await future
        finally:
            self._waiting.pop(future, None)  # nobody waits with it any more, if this was cancelled
        self._refuse(failure)

    async def aclose(self) -> None:
        """Write what is queued, close the file and end the thread. Safe to call again, and when cancelled.

        Raises:
            OSError: The file system refused something when the file was closed, as some do that are full.
        """
        self._begin_close()
        while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110 - a thread's end cannot be awaited
            await asyncio.sleep(_PAUSE)
        self._refuse(self._close_error)

    def close(self) -> None:
        """Do the same where no loop runs. Safe to call again.

        Raises:
            OSError: As with `aclose`.
        """
        self._begin_close()
        if self._thread is not None:
            self._thread.join()
        self._refuse(self._close_error)

    def _take_over(self, fd: int, *, resume: bool) -> None:
        if not resume:
            why = "it has results already; go on with it (--resume), or give another name"
            raise FileExistsError(errno.EEXIST, why, self.path)
        try:
            self.cut = self._format.mend(fd, self.path)
        except ValueError as error:
            raise ValueError(f"{self.path!r} {error}; nothing was changed") from error

    def _begin_close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._thread is None:
            self._shut()
            return
        if self._waiting and self._loop is not None:
            self._send(self._loop)
        self._jobs.put(self._shut)
        self._jobs.put(None)

    def _shut(self) -> None:
        self._close_error = self._closing()

    def _on_this_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, and forget one that has ended, with those who waited there."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._busy and self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("the results file is being written from another event loop")
            self._loop, self._waiting, self._busy = loop, {}, False
        return loop

    def _start_thread(self) -> None:
        if self._thread is None:
            # A daemon, so that a disk that hangs cannot hold up the end of the program: whoever waits for the disk has
            # not been told that a line is there
            thread = threading.Thread(target=_work, args=(self._jobs,), name="otel_connector.results", daemon=True)
            thread.start()
            self._thread = thread

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over to the thread what waits."""
        batch, self._waiting, self._busy = self._waiting, {}, True
        self._jobs.put(partial(self._write_batch, loop, batch))

    def _sent(self, loop: asyncio.AbstractEventLoop, batch: _Batch, failure: OSError | None) -> None:
        """Have the thread go on, and then the callers."""
        self._busy = False
        if self._waiting:
            self._send(loop)
        for future in batch:
            if not future.done():  # cancelled
                future.set_result(failure)

    def _refuse(self, failure: OSError | None) -> None:
        if failure is not None:  # an error of its own for each caller: a traceback is of one
            raise OSError(failure.errno, failure.strerror, self.path) from failure

    # In the thread

    def _write_batch(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        if self._failure is None:
            try:
                self._append(self._format.pack(b"".join(batch.values())))
            except BaseException as error:  # noqa: BLE001 - whatever it is (no memory), the callers must not wait for ever
                self._failure = _as_os_error(error)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(self._sent, loop, batch, self._failure)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except BaseException:
            with suppress(OSError):  # then its beginning stays, and the next to open the file cuts it
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)


def _work(jobs: SimpleQueue[Callable[[], object] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it holds the file, which may be dropped


def _let_go(fd: int, jobs: SimpleQueue[Callable[[], object] | None]) -> OSError | None:
    """Close the file, and end the thread of one that was dropped."""
    jobs.put(None)
    try:
        os.close(fd)
    except OSError as error:
        return error
    return None


def _as_os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EIO, f"{type(error).__name__}: {error}")


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    if os.path.islink(path):  # noqa: PTH114 - a str, which may be no name at all
        refuse_strangers_links(path)
    else:  # nor one that somebody puts there right now
        flags |= getattr(os, "O_NOFOLLOW", 0)
    return open_regular(path, flags)


def _lock(fd: int, path: str) -> None:
    """Have nobody else write the file until it is closed, however this process ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        why = "another program is writing it; end that first, or give another name"
        raise BlockingIOError(error.errno, why, path) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


# Formats


class _Format(Protocol):
    """How lines are kept in a file."""

    def pack(self, lines: bytes) -> bytes:
        """Return what to append for some whole lines."""
        ...

    def mend(self, fd: int, path: str) -> int:
        """Take off an unfinished end and return its bytes.

        Raises:
            ValueError: The file is of another kind, or damaged elsewhere; says which, and nothing is changed.
        """
        ...

    def contents(self, fd: int) -> Iterator[bytes]:
        """Yield the lines, unpacked, in bounded pieces."""
        ...


def _format_of(path: str) -> _Format:
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path would drop a trailing slash
    return _Gzip() if ending == ".gz" else _Zstd() if ending == ".zst" else _Plain()


class _Plain:
    def pack(self, lines: bytes) -> bytes:
        return lines

    def mend(self, fd: int, path: str) -> int:
        _refuse_stranger(b"".join(blocks(fd, 0, 1)))
        return cut_torn_tail(fd, path)

    def contents(self, fd: int) -> Iterator[bytes]:
        return blocks(fd, 0, os.fstat(fd).st_size)


class _Compressed(ABC):
    """Members, one after the other, each with the lines of a batch."""

    name: str
    errors: tuple[type[Exception], ...]

    @abstractmethod
    def decoder(self) -> Any:
        """Return what unpacks one member."""

    @abstractmethod
    def unpacked(self, decoder: Any, data: bytes) -> Iterator[bytes]:
        """Unpack in bounded pieces, up to the end of the member."""

    def mend(self, fd: int, path: str) -> int:  # noqa: ARG002 - the path is for those who keep what they cut
        size, members = os.fstat(fd).st_size, _Members(self)
        try:
            for block in blocks(fd, 0, size):
                for start in range(0, len(block), _PIECE):
                    members.feed(block[start : start + _PIECE])
        except self.errors as error:
            # Not torn but damaged: what is behind that place may be whole, and is not ours to throw away
            raise ValueError(_damage(self.name, members.end, str(error))) from error
        _refuse_stranger(members.first)
        if members.end_line != b"\n":
            raise ValueError("does not end with a whole line: another program made it")
        if members.end < size:
            os.ftruncate(fd, members.end)
        return size - members.end

    def contents(self, fd: int) -> Iterator[bytes]:
        decoder = self.decoder()
        for block in blocks(fd, 0, os.fstat(fd).st_size):
            for start in range(0, len(block), _PIECE):
                data = block[start : start + _PIECE]
                while data:
                    yield from self.unpacked(decoder, data)
                    if not decoder.eof:
                        break
                    data, decoder = decoder.unused_data, self.decoder()


def _damage(name: str, end: int, error: str) -> str:
    if not end:
        return f"is not {name} ({error})"
    return f"is damaged behind its first {end} bytes ({error}); to go on without the rest: truncate -s {end}"


class _Members:
    """Finds where the last whole member ends, in bounded memory."""

    def __init__(self, packed: _Compressed) -> None:
        self._packed = packed
        self._decoder = packed.decoder()
        self._seen = 0  # bytes
        self._last = b"\n"
        self.first = b""  # of all that was unpacked
        self.end = 0
        self.end_line = b"\n"  # the last byte unpacked before the end

    def feed(self, data: bytes) -> None:
        self._seen += len(data)
        while data:
            for text in self._packed.unpacked(self._decoder, data):
                self.first = self.first or text[:1]
                self._last = text[-1:] or self._last
            if not self._decoder.eof:
                return
            data = self._decoder.unused_data
            self.end, self.end_line = self._seen - len(data), self._last
            self._decoder = self._packed.decoder()


class _Gzip(_Compressed):
    name = "gzip"
    errors = (zlib.error,)

    def pack(self, lines: bytes) -> bytes:
        packer = zlib.compressobj(wbits=_GZIP)
        return packer.compress(lines) + packer.flush()

    def decoder(self) -> Any:
        return zlib.decompressobj(wbits=_GZIP)

    def unpacked(self, decoder: Any, data: bytes) -> Iterator[bytes]:
        while data and not decoder.eof:
            yield decoder.decompress(data, _PIECE)
            data = decoder.unconsumed_tail


class _Zstd(_Compressed):
    name = "zstd"

    def __init__(self) -> None:
        self._library = _zstd_library()
        self.errors = (self._library.ZstdError,)
        parameters = self._library.CompressionParameter
        self._options = {parameters.compression_level: _ZSTD_LEVEL, parameters.checksum_flag: 1}

    def pack(self, lines: bytes) -> bytes:
        packed: bytes = self._library.compress(lines, options=self._options)
        return packed

    def decoder(self) -> Any:
        return self._library.ZstdDecompressor()

    def unpacked(self, decoder: Any, data: bytes) -> Iterator[bytes]:
        yield decoder.decompress(data, _PIECE)
        while not decoder.eof and not decoder.needs_input:
            yield decoder.decompress(b"", _PIECE)


def _zstd_library() -> Any:
    """Import zstd from the standard library (Python 3.14 and later) or from its backport."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return import_module(name)
    raise ImportError("a results file that ends in .zst needs zstd: pip install 'otel-connector[cli]'")


def _refuse_stranger(first: bytes) -> None:
    """Raise ValueError if a file that begins with this byte holds no JSON lines; one that holds nothing passes."""
    if first not in {b"", b"{"}:
        raise ValueError(f"holds no JSON lines: its first byte is {first!r}, not '{{'")
