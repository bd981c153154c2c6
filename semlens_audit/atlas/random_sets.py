"""What random reference sets of a layer reach: whether a component is nearer to a direction than chance would bring it.

The null hypothesis is that of the audit, see `semlens_audit.calibration`: a component's reference samples are n random samples of the
data. The sets and their embeddings' lengths do not depend on what is looked for, so they are found once and serve any number of
directions: each then costs one product with the random crops.

Shapes use M random crops, S random sets, n reference samples a set, d dimensions.
"""

from __future__ import annotations

import numpy as np

from semlens_audit.draws import generator
from semlens_audit.plan import AuditPlan
from semlens_audit.scores import EPSILON, unit
from semlens_audit.statistics import normal_tail

__all__ = ["Null", "RandomSets", "adjusted", "set_sizes", "tail"]

_SCATTER = 1e-9
"""Deviation that rounding alone may leave."""
_ALMOST_ONE = 1.0 - 1e-9
_ROWS = 64
"""Sets whose mean embeddings are in memory at a time."""


class Null:
    """Distribution of the similarity of random sets of one size with one direction.

    Parameters
    ----------
    values
        (S,) cosines of random sets.
    centred
        Whether they are seen from the centre of the random crops. Random sets then point anywhere, and where crops vary in few ways
        only they reach cosines from which 1 is few deviations away. Such cosines are compared after Fisher's transformation (artanh),
        which makes them nearly normal and has no upper end (Fisher, "On the 'probable error' of a coefficient of correlation", 1921).
    """

    def __init__(self, values: np.ndarray, centred: bool) -> None:
        self.expected = float(values.mean())
        """Mean cosine of random sets."""
        self._centred = centred
        scaled = self._scaled(values)
        self._mean, self._deviation = float(scaled.mean()), float(scaled.std(ddof=1))
        standard = (scaled - self._mean) / max(self._deviation, _SCATTER)
        self.skewness = float((standard**3).mean()) if self._deviation > _SCATTER else 0.0

    def _scaled(self, similarity: np.ndarray) -> np.ndarray:
        if not self._centred:
            return np.asarray(similarity, dtype=np.float64)
        return np.asarray(np.arctanh(np.clip(similarity, -_ALMOST_ONE, _ALMOST_ONE)))

    def z(self, similarity: np.ndarray) -> np.ndarray:
        """Deviations above the mean, same shape; 0 where random sets do not differ, since nothing can then be called unusual."""
        scaled = self._scaled(similarity)
        return (scaled - self._mean) / self._deviation if self._deviation > _SCATTER else np.zeros_like(scaled)

    def p(self, similarity: np.ndarray) -> np.ndarray:
        """Probability that a random set comes as near, same shape, 0 to 1; see `tail`."""
        return tail(self.z(similarity), self.skewness)


