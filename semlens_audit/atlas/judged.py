"""What a comparison of two layers found, put into values that are written down.

Shapes use K and L components of the first and second layer, B draws, P pairs, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semlens_audit.atlas.compared import ConceptShare, Pair, SetSimilarity, Side, Single, State, StateShare
from semlens_audit.atlas.held import Drawn, Held
from semlens_audit.atlas.shifts import Flowed, Shift
from semlens_audit.draws import COSINE, SHARE, generator, interval
from semlens_audit.measured import Interval, Measurement
from semlens_audit.plan import AuditPlan
from semlens_audit.statistics import benjamini_hochberg, normal_tail

__all__ = ["Told", "describe_concepts", "describe_pairs", "judge", "set_similarities", "state_shares"]


@dataclass(frozen=True)
class Told:
    """What the concepts of the specs say of a side's components, see `semlens_audit.atlas.shifts`.

    Parameters
    ----------
    concepts
        K ids of the concept that most of each component is counted for, ``None`` for none.
    near
        (K,) bool: one of the other layer is similar beyond what either of them needs.
    kin
        (K,) bool: one of these is counted for the same concept.
    firm
        (K,) bool: which concept it is counted for is beyond noise.
    """

    concepts: Sequence[str | None]
    near: np.ndarray
    kin: np.ndarray
    firm: np.ndarray


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


def describe_concepts(
    plan: AuditPlan, sides: tuple[Held, Held], found: Flowed, concepts: Sequence[str], *, paired: bool
) -> list[ConceptShare]:
    """Shares of relevance by concept on either side, and what became of them."""
    moved = found.second_draws - found.first_draws
    change = found.second - found.first
    adjusted = benjamini_hochberg(_p(change, moved.std(axis=0)))
    samples = [side.flow.samples if side.flow is not None else 0 for side in sides]

    def share(value: float, draws: np.ndarray, n: int) -> Measurement:
        value = float(np.clip(value, *SHARE))
        spread = interval(plan, value, draws, "test and reference samples", SHARE)
        return Measurement(quantity="share of relevance", unit="share", value=value, n=n, interval=spread)

    return [
        ConceptShare(
            concept=concept,
            first=share(found.first[at], found.first_draws[:, at], samples[0]),
            second=share(found.second[at], found.second_draws[:, at], samples[1]),
            change=_change(plan, float(np.clip(change[at], *COSINE)), moved[:, at], min(samples), paired=paired),
            adjusted_p=float(adjusted[at]),
            changed=bool(adjusted[at] <= plan.audit.measurement.false_discovery_rate),
        )
        for at, concept in enumerate([*concepts, None])
    ]


def judge(
    plan: AuditPlan, name: Side, side: Held, drawn: np.ndarray, paired: np.ndarray, told: Told
) -> list[Single]:
    """The components without a partner, and what that means.

    A component is *lost* or *learned* where its own reference samples are more alike than random crops, and the whole interval of its
    similarity with the other layer is below what random reference sets reach, or what it is similar to is counted for other concepts.

    Parameters
    ----------
    drawn
        (B, K) similarities from the centres.
    paired
        Components that have a partner.
    told
        What the concepts of the specs say of the components.
    """
    alone = np.setdiff1d(np.flatnonzero(side.meanings.known), paired)
    return [_single(plan, name, side, drawn[:, k], int(k), told) for k in alone]


def _single(plan: AuditPlan, name: Side, side: Held, drawn: np.ndarray, k: int, told: Told) -> Single:
    similarity, level = float(side.similarity[k]), float(side.chance.level[k])
    apart: State = "lost" if name == "first" else "learned"
    state: State
    spread: Interval | None = None
    if np.isnan(similarity):
        state, reason = apart, "the other layer has no component with reference samples"
    else:
        spread = interval(plan, similarity, drawn, "reference samples", COSINE)
        if similarity > level and not told.near[k]:
            state, reason = "open", "it is similar beyond chance as seen from its own side only"
        elif similarity > level and told.kin[k]:
            state, reason = "shared", "components of the other layer mean the same, and each of them is paired with another"
        elif similarity > level and told.firm[k]:
            state, reason = apart, "what is similar to it in the other layer is counted for other concepts"
        elif similarity > level:
            state = "open"
            reason = "what is similar to it in the other layer is counted for other concepts; which concept it is itself is not sure"
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
        concept=told.concepts[k],
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
