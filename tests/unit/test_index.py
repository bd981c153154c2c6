from __future__ import annotations

import io
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semlens_audit import index
from semlens_audit.data import DataSet, open_data, read_image
from semlens_audit.errors import AuditError, DataError, ExecutionError
from semlens_audit.evidence import Evidence
from semlens_audit.plan import AuditPlan
from semlens_audit.regions import null_regions
from semlens_audit.stages import NULL_CROPS, THUMBNAILS, stage_inputs, stage_keys
from semlens_audit.store import Store
from tests.unit import index_world as world

DEAD = 1


@dataclass(frozen=True)
class Built:
    folder: Path
    plan: AuditPlan
    store: Store
    data: DataSet
    evidence: Evidence


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    """One thread, and fewer random crops, which would be most of the work here."""
    with world.quick():
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("world"), dead=DEAD)


@pytest.fixture(scope="module")
def built(origin: Path) -> Iterator[Built]:
    plan = world.plan(origin)
    with Store.open(origin / "store.duckdb") as store:
        data = open_data(plan, store.file_digest)
        assert index.load_evidence(plan, data, store) is None
        index.build(plan, data, store)
        evidence = index.load_evidence(plan, data, store)
        assert evidence is not None
        yield Built(origin, plan, store, data, evidence)


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    """A copy of the world without a store."""
    shutil.copytree(origin, tmp_path / "world", ignore=shutil.ignore_patterns("*.duckdb*"))
    return tmp_path / "world"


def built_digest(plan: AuditPlan) -> str:
    index.build(plan)
    with Store.open(Path(plan.audit_file).parent / plan.audit.store, read_only=True) as store:
        assert index.is_complete(plan, open_data(plan), store)
        return store.content_digest()


@contextmanager
def nothing_may_be_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("something was computed again")

    with monkeypatch.context() as patched:
        patched.setattr("semlens_audit.subject.load_subject", refuse)
        patched.setattr("semlens_audit.foundation.load_foundation", refuse)
        yield


def inputs_of(built: Built):
    """The network inputs of all samples in one batch, and the loaded subject."""
    import torch

    from semlens_audit.subject import load_subject

    subject = load_subject(built.plan)
    return subject, torch.stack([subject.transform(read_image(built.data.file(sample))) for sample in built.data.samples])


