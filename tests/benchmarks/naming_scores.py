"""The arithmetic of `tests.benchmarks.naming`: how well a word tells when a component fires. Pure functions of arrays.

Shapes use K components, A attributes, V words, N images without and M with an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from semlens_audit.proportions import clopper_pearson

__all__ = ["HEAD", "OFTEN", "Estimate", "Naming", "Truth", "areas", "bootstrap_indices", "differences", "estimate", "row", "signed"]

OFTEN = 0.7
"""Area under the ROC curve from which on a label counts as one that holds."""
DRAWS = 2000
HEAD = (
    "method", "mean AUROC", "against SemanticLens, paired", "median AUROC", f"AUROC ≥ {OFTEN:g}", "mean difference, s.d.",
    "the best word; mean rank", "different words; commonest", "significant", "their mean AUROC", "mean AUROC weighted by relevance",
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What components do when the thing that a word says is there.

    Parameters
    ----------
    area
        (K, V) area under the ROC curve of the pooled activation, images with the thing against images without it, 0 to 1.
    difference
        (K, V) mean pooled activation with, less without, in standard deviations of the component on the images without; NaN for
        a component that is the same on all of these.
    """

    area: np.ndarray
    difference: np.ndarray


@dataclass(frozen=True)
class Naming:
    """The label that a method gives each component.

    Parameters
    ----------
    method
        Its name.
    words
        (K,) int64 position of the word; -1: none could be given.
    significant
        (K,) bool, whether the label stands out from chance; None for a method that cannot say.
    """

    method: str
    words: np.ndarray
    significant: np.ndarray | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean, median or the like over components with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, *, sign: bool = False) -> str:
        """``0.71 (0.68–0.74)``, negative numbers with a minus sign."""
        form = "{:+.2f}" if sign else "{:.2f}"
        value, low, high = (form.format(one + 0.0).replace("-", "−") for one in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def areas(without: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each component; equal activations count half.

    Parameters
    ----------
    without, present
        (N, K) and (M, K) activations, N and M at least 1.

    Returns
    -------
    numpy.ndarray
        (K,) float64, 0 to 1: the probability that an image with the thing activates the component more than one without it.
    """
    n, m = len(without), len(present)
    if not n or not m:
        raise ValueError("images with and without the thing are needed")
    ranks = rankdata(np.concatenate([without, present]), axis=0)
    return np.asarray((ranks[n:].sum(axis=0) - m * (m + 1) / 2) / (n * m))


def differences(without: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(K,) mean activation with, less without, in standard deviations without; NaN for a component that is the same on all of these."""
    scatter = without.std(axis=0, dtype=np.float64)
    moved = present.mean(axis=0, dtype=np.float64) - without.mean(axis=0, dtype=np.float64)
    return np.divide(moved, scatter, out=np.full(len(moved), np.nan), where=scatter > 0)


def signed(area: np.ndarray, difference: np.ndarray, words: Sequence[tuple[int, bool]]) -> Truth:
    """Columns of attributes as columns of words.

    Parameters
    ----------
    area, difference
        (K, A) for the presence of each attribute.
    words
        V pairs: attribute, and whether the word says that it is there or that it is not.
    """
    columns = [attribute for attribute, _ in words]
    there = np.array([present for _, present in words])
    return Truth(np.where(there, area[:, columns], 1.0 - area[:, columns]), np.where(there, 1.0, -1.0) * difference[:, columns])


def bootstrap_indices(count: int, seed: int = 0) -> np.ndarray:
    """(DRAWS, count) components drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(DRAWS, count))


def estimate(values: np.ndarray, drawn: np.ndarray, weights: np.ndarray | None = None, *, median: bool = False) -> Estimate:
    """Mean, weighted mean or median of (n,) values with a percentile interval over components drawn anew."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    if median:
        value, many = float(np.median(values)), np.median(values[drawn], axis=1)
    else:
        weights = np.ones(len(values)) if weights is None else weights
        value = float(np.average(values, weights=weights))
        total = weights[drawn].sum(axis=1)
        many = (values * weights)[drawn].sum(axis=1)[total > 0] / total[total > 0]
    low, high = np.quantile(many, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def row(naming: Naming, base: Naming, truth: Truth, chosen: np.ndarray, relevance: np.ndarray | None) -> tuple[str, ...]:
    """Cells of a method's line.

    Parameters
    ----------
    base
        What it is compared with, component by component.
    chosen
        Components that every method gives a word.
    relevance
        (K,) weights, at least 0; None: there are none.
    """
    drawn, words = bootstrap_indices(len(chosen)), naming.words[chosen]
    area = truth.area[chosen, words]
    paired = estimate(area - truth.area[chosen, base.words[chosen]], drawn)
    rank = 1 + (truth.area[chosen] > area[:, None]).sum(axis=1)
    cells = [
        naming.method, estimate(area, drawn).text(), "–" if naming is base else paired.text(sign=True),
        estimate(area, drawn, median=True).text(), _share(int((area >= OFTEN).sum()), len(area)),
        estimate(truth.difference[chosen, words], drawn).text(sign=True),
        f"{100 * np.mean(rank == 1):.0f} %; {rank.mean():.1f}",
        f"{len(np.unique(words))}; {100 * np.bincount(words).max() / len(words):.0f} %",
    ]  # fmt: skip
    if naming.significant is None:
        cells += ["–", "–"]
    else:
        held = area[naming.significant[chosen]]
        mean = estimate(held, bootstrap_indices(len(held))) if len(held) else None
        cells += [f"{len(held)} of {len(area)}", "–" if mean is None else f"{mean.value:.2f}" if len(held) == 1 else mean.text()]
    cells.append("–" if relevance is None else estimate(area, drawn, relevance[chosen]).text())
    return tuple(cells)


def _share(hits: int, n: int) -> str:
    low, high = clopper_pearson(hits, n)
    return f"{100 * hits / n:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"
