"""The two sides of a comparison of layers: held against chance, drawn anew, and put into words.

Shapes use K and L components of the first and second layer, B draws, P pairs, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semlens_audit.atlas.compared import Pair, SetSimilarity, Side, Single, State, StateShare
from semlens_audit.atlas.matching import Chance, beyond_chance, chance_clarity, chance_matches
from semlens_audit.atlas.meanings import Meanings, draw_weights, recentred
from semlens_audit.atlas.neighbours import best_match, drawn_matches
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.shifts import Shift
from semlens_audit.draws import COSINE, SHARE, generator, interval
from semlens_audit.flow import ClassFlow, Flows
from semlens_audit.measured import Interval, Measurement
from semlens_audit.plan import AuditPlan
from semlens_audit.resampling import resampled_clarity
from semlens_audit.statistics import benjamini_hochberg, normal_tail

__all__ = ["Drawn", "Held", "describe_pairs", "draw_matches", "hold", "judge", "set_similarities", "state_shares"]

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


def describe_pairs(
    plan: AuditPlan,
    sides: tuple[Held, Held],
    pairs: tuple[np.ndarray, np.ndarray],
    drawn: np.ndarray,
    shifted: Sequence[Shift],
    *,
    paired: bool,
) -> list[Pair]:
    """The pairs, with what became of their relevance."""
    left, right = sides
    cosine = np.clip((left.directions[pairs[0]] * right.directions[pairs[1]]).sum(axis=1), *COSINE)
    changes: Sequence[Measurement | None] = [None] * len(cosine)
    adjusted = np.full(len(cosine), np.nan)
    if left.flow is not None and right.flow is not None:
        before, after = left.flow.mean[pairs[0]], right.flow.mean[pairs[1]]
        moved = right.flow.drawn[:, pairs[1]].astype(np.float64) - left.flow.drawn[:, pairs[0]]
        changes = [
            _change(plan, float(value), moved[:, at], min(left.flow.samples, right.flow.samples), paired=paired)
            for at, value in enumerate(after - before)
        ]
        adjusted = benjamini_hochberg(_p(after - before, moved.std(axis=0))) if len(cosine) else adjusted
    out = []
    for at, (i, j) in enumerate(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)):
        p = None if np.isnan(adjusted[at]) else float(adjusted[at])
        out.append(
            Pair(
                first=i,
                second=j,
                similarity=float(cosine[at]),
                interval=interval(plan, float(cosine[at]), drawn[:, at], "reference samples", COSINE),
                mutual=bool(left.nearest[i] == j and right.nearest[j] == i),
                first_share=None if left.flow is None else float(left.flow.mean[i]),
                second_share=None if right.flow is None else float(right.flow.mean[j]),
                change=changes[at],
                adjusted_p=p,
                changed=p is not None and p <= plan.audit.measurement.false_discovery_rate,
                first_concept=shifted[at].first if shifted else None,
                second_concept=shifted[at].second if shifted else None,
                shifted=bool(shifted) and shifted[at].shifted,
            )
        )
    return out


def _change(plan: AuditPlan, value: float, draws: np.ndarray, n: int, *, paired: bool) -> Measurement:
    over = "test samples, both sides together" if paired else "test samples, each side on its own"
    return Measurement(
        quantity="change of relevance", unit="difference", value=value, n=n, interval=interval(plan, value, draws, over, COSINE)
    )


def _p(value: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(P,) two-sided p-values of a normal distribution; 1 where nothing changed and nothing varies."""
    rounding = np.finfo(np.float32).eps
    z = np.divide(np.abs(value), deviation, out=np.where(np.abs(value) > rounding, np.inf, 0.0), where=deviation > rounding * 1e-3)
    return np.minimum(2.0 * normal_tail(z), 1.0)


def judge(
    plan: AuditPlan, name: Side, side: Held, drawn: np.ndarray, paired: np.ndarray, meant: Sequence[str | None]
) -> list[Single]:
    """The components without a partner, and what that means.

    A component is *lost* or *learned* where the whole interval of its similarity with the other layer is below what random reference
    sets reach, and its own reference samples are more alike than random crops.

    Parameters
    ----------
    drawn
        (B, K) similarities from the centres.
    paired
        Components that have a partner.
    meant
        Concept that most of each component is counted for, if any.
    """
    alone = np.setdiff1d(np.flatnonzero(side.meanings.known), paired)
    return [_single(plan, name, side, drawn[:, k], int(k), meant[k]) for k in alone]


