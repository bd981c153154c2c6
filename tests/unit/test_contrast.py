from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semlens_audit import index
from semlens_audit.assignment import assign_layer
from semlens_audit.contrast import NONE, below_mean, contrasts, project_out
from semlens_audit.data import open_data, read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.scores import unit
from semlens_audit.stages import stage_inputs
from semlens_audit.store import Store
from tests.unit import index_world as world


def slow_contrast(positive: np.ndarray, pool: np.ndarray, allowed: np.ndarray) -> int:
    best, most = NONE, -np.inf
    for i, other in enumerate(pool):
        similarity = sum(float(a) * float(b) for a, b in zip(positive, other, strict=True))
        if allowed[i] and similarity > most:
            best, most = i, similarity
    return best


class TestFormulas:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 9))
    def test_the_contrastive_sample_is_that_of_a_slow_loop(self, seed: int, positives: int, pool: int) -> None:
        rng = np.random.default_rng(seed)
        one, other = unit(rng.normal(size=(positives, 5))), unit(rng.normal(size=(pool, 5)))
        allowed = rng.random((positives, pool)) < 0.5
        assert contrasts(one, other, allowed).tolist() == [slow_contrast(p, other, row) for p, row in zip(one, allowed, strict=True)]

    def test_one_mask_serves_all_positives(self) -> None:
        rng = np.random.default_rng(0)
        one, other, allowed = unit(rng.normal(size=(7, 4))), unit(rng.normal(size=(20, 4))), rng.random(20) < 0.3
        assert contrasts(one, other, allowed).tolist() == contrasts(one, other, np.tile(allowed, (7, 1))).tolist()

    @settings(max_examples=30, deadline=None)
    @given(arrays(np.float64, (4, 3), elements=st.floats(-2, 2)), st.floats(0, 1))
    def test_what_is_left_lacks_gamma_of_the_contrastive_direction(self, positives: np.ndarray, gamma: float) -> None:
        directions = unit(np.random.default_rng(3).normal(size=(4, 3)))
        left = project_out(positives, directions, gamma)
        along = (positives * directions).sum(axis=1)
        assert np.allclose((left * directions).sum(axis=1), (1 - gamma) * along)
        across = positives - along[:, None] * directions
        assert np.allclose(left - (left * directions).sum(axis=1, keepdims=True) * directions, across)

    def test_it_finds_what_a_shared_background_hides(self) -> None:
        rng = np.random.default_rng(5)
        background, concept, other = np.eye(12)[:3]
        candidates = unit(3 * background + rng.standard_normal((200, 12)) * 0.1 + other * rng.random((200, 1)))
        positives = unit(3 * background + concept + rng.standard_normal((10, 12)) * 0.1)
        chosen = candidates[contrasts(positives, candidates, np.ones(200, dtype=bool))]
        means = {gamma: unit(project_out(positives, chosen, gamma).mean(axis=0)) for gamma in (0.0, 1.0)}
        assert means[0.0] @ concept < 0.4
        assert means[1.0] @ concept > 0.9

    def test_without_a_contrastive_sample_all_is_left(self) -> None:
        assert (project_out(np.ones((2, 3)), np.zeros((2, 3)), 1.0) == 1).all()

    def test_a_component_that_never_changes_has_no_contrastive_sample(self) -> None:
        found = below_mean(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]], dtype=np.float32))
        assert found.tolist() == [[False, True], [False, False], [False, False]]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AuditPlan, AuditPlan]]:
    """The same audit with mean and with contrastive concept embeddings, indexed into one store."""
    folder = world.write_world(tmp_path_factory.mktemp("contrast"))
    mean = world.audit()
    contrastive = mean | {"measurement": mean["measurement"] | {"concept_embedding": "contrastive", "gamma": 0.5}}
    with world.quick():
        both = world.plan(folder, mean), world.plan(folder, contrastive)
        for plan in both:
            index.build(plan)
        yield both


