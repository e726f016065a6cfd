"""Groups URLs into endpoints: ``api.example.com/items/7/stock`` is a call of ``api.example.com/items/{id}/stock``.

A log has no templates, so they are found in two steps. First, SQL replaces the segments of a path that are surely
values: numbers, hashes, UUIDs, dates, and texts with four digits or more. Second, the remaining paths are compared with
each other in a tree: many rare siblings, siblings with the same continuations, and siblings that look like ids are
values as well (slugs, names, short ids). A few of them that fail or take time unlike the rest of their host keep their
names: one bad endpoint of 200 is seen. The result is SQL for every row. It has at most 50 names: the endpoints with the
largest share of the calls, the failures or the time, and `OTHER`. Knows neither files nor tables.

Used by ``review._compare``, ``review._load``, ``review._lost_time``, ``review._rows`` and ``review._summary``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from otel_connector.review._filters import quoted

OTHER = "other"
"""The name of all endpoints that have none of their own."""

MOST_ENDPOINTS = 50
"""The number of names, with `OTHER`."""

LOCATION = (
    """CASE WHEN contains(url, '#') THEN regexp_extract(url, '^[^?#]*') ELSE split_part(url, '?', 1) END AS location""",
    "CASE WHEN contains(location, '://') THEN split_part(location, '/', 3) ELSE '' END AS authority",
    """CASE WHEN contains(authority, '@') THEN regexp_extract(authority, '[^@]*$') ELSE authority END AS host,
        substr(location, instr(location, '://') + 3 + length(authority)) AS url_path""",
)
"""SQL for ``host`` (with the port) and ``url_path`` of ``url``, in steps, each of which needs the one before it."""

_VALUE = "{id}"

# What a segment begins with that is surely a value. A suffix is kept: /items/7.json, /items/7:archive
_SURE = r"(?:\d|[0-9a-fA-F-]{16}|(?:[^/0-9]*\d){4})"
_SUFFIX = r"(\.[a-z]\w{0,4}|:[a-zA-Z]+)?"
_LIKE_ID = re.compile(r"(?!v\d)(?=.*\d.*\D\d|\d+$|.*[%@,+~]|(?=.*\d)(?=.*[a-z]).{8,}[A-Z]).*")

# A first segment such as 1, 2.0 or 2010-04-01 is usually the version of an API
_VERSION = r"^/(?:\d{1,2}(?:\.\d{1,2})?|\d{4}-\d\d-\d\d)(?:/|$)"

# Chosen on 1,060 paths of the published documents of five APIs (`tests/review/test_endpoints.py`)
_MANY, _RARE = 20, 5  # more siblings than this, with a median of at most so many calls, are values
_TOO_MANY = 150  # more siblings than this are values
_ALIKE, _COMMON = 6, 3  # at least so many siblings are values if at least so many words follow most of them
_OFTEN, _MOST_OWN = 8, 40  # times the median of the calls of its siblings: up to so many of these are no values
_OWN = 0.01  # share of the calls of all siblings, from which also one of more is no value
_FAILING, _FEWEST_FAILED = 0.5, 5  # share and number of failures, from which a segment is unlike the others
_LONGER, _FEWEST_LONG, _OF_TIME = 4.0, 20, 0.02  # times the mean duration, calls, and share of the time of its host
_MOST_UNLIKE = 10  # siblings; more of them have the same cause, such as an outage, and may be values


@dataclass(slots=True)
class _Node:
    """A segment of paths: the calls that have it, and the segments that follow it."""

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    next: dict[str, _Node] = field(default_factory=dict[str, "_Node"])

    def add(self, calls: int, failed: int, seconds: float) -> None:
        """Count calls."""
        self.calls += calls
        self.failed += failed
        self.seconds += seconds

    def is_unlike(self, whole: _Node) -> bool:
        """Return whether calls with this segment, or with it and some that follow, are unlike the rest of a host."""
        if self.failed < _FEWEST_FAILED and self.seconds < _OF_TIME * whole.seconds:
            return False
        calls, failed, seconds = whole.calls - self.calls, whole.failed - self.failed, whole.seconds - self.seconds
        fails = self.failed >= max(_FAILING * self.calls, _FEWEST_FAILED) and failed < _FAILING**2 * calls
        lasts = self.calls >= _FEWEST_LONG and self.seconds * calls > _LONGER * seconds * self.calls
        is_large = self.seconds >= _OF_TIME * whole.seconds
        return fails or (lasts and is_large) or any(each.is_unlike(whole) for each in self.next.values())

    def words(self) -> set[str]:
        """Return all segments that follow, at any depth, except values."""
        return {word for name, node in self.next.items() for word in ({name} - {_VALUE, ""}) | node.words()}


_Rules = dict[str, set[str]]
"""By the path before a position of values: the segments at this position that are not values."""


def in_steps(query: str, *steps: str) -> str:
    """Return a query with the columns of steps, each of which may use those before it."""
    for step in steps:
        query = f"SELECT *, {step} FROM ({query})"
    return query


def path_sql(url_path: str = "url_path") -> str:
    """Return SQL for ``path``: host and path without the values that are sure; needs the steps of `LOCATION`."""
    first = f"split_part({url_path}, '/', 2)"
    rest = _without_values(f"substr({url_path}, 2 + length({first}))")
    return f"""CASE WHEN host = '' THEN '' WHEN {url_path} IN ('', '/') THEN host || '/'
        WHEN {url_path} >= '/0' AND {url_path} < '/:' AND regexp_matches({url_path}, '{_VERSION}')
        THEN host || '/' || {first} || {rest} ELSE host || {_without_values(url_path)} END AS path"""


def _without_values(path: str) -> str:
    """Return SQL for a path without its values. If no segment has a suffix, an expression without groups is faster."""
    plain = f"regexp_replace({path}, '/{_SURE}[^/]*', '/{_VALUE}', 'g')"
    # Each segment gets a slash of its own on both sides, because RE2 has no lookahead
    doubled = f"replace({path}, '/', '//') || '/'"
    kept = rf"replace(regexp_replace({doubled}, '/{_SURE}[^/]*?{_SUFFIX}/', '/{_VALUE}\1/', 'g'), '//', '/')[:-2]"
    return f"CASE WHEN contains({path}, '.') OR contains({path}, ':') THEN {kept} ELSE {plain} END"


Group = tuple[str, int, int, float]
"""Calls with the same path (`path_sql`): the path, the calls, the failed calls, the seconds of all calls."""


class Endpoints:
    """The endpoints of some calls.

    Attributes:
        groups: The calls in which they were found.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = [group for group in groups if group[0]]
        root = _Node()
        for path, calls, failed, seconds in self.groups:
            node = root
            for name in path.split("/"):
                node = node.next.setdefault(name, _Node())
                node.add(calls, failed, seconds)
        self._rules = {rule: own for host, node in root.next.items() for rule, own in _rules(node, host, node)}
        totals = defaultdict[str, list[float]](lambda: [0.0, 0.0, 0.0])
        for path, *figures in self.groups:
            name = _template(path, self._rules)
            totals[name] = [total + figure for total, figure in zip(totals[name], figures, strict=True)]
        self._names = _most_important(totals)

    @property
    def sql(self) -> list[str]:
        """SQL for ``endpoint``, in steps that follow those of `LOCATION`."""
        known = _known_sql(self._names, self._rules)
        return [*known, path_sql("unknown_path"), *_sql(self._names, self._rules)]

    def of(self, path: str) -> str:
        """Return the endpoint of a path, as `sql` does."""
        found = _template(path, self._rules)
        return found if found in self._names else OTHER


