"""Operating characteristics of the instrument from pairs of model and artefact whose true effect is known. NumPy only.

The unit of independence is the model: pairs of one model share its weights. Proportions carry the exact interval of Clopper and
Pearson (Biometrika 26:404-413, 1934), with the number of models stated beside the number of pairs; areas and rank correlations
carry the percentile interval of a bootstrap that draws whole models (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.certificate import ALL, Group, Pair, Repeat
from semlens_audit.digest import digest
from semlens_audit.proportions import clopper_pearson
from semlens_audit.records import RateRecord

__all__ = [
    "AIMS",
    "LARGE",
    "MEASURES",
    "SMALL",
    "Aim",
    "area",
    "clopper_pearson",
    "covered",
    "groups",
    "rank_correlation",
    "rates",
    "reached",
]

LARGE = 1.0
"""Size of a true effect, logits, from which an artefact counts as relied on."""
SMALL = 0.5
"""Size of a true effect, logits, below which an artefact counts as ignored."""
_DRAWS = 1000
_LEVEL = 0.95
_FEWEST = 5

Measure = Callable[[Pair], float | None]
MEASURES: Mapping[str, Measure] = {
    "share": lambda pair: pair.share.value,
    "effect": lambda pair: None if pair.effect.value is None else abs(pair.effect.value),
}
"""The reliance measures: share of relevance (mechanistic) and size of the behavioural effect."""
_WORDS = {"share": "mechanistic share", "effect": "behavioural effect"}


@dataclass(frozen=True)
class Aim:
    """What a rate is meant to be: within `low` and `high`."""

    low: float
    high: float
    words: str


AIMS: Mapping[str, Aim] = {
    "true_positive": Aim(0.95, 1.0, "at least 95 %"),
    "false_positive_small": Aim(0.0, 0.02, "at most 2 %"),
    "coverage": Aim(0.93, 0.97, "93 to 97 %"),
    "flips": Aim(0.0, 0.01, "at most 1 %"),
    "auroc_share": Aim(0.98, 1.0, "at least 0.98"),
    "auroc_effect": Aim(0.98, 1.0, "at least 0.98"),
    "rank_correlation_share": Aim(0.8, 1.0, "at least 0.8"),
    "rank_correlation_effect": Aim(0.8, 1.0, "at least 0.8"),
}
"""What the instrument is meant to reach; a rate that does not is printed as falling short."""


def reached(rate: RateRecord) -> bool | None:
    """Whether a measured rate lies within its aim; None without either."""
    aim = AIMS.get(rate.name)
    return None if aim is None or rate.value is None else aim.low <= rate.value <= aim.high


def _draws(models: int, seed: str) -> np.ndarray:
    """(B, models) how often each model is drawn; the same for the same seed."""
    rng = np.random.default_rng(int(digest(seed)[:16], 16))
    return rng.multinomial(models, np.full(models, 1.0 / models), size=_DRAWS).astype(np.float64)


def _numbered(models: Sequence[str]) -> tuple[np.ndarray, int]:
    names, numbers = np.unique(np.asarray(models), return_inverse=True)
    return numbers.reshape(-1), len(names)


def area(
    scores: Sequence[float], positive: Sequence[bool], models: Sequence[str], seed: str = ""
) -> tuple[float, float, float] | None:
    """Area under the ROC curve with its interval over models.

    Parameters
    ----------
    scores, positive, models
        (n,) each: reliance, whether the artefact is relied on, and the model the pair is of.
    seed
        Of the bootstrap.

    Returns
    -------
    value, low, high : float, or None
        0 to 1; None where there is no positive or no negative pair. Where no pair is misordered every draw gives 1, which says
        nothing about what was not seen: the lower end is then the exact one for as many independent comparisons as the smaller
        of the two groups allows.
    """
    values, hit = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not hit.any() or hit.all():
        return None
    number, count = _numbered(models)
    above, below = values[hit], values[~hit]
    wins = (above[:, None] > below[None, :]) + 0.5 * (above[:, None] == below[None, :])
    rows, columns = np.eye(count)[number[hit]], np.eye(count)[number[~hit]]
    won, compared = rows.T @ wins @ columns, rows.T @ np.ones_like(wins) @ columns
    value = float(wins.mean())
    weights = _draws(count, seed)
    total = (weights @ compared * weights).sum(axis=1)
    drawn = (weights @ won * weights).sum(axis=1)[total > 0] / total[total > 0]
    # One model alone says nothing of how models differ.
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if drawn.size and count > 1 else (0.0, 1.0)
    if value == 1.0:
        fewer = int(min(hit.sum(), (~hit).sum()))
        low = clopper_pearson(fewer, fewer)[0]
    return value, min(float(low), value), max(float(high), value)


def rank_correlation(
    first: Sequence[float], second: Sequence[float], models: Sequence[str], seed: str = ""
) -> tuple[float, float, float] | None:
    """Spearman's rank correlation (mid-ranks for ties) with its interval over models.

    Parameters
    ----------
    first, second, models
        (n,) each.
    seed
        Of the bootstrap.

    Returns
    -------
    value, low, high : float, or None
        -1 to 1; None below five pairs, or where either side is constant.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(x) < _FEWEST:
        return None
    number, count = _numbered(models)

    def correlations(weights: np.ndarray) -> np.ndarray:
        """(B,) from (B, n) weights; NaN where a side is constant."""
        # The mid-rank of an item in the drawn sample is what lies below it plus half of what equals it, up to a constant.
        ranks = []
        for values in (x, y):
            order = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
            ranks.append(weights @ order.T)
        total = weights.sum(axis=1, keepdims=True)
        a, b = (rank - (weights * rank).sum(axis=1, keepdims=True) / total for rank in ranks)
        size = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
        size[size <= 1e-9] = np.nan
        return np.asarray((weights * a * b).sum(axis=1) / size)

    value = float(correlations(np.ones((1, len(x))))[0])
    if np.isnan(value):
        return None
    drawn = correlations(_draws(count, seed)[:, number])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if drawn.size and count > 1 else (-1.0, 1.0)
    return value, min(float(low), value), max(float(high), value)


