"""How often nominal 95 % intervals hold the population value: ``python -m tests.benchmarks.coverage [--repeats N]``.

Prints Markdown tables. Nothing is trained: evidence is drawn from populations whose true values are known (`coverage_world`), and
measured by the code that measures audits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np

from semlens_audit import behaviour, checks, scores
from semlens_audit.draws import LOGITS, interval
from semlens_audit.measure import measure_layers
from semlens_audit.presence import Presence, presence_from_attribute, presences_from_embeddings
from tests.benchmarks.coverage_world import Population, plan

_DRAWS = 1000
_NEAR = (0.1, 0.25, 0.4)
_NAMES = {
    "spurious": "reliance, spurious concepts",
    "valid": "reliance, valid concepts",
    "unexplained": "unexplained relevance",
    "clear": "clarity",
}
_NOISE = ("normal", "unequal", "heavy", "skewed")


def shares(populations: int, repeats: int) -> Iterable[str]:
    """Lines of the table for what is measured inside a network: coverage of the population value, and of the mean over repeats."""
    yield (
        "| quantity | components near the critical z | of the population value | lowest of the populations "
        "| of the mean over repeats | mean width |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for near in _NEAR:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in _NAMES}
        for number in range(populations):
            population = Population.draw(number, near=near)
            truth, found = population.truth(), {name: [] for name in _NAMES}
            for repeat in range(repeats):
                asked = plan(seed=repeat)
                evidence = population.evidence(repeats * number + repeat)
                quantities = checks.quantities(asked)
                _, places, values = measure_layers(asked, evidence, quantities, {})
                for finding in checks.findings(asked, values, places):
                    measured = finding.measurement
                    assert measured.value is not None
                    assert measured.interval is not None
                    found[finding.check].append((measured.value, measured.interval.low, measured.interval.high))
            for name, values_ in found.items():
                value, low, high = np.array(values_).T
                expected = value.mean()
                inside = (low <= truth[name]) & (truth[name] <= high)
                rows[name].append(
                    np.array([inside.mean(), ((low <= expected) & (expected <= high)).mean(), (high - low).mean()])
                )
        for name, words in _NAMES.items():
            own, expected, width = np.array(rows[name]).mean(axis=0)
            least = min(row[0] for row in rows[name])
            yield f"| {words} | {near:.0%} | {own:.1%} | {least:.0%} | {expected:.1%} | {width:.3f} |"


def noise(rng: np.random.Generator, kind: str, present: np.ndarray) -> np.ndarray:
    """Residuals with mean 0 given the presence (n,): normal, four times as wide where the concept is present, t with 3 degrees of
    freedom, or exponential."""
    n = len(present)
    if kind == "heavy":
        return rng.standard_t(3, size=n) / np.sqrt(3)
    if kind == "skewed":
        return rng.exponential(size=n) - 1.0
    return rng.normal(size=n) * (np.where(present, 2.0, 0.5) if kind == "unequal" else 1.0)


def attributes(rng: np.random.Generator, n: int, concepts: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and presence (n, p); the first concept goes with the label."""
    labels = np.arange(n) % 2
    often = np.where(labels == 1, 0.55, 0.3)
    present = [rng.random(n) < (often if index == 0 else 0.3) for index in range(concepts)]
    return labels, np.stack(present, axis=1)


