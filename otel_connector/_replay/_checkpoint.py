"""How far logs were sent, kept in a file that a rerun reads. Knows neither logs nor collectors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otel_connector._csv._lines import Position
from otel_connector._csv._torn_tail import open_regular

_MARK = "otel_connector.replay"
_SIZE_LIMIT = 2**20  # bytes; a log takes some 200


class Checkpoint:
    """How far logs are sent to one place, in a file.

    Args:
        path: The file, which need not be there.
        key: What was sent where. What a file says of something else is of no use, and is replaced.
        ignore_checkpoint: Forget what it says.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no checkpoint, and stays as it is.
    """

    def __init__(self, path: str, key: Mapping[str, str], *, ignore_checkpoint: bool) -> None:
        self._path, self._key = path, dict(key)
        found = _read(path, self._key)
        self._positions = {} if ignore_checkpoint else found

    def position(self, identity: str) -> Position:
        """Return how far a log is sent."""
        return self._positions.get(identity, Position())

    def save(self, identity: str, position: Position) -> None:
        """Note how far a log is sent; in a crash the file is as it was, or as it is to be.

        It is not forced onto the disk: of a file that a power cut has emptied the log is sent once more, which does no
        harm.
        """
        self._positions[identity] = position
        content = {_MARK: 1, **self._key, "logs": {name: each._asdict() for name, each in self._positions.items()}}
        target = Path(self._path)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
        new = Path(name)
        try:
            with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - of a descriptor
                json.dump(content, file, indent=1)
            new.replace(target)
        except BaseException:
            new.unlink()
            raise


def _read(path: str, key: Mapping[str, str]) -> dict[str, Position]:
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:  # noqa: PTH123 - of a descriptor
            text = file.read(_SIZE_LIMIT)
    except FileNotFoundError:
        return {}
    if not text:
        return {}
    try:
        content: Any = json.loads(text)
        found = {name: Position(**each) for name, each in content["logs"].items()}
        ours = content[_MARK] == 1 and all(map(_makes_sense, found.values()))
        same = {name: content[name] for name in key} == dict(key)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        ours = same = False
        found = {}
    if not ours:
        raise ValueError(f"{path}: not a checkpoint of a replay; delete it, or name another")
    return found if same else {}


def _makes_sense(position: tuple[Any, ...]) -> bool:
    *numbers, proof = position
    return isinstance(proof, str) and all(type(number) is int and number >= 0 for number in numbers)