def _single(plan: AuditPlan, name: Side, side: Held, drawn: np.ndarray, k: int, concept: str | None) -> Single:
    similarity, level = float(side.similarity[k]), float(side.chance.level[k])
    apart: State = "lost" if name == "first" else "learned"
    state: State
    spread: Interval | None = None
    if np.isnan(similarity):
        state, reason = apart, "the other layer has no component with reference samples"
    else:
        spread = interval(plan, similarity, drawn, "reference samples", COSINE)
        if similarity > level:
            state, reason = "shared", "its most similar component in the other layer is paired with another one, or needs more itself"
        elif spread.high > level:
            state, reason = "open", "its similarity is no better than chance, but its interval reaches beyond"
        else:
            state, reason = apart, "no component of the other layer is more similar to it than to random reference samples"
    if state == apart and not side.clear.significant[k]:
        state, reason = "open", "its own reference samples are no more alike than random crops, so that it has no meaning to look for"
    return Single(
        side=name,
        component=k,
        state=state,
        reason=reason,
        nearest=None if side.nearest[k] < 0 else int(side.nearest[k]),
        similarity=None if np.isnan(similarity) else similarity,
        interval=spread,
        level=None if np.isnan(level) else level,
        share=None if side.flow is None else float(side.flow.mean[k]),
        concept=concept,
    )


def state_shares(plan: AuditPlan, name: Side, side: Held, singles: Sequence[Single], pairs: Sequence[Pair]) -> list[StateShare]:
    """Components and relevance of each state of a side; states without a component are there too."""
    held: dict[State, list[int]] = {
        "matched": [], "shifted": [], "shared": [], "lost" if name == "first" else "learned": [], "open": []
    }  # fmt: skip
    for pair in pairs:
        held["shifted" if pair.shifted else "matched"].append(pair.first if name == "first" else pair.second)
    for single in singles:
        held[single.state].append(single.component)
    out = []
    for state, members in held.items():
        share = None
        if side.flow is not None:
            value = float(np.clip(side.flow.mean[members].sum(), *SHARE))
            draws = side.flow.drawn[:, members].sum(axis=1, dtype=np.float64)
            share = Measurement(
                quantity="share of relevance",
                unit="share",
                value=value,
                n=side.flow.samples,
                interval=interval(plan, value, draws, "test samples", SHARE),
            )
        out.append(StateShare(side=name, state=state, components=len(members), share=share))
    return out


def set_similarities(
    plan: AuditPlan, name: Side, side: Held, at: int, drawn: Drawn, class_name: str | None
) -> list[SetSimilarity]:
    """Mean best match of a side's components: from the origin and from the centre, plain and weighted by relevance.

    Parameters
    ----------
    at
        Place of the side in `drawn`.
    """
    tables: tuple[tuple[Literal["none", "centre"], np.ndarray, np.ndarray, float | None], ...] = (
        ("none", side.plain, drawn.plain[at], side.null[1]),
        ("centre", side.similarity, drawn.centred[at], side.null[0]),
    )
    flow, layer, out = side.flow, side.meanings.layer, []
    for origin, values, moved, chance in tables:
        even = (np.ones(len(values)), np.ones(moved.shape))
        found: list[tuple[str | None, tuple[Measurement, Interval | None]]]
        found = [(None, _mean(plan, layer, values, moved, even, "reference samples"))]
        if flow is not None:
            share = (flow.mean, flow.drawn[: len(moved)])
            found.append((class_name, _mean(plan, layer, values, moved, share, "test and reference samples")))
        out += [
            SetSimilarity(of=name, origin=origin, weighting=by, measurement=measurement, population=population, chance=chance)
            for by, (measurement, population) in found
        ]
    return out


def _mean(
    plan: AuditPlan, layer: str, values: np.ndarray, draws: np.ndarray, share: tuple[np.ndarray, np.ndarray], over: str
) -> tuple[Measurement, Interval | None]:
    """Mean over components by share (K,) and draws of it (B, K), with its interval and the wider one for other components."""
    (weight, drawn), known = share, np.isfinite(values)
    n = int((known & (weight > 0)).sum())
    if not n or (drawn[:, known].sum(axis=1) <= 0).any():
        reason = "a layer has no component with reference samples" if not known.any() else "the components carry no relevance"
        return Measurement(quantity="set similarity", unit="cosine", n=0, not_measured=reason), None
    mean = float(np.clip((weight[known] * values[known]).sum() / weight[known].sum(), *COSINE))
    own = (drawn[:, known] * draws[:, known]).sum(axis=1) / drawn[:, known].sum(axis=1)
    chosen = generator(plan, "components", layer).standard_exponential((len(draws), len(values)))[:, known]
    wide = (chosen * drawn[:, known] * draws[:, known]).sum(axis=1) / (chosen * drawn[:, known]).sum(axis=1)
    return (
        Measurement(quantity="set similarity", unit="cosine", value=mean, n=n, interval=interval(plan, mean, own, over, COSINE)),
        interval(plan, mean, wide, f"{over} and components", COSINE),
    )