def _rules(node: _Node, path: str, host: _Node) -> Iterator[tuple[str, set[str]]]:
    """Find the positions of values below a node, and merge these."""
    values = _values(node)
    unlike = {name for name in values if node.next[name].is_unlike(host)}
    if len(unlike) <= _MOST_UNLIKE:
        values = [name for name in values if name not in unlike]
    if values:
        merged = node.next.setdefault(_VALUE, _Node())
        for name in values:
            _merge(node.next.pop(name), merged)
        yield path, node.next.keys() - {_VALUE}
    for name, following in node.next.items():
        yield from _rules(following, f"{path}/{name}", host)


def _merge(node: _Node, into: _Node) -> None:
    into.add(node.calls, node.failed, node.seconds)
    for name, following in node.next.items():
        _merge(following, into.next.setdefault(name, _Node()))


def _values(node: _Node) -> list[str]:
    """Return the segments after a node that are values."""
    names = sorted(node.next.keys() - {_VALUE, ""})
    if len(names) == 1 and re.match(_VERSION, f"/{names[0]}"):
        return []
    like_ids = {name for name in names if _LIKE_ID.fullmatch(name)}
    if not names or not (len(like_ids) > len(names) / 2 or _are_many(node, names) or _are_alike(node, names)):
        return sorted(like_ids)
    often = _OFTEN * median(node.next[name].calls for name in names)
    own = {name for name in names if node.next[name].calls > often} - like_ids
    if len(own) > _MOST_OWN:
        own = {name for name in own if node.next[name].calls >= _OWN * node.calls}
    return [name for name in names if name not in own]