class TestEvidence:
    def test_has_the_shapes_it_promises(self, built: Built) -> None:
        found, n, dimension = built.evidence, world.SAMPLES, 16
        assert found.classes == ("nevus", "melanoma")
        assert found.class_names == ("melanoma", "nevus")
        assert found.audited == (1, 0)
        assert found.paths == tuple(sample.path for sample in built.data.samples)
        assert found.logits.shape == (n, 2)
        assert found.image_embeddings.shape == (n, dimension)
        assert found.attributes["ruler"].shape == (n,)
        assert found.probes["ruler"].text.shape == (3, 2, dimension)
        assert found.probes["ruler"].examples.shape == (0, dimension)
        assert found.probes["border"].text.shape == (1, 2, dimension)
        assert found.probes["border"].examples.shape == (2, dimension)
        assert found.empty_prompts.shape == (2, dimension)
        assert [layer.layer for layer in found.layers] == list(world.LAYERS)
        for layer, components in zip(found.layers, (4, 6), strict=True):
            assert layer.reference_ids.shape == layer.activations.shape == (components, 5)
            assert layer.embeddings.shape == (components, 5, dimension)
            assert layer.boxes.shape == (components, 5, 4)
            assert layer.relevance.shape == (n, 2, components)
            assert layer.relevance.dtype == layer.embeddings.dtype == np.float32
            assert layer.conservation.shape == (n, 2)
            assert layer.dead.shape == (components,)
            assert layer.null_embeddings.shape == (40, dimension)
            assert "LRP" in layer.attribution
        assert set(found.stages) == set(stage_keys(built.plan, built.data))
        assert found.subject["parameters"] > 0
        assert found.foundation["text"] is True

    def test_outputs_and_references_are_those_of_a_slow_loop(self, built: Built) -> None:
        import torch

        subject, images = inputs_of(built)
        modules = dict(subject.model.named_modules())
        for layer in built.evidence.layers:
            seen: list[np.ndarray] = []
            handle = modules[layer.layer].register_forward_hook(lambda *call, seen=seen: seen.append(call[2].numpy()))
            with torch.inference_mode():
                logits = np.stack([subject.model(image[None])[0].numpy() for image in images])
            handle.remove()
            np.testing.assert_allclose(built.evidence.logits, logits, atol=1e-4)
            pooled = np.stack([value[0].reshape(len(value[0]), -1).max(axis=1) for value in seen])
            found = built.store.rows(
                "SELECT component, rank, sample, activation FROM reference WHERE stage = ? ORDER BY component, rank",
                (built.evidence.stages[f"references:{layer.layer}"],),
            )
            wanted = []
            for component in np.flatnonzero(~layer.dead).tolist():
                order = sorted(range(len(pooled)), key=lambda i, k=component: (-pooled[i, k], i))[:7]
                wanted += [(component, rank, sample, pooled[sample, component]) for rank, sample in enumerate(order)]
            assert [row[:3] for row in found] == [row[:3] for row in wanted]
            np.testing.assert_allclose([row[3] for row in found], [row[3] for row in wanted], rtol=1e-4)

    def test_reference_samples_are_those_of_the_largest_relevance_for_any_class(self, built: Built) -> None:
        for layer in built.evidence.layers:
            size = np.abs(layer.relevance).max(axis=1)
            for component in range(size.shape[1]):
                order = sorted(range(len(size)), key=lambda i, k=component: (-size[i, k], i))[:5]
                order = [i if size[i, component] > 0 else -1 for i in order]
                assert layer.reference_ids[component].tolist() == order

    def test_a_dead_component_has_no_references(self, built: Built) -> None:
        """semanticlens 0.2.1 gives a unit that never fires the last image as its examples, and clarity 1."""
        layer = built.evidence.layers[0]
        assert layer.dead.tolist() == [k == DEAD for k in range(4)]
        assert (layer.reference_ids[DEAD] == -1).all()
        assert not layer.embeddings[DEAD].any()
        assert not layer.activations[DEAD].any()

    def test_relevance_is_what_the_attribution_gives_for_each_class(self, built: Built) -> None:
        from semlens_audit.attribution import relevance

        subject, images = inputs_of(built)
        values, ratios = relevance(subject, images, list(world.LAYERS), [1, 0], "lrp")
        for layer in built.evidence.layers:
            np.testing.assert_allclose(layer.relevance, values[layer.layer], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(layer.conservation, ratios[layer.layer], rtol=1e-3, atol=1e-5)

    def test_boxes_are_those_of_the_heatmaps(self, built: Built) -> None:
        import torch

        from semlens_audit.attribution import boxes, heatmaps

        subject, images = inputs_of(built)
        settings = built.plan.audit.measurement
        for layer in built.evidence.layers:
            for component in np.flatnonzero(~layer.dead):
                ids = torch.from_numpy(layer.reference_ids[component])
                heat = heatmaps(subject, images[ids], layer.layer, np.full(5, component), "lrp")
                wanted = boxes(heat, settings.crop_blur, settings.crop_threshold, settings.crop_minimum)
                assert np.abs(layer.boxes[component] - wanted).max() <= 1  # a pixel at the threshold may fall either way

    def test_embeddings_are_those_of_the_crops(self, built: Built) -> None:
        from semlens_audit.foundation import load_foundation

        foundation = load_foundation(built.plan)
        foundation.precision = built.evidence.foundation["precision"]
        subject, _ = inputs_of(built)
        views = [subject.view(read_image(built.data.file(sample))) for sample in built.data.samples]
        np.testing.assert_array_equal(built.evidence.image_embeddings, foundation.embed_images(views))
        for layer in built.evidence.layers:
            for component in np.flatnonzero(~layer.dead):
                crops = [
                    views[i].crop(tuple(box))
                    for i, box in zip(layer.reference_ids[component], layer.boxes[component].tolist(), strict=True)
                ]
                np.testing.assert_array_equal(layer.embeddings[component], foundation.embed_images(crops))

    def test_probes_are_description_by_template(self, built: Built) -> None:
        """semanticlens 0.2.1 reshapes several queries x several templates in the wrong order."""
        from semlens_audit.foundation import load_foundation

        foundation = load_foundation(built.plan)
        wanted = [[f"{d}", f"a photo of {d}"] for d in ("a ruler", "ruler marks", "a scale")]
        for i, texts in enumerate(wanted):
            np.testing.assert_array_equal(built.evidence.probes["ruler"].text[i], foundation.embed_texts(texts))
        np.testing.assert_array_equal(built.evidence.empty_prompts, foundation.embed_texts(["", "a photo of "]))
        image = Image.open(built.folder / "examples" / "a.png")
        np.testing.assert_array_equal(
            built.evidence.probes["border"].examples, foundation.embed_images([image, image.crop((2, 3, 20, 22))])
        )

    def test_thumbnails_are_pictures_of_the_first_references(self, built: Built) -> None:
        assert built.evidence.thumbnails is not None
        for rank in range(min(THUMBNAILS, 5)):
            crop, overlay = (Image.open(io.BytesIO(data)) for data in built.evidence.thumbnails(world.LAYERS[0], 0, rank))
            assert crop.format == overlay.format == "JPEG"
            assert max(crop.size) == 112
            assert overlay.size == (144, 144)
        with pytest.raises(KeyError):
            built.evidence.thumbnails(world.LAYERS[0], DEAD, 0)

    def test_large_arrays_are_read_only_when_asked_for(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        real = Store.arrays
        monkeypatch.setattr(Store, "arrays", lambda self, sql, *more: asked.append(sql) or real(self, sql, *more))
        evidence = index.load_evidence(built.plan, built.data, built.store)
        assert evidence is not None
        assert not any("FROM crop JOIN region" in sql or "FROM relevance" in sql for sql in asked)
        assert evidence.layers[0].embeddings.any()
        assert any("FROM crop JOIN region" in sql for sql in asked)

    def test_concept_embeddings_are_means_of_the_crops(self, built: Built) -> None:
        layer = built.evidence.layers[1]
        rows = built.store.arrays(
            "SELECT component, vector, centred FROM meaning WHERE stage = ? ORDER BY component",
            (built.evidence.stages["null:layer3"],),
        )
        alive = rows["component"]
        np.testing.assert_allclose(rows["vector"], layer.embeddings[alive].mean(axis=1), atol=1e-6)
        centre = layer.null_embeddings.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(rows["centred"], layer.embeddings[alive].mean(axis=1) - centre, atol=1e-6)


class TestNull:
    def test_random_crops_have_the_sizes_of_real_ones_and_lie_inside(self) -> None:
        boxes = np.array([[0, 0, 8, 8], [3, 3, 23, 13], [0, 0, 32, 32]])
        sample, box = null_regions(boxes, samples=7, side=32, count=3000, seed=1, key="ab" * 32)
        width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        sizes = set(zip(width.tolist(), height.tolist(), strict=True))
        assert sizes == {(8, 8), (20, 10), (32, 32)}
        assert box.min() >= 0
        assert box.max() <= 32
        counts = np.bincount(sample, minlength=7)
        assert counts.min() > 3000 / 7 * 0.75
        small = box[width == 8]
        assert abs(np.mean(width == 8) - 1 / 3) < 0.05
        assert {0, 24} <= set(small[:, 0].tolist())  # positions reach both borders
        np.testing.assert_allclose(small[:, 0].mean(), 12, atol=1.5)

    def test_are_fixed_by_seed_and_key(self) -> None:
        boxes = np.array([[0, 0, 8, 8], [3, 3, 23, 13]])
        draw = lambda seed, key: null_regions(boxes, 50, 32, 100, seed, key)[1].tolist()  # noqa: E731
        assert draw(1, "ab" * 32) == draw(1, "ab" * 32)
        assert draw(1, "ab" * 32) != draw(2, "ab" * 32)
        assert draw(1, "ab" * 32) != draw(1, "cd" * 32)

    def test_default_is_enough_for_many_random_sets(self) -> None:
        assert NULL_CROPS >= 1000


class TestReuse:
    def test_a_complete_index_is_never_computed_again(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        before = built.store.content_digest()
        with nothing_may_be_computed(monkeypatch):
            index.build(built.plan, built.data, built.store)
        assert built.store.content_digest() == before

    def test_a_retrained_model_of_the_same_name_misses(self, folder: Path) -> None:
        """semanticlens 0.2.1 keys its cache by names, so a retrained model silently reuses stale results."""
        plan = world.plan(folder)
        index.build(plan)
        with Store.open(folder / "store.duckdb") as store:
            data = open_data(plan, store.file_digest)
            old = index.load_evidence(plan, data, store)
            assert old is not None
            old_logits, views = np.asarray(old.logits), np.asarray(old.image_embeddings)
            regions = store.rows("SELECT count(*) FROM region")[0][0]
            world.write_subject(folder / "small.safetensors", seed=5)
            assert index.load_evidence(plan, data, store) is None
            index.build(plan, data, store)
            new = index.load_evidence(plan, data, store)
            assert new is not None
            assert np.abs(new.logits - old_logits).max() > 1e-3
            # what does not depend on the model is shared: both twins of a pair are embedded once
            np.testing.assert_array_equal(new.image_embeddings, views)
            assert new.stages["views"] == old.stages["views"]
            assert store.rows("SELECT count(*) FROM region WHERE x0 = 0 AND y0 = 0 AND x1 = 32 AND y1 = 32") == [
                (world.SAMPLES,)
            ]
            assert store.rows("SELECT count(*) FROM region")[0][0] > regions

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"measurement": {"pooling": "mean"}}, {"references"}),
            ({"measurement": {"reference_samples": 4}}, {"references", "selection", "crops", "embeddings", "null"}),
            ({"measurement": {"crop_blur": 17}}, {"crops", "embeddings", "null"}),
            ({"measurement": {"crop_threshold": 0.2}}, {"crops", "embeddings", "null"}),
            ({"measurement": {"crop_minimum": 9}}, {"crops", "embeddings", "null"}),
            (
                {"measurement": {"attribution": "activation_x_gradient"}},
                {"relevance", "selection", "crops", "embeddings", "null"},
            ),
            ({"seed": 4}, {"null"}),
            ({"measurement": {"batch_size": 5}}, set()),
            ({"measurement": {"bootstrap": 500, "significance": 2.0, "confidence": 0.9}}, set()),
            ({"title": "Another", "store": "elsewhere.duckdb"}, set()),
            (
                {"subject": {"preprocessing": {"size": 32}}},
                {"outputs", "references", "relevance", "selection", "crops", "embeddings", "null"},
            ),
            (
                {"subject": {"preprocessing": {"size": 48, "mean": [0.5] * 3, "std": [0.5] * 3}}},
                {"outputs", "references", "relevance", "selection", "crops", "embeddings", "null", "foundation", "views"},
            ),
        ],
    )
    def test_a_setting_changes_the_keys_of_what_depends_on_it(
        self, built: Built, change: dict[str, Any], expected: set[str]
    ) -> None:
        values = world.audit()
        for name, value in change.items():
            values[name] = values[name] | value if isinstance(value, dict) else value
        before, after = stage_keys(built.plan, built.data), stage_keys(world.plan(built.folder, values), built.data)
        assert {name.partition(":")[0] for name in before if before[name] != after[name]} == expected

    def test_reference_samples_by_activation_need_no_selection(self, built: Built) -> None:
        values = world.audit()
        values["measurement"]["selection"] = "activation"
        inputs = stage_inputs(world.plan(built.folder, values), built.data)
        assert not any(name.startswith("selection") for name in inputs)
        assert inputs["crops:layer3"]["references"] == built.evidence.stages["references:layer3"]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"checks": [world.spec()["checks"][0] | {"criterion": {"at_most": 0.9}}]}, set()),
            ({"title": "Another", "purpose": "Another."}, set()),
            ({"templates": ["{}"]}, {"probes"}),
            ({"concepts": world.spec()["concepts"][:1]}, {"probes"}),
            ({"concepts": [c | {"role": "neutral"} for c in world.spec()["concepts"]]}, set()),
            ({"classes": {"melanoma": {}}}, {"relevance", "selection", "crops", "embeddings", "null"}),
        ],
    )
    def test_a_criterion_changes_no_key_and_a_concept_only_its_probes(
        self, built: Built, change: dict[str, Any], expected: set[str]
    ) -> None:
        after = stage_keys(world.plan(built.folder, None, world.spec(**change)), built.data)
        before = stage_keys(built.plan, built.data)
        assert {name.partition(":")[0] for name in before if before[name] != after[name]} == expected

    def test_other_data_and_another_foundation_model_miss(self, folder: Path) -> None:
        plan = world.plan(folder)
        before = stage_keys(plan, open_data(plan))
        (folder / "images" / "nevus" / "000.png").write_bytes((folder / "images" / "nevus" / "002.png").read_bytes())
        after = stage_keys(plan, open_data(plan))
        assert {name for name in before if before[name] == after[name]} == {"probes"}
        world.write_clip(folder / "clip", seed=8)
        again = stage_keys(plan, open_data(plan))
        changed = {name.partition(":")[0] for name in after if after[name] != again[name]}
        assert changed == {"foundation", "views", "embeddings", "null", "probes"}

    def test_a_changed_example_image_misses(self, folder: Path) -> None:
        plan, data = world.plan(folder), open_data(world.plan(folder))
        before = stage_keys(plan, data)
        Image.new("RGB", (30, 28)).save(folder / "examples" / "a.png")
        after = stage_keys(plan, data)
        assert [name for name in before if before[name] != after[name]] == ["probes"]

    def test_every_stage_carries_the_digest_of_the_code_that_computes_it(self, built: Built) -> None:
        inputs = stage_inputs(built.plan, built.data)
        roots = {"images", "outputs", "foundation", "references", "relevance", "selection", "crops", "null", "probes"}
        assert all(len(inputs[name]["code"]) == 64 for name in inputs if name.partition(":")[0] in roots)

    def test_reading_needs_no_torch(self, built: Built) -> None:
        code = f"""
            import sys
            from pathlib import Path
            from semlens_audit import stages
            stages.NULL_CROPS = 40
            from semlens_audit import index
            from semlens_audit.data import open_data
            from semlens_audit.store import Store
            from tests.unit import index_world
            plan = index_world.plan(Path({str(built.folder)!r}))
            with Store.open(Path({str(built.folder / "copy.duckdb")!r}), read_only=True) as store:
                evidence = index.load_evidence(plan, open_data(plan, store.file_digest), store)
                print(evidence.layers[0].embeddings.shape, evidence.layers[0].relevance.shape)
            print(sorted({{"torch", "open_clip", "timm", "zennit", "pandas"}} & set(sys.modules)))
        """
        built.store.execute("CHECKPOINT")
        shutil.copy(built.folder / "store.duckdb", built.folder / "copy.duckdb")
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


