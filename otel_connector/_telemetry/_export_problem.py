"""What can happen to an export other than that all of it arrives, and the sentence for each kind.

`configure`, ``demo``, ``fetch``, ``replay`` and ``doctor`` use these sentences and no others. The HTTP session and the
gRPC channel of an exporter call `note` with what they observed, in the thread of the export. This file does not know
HTTP, gRPC or the SDK.

Used by ``_doctor``, ``_replay``, ``_telemetry`` and ``cli``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from otel_connector._record import one_line
from otel_connector._redact import Redactor
from otel_connector._units import counted, exact_duration

_QUOTED = 200  # characters of a text of the receiver
_JAEGER_UI = 16686
_CONFIG_FILE = "OTEL_CONFIG_FILE"
_ITEMS = {"traces": "span", "metrics": "data point", "logs": "log record"}
_BATCH_SIZES = {"traces": "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "logs": "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"}


class Kind(Enum):
    """A kind of loss. Its value is the sentence: what happened, the cause if it is known, and what to do."""

    REFUSED = "nothing listens at {origin} (connection refused). Start a collector, or set {endpoint}, or {none}."
    HTTP_PORT = (
        "{origin} {answer}, and the protocol is grpc{jaeger_ui}."
        " Set {protocol}=http/protobuf, or use the gRPC port (usually 4317)."
    )
    GRPC_PORT = (
        "{origin} closed the HTTP connection, as gRPC servers do."
        " Set {protocol}=grpc, or use the HTTP port (usually 4318){or_tls}."
    )
    NOT_TLS = "{origin} does not speak TLS. Write http:// in {endpoint} if the connection may be unencrypted."
    NO_SCHEME = "{endpoint}={address} has no scheme; {answer}. Write http://{address} or https://{address}."
    BAD_ENDPOINT = (
        "{endpoint} is not a URL that the exporter can use{answer}. Write http://host:port or https://host:port."
    )
    UNKNOWN_HOST = "the host name {host} is unknown (DNS). Correct {endpoint}."
    CERTIFICATE = (
        "the certificate of {origin} is not accepted: {answer}. Set {certificate} to the file of its authority."
    )
    CLOSED = "{origin} closed the connection before it answered{if_tls}."
    CONNECTION = "no connection to {origin}: {answer}."
    NO_ANSWER = "{origin} did not answer within {timeout} ({timeout_variable})."
    TOO_SLOW = "{origin} did not answer within {answer} (exit_timeout)."
    WRONG_PATH = "{origin} answered {answer}. {endpoint} is used as it is: it must end in /v1/{signal}."
    NO_RECEIVER = "{origin} answered {answer} for /v1/{signal}. Set {endpoint} to the address of an OTLP receiver."
    UNSUPPORTED = "{origin} takes no {signal} ({answer}{jaeger}). Set {none}, or {own_endpoint}."
    CREDENTIALS = "{origin} answered {answer}. {set_headers}."
    NOT_OTLP = "{origin} answered {answer}. This is not an OTLP receiver{jaeger_ui}."
    REDIRECT = "{origin} answered {answer}, which is not followed. Set {endpoint} to the address of the receiver."
    TOO_LARGE = "a request of {size} bytes is too large for {origin} ({answer}){smaller}."
    PARTIAL = "{rejected} were rejected by {origin}{answer}."
    STATUS = "{origin} answered {answer}."
    INTERRUPTED = "the export was interrupted."
    FAILED = "the exporter failed: {answer}."
    UNKNOWN = "the exporter gave no reason."


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What happened to one export.

    Attributes:
        kind: The kind.
        answer: What the receiver answered, or the cause; safe to print.
        size: Bytes of the request, if its size matters.
        rejected: Items that the receiver rejected, if it accepted the others.
    """

    kind: Kind
    answer: str = ""
    size: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTarget:
    """What an exporter sends, how and where, as the SDK has configured it.

    Attributes:
        signal: ``traces``, ``metrics`` or ``logs``.
        protocol: ``grpc`` or ``http/protobuf``; for another exporter, its class.
        endpoint: The endpoint of the exporter. It may have secrets; see `origin`.
        secure: Whether it uses TLS.
        timeout: Seconds after which the exporter gives up.
    """

    signal: str
    protocol: str
    endpoint: str = ""
    secure: bool = False
    timeout: float = 10.0

    @property
    def has_scheme(self) -> bool:
        """Whether the operator has written a scheme; over gRPC, the SDK has removed it."""
        given = os.environ.get(self.variable("ENDPOINT"), "")
        return "://" in (given if self.protocol == "grpc" and given == self.endpoint else f"://{self.endpoint}")

    @property
    def origin(self) -> str:
        """The scheme, the host and the port of the endpoint, without its secrets."""
        if not self.endpoint:
            return self.protocol
        if self.protocol == "grpc":
            return f"http{'s' * self.secure}://{address_of(self.endpoint)}"
        return origin_of(self.endpoint)

    @property
    def no_exporter(self) -> str:
        """The setting with which this signal is not exported."""
        if os.environ.get(_CONFIG_FILE):
            return f"no exporter of {self.signal} in {_CONFIG_FILE}"
        return f"OTEL_{self.signal.upper()}_EXPORTER=none"

    def variable(self, name: str) -> str:
        """Return the name of the variable that sets an option of this exporter, such as ``ENDPOINT``."""
        if os.environ.get(_CONFIG_FILE):
            return f"{name.lower()} in {_CONFIG_FILE}"
        own = f"OTEL_EXPORTER_OTLP_{self.signal.upper()}_{name}"
        return own if os.environ.get(own) else f"OTEL_EXPORTER_OTLP_{name}"


