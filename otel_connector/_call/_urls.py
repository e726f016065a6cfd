"""How a text becomes the URL that is requested: without losing a character, and without blocking the event loop.

yarl removes characters that UTF-8 cannot encode, tabs and line ends; decodes the path that a relative URL is joined to;
and applies IDNA to hosts of any length, which takes half a second for 8 kB. This file prevents that. It does not know
sessions, requests or errors of a call.

Used by ``_call``, ``_fetch`` and ``cli``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote_to_bytes, urlunsplit

from yarl import URL

if TYPE_CHECKING:
    from typing_extensions import Self

# Characters; with the length bytes of its labels, a name then has at most 255 bytes (RFC 1035, section 2.3.4)
_MAX_HOST = 253

_C0_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))  # yarl removes them at the beginning (WHATWG URL, section 4.4)
_TABS_AND_LINE_ENDS = "\t\n\r"  # yarl removes them everywhere
_REMOVED = re.compile(f"[{_TABS_AND_LINE_ENDS}\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # the surrogates that stand for bytes (PEP 383)

# RFC 3986, appendix B
_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_BRACKETS = re.compile(r"[^/?#]*//(?:[^/?#]*@)?\[")  # yarl takes http://[a:80]/ for http://a:80/
_NO_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_ALLOWED = "%!$&'()*+,-./:;=?@[]_~"  # with letters and digits: all that a URI may contain (RFC 3986, section 2)
_CHANGED = re.compile(r"[% \[\]]")  # what yarl encodes in another way

# An empty port, and an @ behind it: yarl drops the colon, and nothing would show that a password follows
_EMPTY_PORT = re.compile(r"[^/?#]*//[^/?#]*:[?#].*@", re.DOTALL)
_QUOTED_VALUE = re.compile(r"(?<=got ).*of type ", re.DOTALL)

# The forbidden domain code points (WHATWG URL, section 3.5)
_NOT_IN_HOSTS = re.compile(r"[\x00-\x20\x7f\"#%/:<>?@\[\\\]^`{|}]")


class ExactURL(str):
    """The text of a URL whose percent-escapes are sent as they are.

    In any other text, yarl decodes the escapes of characters that need none (``%7E``). The two forms are equivalent
    (RFC 3986, section 6.2.2.2), but a signature of the URL may hold for one of them only.
    """

    __slots__ = ()


class NotOneURL(ExactURL):
    """A text that is not requested, because it is more than one URL. Parsing it fails.

    Args:
        text: The text.
        why: Why it is not requested; the message of the error.
    """

    __slots__ = ("why",)

    why: str

    def __new__(cls, text: str, why: str) -> Self:
        made = super().__new__(cls, text)
        made.why = why
        return made


def listed_url(url: Any) -> Any:
    """Return a URL of a list: its text as an `ExactURL` if that makes a difference, another type unchanged."""
    return ExactURL(url) if isinstance(url, str) and not isinstance(url, ExactURL) and _CHANGED.search(url) else url


def parsed_url(text: str) -> URL:
    """Return the URL of a text. Bytes that are not UTF-8, given as surrogates (PEP 383), are percent-encoded.

    Raises:
        ValueError: The text is not a URL. The message starts with a lower-case letter and may quote the URL.
    """
    if isinstance(text, NotOneURL):
        raise ValueError(text.why)  # noqa: TRY004 - as for every text that is not a URL
    given = _lossless(text)
    if "@" in given and _EMPTY_PORT.match(given):
        raise ValueError("no port follows its colon; if this is a password, percent-encode it")
    _check_length_of_host(given)
    try:
        url = URL(given)
    except IndexError:
        raise ValueError("Invalid IPv6 URL") from None
    if "[" not in url.raw_authority and _BRACKETS.match(given):
        raise ValueError("its host is in brackets, but not an IPv6 address")
    return _exact(url, given) if isinstance(text, ExactURL) else url


def check_url(url: URL) -> None:
    """Check the parts of a URL that aiohttp cannot send, or that it would send in another form.

    Raises:
        ValueError: It cannot be requested. The message does not quote the URL.
    """
    try:
        host, _ = url.raw_host, url.port
    except ValueError as error:  # built with encoded=True
        raise ValueError(f"url is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not host:
        raise ValueError("url must be an absolute http or https URL with a host")
    if len(host.removesuffix(".")) > _MAX_HOST:
        raise ValueError(f"url has a host of more than {_MAX_HOST} characters")
    if ":" not in host and _NOT_IN_HOSTS.search(host):
        raise ValueError("url has a character in its host that a host name cannot have")
    if host.startswith(".") or ".." in host:
        raise ValueError("url has a host with an empty label")
    if not url.raw_path_qs.isprintable() or " " in url.raw_path_qs:  # built with encoded=True
        raise ValueError("url has a character that must be percent-encoded")
    if "@" in url.raw_authority:
        _check_userinfo(url)


def with_params(url: URL, params: Any) -> URL:
    """Return a URL whose query is extended by `params`.

    Raises:
        TypeError: `params` has a type that aiohttp does not accept.
        ValueError: `params` has a value that a URL cannot hold.
    """
    try:
        _check_texts(params)
        return url.extend_query(params)
    except (TypeError, ValueError) as error:
        # yarl quotes the value, which may be a secret
        raise type(error)(f"params: {_QUOTED_VALUE.sub('', str(error))}") from None


def redirect_target(current: URL, location: str) -> URL | None:
    """Return the URL that a ``Location`` refers to (RFC 3986, section 5.2), with its percent-escapes as they are.

    Args:
        current: The URL that was redirected.
        location: The value of the header.

    Returns:
        The URL without fragment, user and password; None if it has another scheme than http and https.

    Raises:
        ValueError: It is not a URL, or cannot be requested. The message may quote it.
    """
    reference = _lossless(location)
    matched = _PARTS.fullmatch(reference)
    scheme, authority, path, query, _ = matched.groups() if matched else (None,) * 5
    if scheme is not None and scheme.lower() not in {"http", "https"}:
        return None
    if authority is not None or (scheme is not None and scheme.lower() != current.scheme):
        url = parsed_url(ExactURL(reference if scheme else f"{current.scheme}:{reference}"))
        check_url(url)
        return url.with_fragment(None).with_user(None)
    path, query = _encoded(path or ""), None if query is None else _encoded(query)
    if not path:
        path, query = current.raw_path, current.raw_query_string if query is None else query
    elif not path.startswith("/"):
        path = f"{current.raw_path.rpartition('/')[0]}/{path}"
    return _built(current.with_user(None), path, query or "", "")


def _lossless(text: str) -> str:
    """Return the text with the characters that yarl would remove, except at both ends, in percent-encoding."""
    text = str.lstrip(text, _C0_CONTROLS_AND_SPACE)  # of str, because a subclass may override it
    if text.isprintable():
        return text
    return _REMOVED.sub(_escape, text.rstrip(_TABS_AND_LINE_ENDS))


def _check_texts(params: object) -> None:
    """Check the texts in `params`, from which yarl removes lone surrogates."""
    if isinstance(params, str):
        if not params.isascii() and _SURROGATE.search(params):
            raise ValueError("a text has a lone surrogate, which cannot be encoded")
    elif isinstance(params, Mapping):
        for pair in cast("Mapping[object, object]", params).items():
            _check_texts(pair)
    elif isinstance(params, (list, tuple)):
        for value in cast("Iterable[object]", params):
            _check_texts(value)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if not match[0].isascii() and code not in _BYTES:
        raise ValueError("it has a lone surrogate, which cannot be encoded")
    return f"%{code & 0xFF:02X}"


def _check_length_of_host(text: str) -> None:
    """Check the length before yarl applies IDNA; the result of IDNA is at least as long as that of its first step."""
    matched = None if text.isascii() else _PARTS.fullmatch(text)
    if matched and matched[2]:
        host = matched[2].rpartition("@")[2]
        if len(unicodedata.normalize("NFKC", host)) > _MAX_HOST + len(":65535"):
            raise ValueError(f"its host has more than {_MAX_HOST} characters")


def _check_userinfo(url: URL) -> None:
    try:
        user = unquote_to_bytes(url.raw_user or "").decode()
        unquote_to_bytes(url.raw_password or "").decode()
    except UnicodeDecodeError:
        raise ValueError("url has a user or password that is not in UTF-8") from None
    if ":" in user:
        raise ValueError("url has a user name with a colon, which cannot be sent (RFC 7617, section 2)")


def _exact(url: URL, text: str) -> URL:
    """Return a URL with path, query and fragment as in its text."""
    matched = _PARTS.fullmatch(text)
    if not url.absolute or matched is None:
        return url
    return _built(url, *(_encoded(part or "") for part in matched.groups()[2:]))


def _encoded(part: str) -> str:
    """Percent-encode the characters that a URL may not contain."""
    return quote(_NO_ESCAPE.sub("%25", part), safe=_ALLOWED)


def _built(url: URL, path: str, query: str, fragment: str) -> URL:
    """Return a URL with the scheme and authority of another one; all parts are encoded."""
    return URL.build(
        scheme=url.scheme,
        authority=url.raw_authority,
        path=_without_dot_segments(path) if "." in path else path,
        query_string=query,
        fragment=fragment,
        encoded=True,
    )


def _without_dot_segments(path: str) -> str:
    """Return an absolute path without ``.`` and ``..`` (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join([*kept, ""] if segments[-1] in {".", ".."} else kept)


def host_of(url: URL) -> str:
    """Return ``host:port``, the key of a server, without the trailing dot that a fully qualified name may have."""
    host = url.raw_host or ""
    return f"{host.removesuffix('.')}:{url.port}"


def text_of(value: object) -> str:
    """Return the text of a URL or a project; an empty text for any other type."""
    if isinstance(value, str):
        return str.__str__(value)  # a subclass may override it
    if not isinstance(value, URL):
        return ""
    # Not `str`, which raises an error if a URL that was built with encoded=True has no valid port
    return urlunsplit((value.scheme, value.raw_authority, value.raw_path, value.raw_query_string, value.raw_fragment))
