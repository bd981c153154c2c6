"""The two sides of a comparison of layers: held against chance, and drawn anew.

Shapes use K and L components of the first and second layer, B draws, P pairs, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.atlas.matching import Chance, beyond_chance, chance_clarity, chance_matches
from semlens_audit.atlas.meanings import Meanings, draw_weights, recentred
from semlens_audit.atlas.opening import Atlas
from semlens_audit.draws import generator
from semlens_audit.flow import ClassFlow, Flows
from semlens_audit.neighbours import best_match, drawn_matches
from semlens_audit.plan import AuditPlan
from semlens_audit.resampling import resampled_clarity

__all__ = ["Drawn", "Held", "draw_matches", "hold"]

_CHUNK = 256


@dataclass(frozen=True)
class Held:
    """One side of a comparison.

    Parameters
    ----------
    meanings, directions
        The layer's components; (K, d) their directions from the centre of random crops.
    sizes
        (K,) int64 independent reference samples.
    nearest, similarity
        (K,) the most similar component of the other side, and its cosine from the centres; -1 and NaN without any.
    plain
        (K,) the largest cosine of the embeddings as they are.
    chance, clear
        Held against random sets: similarity, and clarity.
    null
        Mean over random sets of the best match from the centre, and of the same as SemanticLens has it.
    flow
        Where the class's relevance flows; None without a class or samples of it.
    """

    meanings: Meanings
    directions: np.ndarray
    sizes: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    plain: np.ndarray
    chance: Chance
    clear: Chance
    null: tuple[float | None, float | None]
    flow: ClassFlow | None


@dataclass(frozen=True)
class Drawn:
    """Similarities under resampled reference samples, with the estimates as their means.

    Parameters
    ----------
    plain, centred
        For either side (B, K): cosine with the most similar component of the other, as embeddings are and from the centres; NaN
        where there is none.
    pairs
        (B, P): cosines of the pairs from the centres.
    """

    plain: tuple[np.ndarray, np.ndarray]
    centred: tuple[np.ndarray, np.ndarray]
    pairs: np.ndarray


def hold(
    atlases: tuple[Atlas, Atlas], layers: tuple[str, str], plans: tuple[AuditPlan, AuditPlan], class_name: str | None
) -> tuple[Held, Held]:
    """Both sides, each held against random reference sets.

    Parameters
    ----------
    plans
        Whose seeds the bootstrap of either side takes; the same where both are resampled together.
    """
    meanings = [
        Meanings(atlas, layer, draw_weights(plan)) for atlas, layer, plan in zip(atlases, layers, plans, strict=True)
    ]
    first, second = (
        _side(atlases[at], plans[at], meanings[at], meanings[1 - at], class_name, ("first", "second")[at]) for at in (0, 1)
    )
    return first, second


def _side(atlas: Atlas, plan: AuditPlan, own: Meanings, other: Meanings, class_name: str | None, name: str) -> Held:
    directions, others = own.directions(own.centre), other.directions(other.centre)
    sizes = np.maximum(np.rint(own.counts), 1).astype(np.int64)
    nearest, similarity = best_match(directions, others, own.known, other.known)
    plain = best_match(own.directions(0.0), other.directions(0.0), own.known, other.known)[1]
    held, rate = sizes[np.isfinite(similarity)], atlas.plan.audit.measurement.false_discovery_rate
    null: dict[int, np.ndarray] = {}
    means: tuple[float | None, float | None] = (None, None)
    if len(held):
        usual = np.array([round(float(np.median(held)))])
        rng = generator(atlas.plan, "compare", name, own.layer)
        null = chance_matches(own.pool, own.centre, others[other.known], held, rng)
        typical = null.get(int(usual[0]))
        if typical is None:
            typical = chance_matches(own.pool, own.centre, others[other.known], usual, rng)[int(usual[0])]
        flat = chance_matches(own.pool, np.zeros_like(own.centre), other.directions(0.0)[other.known], usual, rng)
        means = (float(typical.mean()), float(flat[int(usual[0])].mean()))
    clarity = _clarity(own)
    random_clarity = chance_clarity(own.pool, sizes[np.isfinite(clarity)], generator(atlas.plan, "clear", name, own.layer))
    flow = None
    if class_name is not None:
        place = list(atlas.plan.spec.classes).index(class_name)
        flow = Flows(plan, atlas.evidence).of(atlas.layers[own.layer], place)
        flow = flow if flow.samples else None
    return Held(
        own,
        directions,
        sizes,
        nearest,
        similarity,
        plain,
        beyond_chance(similarity, sizes, null, rate),
        beyond_chance(clarity, sizes, random_clarity, rate),
        means,
        flow,
    )


def _clarity(own: Meanings) -> np.ndarray:
    """(K,) clarity; NaN without two independent reference samples."""
    out, enough = np.full(own.components, np.nan), own.known & (own.counts >= 2)
    every = own.embeddings
    for start in range(0, own.components, _CHUNK):
        rows = start + np.flatnonzero(enough[start : start + _CHUNK])
        if len(rows):
            even = own.present[rows] / own.present[rows].sum(axis=1, keepdims=True)
            out[rows] = resampled_clarity(every[rows], even[:, None], own.units[rows])[:, 0]
    return out


def draw_matches(sides: tuple[Held, Held], pairs: tuple[np.ndarray, np.ndarray]) -> Drawn:
    """Similarities of both sides and of pairs in each draw of the bootstrap."""
    left, right = sides
    draws = left.meanings.weights.draws
    known = (np.flatnonzero(left.meanings.known), np.flatnonzero(right.meanings.known))
    blank = tuple(np.full((draws, side.meanings.components), np.nan) for side in sides)
    if not len(known[0]) or not len(known[1]):
        return Drawn((blank[0], blank[1]), (blank[0], blank[1]), np.empty((draws, 0)))
    drawn = zip(left.meanings.drawn(), right.meanings.drawn(), strict=True)
    found = drawn_matches(
        ((one[known[0]], other[known[1]]) for one, other in drawn),
        (left.meanings.centre, right.meanings.centre),
        (np.searchsorted(known[0], pairs[0]), np.searchsorted(known[1], pairs[1])),
    )

    def spread(side: Held, places: np.ndarray, value: np.ndarray, moved: np.ndarray) -> np.ndarray:
        out = np.full((draws, side.meanings.components), np.nan)
        out[:, places] = recentred(value[places], moved.astype(np.float64), side.meanings.factor[places])
        return out

    cosine = (left.directions[pairs[0]] * right.directions[pairs[1]]).sum(axis=1)
    factor = np.maximum(left.meanings.factor[pairs[0]], right.meanings.factor[pairs[1]])
    return Drawn(
        (spread(left, known[0], left.plain, found.forth), spread(right, known[1], right.plain, found.back)),
        (
            spread(left, known[0], left.similarity, found.forth_centred),
            spread(right, known[1], right.similarity, found.back_centred),
        ),
        recentred(cosine, found.pairs.astype(np.float64), factor),
    )
