"""Removes credentials from URLs and texts before they are written or exported.

One `Redactor` is used for the fields url and redirect_url, error messages, span attributes and events. It replaces only
secrets: the rest stays as it was sent, byte for byte, also around a secret in a URL within a URL. This file does not
know HTTP libraries or telemetry.

How a secret is found at every level of encoding:

1. The names, values and userinfo of one level are found by patterns that take linear time.
2. A part with percent-escapes is decoded once, with the offset of each character, and searched in the same way.
3. What is found there is replaced at its offsets, so that the escapes around it do not change.

The levels are limited to `_LEVELS`; what is encoded more often is replaced as a whole. Texts are cut first.

Used by ``__init__``, ``_call``, ``_connector``, ``_distinct_urls``, ``_fetch``, ``_replay``,
``_telemetry``, ``cli`` and ``csv_exporter``.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from otel_connector import _secret_notations as notations
from otel_connector import _secret_patterns as patterns
from otel_connector._secret_notations import Found

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REDACTED = "REDACTED"
"""The replacement of a secret (OpenTelemetry semantic conventions 1.44, url.full)."""

DEFAULT_REDACTED_PARAMS: frozenset[str] = patterns.NAMES
"""Query parameters whose values are redacted by default; see `redact_params`. Compared without case, ``-`` and ``_``.

