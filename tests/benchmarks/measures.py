"""How interpretability measures behave: what they cost, and how often their intervals hold the truth.

    .venv/bin/python -m tests.benchmarks.measures

Coverage: layers of 20 components whose crops are drawn anew from known distributions. The truth is the mean of the measure over many
such draws. A 95 % interval should hold it in about 95 % of the layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from semlens_audit.atlas.meanings import DRAWS, recentred
from semlens_audit.neighbours import drawn_redundancy, redundancy
from semlens_audit.polysemanticity import polysemanticity, resampled_polysemanticity
from semlens_audit.resampling import resampled_clarity
from semlens_audit.scores import unit
from semlens_audit.units import spread_factor

COMPONENTS, SAMPLES, WIDTH, LAYERS = 20, 30, 32, 200


def layer(rng: np.random.Generator, centres: np.ndarray, angle: float) -> np.ndarray:
    """(K, m, d) crops: two groups, `angle` apart, of equal odds; 0: one group."""
    second = np.roll(centres, 1, axis=1)
    second = unit(second - (second * centres).sum(axis=1, keepdims=True) * centres)
    other = np.cos(angle) * centres + np.sin(angle) * second
    which = rng.random((len(centres), SAMPLES, 1)) < 0.5
    return unit(np.where(which, centres[:, None], other[:, None]) + 0.15 * rng.normal(size=(len(centres), SAMPLES, WIDTH)))


def estimate(crops: np.ndarray, rng: np.random.Generator | None) -> dict[str, tuple[float, np.ndarray]]:
    """Measure -> mean over components, and its draws where a generator is given."""
    present, even = np.ones(crops.shape[:2], dtype=bool), np.full((len(crops), 1, SAMPLES), 1.0 / SAMPLES)
    known = np.ones(len(crops), dtype=bool)
    values = {
        "clarity": resampled_clarity(crops, even)[:, 0],
        "polysemanticity": polysemanticity(crops, present),
        "redundancy": redundancy(unit(crops.mean(axis=1)), known),
    }
    if rng is None:
        return {name: (float(value.mean()), np.empty(0)) for name, value in values.items()}
    weights = rng.standard_exponential((len(crops), DRAWS, SAMPLES))
    weights /= weights.sum(axis=-1, keepdims=True)
    drawn = {
        "clarity": resampled_clarity(crops, weights).T,
        "polysemanticity": resampled_polysemanticity(crops, present, weights).T,
        "redundancy": drawn_redundancy((unit(one) for one in np.matmul(weights, crops).transpose(1, 0, 2)), known),
    }
    factor = spread_factor(np.full(len(crops), SAMPLES))
    return {name: (float(value.mean()), recentred(value, drawn[name], factor).mean(axis=1)) for name, value in values.items()}


def coverage(angle: float) -> dict[str, float]:
    """Share of layers whose interval holds the truth."""
    rng = np.random.default_rng(round(100 * angle))
    centres = unit(rng.normal(size=(COMPONENTS, WIDTH)))
    found = [estimate(layer(rng, centres, angle), rng) for _ in range(LAYERS)]
    more = [estimate(layer(rng, centres, angle), None) for _ in range(LAYERS)]
    out = {}
    for name in found[0]:
        truth = np.mean([one[name][0] for one in [*found, *more]])
        ends = [np.quantile(one[name][1], (0.025, 0.975)) for one in found]
        out[name] = float(np.mean([low <= truth <= high for low, high in ends]))
    return out


def seconds(work: Callable[[], object]) -> float:
    """Time that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print both."""
    rng = np.random.default_rng(0)
    crops = unit(unit(rng.normal(size=(2048, 1, 512))) + 0.8 / 22 * rng.normal(size=(2048, 30, 512))).astype(np.float32)
    present, weights = np.ones((2048, 30), dtype=bool), rng.standard_exponential((2048, DRAWS, 30)).astype(np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    drawn = (unit(np.matmul(weights[:, at, None], crops)[:, 0]) for at in range(DRAWS))
    costs = {
        "clarity": seconds(lambda: resampled_clarity(crops, weights)),
        "polysemanticity": seconds(lambda: (polysemanticity(crops, present), resampled_polysemanticity(crops, present, weights))),
        "redundancy": seconds(lambda: drawn_redundancy(drawn, np.ones(2048, dtype=bool))),
    }
    for name, cost in costs.items():
        print(f"{name}: {cost:.1f} s for 2,048 components, 30 samples, 512 dimensions, {DRAWS} draws")
    for angle in (0.0, 0.6, 1.2):
        print(f"angle {angle:g}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in coverage(angle).items()))


if __name__ == "__main__":
    main()
