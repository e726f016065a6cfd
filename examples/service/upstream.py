"""An unreliable upstream with a fixed pattern of failures: `python examples/service/upstream.py NAME`.

It answers `/NAME/{item}`. Every 5th request gets a 503, every 13th a closed connection, and every 37th a response after
the timeout of the shop.
"""

import asyncio
import itertools
import socket
import sys

from aiohttp import web
from server_span import server_span

from otel_connector import configure

UNAVAILABLE_EACH, CUT_EACH, SLOW_EACH = 5, 13, 37
SLOW = 1.0  # seconds


def make_app(name: str) -> web.Application:
    """Return the application of the upstream with this name."""
    requests = itertools.count(1)

    async def answer(request: web.Request) -> web.Response:
        number = next(requests)
        if number % CUT_EACH == 0 and request.transport is not None:
            request.transport.abort()
        if number % SLOW_EACH == 0:
            await asyncio.sleep(SLOW)
        if number % UNAVAILABLE_EACH == 0:
            return web.json_response({"error": "try again"}, status=503)
        return web.json_response({"item": request.match_info["item"], name: number})

    app = web.Application(middlewares=[server_span])
    app.router.add_get(f"/{name}/{{item}}", answer)
    return app


if __name__ == "__main__":
    name = sys.argv[1]
    with configure(name), socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        web.run_app(make_app(name), sock=listener, print=None, access_log=None)