``code`` is not among them: it is a secret in an OAuth redirect, and something else in nearly every other URL.
"""

_LEVELS = 8  # levels of percent-encoding that are decoded
_URL_LIMIT = 16_384  # characters that are read of a URL: twice as many as a row shows
_TEXT_LIMIT = 8_192  # characters that are read of another text: four times as many as a row shows
_LONG = 8  # characters of a credential that is searched within words, too: a shorter one may be a part of a word
_INDENT = 64  # characters before a name at most, if it is the first one in its line
_KNOWN_NAMES, _NAME_LIMIT = 1_024, 64  # names of parameters that are remembered, and their characters

_UNSURE = " "  # the name of what may be userinfo or something else, so that it is decoded as well


class Redactor:
    """Redacts userinfo and the values of the given parameters.

    Args:
        params: Names of the query (or fragment) parameters whose values are secret, compared decoded, and without case,
            ``-`` and ``_``.
    """

    def __init__(self, params: Iterable[str] = DEFAULT_REDACTED_PARAMS) -> None:
        self._secret = {_comparable(name): name for name in sorted(params)}
        self._known: dict[str, bool] = {}  # names that were checked: a URL with four parameters takes 10 us, not 25

    def url(self, url: str) -> str:
        """Return `url` without its secrets; beyond 16,384 characters it is cut, and marked as `one_line` does.

        Of a URL that cannot be parsed, the scheme stays, and host and path if they cannot be a password. Any other text
        that may contain a secret, because it contains ``@`` or ``=``, becomes ``REDACTED`` as a whole.
        """
        if len(url) <= _URL_LIMIT and (plain := patterns.PLAIN.fullmatch(url)):
            if plain[1] is None or not self._has_secret_name(plain[1]):
                return url
            return _replaced(url, self._values(url, plain.start(1), patterns.IN_QUERY))
        secrets, cut = self.secrets(url), url[:_URL_LIMIT]
        return _as_far_as_safe(cut) if secrets is None else _marked(_replaced(cut, secrets), url, _URL_LIMIT)

    def text(self, text: str, sent: Iterable[str] = ()) -> str:
        """Return `text`, such as an error message, without the secrets of its URLs and pairs of names and values.

        Beyond 8,192 characters it is cut, and marked as `one_line` does.

        Args:
            text: The text.
            sent: Credentials that are redacted wherever they appear, in every form.
        """
        ended = _ended(text, _TEXT_LIMIT)
        found = self._found(ended, patterns.IN_TEXT, 0) + _occurrences(text, sent)
        if escaped := notations.without_entities(ended):
            plain, offsets = escaped
            inner = self._found(plain, patterns.IN_TEXT, 0)
            found += [(offsets[start], offsets[end], name) for start, end, name in inner]
        cut = [(start, min(end, _TEXT_LIMIT), name) for start, end, name in found if start < _TEXT_LIMIT]
        return _marked(_replaced(text[:_TEXT_LIMIT], cut), text, _TEXT_LIMIT)

    def listed_name(self, name: str) -> str:
        """Return the parameter that makes a found name secret, as it was given; empty for what is not a parameter."""
        plain = _comparable(name.strip())
        parts = (part for pattern in patterns.PARTS_OF_NAME for each in pattern.split(plain) for part in _ends(each))
        return self._secret.get(plain) or next(filter(None, map(self._secret.get, parts)), "")

    def secrets(self, url: str) -> list[Found] | None:
        """Return where the secrets of a URL are; None if it cannot be parsed, so that it may be secret as a whole."""
        whole, limit = len(url), min(len(url), _URL_LIMIT)
        url = _ended(url, limit)
        if not any(mark in url for mark in ("@", "=", "://", "%", "\ufe6b", "\uff20")):
            return []
        match = patterns.URL.fullmatch(url)
        if match is None or patterns.IGNORED_BY_PARSERS.search(url) or _changes_by_folding(url, match.start("path")):
            return None
        head, authority, user, path = match["scheme"] or "", match["authority"], match["user"], match["path"]
        if head:  # the end of the authority may be ambiguous
            no_port = authority.endswith(":") and not path and "@" in match["rest"]  # rather a password
            unclear = (path and path[0] != "/") or (not authority and "@" in path) or no_port
        else:
            unclear = "@" in _folded(path) or "=" in path
        if unclear:
            return None
        secrets: list[Found] = []
        if user:
            has_host = authority[len(user) + 1 :].partition(":")[0]
            if not has_host and ("@" in url[match.start("path") :] or "%40" in url):
                return None  # the password contains an @ before a / or ? or #, and what follows belongs to it
            secrets += _user_and_password(url, len(head), len(head) + len(user))
        secrets += _moved(self._in_path(path, 0), match.start("path"))
        if rest := match["rest"]:
            secrets += _moved(self._found(rest, patterns.IN_QUERY, 0), match.start("rest"))
        return secrets if limit == whole else [(start, min(end, limit), name) for start, end, name in secrets]

    def _in_path(self, path: str, level: int) -> list[Found]:
        """Return the secrets of a path, and of the query that follows it in a path that was decoded."""
        query = patterns.QUERY_START.search(path)
        end = len(path) if query is None else query.start()
        # In a path that was decoded, the query may be a part of a password with unencoded delimiters
        found = _userinfo(_folded(path if level else path[:end]), patterns.IN_PATH)
        found += self._in_segments(path, end) + notations.in_url(path, self._is_secret)
        if "%" in path:
            found += self._deeper(path[:end], found, patterns.IN_PATH, level, in_path=True)
        if query is not None:
            found += _moved(self._found(path[end:], patterns.IN_DECODED, level), end)
        return found

    def _in_segments(self, path: str, end: int) -> list[Found]:
        """Return the values of secret parameters of path segments, such as ``;jsessionid=``."""
        found: list[Found] = []
        segment = encoded_url = 0
        inner_url = path.find("//", 0, end)
        for match in patterns.MATRIX_NAME.finditer(path, 0, end):
            start, begin = match.span()
            if segment <= (slash := path.rfind("/", segment, start)):
                segment, stop = slash + 1, path.find("/", start, end)
                encoded = patterns.ENCODED_URL.search(path, segment, end if stop < 0 else stop)
                encoded_url = end if encoded is None else encoded.start()
            if encoded_url < start or not self._is_secret(match[1]):
                continue  # a part of a URL that has to be decoded, or not secret
            stop = end if (value := patterns.MATRIX_VALUE.match(path, begin, end)) is None else value.end()
            if 0 <= inner_url < segment and (mark := patterns.ENCODED_QUESTION_MARK.search(path, begin, stop)):
                stop = mark.start()
            if begin < stop:
                found.append((begin, stop, unquote_plus(match[1])))
        return found

    def _found(self, text: str, kind: patterns.Patterns, level: int) -> list[Found]:
        """Return the secrets of a text that was decoded `level` times."""
        found: list[Found] = []
        folded = _folded(text)
        if "@" in folded:
            found += _userinfo(folded, kind)
            found += _users(folded, kind)
        if "=" in text:
            found += self._values(text, 0, kind)
        in_text = notations.in_text if kind is patterns.IN_TEXT else notations.in_url
        found += in_text(text, self._is_secret)
        if "%" in text:
            found += self._deeper(text, found, kind, level, in_path=False)
        return found

    def _values(self, text: str, start: int, kind: patterns.Patterns) -> list[Found]:
        found: list[Found] = []
        kept, fragment = start, text.find("#") if kind is patterns.IN_QUERY else -1
        seen = slashes = query = 0  # the offsets of the last // and of the last ? or # before a name
        for match in kind.name.finditer(text, start):
            begin = match.end()
            if begin <= kept or not self._is_secret(match[1]):
                continue  # part of a redacted value, or not secret; another pair may start in its value
            name, pattern = match.start(), patterns.FRAGMENT_VALUE if 0 <= fragment < begin else kind.value
            if after_semicolon := text[name - 1 : name] == ";":
                slashes = max(slashes, text.rfind("//", max(seen - 1, 0), name))
                query = max(query, text.rfind("?", seen, name), text.rfind("#", seen, name))
                seen, pattern = name, kind.value_after_semicolon
            value = pattern.match(text, begin)
            if value and value[0]:
                kept = value.end()
                in_path = after_semicolon and slashes > query  # of a URL in this text; the value ends with its segment
                if in_path and (matrix := patterns.MATRIX_VALUE.match(text, begin, kept)):
                    kept = matrix.end()
                found.append((value.start(), kept, unquote_plus(match[1])))
        return found

    def _deeper(
        self, text: str, shallow: list[Found], kind: patterns.Patterns, level: int, *, in_path: bool
    ) -> list[Found]:
        """Return the secrets of the parts that have to be decoded, `shallow` are those that need no decoding."""
        found: list[Found] = []
        masks = _without_overlaps(shallow)
        for part in kind.part.finditer(text):
            start, end = part.span()
            if not patterns.STRUCTURE.search(text, start, end):
                continue
            if level == _LEVELS:
                found += [(*deep.span(), "") for deep in patterns.TOO_DEEP.finditer(text, start, end)]
                continue
            decoded, offsets = _decoded(text, start, end, masks)
            inner = (
                self._in_path(decoded, level + 1) if in_path else self._found(decoded, patterns.IN_DECODED, level + 1)
            )
            found += [(offsets[begin], offsets[stop], name) for begin, stop, name in inner]
        return found

    def _has_secret_name(self, query: str) -> bool:
        return any(map(self._is_secret, patterns.IN_QUERY.name.findall(query)))

    def _is_secret(self, name: str) -> bool:
        """Return whether a parameter is secret; its name may be encoded, or that of a list (``token[]``)."""
        known = self._known.get(name)
        if known is None:
            known = bool(self.listed_name(unquote_plus(name)))
            if len(self._known) >= _KNOWN_NAMES:
                self._known.clear()
            if len(name) <= _NAME_LIMIT:
                self._known[name] = known
        return known


def _comparable(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _ends(name: str) -> Iterator[str]:
    """Yield the last part of a dotted name, and the part before the number of an element, or before ``.value``."""
    parts = name.split(".")
    yield parts[-1]
    while len(parts) > 1 and (parts[-1].isdecimal() or parts[-1] == "value"):
        parts.pop()
    yield parts[-1]


def _ended(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters. What is cut may have been a password, so an ``@`` follows it."""
    text = text if len(text) <= limit else f"{text[:limit]}@"
    return text if text.isascii() else text.replace(patterns.BARRIER, "\ud801")


