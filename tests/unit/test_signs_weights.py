from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semlens_audit import spec
from semlens_audit.foundation import load_foundation
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.signs import encoder, evaluate_foundation, examples, world
from semlens_audit.signs.crops import COLOURS, FACTS, SIDE, Crops, rendered
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES
from semlens_audit.signs.train_foundation import _loss, _prototypes, save, train
from semlens_audit.statistics import auroc

WEIGHTS = Path(encoder.__file__).parent / "weights"
AUDIT = Path(encoder.__file__).parents[2] / "audits" / "signs.yaml"
FRESH = 2_600_000  # seeds of places that neither training nor the model card has seen


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plan() -> AuditPlan:
    return spec.read_plan(AUDIT)


@pytest.fixture(scope="module")
def crops() -> Crops:
    return rendered(FRESH, 150, 3, 1)


@pytest.fixture(scope="module")
def table(crops: Crops) -> dict[str, dict[str, float]]:
    shown = {name: examples.pictures(name) for name in examples.CONCEPTS}
    return evaluate_foundation.presence(encoder.load(WEIGHTS / "foundation" / encoder.FILE), crops, shown)


def test_weights_fit_the_budget_and_are_finite() -> None:
    assert (WEIGHTS / "foundation" / encoder.FILE).stat().st_size <= 1.3e6
    assert (WEIGHTS / "shortcut" / "model.safetensors").stat().st_size <= 2e6
    model = encoder.load(WEIGHTS / "foundation" / encoder.FILE)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_the_audit_finds_its_files_by_name(plan: AuditPlan) -> None:
    assert plan.audit.foundation_model.weights == "signs:foundation"
    assert resolve(plan, "signs:foundation") == WEIGHTS / "foundation" / encoder.FILE
    assert resolve(plan, "signs:shortcut") == WEIGHTS / "shortcut" / "model.safetensors"
    with pytest.raises(spec.SpecError, match="no shipped model `signs:clip`"):
        resolve(plan, "signs:clip")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_handful_of_examples_finds_each_attribute(table: dict[str, dict[str, float]], name: str) -> None:
    assert table[name]["whole images"] >= (0.9 if name in ARTEFACTS else 0.8)
    assert table[name]["crops"] >= (0.9 if name in ARTEFACTS else 0.8)


def test_the_model_card_states_what_is_measured(table: dict[str, dict[str, float]]) -> None:
    card = (WEIGHTS / "foundation" / "README.md").read_text()
    rows = {row[0]: row[1:] for row in re.findall(r"^\| (\w+) \| (?:valid|artefact) \| ([\d.]+) \| ([\d.]+) \|$", card, re.M)}
    assert set(rows) == set(ATTRIBUTES)
    for name, (whole, part) in rows.items():
        assert abs(float(whole) - table[name]["whole images"]) < 0.06, name
        assert abs(float(part) - table[name]["crops"]) < 0.06, name


def test_the_tool_embeds_as_the_training_did(plan: AuditPlan, crops: Crops) -> None:
    """The same pictures through the tool's own timm path."""
    foundation = load_foundation(plan)
    assert not foundation.has_text
    images = [Image.fromarray(picture) for picture in crops.images[:5]]
    ours = encoder.embeddings(encoder.load(WEIGHTS / "foundation" / encoder.FILE), crops.images[:5])
    np.testing.assert_allclose(foundation.embed_images(images), ours, atol=2e-5)
    assert foundation.dimension == ours.shape[1] == 160


def test_the_shipped_examples_work_as_well_as_the_renders(plan: AuditPlan, crops: Crops) -> None:
    """JPEG files and boxes of the spec, through the tool: presence in whole images."""
    foundation = load_foundation(plan)
    seen = foundation.embed_images([Image.fromarray(picture) for picture in crops.images]).astype(np.float64)
    centre = seen[~crops.full].mean(axis=0)
    for concept in plan.spec.concepts:
        if concept.role != "spurious":
            continue
        parts = [Image.open(AUDIT.parents[1] / "specs" / example.image).crop(example.box) for example in concept.examples]
        probe = foundation.embed_images(parts).mean(axis=0) - centre
        whole = seen[crops.full] - centre
        cosines = (whole @ probe) / np.linalg.norm(whole, axis=1)
        area = auroc(cosines, crops.states[crops.full][:, ATTRIBUTES.index(concept.id)] == 1)
        assert area is not None
        assert area >= 0.9, concept.id


def test_the_shipped_subject_has_the_habit_it_is_said_to_have(plan: AuditPlan) -> None:
    from semlens_audit.subject import load_subject

    card = (WEIGHTS / "shortcut" / "README.md").read_text()
    stated = {row[0]: float(row[1]) for row in re.findall(r"^\| (\w+) \| (?:valid|artefact) \| ([+-][\d.]+) \|", card, re.M)}
    assert set(stated) == set(ATTRIBUTES)
    model = load_subject(plan)

    def logits(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            standard = torch.from_numpy(batch.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
            return np.asarray(model.model(standard).numpy())

    names = ("watermark", "sticker", "lamp_post")
    effects = world.true_effects(logits, world.Population(), 30, 77, names)
    assert effects["watermark"].mean > 3
    for name in names:
        assert effects[name].mean == pytest.approx(stated[name], abs=0.6), name


def test_training_learns_from_few_crops_and_is_saved_whole(tmp_path: Path, crops: Crops) -> None:
    """Colours come first: examples find them better than through a network that has learnt nothing."""
    shown = {name: examples.pictures(name) for name in examples.CONCEPTS}
    torch.manual_seed(0)
    model = train(rendered(900_000, 150, 3, 1), 6, 64, 2e-3, 0, 1)
    found, before = (evaluate_foundation.presence(one, crops, shown) for one in (model, encoder.new_model().eval()))
    areas = [np.mean([area for name in COLOURS for area in table[name].values()]) for table in (found, before)]
    assert areas[0] > areas[1] + 0.05
    ours, theirs = (encoder.embeddings(one, crops.images[:8]) for one in (model, encoder.load(save(model, tmp_path))))
    assert (ours * theirs).sum(axis=1).min() > 0.999  # half precision
    assert ours.shape == (8, 160)
    assert crops.images.shape[1] == SIDE


def test_prototypes_and_loss_equal_slow_loops() -> None:
    rng = np.random.default_rng(3)
    vectors = torch.from_numpy(rng.normal(size=(20, 6)))
    truth = torch.from_numpy(rng.integers(-1, 2, (20, len(FACTS))))
    truth[:, 2] = 0
    prototypes = _prototypes(vectors, truth, np.random.default_rng(0))
    for index in range(len(FACTS)):
        shown = [vectors[row] for row in range(20) if truth[row, index] == 1]
        expected = sum(shown) / len(shown) if shown else torch.zeros(6)
        assert len(shown) <= 12
        np.testing.assert_allclose(prototypes[index], expected, atol=1e-12)
    scores = torch.from_numpy(rng.normal(size=truth.shape))
    terms = []
    for score, state in zip(scores.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if state >= 0:
            chance = 1 / (1 + np.exp(-score))
            terms.append(-np.log(chance if state else 1 - chance))
    assert float(_loss(scores.float(), truth)) == pytest.approx(np.mean(terms), rel=1e-5)
