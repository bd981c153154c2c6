"""Where a concept is present, as an attribute column says or as the foundation model sees it on whole images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit import scores
from semlens_audit.outputs import Rows, in_blocks
from semlens_audit.statistics import otsu

__all__ = ["SEPARATION", "Presence", "presence_from_attribute", "presences_from_embeddings", "two_groups"]

SEPARATION = 3.25
"""Least distance of the two groups' means, in their common standard deviation (Ashman's D), at which presence counts as told:
equally large groups then overlap by 5 %. Normal and skewed populations without groups reach less than 2."""

_STEPS = 60
_ROUNDS = 3
_LEAST = 1e-3
"""Least standard deviation of a group relative to all; a group of equal scores would otherwise have none."""


@dataclass(frozen=True)
class Presence:
    """Where a concept is present.

    Parameters
    ----------
    score
        (N,) float64 graded presence, highest where it is plainest; NaN where unknown.
    present
        (N,) bool
    known
        (N,) bool
    probability
        (N,) float64 probability that the concept is present, 0 or 1 for an attribute column; NaN where unknown. The margin is
        regressed on it, so that a slope is the effect of switching the concept on.
    separation
        Distance of the two groups of scores in their common standard deviation (Ashman's D); None for an attribute column.
    source
        ``"foundation model"`` or ``"attributes"``.
    """

    score: np.ndarray
    present: np.ndarray
    known: np.ndarray
    probability: np.ndarray
    separation: float | None
    source: str

    @property
    def told(self) -> bool:
        """Whether presence and absence can be told apart at all."""
        return self.separation is None or self.separation >= SEPARATION

    def rows(self, samples: np.ndarray) -> Presence:
        """The presence in some of the samples."""
        return Presence(
            self.score[samples],
            self.present[samples],
            self.known[samples],
            self.probability[samples],
            self.separation,
            self.source,
        )


def presence_from_attribute(column: np.ndarray) -> Presence:
    """Presence as an attribute column states it: (N,) int8, 1 present, 0 absent, -1 unknown."""
    known, present = column >= 0, column == 1
    value = np.where(known, present.astype(np.float64), np.nan)
    return Presence(value, present, known, value, None, "attributes")


def presences_from_embeddings(image_embeddings: Rows, probes: scores.ProbeSet) -> list[Presence]:
    """Presence of every concept as the foundation model sees it on the whole image.

    The score of a concept is the mean over its probes of the alignment, each standardised over the data. A mixture of two normal
    distributions divides it into present and absent (expectation maximisation, started at Otsu's threshold). One concept can lie
    over another and change its score, as hair does to a lesion's border; scores are therefore freed of the other concepts'
    linear contribution, in turns, where that separates the groups better.

    Regressing on the score itself would be wrong: within a group it varies with everything else in the picture, the diagnosis
    included, and the slope of the margin on it is biased.

    Parameters
    ----------
    image_embeddings
        (N, d)

    Returns
    -------
    list of Presence
        One per concept, in order.
    """
    values = _concept_scores(image_embeddings, probes)
    groups = [two_groups(column) for column in values.T]
    told = [index for index, (_, separation) in enumerate(groups) if separation >= SEPARATION]
    adjusted = {index: values[:, index] for index in told}
    for _ in range(_ROUNDS if len(told) > 1 and len(values) > 4 * len(told) else 0):
        probability = np.stack([groups[index][0] for index in told], axis=1)
        design = np.column_stack([np.ones(len(values)), probability])
        for place, index in enumerate(told):
            slopes = np.linalg.lstsq(design, values[:, index], rcond=None)[0][1:]
            slopes[place] = 0.0
            freed = values[:, index] - (probability - probability.mean(axis=0)) @ slopes
            found = two_groups(freed)
            if found[1] > groups[index][1]:
                groups[index], adjusted[index] = found, freed
    everywhere = np.ones(len(values), dtype=bool)
    return [
        Presence(
            adjusted.get(index, values[:, index]), probability > 0.5, everywhere, probability, separation, "foundation model"
        )
        for index, (probability, separation) in enumerate(groups)
    ]


def _concept_scores(image_embeddings: Rows, probes: scores.ProbeSet) -> np.ndarray:
    """(N, J): mean over a concept's probes of the alignment, each standardised over the data."""
    blocks = [scores.alignment(block.astype(np.float64), probes) for block in in_blocks(image_embeddings)]
    aligned = np.concatenate(blocks) if blocks else np.zeros((0, len(probes.directions)))
    standard = (aligned - aligned.mean(axis=0)) / np.maximum(aligned.std(axis=0), 1e-12)
    return np.stack([standard[:, probes.concepts == concept].mean(axis=1) for concept in range(probes.count)], axis=1)


def two_groups(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Divide values by a mixture of two normal distributions.

    Parameters
    ----------
    values
        (n,)

    Returns
    -------
    probability : numpy.ndarray
        (n,) of belonging to the upper group; it never falls as the value rises beyond either mean.
    separation : float
        Distance of the means over the root mean square of the standard deviations (Ashman, Bird and Zepf, Astronomical Journal
        108, 1994, 2348-2361); 0 for constant values.
    """
    spread = float(values.std())
    if len(values) < 4 or spread <= 1e-12:
        return np.zeros(len(values)), 0.0
    upper = np.where(values > otsu(values)[0], 1.0 - 1e-3, 1e-3)
    high = low = 0.0
    floor, wide, narrow = (_LEAST * spread) ** 2, 1.0, 1.0
    for _ in range(_STEPS):
        share = float(np.clip(upper.mean(), 1e-6, 1 - 1e-6))
        inside, outside = max(float(upper.sum()), 1e-9), max(float((1 - upper).sum()), 1e-9)
        high, low = float((upper * values).sum()) / inside, float(((1 - upper) * values).sum()) / outside
        wide = max(float((upper * (values - high) ** 2).sum()) / inside, floor)
        narrow = max(float(((1 - upper) * (values - low) ** 2).sum()) / outside, floor)
        upper = _posterior(values, share, (high, wide), (low, narrow))
    if high <= low:
        return np.zeros(len(values)), 0.0
    # Where one group is much wider, its tail would claim values on the far side of the other.
    ends = _posterior(np.array([low, high]), share, (high, wide), (low, narrow))
    upper = np.where(values < low, np.minimum(upper, ends[0]), np.where(values > high, np.maximum(upper, ends[1]), upper))
    return upper, (high - low) / float(np.sqrt((wide + narrow) / 2.0))


def _posterior(values: np.ndarray, share: float, upper: tuple[float, float], lower: tuple[float, float]) -> np.ndarray:
    """Probability of the upper of two normal distributions, each given by mean and variance."""
    odds = np.log(share / (1.0 - share)) - 0.5 * np.log(upper[1] / lower[1])
    odds = odds - 0.5 * (values - upper[0]) ** 2 / upper[1] + 0.5 * (values - lower[0]) ** 2 / lower[1]
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -50.0, 50.0))))