def _marked(shown: str, text: str, limit: int) -> str:
    return shown if len(text) <= limit else f"{shown}...[+{len(text) - limit}]"


def _as_far_as_safe(url: str) -> str:
    """Return the beginning of a URL that cannot be parsed, without what may be userinfo or a query."""
    if (match := patterns.UNPARSABLE.match(folded := _folded(url))) is None:
        return REDACTED
    scheme, user, rest = match[1], match[2], url[match.end() :]
    if "@" in folded[match.end() :] or "%" in rest:  # the userinfo may end there
        return f"{scheme}{REDACTED}"
    shown = f"{scheme}{f'{REDACTED}@' if user else ''}{url[match.start(3) : match.end()]}"
    return f"{shown}{rest[:1] if rest[:1] in '?#' else ''}{REDACTED if rest else ''}"


def _occurrences(text: str, secrets: Iterable[str]) -> list[Found]:
    found: list[Found] = []
    for secret in secrets:
        start = text.find(secret, 0, _TEXT_LIMIT + len(secret))
        while start >= 0:
            end = start + len(secret)
            escaped = patterns.ESCAPE_END.search(text, max(start - _INDENT, 0), start)
            starts_in_word = not escaped and text[max(start - 1, 0) : start].isalnum()
            if len(secret) >= _LONG or not (starts_in_word or text[end : end + 1].isalnum()):
                found.append((start, end, ""))
            start = text.find(secret, end, _TEXT_LIMIT + len(secret))
    return found


