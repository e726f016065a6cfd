"""The service: it answers `/offer/{item}` with the data of two unreliable upstreams, requested with the connector.

`SHOP_PRICES` and `SHOP_STOCK` are the upstreams' addresses, `SHOP_LOG` is the CSV (default `shop.csv`), and
`SHOP_ATTEMPT_SPANS=1` gives each attempt a span of its own.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from server_span import server_span

from otel_connector import AsyncConnector, RetryPolicy, configure

SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
CONNECTOR = web.AppKey("CONNECTOR", AsyncConnector)


async def offer(request: web.Request) -> web.Response:
    """Request both upstreams concurrently. The price is required, the stock is optional."""
    app, item = request.app, request.match_info["item"]
    get = app[CONNECTOR].get
    price, stock = await asyncio.gather(
        get(app[SESSION], f"{os.environ['SHOP_PRICES']}/price/{item}", "price", default=None),
        get(app[SESSION], f"{os.environ['SHOP_STOCK']}/stock/{item}", "stock", default={"stock": None}),
    )
    if price is None:
        return web.json_response({"error": "no price available"}, status=502)
    return web.json_response({"item": item, "price": price["price"], "stock": stock["stock"]})


async def upstream_client(app: web.Application) -> AsyncIterator[None]:
    """Provide a session and a connector while the application runs."""
    async with aiohttp.ClientSession() as app[SESSION]:
        app[CONNECTOR] = AsyncConnector(
            os.environ.get("SHOP_LOG", "shop.csv"),
            n_tries=4,
            timeout=0.5,
            deadline=2,
            retry=RetryPolicy(backoff=0.05),
            attempt_spans=os.environ.get("SHOP_ATTEMPT_SPANS") == "1",
        )
        yield


async def make_app() -> web.Application:
    """Return the application. `gunicorn shop:make_app -k aiohttp.GunicornWebWorker` can run it, too."""
    app = web.Application(middlewares=[server_span])
    app.router.add_get("/offer/{item}", offer)
    app.cleanup_ctx.append(upstream_client)
    return app


if __name__ == "__main__":
    with configure("shop"), socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        web.run_app(make_app(), sock=listener, print=None, access_log=None)
