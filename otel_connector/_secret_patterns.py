"""Patterns of the places in URLs and texts where a secret starts and ends.

Each takes linear time for any text. This file does not know which names are secret.

Used by ``_redact``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# The parts of RFC 3986 that are needed: scheme, userinfo up to the last @ of the authority, host with an optional
# port. Backslashes and white space do not match, because clients disagree about where the authority ends
URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)?"
    r"(?P<authority>(?(scheme)(?:(?P<user>[^/?#\\\s]*)@)?(?:\[[^\[\]@/?#\\\s]*\]|[^\[\]@:/?#\\\s]*)(?::[0-9]*)?))"
    r"(?P<path>[^?#]*)(?P<rest>.*)",
    re.DOTALL,
)
IGNORED_BY_PARSERS = re.compile(r"[\t\r\n]")  # WHATWG URL, section 4.4: removed everywhere

# Where a secret starts or ends in decoded text. Decoding never gives this lone surrogate, and the redactor replaces it
BARRIER = "\ud800"

# Escapes of the characters that begin or end a secret: # % & / : ; = ? @ \ and, in UTF-8, characters like U+FF20 that
# are folded to them. Other escapes hide nothing
STRUCTURE = re.compile(r"%(?:2[356fF]|3[aAbBdDfF]|40|5[cC]|[eE][fF])")
ESCAPES = re.compile(r"(?:%[0-9a-fA-F]{2})+")

# The form of nearly every URL. Only the values of its parameters can be secret: there is no @, encoded or not, and no
# encoded character that may start another parameter
PLAIN = re.compile(
    r"https?://[a-zA-Z0-9.\-]+(?::[0-9]+)?"
    r"(?:/[a-zA-Z0-9/._~+\-]*(?:%(?!25|3[dD]|40|[eE][fF])[a-zA-Z0-9/._~+\-]*)*)?"
    r"([?#][!#$&'()*+,\-./0-9:;=?A-Z\[\]_a-z~]*"
    r"(?:%(?!2[356]|3[bBdDfF]|40|[eE][fF])[!#$&'()*+,\-./0-9:;=?A-Z\[\]_a-z~]*)*)?"
)


class Patterns(NamedTuple):
    """Where secrets begin and end in one kind of text.

    Attributes:
        name: A parameter's name with its equals sign.
        value: Its value, matched behind the name.
        value_after_semicolon: The value of a parameter that follows a ``;``: it ends before the next such parameter.
        authority: What is between ``//`` and the next delimiter.
        end: The end of the text that a password with unencoded delimiters may extend to.
        user: ``user:password@`` without ``//`` before it.
        part: What is decoded as a whole.
    """

    name: re.Pattern[str]
    value: re.Pattern[str]
    value_after_semicolon: re.Pattern[str]
    authority: re.Pattern[str]
    end: re.Pattern[str]
    user: re.Pattern[str]
    part: re.Pattern[str]


def _patterns(*, name: str, after: str, trimmed: str = "", between: str, user: str, part: str) -> Patterns:
    """Return patterns; `after` are the characters that end a value, and `between` those that separate URLs in the text.

    Lookbehinds let a match start at its first character only. Otherwise a long run of characters would be tried from
    each of them, and a redirect of 8 kB would block the event loop for a second.
    """
    return Patterns(
        re.compile(name),
        re.compile(rf"[^{after}]*{trimmed}"),
        re.compile(rf"(?:[^{after};]|;(?![^{after};=]*=))*{trimmed}"),
        re.compile(rf"(?:(?<=[/\\][/\\])|(?<=:[/\\]))[^/\\?#{BARRIER}{between}]*"),
        re.compile(rf"[{BARRIER}{between}]"),
        re.compile(user),
        re.compile(part),
    )


_NAME_IN_TEXT = rf"(?<![^?&;#=\s\"'<>(,])([^{BARRIER}?&;#=\s\"'<>(,]+)="
IN_QUERY = _patterns(
    name=r"(?<![^?&;#=])([^?&;#=]+)=", after="&#", between="&", user=r"(?<![^?#&])[^/?#&]*@", part=r"[^&#]+"
)
# A decoded & may be a part of a password; the parameters of the level above are searched one by one
IN_DECODED = _patterns(
    name=_NAME_IN_TEXT,
    after=f"{BARRIER}&#",
    between="",
    user=rf"(?<![^?#&\s])[^{BARRIER}/?#]*@",
    part=r"[^&#]+",
)
IN_PATH = IN_DECODED._replace(part=re.compile(r".+", re.DOTALL))
IN_TEXT = _patterns(
    name=rf"{_NAME_IN_TEXT}[\"']?",
    after=r"&#\s\"<>",
    trimmed=r"(?<!['),.\]}])",  # without punctuation of the surrounding text
    between=r"\s<>",
    user=r"(?<![^/?#\s<>])[^/?#\s<>]*@",
    part=r"(?<![^&#\s\"<>])[^&#\s\"<>]+(?<!['),.\]}])",
)

QUERY_START = re.compile(r"[?#]")
# Parameters of a path segment (RFC 3986, section 3.3), such as ;jsessionid=
MATRIX_NAME = re.compile(rf"(?<=;)([^{BARRIER};=/]+)=")
# Clients decode %3B in a path, so a ; ends a value only if another name follows
MATRIX_VALUE = re.compile(rf"(?:[^{BARRIER};/?#]|(?<!=);(?![^;=/?#]*=))*")
# yarl decodes %26 in a fragment, so a & ends a value there only if another name follows
FRAGMENT_VALUE = re.compile(r"(?:[^&#]|&(?![^&=#]*=))*")
PORT = re.compile(r":[0-9]*")
# yarl decodes the characters of a URL in a path, except its slashes and question mark: an @ may be one of its query
ENCODED_URL = re.compile(r"(?::|%3[aA])%2[fF]%2[fF]")
ENCODED_QUESTION_MARK = re.compile(r"%3[fF]")
ENCODED_PAIR = re.compile(r"%(?:3[dDfF]|26)")
BEFORE_USER = "=;,\"'([{"
NO_USER = frozenset({"acct", "mailto", "sip", "sips", "xmpp"})  # schemes whose URIs have an @ and no password

# A path segment with an encoded slash: its encoder leaves no slash, so a secret in it ends before the next one. Not
# behind //, where the segment is an authority
SEGMENT = re.compile(rf"(?:(?<=[^/]/)|(?<=\A/))[^{BARRIER}/?#]*%2[fF][^{BARRIER}/?#]*")
TOO_DEEP = re.compile(r"[^&#=/?]*%[0-9a-fA-F]{2}.*", re.DOTALL)
