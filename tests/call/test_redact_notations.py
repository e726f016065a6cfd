"""Secrets in other notations than ``name=value``: JSON, YAML, markup, entities, schemes, and values of several words.

The sources of the expected values: JSON is RFC 8259, YAML is YAML 1.2.2 (sections 6.1, 7.3.3 and 8.1), XML is XML 1.0,
HTML is the HTML Standard (section 13.1), and credentials are those of RFC 6750 and RFC 7617.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from html import escape
from urllib.parse import quote, quote_plus

import pytest
from support.loop_and_memory import is_fast
from support.secret_texts import TEXTS

from otel_connector._redact import Redactor

CANARY = "c4n4ry"
REDACTOR = Redactor()
BASIC = base64.b64encode(f"user:{CANARY}".encode()).decode()

JSON_IN_URLS = [
    ('{"token":"%s"}', CANARY),
    ('{"a": 1, "token": "%s", "b": 2}', f"{CANARY} {CANARY}"),
    ('{"a":{"user.token":"%s"}}', CANARY),
    ('{"token":%s}', "12345"),
    ('{"token":%s,"a":1}', f'{{"a":"{CANARY}","b":["{CANARY}"]}}'),
    ("{'token': '%s', 'a': 1}", CANARY),  # the repr of a dict
    ('{token:"%s",a:1}', CANARY),  # ECMAScript
    (json.dumps({"a": '{"token":"%s"}'}), CANARY),  # JSON in JSON
]


@pytest.mark.parametrize(("notation", "secret"), JSON_IN_URLS)
@pytest.mark.parametrize(
    "encode",
    [
        str,
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
        lambda text: quote(text, safe=":{},"),  # as yarl does
        lambda text: quote(quote(text, safe=""), safe=""),
    ],
    ids=["raw", "quote", "quote_plus", "all", "yarl", "twice"],
)
def test_json_in_a_url_is_redacted(notation: str, secret: str, encode: type[str]) -> None:
    for place in ("http://h/?x={}&b=1", "http://h/?b=1&x={}#z", "http://h/p/{}?b=1", "http://h/#x={}"):
        url, shown = place.format(encode(notation % secret)), place.format(encode(notation % "REDACTED"))
        assert REDACTOR.url(url) == shown
        if encode is not str:  # in a text, a URL ends at a blank or a quotation mark
            in_text = REDACTOR.text(f"at {url}, x")
            assert secret not in in_text
            assert in_text == f"at {shown}, x" or "{token:" in url  # in a text, this is a name with its value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # a credential scheme at the beginning of a value (RFC 6750, section 2.1; RFC 7617, section 2)
        (f"http://h/?q=Bearer%20{CANARY}&b=1", "http://h/?q=Bearer%20REDACTED&b=1"),
        (f"http://h/?q=bearer+{CANARY}%2Bx%3D#z", "http://h/?q=bearer+REDACTED#z"),
        (f"http://h/?q=Bearer {CANARY}", "http://h/?q=Bearer REDACTED"),
        (f"http://h/?a=1&q=Bearer%2520{CANARY}&b=1", "http://h/?a=1&q=Bearer%2520REDACTED&b=1"),
        (f"http://h/?q=Basic%20{BASIC}&b=1", "http://h/?q=Basic%20REDACTED&b=1"),
        (f"http://h/?q=basic+{quote_plus(BASIC)}&b=1", "http://h/?q=basic+REDACTED&b=1"),
        (f"http://h/p/Bearer%20{CANARY}/q?a=1", "http://h/p/Bearer%20REDACTED?a=1"),
        (f"http://h/#Bearer%20{CANARY}", "http://h/#Bearer%20REDACTED"),
        (f'http://h/?x={{"a":"Bearer {CANARY}"}}', 'http://h/?x={"a":"Bearer REDACTED"}'),
        # an element of a secret list, and the value of a secret property
        *(
            (f"http://h/?a=1&{name}={CANARY}&b=2", f"http://h/?a=1&{name}=REDACTED&b=2")
            for name in (
                "token.0",
                "token.value",
                "a.token.0",
                "token.0.value",
                "token[0].value",
                "password.12",
                "%74oken.0",
            )
        ),
        # no secrets: unchanged
        *(
            (url, url)
            for url in (
                "http://h/?q=basic+english&r=Basic%20plan&s=a+bearer+bond&t=Basic%20AAAA",
                "http://h/?q=bearer%20auth&r=Bearer&s=bearer+",
                "http://h/?token.type=1&key.name=2&values=3&a.0=4&value=5&0=6&.=7&token..=8",
                "http://h/?sort=key:asc&q=it's&filter={a:'b',n:1}&f=name+eq+'x'",
                'http://h/?x={"a":1,"mail":"me@h.org"}&y=%7B%22a%22:1,%22mail%22:%22me@h.org%22%7D',
                "http://h/?x=%7B%22a%22%3A%22b%22%2C%22tokens%22%3A1%2C%22token%22%3Anull%7D",
            )
        ),
        # an @ in a string of JSON belongs to its own string
        (f'http://h/?x={{"a":1,"b":"u:{CANARY}@h"}}', 'http://h/?x={"a":1,"b":"REDACTED:REDACTED@h"}'),
        # an object that is cut, and a quotation mark that is never closed: up to the end of the parameter
        (f'http://h/?x={{"token":{{"a":"{CANARY}"&b=1', 'http://h/?x={"token":REDACTED&b=1'),
        (f'http://h/?x={{"token":{{"a":"{CANARY}"', 'http://h/?x={"token":REDACTED'),
        (f"http://h/?x=%7B%22token%22:%7Ba;sig={CANARY}%7D&b=1", "http://h/?x=%7B%22token%22:REDACTED&b=1"),
        (f'http://h/?x={{"token":"{CANARY}&b=1', 'http://h/?x={"token":"REDACTED&b=1'),
        (f'http://h/?x={{"token":"a&{CANARY}"}}&b=1', 'http://h/?x={"token":"REDACTED"}&b=1'),
    ],
)
def test_other_notations_in_a_url(url: str, shown: str) -> None:
    assert REDACTOR.url(url) == shown


@pytest.mark.parametrize(("text", "secret"), TEXTS)
def test_a_secret_in_a_text_is_redacted_as_a_whole_and_the_rest_stays(text: str, secret: str) -> None:
    assert REDACTOR.text(text % secret.format(CANARY)) == text % "REDACTED"


@pytest.mark.parametrize(("text", "secret"), [(text, secret) for text, secret in TEXTS if '"' in text or "<" in text])
@pytest.mark.parametrize(
    "encode",
    [
        escape,
        lambda text: escape(text).replace("&quot;", "&#34;").replace("&lt;", "&#x3C;"),
        lambda text: escape(escape(text)),  # an error page that shows an error page
        lambda text: text.replace('"', "\\u0022").replace("<", "\\u003c").replace(">", "\\u003E"),  # JSON of Go
    ],
    ids=["named", "numeric", "twice", "JSON"],
)
def test_a_secret_between_entities_is_redacted(encode: type[str], text: str, secret: str) -> None:
    """HTML Standard, section 13.5; RFC 8259, section 7."""
    shown = REDACTOR.text(encode(text % secret.format(CANARY)))
    if "user password=" in text:  # the text as it is has a value, too, with the escape before or behind it
        assert CANARY not in shown
        assert "user password=" in shown
    else:
        assert shown == encode(text % "REDACTED")


@pytest.mark.parametrize(
    "text",
    [
        "usage: tool <token> [options]; <password> is missing, <key>, <secret>.",
        "<token/><password></password><a token>x</a><input name='token'><input name='page' value='1'>",
        "a < b and c > d, <tokens>5</tokens>, <a name='x'>y</a>",
        "&quot;a&quot;: &quot;b&quot;, 1 &lt; 2 &amp;&amp; &#; &#x; \\u0022",
        "Token\n=====\nText\n  more",
        "Invalid token:\n  at foo()\n  at bar()",
        "a: 1\ntoken:\nuser: me",
        "a: 1\ntoken: null\n",
        "password:",
        "password: , x",
        "no token: {} and []",
    ],
)
def test_a_text_without_secrets_stays_unchanged(text: str) -> None:
    assert REDACTOR.text(text) == text


@pytest.mark.parametrize(
    "text",
    ["Unexpected token: REDACTED in JSON at position 3", "key: REDACTED is not a member", "session_id: REDACTED (old)"],
)
def test_only_names_of_passwords_and_secrets_have_values_of_several_words(text: str) -> None:
    """RFC 6749, appendix A: a client secret and a password may have blanks. RFC 6750, section 2.1: a token has none."""
    assert REDACTOR.text(text.replace("REDACTED", CANARY)) == text


PIECES = [
    *(
        "<token>",
        "<password",
        "<a name=token ",
        '<a "',
        "<a '",
        "<a name='token' value='",
        "</token>",
        "<key>token</key>",
    ),
    *(
        '"token":"',
        '"token":{',
        "token: [",
        'token: ["',
        "password: a ",
        "password: a: ",
        "password: (",
        "token:\n ",
        "<",
    ),
    *(
        "\npassword:\n - ",
        "\n  password: |\n",
        "a: password:\n  ",
        "\\npassword: |\\n  ",
        "&quot;",
        "&amp;",
        "&amp;quot;token",
    ),
    *(
        "\\u0022",
        "&#0",
        '"token"\n',
        '"token"\\n',
        "token\n",
        "token \t",
        "Bearer ",
        "bearer+",
        "password: a\n   ",
        "token.",
    ),
    *(
        "?token.0",
        "'token':'",
        "%22token%22:%22",
        "%22token%22:%7B",
        "Bearer%20",
        "basic+a",
        "{{",
        "token: (((",
        "=\n",
        "a b ",
    ),
    *("&lt;token&gt;", '"token":\\"', "password: a, ", "password = a.", ".1", "&#34;token&#34;:", "<![CDATA["),
]


@pytest.mark.timing
@pytest.mark.parametrize("redact", [REDACTOR.url, REDACTOR.text], ids=["url", "text"])
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("before", ["", "https://h/?x=", "password: ", 'a "token": {"'])
def test_no_notation_blocks_the_event_loop(redact: Callable[[str], str], piece: str, before: str) -> None:
    text = before + piece * (20_000 // len(piece))
    for each in (text, before + "".join(piece + blanks for blanks in ("", " ", "x") for _ in range(3_000))):
        assert is_fast(redact, each)
