"""Credentials in URLs and texts are redacted, in every notation; everything else stays unchanged, byte for byte."""

from __future__ import annotations

import contextlib
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor

CANARY = "c4n4ry"
REDACTOR = Redactor()
SECRET_NAMES = sorted(DEFAULT_REDACTED_PARAMS)

# Parts of URLs, to be combined in any order
PIECES = st.lists(
    st.sampled_from(
        [
            *("http", "https", ":", "://", "//", "/", "\\", "@", "[", "]", "?", "#", "&", ";", "=", "%", " ", "\n"),
            *("user", "host", "1", ".", "'", '"', "token", "%74oken", "SIG", "a", "REDACTED", "é", "\ud800"),
        ]
    ),
    max_size=12,
).map("".join)


def percent_encoded(text: str) -> str:
    return "".join(f"%{ord(char):02x}" for char in text)


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("form", [str, str.upper, str.lower, str.swapcase, percent_encoded])
@pytest.mark.parametrize("mark", ["?", "#", "?a=1&", "#a=1&", "?a=1;", "#/route?", "?next=http://h/?"])
def test_a_secret_parameter_is_redacted(name: str, form: type[str], mark: str) -> None:
    before, after = f"https://host/p{mark}{form(name)}=", "&z=%20+é"

    assert REDACTOR.url(f"{before}{CANARY}=={after}") == f"{before}REDACTED{after}"
    assert REDACTOR.text(f"no: {before}{CANARY}=={after} !") == f"no: {before}REDACTED{after} !"


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        # userinfo
        (f"https://u:{CANARY}@host/p", "https://REDACTED:REDACTED@host/p"),
        (f"https://{CANARY}@host", "https://REDACTED@host"),
        (f"https://:{CANARY}@host:8443?q", "https://REDACTED:REDACTED@host:8443?q"),
        (f"https://u:{CANARY}@@[::1]:80/#f", "https://REDACTED:REDACTED@[::1]:80/#f"),
        (f"https://u'x:{CANARY}@host/", "https://REDACTED:REDACTED@host/"),
        # a value extends to the next & or #
        (f"https://h/?token={CANARY}?{CANARY}", "https://h/?token=REDACTED"),
        (f"https://h/?token={CANARY};{CANARY}&b=1", "https://h/?token=REDACTED&b=1"),
        (f"https://h/?token='{CANARY}'{CANARY}&b=1", "https://h/?token=REDACTED&b=1"),
        (f"https://h/?next=token={CANARY}&b=1", "https://h/?next=token=REDACTED&b=1"),
        (f"?token={CANARY}", "?token=REDACTED"),
        # no secrets: unchanged
        ("", ""),
        ("https://host/@me;v=1?q=a%2Fb+c&tokens=1&x-token=2&mytoken=3#frag", None),
        ("https://h/?token=&sig&key", None),
        ("HTTPS://h:/%zz?é=\ud800&&;;==#?", None),
        ("no url at all", None),
        # not a URL, or the end of its authority is ambiguous
        (f"u:{CANARY}@host/p", "REDACTED"),
        (f"//u:{CANARY}@host/p", "REDACTED"),
        (f" https://u:{CANARY}@host/p", "REDACTED"),
        (f"https:/u:{CANARY}@host/p", "REDACTED"),
        (f"https:u:{CANARY}@host/p", "REDACTED"),
        (f"https:///u:{CANARY}@host/p", "REDACTED"),
        (f"https://u:{CANARY}/x@host/p", "REDACTED"),
        (f"https://u:{CANARY}\\@host/p", "REDACTED"),
        (f"https://u :{CANARY}@host/p", "REDACTED"),
        (f"https://u:{CANARY}@[host/p", "REDACTED"),
        (f"token={CANARY}", "REDACTED"),
        (f"https://h/?to\nken={CANARY}", "REDACTED"),
    ],
)
def test_credentials_in_a_url_are_redacted_and_other_urls_stay_unchanged(url: str, redacted: str | None) -> None:
    assert REDACTOR.url(url) == (url if redacted is None else redacted)


