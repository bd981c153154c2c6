"""How values move with their samples: against leaving samples out, and against the intervals that rest on the same draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from semlens_audit import checks
from semlens_audit.data_measure import measure_data
from semlens_audit.difference import correlation, influence_values
from semlens_audit.effect_measure import measure_effects
from semlens_audit.evidence import Evidence, PairEvidence
from semlens_audit.influence import LENGTH, Influences, definitions, influences, unit_groups
from semlens_audit.measure import Measurements, measure
from semlens_audit.plan import AuditPlan
from tests.benchmarks.change_world import Model, World, plan
from tests.benchmarks.coverage_world import Population

SIZE = {"samples": 120, "crops": 200, "dimension": 16}
ASKED = plan(bootstrap=200, null_sets=100, reference_samples=10)


def model() -> Model:
    return Model(Population.draw(5, near=0.1, components=8, samples=120, dimension=16))


@pytest.fixture(scope="module")
def audited() -> tuple[World, Evidence, Measurements, Influences]:
    world = World(1, **SIZE)
    evidence = world.evidence(model(), 0)
    quantities = checks.quantities(ASKED)
    measured = measure(ASKED, evidence, quantities)
    return world, evidence, measured, influences(ASKED, world.data, evidence, measured, quantities)


def vector(found: Influences, kind: str) -> np.ndarray:
    return influence_values(next(one for one in found.records if one.quantity.startswith(f"{kind}|")))


def key(kind: str) -> str:
    return next(quantity.key for quantity in checks.quantities(ASKED) if quantity.kind == kind)


def groups(world: World) -> np.ndarray:
    digests = [sample.sha256 for sample in world.data.samples]
    return unit_groups(np.arange(len(digests)), digests)[0]


def without_presence(evidence: Evidence, sample: int) -> Evidence:
    """The evidence in which nothing is known of whether one sample shows the ruler, so that effect and gap leave it out."""
    column = evidence.attributes["ruler"].copy()
    column[sample] = -1
    return replace(evidence, attributes={"ruler": column})


def signed(asked: AuditPlan, evidence: Evidence, kind: str) -> float:
    """Effect or gap with its sign."""
    if kind == "behavioural_effect":
        records, _ = measure_effects(asked, evidence)
        chosen = min((r for r in records if r.concept == "ruler"), key=lambda r: r.presence.source != "attributes")
        value = chosen.effect.value
    else:
        found = measure_data(asked, evidence, checks.quantities(asked), {})
        part = next(record for record in found.presence if record.concept == "ruler").subgroups[0]
        value = part.gap.value
    assert value is not None
    return value


def test_every_measured_quantity_has_its_influences(audited: tuple[World, Evidence, Measurements, Influences]) -> None:
    _, _, measured, found = audited
    assert {one.quantity for one in found.records} == {k for k, m in measured.quantities.items() if m.value is not None}
    basis = {one.quantity.split("|")[0]: one.basis for one in found.records}
    assert basis["spurious_reliance"] == basis["clarity"] == "draws"
    assert basis["behavioural_effect"] == basis["subgroup_gap"] == "samples"
    assert basis["pair_effect"] == "pairs"


@pytest.mark.parametrize("kind", ["behavioural_effect", "subgroup_gap"])
def test_influences_are_what_leaving_a_sample_out_changes(
    kind: str, audited: tuple[World, Evidence, Measurements, Influences]
) -> None:
    # a slow loop over the real measure: nothing here knows how influences are derived
    world, evidence, _, found = audited
    own, place = vector(found, kind), groups(world)
    whole = signed(ASKED, evidence, kind)
    chosen = range(0, len(place), 5)
    left_out = np.array([whole - signed(ASKED, without_presence(evidence, sample), kind) for sample in chosen])
    held = np.array([own[place[sample]] for sample in chosen])
    assert np.abs(left_out).max() > 1e-3
    moved = np.abs(left_out) > 1e-9
    if kind == "behavioural_effect":
        # but for the degrees of freedom, which widen all alike, the influence is the jackknife's
        ratio = held[moved] / left_out[moved]
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.01)
        assert 1.0 <= np.median(ratio) < 1.1
    else:
        np.testing.assert_allclose(held[moved], left_out[moved], rtol=0.05)
        np.testing.assert_allclose(held[~moved], 0.0, atol=1e-9)


def test_influences_of_pairs_are_what_leaving_a_pair_out_changes(
    audited: tuple[World, Evidence, Measurements, Influences],
) -> None:
    world, evidence, _, found = audited
    pairs = evidence.pairs
    assert pairs is not None
    own = vector(found, "pair_effect")
    digests = world.data.pairs
    assert digests is not None

    def value(rows: np.ndarray) -> float:
        part = PairEvidence(("ruler",) * len(rows), pairs.without[rows], pairs.present[rows], pairs.units[rows])
        effect = measure_data(ASKED, replace(evidence, pairs=part), checks.quantities(ASKED), {}).pairs[0].effect
        assert effect.value is not None
        return effect.value

    everything = np.arange(len(pairs.concepts))
    left_out = np.array([value(everything) - value(np.delete(everything, row)) for row in everything])
    # groups are in the order of content; the same numbers stand in both
    np.testing.assert_allclose(np.sort(own), np.sort(left_out), rtol=0.03, atol=1e-6)


def test_squares_add_up_to_the_variance_that_the_interval_shows(
    audited: tuple[World, Evidence, Measurements, Influences],
) -> None:
    _, _, measured, found = audited
    for kind, tolerance in (
        ("behavioural_effect", 0.25),
        ("pair_effect", 0.05),
        ("subgroup_gap", 0.25),
        ("valid_reliance", 0.35),
        # its draws lie to one side of the estimate, which widens the interval to the other
        ("spurious_reliance", 0.65),
    ):
        measurement = measured.quantities[key(kind)]
        assert measurement.value is not None
        assert measurement.interval is not None
        # the outer side: an interval of a size, or of a share near its bound, is cut on the other
        half = max(measurement.interval.high - measurement.value, measurement.value - measurement.interval.low)
        deviation = float(np.sqrt((vector(found, kind) ** 2).sum()))
        assert half / 1.96 == pytest.approx(deviation, rel=tolerance), kind


def test_draws_are_those_of_the_interval(audited: tuple[World, Evidence, Measurements, Influences]) -> None:
    _, _, measured, found = audited
    for kind in ("spurious_reliance", "valid_reliance", "unexplained_relevance", "clarity"):
        measurement = measured.quantities[key(kind)]
        assert measurement.interval is not None
        own = vector(found, kind) * np.sqrt(200)
        low, middle, high = np.quantile(own, [0.025, 0.5, 0.975])
        assert measurement.value is not None
        ends = np.array([measurement.interval.low, measurement.interval.high])
        # each end is the outer one of the percentile and of the percentile shifted by the median's distance: one of them is shifted
        shifted = measurement.value + np.array([low, high]) - middle
        assert np.isclose(ends, shifted, atol=1e-5).any(), kind


def test_models_that_err_on_the_same_samples_are_correlated() -> None:
    quantities = checks.quantities(ASKED)
    rho: dict[str, list[float]] = {}
    for seed in range(3):
        world = World(10 + seed, **SIZE)
        both = []
        for number in (0, 1):
            evidence = world.evidence(model(), number)
            measured = measure(ASKED, evidence, quantities)
            both.append(influences(ASKED, world.data, evidence, measured, quantities))
        for old, new in zip(both[0].records, both[1].records, strict=True):
            assert (old.quantity, old.basis_sha256) == (new.quantity, new.basis_sha256)
            rho.setdefault(old.basis, []).append(correlation(influence_values(old), influence_values(new)))
    # six tenths of the variance of margins and steps are the samples'
    assert 0.35 < np.mean(rho["samples"]) < 0.8
    assert 0.35 < np.mean(rho["pairs"]) < 0.8
    assert 0.05 < np.mean(rho["draws"]) < 0.8


def test_groups_follow_the_content_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    units = np.array([0, 0, 1, 2, 3, 3, 4])
    digests = [f"{i:064x}" for i in range(7)]
    order = rng.permutation(7)
    renumbered = np.array([7, 5, 9, 1, 3])
    first, identity = unit_groups(units, digests)
    second, again = unit_groups(renumbered[units[order]], [digests[i] for i in order])
    assert identity == again
    assert [first[unit] for unit in units[order]] == [second[unit] for unit in renumbered[units[order]]]
    assert sorted(set(first.tolist())) == [0, 1, 2, 3, 4]
    assert second[0] == -1
    assert unit_groups(units, [*digests[:-1], "f" * 64])[1] != identity
    assert unit_groups(np.arange(7), digests)[1] != identity


def test_many_units_are_folded_without_losing_variance() -> None:
    world = World(3, samples=1500, crops=200, dimension=16)
    asked = plan(bootstrap=100, null_sets=100, reference_samples=10)
    evidence, quantities = world.evidence(model(), 0), checks.quantities(asked)
    measured = measure(asked, evidence, quantities)
    found = influences(asked, world.data, evidence, measured, quantities)
    effect = next(one for one in found.records if one.basis == "samples")
    assert effect.length == LENGTH
    assert all(len(one.values) <= 4 * (4 * LENGTH + 2) / 3 for one in found.records)
    measurement = measured.quantities[effect.quantity]
    assert measurement.value is not None
    assert measurement.interval is not None
    deviation = float(np.sqrt((influence_values(effect) ** 2).sum()))
    assert (measurement.interval.high - measurement.value) / 1.96 == pytest.approx(deviation, rel=0.25)


def test_damaged_influences_are_refused(audited: tuple[World, Evidence, Measurements, Influences]) -> None:
    record = audited[3].records[0]
    for values in ("", "AAAA", "not base64", record.values[:-8], "AADAfw=="):
        with pytest.raises(ValueError):
            influence_values(
                record.model_copy(update={"values": values, "length": 1 if values == "AADAfw==" else record.length})
            )


def test_a_definition_is_everything_that_defines() -> None:
    probes = {
        "concepts": {
            name: {"descriptions": [name], "examples": [["0" * 64, [0, 0, 8, 8]]]}
            for name in ("border", "ruler", "hair", "ink")
        },
        "templates": ["{}"],
    }
    base = definitions(ASKED, probes)
    assert len(set(base.values())) == 4
    other = {**probes, "concepts": {**probes["concepts"], "ruler": {"descriptions": ["a ruler"], "examples": []}}}
    assert {name for name, sha256 in definitions(ASKED, other).items() if sha256 != base[name]} == {"ruler"}
    assert not set(definitions(ASKED, {**probes, "templates": ["a {}"]}).values()) & set(base.values())