def _folded(text: str) -> str:
    """Return a text of the same length, with an ``@`` for each character that is folded to it in a host (NFKC)."""
    return text if text.isascii() else text.replace("\ufe6b", "@").replace("\uff20", "@")


def _changes_by_folding(url: str, end: int) -> bool:
    """Return whether compatibility folding, which is applied to hosts, adds an ``@`` or another delimiter to a URL."""
    if (url := url[:end]).isascii():
        return False
    folded = unicodedata.normalize("NFKC", url)
    return any(folded.count(mark) != url.count(mark) for mark in "@:/?#=")


def _replaced(text: str, secrets: list[Found]) -> str:
    """Return a text with its secrets replaced; those that overlap are replaced by one word."""
    if not secrets:
        return text
    pieces: list[str] = []
    kept = 0
    for start, end, _ in sorted(secrets):
        if start > kept or not pieces:
            pieces += text[kept:start], REDACTED
            kept = end
        else:
            kept = max(kept, end)
    return "".join(pieces) + text[kept:]


def _moved(secrets: list[Found], offset: int) -> list[Found]:
    return [(start + offset, end + offset, name) for start, end, name in secrets]


def _user_and_password(text: str, start: int, end: int, name: str = "") -> list[Found]:
    colon = text.find(":", start, end)
    if colon < 0:
        return [(start, end, name)] if start < end else []
    return [(start, colon, name), (colon + 1, end, name)]


def _userinfo(text: str, kind: patterns.Patterns) -> list[Found]:
    """Return the userinfo between ``//`` and the last ``@`` of each authority.

    If there is no host behind the ``@``, or no number behind the colon, the password has unencoded delimiters. It then
    extends to the last ``@`` before the end of the URL.
    """
    found: list[Found] = []
    done = end = last = 0
    if "@" not in text:
        return found
    query = text.find("?")
    for match in kind.authority.finditer(text):
        start, stop = match.span()
        if start < done:
            continue
        if 0 <= query < start and (separator := text.find("&", start, stop)) >= 0:
            stop = separator
        at = text.rfind("@", start, stop)
        colon = text.find(":", start, stop)
        port = patterns.PORT.fullmatch(text, colon, stop)
        if colon == stop - 1 and text[stop : stop + 1] in {"#", "?"}:
            port = None  # empty: rather a password that begins with this character
        no_port = at < 0 <= colon and text[start] != "[" and not port
        if no_port or at == stop - 1:
            if stop > end:  # once for all authorities in it
                after = kind.end.search(text, stop)
                end = len(text) if after is None else after.start()
                last = text.rfind("@", stop, end)
            at = max(at, last if last >= stop else -1)
        if at >= 0:
            query_mark = patterns.ENCODED_QUESTION_MARK.search(text, start, at)
            unsure = query_mark is not None and "=" in text[query_mark.end() : at]
            found += _user_and_password(text, start, at, _UNSURE if unsure else "")
            done = at
    return found