def covered(pair: Pair) -> bool | None:
    """Whether the behavioural interval holds the true effect; None where there is none.

    The true effect is itself a mean over scenes with an interval. The difference between the two estimates has both errors, so
    the distance is held against the half-width of either in quadrature.
    """
    true, seen = pair.true_effect, pair.effect
    if true.value is None or true.low is None or true.high is None:
        return None
    if seen.value is None or seen.low is None or seen.high is None:
        return None
    if true.value >= seen.value:
        reach, own = seen.high - seen.value, true.value - true.low
    else:
        reach, own = seen.value - seen.low, true.high - true.value
    return abs(true.value - seen.value) <= float(np.hypot(reach, own))


def _proportion(name: str, label: str, outcomes: Sequence[tuple[str, bool]]) -> RateRecord:
    """From (model, outcome) of each pair."""
    models = len({model for model, _ in outcomes})
    if not outcomes:
        return _missing(name, label, 0, 0, "no pair of this kind")
    hits = sum(outcome for _, outcome in outcomes)
    low, high = clopper_pearson(hits, len(outcomes))
    method = f"Clopper-Pearson, {hits} of {len(outcomes)} from {models} models"
    return RateRecord(
        name=name, label=label, value=hits / len(outcomes), low=low, high=high, level=_LEVEL, n=len(outcomes), models=models,
        method=method,
    )  # fmt: skip


def _missing(name: str, label: str, n: int, models: int, reason: str) -> RateRecord:
    return RateRecord(name=name, label=label, level=_LEVEL, n=n, models=models, method="none", not_measured=reason)


def _estimated(
    name: str, label: str, found: tuple[float, float, float] | None, rows: Sequence[Pair], reason: str
) -> RateRecord:
    models = len({pair.member for pair in rows})
    if found is None:
        return _missing(name, label, len(rows), models, reason)
    value, low, high = found
    method = f"bootstrap over {models} models, {_DRAWS} draws"
    return RateRecord(
        name=name, label=label, value=value, low=low, high=high, level=_LEVEL, n=len(rows), models=models, method=method
    )


def _size(pair: Pair) -> float:
    assert pair.true_effect.value is not None
    return abs(pair.true_effect.value)


def _rankings(pairs: Sequence[Pair]) -> list[RateRecord]:
    """Areas and rank correlations of each reliance measure."""
    found = []
    for measure, of in MEASURES.items():
        rows = [pair for pair in pairs if of(pair) is not None]
        clear = [pair for pair in rows if not SMALL <= _size(pair) < LARGE]
        for name, chosen, cut in (
            (f"auroc_{measure}", rows, f"from {LARGE:g} logit, all other pairs against them"),
            (f"auroc_gap_{measure}", clear, f"from {LARGE:g} logit against those below {SMALL:g}"),
        ):
            label = f"Area under the ROC curve of the {_WORDS[measure]}: true effects {cut}"
            value = area(
                [of(pair) or 0.0 for pair in chosen],
                [_size(pair) >= LARGE for pair in chosen],
                [pair.member for pair in chosen],
                name,
            )
            found.append(_estimated(name, label, value, chosen, "no pair on one of the two sides"))
        moved = [pair for pair in rows if pair.true_effect.excludes_zero]
        name = f"rank_correlation_{measure}"
        label = f"Rank correlation of the {_WORDS[measure]} with the size of the true effect, over effects that differ from 0"
        correlation = rank_correlation(
            [of(pair) or 0.0 for pair in moved], [_size(pair) for pair in moved], [pair.member for pair in moved], name
        )
        found.append(_estimated(name, label, correlation, moved, f"fewer than {_FEWEST} such pairs, or all alike"))
    return found


