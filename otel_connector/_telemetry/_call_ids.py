"""The id of a call: from the ids of its span, or generated. `random.seed` does not influence generated ids.

This file does not know how a span is started.

Used by ``_telemetry._foreign_spans``, ``_telemetry._spans``, ``csv_exporter`` and ``providers``.
"""

from __future__ import annotations

import os
import random

from opentelemetry.trace import SpanContext

# A generator of our own: a program that calls `random.seed` must not get the same ids again. Not `SystemRandom`, which
# makes a system call for each id
_random = random.Random()  # noqa: S311 - ids, not secrets
_CALL_ID = "%032x-%016x"  # an f-string takes 1.4 times the instructions

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def call_id_of(context: SpanContext) -> str:
    """Return the call_id of the span with this context: trace id and span id in hexadecimal, joined by a hyphen.

    Raises:
        TypeError: An id is not an integer; the id generator of an application can return anything.
    """
    return _CALL_ID % (context.trace_id, context.span_id)


def new_trace_id() -> int:
    """Return a random id of a trace: 128 bits, not 0."""
    return _random.getrandbits(128) or 1


def new_span_id() -> int:
    """Return a random id of a span: 64 bits, not 0."""
    return _random.getrandbits(64) or 1


def new_call_id(parent: SpanContext | None = None) -> str:
    """Return the call_id of a call that has no span of its own: the trace id of a valid parent, otherwise random ids.

    Args:
        parent: The context of the caller's span, if there is one.
    """
    call_id = _random.getrandbits(192).to_bytes(24, "big").hex("-", -16)
    return f"{parent.trace_id:032x}{call_id[32:]}" if parent is not None and parent.is_valid else call_id
