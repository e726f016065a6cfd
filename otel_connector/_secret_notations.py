"""Secrets in other notations than ``name=value``: JSON, YAML, headers, markup, and the credentials of a scheme.

Each function takes linear time for any text. This file does not know which names are secret, how a secret is replaced,
or how a URL is divided.

Used by ``_redact``.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a secret starts and ends, and the parameter that it is the value of (empty for userinfo, and for what could not
# be decoded). A plain tuple, because a hostile URL has thousands
Found: TypeAlias = "tuple[int, int, str]"

_BARRIER = "\ud800"  # where a secret of a decoded URL starts or ends; the same as in the patterns of URLs
_INDENT = 64  # characters before a name at most, if it is the first one in its line
_BLANK = r"(?:\s|\\+[nrt])"  # also in a repr, and in JSON

# A name in JSON, also escaped, YAML, headers, INI, Python and Ruby. ``name=value`` is found as a parameter. Not
# name:80, which is a host with its port, a message about the option auth, nor a heading. It does not end in a
# backslash: a run of them would be divided in all ways
_PAIR = re.compile(
    r"(?<![\w.\-\[\]\\])(?P<name>[\w.\-\[\]\\]*[\w.\-\[\]])(?<!\bauth(?=: [A-Z]\w+(?:\(\))? ))"
    rf"(?:(?P<quote>\\*[\"']){_BLANK}*|[ \t]+|{_BLANK}+(?!==)|(?!=[^\s\"'\\>=]|:(?://|[0-9]{{1,5}}(?!\w))))"
    r"[:=]{1,2}>?[ \t]*"
)
_BLANKS = re.compile(rf"{_BLANK}*")
_NOTHING = re.compile(r"\[\]|\{\}|(?:[nN]ull|[nN]one|[tT]rue|[fF]alse)(?=[ \t]*(?:[,;)\]}\"'<\r\n\\]|\Z))")
# A quotation mark in the value has more backslashes before it than the one that ends the value
_QUOTED = re.compile(r"[bBuUrR]{0,2}(\\*[\"'])(?P<value>.*?)(?:(?<!\\)\1|\Z)", re.DOTALL)
_WORD_END = r"(?<!['),.;\]}])"  # without punctuation of the surrounding text
_WORD = re.compile(rf"(?P<value>[^\s\"'<>\\]*(?:\\(?![nrt\"'])[^\s\"'<>\\]*)*{_WORD_END})")
# Up to punctuation that a blank follows, a sentence, another name, a quotation mark, or the end of the line
_PART = r"(?:[^\s\"'<>\\]|\\(?![nrt\"'])|(?<=\w)'(?=\w))+"
_WORDS = re.compile(
    rf"(?P<value>{_PART}(?:(?<![,;)\]}}])(?!(?<=\.)[ \t]+[A-Z])[ \t]+(?![\w.\-\[\]]+[\"']?[ \t]*[:=]){_PART})*"
    rf"{_WORD_END})"
)
# RFC 6749, appendix A: a client secret and a password may have blanks. RFC 6750, section 2.1: a token has none
_SEVERAL_WORDS = re.compile("pass|pwd|secret|credential", re.IGNORECASE)
_PROPERTY = re.compile(r"(?:(?<=[\r\n])|(?<=\\n))[ \t]*(?P<name>[\w.\-]+)=")

# The first name in a line of YAML, or, in a message, behind its beginning
_FIRST = re.compile(r"(?:(?P<line>[\r\n\"']|\\[nr])|\A|: )(?P<indent>[ \t]*(?:- )*)[\w.\-\[\]]+\Z")
_LINE = re.compile(r"(?P<value>[^\r\n]*?)(?=(?<!\\)\\*[\"'](?!\w)|\\[nr]|[\r\n]|\Z)")
_BLOCK = re.compile(r"(?:[|>][0-9+\-]{0,2})?[ \t]*(?:#.*?)?(?=\\[nr]|[\r\n])")  # YAML 1.2.2, section 8.1.1
_NEXT_LINE = re.compile(
    r"(?:\r\n?|\n)(?P<indent>[ \t]*)(?P<line>[^\r\n]*)"
    # in a repr: up to the quotation mark that ends it
    r"|(?:\\+r)?\\+n(?P<indent_in_repr>[ \t]*)"
    r"(?P<line_in_repr>[^\r\n]*?)(?=\\[nr]|(?<!\\)[\"'](?:[\s)\]},:;]|\Z)|[\r\n]|\Z)"
)
_HEADER = re.compile(r"(?P<value>(?!\\*[\"'])[^\r\n]*?)(?=\\[nr]|[\r\n]|\Z)")
_HEADER_NAME = re.compile(r"(?:proxy-)?authorization|(?:set-)?cookie", re.IGNORECASE)

# Strings and brackets. The quotation mark of a string has no letter before it but the prefix of Python
_STRUCTURE = re.compile(rf"(?:(?<!\w)[bBuUrR]{{1,2}}|(?<!\w))(?P<quote>\\*[\"'])|\\*[\"']|[\[{{(\]}})]|{_BARRIER}")
_BRACKETS = {"]": "[", "}": "{", ")": "("}

# RFC 7235, section 2.1, without the parameters of a challenge, and the words that follow in sentences
_NO_CREDENTIALS = r"(?![a-z_]+=[\"\w]|(?:auth\w*|tokens?|credentials?|realm|scheme|access)\b)"
_CREDENTIALS = re.compile(
    rf"(?<![a-z0-9])(?:bearer|basic)[ \t]+{_NO_CREDENTIALS}([a-z0-9\-._~+/]+=*)(?<!\.)", re.IGNORECASE
)
# In a URL, at the beginning of a value: elsewhere it is a word
_CREDENTIALS_IN_URL = re.compile(
    rf"(?:\A|(?<=[=/:;,\"'?#&{_BARRIER}]))(?:bearer|(basic))[ \t+]+{_NO_CREDENTIALS}([a-z0-9\-._~+%/]+=*)",
    re.IGNORECASE,
)
_PAIR_IN_URL = re.compile(r"(?<![\w.\-\[\]\\%])(?P<name>[\w.\-\[\]%]+)(?P<quote>\\*[\"'])?[ \t+]*:[\s+]*")
_QUOTED_IN_URL = re.compile(rf"(\\*[\"'])(?:(?P<value>[^{_BARRIER}]*?)(?<!\\)\1|(?P<unclosed>[^{_BARRIER}&#]*))")
_WORD_IN_URL = re.compile(rf"(?P<value>[^{_BARRIER}\s&#,;\"'<>\\\[{{(\]}})]+)")
_PARAMETER_END = re.compile(rf"[{_BARRIER}&#]")

# XML 1.0, section 3.1, and the HTML Standard, section 13.1.2. The last value may have been cut
_TAG = re.compile(
    r"<(?P<name>[a-zA-Z][\w.:\-]*)"
    r"(?P<attributes>(?:[^<>=]|=\s*\\*\"[^\"]*(?:\"|\Z)|=\s*\\*'[^']*(?:'|\Z)|=)*)(?P<end>(?<!/)>)?"
)
_ATTRIBUTE = re.compile(
    r"(?<![\w.:\-])(?P<name>[a-zA-Z][\w.:\-]*)\s*=\s*(?:(\\*[\"'])(?P<quoted>.*?)(?:\2|\Z)|(?P<bare>[^\s\"'<>]+(?<!/)))",
    re.DOTALL,
)
_NAMES_ELEMENT = frozenset({"name", "id", "key", "property", "itemprop"})
_HOLDS_VALUE = frozenset({"value", "content"})
# The name in an element of its own: property lists of Apple, and the configuration of Hadoop
_NAME_ELEMENT = re.compile(rf"<(key|name)>(?P<value>[^<>]*)</\1>{_BLANK}*(?=<[a-zA-Z])")
_UNCLOSED = re.compile(r"\w[^<\r\n]*")  # not a placeholder such as <token>

# Entities of HTML, escaped any number of times, and the escapes of JSON
_ENTITY = re.compile(
    r"&(?P<again>(?:(?:amp|#38|#[xX]26);)*)(?:(?P<name>quot|apos|lt|gt|colon|equals)"
    r"|#(?P<decimal>[0-9]{2,7})|#[xX](?P<hex>[0-9a-fA-F]{1,6}));"
    r"|(?<!\\)(?P<backslashes>\\*)\\u00(?P<json>2[267]|3[aAcCdDeE])"
)
_NAMED = {"quot": '"', "apos": "'", "lt": "<", "gt": ">", "colon": ":", "equals": "="}


def in_text(text: str, is_secret: Callable[[str], bool]) -> list[Found]:
    """Return the values of secret names in a text, and the credentials of headers."""
    found = [(*match.span(1), "") for match in _CREDENTIALS.finditer(text)]
    kept = 0
    for match in _PAIR.finditer(text):
        if match.end() > kept and is_secret(match["name"]):
            start, end = _value(text, match)
            if start < end:
                found.append((start, end, match["name"]))
                kept = end
    for match in _PROPERTY.finditer(text):
        value = _SEVERAL_WORDS.search(match["name"]) and is_secret(match["name"]) and _WORDS.match(text, match.end())
        if value and "&" not in value[0]:
            found.append((*value.span(), match["name"]))
    return found + _in_markup(text, is_secret) if "<" in text else found


def in_url(text: str, is_secret: Callable[[str], bool]) -> list[Found]:
    """Return the values of secret names in the JSON of a URL, or of a decoded part of it, and the credentials."""
    found = [
        (*match.span(2), "")
        for match in _CREDENTIALS_IN_URL.finditer(text)
        if match[1] is None or _is_user_and_password(match[2])
    ]
    kept = 0
    for match in _PAIR_IN_URL.finditer(text) if '"' in text or "'" in text else ():
        begin = match.end()
        if begin <= kept or not is_secret(match["name"]) or _NOTHING.match(text, begin):
            continue
        value = _QUOTED_IN_URL.match(text, begin)
        if value is None and match["quote"]:
            value = _WORD_IN_URL.match(text, begin)
        start, end = value.span(value.lastgroup or 0) if value else (begin, begin)
        if match["quote"] and text[begin : begin + 1] in {"[", "{"}:
            end = _nested_end(text, begin)
            if end < 0:
                end = len(text) if (stop := _PARAMETER_END.search(text, begin)) is None else stop.start()
        if start < end:
            found.append((start, end, match["name"]))
            kept = end
    return found


def without_entities(text: str) -> tuple[str, list[int]] | None:
    """Return a text without entities and escapes of JSON, and the offset of each character; None if it has none.

    What was escaped several times has a backslash before it for each further time, as in JSON.
    """
    pieces: list[str] = []
    offsets: list[int] = []
    kept = 0
    for match in _ENTITY.finditer(text):
        if name := match["name"]:
            plain = _NAMED[name]
        else:
            plain = chr(min(int(match["decimal"] or "0") or int(match["hex"] or match["json"] or "0", 16), 0xFFFF))
        if plain in {'"', "'"}:
            plain = "\\" * ((match["again"] or "").count(";") + len(match["backslashes"] or "")) + plain
        pieces += text[kept : match.start()], plain
        offsets += [*range(kept, match.start()), *[match.start()] * len(plain)]
        kept = match.end()
    if not pieces:
        return None
    offsets += range(kept, len(text) + 1)
    return "".join(pieces) + text[kept:], offsets


def _value(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Return where the value of a matched `_PAIR` starts and ends."""
    name, begin = match["name"], match.end()
    if _HEADER_NAME.fullmatch(name) and (line := _HEADER.match(text, begin)):
        return line.span()
    after = begin
    if match["quote"] and (blanks := _BLANKS.match(text, begin)):
        after = blanks.end()
    if _NOTHING.match(text, after):
        return begin, begin
    if quoted := _QUOTED.match(text, after):
        return quoted.span("value")
    if text[after : after + 1] in {"[", "{", "("}:
        end = _nested_end(text, after)
        return after, len(text) if end < 0 else end
    if text[match.end("name")] == ":":
        start, end = _lines(text, match)
        if start < end:
            return start, end
    word = (_SEVERAL_WORDS.search(name) and _WORDS.match(text, after)) or _WORD.match(text, after)
    return word.span() if word else (begin, begin)


