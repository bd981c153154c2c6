"""How often a comparison of two releases is wrong, and what it finds: ``python -m tests.benchmarks.change [--pairs N]``.

Prints Markdown tables. Nothing is trained: both models' evidence is drawn from populations on the same samples (`change_world`), measured
by the code that measures audits, and compared by the code that compares records.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np

from semlens_audit import change
from semlens_audit.proportions import clopper_pearson
from semlens_audit.release_records import ChangeRecord
from tests.benchmarks.change_world import CHECKS, Model, World, plan, without_pairing
from tests.benchmarks.coverage_world import Population

SCENARIOS = {"no change": (1.0, 0.3), "a little worse": (1.3, 0.6), "clearly worse": (2.5, 1.1)}
"""Name -> factor on the relevance of components of spurious concepts, effect of the ruler (0.3 logits before)."""
_TRUE = {name: effect - 0.3 for name, (_, effect) in SCENARIOS.items()}
_WORSE = ("spurious", "valid", "ruler-effect", "ruler-gap", "ruler-pairs")
"""Checks whose true values a worse model violates more; the others may move either way."""


def pairs(scenario: str, count: int) -> list[dict[str, ChangeRecord]]:
    """Comparisons of `count` pairs of models, with and without pairing."""
    factor, effect = SCENARIOS[scenario]
    asked = plan(bootstrap=400, null_sets=300)
    found = []
    for seed in range(count):
        old = Model(Population.draw(1000 + seed, components=24, samples=200))
        world = World(seed, samples=200, crops=600)
        records = [world.record(asked, old, 0), world.record(asked, old.worse(factor, effect), 1)]
        found.append({"paired": change.compare(*records), "independent": change.compare(*without_pairing(records))})
    return found


def rate(hits: int, n: int) -> str:
    """``4.5 % (2.1–8.4 %)``, exact interval."""
    low, high = clopper_pearson(hits, n)
    return f"{100 * hits / n:.1f} % ({100 * low:.1f}–{100 * high:.1f} %)"


def families(found: dict[str, list[dict[str, ChangeRecord]]]) -> Iterable[str]:
    """Lines of the table over whole comparisons: any claim that something worsened, or improved."""
    yield "| second model | any result called worsened, paired | as independent | any called improved, paired | as independent |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for scenario, compared in found.items():
        cells = []
        for label in ("worsened", "improved"):
            for how in ("paired", "independent"):
                hits = sum(any(entry.label == label for entry in one[how].entries) for one in compared)
                cells.append(rate(hits, len(compared)))
        yield f"| {scenario} | {' | '.join(cells)} |"


def single(found: dict[str, list[dict[str, ChangeRecord]]]) -> Iterable[str]:
    """Lines of the table by check: how often 95 % intervals hold no change where there is none, widths, and what is found."""
    yield (
        "| check | no change: 95 % interval holds 0, paired | as independent | mean width, paired | as independent "
        "| a little worse: called worsened, paired | as independent | clearly worse: called worsened, paired | as independent |"
    )
    yield "| --- |" + " ---: |" * 8
    for check, (kind, _, _) in CHECKS.items():
        covered, widths, cells = [], [], []
        for how in ("paired", "independent"):
            apart = [
                entry.difference.interval
                for one in found["no change"]
                for entry in one[how].entries
                if entry.finding.startswith(f"{check}/")
                and entry.difference is not None
                and entry.difference.interval is not None
            ]
            covered.append(rate(sum(one.low <= 0.0 <= one.high for one in apart), len(apart)))
            widths.append(f"{np.mean([one.high - one.low for one in apart]):.3f}")
        for scenario in ("a little worse", "clearly worse"):
            for how in ("paired", "independent"):
                labels = [e.label for one in found[scenario] for e in one[how].entries if e.finding.startswith(f"{check}/")]
                cells.append(
                    f"{np.mean([label == 'worsened' for label in labels]):.0%}".replace("%", " %") if check in _WORSE else "–"
                )
        yield f"| {check} ({kind}) | {' | '.join([*covered, *widths, *cells])} |"


def known(found: dict[str, list[dict[str, ChangeRecord]]]) -> Iterable[str]:
    """Lines of the table of effects, whose true change is known: coverage by 95 % intervals of the difference."""
    yield "| check | true change, logits | paired | as independent |"
    yield "| --- | ---: | ---: | ---: |"
    for check in ("ruler-effect", "ruler-pairs"):
        for scenario, compared in found.items():
            cells = []
            for how in ("paired", "independent"):
                apart = [
                    entry.difference.interval
                    for one in compared
                    for entry in one[how].entries
                    if entry.finding.startswith(f"{check}/")
                    and entry.difference is not None
                    and entry.difference.interval is not None
                ]
                cells.append(rate(sum(i.low <= _TRUE[scenario] <= i.high for i in apart), len(apart)))
            yield f"| {check} | {_TRUE[scenario]:.1f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="pairs of models of each kind")
    count = parser.parse_args().pairs
    found = {scenario: pairs(scenario, count) for scenario in SCENARIOS}
    print(f"{count} pairs of each kind, {len(CHECKS)} results each, family level 5 %; exact 95 % intervals.\n")
    for table in (families, single, known):
        print("\n".join(table(found)), end="\n\n")


if __name__ == "__main__":
    main()
