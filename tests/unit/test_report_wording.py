"""Numbers as a reader meets them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semlens_audit.plan import Criterion
from semlens_audit.records import Interval, Measurement
from semlens_audit.wording import count, format_criterion, format_date, format_measured, format_value, join, needed_decimals


def measured(unit: str, value: float, low: float, high: float) -> Measurement:
    interval = Interval(low=low, high=high, level=0.95, method="bootstrap")
    return Measurement(quantity="reliance", unit=unit, value=value, interval=interval, n=10)


@pytest.mark.parametrize(
    ("unit", "value", "low", "high", "text"),
    [
        ("share", 0.64, 0.58, 0.70, "64\u00a0% (58–70\u00a0%)"),
        ("share", 0.0213, 0.0111, 0.0318, "2.1\u00a0% (1.1–3.2\u00a0%)"),
        ("share", 0.0, 0.0, 0.0, "0\u00a0% (0–0\u00a0%)"),
        ("share", 0.5, 0.1, 0.9, "50\u00a0% (10–90\u00a0%)"),
        ("logits", 6.71, 6.16, 7.26, "6.7\u00a0logits (6.2–7.3)"),
        ("logits", -0.18, -0.42, 0.06, "−0.18\u00a0logits (−0.42\u00a0to\u00a00.06)"),
        ("logits", 153.2, 80.0, 220.0, "153.2\u00a0logits (80.0–220.0)"),
        ("share", 0.0213, 0.0183, 0.0243, "2.13\u00a0% (1.83–2.43\u00a0%)"),
        ("cosine", 0.52, 0.49, 0.55, "0.520 (0.490–0.550)"),
    ],
)
def test_digits_are_those_the_interval_earns(unit: str, value: float, low: float, high: float, text: str) -> None:
    assert format_measured(measured(unit, value, low, high)) == text


def test_a_missing_measurement_prints_no_number() -> None:
    assert format_measured(Measurement(quantity="reliance", unit="share", n=3, not_measured="too few")) == "not measured"


def test_rounding_never_puts_an_interval_on_the_criterion_it_does_not_reach() -> None:
    close = measured("share", 0.22, 0.19, 0.2504)
    assert format_measured(close, Criterion(at_most=0.25)) == "22.00\u00a0% (19.00–25.04\u00a0%)"
    assert format_measured(close) == "22.0\u00a0% (19.0–25.0\u00a0%)"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_printed_ends_lie_where_the_real_ends_lie(one: float, other: float, threshold: float) -> None:
    threshold = round(threshold, 2)
    low, high = sorted((one, other))
    decimals = needed_decimals("share", low, high, threshold)
    for end in (low, high):
        if abs(end - threshold) > 1e-5:
            printed = float(f"{end * 100:.{decimals}f}")
            assert (printed > round(threshold * 100, decimals)) == (end > threshold)
            assert (printed < round(threshold * 100, decimals)) == (end < threshold)


@given(st.floats(-50, 50), st.floats(0, 20))
def test_no_negative_zero_and_no_hyphen_for_a_minus(value: float, half: float) -> None:
    text = format_measured(measured("logits", value, value - half, value + half))
    assert "-" not in text
    assert not any(piece.strip("(−0.)") == "" and "−" in piece for piece in text.split("\u00a0"))


def test_criteria_dates_counts_and_lists() -> None:
    assert format_criterion(Criterion(at_most=0.25), "share") == "at most 25\u00a0%"
    assert format_criterion(Criterion(at_least=0.125), "share") == "at least 12.5\u00a0%"
    assert format_criterion(Criterion(at_most=1.0), "logits") == "at most 1.0\u00a0logits"
    assert format_date("2025-11-20T23:14:05Z") == "20 November 2025, 23:14 UTC"
    assert format_date("2025-11-21T00:14:05+01:00") == "20 November 2025, 23:14 UTC"
    assert format_date("some day") == "some day"
    assert count(1, "class", "classes") == "1\u00a0class"
    assert count(1200, "class", "classes") == "1,200\u00a0classes"
    assert join([]) == ""
    assert join(["a"]) == "a"
    assert join(["a", "b", "c"]) == "a, b and c"
    assert format_value("share", 0.964, 1) == "96.4\u00a0%"