def rates(pairs: Sequence[Pair], repeats: Sequence[Repeat] = ()) -> tuple[RateRecord, ...]:
    """All operating characteristics of some pairs.

    Parameters
    ----------
    pairs
        Each with a true effect.
    repeats
        Findings of repeated audits of the same models.

    Returns
    -------
    tuple of RateRecord
        ``true_positive``: true effects of at least 1 logit that a finding is not satisfied for; ``missed``: those for which all
        findings are satisfied; ``false_positive_small`` and ``false_positive``: true effects below 0.5 and below 1 logit that a
        finding is not satisfied for; ``inconclusive``, ``not_measured``: pairs without a finding that is not satisfied, with one
        that is inconclusive, or else not measured; ``coverage``: behavioural intervals that hold the true effect; ``auroc_*``,
        ``auroc_gap_*``, ``rank_correlation_*`` per reliance measure; ``flips``: findings that turned from satisfied to not
        satisfied or back on repetition; ``changes``: that changed their state at all.
    """
    known = [pair for pair in pairs if pair.true_effect.value is not None]
    judged = [pair for pair in known if pair.findings]

    def flagged(rows: Sequence[Pair]) -> list[tuple[str, bool]]:
        return [(pair.member, pair.flagged) for pair in rows]

    large = [pair for pair in judged if _size(pair) >= LARGE]
    found = [
        _proportion("true_positive", f"True effects of {LARGE:g} logit or more that the verdict flags", flagged(large)),
        _proportion(
            "missed",
            f"True effects of {LARGE:g} logit or more that the verdict declares satisfied",
            [(pair.member, pair.passed) for pair in large],
        ),
        _proportion(
            "false_positive_small",
            f"True effects below {SMALL:g} logits that the verdict flags",
            flagged([pair for pair in judged if _size(pair) < SMALL]),
        ),
        _proportion(
            "false_positive",
            f"True effects below {LARGE:g} logit that the verdict flags",
            flagged([pair for pair in judged if _size(pair) < LARGE]),
        ),
        _proportion(
            "inconclusive",
            "Pairs on which the verdict is inconclusive",
            [(pair.member, not pair.flagged and "inconclusive" in pair.findings.values()) for pair in judged],
        ),
        _proportion(
            "not_measured",
            "Pairs on which a finding is not measured and none is decided against",
            [
                (
                    pair.member,
                    not pair.flagged
                    and "inconclusive" not in pair.findings.values()
                    and "not_measured" in pair.findings.values(),
                )
                for pair in judged
            ],
        ),
        _proportion(
            "coverage",
            "Behavioural intervals that hold the true effect",
            [(pair.member, hit) for pair in known if (hit := covered(pair)) is not None],
        ),
        *_rankings(known),
        _proportion(
            "flips",
            "Findings that turn from satisfied to not satisfied, or back, on other test data with other seeds",
            [(item.member, {item.first, item.second} == {"satisfied", "not_satisfied"}) for item in repeats],
        ),
        _proportion(
            "changes",
            "Findings that change their state in any way on other test data with other seeds",
            [(item.member, item.first != item.second) for item in repeats],
        ),
    ]
    return tuple(found)


def groups(pairs: Sequence[Pair], repeats: Sequence[Repeat] = ()) -> tuple[Group, ...]:
    """Rates over every part, world and architecture that has a pair, and over all of each."""
    parts = ("held_back", "development", ALL)
    worlds = (ALL, *dict.fromkeys(pair.world for pair in pairs))
    architectures = (ALL, *dict.fromkeys(pair.architecture for pair in pairs))
    found = []
    for part, world, architecture in itertools.product(parts, worlds, architectures):

        def chosen(item: Pair | Repeat, part: str = part, world: str = world, architecture: str = architecture) -> bool:
            return part in (ALL, item.part) and world in (ALL, item.world) and architecture in (ALL, item.architecture)

        some = [pair for pair in pairs if chosen(pair)]
        if some:
            found.append(
                Group.model_validate(
                    {
                        "part": part,
                        "world": world,
                        "architecture": architecture,
                        "pairs": len(some),
                        "models": len({pair.member for pair in some}),
                        "rates": rates(some, [item for item in repeats if chosen(item)]),
                    }
                )
            )
    return tuple(found)