def _lines(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Return the rest of a line that begins with a matched name, with the lines that are indented more (YAML 1.2.2)."""
    begin = match.end()
    first = _FIRST.search(text, max(match.start() - _INDENT, 0), match.end("name"))
    line = (_LINE if first and first["line"] else _BLOCK).match(text, begin)
    if first is None or line is None:
        return begin, begin  # a sentence
    start, end = line.span()
    column, only_lines, ended = (len(first["indent"]) if first["line"] else 0), start == end, end
    found = False
    while following := _NEXT_LINE.match(text, ended):
        kind = "line" if following["line"] is not None else "line_in_repr"
        content, ended = following.start(kind), following.end()
        indent = content - following.start("indent" if kind == "line" else "indent_in_repr")
        if content == ended:
            continue  # an empty line
        if indent <= column and not (only_lines and indent == column and text.startswith("- ", content)):
            break
        start, end = start if found or not only_lines else content, ended
        found = True
    return (start, end) if found or first["line"] else (begin, begin)


def _nested_end(text: str, start: int) -> int:
    """Return where an object or a list that begins at `start` ends; -1 if it does not."""
    opened: list[str] = []
    count, string = dict.fromkeys("[{(", 0), ""
    for match in _STRUCTURE.finditer(text, start):
        mark = match["quote"] or match[0]
        if mark == _BARRIER:
            break
        if string:
            if match[0].endswith(string) and len(mark) == len(string):
                string = ""
        elif match["quote"]:
            string = mark
        elif mark in count:
            opened.append(mark)
            count[mark] += 1
        elif (opening := _BRACKETS.get(mark)) and count[opening]:
            while (last := opened.pop()) != opening:
                count[last] -= 1
            count[opening] -= 1
            if not opened:
                return match.end()
    return -1


def _in_markup(text: str, is_secret: Callable[[str], bool]) -> list[Found]:
    """Return the contents and values of the elements of XML and HTML that have a secret name."""
    found: list[Found] = []
    kept = named = 0
    for tag in _TAG.finditer(text):
        if tag.start() < kept:
            continue
        if element := _NAME_ELEMENT.match(text, tag.start()):
            named = element.end() if is_secret(element["value"]) else 0
            continue
        attributes = [
            (attribute["name"].lower(), *attribute.span("bare" if attribute["quoted"] is None else "quoted"))
            for attribute in _ATTRIBUTE.finditer(text, *tag.span("attributes"))
        ]
        has_name = any(each in _NAMES_ELEMENT and is_secret(text[start:end]) for each, start, end in attributes)
        found += [
            (start, end, each)
            for each, start, end in attributes
            if start < end and ((has_name and each in _HOLDS_VALUE) or (each not in _NAMES_ELEMENT and is_secret(each)))
        ]
        secret = is_secret(tag["name"].rpartition(":")[2])
        if not tag["end"] or not (secret or has_name or tag.start() == named > 0):
            continue
        begin, end = tag.end(), text.find(f"</{tag['name']}", tag.end())
        if end < 0 and secret and (content := _UNCLOSED.match(text, begin)):
            end = content.end()
        if content_of := text[begin : max(begin, end)].strip():
            start = text.index(content_of, begin)
            found.append((start, start + len(content_of), ""))
            kept = end
    return found


def _is_user_and_password(credentials: str) -> bool:
    """Return whether a text is what the scheme Basic sends (RFC 7617, section 2)."""
    try:
        return b":" in base64.b64decode(unquote(credentials))
    except ValueError:
        return False
