"""Names of parameters that are secret by default, and patterns of the places where a secret starts and ends.

Each pattern takes linear time for any text. This file does not know how a secret is replaced.

Used by ``_redact``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CONVENTIONS = {  # the signatures in the semantic conventions (url registry)
    *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "Signature"),
    *("sig", "X-Goog-Signature"),
}
_OAUTH = {  # RFC 5849 (oauth_), RFC 6749, RFC 6750, RFC 7521 (client_assertion), OpenID Connect Core 1.0 (id_token)
    *("oauth_token", "oauth_signature", "access_token", "refresh_token", "client_secret", "client_assertion"),
    *("id_token", "id_token_hint", "password"),
}
_FILTERED_ELSEWHERE = {  # by the defaults of Sentry, of Elastic APM and of Datadog's tracers
    *("passwd", "pwd", "passphrase", "secret", "token", "auth", "authorization", "credentials", "jwt", "bearer"),
    *("api_key", "access_key", "private_key", "secret_key", "consumer_secret", "session_id", "csrf_token"),
    *("api_secret", "csrf", "x_csrftoken", "xsrf", "xsrf_token", "mysql_pwd", "cookie", "set_cookie"),
    "proxy-authorization",
}
_PRODUCTS = {
    *("key", "x_api_key", "x-goog-api-key"),  # Google Cloud API keys; AWS API Gateway
    *("AccountKey", "SharedAccessKey", "secret_access_key", "aws_secret_access_key"),  # Azure; AWS, in settings
    *("app_secret", "x-csrf-token", "x-xsrf-token", "authenticity_token"),  # Facebook; Angular; Ruby on Rails
    *("csrfmiddlewaretoken", "password_confirmation"),  # Django; Ruby on Rails
    *("subscription-key", "ocp-apim-subscription-key"),  # Azure API Management
    *("private_token", "job_token", "auth_token", "api_token", "session_token"),  # GitLab; names in many APIs
    *("x-auth-token", "x-access-token", "X-Goog-Credential", "security-token"),  # OpenStack; Google, Alibaba Cloud
    *("jsessionid", "PHPSESSID"),  # Jakarta Servlet 6.0, section 7.1.3; PHP's session.use_trans_sid
}

NAMES = frozenset(_CONVENTIONS | _OAUTH | _FILTERED_ELSEWHERE | _PRODUCTS)

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

# Escapes of the characters that begin or end a secret: " # % & ' / : ; = ? @ \ and, in UTF-8, characters like U+FF20
# that are folded to them, and of the blank after the scheme of a credential. Other escapes hide nothing
_AFTER_SCHEME = "(?:(?<=(?i:bearer).)|(?<=(?i:basic).))"
STRUCTURE = re.compile(rf"%(?:2[235-7fF]|3[aAbBdDfF]|40|5[cC]|[eE][fF]|{_AFTER_SCHEME}20)")
ESCAPES = re.compile(r"(?:%[0-9a-fA-F]{2})+")

# The form of nearly every URL. Only the values of its parameters can be secret: there is no @, encoded or not, and no
# encoded character that may start another parameter, nor a quotation mark, as in JSON, or the scheme of a credential
_NO_SCHEME = "(?<!(?i:bearer).)(?<!(?i:basic).)"
PLAIN = re.compile(
    r"https?://[a-zA-Z0-9.\-]+(?::[0-9]+)?"
    rf"(?:/[a-zA-Z0-9/._~\-]*(?:(?:\+|%(?!2[257]|3[dD]|40|[eE][fF])){_NO_SCHEME}[a-zA-Z0-9/._~\-]*)*)?"
    r"([?#][!#$&()*,\-./0-9:;=?A-Z\[\]_a-z~]*"
    rf"(?:(?:\+|%(?!2[235-7]|3[bBdDfF]|40|[eE][fF])){_NO_SCHEME}[!#$&()*,\-./0-9:;=?A-Z\[\]_a-z~]*)*)?"
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


_NAME_IN_TEXT = rf"(?<![^?&;#=\s\"'<>(,{{|:])([^{BARRIER}?&;#=\s\"'<>(,{{|:]+)="
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

# What a URL that cannot be parsed shows: its scheme, and host and path if there is no userinfo that has another end
UNPARSABLE = re.compile(
    r"([a-zA-Z][a-zA-Z0-9+.\-]*://)([^?#=;&%@]*@)*((?:\[[0-9a-fA-F:.]*)?(?:[^@?#=;&%/:\\\x00-\x1f]|:(?=[0-9]*(?:/|\Z)))*"
    r"(?:/[^@?#=;&%\\\x00-\x1f]*)?)"
)

# user[password], and what follows a backslash, which may be a part of \n, \r or \t
PARTS_OF_NAME = re.compile(r"[\[\]\\]"), re.compile(r"[\[\]]|\\[nrt]?")
ESCAPE_END = re.compile(r"(?:\\[nrt]|%(?:25)*[0-9a-fA-F]{2})\Z")
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
# Behind the last name or mark of JSON, an @ may be in a string; JSON that is encoded is searched when it is decoded
JSON = re.compile(r"(?:[^={\[&]*=)?[{\[].*[\"'][\s+]*[:,][\s+]*(?:\\*[\"'])?", re.DOTALL)
ENCODED_JSON = re.compile(r"(?:[^=%{\[&]*=)?(?:%[75][bB]|[{\[]).*%2[27]", re.DOTALL)
BEFORE_USER = "=;,\"'([{"
NO_USER = frozenset({"acct", "mailto", "sip", "sips", "xmpp"})  # schemes whose URIs have an @ and no password

# A path segment with an encoded slash: its encoder leaves no slash, so a secret in it ends before the next one. Not
# behind //, where the segment is an authority
SEGMENT = re.compile(rf"(?:(?<=[^/]/)|(?<=\A/))[^{BARRIER}/?#]*%2[fF][^{BARRIER}/?#]*")
TOO_DEEP = re.compile(r"[^&#=/?]*%[0-9a-fA-F]{2}.*", re.DOTALL)
