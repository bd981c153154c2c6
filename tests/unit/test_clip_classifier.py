"""open_clip image towers as classifiers: zero-shot by class prompts against a slow loop over texts, and with a linear head."""

from __future__ import annotations

import semlens_audit._torchvision  # noqa: F401  # isort: skip

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from semlens_audit.clip_classifier import class_texts
from semlens_audit.components import capture
from semlens_audit.errors import SubjectError
from semlens_audit.plan import ModelSource, Preprocessing
from semlens_audit.resources import shipped_weights
from semlens_audit.subject import load_subject, subject_digest

torch.set_num_threads(1)

CLASSES = ("nevus", "melanoma", "keratosis")
VIEW = Preprocessing(size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FOLDER = shipped_weights("phantom", "clip")


@pytest.fixture(scope="module")
def clip():
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}", precision="fp32", device="cpu", weights_only=True)
    return model.eval(), open_clip.get_tokenizer(f"local-dir:{FOLDER}")


@pytest.fixture
def plan(plan_of):
    def make(
        view: Preprocessing = VIEW, classes: tuple[str, ...] = CLASSES, layers: tuple[str, ...] = ("visual.layer4",), **fields: object
    ):
        model = ModelSource(source="open_clip", **{"name": "phantom:clip"} | fields)
        return plan_of(model=model, classes=classes, preprocessing=view, layers=layers)

    return make


def slow_logits(clip, images: torch.Tensor, prompts: list[list[str]]) -> torch.Tensor:
    """One text and one image at a time, as CLIP's paper says it."""
    model, tokenise = clip
    rows = []
    with torch.no_grad():
        for image in images:
            x = model.encode_image(image[None])[0].double()
            row = []
            for texts in prompts:
                units = []
                for text in texts:
                    vector = model.encode_text(tokenise([text]))[0].double()
                    units.append(vector / vector.norm())
                mean = sum(units) / len(units)
                cosine = (x / x.norm()) @ (mean / mean.norm())
                row.append(float(model.logit_scale.double().exp() * cosine))
            rows.append(row)
    return torch.tensor(rows)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def test_zero_shot_logits_are_scaled_cosines_to_the_class_texts(plan, clip):
    subject = load_subject(plan())
    expected = slow_logits(clip, images(), [[f"a photo of a {name}."] for name in CLASSES])
    assert torch.allclose(subject.model(images()), expected, atol=2e-3)
    assert expected.std() > 0.05
    assert subject.architecture == "open_clip zero-shot phantom:clip"


def test_prompts_and_templates_are_averaged_at_unit_length(plan, clip):
    prompts = {"melanoma": ("a melanoma", "a malignant mole"), "nevus": ("a mole",)}
    templates = ("a photo of {}", "{} on skin")
    subject = load_subject(plan(prompts=prompts, templates=templates))
    texts = [[template.replace("{}", prompt) for prompt in prompts.get(name, (name,)) for template in templates] for name in CLASSES]
    assert [len(own) for own in texts] == [2, 4, 2]
    assert torch.allclose(subject.model(images()), slow_logits(clip, images(), texts), atol=2e-3)


def test_layers_are_those_of_the_tower(plan):
    subject = load_subject(plan(layers=("visual.layer3", "visual")))
    with torch.no_grad(), capture(subject.model, ["visual.layer3", "visual"]) as seen:
        subject.model(images())
    assert seen["visual.layer3"].shape[:1] == (2,)
    assert seen["visual.layer3"].ndim == 4
    assert seen["visual"].shape == (2, 128)
    # The text tower is let go: nothing of it is part of the network.
    assert {name.partition(".")[0] for name in subject.model.state_dict()} == {"visual", "head"}


@pytest.mark.parametrize("normalised", [False, True])
def test_a_linear_head(plan, clip, tmp_path, normalised):
    head = torch.nn.Linear(128, 3)
    save_file({"classifier.weight": head.weight.detach(), "classifier.bias": head.bias.detach()}, tmp_path / "head.safetensors")
    model = load_subject(plan(head="head.safetensors", normalised=normalised)).model
    with torch.no_grad():
        embedding = clip[0].encode_image(images(), normalize=normalised)
        assert torch.allclose(model(images()), head(embedding), atol=1e-5)


