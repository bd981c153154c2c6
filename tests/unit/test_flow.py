"""Where relevance flows, read some samples at a time: against slow loops, whatever the blocks."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import evidence as evidence_module
from semlens_audit import flow
from semlens_audit.draws import draw_units
from semlens_audit.errors import DataError, StoreError
from semlens_audit.evidence import Evidence
from semlens_audit.flow import ClassFlow, Flows, class_shares
from semlens_audit.plan import AuditPlan
from tests.unit import synthetic

CLASSES, COMPONENTS, DRAWS = 3, 5, 100
PLAN = synthetic.plan(bootstrap=DRAWS)


def made_up(samples: int, seed: int, *, empty: int | None = None, groups: bool = False) -> Evidence:
    """Evidence with three audited classes, of which one may have no sample; some samples carry no relevance."""
    rng = np.random.default_rng(seed)
    source = synthetic.evidence({None: 1.0}, samples=12)
    labels = rng.integers(0, 4, samples)
    if empty is not None:
        labels = np.where(labels == (2, 0, 3)[empty], 1, labels)
    relevance = rng.normal(size=(samples, CLASSES, COMPONENTS)).astype(np.float32) ** 3
    relevance[rng.random(samples) < 0.2] = 0.0
    layer = replace(source.layers[0], relevance=relevance, dead=np.zeros(COMPONENTS, dtype=bool))
    return replace(
        source,
        classes=("a", "b", "c", "d"),
        audited=(2, 0, 3),
        class_names=("c", "a", "d"),
        labels=labels,
        logits=np.zeros((samples, 4), dtype=np.float32),
        groups=rng.integers(0, max(samples // 2, 1), samples) if groups else None,
        layers=(layer,),
    )


def looped(plan: AuditPlan, evidence: Evidence, position: int) -> ClassFlow:
    """The flow of one class, one sample and one draw after the other."""
    weights = draw_units(plan)
    own = [i for i in range(len(evidence.labels)) if evidence.labels[i] == evidence.audited[position]]
    relevance = evidence.layers[0].relevance[:, position].astype(float)
    carried = [i for i in own if abs(relevance[i]).sum() > 0]
    n, units = len(carried), evidence.units
    shares = {i: abs(relevance[i]) / abs(relevance[i]).sum() for i in carried}
    mean = sum((shares[i] for i in carried), np.zeros(COMPONENTS)) / max(n, 1)
    repeats = [sum(units[j] == units[i] for j in carried) for i in carried]
    independent = n**2 / sum(repeats) if n else 0.0
    factor = np.sqrt((independent + 1) / (independent - 1)) if independent >= 2 else 1.0
    drawn = np.zeros((DRAWS, COMPONENTS))
    for draw in range(DRAWS if n else 0):
        each = [float(weights.of(np.array([units[i]]))[0, draw]) for i in carried]
        drawn[draw] = mean + factor * (sum(w * shares[i] for w, i in zip(each, carried, strict=True)) / sum(each) - mean)
    return ClassFlow(
        len(own),
        len({int(units[i]) for i in own}),
        n,
        len({int(units[i]) for i in carried}),
        mean,
        drawn,
        sum((abs(relevance[i]) for i in carried), np.zeros(COMPONENTS)) / max(n, 1),
        sum((relevance[i] for i in carried), np.zeros(COMPONENTS)) / max(n, 1),
    )


def same(found: ClassFlow, expected: ClassFlow) -> None:
    for name in ("rows", "units", "samples", "carried_units"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("mean", "magnitude", "signed"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-14, err_msg=name)
    assert found.drawn.dtype == np.float32
    np.testing.assert_allclose(found.drawn, expected.drawn, rtol=1e-5, atol=1e-6)


def bitwise(one: ClassFlow, other: ClassFlow) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 23),
    seed=st.integers(0, 10_000),
    empty=st.sampled_from([None, 0, 1, 2]),
    groups=st.booleans(),
    rows=st.integers(1, 24),
)
def test_streamed_is_the_loop(samples: int, seed: int, empty: int | None, groups: bool, rows: int) -> None:
    evidence = made_up(samples, seed, empty=empty, groups=groups)
    with mock.patch.object(flow, "_ROWS", rows):
        flows = Flows(PLAN, evidence)
        for position in range(CLASSES):
            same(flows.of(evidence.layers[0], position), looped(PLAN, evidence, position))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), read=st.integers(1, 90), sums=st.sampled_from([1, 2 * DRAWS * COMPONENTS, 1 << 24]))
def test_how_it_was_read_changes_no_bit(seed: int, read: int, sums: int) -> None:
    evidence = made_up(80, seed, groups=True)
    whole = Flows(PLAN, evidence)
    with mock.patch.object(evidence_module, "SAMPLES", read), mock.patch.object(flow, "_SUMS", sums):
        parts = Flows(PLAN, evidence)
        for position in (2, 0, 1):
            found, expected = (one.of(evidence.layers[0], position) for one in (parts, whole))
            assert bitwise(found, expected)


def test_relevance_is_read_once_and_draws_come_back_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_IN_MEMORY", 1)
    evidence = made_up(60, 1)
    layer, expected = evidence.layers[0], Flows(PLAN, evidence)
    flows = Flows(PLAN, evidence)
    first = [flows.of(layer, position) for position in range(CLASSES)]
    blank = replace(layer, relevance=np.zeros_like(layer.relevance))
    again = [flows.of(blank, position) for position in (2, 1, 0)][::-1]
    for position, (one, other) in enumerate(zip(first, again, strict=True)):
        assert bitwise(one, other)
        assert bitwise(one, expected.of(layer, position))


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = made_up(20, 1)
    flows = Flows(PLAN, evidence)
    monkeypatch.setattr(flows, "_drawn", mock.Mock(write=mock.Mock(side_effect=OSError(28, "No space left on device"))))
    with pytest.raises(StoreError, match=r"cannot be written: No space left on device") as raised:
        flows.of(evidence.layers[0], 0)
    assert raised.value.problems[0].slug == "temporary-file"


def test_relevance_that_is_not_finite_is_refused_with_its_count() -> None:
    evidence = made_up(50, 2)
    relevance = evidence.layers[0].relevance.copy()
    own = np.flatnonzero(evidence.labels == evidence.audited[1])
    relevance[own[:2], 1, 3], relevance[own[2], 1, 0] = np.nan, np.inf
    broken = replace(evidence.layers[0], relevance=relevance)
    with pytest.raises(DataError, match=r"relevances in layer layer1 hold 3 values"):
        Flows(PLAN, evidence).of(broken, 0)


def test_mean_shares_of_classes_are_the_loop_s() -> None:
    evidence = made_up(40, 3, empty=1)
    found = class_shares(evidence.layers[0], evidence.labels, evidence.audited)
    for position, index in enumerate(evidence.audited):
        rows = [evidence.layers[0].relevance[i, position].astype(float) for i in np.flatnonzero(evidence.labels == index)]
        shares = [abs(row) / abs(row).sum() if abs(row).sum() else 0 * row for row in rows]
        np.testing.assert_allclose(found[position], np.mean(shares, axis=0) if shares else np.zeros(COMPONENTS), atol=1e-12)
