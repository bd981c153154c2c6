"""Which words of a vocabulary a component aligns with most, and how far random reference samples get with the same vocabulary.

Pure functions of arrays; nothing of size components x words is ever kept. Shapes use K components, V words, S random sets of m
crops each, M random crops, d dimensions. The null hypothesis is that of `semlens_audit.calibration`: the reference samples are m
random samples of the data set. Rejecting it says that the component prefers what the foundation model puts near the word; whether the
foundation model has learned the word is another question, which no statistic of the components answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from semlens_audit.scores import unit

__all__ = ["Nearest", "WordBlock", "label_words", "set_sizes", "tail_p"]

_COMPONENTS = 4096
"""Components that are held against a block of words at a time."""

_SPARE = 8
"""Words that are compared again in float64 beyond those asked for, so that rounding in float32 decides nothing."""

_PAIRS = 4096
_DRAWN = 1000
_SCATTER = 1e-9
"""Deviation that rounding alone may leave."""

_SERIES = (2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 38, 48, 60, 76, 96, 120, 150, 190, 240, 300, 380, 480, 600, 760, 1000)
"""Sizes of random sets besides the layer's usual one, in steps of at most a quarter or one."""

_TAIL = 0.1
"""Share of the largest values of random sets from which the tail is continued."""


@dataclass(frozen=True)
class WordBlock:
    """Some words of a vocabulary.

    Parameters
    ----------
    first
        Position of the first in the vocabulary.
    directions
        (n, d) float32. The alignment of a component is ``unit(theta - origin) . direction``.
    pictured
        Whether the words are given by example images and the origin is the centre of the layer's random crops; for words that the
        foundation model has read it is zero.
    """

    first: int
    directions: np.ndarray
    pictured: bool = False


@dataclass(frozen=True)
class Nearest:
    """The words that stand out most for each component, highest z first.

    Parameters
    ----------
    words
        (K, top) int64 positions in the vocabulary; -1 where it has fewer words and for components that were not asked about.
    alignment, z
        (K, top) float64, NaN where there is no word. z is against the same word's alignment with random sets of as many crops.
    p
        (K, top) float64: probability that the *best* of all words reaches this z with random reference samples. It accounts for the
        size of the vocabulary and for how alike its words are.
    """

    words: np.ndarray
    alignment: np.ndarray
    z: np.ndarray
    p: np.ndarray