def _are_many(node: _Node, names: list[str]) -> bool:
    rare = median(node.next[name].calls for name in names) <= _RARE
    return len(names) > (_MANY if rare else _TOO_MANY)


def _are_alike(node: _Node, names: list[str]) -> bool:
    """Return whether the same words follow most of the names."""
    followed = [words for name in names if (words := node.next[name].words())]
    counts = Counter(word for words in followed for word in words)
    common = sum(2 * count > len(followed) for count in counts.values())
    return len(followed) >= max(_ALIKE, len(names) / 2) and common >= _COMMON


def _template(path: str, rules: _Rules) -> str:
    found, *names = path.split("/")
    for name in names:
        own = rules.get(found)
        found += f"/{name if own is None or not name or name in own else _VALUE}"
    return found


def _most_important(totals: dict[str, list[float]]) -> list[str]:
    """Return the names that have the largest share of the calls, the failures or the time."""
    if len(totals) <= MOST_ENDPOINTS:
        return sorted(totals)
    sums = [sum(column) or 1.0 for column in zip(*totals.values(), strict=True)]
    shares = {name: max(part / whole for part, whole in zip(row, sums, strict=True)) for name, row in totals.items()}
    return sorted(shares, key=lambda name: (-shares[name], name))[: MOST_ENDPOINTS - 1]


def _known_sql(names: list[str], rules: _Rules) -> list[str]:
    """Return SQL for URLs of the most frequent form, in half the time: their endpoint has one value, a whole segment.

    ``known`` is this endpoint. For all other URLs it is NULL, and ``unknown_path`` is their path.
    """
    single = [name for name in names if re.fullmatch(r"[^/]+/[^{]+/\{id\}(?:/[^{]+)?", name)]
    before = {name.partition(f"/{_VALUE}")[0] for name in single}
    if not before:
        return ["NULL AS known, url_path AS unknown_path"]
    longest_first = "|".join(map(re.escape, sorted(before, key=lambda path: (-len(path), path))))
    of_any_value = ", ".join(quoted(f"{path}/") for path in sorted(before) if rules.get(path) == set()) or "NULL"
    after = "CASE WHEN contains(rest, '/') THEN substr(rest, instr(rest, '/')) ELSE '' END"
    # A value that starts with a digit is sure. Less than 0 are the slash and the end. A suffix has a dot or a colon
    is_known = f"""rest >= '0' AND (rest < ':' OR before_value IN ({of_any_value}))
        AND NOT contains(rest, '.') AND NOT contains(rest, ':') AND template IN ({", ".join(map(quoted, single))})"""
    return [
        "host || url_path AS place",
        f"regexp_extract(place, {quoted(f'^(?:{longest_first})/')}) AS before_value",
        "substr(place, length(before_value) + 1) AS rest",
        f"before_value || '{_VALUE}' || {after} AS template",
        f"CASE WHEN {is_known} THEN template END AS known",
        "CASE WHEN known IS NULL THEN url_path END AS unknown_path",
    ]


def _sql(names: list[str], rules: _Rules) -> list[str]:
    """Return SQL that applies the rules to ``path``, from the left to the right, and looks up the result."""
    by_depth = defaultdict[int, _Rules](dict)
    for path in sorted(rules):
        if any(name.startswith(f"{path}/{_VALUE}") for name in names):
            by_depth[path.count("/")][path] = rules[path]
    steps, path = list[str](), "path"
    for depth, at_depth in sorted(by_depth.items()):
        # An expression without groups is faster, because RE2 then needs no more than its automaton
        steps.append(f"regexp_extract({path}, {quoted(f'^(?:{_either(at_depth)})/')}) AS before_{depth}")
        own = "|".join(f"{re.escape(rule)}/(?:{_either(own)})" for rule, own in at_depth.items() if own)
        is_own = f" OR regexp_matches({path}, {quoted(f'^(?:{own})(?:/|$)')})" if own else ""
        value = f"regexp_replace(substr({path}, length(before_{depth}) + 1), '^[^/]+', '{_VALUE}')"
        steps.append(
            f"CASE WHEN before_{depth} = ''{is_own} THEN {path} ELSE before_{depth} || {value} END AS path_{depth}"
        )
        path = f"path_{depth}"
    known = ", ".join(map(quoted, ["", *names]))
    endpoint = f"CASE WHEN known IS NOT NULL THEN known WHEN {path} IN ({known}) THEN {path} ELSE '{OTHER}' END"
    return [*steps, f"{endpoint} AS endpoint"]


def _either(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts)))
