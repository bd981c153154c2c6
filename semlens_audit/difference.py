"""Interval of the difference between two measurements of one quantity, paired where both rest on the same samples."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from semlens_audit.measured import Interval, Measurement
from semlens_audit.release_records import InfluenceRecord

__all__ = ["correlation", "difference", "difference_of_sizes", "influence_values", "negative"]

Ends = Callable[[float], tuple[float, float]]


def influence_values(record: InfluenceRecord) -> np.ndarray:
    """(length,) float64 numbers that a record holds.

    Raises
    ------
    ValueError
        If the text is no base64 of as many finite numbers as the record says.
    """
    raw = base64.b64decode(record.values.encode("ascii"), validate=True)
    if len(raw) != 4 * record.length:
        raise ValueError(f"{len(raw)} bytes of influences on {record.quantity}, {4 * record.length} needed")
    values = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"influences on {record.quantity} that are not finite")
    return values


def correlation(old: np.ndarray, new: np.ndarray) -> float:
    """Correlation of two estimates from how each moves with the same samples.

    Parameters
    ----------
    old, new
        (L,) influences of the same basis, see `semlens_audit.influence`; their inner products are variances and covariance.

    Returns
    -------
    float
        -1 to 1; 0 where either estimate does not vary, as a share of 0 or 1: nothing is then known of how they go together.
    """
    total = math.sqrt(float((old**2).sum()) * float((new**2).sum()))
    return min(max(float((old * new).sum()) / total, -1.0), 1.0) if total > 0.0 else 0.0


def difference(old: Measurement, new: Measurement, rho: float, level: float) -> Measurement:
    """New minus old.

    Distances of both intervals' ends from their estimates are added in quadrature, less twice their product times the
    correlation: ``low = d - sqrt(a^2 + b^2 - 2 rho a b)`` with a = new - its lower end and b = old's upper end - old, and the
    upper end likewise. Method 10 of Newcombe for paired proportions (Stat Med 17:2635-2650, 1998); for any pair of estimates with
    intervals, Zou and Donner (Stat Med 27:1693-1702, 2008). With rho = 0 that of independent estimates. It keeps what the
    intervals know of bounds, skewness and small samples: of two Student intervals of means over the same pairs it makes Student's
    interval of the mean difference.

    Parameters
    ----------
    old, new
        Measured, in the same unit.
    rho
        Correlation of the two estimates, -1 to 1, see `correlation`.
    level
        Nominal coverage, in (0, 1).

    Returns
    -------
    Measurement
        With nested intervals at those levels that both intervals keep, so that `semlens_audit.multiplicity.p_value` applies.
    """
    value, ends = _subtract(old, new, rho)
    return _measurement(old, new, value, ends, level, rho)


def difference_of_sizes(old: Measurement, new: Measurement, rho: float, level: float) -> Measurement:
    """``|new| - |old|`` of two signed measurements.

    With d = new - old and s = new + old, ``|new| - |old| = max(min(d, s), -max(d, s))``, which is never larger than d or s. The
    interval is what this makes of the intervals of d and s: a size has grown only if new differs from old and from minus old, the
    same way (an intersection-union test, Berger, Technometrics 24:295, 1982). An effect that changes its sign and keeps its size
    has not grown.

    Parameters
    ----------
    old, new, rho, level
        See `difference`.
    """
    apart, apart_ends = _subtract(old, new, rho)
    joint, joint_ends = _subtract(negative(old), new, -rho)

    def ends(at: float) -> tuple[float, float]:
        (d_low, d_high), (s_low, s_high) = apart_ends(at), joint_ends(at)
        most = min(max(abs(d_low), abs(d_high)), max(abs(s_low), abs(s_high)))
        return (
            max(min(d_low, s_low), -max(d_high, s_high), -most),
            min(max(min(d_high, s_high), -max(d_low, s_low)), most),
        )

    value = max(min(apart, joint), -max(apart, joint))
    return _measurement(old, new, value, ends, level, rho)


def negative(measurement: Measurement) -> Measurement:
    """The measurement with its sign turned."""
    value, interval = _known(measurement)
    turned = interval.model_copy(
        update={
            "low": -interval.high,
            "high": -interval.low,
            "nested": tuple((at, -high, -low) for at, low, high in interval.nested),
        }
    )
    return measurement.model_copy(update={"value": -value, "interval": turned})


def _known(measurement: Measurement) -> tuple[float, Interval]:
    if measurement.value is None or measurement.interval is None:
        raise ValueError("no difference to what was not measured")
    return measurement.value, measurement.interval


def _reach(measurement: Measurement, level: float) -> tuple[float, float]:
    """Distance of the interval's ends below and above the estimate at `level`.

    A level that is not kept is reached from the nearest one that is, in proportion to the quantiles of the normal distribution.
    """
    value, interval = _known(measurement)
    kept = {round(interval.level, 9): (interval.low, interval.high)}
    for at, low, high in interval.nested:
        kept.setdefault(round(at, 9), (low, high))
    nearest = min(kept, key=lambda at: (abs(at - level), at))
    low, high = kept[nearest]
    scale = 1.0
    if abs(nearest - level) > 1e-9:
        normal = NormalDist()
        scale = normal.inv_cdf((1.0 + level) / 2.0) / normal.inv_cdf((1.0 + nearest) / 2.0)
    return max(value - low, 0.0) * scale, max(high - value, 0.0) * scale


def _subtract(old: Measurement, new: Measurement, rho: float) -> tuple[float, Ends]:
    """New minus old, and its interval at any level."""
    value = _known(new)[0] - _known(old)[0]

    def ends(at: float) -> tuple[float, float]:
        (old_below, old_above), (new_below, new_above) = _reach(old, at), _reach(new, at)
        return value - _quadrature(new_below, old_above, rho), value + _quadrature(new_above, old_below, rho)

    return value, ends


def _quadrature(one: float, other: float, rho: float) -> float:
    return math.sqrt(max(one * one + other * other - 2.0 * rho * one * other, 0.0))


def _measurement(old: Measurement, new: Measurement, value: float, ends: Ends, level: float, rho: float) -> Measurement:
    kept = [{round(at, 9) for at, _, _ in _known(one)[1].nested} for one in (old, new)]
    levels = sorted({*(kept[0] & kept[1]), level}, reverse=True)
    # Ends of an interval of sizes are enclosures; none may leave the estimate out, and wider levels hold narrower ones.
    rungs: list[tuple[float, float, float]] = []
    low = high = value
    for at in reversed(levels):
        below, above = ends(at)
        low, high = min(low, below), max(high, above)
        rungs.append((at, low, high))
    own = next(rung for rung in rungs if rung[0] == level)
    how = f"paired on the same samples, correlation {rho:.2f}" if rho else "independent"
    interval = Interval(
        low=own[1],
        high=own[2],
        level=level,
        method=f"two intervals added in quadrature (Newcombe; Zou and Donner), {how}",
        nested=tuple(reversed(rungs)) if len(rungs) > 1 else (),
    )
    unit = "difference" if new.unit == "share" else new.unit
    return Measurement(quantity=f"change of {new.quantity}", unit=unit, value=value, interval=interval, n=min(old.n, new.n))