def set_sizes(counts: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Size of the random sets that each component is held against.

    Parameters
    ----------
    counts
        (K,) independent reference samples of each component.
    eligible
        (K,) bool: components that can have a label, with two samples or more.

    Returns
    -------
    numpy.ndarray
        (K,) int64: the usual number itself, else the next lower one of a series, since small sets scatter more and a null that
        scatters too much calls nothing significant wrongly. 0 where not eligible.
    """
    if not eligible.any():
        return np.zeros(len(counts), dtype=np.int64)
    usual = max(round(float(np.median(counts[eligible]))), 2)
    series = np.array(sorted({usual, *_SERIES}))
    # Rounding of a ratio of squares must not make 29.999 of 30.
    place = np.searchsorted(series, np.maximum(counts, 2.0) + 1e-9, side="right") - 1
    return np.where(eligible, series[place], 0).astype(np.int64)


def tail_p(maxima: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Probability that a random set's best word reaches z.

    The share of random sets that do, counting the component itself (Phipson and Smyth 2010): ``(1 + #{s: M_s >= z}) / (1 + S)``. A
    share cannot fall below 1 / (S + 1), too coarse for many components at once. Beyond the largest tenth the tail is therefore
    continued as an exponential with the mean excess of that tenth (Knijnenburg et al., Bioinformatics 25:i161, 2009, with the shape
    of the generalised Pareto distribution held at 0). Maxima of nearly normal values fall off faster, so that the continuation errs
    towards larger p. The mean excess is taken one standard error larger than it was found.

    Parameters
    ----------
    maxima
        (S,) largest z over the vocabulary of each random set.
    z
        Of any shape.

    Returns
    -------
    numpy.ndarray
        Same shape, above 0 and at most 1; never increasing with z; NaN where z is.
    """
    ordered = np.sort(maxima)
    sets = len(ordered)
    empirical = np.where(np.isnan(z), np.nan, (1.0 + sets - np.searchsorted(ordered, z, side="left")) / (1.0 + sets))
    over = int(_TAIL * sets)
    if over < 10:
        return empirical
    start = float(ordered[-over - 1])
    scale = float((ordered[-over:] - start).mean()) * (1.0 + over**-0.5)
    if scale <= 0.0:
        return empirical
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = (1.0 + over) / (1.0 + sets) * np.exp(-(z - start) / scale)
    return np.where(z > start, np.maximum(beyond, np.finfo(float).tiny), empirical)


def _set_means(pool: np.ndarray, size: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """(S, d) means of random sets as seen from a limited pool.

    Sets are drawn with replacement: drawn without, large ones would share most of the pool and differ less than sets of the data do.
    A component's samples come from the data and not from the pool, whose mean is off by chance too: to each set is added by how much
    the mean of a resampled pool is (bootstrap), which makes the variance ``(1/m + 1/M)`` times that of a crop. Without it, the best of
    many words is the one that the pool happens to have too little of.
    """
    even, out = np.full(len(pool), 1.0 / len(pool)), np.empty((sets, pool.shape[1]))
    for start in range(0, sets, _DRAWN):
        some = min(_DRAWN, sets - start)
        weights = rng.multinomial(size, even, size=some) / size
        weights += rng.multinomial(len(pool), even, size=some) / len(pool) - even
        out[start : start + some] = weights @ pool
    return out


class _Null:
    """What random sets of one size reach with every word: mean and deviation per word, largest z per set."""

    def __init__(self, pool: np.ndarray, centre: np.ndarray, size: int, sets: int, words: int, rng: np.random.Generator) -> None:
        means = _set_means(pool, size, sets, rng)
        self._means = {False: unit(means), True: unit(means - centre)}
        self.mean, self.deviation = np.empty(words), np.empty(words)
        self.maxima = np.full(sets, -np.inf)

    def take(self, block: WordBlock) -> tuple[np.ndarray, np.ndarray]:
        """(n, d) and (n,) float32: directions and offsets with which ``u . direction + offset`` is the z of a unit vector u."""
        directions = block.directions.astype(np.float64)
        reached = self._means[block.pictured] @ directions.T
        mean, deviation = reached.mean(axis=0), reached.std(axis=0, ddof=1)
        # Where random sets do not differ nothing can be called unusual.
        usable = deviation > _SCATTER
        scale = np.where(usable, 1.0 / np.maximum(deviation, _SCATTER), 0.0)
        reached -= mean
        reached *= scale
        np.maximum(self.maxima, reached.max(axis=1), out=self.maxima)
        part = slice(block.first, block.first + len(directions))
        self.mean[part], self.deviation[part] = mean, np.where(usable, deviation, np.inf)
        return (directions * scale[:, None]).astype(np.float32), (-mean * scale).astype(np.float32)


def label_words(
    concepts: np.ndarray, sizes: np.ndarray, pool: np.ndarray, blocks: Callable[[], Iterator[WordBlock]], words: int, *, top: int,
    sets: int, generator: Callable[[int], np.random.Generator], advance: Callable[[int], object] = lambda _words: None,
) -> Nearest:  # fmt: skip
    """The words with which components align most beyond what random reference samples reach.

    Words are ranked by z and not by the alignment itself, since random crops already align with some words more than with others. p
    compares with the largest z over the whole vocabulary in the same random sets (single-step maxT of Westfall and Young 1993), so
    that a longer vocabulary, or one full of synonyms, does not make labels easier to get.

    All pairs are compared in float32; the `top` and some more are compared again in float64 and ranked by that, so that the result
    depends neither on the blocks nor on the other components.

    Parameters
    ----------
    concepts
        (K, d) concept embeddings, not necessarily of unit length.
    sizes
        (K,) crops in a component's random sets, see `set_sizes`; 0: it is not asked about.
    pool
        (M, d) embeddings of the layer's random crops.
    blocks
        Gives all words in the same blocks whenever it is called: once to compare, once to compare again. Words are ordered by their
        text, so that of equal z the one that comes first in the dictionary goes first, whatever file they were read from.
    words
        V.
    top
        Words to return for each component, at least 1.
    sets
        Random sets S, at least 2.
    generator
        Random generator for sets of a size.
    advance
        Is told of words that are done with, each of them once.

    Raises
    ------
    ValueError
        The pool holds fewer crops than a set.
    """
    components, kept = len(concepts), min(top + _SPARE, words)
    if sizes.max(initial=0) > len(pool):
        raise ValueError(f"{len(pool)} random crops are too few for sets of {sizes.max()}")
    pool = pool.astype(np.float64)
    centre = pool.mean(axis=0) if len(pool) else np.zeros(concepts.shape[1])
    exact = concepts.astype(np.float64)
    units = {False: unit(exact), True: unit(exact - centre)}
    single = {pictured: vectors.astype(np.float32) for pictured, vectors in units.items()}
    nulls = {int(size): _Null(pool, centre, int(size), sets, words, generator(int(size))) for size in np.unique(sizes[sizes > 0])}
    best = np.full((components, kept), -np.inf, dtype=np.float32)
    which = np.full((components, kept), -1, dtype=np.int64)
    for block in blocks():
        for size, null in nulls.items():
            directions, offset = null.take(block)
            rows = np.flatnonzero(sizes == size)
            for start in range(0, len(rows), _COMPONENTS):
                some = rows[start : start + _COMPONENTS]
                z = single[block.pictured][some] @ directions.T
                z += offset
                _merge(best, which, some, z, block.first)
        advance(len(block.directions))
    found = _compared_again(units, which, blocks)
    out = Nearest(np.full((components, top), -1), *(np.full((components, top), np.nan) for _ in range(3)))
    for size, null in nulls.items():
        _rank(out, np.flatnonzero(sizes == size), which, found, null)
    return out


def _merge(best: np.ndarray, which: np.ndarray, rows: np.ndarray, z: np.ndarray, first: int) -> None:
    """Take the words of a block into the best ones of some components, in place."""
    kept = best.shape[1]
    better = z.max(axis=1) > best[rows].min(axis=1)
    if not better.any():
        return
    rows, z = rows[better], z[better]
    if z.shape[1] > kept:
        columns = np.argpartition(z, -kept, axis=1)[:, -kept:]
        z = np.take_along_axis(z, columns, axis=1)
    else:
        columns = np.broadcast_to(np.arange(z.shape[1]), z.shape)
    values = np.concatenate([best[rows], z], axis=1)
    places = np.concatenate([which[rows], columns + first], axis=1)
    chosen = np.argpartition(values, -kept, axis=1)[:, -kept:]
    best[rows] = np.take_along_axis(values, chosen, axis=1)
    which[rows] = np.take_along_axis(places, chosen, axis=1)


def _compared_again(
    units: dict[bool, np.ndarray], which: np.ndarray, blocks: Callable[[], Iterator[WordBlock]]
) -> np.ndarray:
    """(K, kept) float64 alignment with the words that were kept."""
    out = np.full(which.shape, np.nan)
    rows, slots = np.nonzero(which >= 0)
    places = which[rows, slots]
    order = np.argsort(places, kind="stable")
    rows, slots, places = rows[order], slots[order], places[order]
    for block in blocks():
        ends = np.searchsorted(places, [block.first, block.first + len(block.directions)])
        for start in range(int(ends[0]), int(ends[1]), _PAIRS):
            part = slice(start, min(start + _PAIRS, int(ends[1])))
            directions = block.directions[places[part] - block.first].astype(np.float64)
            out[rows[part], slots[part]] = np.einsum("nd,nd->n", units[block.pictured][rows[part]], directions)
    return out


def _rank(out: Nearest, rows: np.ndarray, which: np.ndarray, alignment: np.ndarray, null: _Null) -> None:
    """Write the first words of some components, in place."""
    places, aligned = which[rows], alignment[rows]
    known = places >= 0
    z = np.where(known, (aligned - null.mean[places]) / null.deviation[places], -np.inf)
    # Rounded: what differs by less than the arithmetic says counts as equal, and goes by the order of the words.
    order = np.lexsort((places, -np.round(z, 9)), axis=1)[:, : out.words.shape[1]]
    columns = np.arange(order.shape[1])
    kept = np.take_along_axis(known, order, axis=1)
    ranked = np.where(kept, np.take_along_axis(z, order, axis=1), np.nan)
    at = np.ix_(rows, columns)
    out.words[at] = np.where(kept, np.take_along_axis(places, order, axis=1), -1)
    out.alignment[at] = np.take_along_axis(aligned, order, axis=1)
    out.z[at] = ranked
    out.p[at] = tail_p(null.maxima, ranked)