class TestInAnIndex:
    def test_an_audit_without_it_has_the_stages_it_always_had(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        mean, contrastive = (stage_inputs(plan, open_data(plan)) for plan in plans)
        assert {name: contrastive[name] for name in mean} == mean
        assert set(contrastive) - set(mean) == {f"contrast:{layer}" for layer in world.LAYERS}

    def test_residuals_are_those_of_a_slow_loop(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        import torch

        from semlens_audit.components import capture, pool
        from semlens_audit.subject import load_subject

        plan = plans[1]
        data = open_data(plan)
        subject = load_subject(plan)
        images = torch.stack([subject.transform(read_image(data.file(sample))) for sample in data.samples])
        with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
            evidence = index.load_evidence(plan, data, store)
            assert evidence is not None
            with torch.inference_mode(), capture(subject.model, world.LAYERS) as outputs:
                subject.model(images)
            for source in evidence.layers:
                assert source.null_samples is not None
                activations = pool(outputs[source.layer], "max").numpy()[source.null_samples]
                left, plain, crops = source.residuals, source.embeddings, source.null_embeddings
                assert left is not None
                for component, ids in enumerate(source.reference_ids):
                    below = activations[:, component] < activations[:, component].mean()
                    below &= ~np.isin(source.null_samples, ids)
                    for rank in np.flatnonzero(ids >= 0):
                        p = plain[component, rank]
                        place = slow_contrast(p, crops, below)
                        n = crops[place] if place != NONE else np.zeros_like(p)
                        assert left[component, rank] == pytest.approx(p - 0.5 * (p @ n) * n, abs=1e-6)

    def test_no_reference_sample_takes_away_what_its_component_means(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        plan = plans[1]
        data = open_data(plan)
        with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
            evidence, keys = index.load_evidence(plan, data, store), index.evidence_stages(plan, data, store)
            assert evidence is not None
            contrasted = set()
            for source in evidence.layers:
                assert source.null_samples is not None
                rows = store.arrays(
                    "SELECT component, rank, contrast FROM contrast WHERE stage = ? AND contrast <> -1", (keys[f"contrast:{source.layer}"],)
                )
                for component, position in zip(rows["component"], rows["contrast"], strict=True):
                    contrasted.add((source.layer, int(component)))
                    assert source.null_samples[position] not in source.reference_ids[component]
            assert len(contrasted) > 5

    def test_a_random_crop_is_contrasted_with_one_of_another_image(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        plan = plans[1]
        data = open_data(plan)
        with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
            evidence = index.load_evidence(plan, data, store)
            assert evidence is not None
            keys = index.evidence_stages(plan, data, store)
            for source in evidence.layers:
                rows = store.arrays(
                    "SELECT contrast FROM null_contrast WHERE stage = ? ORDER BY position", (keys[f"contrast:{source.layer}"],)
                )
                assert source.null_samples is not None
                assert source.null_residuals is not None
                assert (source.null_samples != source.null_samples[rows["contrast"]]).all()
                n = source.null_embeddings[rows["contrast"]]
                along = (source.null_embeddings * n).sum(axis=1, keepdims=True)
                assert source.null_residuals == pytest.approx(source.null_embeddings - 0.5 * along * n, abs=1e-6)

    def test_fewer_references_have_the_first_residuals(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        plan = plans[1]
        with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
            assert evidence is not None
            for first, every in zip(evidence.layers, evidence.headroom, strict=True):
                assert first.residuals is not None
                assert every.residuals is not None
                assert np.array_equal(first.residuals, every.residuals[:, : first.residuals.shape[1]])

    def test_alignment_is_that_of_the_residuals_and_clarity_that_of_the_crops(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        found = []
        for plan in plans:
            with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
                evidence = index.load_evidence(plan, open_data(plan), store)
                assert evidence is not None
                found.append([assign_layer(plan, evidence, source) for source in evidence.layers])
        for one, other in zip(*found, strict=True):
            assert np.array_equal(one.clarity, other.clarity, equal_nan=True)
            alive = one.eligible & other.eligible
            assert alive.any()
            assert not np.allclose(one.alignment[alive], other.alignment[alive])

    def test_a_complete_index_is_not_computed_again(self, plans: tuple[AuditPlan, AuditPlan], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(index, "_compute", lambda *_: pytest.fail("computed again"))
        index.build(plans[1])

    def test_gamma_is_asked_for_without_a_new_index(
        self, plans: tuple[AuditPlan, AuditPlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings_ = plans[1].audit.measurement.model_copy(update={"gamma": 0.0})
        plan = plans[1].model_copy(update={"audit": plans[1].audit.model_copy(update={"measurement": settings_})})
        monkeypatch.setattr(index, "_compute", lambda *_: pytest.fail("computed again"))
        index.build(plan)
        with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
            assert evidence is not None
            for source in evidence.layers:
                assert source.residuals is not None
                assert np.allclose(source.residuals, source.embeddings)

    def test_labels_go_by_the_embedding_that_the_audit_declares(self, plans: tuple[AuditPlan, AuditPlan]) -> None:
        from semlens_audit.atlas.opening import Atlas

        found = []
        for plan in plans:
            with Atlas(plan) as atlas:
                source = atlas.layers["layer3"]
                vectors, present = atlas.concept_embeddings("layer3"), source.reference_ids >= 0
                for component in np.flatnonzero(present.any(axis=1)):
                    mean = source.meant[component][present[component]].mean(axis=0)
                    assert vectors[component] == pytest.approx(mean, abs=1e-6)
                found.append(vectors)
        assert not np.allclose(*found)
