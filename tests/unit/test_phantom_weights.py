from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from semlens_audit.phantom import captions, evaluate_clip, train_subjects, world
from semlens_audit.phantom.crops import IMAGE_SIZE, rendered
from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, VALID
from semlens_audit.phantom.train_clip import contrastive_loss, save

WEIGHTS = Path(evaluate_clip.__file__).parent / "weights"
FRESH = 3_000_000  # seeds of lesions that neither training nor the model cards have seen


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, list[float]]]:
    return evaluate_clip.retrieval(WEIGHTS / "clip", rendered(FRESH, 160, 3, 1))


def test_all_weights_fit_the_budget() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 20e6
    for name in ("shortcut", "clean"):
        assert (WEIGHTS / name / "model.safetensors").stat().st_size <= 2e6


def test_clip_loads_by_open_clip_itself() -> None:
    import semlens_audit._torchvision  # noqa: F401

    import open_clip  # isort: skip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{WEIGHTS / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")
    model.eval()
    tensor = preprocess(Image.new("RGB", (90, 90)))
    assert tensor.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        image, text = model.encode_image(tensor[None]), model.encode_text(tokenizer(["a ruler"]))
    assert image.shape == text.shape
    assert bool(torch.isfinite(image).all())
    assert bool(torch.isfinite(text).all())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_clip_finds_each_concept(table: dict[str, dict[str, list[float]]], name: str) -> None:
    assert table[name]["full"][0] >= 0.9
    assert table[name]["crops"][0] >= 0.9


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_card_states_what_the_target_is(name: str) -> None:
    """The card's figures of the large sample: at least 0.95 on whole images and on crops."""
    card = (WEIGHTS / "clip" / "README.md").read_text()
    row = re.search(rf"^\| {name} \| [^|]+ \| ([\d.]+) \| ([\d.]+) \|", card, re.MULTILINE)
    assert row is not None
    assert float(row[1]) >= 0.95
    assert float(row[2]) >= 0.95


def test_shortcut_is_planted_and_the_clean_twin_has_none() -> None:
    population = world.Population()
    names = (*ARTEFACTS, "asymmetry", "several_colours")
    shortcut, clean = (
        world.true_effects(train_subjects.logits_of(train_subjects.load(WEIGHTS / name)), population, 24, 77, names)
        for name in ("shortcut", "clean")
    )
    assert shortcut["ruler"].low > 4
    for name in ARTEFACTS:
        assert abs(clean[name].mean) < 1
        if name != "ruler":
            assert abs(shortcut[name].mean) < 0.35 * shortcut["ruler"].mean
    for name in set(names) & set(VALID):
        assert clean[name].low > 1


def test_clean_twin_decides_by_the_rule() -> None:
    cases = world.sample(world.Population(), 120, 78)
    labels = np.array([case.label for case in cases])
    assert train_subjects.accuracy(train_subjects.load(WEIGHTS / "clean"), world.images(cases), labels) > 0.85


def test_loss_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 7))
    truth = rng.integers(0, 3, (5, 7)).astype(np.int8)
    truth[2], truth[:, 4] = captions.FALSE, captions.TRUE

    def one_way(scores: np.ndarray, states: np.ndarray) -> float:
        rows = []
        for score, state in zip(scores, states, strict=True):
            total = sum(np.exp(s) for s, v in zip(score, state, strict=True) if v != captions.OPEN)
            positive = [np.log(total) - s for s, v in zip(score, state, strict=True) if v == captions.TRUE]
            rows.append(np.mean(positive) if positive else 0.0)
        return float(np.mean(rows))

    expected = 0.5 * (one_way(logits, truth) + one_way(logits.T, truth.T))
    assert float(contrastive_loss(torch.tensor(logits), torch.tensor(truth))) == pytest.approx(expected)


def test_weights_that_overflow_half_precision_are_refused(tmp_path: Path) -> None:
    broken = torch.nn.Linear(2, 2)
    with torch.no_grad():
        broken.weight[0, 0] = 1e6
    with pytest.raises(ArithmeticError, match="not finite"):
        save(broken, tmp_path / "model")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_separation_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, 40).astype(np.float64)
    positive = rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert evaluate_clip.separation(scores, positive) == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="both"):
        evaluate_clip.separation(scores, np.ones(40, dtype=bool))