class RandomSets:
    """Random reference sets of one layer.

    Parameters
    ----------
    plan
        The audit, whose seed and number of sets apply: of the audit's own layers these are the very sets that its run calibrates by.
    layer
        Name of the layer.
    pool
        (M, d) unit-length embeddings of random crops.
    """

    def __init__(self, plan: AuditPlan, layer: str, pool: np.ndarray) -> None:
        self._plan, self._layer, self._pool = plan, layer, pool
        self.centre: np.ndarray = pool.astype(np.float64).mean(axis=0)
        """(d,) mean embedding of the random crops."""
        self._drawn: dict[int, np.ndarray] = {}
        self._lengths: dict[tuple[int, bool], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._pool)

    def null(self, direction: np.ndarray, size: int, centred: bool) -> Null:
        """What random sets reach in a direction.

        Parameters
        ----------
        direction
            (d,)
        size
            n, reference samples of each set.
        centred
            Whether the sets' mean embeddings are seen from the centre of the random crops, or from the origin.

        Raises
        ------
        ValueError
            Fewer random crops than n.
        """
        return Null(self._reached(np.asarray(direction)[None], size, centred)[:, 0], centred)

    def nulls(self, directions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of what random sets reach, not centred, in each of (P, d) directions: (P,) and (P,)."""
        reached = self._reached(directions, size, centred=False)
        return reached.mean(axis=0), reached.std(axis=0, ddof=1)

    def _reached(self, directions: np.ndarray, size: int, centred: bool) -> np.ndarray:
        """(S, P) cosines of random sets with directions."""
        if len(self._pool) < size:
            raise ValueError(f"{len(self._pool)} random crops are too few for sets of {size}")
        wanted = unit(directions.astype(np.float64))
        along = self._pool.astype(np.float64) @ wanted.T
        if centred:
            along -= self.centre @ wanted.T
        sets = self._sets(size)
        parts = [along[sets[at : at + _ROWS]].mean(axis=1) for at in range(0, len(sets), _ROWS)]
        return np.asarray(np.concatenate(parts) / np.maximum(self._length(size, centred), EPSILON)[:, None])

    def _sets(self, size: int) -> np.ndarray:
        """(S, n) positions of random crops, with replacement; those of `semlens_audit.calibration.calibrate` for the same size."""
        if size not in self._drawn:
            rng = generator(self._plan, "null", self._layer, str(size))
            sets = self._plan.audit.measurement.null_sets
            drawn = np.stack([rng.integers(len(self._pool), size=size) for _ in range(sets)])
            self._drawn[size] = drawn.astype(np.int32)
        return self._drawn[size]

    def _length(self, size: int, centred: bool) -> np.ndarray:
        """(S,) lengths of the sets' mean embeddings."""
        if (size, centred) not in self._lengths:
            origin = self.centre if centred else 0.0
            sets = self._sets(size)
            parts = [
                np.linalg.norm(self._pool[sets[at : at + _ROWS]].astype(np.float64).mean(axis=1) - origin, axis=1)
                for at in range(0, len(sets), _ROWS)
            ]
            self._lengths[size, centred] = np.concatenate(parts)
        return self._lengths[size, centred]


def set_sizes(counts: np.ndarray, usual: int) -> np.ndarray:
    """Sizes of the random sets that components are held against, as the audit chooses them.

    Parameters
    ----------
    counts
        (K,) independent reference samples of each component.
    usual
        The number that most have.

    Returns
    -------
    numpy.ndarray
        (K,) `usual` itself, else the next lower of a series in steps of a tenth, at least 2: smaller sets scatter more, so that no
        component seems significant by it.
    """
    series = np.array(sorted({2, usual, *(int(1.1**step) for step in range(8, 80))}))
    return series[np.searchsorted(series, np.maximum(counts, 2), side="right") - 1]


def tail(z: np.ndarray, skewness: float) -> np.ndarray:
    """Upper tail of a standardised null distribution, same shape as `z`, 0 to 1.

    The larger of the normal tail and, for a null that is skewed to the right, that of a Pearson type III distribution of the same
    mean, variance and skewness (Kazi-Aoual et al. 1995; Winkler et al., "Faster permutation inference in brain imaging", 2016,
    section 2.5). What few images of the data hold makes random sets skewed: most sets have none of them and some have several, which
    the normal tail would call impossible.
    """
    normal = normal_tail(z)
    if skewness < 1e-3:
        return normal
    from scipy.special import gammaincc  # a tenth of a second, which a listing has no need of

    shape = 4.0 / skewness**2
    return np.asarray(np.maximum(normal, gammaincc(shape, np.maximum(shape + np.asarray(z) * np.sqrt(shape), 0.0))))


def adjusted(p: np.ndarray, searched: int) -> np.ndarray:
    """P-values adjusted for every component searched (Benjamini and Hochberg 1995), of the nearest ones only.

    The others count with p = 1, which is never less than their own: where p-values are made larger, the false-discovery rate is kept
    all the more.

    Parameters
    ----------
    p
        (n,) of the nearest components.
    searched
        Components searched, at least n.

    Returns
    -------
    numpy.ndarray
        (n,) at most 1.
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * searched / np.arange(1, len(p) + 1)
    out = np.empty(len(p))
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out
