"""Polysemanticity of components: how far apart the two groups lie into which their reference samples fall.

Pure functions of NumPy arrays. Shapes use K components, m reference samples, d embedding dimensions, B draws, S starts. Everything
is computed from inner products among a component's reference samples, so that its cost does not grow with d under resampling.
SemanticLens stands for Dreyer et al., arXiv 2501.05398.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.scores import gram
from semlens_audit.units import all_different

__all__ = ["Halves", "halves", "polysemanticity", "polysemanticity_and_draws", "resampled_polysemanticity"]

_ROUNDS = 100
_MOVES = 10
_TIED = 1e-9
"""Difference, in squared length of unit vectors, below which rounding alone would decide."""
_CHUNK = 64


@dataclass(frozen=True)
class Halves:
    """The best division of each component's reference samples into two groups.

    Parameters
    ----------
    first
        (K, m) bool: samples of the first group; the other samples that are present form the second. Which one is the first has no
        meaning.
    spread
        (K,) float64 mean squared distance of the samples to the centre of their group, 0 to 1; NaN without two samples.
    """

    first: np.ndarray
    spread: np.ndarray


def polysemanticity(embeddings: np.ndarray, present: np.ndarray, units: np.ndarray | None = None) -> np.ndarray:
    """``1 - cos(mu_1, mu_2)`` of the centres of the two groups of reference samples (SemanticLens, k-means with k = 2).

    Where a group has fewer than two members, the samples do not fall into groups, and ``1 - mean_i cos(mean v, v_i)`` stands instead
    (SemanticLens, released code), over all samples rather than ten of them. A cosine below 0 counts as 0, "nothing in common", so
    that the value stays in its range; in the released code it can exceed 1.

    Parameters
    ----------
    embeddings
        (K, m, d) unit length.
    present
        (K, m) bool, False where a component has fewer than m reference samples.
    units
        (K, m) independent unit of each sample: several pictures of one unit count as one member. Left out, every sample is its own.

    Returns
    -------
    numpy.ndarray
        (K,) float64 in [0, 1]; NaN for fewer than two reference samples.
    """
    out = np.full(len(embeddings), np.nan)
    for start in range(0, len(embeddings), _CHUNK):
        part = slice(start, start + _CHUNK)
        inner, here = gram(np.ascontiguousarray(embeddings[part])), present[part]
        own = None if units is None else units[part]
        weights = here.astype(np.float64)[:, None]
        found = _divide(inner, here)
        out[part] = _score(inner, here, weights, found.first[:, None], own)[:, 0]
    return out


def resampled_polysemanticity(
    embeddings: np.ndarray, present: np.ndarray, weights: np.ndarray, units: np.ndarray | None = None
) -> np.ndarray:
    """Polysemanticity under resampled reference samples; in each draw the groups form anew, from those of the point estimate.

    Parameters
    ----------
    embeddings, present, units
        As in `polysemanticity`.
    weights
        (K, B, m) non-negative; 0 where no sample is present.

    Returns
    -------
    numpy.ndarray
        (K, B) float64 in [0, 1]; NaN for fewer than two reference samples.
    """
    return polysemanticity_and_draws(embeddings, present, weights, units)[1]


def polysemanticity_and_draws(
    embeddings: np.ndarray, present: np.ndarray, weights: np.ndarray, units: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`polysemanticity` and `resampled_polysemanticity`, for which the groups are looked for once.

    Parameters
    ----------
    embeddings, present, weights, units
        As in `resampled_polysemanticity`.

    Returns
    -------
    value : numpy.ndarray
        (K,) float64 in [0, 1]; NaN for fewer than two reference samples.
    draws : numpy.ndarray
        (K, B) float64 likewise.
    """
    value, draws = np.full(len(embeddings), np.nan), np.full(weights.shape[:2], np.nan)
    for start in range(0, len(embeddings), _CHUNK):
        part = slice(start, start + _CHUNK)
        inner, here = gram(np.ascontiguousarray(embeddings[part])), present[part]
        own = None if units is None else units[part]
        first = _divide(inner, here).first[:, None]
        value[part] = _score(inner, here, here.astype(np.float64)[:, None], first, own)[:, 0]
        drawn = weights[part].astype(np.float64) * here[:, None]
        settled, _ = _settle(inner, drawn, np.broadcast_to(first, drawn.shape))
        draws[part] = _score(inner, here, drawn, settled, own)
    return value, draws


