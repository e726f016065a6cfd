"""A middleware for aiohttp.web that creates the SERVER span of a request, in the trace of the caller.

`opentelemetry-instrumentation-aiohttp-server` of opentelemetry-python-contrib creates such a span, too. Use only one.
"""

from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

SERVER_ERROR = 500


@web.middleware
async def server_span(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle a request within a SERVER span, the child of the caller's span and the parent of the handler's calls."""
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
