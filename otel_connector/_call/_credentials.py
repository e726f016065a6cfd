"""The credentials that a call sends, in every form in which a server or a library may show them in a text.

Only failed calls need them. This file does not know which names are secret, nor how texts are redacted.

Used by ``_call._call``.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from otel_connector._call._urls import text_of

if TYPE_CHECKING:
    import aiohttp

    from otel_connector._call._exchange import Exchange
    from otel_connector._redact import Redactor

_SHORTEST = 4  # characters; a shorter text is too frequent to be told apart from others

# Characters that are escaped in all ways, in some 30 ms: a server may set cookies of any number and length
_ESCAPED_CHARACTERS = 1_024

_ENCODED_CHARACTERS = 4_096  # the same for base64, which is shorter

_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")  # RFC 3986, section 2.3: the same in every form
_SPECIAL_IN_HTML = re.compile("[&<>]")

# Names of headers and parameters in which services expect a credential, such as X-Vault-Token and DD-API-KEY
_CREDENTIAL_NAME = re.compile(r"(?<![a-z])(?:token|key|secret|password|session)(?![a-z])", re.IGNORECASE)


def credentials_of(
    session: aiohttp.ClientSession | None,
    url: Any,
    options: Mapping[str, Any],
    exchange: Exchange | None,
    redactor: Redactor,
) -> frozenset[str]:
    """Return the credentials of a call in every form: of its URLs, headers, cookies, parameters and proxy.

    Args:
        session: The session of the call; None for no credentials.
        url: Its URL, resolved or else as it was given.
        options: Its options, as they were given.
        exchange: Its last attempt; None if there was none.
        redactor: States which names are secret.
    """
    forms, encoded, escaped = set[str](), 0, 0
    for secret in dict.fromkeys(_secrets(session, url, options, exchange, redactor)):
        if len(secret) >= _SHORTEST:
            forms.add(secret)
            if (encoded := encoded + _SHORTEST + len(secret)) <= _ENCODED_CHARACTERS:
                forms.update(_in_base64(secret))
            if not _UNRESERVED.fullmatch(secret) and (escaped := escaped + len(secret)) <= _ESCAPED_CHARACTERS:
                forms.update(_forms(secret))
    return frozenset(forms)


def _secrets(
    session: aiohttp.ClientSession | None,
    url: Any,
    options: Mapping[str, Any],
    exchange: Exchange | None,
    redactor: Redactor,
) -> Iterator[str]:
    if session is None:
        return
    urls, auths = [url, options.get("proxy")], [options.get("auth"), options.get("proxy_auth"), session.auth]
    named = [*map(options.get, ("headers", "proxy_headers", "params", "data", "json")), session.headers]
    if exchange is not None:
        urls += exchange.final_url, exchange.location
        sent_headers, proxy_auth, proxy_headers = exchange.sent_with
        named += sent_headers, proxy_headers
        auths.append(proxy_auth)
    for text in map(text_of, urls):
        for start, end, _ in redactor.secrets(text) or ():
            yield from (text[start:end], unquote(text[start:end]), unquote_plus(text[start:end]))
    for auth in auths:
        yield from _of_basic(auth if isinstance(auth, str) else ":".join(_login(auth)))
    yield from (value for _, value in _pairs(options.get("cookies")))
    for name, value in chain.from_iterable(map(_pairs, named)):
        if (read := _HEADERS.get(name.lower())) is not None:
            yield from read(value)
        elif redactor.listed_name(name) or _CREDENTIAL_NAME.search(name):
            yield value


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a mapping, or of pairs, that are texts."""
    pairs = cast("Iterable[Any]", value.items() if isinstance(value, Mapping) else value)
    for pair in pairs if isinstance(value, (Mapping, list, tuple)) else ():
        match pair:
            case str() as name, str() as text:
                yield name, text
            case _:
                pass


def _login(auth: Any) -> Iterator[str]:
    """Yield the user and the password of a ``BasicAuth``."""
    return (value for name in ("login", "password") if isinstance(value := getattr(auth, name, None), str))


def _of_authorization(value: str) -> Iterable[str]:
    scheme, _, credentials = value.strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credentials)
        except (binascii.Error, ValueError):
            return [credentials]
        return [credentials, *_of_basic(decoded.decode("utf-8", "replace")), *_of_basic(decoded.decode("latin-1"))]
    return [credentials or scheme]


def _of_basic(user_and_password: str) -> Iterable[str]:
    """Return user, password and their encoded form (RFC 7617, section 2)."""
    user, _, password = user_and_password.partition(":")
    encoded = (user_and_password.encode(charset, "replace") for charset in ("utf-8", "latin-1"))
    return [
        user,
        password,
        password.encode("utf-8", "replace").decode("latin-1"),
        *(base64.b64encode(each).decode() for each in encoded),
    ]


def _of_cookie(value: str) -> Iterable[str]:
    return [pair.partition("=")[2].strip(' "') for pair in value.split(";")]


_HEADERS: dict[str, Callable[[str], Iterable[str]]] = {
    "authorization": _of_authorization,
    "cookie": _of_cookie,
    "proxy-authorization": _of_authorization,
}


def _in_base64(secret: str) -> Iterator[str]:
    """Yield a secret in both alphabets of base64 (RFC 4648), with and without padding, and percent-encoded."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(secret.encode("utf-8", "surrogatepass")).decode()
        for form in (encoded, encoded.rstrip("=")):
            yield form
            yield quote(form, safe="")


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, as it is escaped in JSON, HTML, and the `repr` of str and bytes, and percent-encoded."""
    in_json = json.dumps(secret)[1:-1]
    escaped = secret, in_json, json.dumps(in_json)[1:-1], repr(in_json)[1:-1], repr(secret)[1:-1], html.escape(secret)
    of_others = (  # PHP escapes the slash by default, Go what is special in HTML; others escape no letter
        in_json.replace("/", "\\/"),
        _SPECIAL_IN_HTML.sub(lambda char: f"\\u{ord(char[0]):04x}", in_json),
        json.dumps(secret, ensure_ascii=False)[1:-1],
    )
    yield from (in_html := html.escape(in_json), quote(in_html), quote(in_html, safe=""))
    for text in {*escaped, *of_others, repr(secret.encode("utf-8", "surrogatepass"))[2:-1]}:
        yield text
        data = text.encode("utf-8", "surrogatepass")
        for encoded in (
            quote(data, safe=""),
            quote(data),
            quote_plus(data),
            quote(quote(data)),
            quote(quote(data, "")),
        ):
            yield encoded
            first, *escapes = encoded.split("%")
            yield "%".join([first, *(each[:2].lower() + each[2:] for each in escapes)])
