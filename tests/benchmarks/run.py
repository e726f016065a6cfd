"""Measures the cost of the connector.

Run it in the project's root, on an idle machine::

    python -m pip install '.[bench]' && python tests/benchmarks/run.py

A part can be run by its name: ``python tests/benchmarks/run.py cost``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import call_cost
import fetchers
import instructions
import latency
import scaling
import single_figures
import uvloop
import with_collector
from serving import server

PARTS: dict[str, Callable[[str, Path], Coroutine[Any, Any, None]]] = {
    "cost": call_cost.table,
    "collector": with_collector.table,
    "latency": latency.table,
    "scaling": scaling.table,
    "figures": single_figures.table,
    "fetchers": fetchers.table,
    "instructions": instructions.table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], help="parts to run; default: all")
    for name in parser.parse_args().parts or PARTS:
        print(f"\n## {name}\n", flush=True)
        with server() as url, tempfile.TemporaryDirectory() as folder:
            uvloop.run(PARTS[name](url, Path(folder)))


if __name__ == "__main__":
    main()
