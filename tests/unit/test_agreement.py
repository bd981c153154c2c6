"""A repetition held against its record: identical, within tolerance, different."""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from semlens_audit.agreement import TOLERANCE, agree, measurements
from semlens_audit.errors import ExitCode
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import InfluenceRecord
from semlens_audit.reproduce_screen import print_agreement, values
from tests.golden.sample_record import sample, small


def edited(record: AuditRecord, *path: Any, change: Any) -> AuditRecord:
    """`record` with the value at `path` replaced by `change(value)`."""
    whole = json.loads(record.model_dump_json(by_alias=True))
    place = whole
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = change(place[path[-1]])
    return AuditRecord.model_validate_json(json.dumps(whole))


def elsewhere(record: AuditRecord) -> AuditRecord:
    return edited(record, "environment", "python", change=lambda _: "3.9.0")


def test_a_record_agrees_with_itself() -> None:
    record = small()
    found = agree(record, record)
    assert found.reproduced
    assert found.exit_code is ExitCode.SATISFIED
    assert found.number("identical") == len(found.compared) == len(list(measurements(record)))
    assert found.same_environment
    assert not found.fields


def test_when_where_and_by_what_it_was_made_is_no_difference() -> None:
    record = small()
    later = record.model_copy(update={"created": "2031-01-01T00:00:00+00:00", "command": "x", "limitations": ()})
    assert agree(record, later).reproduced


@pytest.mark.parametrize("kind", ["shortcut", "clean", "not_measured"])
def test_every_measurement_is_compared(kind: str) -> None:
    """Each value in turn, wherever the record holds a measurement, is moved by more than its interval."""
    record = sample(kind)
    whole = json.loads(record.model_dump_json(by_alias=True))

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        if isinstance(value, dict):
            if {"quantity", "unit", "n", "value"} <= value.keys():
                yield path
            for name, inner in value.items():
                yield from places(inner, (*path, name))
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                yield from places(inner, (*path, number))

    found = [path for path in places(whole) if path[0] not in ("change", "sensitivity")]
    assert len(found) == len(list(measurements(record)))
    for path in itertools.islice(found, 0, None, max(1, len(found) // 25)):
        moved = edited(record, *path, "n", change=lambda n: n + 1)
        assert agree(record, moved).number("differs") == 1, path
        assert agree(record, elsewhere(moved)).exit_code is ExitCode.INTEGRITY


def test_a_value_within_the_tolerance_and_one_beyond() -> None:
    record = small()
    interval = record.findings[0].measurement.interval
    assert interval is not None
    half = (interval.high - interval.low) / 2
    at = ("findings", 0, "measurement", "value")
    near = agree(record, edited(record, *at, change=lambda value: value + 0.9 * TOLERANCE * half))
    assert (near.number("within_tolerance"), near.number("differs")) == (1, 0)
    assert near.compared[0].deviation == pytest.approx(0.9 * TOLERANCE)
    assert near.reproduced
    far = edited(record, *at, change=lambda value: value + 1.1 * TOLERANCE * half)
    assert not agree(record, far).reproduced
    assert agree(record, far, tolerance=0.1).reproduced
    assert not agree(record, edited(record, *at, change=lambda value: float(np.nextafter(value, 1))), tolerance=0).reproduced


@pytest.mark.parametrize("end", ["low", "high"])
def test_an_interval_counts_as_much_as_its_value(end: str) -> None:
    record = small()
    wider = edited(record, "findings", 0, "measurement", "interval", end, change=lambda v: v + (0.5 if end == "high" else -0.5))
    assert agree(record, wider).number("differs") == 1


def test_what_was_not_measured_has_to_be_missing_for_the_same_reason() -> None:
    record = sample("not_measured")
    place = next(i for i, finding in enumerate(record.findings) if finding.measurement.value is None)
    other = edited(record, "findings", place, "measurement", "not_measured", change=lambda _: "Another reason.")
    (wrong,) = [one for one in agree(record, other).compared if one.match == "differs"]
    assert "another reason" in wrong.reason.lower()


def test_a_finding_that_turned_is_no_reproduction_however_near_its_value() -> None:
    record = small()
    turned = edited(record, "findings", 0, "state", change=lambda _: "inconclusive")
    found = agree(record, turned)
    assert [(after) for _, _, after in found.states] == ["inconclusive"]
    assert not found.reproduced


def test_another_verdict_is_no_reproduction() -> None:
    record = small()
    other = edited(record, "verdict", "state", change=lambda _: "inconclusive")
    assert not agree(record, elsewhere(other)).reproduced


def test_a_finding_that_is_missing_is_no_reproduction() -> None:
    record = small()
    less = record.model_copy(update={"findings": record.findings[1:]})
    for found in (agree(record, less), agree(less, record)):
        assert found.number("differs") == 1
        assert len(found.states) == 1
        assert not found.reproduced


def test_nothing_compared_is_no_reproduction() -> None:
    record = small()
    empty = record.model_copy(update={"findings": (), "layers": (), "class_layers": (), "effects": (), "presence_in_data": ()})
    assert not agree(empty, empty).reproduced


def test_words_and_pictures_have_to_be_the_same_where_the_machine_is() -> None:
    record = small()
    headline = edited(record, "verdict", "headline", change=lambda _: "All is well.")
    found = agree(record, headline)
    assert found.fields == ("verdict",)
    assert not found.reproduced
    assert agree(record, elsewhere(headline)).reproduced, "another version may word it in another way"
    key = next(iter(record.images))
    swapped = edited(record, "images", key, change=lambda _: base64.b64encode(b"another picture").decode())
    assert agree(record, swapped).fields == ("images",)


def test_the_last_digits_of_other_numbers_are_noise() -> None:
    record = small()
    at = ("class_layers", 0, "components", 0, "share")
    assert agree(record, edited(record, *at, change=lambda value: value * (1 + 1e-7))).reproduced
    assert agree(record, edited(record, *at, change=lambda value: value * 0.9)).fields == ("class_layers",)


def test_packed_influences_are_compared_as_numbers() -> None:
    def influence(scale: float) -> InfluenceRecord:
        packed = (np.linspace(-1, 1, 6) * scale).astype("<f4").tobytes()
        return InfluenceRecord(quantity="q", basis="draws", basis_sha256="0" * 64, length=6, values=base64.b64encode(packed).decode())

    record = small().model_copy(update={"influences": (influence(1.0),)})
    assert agree(record, record.model_copy(update={"influences": (influence(1 + 1e-6),)})).reproduced
    assert agree(record, record.model_copy(update={"influences": (influence(1.1),)})).fields == ("influences",)


def test_the_default_tolerance_costs_a_thousandth_of_coverage() -> None:
    from scipy.stats import norm

    end = float(norm.ppf(0.975))
    shift = TOLERANCE * end
    coverage = norm.cdf(end - shift) - norm.cdf(-end - shift)
    assert round(100 * coverage, 1) == 94.9


def test_the_screen_says_what_differs_and_the_conclusion() -> None:
    record = small()
    other = elsewhere(edited(record, "findings", 0, "measurement", "n", change=lambda n: n + 1))
    found, stream = agree(record, other), io.StringIO()
    print_agreement(found, Console(file=stream, width=200))
    said = stream.getvalue()
    assert "Not reproduced" in said
    assert f"finding {record.findings[0].id}" in said
    assert "Python: " in said
    told = values(found)
    assert (told["reproduced"], told["exit_code"], told["differs"]) == (False, 6, 1)
    assert json.dumps(told)