def _users(text: str, kind: patterns.Patterns) -> list[Found]:
    """Return each ``user:password`` before an ``@`` that follows no ``//``, as in the settings of proxies."""
    found: list[Found] = []
    for match in kind.user.finditer(text):
        start, at = match.start(), match.end() - 1
        colon = text.find(":", start, at)
        if colon >= 0:
            start = max(start, text.rfind("&", start, max(start, text.rfind("=", start, at))) + 1)  # of this parameter
            if patterns.ENCODED_JSON.match(text, start, at):
                continue
            if json := patterns.JSON.match(text, start, at):
                start = json.end()
            colon = text.find(":", start, at)
        if colon >= 0:
            start = max(start, *(text.rfind(mark, start, colon) + 1 for mark in patterns.BEFORE_USER))
            if text[start:colon].lower() not in patterns.NO_USER:
                found += _user_and_password(
                    text, start, at, _UNSURE if patterns.ENCODED_PAIR.search(text, start, at) else ""
                )
    return found


def _without_overlaps(found: list[Found]) -> list[Found]:
    merged: list[Found] = []
    for start, end, name in sorted(each for each in found if each[2] != _UNSURE):
        if merged and start < merged[-1][1]:
            begin, before, other = merged[-1]
            merged[-1] = begin, max(end, before), name or other
        elif start < end:
            merged.append((start, end, name))
    return merged


def _barriers(text: str, start: int, end: int) -> list[int]:
    """Return the offsets where a secret that has to be decoded starts or ends, because they are not encoded."""
    barriers = [offset for own in patterns.SEGMENT.finditer(text, start, end) for offset in own.span()]
    # A URL that is not encoded as a whole: what is encoded in its path ends before its query
    if (slashes := text.find("//", start, end)) >= 0 and (query := text.find("?", slashes, end)) >= 0:
        barriers.append(query)
    return barriers


def _decoded(text: str, start: int, end: int, masks: list[Found]) -> tuple[str, list[int]]:
    """Return a part of a text decoded once, and the offset of each of its characters, and of its end, in `text`.

    A secret of `masks` becomes one letter, because what it contains must not be taken for a delimiter. No other secret
    crosses a barrier.
    """
    pieces: list[str] = []
    offsets: list[int] = []
    events = [(offset, offset, patterns.BARRIER) for offset in _barriers(text, start, end)]
    first = bisect_left(masks, (start, 0, ""))
    for begin, stop, name in masks[first:]:
        if begin >= end:
            break
        events.append((begin, min(stop, end), f"x{patterns.BARRIER}" if name else "x"))
    kept = start
    for begin, stop, instead in [*sorted(events), (end, end, "")]:
        if begin < kept:
            continue  # a barrier in a masked secret
        _decode(text, kept, begin, pieces, offsets)
        pieces.append(instead)
        offsets += (begin, stop)[-len(instead) :] if instead else ()
        kept = stop
    offsets.append(end)
    return "".join(pieces), offsets


def _decode(text: str, start: int, end: int, pieces: list[str], offsets: list[int]) -> None:
    """Append what is between two offsets, decoded."""
    for match in patterns.ESCAPES.finditer(text, start, end):
        begin, stop = match.span()
        plain = bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogateescape")
        pieces += text[start:begin], plain
        offsets += range(start, begin)
        for char in plain:
            offsets.append(begin)
            begin += 3 * len(char.encode("utf-8", "surrogateescape"))
        start = stop
    pieces.append(text[start:end])
    offsets += range(start, end)
