"""Audits of what is not there: no verdict is confidently wrong more often than its level allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semlens_audit import checks
from semlens_audit.effect_measure import effect_quantities, measure_effects
from semlens_audit.errors import ExitCode
from semlens_audit.evidence import Evidence
from semlens_audit.measure import measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import Finding
from semlens_audit.scores import unit
from semlens_audit.spec import read_plan
from tests.unit import synthetic

SHORTCUT: dict[str | None, float] = {"border": 0.1, "ruler": 0.6, "hair": 0.0, None: 0.3}
QUICK: dict[str, Any] = {"bootstrap": 200, "null_sets": 150}
SEEDS = 40


def _plan(effect: float = 1.0) -> AuditPlan:
    """A plan whose criteria are strict enough for noise to miss them on either side."""
    return synthetic.plan(
        [
            synthetic.check("no-ruler", "concept_not_used", {"at_most": 0.05}, concepts=["ruler"]),
            synthetic.check("spurious", "spurious_reliance", {"at_most": 0.05}),
            synthetic.check("valid", "valid_reliance", {"at_least": 0.05}),
            synthetic.check("explained", "unexplained_relevance", {"at_most": 0.95}),
            synthetic.check("ruler-effect", "behavioural_effect", {"at_most": effect}, concepts=["ruler"]),
        ],
        **QUICK,
    )


def _found(plan: AuditPlan, evidence: Evidence) -> dict[str, Finding]:
    measured = measure(plan, evidence, checks.quantities(plan))
    return {f.check: f for f in checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised)}


def _rates(plan: AuditPlan, worlds: list[Evidence]) -> dict[str, dict[str, float]]:
    """Check -> state -> share of the audits."""
    states: dict[str, list[str]] = {check.id: [] for check in plan.spec.checks}
    for evidence in worlds:
        for name, finding in _found(plan, evidence).items():
            states[name].append(finding.state)
    return {name: {state: seen.count(state) / len(seen) for state in set(seen)} for name, seen in states.items()}


def _effect_rates(effect: float, worlds: list[Evidence]) -> dict[str, float]:
    """State -> share of the audits, of the one check on the ruler's effect; relevance is left alone."""
    check = synthetic.check("ruler-effect", "behavioural_effect", {"at_most": effect}, concepts=["ruler"])
    plan, states = synthetic.plan([check], **QUICK), []
    for evidence in worlds:
        records, _ = measure_effects(plan, evidence)
        values = effect_quantities(checks.quantities(plan), records, {})
        states.append(checks.findings(plan, values, [])[0].state)
    return {state: states.count(state) / len(states) for state in set(states)}


def _with_layer(evidence: Evidence, **changes: object) -> Evidence:
    return dataclasses.replace(evidence, layers=(dataclasses.replace(evidence.layers[0], **changes),))  # type: ignore[arg-type]


def _random_embeddings(seed: int) -> Evidence:
    """Components whose reference samples are random crops: a network, or a foundation model, with random weights."""
    rng, evidence = np.random.default_rng([seed, 1]), synthetic.evidence(SHORTCUT, samples=100, seed=seed)
    crops = unit(rng.normal(size=evidence.layers[0].embeddings.shape)).astype(np.float32)
    relevance = rng.normal(size=evidence.layers[0].relevance.shape).astype(np.float32)
    images = unit(rng.normal(size=evidence.image_embeddings.shape)).astype(np.float32)
    return dataclasses.replace(
        _with_layer(evidence, embeddings=crops, relevance=relevance), image_embeddings=images, attributes={}
    )


def test_random_weights_rely_on_nothing_and_prove_nothing() -> None:
    rates = _rates(_plan(), [_random_embeddings(seed) for seed in range(SEEDS)])
    for name in ("no-ruler", "spurious"):
        assert rates[name].get("not_satisfied", 0.0) == 0.0, rates
    for name in ("valid", "explained"):
        assert rates[name].get("satisfied", 0.0) == 0.0, rates


def test_random_labels_leave_no_effect_and_no_confident_violation() -> None:
    """Margins that follow neither the label nor the ruler: an effect of 0 against a criterion that only 0 meets."""
    worlds = []
    for seed in range(3 * SEEDS):
        rng, evidence = np.random.default_rng([seed, 2]), synthetic.evidence(SHORTCUT, samples=100, seed=seed)
        margin = rng.normal(size=100)
        worlds.append(
            dataclasses.replace(
                evidence,
                labels=rng.permutation(evidence.labels),
                logits=np.stack([0 * margin, margin], axis=1).astype(np.float32),
            )
        )
    rates = _effect_rates(0.0, worlds)
    assert rates.get("not_satisfied", 0.0) <= 0.1, "5 % nominal, of 120"
    assert rates.get("satisfied", 0.0) == 0.0


@pytest.mark.parametrize("source", ["attributes", "foundation model"])
def test_an_effect_exactly_on_its_criterion_is_seldom_called_a_violation(source: str) -> None:
    worlds = [synthetic.evidence(SHORTCUT, samples=120, effect=1.0, seed=seed) for seed in range(3 * SEEDS)]
    if source != "attributes":
        worlds = [dataclasses.replace(world, attributes={}) for world in worlds]
    rates = _effect_rates(1.0, worlds)
    assert rates.get("not_satisfied", 0.0) <= 0.075, "2.5 % nominal, of 120"
    if source == "attributes":
        assert rates.get("satisfied", 0.0) <= 0.075