class StopError(Exception):
    """Ends a run at a chosen commit."""


class TestResume:
    def interrupt(self, monkeypatch: pytest.MonkeyPatch, plan: AuditPlan, at: int, error: type[BaseException]) -> bool:
        """Build, raising at the `at`-th commit before it is made; whether the build was interrupted."""
        real, commits = Store.execute, 0

        def execute(self: Store, sql: str, parameters: Any = ()) -> Any:
            nonlocal commits
            if sql == "COMMIT":
                commits += 1
                if commits == at:
                    raise error
            return real(self, sql, parameters)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "execute", execute)
            try:
                index.build(plan)
            except error:
                return True
        return False

    def test_interrupted_at_every_seventh_commit_it_ends_with_the_same_content(
        self, folder: Path, built: Built, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from semlens_audit import passes

        monkeypatch.setattr(passes, "_SECONDS", 0.0)  # every batch is written by itself
        plan, interruptions = world.plan(folder), 0
        while self.interrupt(monkeypatch, plan, 7, StopError if interruptions % 2 else KeyboardInterrupt):
            interruptions += 1
            assert interruptions < 40, "no progress is kept"
        assert interruptions >= 3
        with Store.open(folder / "store.duckdb") as store:
            assert store.content_digest() == built.store.content_digest()
            assert store.rows("SELECT count(*) FROM stage WHERE checkpoint IS NOT NULL") == [(0,)]

    def test_a_layer_added_later_gives_the_content_of_both_at_once(self, folder: Path, built: Built) -> None:
        index.build(world.plan(folder, world.audit(layers=[world.LAYERS[1]])))
        plan = world.plan(folder)
        index.build(plan)
        with Store.open(folder / "store.duckdb") as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
            assert evidence is not None
            for mine, other in zip(evidence.layers, built.evidence.layers, strict=True):
                np.testing.assert_array_equal(mine.reference_ids, other.reference_ids)
                np.testing.assert_array_equal(mine.boxes, other.boxes)
                np.testing.assert_allclose(mine.embeddings, other.embeddings, atol=1e-6)
                np.testing.assert_allclose(mine.relevance, other.relevance, atol=1e-6)

    def test_streams_at_different_places_catch_up(self, folder: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        from semlens_audit import passes

        monkeypatch.setattr(passes, "_SECONDS", 0.0)  # every batch is written by itself
        one = world.plan(folder, world.audit(layers=[world.LAYERS[1]]))
        # the empty store, the check of the images, two stages begun and settled, the first batch; the second is cut off
        assert self.interrupt(monkeypatch, one, 8, StopError)
        with Store.open(folder / "store.duckdb") as store:
            done = dict(store.rows("SELECT name, done FROM stage"))
        assert 0 < done[f"references:{world.LAYERS[1]}"] < world.SAMPLES
        plan = world.plan(folder)
        index.build(plan)
        with Store.open(folder / "store.duckdb") as store:
            assert store.content_digest() == built.store.content_digest()

    def test_settings_of_speed_change_no_reference(self, folder: Path, built: Built) -> None:
        values = world.audit()
        values["measurement"]["batch_size"] = 5
        plan = world.plan(folder, values)
        index.build(plan)
        with Store.open(folder / "store.duckdb") as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
            assert evidence is not None
            for mine, other in zip(evidence.layers, built.evidence.layers, strict=True):
                np.testing.assert_array_equal(mine.reference_ids, other.reference_ids)
                np.testing.assert_allclose(mine.activations, other.activations, rtol=1e-3)
                np.testing.assert_allclose(mine.relevance, other.relevance, atol=1e-5)


class TestInputs:
    def test_fewer_samples_than_references(self, tmp_path: Path) -> None:
        folder = world.write_world(tmp_path / "w")
        shutil.rmtree(folder / "images")
        world.write_images(folder / "images", samples=3)
        values = world.audit()
        values["measurement"]["selection"] = "activation"
        plan = world.plan(folder, values)
        built_digest(plan)
        with Store.open(folder / "store.duckdb") as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
            assert evidence is not None
            layer = evidence.layers[1]
            alive = ~layer.dead
            assert (np.sort(layer.reference_ids[alive], axis=1) == [-1, -1, 0, 1, 2]).all()
            assert (layer.reference_ids[alive][:, 3:] == -1).all()
            assert not layer.embeddings[:, 3:].any()

    def test_every_broken_image_is_named_before_anything_is_computed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("nevus/000.png", "melanoma/003.png"):
            file = folder / "images" / name
            file.write_bytes(file.read_bytes()[:60])
        with nothing_may_be_computed(monkeypatch), pytest.raises(DataError) as caught:
            index.build(world.plan(folder))
        assert len(caught.value.problems) == 2

    def test_a_box_outside_its_example_image(self, folder: Path) -> None:
        values = world.spec()
        values["concepts"][1]["examples"] = [{"image": "examples/a.png", "box": [2, 3, 29, 22]}]
        with pytest.raises(DataError) as caught:
            index.build(world.plan(folder, None, values))
        assert caught.value.slug == "box-outside-image"
        assert "28 x 30" in str(caught.value)

    def test_a_missing_example_image(self, folder: Path) -> None:
        (folder / "examples" / "a.png").unlink()
        with pytest.raises(AuditError) as caught:
            index.build(world.plan(folder))
        assert caught.value.slug == "missing-example"

    def test_a_model_that_gives_nan_on_some_sample_names_it(self, folder: Path) -> None:
        code = textwrap.dedent("""
            import torch
            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer1 = torch.nn.Conv2d(3, 4, 3)
                    self.head = torch.nn.Linear(4, 2)
                def forward(self, x):
                    y = self.head(self.layer1(x).mean(dim=(2, 3)))
                    return torch.where(x.mean(dim=(1, 2, 3))[:, None] > 0.1, torch.nan, y)
            def net():
                torch.manual_seed(0)
                return Net()
        """)
        (folder / "net.py").write_text(code)
        Image.new("RGB", (40, 40), (255, 255, 255)).save(folder / "images" / "nevus" / "zzz.png")
        values = world.audit(layers=["layer1"])
        values["subject"]["model"] = {"source": "code", "name": "net.py:net"}
        values["data"].pop("attributes")
        with pytest.raises(ExecutionError) as caught:
            index.build(world.plan(folder, values), allow_code=True)
        assert caught.value.slug == "not-finite"
        assert "nevus/zzz.png" in str(caught.value)

    def test_an_image_only_foundation_model_with_examples(self, folder: Path) -> None:
        world.write_subject(folder / "encoder.safetensors", seed=4)
        values = world.audit(
            layers=["layer3"],
            foundation_model={
                "source": "timm",
                "name": "resnet18",
                "weights": "encoder.safetensors",
                "arguments": {"channels": list(world.CHANNELS), "num_classes": 2},
                "preprocessing": {"size": 32},
            },
        )
        plan = world.plan(folder, values)
        index.build(plan)
        with Store.open(folder / "store.duckdb") as store:
            evidence = index.load_evidence(plan, open_data(plan), store)
        assert evidence is not None
        assert evidence.foundation["text"] is False
        assert evidence.probes["ruler"].text.shape == (0, 0, 8)
        assert evidence.probes["border"].examples.shape == (2, 8)
        assert evidence.empty_prompts.shape == (0, 8)
        reworded = world.spec()
        reworded["concepts"][0]["descriptions"] = ["something else"]
        data = open_data(plan)
        assert stage_keys(plan, data) == stage_keys(world.plan(folder, values, reworded), data)
