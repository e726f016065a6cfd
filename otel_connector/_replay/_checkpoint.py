"""A file that stores how far each log has been sent. This file knows neither collectors nor what a log contains.

Used by ``_replay._replay``.
"""

from __future__ import annotations

import errno
import json
import os
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from otel_connector._csv._lines import Position
from otel_connector._csv._ownership import open_own
from otel_connector._csv._whole_file import write_whole

_MARK = "otel_connector.replay"
_SIZE_LIMIT = 2**26  # bytes; each file of a log takes about 200


class Checkpoint:
    """How far some logs have been sent to one endpoint.

    Args:
        path: The file. It is created by the first `save`.
        key: What was sent, and to which endpoint. A file with another key is ignored, and replaced by the first `save`.
        former_key: The key of the same in the form of earlier versions; it is read, and not written.
        earlier: Files of earlier versions, which are read as well. A position in `path` is preferred.
        others: Checkpoints of other logs. They have the positions of files that were renamed since.
        ignore_checkpoint: Ignore the files in any case.

    Raises:
        OSError: `path`, or a file of an earlier version, cannot be read, or is not a checkpoint. It is not changed.
    """

    def __init__(
        self,
        path: str,
        key: Mapping[str, str],
        earlier: Iterable[str],
        *,
        former_key: Mapping[str, str],
        others: Iterable[str] = (),
        ignore_checkpoint: bool,
    ) -> None:
        self._path, self._key, self._keys = path, dict(key), (dict(key), dict(former_key))
        found = ChainMap(*(_read(each, self._keys) for each in dict.fromkeys((path, *earlier))))
        self._positions = {} if ignore_checkpoint else dict(found)
        self._others = [] if ignore_checkpoint else list(map(self._read_other, dict.fromkeys(others)))
        self._saved = False

    def _read_other(self, path: str) -> dict[str, Position]:
        with suppress(OSError):  # another program's file, or another user's
            return _read(path, self._keys)
        return {}

    def positions(self, identity: str) -> list[Position]:
        """Return how far a log may have been sent, the furthest first; each has to be compared with the log."""
        found = (each[identity] for each in (self._positions, *self._others) if identity in each)
        return sorted(found, reverse=True)

    def save(self, identity: str, position: Position) -> None:
        """Store how far a log has been sent. After a crash the file has its old or its new content.

        There is no fsync: if a power failure empties the file, the log is sent again, which changes nothing.

        Raises:
            OSError: The file cannot be written.
        """
        if self._saved and self._positions.get(identity) == position:  # most parts of a log were sent by earlier runs
            return
        self._positions[identity] = position
        content = {_MARK: 1, **self._key, "logs": {name: each._asdict() for name, each in self._positions.items()}}
        has_content = Path(self._path).is_file() and Path(self._path).stat().st_size
        write_whole(self._path, json.dumps(content, indent=1).encode(), like=[self._path] if has_content else ())
        self._saved = True


def _read(path: str, keys: Collection[Mapping[str, str]]) -> dict[str, Position]:
    try:
        with open(open_own(path, os.O_RDONLY), "rb") as file:  # noqa: PTH123 - opens a descriptor
            text = file.read(_SIZE_LIMIT)
    except FileNotFoundError:
        return {}
    if not text:
        return {}
    try:
        content: Any = json.loads(text)
        found = {name: Position(**each) for name, each in content["logs"].items()}
        is_checkpoint = content[_MARK] == 1 and all(map(_is_valid, found.values()))
        same_key = any({name: content[name] for name in key} == key for key in keys)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        is_checkpoint = same_key = False
        found = {}
    if not is_checkpoint:
        raise OSError(errno.EINVAL, "not a checkpoint of a replay; delete it, or name another file", path)
    return found if same_key else {}


def _is_valid(position: tuple[Any, ...]) -> bool:
    *numbers, proof = position
    return isinstance(proof, str) and all(type(number) is int and number >= 0 for number in numbers)