def told(repeats: int) -> Iterable[str]:
    """Lines of the table for effects with presence from an attribute column; true effects 1 logit and none, both counted."""
    yield "| samples | concepts | " + " | ".join(f"{kind} residuals" for kind in _NOISE) + " | mean width, logits |"
    yield "| ---: | ---: |" + " ---: |" * (len(_NOISE) + 1)
    for n, concepts in ((60, 3), (60, 12), (200, 3), (200, 12), (1000, 3), (1000, 12)):
        cells, widths = [], []
        for kind in _NOISE:
            hits, count = 0, 0
            for repeat in range(repeats):
                rng = np.random.default_rng([repeat, n, concepts, len(kind)])
                labels, present = attributes(rng, n, concepts)
                margin = 2.0 * labels - 1.0 + present[:, 0] + 0.5 * noise(rng, kind, present[:, 0])
                presences = [presence_from_attribute(column.astype(np.int8)) for column in present.T]
                for truth, effect in zip((1.0, 0.0), _effects(margin, labels, presences, rng), strict=False):
                    hit, width = _covers(effect, truth)
                    hits, count = hits + hit, count + (width is not None)
                    widths += [] if width is None else [width]
            cells.append(f"{hits / count:.1%}")
        yield f"| {n} | {concepts} | {' | '.join(cells)} | {np.mean(widths):.2f} |"


def seen(repeats: int) -> Iterable[str]:
    """Lines of the table for effects with presence as a foundation model sees it, against the same on 100 000 samples."""
    yield "| samples | embedding noise | population value, logits | of the population value | mean width, logits |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for n, blur in ((200, 0.1), (1000, 0.1), (200, 0.2), (1000, 0.2)):
        large = _seen_world(np.random.default_rng(5), 100_000, blur)
        truth = behaviour.effects(
            *large, bootstrap=1, minimum_cell=5, minimum_samples=30, rng=np.random.default_rng(0)
        )[0].value  # fmt: skip
        assert truth is not None
        covered = [
            _covers(_effects(*_seen_world(rng, n, blur), rng)[0], truth)
            for rng in (np.random.default_rng([repeat, n]) for repeat in range(repeats))
        ]
        hits = [hit for hit, width in covered if width is not None]
        widths = [width for _, width in covered if width is not None]
        yield f"| {n} | {blur} | {truth:.2f} | {np.mean(hits):.1%} | {np.mean(widths):.2f} |"


def _seen_world(rng: np.random.Generator, n: int, blur: float) -> tuple[np.ndarray, np.ndarray, list[Presence]]:
    """Margins, labels and presence of two concepts in noisy embeddings of 16 dimensions; the first has a true effect of 1 logit."""
    labels, present = attributes(rng, n, 2)
    directions = np.eye(16)[:2]
    images = scores.unit(0.5 + present @ directions + blur * rng.normal(size=(n, 16)))
    probes = scores.ProbeSet(directions, np.zeros((2, 16)), np.zeros((2, 16)), np.arange(2))
    margin = 2.0 * labels - 1.0 + present[:, 0] + 0.5 * rng.normal(size=n)
    return margin, labels, presences_from_embeddings(images, probes)


def _effects(
    margin: np.ndarray, labels: np.ndarray, presences: list[Presence], rng: np.random.Generator
) -> list[behaviour.Effect]:
    return behaviour.effects(margin, labels, presences, bootstrap=_DRAWS, minimum_cell=5, minimum_samples=30, rng=rng)


def _covers(effect: behaviour.Effect, truth: float) -> tuple[bool, float | None]:
    if effect.value is None:
        return False, None
    spread = interval(plan(), effect.value, effect.draws, "test samples", LOGITS)
    return spread.low <= truth <= spread.high, spread.high - spread.low


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description="Coverage of nominal 95 % intervals")
    parser.add_argument("--repeats", type=int, default=400, help="audits per line of a table (default: 400)")
    parser.add_argument("--populations", type=int, default=10, help="models that they are divided over (default: 10)")
    parser.add_argument("--only", choices=("shares", "told", "seen"), help="one of the tables")
    asked = parser.parse_args()
    tables = {
        "shares": lambda: shares(asked.populations, max(2, asked.repeats // asked.populations)),
        "told": lambda: told(asked.repeats),
        "seen": lambda: seen(asked.repeats),
    }
    for name, table in tables.items():
        if asked.only in (None, name):
            print("\n".join(["", f"Coverage: {name}", ""]), flush=True)
            for line in table():
                print(line, flush=True)


if __name__ == "__main__":
    main()