def origin_of(url: str) -> str:
    """Return the scheme, the host and the port of a URL, which a message may show."""
    scheme, separator, _ = url.partition("://")
    return f"{scheme.rpartition('@')[2]}{separator}{address_of(url)}" if separator else address_of(url)


def address_of(url: str) -> str:
    """Return the host and the port of a URL, with or without a scheme."""
    rest = url.partition("://")[2] or url
    for mark in "/?#":
        rest = rest.partition(mark)[0]
    return rest.rpartition("@")[2]


def quoted(text: str) -> str:
    """Return a text of the receiver for a message: one line, without secrets, in quotes; empty if there is none."""
    shown = one_line(Redactor().text(text.strip()), _QUOTED)
    return f': "{shown}"' if shown else ""


def sentence(problem: Problem, targets: Sequence[ExportTarget], *, count: int = 0, lost: int | None = None) -> str:
    """Return the message about a problem that all of `targets` have.

    Args:
        problem: What happened.
        targets: The exporters; not empty.
        count: The items of the export, if they are known.
        lost: The items that were lost, if others have arrived; 0 if their number is not known.
    """
    first = targets[0]
    item = _ITEMS[first.signal]
    text = problem.kind.value.format_map(_Fields(problem, targets, count))
    if problem.kind is Kind.PARTIAL:
        return text
    if lost is None:
        what = f"{_joined(target.signal for target in targets).capitalize()} were"
    else:
        what = f"Some {item}s were" if not lost else f"{counted(lost, item)} {'was' if lost == 1 else 'were'}"
    return f"{what} not sent: {text}"


def _joined(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


class _Fields(dict[str, str]):
    """The values of the fields of the sentences, each computed when a sentence needs it."""

    def __init__(self, problem: Problem, targets: Sequence[ExportTarget], count: int) -> None:
        self._problem, self._targets, self._count = problem, targets, count

    def __missing__(self, name: str) -> str:
        problem, first = self._problem, self._targets[0]
        signal, variable = first.signal, first.variable
        item, secure = _ITEMS[signal], first.origin.startswith("https:")
        values: dict[str, Callable[[], str]] = {
            "origin": lambda: first.origin,
            "address": lambda: address_of(first.endpoint),
            "host": lambda: urlsplit(f"//{address_of(first.endpoint)}").hostname or "of the endpoint",
            "answer": lambda: problem.answer,
            "signal": lambda: signal,
            "endpoint": lambda: _joined(target.variable("ENDPOINT") for target in self._targets),
            "own_endpoint": lambda: (
                variable("ENDPOINT") if _CONFIG_FILE in os.environ else f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
            ),
            "protocol": lambda: variable("PROTOCOL"),
            "certificate": lambda: variable("CERTIFICATE"),
            "none": lambda: _joined(target.no_exporter for target in self._targets),
            "set_headers": lambda: f"{'Correct' if variable('HEADERS') in os.environ else 'Set'} {variable('HEADERS')}",
            "timeout": lambda: exact_duration(first.timeout),
            "timeout_variable": lambda: variable("TIMEOUT"),
            "jaeger": lambda: "" if signal == "traces" else "; Jaeger does not",
            "jaeger_ui": lambda: (
                " (Jaeger's page has this port; its receiver has 4317 and 4318)"
                if first.origin.endswith(f":{_JAEGER_UI}")
                else ""
            ),
            "or_tls": lambda: "" if secure else ", or write https:// if it expects TLS",
            "if_tls": lambda: "" if secure else f". Write https:// in {variable('ENDPOINT')} if it expects TLS",
            "size": lambda: f"{problem.size:,}",
            "smaller": lambda: (
                f". Set {_BATCH_SIZES[signal]} to less than {self._count}"
                if signal in _BATCH_SIZES and self._count > 1
                else ""
            ),
            "rejected": lambda: (
                f"{problem.rejected:,} of {counted(self._count, item)}"
                if self._count
                else counted(problem.rejected, item)
            ),
        }
        return values[name]()


_current = threading.local()


@contextmanager
def noting(observe: Callable[[Problem | None], object]) -> Generator[None]:
    """Pass what `note` is called with in this block and this thread to `observe`."""
    before = getattr(_current, "observe", None)
    _current.observe, _current.has_noted = observe, False
    try:
        yield
    finally:
        _current.observe, _current.has_noted = before, False


def note(problem: Problem | None) -> None:
    """Store what happened to a request; None if the receiver accepted all of it."""
    if observe := getattr(_current, "observe", None):
        _current.has_noted = True
        observe(problem)


def has_noted() -> bool:
    """Whether this thread is in an export whose problem is known: what the SDK logs about it is a repetition."""
    return getattr(_current, "has_noted", False)