def secret_parts(url: str) -> list[str]:
    """The parts of a URL that the standard library parses as credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    pairs = parse_qsl(parts.query) + parse_qsl(parts.fragment)
    values = [value for name, value in pairs if name.lower() in {name.lower() for name in SECRET_NAMES}]
    return [parts.username or "", parts.password or "", *values]


@given(PIECES, PIECES)
@example("http://host/?token=a?", "")
@example("http://host/?token=a;", "")
@example("http://host/?to\nken=", "")
@example("http:///user:", "@host")
def test_parts_of_a_url_that_a_parser_reads_as_credentials_are_redacted(before: str, after: str) -> None:
    urls = [before + CANARY + after]
    with contextlib.suppress(ValueError, TypeError):  # yarl rejects the URL as well
        urls.append(str(URL(urls[0])))
    for url in urls:
        if any(CANARY in part for part in secret_parts(url)):
            assert CANARY not in REDACTOR.url(url)


@given(PIECES)
@example("https://@host/?=&token=")
@example("a=" * 3_000)
def test_redaction_never_raises_and_is_idempotent(text: str) -> None:
    for redact in (REDACTOR.url, REDACTOR.text):
        assert redact(redact(text)) == redact(text)


@given(
    user=st.sampled_from([("", ""), ("u:{}@", "REDACTED:REDACTED@"), ("{}@", "REDACTED@")]),
    path=st.sampled_from(["", "/", "/a@b/c;token=1/%20é"]),
    pairs=st.lists(
        st.tuples(st.sampled_from(["q", "Q_2", "tokens", "é%20", "a[b]"]), st.sampled_from(["", "1", "é%3d+"]))
    ),
    secrets=st.lists(st.tuples(st.sampled_from(SECRET_NAMES), st.text("ab1?;='\"/:@%+é", min_size=1))),
)
def test_everything_but_the_credentials_stays_unchanged(
    user: tuple[str, str], path: str, pairs: list[tuple[str, str]], secrets: list[tuple[str, str]]
) -> None:
    def build(userinfo: str, *values: str) -> str:
        query = [f"{name}={value}" for name, value in pairs]
        query += [f"{name}={value}" for (name, _), value in zip(secrets, values, strict=True)]
        return f"https://{userinfo}host:8443{path or '/'}?{'&'.join(query)}#end"

    url = build(user[0].format(CANARY), *(value for _, value in secrets))
    assert REDACTOR.url(url) == build(user[1], *("REDACTED" for _ in secrets))


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"GET https://u:{CANARY}@host/p failed", "GET https://REDACTED:REDACTED@host/p failed"),
        (f"url='https://h/?token={CANARY}'", "url='https://h/?token=REDACTED'"),
        (f"url=https://h/?token={CANARY}, x", "url=https://h/?token=REDACTED, x"),
        (f"(token={CANARY})", "(token=REDACTED)"),
        (f"at ftp://h/?a=%26token%3D{CANARY} x", "at ftp://h/?a=REDACTED x"),
        (f"ftp://h/?next=http%3A%2F%2Fu%3A{CANARY}%40z", "ftp://h/?next=REDACTED"),
        ("ftp://h/?next=http%3A%2F%2Fz", None),
        (f"http://u:{CANARY}\uff20h/", "http://REDACTED:REDACTED@h/"),
        (f'token="{CANARY}", x', 'token="REDACTED", x'),
        # yarl's message about a host that it cannot normalise
        (f"netloc 'u:{CANARY}@ho\u2100st' contains", "netloc REDACTED:REDACTED@ho\u2100st' contains"),
        ("a = b, c == d; see http://host/@x and me@host.org", None),
        ("", None),
    ],
)
def test_credentials_in_a_text_are_redacted_and_other_texts_stay_unchanged(text: str, redacted: str | None) -> None:
    assert REDACTOR.text(text) == (text if redacted is None else redacted)


async def aiohttp_error_message(url: str) -> str:
    """The message of the error that aiohttp raises for a URL that it rejects."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientError, ValueError)) as caught:
            await session.get(url)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{CANARY}@/",
        f"http://u:{CANARY}@host:99999/",
        f"http://u:{CANARY}@ho\u2100st/",
        f"http://u'x:{CANARY}@127.0.0.1:1/?token={CANARY}",
        f"ftp://u:{CANARY}@host/?next=http://x/?token={CANARY}",
        f"http:///u:{CANARY}@host/?token='{CANARY}",
        f"http://u:{CANARY}@exa mple/?a;sig={CANARY}",
    ],
)
async def test_no_error_message_of_aiohttp_reveals_a_credential(url: str) -> None:
    assert CANARY not in REDACTOR.text(await aiohttp_error_message(url))


def test_response_errors_of_aiohttp_reveal_no_credential() -> None:
    url = URL(f"http://u:{CANARY}@host/?q=1&token={CANARY}'{CANARY}#id_token={CANARY}")
    info = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()))
    for error in (
        aiohttp.ClientResponseError(info, (), status=400, message=f"Bad {url}"),
        aiohttp.InvalidURL(url, "why"),
        aiohttp.NonHttpUrlRedirectClientError(url),
    ):
        assert CANARY not in REDACTOR.text(str(error))


@pytest.mark.parametrize("redact", [REDACTOR.url, REDACTOR.text])
@pytest.mark.parametrize("piece", ["a", "?", "=", "&", ":", "//", "@", "'", "token", "a=", "//a:", "token='"])
def test_redaction_takes_linear_time(redact: type[str], piece: str) -> None:
    """A server chooses the reason phrase and the redirect target. In quadratic time, this test would take an hour."""
    redact(f"https://h/?@&=&{piece * 200_000}")


def test_custom_parameter_names_replace_the_default_ones() -> None:
    redactor = Redactor(["a[Key]"])
    assert redactor.url(f"https://h/?A%5bkey%5D={CANARY}&token=1") == "https://h/?A%5bkey%5D=REDACTED&token=1"
    assert redactor.text(f"at h/?a[key]={CANARY}&token=1") == "at h/?a[key]=REDACTED&token=1"
    assert Redactor([]).url("https://h/?token=1") == "https://h/?token=1"