def halves(embeddings: np.ndarray, present: np.ndarray) -> Halves:
    """The two groups into which each component's reference samples fall: k-means with k = 2.

    Lloyd's iteration from m + 1 starts that depend on neither chance nor order: each sample with the one farthest from it, and the
    division by the sign of the first principal component, which relaxes the optimum (Ding and He 2004). Where it has settled, the one
    sample whose change of group gains most is moved, and it goes on (Hartigan and Wong 1979). The best end is taken.

    Parameters
    ----------
    embeddings, present
        As in `polysemanticity`.
    """
    found = [
        _divide(gram(np.ascontiguousarray(embeddings[at : at + _CHUNK])), present[at : at + _CHUNK])
        for at in range(0, len(embeddings), _CHUNK)
    ]
    if not found:
        return Halves(np.zeros(present.shape, dtype=bool), np.zeros(0))
    return Halves(np.concatenate([one.first for one in found]), np.concatenate([one.spread for one in found]))


def _divide(inner: np.ndarray, present: np.ndarray) -> Halves:
    """`halves` from inner products (K, m, m)."""
    weights = np.broadcast_to(present[:, None].astype(np.float64), (len(present), present.shape[1] + 1, present.shape[1]))
    first, held = _settle(inner, weights, _starts(inner, present))
    for _ in range(_MOVES):
        moved = _moved(inner, weights, first)
        if np.array_equal(moved, first):
            break
        first, held = _settle(inner, weights, moved)
    # Of ends that differ by rounding only, the one with the less polysemantic groups: it claims less.
    scored = _score(inner, present, weights, first, None)
    best = held.max(axis=1, keepdims=True)
    chosen = np.where(held >= best - _TIED, np.nan_to_num(scored, nan=np.inf), np.inf).argmin(axis=1)
    rows = np.arange(len(present))
    count = present.sum(axis=1)
    total = np.einsum("kmm,km->k", inner, present)
    spread = np.divide(total - held[rows, chosen], count, out=np.full(len(count), np.nan), where=count >= 2)
    return Halves(first[rows, chosen] & present, np.maximum(spread, 0.0, out=spread, where=count >= 2))


