"""Credentials in URLs and texts are redacted, in every notation; everything else stays unchanged, byte for byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from support.logs import Log
from support.loop_and_memory import is_fast
from yarl import URL

from otel_connector import AsyncConnector, DecodeFailed, InvalidURL
from otel_connector._redact import DEFAULT_REDACTED_PARAMS, Redactor
from otel_connector.testing import FaultServer, respond

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


def with_hyphens(name: str) -> str:
    return name.replace("_", "-")


@pytest.mark.parametrize("form", [str, str.upper, str.lower, str.swapcase, with_hyphens, percent_encoded])
@pytest.mark.parametrize("mark", ["?", "#", "?a=1&", "#a=1&", "?a=1;", "#/route?", "?next=http://h/?"])
def test_a_secret_parameter_is_redacted(form: type[str], mark: str) -> None:
    for name in SECRET_NAMES:
        before, after = f"https://host/p{mark}{form(name)}=", "&z=%20+é"
        assert REDACTOR.url(f"{before}{CANARY}=={after}") == f"{before}REDACTED{after}"
        assert REDACTOR.text(f"no: {before}{CANARY}=={after} !") == f"no: {before}REDACTED{after} !"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("passwd", "Sentry, Elastic APM and Datadog filter it by default"),
        ("pwd", "Elastic APM and Datadog filter it by default"),
        ("passphrase", "Datadog filters it by default"),
        ("access_key", "Datadog filters it by default"),
        ("secret-key", "Datadog filters it by default"),
        ("privateKey", "Sentry and Datadog filter it by default"),
        ("authorization", "Sentry and Datadog filter it by default"),
        ("sessionid", "Sentry filters it by default; Django's session cookie"),
        ("csrftoken", "Sentry filters it by default"),
        ("api-key", "header of Azure OpenAI and New Relic, and Sentry's api_key"),
        ("x-api-key", "Amazon API Gateway"),
        ("subscription-key", "Azure API Management, as a parameter"),
        ("Ocp-Apim-Subscription-Key", "Azure API Management, as a header"),
        ("private_token", "GitLab REST API, authentication"),
        ("x-auth-token", "OpenStack Identity API"),
        ("oauth_token", "RFC 5849, section 3.5.3"),
        ("oauth_signature", "RFC 5849, section 3.5.3"),
        ("client_assertion", "RFC 7521, section 4.2"),
        ("id_token_hint", "OpenID Connect RP-Initiated Logout 1.0, section 2"),
        ("accessToken", "RFC 6750, section 2.3, in another spelling"),
        ("X-Goog-Credential", "Google Cloud Storage, signed URLs"),
        ("jsessionid", "Jakarta Servlet 6.0, section 7.1.3"),
        ("PHPSESSID", "PHP, session.use_trans_sid"),
        ("api_secret", "Cloudinary and Vonage APIs; Datadog filters it by default"),
        ("app_secret", "Facebook and WeChat APIs"),
        ("csrf", "Sentry filters it by default"),
        ("_csrf_token", "Sentry filters it by default"),
        ("XSRF-TOKEN", "Sentry filters it by default; Angular's cookie"),
        ("X-CSRFToken", "Sentry filters it by default; Django's header"),
        ("csrfmiddlewaretoken", "Django, the field of a form"),
        ("authenticity_token", "Ruby on Rails, the field of a form"),
        ("set-cookie", "Sentry and Elastic APM filter it by default"),
        ("Proxy-Authorization", "Sentry filters it by default; RFC 9110, section 11.7.2"),
        ("mysql_pwd", "Sentry filters it by default"),
        ("AccountKey", "connection strings of Azure Storage"),
        ("SharedAccessKey", "connection strings of Azure Service Bus and Event Hubs"),
        ("aws_secret_access_key", "configuration of the AWS CLI and its SDKs"),
        ("X-Goog-Api-Key", "Google Cloud, API keys in a header"),
        ("password_confirmation", "Ruby on Rails, has_secure_password"),
        ("user[password]", "nested parameters of Rack and PHP"),
        ("a[token][0]", "nested parameters of Rack and PHP"),
        ("user.password", "property paths of Spring and ASP.NET"),
        ("a[b.token]", "a path within a nested parameter"),
    ],
)
def test_the_default_names_are_those_that_others_redact(name: str, source: str) -> None:
    assert REDACTOR.url(f"http://h/?a=1&{name}={CANARY}#z") == f"http://h/?a=1&{name}=REDACTED#z", source


def test_names_that_are_rarely_secret_are_not_redacted() -> None:
    url = "http://h/?code=1&state=2&page=3&id=4&session=5&user=6&keyword=7&monkey=8&author=9&client_id=10&nonce=11&token.type=12"
    assert REDACTOR.url(url) == url


def encoded(text: str, times: int) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


@pytest.mark.parametrize(
    ("before", "secret", "shown", "after"),
    [
        ("http://a.example/p?key=", CANARY, "REDACTED", "&x=1#z"),
        ("http://a.example/p?x=1&key=", f"{CANARY}+{CANARY}", "REDACTED", ""),
        ("http://", f"u:{CANARY}", "REDACTED:REDACTED", "@a.example/p?x=1"),
        ("http://", CANARY, "REDACTED", "@a.example/@me"),
        ("http://", f"u:{CANARY}@{CANARY}", "REDACTED:REDACTED", "@a.example"),
        ("http://", f"u:{CANARY}@#{CANARY}", "REDACTED:REDACTED", "@a.example/"),  # curl, WHATWG: no host
        ("http://", f"u:{CANARY}/?{CANARY}", "REDACTED:REDACTED", "@a.example/"),  # curl, WHATWG: bad port
        ("http://a.example/s;jsessionid=", CANARY, "REDACTED", "/t?x=1"),
        ("http://a.example/;x=1;token=", CANARY, "REDACTED", ";y=1"),
        ("http:/", f"u:{CANARY}", "REDACTED:REDACTED", "@a.example/"),  # a server has merged the slashes
        ("//", f"u:{CANARY}", "REDACTED:REDACTED", "@a.example/"),
    ],
)
@pytest.mark.parametrize("place", ["http://h/f?url={}&y=2", "http://h/f?x=%20&u=a&url={}#z", "http://h/f#url={}&y=2"])
def test_only_the_secret_of_a_url_in_a_url_is_redacted(
    place: str, before: str, secret: str, shown: str, after: str
) -> None:
    """RFC 3986, section 2.4: a URL that is data in another one is encoded once for each level."""
    inner = f"{before}{secret}{after}"
    for times in range(1 if "#" in inner or "&" in inner else 0, 9):  # else a part of it would be one of the outer URL
        url = place.format(encoded(inner, times))
        assert REDACTOR.url(url) == place.format(encoded(f"{before}{shown}{after}", times))
        assert CANARY not in REDACTOR.text(f"at {url}, x")


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("place", ["http://h/proxy/{}", "http://h/p/{}/tail?y=1", "http://h/p/{}?y=1", "http://h/{}#z"])
@pytest.mark.parametrize("safe", ["", ":", "?=@", "!'()*~"])
def test_only_the_secret_of_a_url_in_a_path_is_redacted(safe: str, place: str, times: int) -> None:
    def nested(userinfo: str, token: str) -> str:
        url = f"http://{userinfo}@a.example:80/p?x=1&token={token}&z=%20"
        for _ in range(times):
            url = quote(url, safe=safe)
        return url if "?" not in url else url.replace("?", "%3F")

    url = place.format(nested(f"u:{CANARY}", f"{CANARY}"))
    assert REDACTOR.url(url) == place.format(nested("REDACTED:REDACTED", "REDACTED"))


def test_what_is_encoded_too_often_is_redacted_as_a_whole() -> None:
    for times in (9, 10, 100, 2_000):
        nested = "%" + "25" * times + "3D"
        assert REDACTOR.url(f"http://h/?a=1&b=token{nested}{CANARY}&c=2#d") == "http://h/?a=1&b=REDACTED&c=2#d"
        assert CANARY not in REDACTOR.text(f"at http://h/?b=token{nested}{CANARY}&c=2")


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
        ("https://host/@me;v=1/group%2Fname/a:b@c?q=a%2Fb+c&tokens=1&x-token=2&mytoken=3#frag", None),
        ("https://h/?token=&sig&key", None),
        ("HTTPS://h:/%zz?é=\ud800&&;;==#?", None),
        ("https://h/\u6642\u9593\uff1a10/\uff1fa\uff1d1?q=\u6771\u4eac\uff0f\u5927\u962a&x=\uff20me", None),
        (f"https://h/p/http://u:{CANARY}\uff20h/?q=\uff1a", "https://h/p/http://REDACTED:REDACTED\uff20h/?q=\uff1a"),
        (f"//u:{CANARY}\uff20h/", "REDACTED"),
        ("no url at all", None),
        ("https://h//@me/x?r=http://@h/&resource=acct:me@host&to=mailto%3Ame%40host&e=%2525", None),  # RFC 7565, 6068
        ("https://h/?url=http%3A%2F%2Fb.example%2F%3Fx%3D1&q=a%26b%3Dc", None),
        # a user and a password without a scheme, as in the settings of proxies
        (f"https://h/?proxy=u:{CANARY}@h:80&y", "https://h/?proxy=REDACTED:REDACTED@h:80&y"),
        (f"https://h/?proxy=u%3A{CANARY}%40h%3A80&y", "https://h/?proxy=REDACTED%3AREDACTED%40h%3A80&y"),
        (f"https://h/?u=http://:{CANARY}@a/%3Fx&y", "https://h/?u=http://REDACTED:REDACTED@a/%3Fx&y"),
        # parameters of a path segment (RFC 3986, section 3.3)
        ("https://h/;token=/;token=;v?c", None),
        (f"https://h/a;jsessionid={CANARY};v=1/b?c", "https://h/a;jsessionid=REDACTED;v=1/b?c"),
        (f"https://h/http://i/a;token={CANARY}%3Fx=1", "https://h/http://i/a;token=REDACTED%3Fx=1"),
        # userinfo in a value that is redacted
        (f"https://h/?token=//u:{CANARY}@i/&x=%3D", "https://h/?token=REDACTED&x=%3D"),
        # no host, because the password has unencoded delimiters
        (f"http://user:p@#{CANARY}@h/", "http://REDACTED"),
        (f"http://user:p@/{CANARY}@h/", "http://REDACTED@h/"),
        (f"http://user:p@?{CANARY}@h/", "http://REDACTED"),
        (f"http://user:p@:80/{CANARY}@h/", "http://REDACTED@h/"),
        (f"http://user:{CANARY}@/", "http://REDACTED:REDACTED@/"),
        # not a URL, or the end of its authority is ambiguous
        (f"u:{CANARY}@host/p", "REDACTED"),
        (f"//u:{CANARY}@host/p", "REDACTED"),
        (f" https://u:{CANARY}@host/p", "REDACTED"),
        (f"https:/u:{CANARY}@host/p", "REDACTED"),
        (f"https:u:{CANARY}@host/p", "REDACTED"),
        (f"https:///u:{CANARY}@host/p", "https://REDACTED@host/p"),
        (f"https://u:{CANARY}/x@host/p", "https://REDACTED@host/p"),
        (f"https://u:{CANARY}\\@host/p", "https://REDACTED@host/p"),
        (f"https://u :{CANARY}@host/p", "https://REDACTED@host/p"),
        (f"https://u:{CANARY}@[host/p", "https://REDACTED@[host/p"),
        (f"token={CANARY}", "REDACTED"),
        (f"https://h/?to\nken={CANARY}", "https://h/?REDACTED"),
        (f"https://[::1/p?token={CANARY}", "https://[::1/p?REDACTED"),
        (f"https://ho st/p=1;token={CANARY}", "https://ho st/pREDACTED"),
        (f"https://u:{CANARY}/p=", "https://uREDACTED"),  # a port, or a password without its host
        (f"https://u:{CANARY}%40h/=", "https://REDACTED"),
        (f"https://h:x/?a=me@{CANARY}", "https://REDACTED"),
        (f"https://u:{CANARY}@ho st?a=me@h", "https://REDACTED"),
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
    """A URL of a row is redacted again when the log is read. In another text, a second time may redact more."""
    assert REDACTOR.url(REDACTOR.url(text)) == REDACTOR.url(text)
    twice = REDACTOR.text(REDACTOR.text(text))
    assert REDACTOR.text(twice) == twice


PASSWORDS = [f"P@#{CANARY}", f"P#{CANARY}", f"P?{CANARY}", f"P@/{CANARY}", f"#{CANARY}", f"?{CANARY}"]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("place", ["http://h/f/{}", "http://h/f?u={}", "http://h/f#{}"])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_with_delimiters_in_an_encoded_url_is_redacted(password: str, place: str, times: int) -> None:
    inner = f"http://u:{password}@h2/x"
    for _ in range(times):
        inner = quote(inner, safe="")
    shown = REDACTOR.url(place.format(inner))
    assert CANARY not in shown
    assert shown.startswith(place.format("http"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"http://h/f?a=1;key={CANARY};b=2", "http://h/f?a=1;key=REDACTED;b=2"),  # HTML 4.01, B.2.2: ; instead of &
        (f"http://h/f?a=1;key={CANARY};c", "http://h/f?a=1;key=REDACTED"),  # no parameter follows
        (f"http://h/f?a=1&key={CANARY};b=2", "http://h/f?a=1&key=REDACTED"),  # here, ; may be a part of the secret
        (f"http://h/f?a=1;key={CANARY};b=2&c=3;sig={CANARY}", "http://h/f?a=1;key=REDACTED;b=2&c=3;sig=REDACTED"),
    ],
)
def test_a_parameter_that_follows_a_semicolon_ends_before_the_next_one(url: str, shown: str) -> None:
    assert REDACTOR.url(url) == shown
    assert REDACTOR.text(f"no: {url} !") == f"no: {shown} !"


def test_an_empty_port_before_a_fragment_with_an_at_sign_is_taken_for_a_password() -> None:
    assert REDACTOR.url(f"http://u:#{CANARY}@h/") == "http://REDACTED"


@given(
    user=st.sampled_from([("", ""), ("u:{}@", "REDACTED:REDACTED@"), ("{}@", "REDACTED@")]),
    path=st.sampled_from(["", "/", "/a@b/c;v=1/%20é"]),
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
        (f"at ftp://h/?a=%26token%3D{CANARY} x", "at ftp://h/?a=%26token%3DREDACTED x"),
        (f"ftp://h/?next=http%3A%2F%2Fu%3A{CANARY}%40z", "ftp://h/?next=http%3A%2F%2FREDACTED%3AREDACTED%40z"),
        (f"'ftp://h/?next=%3Ftoken%3D{CANARY}'.", "'ftp://h/?next=%3Ftoken%3DREDACTED'."),
        (f"http://u:{CANARY}/?{CANARY}@h/, x", "http://REDACTED:REDACTED@h/, x"),
        (f"http://u:{CANARY}@#{CANARY}@h/, x", "http://REDACTED:REDACTED@h/, x"),
        ("ftp://h/?next=http%3A%2F%2Fz", None),
        (f"http://u:{CANARY}\uff20h/", "http://REDACTED:REDACTED\uff20h/"),
        (f"http://u:{CANARY}\ufe6bh/", "http://REDACTED:REDACTED\ufe6bh/"),
        (f'token="{CANARY}", x', 'token="REDACTED", x'),
        # yarl's message about a host that it cannot normalise
        (f"netloc 'u:{CANARY}@ho\u2100st' contains", "netloc 'REDACTED:REDACTED@ho\u2100st' contains"),
        ("a = b, c == d; see http://host/@x and me@host.org", None),
        ("", None),
        # a list, an object, and names after brackets
        (f'{{"tokens": 1, "token": ["{CANARY}", "{CANARY}"], "a": 2}}', '{"tokens": 1, "token": REDACTED, "a": 2}'),
        (f"Config{{token={CANARY}, x=1}} [sig={CANARY}]", "Config{token=REDACTED, x=1} [sig=REDACTED]"),
        # JSON (RFC 8259), also within a string, and cut
        (f'{{"token": "{CANARY}", "a": 1}}', '{"token": "REDACTED", "a": 1}'),
        (f'{{"token":"{CANARY} \\" {CANARY}","a":1}}', '{"token":"REDACTED","a":1}'),
        (f'"{{\\"token\\":\\"{CANARY} {CANARY}\\",\\"a\\":1}}"', '"{\\"token\\":\\"REDACTED\\",\\"a\\":1}"'),
        (f'b\'{{\\\\"pwd\\\\": \\\\"{CANARY}\\\\"}}\'', 'b\'{\\\\"pwd\\\\": \\\\"REDACTED\\\\"}\''),
        (f'{{"a": 1, "token": "x {CANARY}', '{"a": 1, "token": "REDACTED'),
        ('{"token":12345,"a":null,"key": null}', '{"token":REDACTED,"a":null,"key": null}'),
        # a quotation mark in a value, in the repr of a body: it has as many backslashes as the one that ends a value
        (f'b\'{{"token": "x\\\\"{CANARY}", "a": 1}}\'', 'b\'{"token": "REDACTED", "a": 1}\''),
        # Python and Ruby
        (f"{{'token': '{CANARY} {CANARY}', 'a': 'b'}}", "{'token': 'REDACTED', 'a': 'b'}"),
        (f"{{'token': b'{CANARY}', 'a': 'b'}}", "{'token': b'REDACTED', 'a': 'b'}"),
        (f'{{"token"=>"{CANARY}", :a=>1}}', '{"token"=>"REDACTED", :a=>1}'),
        # YAML, headers, INI
        (f"password: {CANARY}\nuser: me", "password: REDACTED\nuser: me"),
        (f"b'password: {CANARY}\\nuser: me'", "b'password: REDACTED\\nuser: me'"),
        (f"user: me\n- passphrase: {CANARY} {CANARY}\nx: y", "user: me\n- passphrase: REDACTED\nx: y"),
        (f"'passphrase: {CANARY} it's {CANARY}', x", "'passphrase: REDACTED', x"),
        (f"invalid password: {CANARY}, x", "invalid password: REDACTED, x"),
        ("headers, auth: Cannot combine; auth: BasicAuth() tuple", None),
        (f"user:\n  pwd: '{CANARY} x'", "user:\n  pwd: 'REDACTED'"),
        (f"b'a: 1\\npwd: {CANARY} {CANARY}\\ntoken={CANARY}'", "b'a: 1\\npwd: REDACTED\\ntoken=REDACTED'"),
        (f"b'a=1\\ttoken: {CANARY}, \\token: {CANARY}'", "b'a=1\\ttoken: REDACTED, \\token: REDACTED'"),
        (f"X-Api-Key:{CANARY}\r\nA: b", "X-Api-Key:REDACTED\r\nA: b"),
        (f"Authorization: Bearer {CANARY}\r\nA: b", "Authorization: REDACTED\r\nA: b"),
        (f"Cookie: a={CANARY}; b={CANARY}\r\nA: b", "Cookie: REDACTED\r\nA: b"),
        (f"token = {CANARY}\na = b", "token = REDACTED\na = b"),
        (f'"token" = "{CANARY} {CANARY}"', '"token" = "REDACTED"'),
        (f'token="{CANARY} {CANARY}", x', 'token="REDACTED", x'),
        (
            f"DefaultEndpointsProtocol=https;AccountKey={CANARY}==;a=b",
            "DefaultEndpointsProtocol=https;AccountKey=REDACTED;a=b",
        ),
        ("host token:8080 and http://auth:80/, key://x, Keys: a", None),
        # credentials of a header (RFC 9110, section 11.4; RFC 6750, section 2.1; RFC 7617, section 2)
        (f"no access with Bearer {CANARY}.x-_~+/==, sorry", "no access with Bearer REDACTED, sorry"),
        (f"'basic {CANARY}'", "'basic REDACTED'"),
        ("Bearer authentication, Basic auth and Bearer tokens", None),
        ('WWW-Authenticate: Bearer realm="a", error="invalid_token", Basic realm=b', None),
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


# A server chooses the reason phrase, the redirect target and the body that an error quotes
HOSTILE_PIECES = [
    *("\\", "a\\", '\\\\"', "password: a\\", 'token: "\\', "\npassword: \\\\a"),
    *("a", "?", "=", "&", ":", "//", "@", "'", "token", "a=", "//a:", "token='", "%", "=%", "%E9", ";a=", ";token=1"),
    *(
        "%25" * 5,
        "%3D",
        "a=%3D",
        "//a:p",
        "a:=",
        "%2F%2Fa%3Ap",
        "%40",
        "//a@/",
        "/%2F",
        "&token%3D%26",
        "//x?",
        "é\ud800",
    ),
    "http%3A%2F%2Fu%3Ap%40h%2F%3Ftoken%3D1%26",
]


@pytest.mark.timing
@pytest.mark.parametrize("redact", [REDACTOR.url, REDACTOR.text])
@pytest.mark.parametrize("piece", HOSTILE_PIECES)
@pytest.mark.parametrize("before", ["", "https://h/?@&=&", "https://h/"])
def test_no_text_blocks_the_event_loop(redact: Callable[[str], str], piece: str, before: str) -> None:
    """Nothing takes more than 50 ms of processor time; in quadratic time, it would be minutes (CWE-400)."""
    text = before + piece * (4_000_000 // len(piece))
    if before:
        text = text[:8_000] + "@h" + text[8_000:]
    assert is_fast(redact, text)
    assert len(redact(text)) < 200_000


@pytest.mark.timing
@pytest.mark.parametrize("before", ["", "password: a", "\npassword: a", 'token: "', "authorization: ", '{"a":"'])
def test_no_run_of_backslashes_blocks_the_event_loop(before: str) -> None:
    """A quotation mark in JSON that is quoted several times has many backslashes before it."""
    for text in (before + "\\" * 8_000, repr(before + "\\" * 8_000), before + "\\" * 8_000 + '"'):
        assert is_fast(REDACTOR.text, text)


@pytest.mark.parametrize("redact", [REDACTOR.url, REDACTOR.text])
@pytest.mark.parametrize(
    "secret", [f"u:{CANARY}@h", f"u%3A{CANARY}%40h", f"?token={CANARY}", f"?a=%3Ftoken%3D{CANARY}"]
)
def test_a_secret_at_the_cut_of_a_long_text_is_redacted(redact: Callable[[str], str], secret: str) -> None:
    for limit in (8_192, 16_384):
        for cut in range(len(secret)):
            text = f"http://h/?b=//{secret}&"
            text = text.replace("/?", f"/{'x' * (limit - cut - len('http://h/?b=//'))}?") + "z" * 9_000
            shown = redact(text)
            assert CANARY[:3] not in shown, shown[-60:]
            assert shown.endswith("]"), shown[-60:]


def test_many_different_names_do_not_fill_the_memory() -> None:
    redactor = Redactor()
    for number in range(5_000):
        redactor.url(f"http://h/?n{number}=1&{'x' * 100}{number}=2")
    assert redactor.url(f"http://h/?n1=1&token={CANARY}") == "http://h/?n1=1&token=REDACTED"
    assert len(redactor._known) <= 1_024  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("userinfo", ["u:p@{}@", "u:p{}@", "u:p@:80{}@"])
@pytest.mark.parametrize("mark", ["#", "/", "?", "\\", "#/?"])
async def test_a_password_with_unencoded_delimiters_is_in_no_row_and_no_error(
    userinfo: str, mark: str, session: aiohttp.ClientSession, log: Log
) -> None:
    """Such a URL has no host, or no valid port (RFC 3986, section 3.2; curl: "URL using bad/illegal format")."""
    url = f"http://{userinfo.format(mark + CANARY)}h/"
    with pytest.raises(InvalidURL) as caught:
        await AsyncConnector(log.path).get(session, url, "P")
    assert log.only().url == caught.value.url
    assert caught.value.url in {"http://REDACTED", "http://REDACTED@h/"}
    assert CANARY not in f"{caught.value}{log.path.read_text()}"


async def test_an_error_that_quotes_a_long_body_is_an_outcome_with_a_row(
    server: FaultServer, session: aiohttp.ClientSession, log: Log
) -> None:
    """The whole text was redacted before, recursively: for 4 to 15 s, or until RecursionError (CWE-674)."""
    bodies = {"/a": b"=%" * 2_000_000, "/b": b"token%" + b"25" * 400_000 + b"3Dc4n4ry", "/c": b"x" * 4_000_000}
    for path, body in bodies.items():
        server.script(path, respond(200, body))
        with pytest.raises(DecodeFailed) as caught:
            await AsyncConnector(log.path).get(session, server.url(path), "P", decode=float)
        assert CANARY not in str(caught.value)
    for record, body in zip(log.records(), bodies.values(), strict=True):
        assert record.error.startswith("DecodeFailed: ValueError: could not convert string to float: ")
        left_out = int(record.error.rpartition("...[+")[2][:-1])
        shown = len(record.error.rpartition("...[+")[0])
        whole = len(f"DecodeFailed: ValueError: could not convert string to float: {body!r}")
        assert b"25" in body or shown + left_out == whole  # a secret is shorter after redaction


def test_custom_parameter_names_replace_the_default_ones() -> None:
    redactor = Redactor(["a[Key]"])
    assert redactor.url(f"https://h/?A%5bkey%5D={CANARY}&token=1") == "https://h/?A%5bkey%5D=REDACTED&token=1"
    assert redactor.text(f"at h/?a[key]={CANARY}&token=1") == "at h/?a[key]=REDACTED&token=1"
    assert Redactor([]).url("https://h/?token=1") == "https://h/?token=1"
