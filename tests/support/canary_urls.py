"""Generates URLs that contain secrets at any level of nesting and encoding, with their redacted form.

The redacted form is not computed from the URL. Both are built side by side, with the same encoding around the secret
and around ``REDACTED``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, quote_plus

CANARY = "c4n4ry"
REDACTED = "REDACTED"
OUTERMOST = 3  # as many levels of URLs may be in a URL

_SECRET_NAMES = (
    *("token", "access_token", "Api-Key", "APIKEY", "sig", "X-Amz-Signature", "pwd", "sessionid", "client_secret"),
    *("%74oken", "t%6Fken", "key", "token[]", "subscription-key", "x-api-key", "private_key"),
    *("token.0", "a.password.value"),
)
_PLAIN_PAIRS = ("a=1", "q=a%20b+c", "x-token=2", "code=7", "e=%C3%A9", "b", "c=", "list[]=1", "r=%2Fx%2Fy", "d=%2526")
_SEGMENTS = ("v1", "a%20b", "@me", "a:b@c", "x;v=1", "group%2Fname", "%C3%A9", "tok=1", "~u", "(x)", "100%25")
_INSIDE = ("", "", "+", "/", ":", ";", "?", "!", "'", "*", "%26", "%23", "%20", "%2F", "%40", "@", "=", "%3D")
_ENCODERS: tuple[Callable[[str], str], ...] = (
    lambda text: quote(text, safe=""),
    lambda text: quote(text, safe="!'()*~"),  # encodeURIComponent of ECMAScript
    lambda text: quote(text, safe="!'()*~").replace("%3A", "%3a").replace("%2F", "%2f"),
    lambda text: quote(quote(text, safe=""), safe=""),
    quote_plus,
    quote,  # leaves the slashes
)


class CanaryUrl(NamedTuple):
    """A URL, and the same without its secrets."""

    url: str
    redacted: str

    def __add__(self, other: object) -> CanaryUrl:
        url, redacted = other if isinstance(other, CanaryUrl) else (other, other)
        return CanaryUrl(f"{self.url}{url}", f"{self.redacted}{redacted}")

    def encoded(self, encode: Callable[[str], str]) -> CanaryUrl:
        return CanaryUrl(encode(self.url), encode(self.redacted))


class CanaryUrls:
    """Generates URLs to one host.

    Args:
        seed: The same seed gives the same URLs.
        host: ``host:port`` of the outermost URLs.
    """

    def __init__(self, seed: int, host: str) -> None:
        self._random = random.Random(seed)
        self._host = host

    def one(self) -> CanaryUrl:
        """Return the next URL."""
        return self._url(self._host, OUTERMOST)

    def secret(self, inside: tuple[str, ...] = _INSIDE) -> CanaryUrl:
        return CanaryUrl(f"{CANARY}{self._random.choice(inside)}{CANARY}", REDACTED)

    def _url(self, host: str, levels: int) -> CanaryUrl:
        url = CanaryUrl("http://", "http://") + self._userinfo() + host
        for _ in range(self._random.randrange(3)):
            url += "/" + self._random.choice(_SEGMENTS)
        if not self._random.randrange(6):
            url = url + f"/s;{self._random.choice(('jsessionid', 'token'))}=" + self.secret(("", "-", "%2F", "%3B"))
        if levels and not self._random.randrange(3):
            inner = self._url("inner.example:8080", levels - 1)
            encode = self._encoder(levels)
            url = url + "/" + inner.encoded(encode)
            if encode is not _ENCODERS[-1]:  # it leaves slashes, so the rest of the path may belong to the inner URL
                url += self._random.choice(("", "/", "/tail/x"))
        else:
            url += self._random.choice(("", "/"))
        pairs = [self._pair(levels) for _ in range(self._random.randrange(4))]
        for number, pair in enumerate(pairs):
            url = url + ("&" if number else "?") + pair
        return url + self._fragment() if levels == OUTERMOST else url

    def _encoder(self, levels: int) -> Callable[[str], str]:
        # If a URL with slashes is encoded twice, it cannot be decided where it ends
        return self._random.choice(_ENCODERS if levels == OUTERMOST else _ENCODERS[:-1])

    def _userinfo(self) -> CanaryUrl:
        kind = self._random.randrange(6)
        if kind > 1:
            return CanaryUrl("", "")
        inside = ("", "+", ";", "!", "*", "%40", "%2F", "@")  # no colon in a user name: RFC 7617, section 2
        if kind:
            return self.secret(inside) + "@"
        return self.secret(inside) + ":" + self.secret((*inside, ":", "%3A")) + "@"

    def _pair(self, levels: int) -> CanaryUrl:
        kind = self._random.randrange(5)
        if kind == 4:
            return CanaryUrl("x=", "x=") + self._notation(levels).encoded(self._encoder(levels))
        if kind == 0 or (kind == 1 and not levels):
            return CanaryUrl("", "") + self._random.choice(_PLAIN_PAIRS)
        if kind == 1:
            return CanaryUrl("next=", "next=") + self._url("inner.example", levels - 1).encoded(self._encoder(levels))
        return CanaryUrl("", "") + f"{self._random.choice(_SECRET_NAMES)}=" + self.secret()

    def _notation(self, levels: int) -> CanaryUrl:
        """A secret in JSON, or behind a scheme (RFC 6750, section 2.1)."""
        kind = self._random.randrange(3)
        if kind == 0 and levels == OUTERMOST:  # a slash of an outer path may belong to the credential
            return CanaryUrl("Bearer ", "Bearer ") + self.secret(("", "-", ".", "_", "~", "+", "/"))
        if kind == 1:
            value = f'["a","{self.secret().url}",{{"b":"]"}}]'
            return CanaryUrl(f'{{"token":{value},"a":1}}', f'{{"token":{REDACTED},"a":1}}')
        return CanaryUrl('{"a":1,"token": "', '{"a":1,"token": "') + self.secret() + '"}'

    def _fragment(self) -> CanaryUrl:
        kind = self._random.randrange(8)
        if kind == 0:
            return CanaryUrl("#access_token=", "#access_token=") + self.secret() + "&state=x"
        if kind == 1:
            return CanaryUrl("#/route?token=", "#/route?token=") + self.secret()
        return CanaryUrl("", "") + ("#part" if kind == 2 else "")
