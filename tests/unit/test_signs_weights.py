from __future__ import annotations

import re
from collections.abc import Iterator
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
from semlens_audit.signs.crops import SIDE, Crops, rendered
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES
from semlens_audit.signs.train_foundation import save, train
from semlens_audit.statistics import auroc

WEIGHTS = Path(encoder.__file__).parent / "weights"
AUDIT = Path(encoder.__file__).parents[2] / "audits" / "signs.yaml"
FRESH = 2_600_000  # seeds of places that neither training nor the model card has seen


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plan() -> AuditPlan:
    return spec.read_plan(AUDIT)


@pytest.fixture(scope="module")
def crops() -> Crops:
    return rendered(FRESH, 150, 3, 1)


@pytest.fixture(scope="module")
def table(crops: Crops) -> dict[str, dict[str, float]]:
    shown = {name: examples.pictures(name) for name in ATTRIBUTES}
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


def test_training_learns_and_is_saved_whole(tmp_path: Path, crops: Crops) -> None:
    """A few steps lower the error of the read-out that matters: presence from a few examples."""
    model = train(Crops(crops.images, crops.states, crops.full), 2, 64, 2e-3, 0, 1)
    path = save(model, tmp_path)
    again = encoder.load(path)
    ours, theirs = (encoder.embeddings(one, crops.images[:8]) for one in (model, again))
    assert (ours * theirs).sum(axis=1).min() > 0.999  # half precision
    assert ours.shape == (8, 160)
    assert crops.images.shape[1] == SIDE