def test_everything_that_changes_the_answers_changes_the_identity(plan, tmp_path):
    save_file({"weight": torch.ones(3, 128)}, tmp_path / "one.safetensors")
    save_file({"weight": torch.full((3, 128), 2.0)}, tmp_path / "two.safetensors")
    shutil.copytree(FOLDER, tmp_path / "same")
    shutil.copytree(FOLDER, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["heads"] = 4
    (tmp_path / "other" / "open_clip_config.json").write_text(json.dumps(config))
    plans = [
        plan(), plan(prompts={"nevus": ("a mole",)}), plan(templates=("{}",)), plan(classes=(*CLASSES[:2], "scar")),
        plan(name=str(tmp_path / "other")), plan(head="one.safetensors"), plan(head="two.safetensors"),
        plan(head="one.safetensors", normalised=True),
    ]  # fmt: skip
    digests = [subject_digest(one) for one in plans]
    assert len(set(digests)) == len(plans)
    assert subject_digest(plan()) == digests[0] == subject_digest(plan(prompts={"nevus": ("nevus",)}))
    # Where a model directory lies does not matter, what is in it does.
    assert subject_digest(plan(name=str(tmp_path / "same"))) == digests[0]
    # Nor does a linear head ask for the names of the classes.
    assert subject_digest(plan(head="one.safetensors", classes=(*CLASSES[:2], "scar"))) == digests[5]


def test_the_identity_needs_no_torch(plan):
    import subprocess
    import sys

    code = "import sys; from semlens_audit import subject, clip_classifier, open_clip_models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def refused(plan) -> SubjectError:
    with pytest.raises(SubjectError) as caught:
        load_subject(plan)
    return caught.value


def test_a_zero_shot_model_on_inputs_scaled_otherwise_is_refused_with_the_line_to_write(plan):
    error = refused(plan(view=Preprocessing(size=64)))
    assert error.slug == "preprocessing-differs"
    assert "mean: [0.5, 0.5, 0.5]" in error.problems[0].hint
    error = refused(plan(view=Preprocessing(size=64, mean=(0.5, 0.5, 0.5))))
    assert "std: [0.25, 0.25, 0.25]" in error.problems[0].hint


def test_a_linear_head_may_have_been_trained_on_other_inputs(plan, tmp_path):
    save_file({"weight": torch.randn(3, 128)}, tmp_path / "head.safetensors")
    assert load_subject(plan(view=Preprocessing(size=64), head="head.safetensors")).parameters > 0


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"weight": torch.zeros(3, 64)}, "64 values"), ({"weight": torch.zeros(3)}, "no linear head"),
        ({"a.weight": torch.zeros(3, 128), "b.weight": torch.zeros(3, 128)}, "no linear head"),
        ({"weight": torch.zeros(3, 128), "bias": torch.zeros(4)}, "no linear head"),
        ({"weight": torch.full((3, 128), float("nan"))}, "NaN"), ({"weight": torch.zeros(2, 128)}, "2 outputs"),
    ],
)  # fmt: skip
def test_what_is_no_head(plan, tmp_path, state, what):
    save_file(state, tmp_path / "head.safetensors")
    assert what in str(refused(plan(head="head.safetensors")))


def test_prompts_of_no_class(plan):
    error = refused(plan(prompts={"melanom": ("x",)}))
    assert error.slug == "unknown-class"
    assert "'melanom'" in str(error)
    with pytest.raises(SubjectError):
        class_texts(ModelSource(source="open_clip", name="x", prompts={"no": ("x",)}), CLASSES)


def test_damaged_model_directories(plan, tmp_path):
    assert refused(plan(name="nowhere")).slug == "missing-model-directory"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(plan(name="empty")).slug == "bad-model-directory"
    shutil.copy(FOLDER / "open_clip_config.json", empty)
    assert refused(plan(name="empty")).slug == "missing-weights"
    (empty / "open_clip_model.safetensors").write_bytes(b"none")
    assert refused(plan(name="empty")).slug == "bad-model-directory"


def test_an_architecture_with_a_weights_file(plan, tmp_path, monkeypatch):
    config = json.loads((FOLDER / "open_clip_config.json").read_text())["model_cfg"]
    known = dict(open_clip.factory._MODEL_CONFIGS)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known | {"tiny-clip": config})
    shutil.copy(next(FOLDER.glob("*.safetensors")), tmp_path / "w.safetensors")
    scaled = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    named = plan(name="tiny-clip", weights="w.safetensors", arguments=scaled)
    assert torch.equal(load_subject(named).model(images()), load_subject(plan()).model(images()))
    # Weights by themselves do not say how inputs are scaled; open_clip takes them for OpenAI's.
    assert refused(plan(name="tiny-clip", weights="w.safetensors")).slug == "preprocessing-differs"


def test_a_damaged_tower_is_refused(plan, tmp_path):
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(FOLDER, tmp_path / "broken"))
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    state["visual.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, file)
    assert refused(plan(name="broken")).slug == "weights-not-finite"
