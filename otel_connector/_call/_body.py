"""Reads the body of a response within bounds, undoes its content codings, and decodes it to the value of the call.

A response with an error status is raised as `HTTPStatusError`. This file does not know how requests are sent, nor
retries, telemetry or the log.

Used by ``_call._call`` and ``_call._transport``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.hdrs import CONTENT_ENCODING
from multidict import CIMultiDict

from otel_connector._call._aiohttp_private import MALFORMED_BODY
from otel_connector._call._content_coding import ContentCodings, content_codings
from otel_connector._call._ranges import check_range, check_size
from otel_connector._clock import time_limit
from otel_connector._errors import BodyTooLarge, DecodeFailed, HTTPStatusError, MalformedResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from otel_connector._call._exchange import Exchange, Request

_OK = 200
_FIRST_FINAL_STATUS = 200  # RFC 9110, section 15: 1xx are interim responses, and there is nothing below
_PARTIAL_CONTENT = 206
_FIRST_ERROR_STATUS = 400  # RFC 9110, section 15: 4xx and 5xx are errors

# RFC 9110: these responses have no content, so there is nothing to decode
_RESET_CONTENT = 205
_NO_CONTENT = frozenset({204, _RESET_CONTENT, 304})

_ERROR_BODY_LIMIT = 64 * 1024
"""Bytes read of the body of an error: enough to keep the connection for the next attempt."""

_ERROR_BODY_SECONDS = 1.0  # longer than most bodies take to arrive, and short enough not to delay a failed call

# Bytes that have already arrived are read without a pause, and decompression may multiply them
_YIELD_EVERY = 2**20  # bytes after which other tasks run

_JSON_STARTS = (b"{", b"[")
_JSON_SPACE = " \t\n\r"  # RFC 8259, section 2
_raw_decode = json.JSONDecoder().raw_decode


def body_received(response: aiohttp.ClientResponse, request: Request, exchange: Exchange) -> bytes | None:
    """Return the body if it arrived with the head, complete and without coding, as most do; otherwise None.

    Awaiting `read_body` for these would cost 3 % more instructions of a bare call.
    """
    content = response.content
    if response.status != _OK or not content.is_eof() or CONTENT_ENCODING in response.headers:
        return None
    exchange.in_body = True
    body = content.read_nowait()
    _count(exchange, body, request.max_body_bytes)
    return body


async def read_body(response: aiohttp.ClientResponse, request: Request, exchange: Exchange) -> bytes:
    """Return the body of a response.

    Raises:
        HTTPStatusError: The status is an error.
        MalformedResponse: The status is not that of a final response, or it is 206 with another range than requested.
        BodyError: The body is truncated, too large, or not in its coding.
    """
    status, limit = response.status, request.max_body_bytes
    if status < _FIRST_FINAL_STATUS:
        raise MalformedResponse(f"status {status} is not a final response")
    exchange.in_body = True
    if status == _RESET_CONTENT:
        return b""  # it has no body and no length, so reading would wait for the end of the connection
    if status >= _FIRST_ERROR_STATUS:
        raise await _status_error(response, exchange)
    decompress = request.options.get("auto_decompress")
    if decompress is None:
        decompress = request.session.auto_decompress
    codings = content_codings(response.headers.getall(CONTENT_ENCODING, ())) if decompress else ()
    if status != _PARTIAL_CONTENT:
        return await _read(response, exchange, limit, codings)
    expected = check_range(response.request_info.headers, response.headers)
    body = await _read(response, exchange, limit, codings)
    if expected is not None:
        check_size(expected, response.headers, exchange.size)
    return body


def decoded(request: Request, exchange: Exchange, body: bytes) -> Any:
    """Return the value of a call whose body has been read; None for a status without content.

    Raises:
        DecodeFailed: `decode` raised.
        TypeError: `decode` is a coroutine function.
    """
    if exchange.status in _NO_CONTENT:
        return None
    try:
        value = request.decode(body)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".removesuffix(": ") if body else "the body is empty"
        raise DecodeFailed(message) from error
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError("decode must be a plain function, it returned a coroutine")
    return value


def loads(body: bytes) -> Any:
    """Return the result of `json.loads`, for most bodies without its detection of encoding and white space.

    This saves two fifths of its instructions, 3 % of those of a bare call.
    """
    # An object or array in UTF-8, which JSON between systems is (RFC 8259, section 8.1)
    if not body.startswith(_JSON_STARTS) or body[1:2] == b"\0":
        return json.loads(body)
    text = body.decode("utf-8", "surrogatepass")
    value, end = _raw_decode(text)
    if end < len(text) and text[end:].strip(_JSON_SPACE):
        return json.loads(text)  # raises, and its message names the position
    return value


async def _read(response: aiohttp.ClientResponse, exchange: Exchange, limit: int, codings: Sequence[str] = ()) -> bytes:
    # Not a list of pieces: joining it would need twice the memory, whereas BytesIO returns its own buffer
    with BytesIO() as body:
        yield_at = _YIELD_EVERY
        async with contextlib.aclosing(_pieces(response, codings)) as pieces:
            async for piece, window in pieces:
                _count(exchange, piece, limit, window)
                body.write(piece)
                if exchange.size >= yield_at:
                    yield_at = exchange.size + _YIELD_EVERY
                    await asyncio.sleep(0)
        return body.getvalue()


def _count(exchange: Exchange, piece: bytes, limit: int, window: int = 0) -> None:
    exchange.size += len(piece)
    if exchange.size + window > limit:
        counted = f" (with {window} bytes for the window of its coding)" if window else ""
        raise BodyTooLarge(f"body passed {limit} bytes{counted} and was not read further", limit=limit)


async def _pieces(response: aiohttp.ClientResponse, codings: Sequence[str]) -> AsyncGenerator[tuple[bytes, int]]:
    """Yield the decoded bytes of the body, each piece with the memory that the decoder holds in addition."""
    decoder, worker = ContentCodings(codings), None
    try:
        while received := await response.content.readany():
            pieces = decoder.decode(received)
            while True:
                # A large window is filled in one step, which would block the event loop for too long. The thread is our
                # own: the loop's default executor has several, and each keeps an arena of memory
                if decoder.window:
                    worker = worker or ThreadPoolExecutor(1, "otel_connector.decoder")
                    piece = await asyncio.get_running_loop().run_in_executor(worker, next, pieces, None)
                else:
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield piece, decoder.window
        decoder.finish()
    finally:
        if worker is not None:
            worker.shutdown(wait=False)


async def _status_error(response: aiohttp.ClientResponse, exchange: Exchange) -> HTTPStatusError:
    """Read some of the body, so that the connection can be reused, and return the error."""
    # The status is the error; a body that is long, late or broken does not change it
    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, *MALFORMED_BODY):
        async with time_limit(_ERROR_BODY_SECONDS):
            await _read(response, exchange, _ERROR_BODY_LIMIT)
    return HTTPStatusError(
        f"{response.status} {response.reason or ''}".rstrip(),
        status=response.status,
        headers=CIMultiDict(response.headers),  # a copy, because aiohttp's proxy cannot be pickled
    )
