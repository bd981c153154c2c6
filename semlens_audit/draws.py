"""Random generators of an audit, the bootstrap weights of its units, and the intervals that follow from draws."""

from __future__ import annotations

import numpy as np

from semlens_audit.digest import digest
from semlens_audit.plan import AuditPlan
from semlens_audit.records import Interval
from semlens_audit.statistics import nested_levels
from semlens_audit.units import UnitWeights

__all__ = ["COSINE", "LOGITS", "SHARE", "draw_units", "generator", "interval"]

SHARE = (0.0, 1.0)
COSINE = (-1.0, 1.0)
LOGITS = (-np.inf, np.inf)


def generator(plan: AuditPlan, *names: str) -> np.random.Generator:
    """Random generator that depends on the audit's seed and the names of what is drawn, not on the order of drawing."""
    return np.random.default_rng(_seeds(plan, *names))


def _seeds(plan: AuditPlan, *names: str) -> list[int]:
    return [plan.audit.seed, *(int(digest(name)[:8], 16) for name in names)]


def draw_units(plan: AuditPlan) -> UnitWeights:
    """Bootstrap weights of the audit's independent units."""
    return UnitWeights(plan.audit.measurement.bootstrap, _seeds(plan, "units"))


def interval(
    plan: AuditPlan, value: float, draws: np.ndarray, over: str, bounds: tuple[float, float], *, nested: bool = False
) -> Interval:
    """Percentile interval, cut to the quantity's range and widened to hold the point estimate, which must lie in that range.

    Draws that lie mostly to one side of the estimate, as where many components are near the critical z, widen the interval to the
    other side as well: each end is the outer one of the percentile and of the percentile shifted by the median's distance.

    Parameters
    ----------
    nested
        Whether to keep the intervals at other levels, from which p-values follow.
    """
    level = plan.audit.measurement.confidence
    levels = nested_levels(level, len(draws)) if nested else (level,)
    ends = np.array([((1 - one) / 2, (1 + one) / 2) for one in levels])
    middle = float(np.median(draws))
    quantiles = np.quantile(draws, ends)
    low = np.minimum(quantiles[:, 0], quantiles[:, 0] + value - middle)
    high = np.maximum(quantiles[:, 1], quantiles[:, 1] + value - middle)
    low, high = np.minimum(np.clip(low, *bounds), value), np.maximum(np.clip(high, *bounds), value)
    own = levels.index(level)
    return Interval(
        low=float(low[own]),
        high=float(high[own]),
        level=level,
        method=f"Bayesian bootstrap over {over}, {len(draws)} draws",
        nested=tuple((one, round(float(a), 6), round(float(b), 6)) for one, a, b in zip(levels, low, high, strict=True))
        if nested
        else (),
    )
