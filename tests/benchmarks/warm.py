"""What a person waits for: search over a million components, a verdict decided again, the help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks import growth
from tests.benchmarks.bench import change_criterion

__all__ = ["decided_again", "help_shown", "measure", "searched"]

ROOT = Path(__file__).resolve().parents[2]


def measure(*, quick: bool = False) -> tuple[list[str], list[dict[str, Any]]]:
    """A table of what is waited for, and the same as plain values."""
    rows = [searched(2_000, 32) if quick else searched(1_000_000, 512), decided_again(quick=quick), help_shown(1 if quick else 7)]
    lines = ["| waited for | median | least–largest | asked for |", "| --- | ---: | ---: | --- |"]
    for row in rows:
        least, median, largest = np.quantile(row["seconds"], (0.0, 0.5, 1.0))
        asked = f"< {row['most']:g} s{'' if median < row['most'] else ', **falls short**'}"
        lines.append(f"| {row['what']} | {_words(median)} | {_words(least)}–{_words(largest)} | {asked} |")
    return lines, rows


def _words(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _timed(times: int, work: Callable[[int], object]) -> list[float]:
    found = []
    for turn in range(times):
        begun = time.perf_counter()
        work(turn)
        found.append(time.perf_counter() - begun)
    return found


def searched(components: int, dimension: int, layers: int = 20) -> dict[str, Any]:
    """Search among `components` random concept embeddings in a store, after a first query has opened it."""
    from semlens_audit.component_search import ComponentSearch
    from semlens_audit.store import Store

    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb") as store:
        stages = [f"{i:064x}" for i in range(layers)]
        for stage in stages:
            vectors = rng.standard_normal((components // layers, dimension), dtype=np.float32)
            with store.transaction():
                # centred embeddings are those that images are searched by, and are not read here
                none = np.zeros((len(vectors), 1), dtype=np.float32)
                store.append("meaning", stage=stage, component=np.arange(len(vectors)), vector=vectors, centred=none)
        search = ComponentSearch(store)

        def query(turn: int) -> object:
            direction = np.random.default_rng([1, turn]).standard_normal(dimension)
            return search.nearest(dict.fromkeys(stages, direction / np.linalg.norm(direction)), "vector", 10)

        first = _timed(1, query)
        seconds = _timed(10, query)
    what = f"search over {components:,} components, {dimension} dimensions, after a first query of {_words(first[0])}"
    return {"what": what, "seconds": seconds, "most": 0.3}


def decided_again(*, quick: bool) -> dict[str, Any]:
    """A verdict under a changed criterion, in a process that has the libraries loaded."""
    from semlens_audit import engine
    from semlens_audit.spec import read_plan
    from tests.benchmarks.peer_world import write_clip

    size = growth.Size(12, 4, 1) if quick else growth.BASE
    with TemporaryDirectory() as name:
        folder = Path(name)
        growth.write_pictures(folder / "pictures", size.images)
        write_clip(folder / "clip", "tiny", 0)
        audit, spec = growth.lay(folder, size)
        engine.run(read_plan(audit), allow_code=True, command="warm")

        def decide(_turn: int) -> object:
            change_criterion(spec)
            return engine.run(read_plan(audit), command="warm")

        seconds = _timed(5, decide)
    what = f"a verdict decided again under a changed criterion, {size.images:,} pictures, {size.components} components"
    return {"what": what, "seconds": seconds, "most": 1.0}


def help_shown(times: int) -> dict[str, Any]:
    """``semlens-audit --help`` in a process of its own."""
    command = [sys.executable, "-m", "semlens_audit", "--help"]
    seconds = _timed(times, lambda _turn: subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=ROOT))
    return {"what": "`semlens-audit --help`", "seconds": seconds, "most": 0.4}


if __name__ == "__main__":
    print(json.dumps(measure()[1], indent=1))
