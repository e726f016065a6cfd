"""What can happen to an export other than that all of it arrives, and the sentence for each kind.

`configure`, ``demo``, ``fetch``, ``replay`` and ``doctor`` use these sentences and no others. The HTTP session and the
gRPC channel of an exporter call `note` with what they observed, in the thread of the export. This file does not know
HTTP, gRPC or the SDK.

Used by ``_doctor``, ``_replay``, ``_telemetry`` and ``cli``.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from otel_connector._record import one_line
from otel_connector._telemetry._tls_files import OF_REQUESTS
from otel_connector._telemetry._usual_ports import PORTS, other_protocol
from otel_connector._telemetry._variable_values import address_of, origin_of, without_secrets
from otel_connector._units import counted, exact_duration

_QUOTED = 200  # characters of a text of the receiver
_JAEGER_UI = 16686
_CONFIG_FILE = "OTEL_CONFIG_FILE"
_ITEMS = {"traces": "span", "metrics": "data point", "logs": "log record"}
_LIMITS = ("max_request_body_size", "max_recv_msg_size_mib")  # of the OpenTelemetry Collector: over HTTP, over gRPC
_SCHEMES = frozenset({"http", "https"})
_PORT = re.compile(r":\d+$")
_BATCH_SIZES = {"traces": "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "logs": "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"}


class Kind(Enum):
    """A kind of loss. Its value is what happened, the cause if it is known, and what to do; of `PARTIAL`, by whom."""

    REFUSED = "nothing listens at {origin} (connection refused). Start a collector, or set {endpoint}, or {none}."
    OTHER_PORT = (
        "nothing listens at {origin} (connection refused), but something listens at {answer}, the usual port of"
        " {other_protocol}. Set {protocol}={other_protocol}{other_endpoint}."
    )
    HTTP_PORT = "{origin} {answer}, and the protocol is grpc{jaeger_ui}. {grpc_or_http}."
    GRPC_PORT = (
        "{origin} closed the HTTP connection, as gRPC servers do."
        " Set {protocol}=grpc, or use the HTTP port (usually 4318){or_tls}."
    )
    NOT_TLS = "{origin} does not speak TLS. Write http:// in {endpoint} if the connection may be unencrypted."
    TLS_PORT = "{origin} speaks TLS. Write https:// in {endpoint}."
    NOT_HTTP = (
        "something that does not speak HTTP/1.1 answers at {origin}. Check the port in {endpoint} (usually 4318)."
    )
    CUT = "the answer of {origin} is not complete."
    NO_SCHEME = "{endpoint}={address} has no scheme; {answer}. Write http://{with_port} or https://{with_port}."
    BAD_ENDPOINT = (
        "{endpoint} is not a URL that the exporter can use{answer}. Write http://host:port or https://host:port."
    )
    UNKNOWN_HOST = "the host name {host} is unknown (DNS). Correct {endpoint}."
    CERTIFICATE = (
        "the certificate of {origin} is not accepted: {answer}. Set {certificate} to the file of its authority."
    )
    TLS_FILE = "{answer}. Correct the variable, or unset it."
    CLOSED = "{origin} closed the connection before it answered{if_tls}."
    CONNECTION = "no connection to {origin}: {answer}."
    NO_ANSWER = "{origin} did not answer within {timeout} ({timeout_variable})."
    BAD_TIMEOUT = (
        "{timeout_variable}={seconds} is not a time that an exporter can wait."
        " Set it to a number of seconds above 0, such as 10."
    )
    TOO_SLOW = "{origin} did not answer within {answer}, the time limit at the end of the program."
    WRONG_PATH = "{origin} answered {answer}. {endpoint} is used as it is: it must end in /v1/{signal}."
    WRONG_BASE = (
        "{origin} answered {answer}. {endpoint} has a {extra}, and most receivers have none."
        " Set {endpoint} to {correct}, or correct the {extra}."
    )
    NO_RECEIVER = "{origin} answered {answer} for /v1/{signal}. Set {endpoint} to the address of an OTLP receiver."
    UNSUPPORTED = "{origin} takes no {signal} ({answer}{jaeger}). Set {none}, or {own_endpoint}."
    CREDENTIALS = "{origin} answered {answer}. {set_headers}."
    NOT_OTLP = "{origin} answered {answer}. This is not an OTLP receiver{jaeger_ui}."
    UNREADABLE = "{origin} answered {answer}, which was not requested and cannot be decoded."
    REDIRECT = "{origin} answered {answer}, which is not followed. Set {endpoint} to the address of the receiver."
    TOO_LARGE = "a request of {size} bytes is too large for {origin} ({answer}). {smaller}."
    PARTIAL = "{origin}{answer}."
    HINT = "{origin} has accepted the {signal}, with a warning{answer}."  # not a loss
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
    def mistake(self) -> Problem | None:
        """What is wrong with the endpoint as the operator has written it; None if nothing is, or it is not known."""
        given, is_grpc = os.environ.get(self.variable("ENDPOINT"), "").strip(), self.protocol == "grpc"
        # Over gRPC, the SDK has removed the scheme and the path; over HTTP, it has appended a path
        is_given = address_of(self.endpoint) == address_of(given) if is_grpc else self.endpoint.startswith(given)
        if not given or not is_given:  # it is from the code, or from a configuration file
            return None
        scheme, separator, rest = given.lower().partition("://")
        wrong: str | None = None
        if not separator and scheme.startswith(("http:", "https:")):
            wrong = ""
        elif not separator and is_grpc and "/" in scheme.removeprefix("//"):  # grpc takes all of it for the host name
            wrong = ": it has no scheme, and a path"
        elif scheme in _SCHEMES and not address_of(given).partition(":")[0]:
            wrong = ": it has no host"
        elif scheme in _SCHEMES and not _has_valid_port(given):
            wrong = ": its port is not a number from 0 to 65535"
        elif scheme in _SCHEMES and is_grpc and "@" in rest.partition("/")[0]:
            wrong = ": over gRPC, it cannot have a user"
        elif is_grpc and (not self.secure or (separator and given == self.endpoint)):  # unix:///x is a target of grpc
            return None
        elif not separator:
            return Problem(kind=Kind.NO_SCHEME, answer=f"the SDK {'uses TLS' if is_grpc else 'sends nothing'} then")
        elif scheme not in _SCHEMES:
            wrong = ""
        return None if wrong is None else Problem(kind=Kind.BAD_ENDPOINT, answer=wrong)

    @property
    def origin(self) -> str:
        """The scheme, the host and the port of the endpoint, without its secrets."""
        if not self.endpoint:
            return self.protocol
        origin = origin_of(self.endpoint)
        if self.protocol != "grpc" or ("/" in origin and origin == self.endpoint):
            return origin
        return f"http{'s' * self.secure}://{address_of(self.endpoint)}"

    @property
    def base(self) -> str:
        """The endpoint without the path of the signal."""
        return self.endpoint.removesuffix(f"/v1/{self.signal}")

    @property
    def tls_variables(self) -> tuple[str, ...]:
        """The variables whose files the exporter reads."""
        names = tuple(map(self.variable, ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")))
        of_requests = [name for name in OF_REQUESTS if os.environ.get(name)]
        return names if self.protocol == "grpc" or os.environ.get(names[0]) else (*names, *of_requests[:1])

    @property
    def is_own(self) -> bool:
        """Whether the endpoint is that of this signal only, so that the SDK appends no path."""
        return self.variable("ENDPOINT") != "OTEL_EXPORTER_OTLP_ENDPOINT"

    @property
    def extra(self) -> str:
        """The parts of the endpoint that most receivers do not have. They may be secrets, so only their names."""
        parts = urlsplit(self.endpoint)
        found = {
            "path": parts.path.removesuffix(f"/v1/{self.signal}").strip("/"),
            "query": parts.query,
            "fragment": parts.fragment,
        }
        return _joined(name for name, text in found.items() if text)

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


def _has_valid_port(url: str) -> bool:
    try:
        return (urlsplit(url).port, True)[1]
    except ValueError:
        return False


def quoted(text: str) -> str:
    """Return a text of the receiver for a message: one line, without secrets, in quotes; empty if there is none."""
    shown = one_line(without_secrets(text.strip()), _QUOTED)
    return f': "{shown}"' if shown else ""


def asked_to_wait(seconds: float | None) -> str:
    """Return the words about the seconds that a receiver asked to wait; empty if it did not, or not for a time."""
    return f" and asked to wait {exact_duration(seconds)}" if seconds and seconds != math.inf else ""


def sentence(problem: Problem, targets: Sequence[ExportTarget], *, count: int = 0, lost: int | None = None) -> str:
    """Return the message about a problem that all of `targets` have. The arguments are those of `what_and_why`."""
    what, why = what_and_why(problem, targets, count=count, lost=lost)
    return f"{what} {'rejected by' if problem.kind is Kind.PARTIAL else 'not sent:'} {why}"


def what_and_why(
    problem: Problem, targets: Sequence[ExportTarget], *, count: int = 0, lost: int | None = None
) -> tuple[str, str]:
    """Return the two parts of the message about a problem: what was rejected or not sent, and the rest.

    Args:
        problem: What happened.
        targets: The exporters; not empty.
        count: The items of the export, if they are known.
        lost: The items that were lost, if others have arrived; 0 if their number is not known.
    """
    item = _ITEMS[targets[0].signal]
    number = 0  # several, or not known
    if problem.kind is Kind.PARTIAL:
        number = problem.rejected
        what = f"{number:,} of {counted(count, item)}" if count else counted(number, item)
    elif lost is None:
        what = _joined(target.signal for target in targets).capitalize()
    else:
        number = lost
        what = counted(lost, item) if lost else f"Some {item}s"
    why = problem.kind.value.format_map(_Fields(problem, targets, count))
    return f"{what} {'was' if number == 1 else 'were'}", why


def _joined(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _with_port(target: ExportTarget) -> str:
    address = address_of(target.endpoint)
    return address if _PORT.search(address) else f"{address}:{PORTS[target.protocol]}"


def _grpc_or_http(target: ExportTarget) -> str:
    """Return the remedy for a port that speaks HTTP/1.1: another protocol helps only at a port of OTLP."""
    http, port = f"{target.variable('PROTOCOL')}=http/protobuf", target.origin.rpartition(":")[2]
    if port in map(str, PORTS.values()):
        return f"Set {http}, or use the gRPC port (usually 4317)"
    other = "" if port == str(_JAEGER_UI) else f", or set {http} if an OTLP receiver has this port"
    return f"Use the gRPC port (usually 4317) in {target.variable('ENDPOINT')}{other}"


def _corrected(target: ExportTarget, origin: str, protocol: str = "http/protobuf") -> str:
    """Return the value of the variable of an endpoint for a receiver without a path of its own."""
    return f"{origin}/v1/{target.signal}" if target.is_own and protocol != "grpc" else origin


class _Fields(dict[str, str]):
    """The values of the fields of the sentences, each computed when a sentence needs it."""

    def __init__(self, problem: Problem, targets: Sequence[ExportTarget], count: int) -> None:
        self._problem, self._targets, self._count = problem, targets, count

    def __missing__(self, name: str) -> str:
        problem, first = self._problem, self._targets[0]
        signal, variable = first.signal, first.variable
        secure = first.secure
        values: dict[str, Callable[[], str]] = {
            "origin": lambda: first.origin,
            "address": lambda: address_of(first.endpoint),
            "with_port": lambda: _with_port(first),
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
            "seconds": lambda: f"{first.timeout:g}",
            "timeout_variable": lambda: variable("TIMEOUT"),
            "jaeger": lambda: "" if signal == "traces" else "; Jaeger does not",
            "jaeger_ui": lambda: (
                " (Jaeger's page has this port; its receiver has 4317 and 4318)"
                if first.origin.endswith(f":{_JAEGER_UI}")
                else ""
            ),
            "grpc_or_http": lambda: _grpc_or_http(first),
            "or_tls": lambda: "" if secure else ", or write https:// if it expects TLS",
            "if_tls": lambda: "" if secure else f". Write https:// in {variable('ENDPOINT')} if it expects TLS",
            "size": lambda: f"{problem.size:,}",
            "smaller": lambda: (
                f"Set {_BATCH_SIZES[signal]} to less than {self._count}"
                if signal in _BATCH_SIZES and self._count > 1
                else f"Raise the limit of the receiver (OpenTelemetry Collector: {_LIMITS[first.protocol == 'grpc']})"
            ),
            "extra": lambda: first.extra,
            "correct": lambda: _joined(_corrected(target, target.origin) for target in self._targets),
            "other_protocol": lambda: other_protocol(first.protocol),
            "other_endpoint": lambda: "".join(
                f", and {name}={_corrected(target, problem.answer, other_protocol(target.protocol))}"
                for target in self._targets
                if (name := target.variable("ENDPOINT")) in os.environ
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
