"""Detects blocking calls of the package in an event loop, with blockbuster, and decides fast about what may block.

blockbuster compares the file of each frame of the stack with all its lists, at each call of a function that can block.
This took a sixth of the time of the tests.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

from blockbuster import BlockBuster
from blockbuster.blockbuster import BlockBusterFunction

import otel_connector
from otel_connector import testing

_PACKAGE, _EXCLUDED = otel_connector.__path__[0], testing.__path__[0]


def guard() -> BlockBuster:
    """Return what detects the calls. The fault server may block: it runs in its own thread with its own loop."""
    return BlockBuster("otel_connector", excluded_modules=["otel_connector.testing"])


_OTHER, _IN_PACKAGE, _MAY_BLOCK = range(3)


class MayBlock:
    """The predicate of a function, and whether blockbuster would allow the call after a look at the stack.

    If not, blockbuster looks at the stack itself. A function gets this after its exceptions.
    """

    def __init__(self, function: BlockBusterFunction) -> None:
        self._predicate, self._exceptions = function.can_block_predicate, list(function.can_block_functions)
        self._places: dict[tuple[str, str], int] = {}

    def __call__(self, *arguments: Any, **options: Any) -> bool:
        if self._predicate(*arguments, **options):
            return True
        outside, places = True, self._places
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if place := places.get((code.co_filename, code.co_name), -1):
                place = self._place(code) if place < 0 else place
                if place == _MAY_BLOCK:
                    return True
                outside = outside and place == _OTHER
            frame = frame.f_back
        return outside

    def _place(self, code: CodeType) -> int:
        file, name = code.co_filename, code.co_name
        in_package = file.startswith(_PACKAGE) and not file.startswith(_EXCLUDED)
        may_block = any(file.endswith(other) and name in names for other, names in self._exceptions)
        place = self._places[file, name] = _MAY_BLOCK if may_block else _IN_PACKAGE if in_package else _OTHER
        return place
