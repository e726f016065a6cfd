"""The SERVER span of a request to an aiohttp.web application, by hand, in the trace of whoever asked.

Contrib's `opentelemetry-instrumentation-aiohttp-server` makes one, too; take either.
"""

from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

SERVER_ERROR = 500


@web.middleware
async def server_span(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer within a SERVER span below the caller's, which the handler's own calls are then below."""
    resource = request.match_info.route.resource
    route = resource.canonical if resource else ""
    with trace.get_tracer("examples.service").start_as_current_span(
        f"{request.method} {route}".rstrip(),
        context=propagate.extract(request.headers),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": request.method, "url.path": request.path, "http.route": route},
    ) as span:
        response = await handler(request)
        span.set_attribute("http.response.status_code", response.status)
        if response.status >= SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        return response
