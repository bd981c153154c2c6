"""Several claims at once: p-values of findings from their nested intervals, and what the spec asks for against multiplicity."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from semlens_audit.plan import Criterion, Multiplicity
from semlens_audit.records import Finding, Measurement
from semlens_audit.statistics import benjamini_hochberg, holm

__all__ = ["METHODS", "control", "p_value", "violated"]

METHODS: dict[Multiplicity, str] = {"holm": "Holm", "bh": "Benjamini and Hochberg"}
"""Multiplicity of a spec -> whose method it is; `none` has none."""

_LEAST = 1e-6
"""No p-value is given smaller: tails of a thousand draws say nothing about what happens once in a million."""


def violated(criterion: Criterion, value: float) -> bool:
    """Whether a value by itself violates the criterion."""
    return value > criterion.threshold if criterion.operator == "at_most" else value < criterion.threshold


def p_value(measurement: Measurement, threshold: float) -> float:
    """Smallest alpha at which the interval of level 1 - alpha leaves the threshold out, on whichever side it lies.

    The inversion of nested intervals (Efron and Tibshirani 1993, chapter 15). Between the levels that are kept, alpha is linear in
    the end of the interval. B draws resolve no alpha below 2 / B: beyond the widest interval the tail is a normal one, with the
    larger of the deviations that the nominal and the widest interval imply on that side, never above 2 / B. A measurement
    that keeps its nominal interval alone has that normal tail throughout.

    Parameters
    ----------
    measurement
        With a value.
    threshold
        In the unit of the measurement.

    Returns
    -------
    float
        Two-sided like the interval; 1e-6 to 1. At most one minus the level if and only if the threshold lies outside the nominal
        interval, or on its end.

    Raises
    ------
    ValueError
        If nothing was measured.
    """
    if measurement.value is None or measurement.interval is None:
        raise ValueError("no p-value without a measurement")
    value, interval = measurement.value, measurement.interval
    distance = abs(threshold - value)
    if distance == 0.0:
        return 1.0
    rungs = interval.nested or ((interval.level, interval.low, interval.high),)
    alphas = np.array([1.0 - level for level, _, _ in rungs])
    reach = np.array([max(value - low if threshold < value else high - value, 0.0) for _, low, high in rungs])
    # Rounded rungs may miss the exact end by the last digit: the nominal interval decides.
    own = int(np.argmin(np.abs(alphas - (1.0 - interval.level))))
    reach[own] = value - interval.low if threshold < value else interval.high - value
    reach = np.minimum.accumulate(reach)
    deviation = max(reach[index] / NormalDist().inv_cdf(1.0 - alphas[index] / 2.0) for index in {0, own})
    tail = 2.0 * NormalDist().cdf(-distance / deviation) if deviation > 0.0 else 0.0
    if not interval.nested:
        return max(tail, _LEAST)
    if distance >= reach[0]:
        return max(min(tail, float(alphas[0])), _LEAST)
    return float(np.interp(-distance, [*-reach, 0.0], [*alphas, 1.0]))


def control(findings: Sequence[Finding], multiplicity: Multiplicity) -> list[Finding]:
    """Give each measured finding its p-value, and take back claims of violation that the number of findings explains.

    What is claimed decides what has to be controlled:

    - *The audit is passed* claims that every criterion is met. It is false if one is violated, and it is made only if every single
      test rejects "violated": an intersection-union test, whose level is that of its parts without any correction (Berger,
      Technometrics 24:295, 1982). Correcting would make passing harder, not truer. Single findings "satisfied" therefore stand at
      the nominal level.
    - *The audit is failed* claims that some criterion is violated. It is made as soon as one of many tests says so, and would be
      made ever more often by chance alone the more is checked. Claims of violation are therefore adjusted over all measured
      findings of the audit: ``holm`` bounds the probability of any false one (Holm 1979, valid under any dependence), ``bh`` the
      expected share of false ones among them (Benjamini and Hochberg 1995, under positive dependence). What is not rejected then is
      inconclusive: neither a violation nor a pass.

    ``none`` leaves every finding at its own level.

    Parameters
    ----------
    findings
        All findings of an audit, decided at the nominal level.

    Returns
    -------
    list of Finding
        In the same order, with `p_value` (two-sided, of the side on which the estimate lies) and, where the estimate violates its
        criterion, `adjusted_p`; None for what was not measured and for `adjusted_p` under ``none``.
    """
    measured = [index for index, finding in enumerate(findings) if finding.measurement.value is not None]
    own = np.array([p_value(findings[index].measurement, findings[index].criterion.threshold) for index in measured])
    wrong = np.array(
        [violated(findings[index].criterion, findings[index].measurement.value or 0.0) for index in measured], dtype=bool
    )
    against = np.where(wrong, own, 1.0)
    adjusted = benjamini_hochberg(against) if multiplicity == "bh" else holm(against)
    result = list(findings)
    for position, index in enumerate(measured):
        finding = findings[index]
        values: dict[str, object] = {"p_value": _short(own[position])}
        if wrong[position] and multiplicity != "none":
            values |= _adjusted(finding, float(adjusted[position]), multiplicity, len(measured))
        result[index] = finding.model_copy(update=values)
    return result


def _adjusted(finding: Finding, p: float, multiplicity: Multiplicity, count: int) -> dict[str, object]:
    """Changes of a finding whose estimate violates its criterion."""
    values: dict[str, object] = {"adjusted_p": _short(p)}
    interval = finding.measurement.interval
    if finding.state != "not_satisfied" or interval is None or count == 1:
        return values
    allowed = 1.0 - interval.level
    family = f"Adjusted for all {count} measured findings ({METHODS[multiplicity]})"
    # Rounding of 1 - 0.95 must not decide.
    if p <= allowed + 1e-12:
        return values | {"explanation": f"{finding.explanation} {family}, p is {_shown(p)}."}
    text = f"{family}, p is {_shown(p)} and above {allowed:.2g}, so that neither can be concluded."
    return values | {"state": "inconclusive", "explanation": f"{finding.explanation} {text}"}


def _short(p: float) -> float:
    return float(f"{p:.3g}")


def _shown(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.2g}"