def _starts(inner: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(K, m + 1, m) bool: first groups to start from."""
    square = np.einsum("kmm->km", inner)
    apart = square[:, :, None] + square[:, None, :] - 2.0 * inner
    farthest = np.where(present[:, None, :], apart, -np.inf).argmax(axis=2)
    other = np.take_along_axis(apart, farthest[:, :, None], axis=1)
    pairs = apart < other
    weights = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
    row = np.einsum("kmn,kn->km", inner, weights)
    centred = inner - row[:, :, None] - row[:, None, :] + np.einsum("km,km->k", row, weights)[:, None, None]
    axes = np.linalg.eigh(centred * present[:, :, None] * present[:, None, :])[1]
    return np.concatenate([pairs, (axes[:, :, -1] > 0)[:, None]], axis=1)


def _settle(inner: np.ndarray, weights: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iteration for weighted samples until no sample changes its group.

    Parameters
    ----------
    inner
        (K, m, m)
    weights
        (K, S, m)
    first
        (K, S, m) bool: the groups to start from.

    Returns
    -------
    first : numpy.ndarray
        (K, S, m) bool: the groups at the end.
    held : numpy.ndarray
        (K, S) ``sum_c W_c |mu_c|^2``, which the best division maximises; -inf where a group holds no weight.
    """
    first, held = first.copy(), np.full(first.shape[:2], -np.inf)
    rows, places = np.arange(len(first))[:, None], np.tile(np.arange(first.shape[1]), (len(first), 1))
    own, own_inner, every = weights, inner, np.matmul(weights, inner)
    for _ in range(_ROUNDS):
        before = first[rows, places]
        after, held[rows, places] = _nearest(own, before, own_inner, every)
        changed = (after != before).any(axis=-1)
        going = changed.any(axis=1)
        if not going.any():
            break
        first[rows, places] = after
        # What has settled stays: only the divisions that go on are looked at again, as many of each component as of the busiest.
        order = np.argsort(~changed[going], axis=1, kind="stable")[:, : int(changed.sum(axis=1).max())]
        chosen = np.flatnonzero(going)[:, None]
        own, every, places = own[chosen, order], every[chosen, order], places[chosen, order]
        rows, own_inner = rows[going], own_inner[going]
    return first, held


def _nearest(weights: np.ndarray, first: np.ndarray, inner: np.ndarray, every: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each sample in the group whose centre is nearer, as (K, S, m) bool; and ``sum_c W_c |mu_c|^2`` of the groups given, (K, S)."""
    dots, (mass, other_mass), (size, other_size) = _groups(weights, first, inner, every)
    divided = (mass > 0) & (other_mass > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # |v - mu_2|^2 - |v - mu_1|^2: positive in the first group.
        nearer = dots * (2.0 / mass + 2.0 / other_mass)[..., None]
        nearer -= every * (2.0 / other_mass)[..., None]
        nearer += (other_size / other_mass**2 - size / mass**2)[..., None]
        held = np.where(divided, size / mass + other_size / other_mass, -np.inf)
        # What lies in the middle stays: it would otherwise change its group for ever.
        after = (nearer > 0) & (np.abs(nearer) > _TIED) | first & ~(np.abs(nearer) > _TIED)
    return np.where(divided[..., None], after & (weights > 0), first), held


def _moved(inner: np.ndarray, weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The same groups, the sample moved whose change of group lowers the squared distances most; none where none lowers them."""
    every, square = np.matmul(weights, inner), np.einsum("kmm->km", inner)[:, None]
    dots, (mass, other_mass), (size, other_size) = _groups(weights, first, inner, every)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = square - 2.0 * dots / mass[..., None] + (size / mass**2)[..., None]
        far = square - 2.0 * (every - dots) / other_mass[..., None] + (other_size / other_mass**2)[..., None]
        own, own_mass = np.where(first, near, far), np.where(first, mass[..., None], other_mass[..., None])
        next_, next_mass = np.where(first, far, near), np.where(first, other_mass[..., None], mass[..., None])
        gain = weights * (own * own_mass / (own_mass - weights) - next_ * next_mass / (next_mass + weights))
    gain = np.where((weights > 0) & (own_mass - weights > _TIED) & (next_mass > 0), gain, -np.inf)
    place = gain.argmax(axis=-1)[..., None]
    better = np.take_along_axis(gain, place, axis=-1) > _TIED
    moved = first.copy()
    np.put_along_axis(moved, place, np.take_along_axis(first, place, axis=-1) ^ better, axis=-1)
    return moved


def _groups(
    weights: np.ndarray, first: np.ndarray, inner: np.ndarray, every: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Inner products with the sum of the first group, masses of both groups, squared lengths of both sums."""
    one = weights * first
    dots = np.matmul(one, inner)
    size, with_all, whole = _products(one, dots), _products(one, every), _products(weights, every)
    masses = _sums(one), _sums(weights - one)
    return dots, masses, (np.maximum(size, 0.0), np.maximum(whole - 2.0 * with_all + size, 0.0))


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(K, S) inner products of the rows of two (K, S, m)."""
    return np.einsum("ksm,ksm->ks", one, other)


def _sums(values: np.ndarray) -> np.ndarray:
    """(K, S) sums of the rows of (K, S, m), each by itself: numpy's own sum over so short an axis takes several times as long."""
    return np.einsum("ksm->ks", values)


def _score(
    inner: np.ndarray, present: np.ndarray, weights: np.ndarray, first: np.ndarray, units: np.ndarray | None
) -> np.ndarray:
    """(K, S) polysemanticity of given groups."""
    every = np.matmul(weights, inner)
    dots, masses, sizes = _groups(weights, first, inner, every)
    cross = _products(weights * first, every - dots)
    length = np.sqrt(sizes[0] * sizes[1])
    cosine = np.divide(cross, length, out=np.zeros_like(cross), where=length > _TIED**2)
    mass = masses[0] + masses[1]
    whole = np.sqrt(np.maximum(_products(weights, every), 0.0))
    alike = np.divide(whole, mass, out=np.zeros_like(whole), where=mass > 0)
    inside = first & present[:, None]
    members = [_members(part, units) for part in (inside, present[:, None] & ~inside)]
    grouped = (members[0] >= 2) & (members[1] >= 2)
    value = 1.0 - np.clip(np.where(grouped, cosine, alike), 0.0, 1.0)
    enough = _members(present[:, None], units) >= 2
    return np.where(np.broadcast_to(enough, value.shape), value, np.nan)


def _members(inside: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """(K, S) independent samples of a group (K, S, m)."""
    here = inside.astype(np.float64)
    if units is None or all_different(units):
        return _sums(here)
    same = (units[:, :, None] == units[:, None, :]).astype(np.float64)
    fellows = np.matmul(here, same)
    return np.rint(_sums(np.divide(here, fellows, out=np.zeros_like(fellows), where=inside)))