def test_a_concept_that_no_image_holds_is_never_relied_on() -> None:
    worlds = []
    for seed in range(SEEDS):
        evidence = synthetic.evidence({"border": 0.8, "ruler": 0.0, "hair": 0.0, None: 0.2}, samples=120, seed=seed)
        rng, layer = np.random.default_rng([seed, 3]), evidence.layers[0]
        # No ruler anywhere: not in the images, and so in no component's crops either.
        crops = layer.embeddings.copy()
        crops[3:6] = layer.null_embeddings[rng.integers(600, size=(3, 12))]
        relevance = layer.relevance.copy()
        relevance[:, :, 3:6] = np.exp(rng.normal(-1.0, 0.2, relevance[:, :, 3:6].shape))
        images = unit(rng.normal(size=evidence.image_embeddings.shape)).astype(np.float32)
        worlds.append(
            dataclasses.replace(
                _with_layer(evidence, embeddings=crops, relevance=relevance),
                image_embeddings=images,
                attributes={"ruler": np.zeros(120, dtype=np.int8)} if seed % 2 else {},
            )
        )
    rates = _rates(_plan(0.3), worlds)
    assert rates["no-ruler"].get("not_satisfied", 0.0) == 0.0, rates
    assert rates["spurious"].get("not_satisfied", 0.0) == 0.0, rates
    assert rates["ruler-effect"].get("not_satisfied", 0.0) <= 0.05, rates
    unseen = _found(_plan(0.3), worlds[1])["ruler-effect"]
    assert unseen.state == "not_measured"
    assert "present in 0 of 120 samples" in unseen.explanation


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_concepts_swapped_between_roles_are_judged_by_their_new_role(share: float) -> None:
    """The border counts as spurious and the ruler as valid: findings follow the shares put in, never the names."""
    plan = _plan()
    roles = {"border": "spurious", "ruler": "valid", "hair": "valid"}
    concepts = tuple(c.model_copy(update={"role": roles[c.id]}) for c in plan.spec.concepts)
    checks_ = tuple(c.model_copy(update={"concepts": ("border",)}) if c.id == "no-ruler" else c for c in plan.spec.checks[:4])
    swapped = plan.model_copy(update={"spec": plan.spec.model_copy(update={"concepts": concepts, "checks": checks_})})
    mixture: dict[str | None, float] = {"border": share, "ruler": 0.62 - share, "hair": 0.0, None: 0.38}
    rates = _rates(swapped, [synthetic.evidence(mixture, samples=100, seed=seed) for seed in range(SEEDS // 4)])
    wrong = {
        "no-ruler": "satisfied" if share > 0.05 else "not_satisfied",
        "spurious": "satisfied" if share > 0.05 else "not_satisfied",
        "valid": "satisfied" if 0.62 - share < 0.05 else "not_satisfied",
        "explained": "not_satisfied",
    }
    assert {name: rates[name].get(state, 0.0) for name, state in wrong.items()} == dict.fromkeys(wrong, 0.0)


def test_a_margin_that_hardly_varies_rests_on_nothing() -> None:
    """Shares add up to 1 whatever they are shares of: relevance of an output that is all but constant is no reliance."""
    evidence = synthetic.evidence(SHORTCUT, samples=100)
    quiet = dataclasses.replace(evidence, logits=evidence.logits * np.float32(0.01))
    found = _found(_plan(), quiet)
    assert {found[name].state for name in ("no-ruler", "spurious", "valid", "explained")} == {"not_measured"}
    assert "hardly varies" in found["no-ruler"].explanation
    assert _found(_plan(), evidence)["no-ruler"].state == "not_satisfied"


def test_an_untrained_network_on_the_phantom_is_neither_passed_nor_accused(tmp_path: Path) -> None:
    """Its components do answer to hair and red skin, and hold shares of a relevance that decides nothing."""
    import semlens_audit._torchvision  # noqa: F401  isort: skip
    import timm  # isort: skip
    import torch
    from safetensors.torch import save_file

    from semlens_audit import engine

    plan = read_plan(Path(__file__).parents[2] / "audits" / "phantom-clean.yaml")
    audit = plan.audit
    torch.manual_seed(0)
    weights = timm.create_model(audit.subject.model.name, **audit.subject.model.arguments).state_dict()
    save_file(weights, str(tmp_path / "untrained.safetensors"))
    model = audit.subject.model.model_copy(update={"weights": str(tmp_path / "untrained.safetensors")})
    changes = {
        "subject": audit.subject.model_copy(update={"model": model}),
        "data": audit.data.model_copy(update={"samples": 80}),
        "measurement": audit.measurement.model_copy(update=QUICK | {"intervention": "none"}),
        "store": str(tmp_path / "store.duckdb"),
    }
    record = engine.run(plan.model_copy(update={"audit": audit.model_copy(update=changes)}), command="test")
    assert record.verdict.exit_code is ExitCode.INCOMPLETE
    assert {finding.state for finding in record.findings if finding.line == "mechanistic"} == {"not_measured"}
    assert all(finding.state != "not_satisfied" for finding in record.findings)
