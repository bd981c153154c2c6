"""The smallest audit that runs through every stage of an index: few pictures, small random networks, seeded."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semlens_audit.plan import Audit, AuditPlan, Spec

SAMPLES = 22
SIDE = 32
LAYERS = ("layer1", "layer3")
CHANNELS = (4, 8, 6, 8)
CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 24, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"},
}


@contextmanager
def quick(null_crops: int = 40) -> Iterator[None]:
    """Few random crops, and one thread: two wait for each other longer than these networks take."""
    import torch

    from semlens_audit import stages

    threads, before = torch.get_num_threads(), stages.NULL_CROPS
    torch.set_num_threads(1)
    stages.NULL_CROPS = null_crops
    try:
        yield
    finally:
        stages.NULL_CROPS = before
        torch.set_num_threads(threads)


@contextmanager
def indexed(folder: Path, null_crops: int = 40) -> Iterator[AuditPlan]:
    """The world of `write_world` in `folder`, its index complete, and `quick` for as long as it is used."""
    from semlens_audit import index

    with quick(null_crops):
        made = plan(write_world(folder))
        index.build(made)
        yield made


def write_clip(folder: Path, seed: int = 0) -> Path:
    """An open_clip model directory with random weights in half precision."""
    import torch

    import semlens_audit._torchvision  # noqa: F401

    import open_clip  # isort: skip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**CLIP["model_cfg"])
    save_file(
        {name: value.half().contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def write_subject(path: Path, seed: int = 0, dead: int | None = None) -> Path:
    """Weights of a small ResNet; component `dead` of layer1 is made to stay at zero."""
    import torch

    import semlens_audit._torchvision  # noqa: F401

    import timm  # isort: skip
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = timm.create_model("resnet18", channels=CHANNELS, num_classes=2)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        if name.endswith(("bn1.weight", "bn2.weight")):
            value.uniform_(0.5, 1.5)
    if dead is not None:
        for name in ("layer1.0.bn2", "layer1.0.downsample.1", "layer1.1.bn2"):
            state[f"{name}.weight"][dead] = 0.0
            state[f"{name}.bias"][dead] = 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def write_images(folder: Path, samples: int = SAMPLES, seed: int = 0) -> Path:
    """Blotchy pictures in two sub-folders, and an attributes table."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(samples):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((40 + i % 3, 40), Image.Resampling.BICUBIC)
        name = f"{('nevus', 'melanoma')[i % 2]}/{i:03d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
        rows.append({"path": name, "ruler": int(i % 3 == 0)})
    with (folder / "attributes.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "ruler"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "spec": "made-up",
        "version": "1",
        "title": "A made-up spec",
        "purpose": "To be indexed.",
        "classes": {"melanoma": {}, "nevus": {}},
        "templates": ["{}", "a photo of {}"],
        "concepts": [
            {"id": "ruler", "role": "spurious", "descriptions": ["a ruler", "ruler marks", "a scale"]},
            {
                "id": "border",
                "role": "valid",
                "descriptions": ["an irregular border"],
                "examples": [
                    {"image": "examples/a.png"},
                    {"image": "examples/a.png", "box": [2, 3, 20, 22]},
                ],
            },
        ],
        "checks": [
            {
                "id": "no-ruler",
                "kind": "concept_not_used",
                "class": "melanoma",
                "concepts": ["ruler"],
                "statement": "No ruler.",
                "criterion": {"at_most": 0.2},
                "rationale": "Chosen so that the test has a threshold.",
            }
        ],
    } | changes


def audit(**changes: Any) -> dict[str, Any]:
    return {
        "audit": "made-up",
        "title": "A made-up audit",
        "spec": "spec.yaml",
        "store": "store.duckdb",
        "reports": "reports",
        "subject": {
            "name": "small",
            "model": {
                "source": "timm",
                "name": "resnet18",
                "weights": "small.safetensors",
                "arguments": {"channels": list(CHANNELS), "num_classes": 2},
            },
            "preprocessing": {"size": SIDE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "classes": ["nevus", "melanoma"],
        },
        "layers": list(LAYERS),
        "data": {"source": "folder", "path": "images", "attributes": "images/attributes.csv"},
        "foundation_model": {"source": "open_clip", "name": "clip"},
        "measurement": {
            "reference_samples": 5,
            "batch_size": 8,
            "crop_minimum": 8,
            "crop_threshold": 0.5,
            "crop_blur": 15,
            "null_sets": 100,
            "bootstrap": 100,
            "minimum_spread": 0.0,
        },
        "seed": 3,
    } | changes


def plan(folder: Path, audit_values: dict[str, Any] | None = None, spec_values: dict[str, Any] | None = None) -> AuditPlan:
    """A plan whose files lie in `folder`."""
    return AuditPlan(
        spec=Spec.model_validate(spec_values or spec()),
        audit=Audit.model_validate(audit_values or audit()),
        spec_file=str(folder / "spec.yaml"),
        audit_file=str(folder / "audit.yaml"),
        spec_digest="0" * 64,
        audit_digest="1" * 64,
    )


def write_world(folder: Path, dead: int | None = 1) -> Path:
    """Everything that `plan` names, and its YAML files (JSON is YAML as well)."""
    write_images(folder / "images")
    write_clip(folder / "clip")
    write_subject(folder / "small.safetensors", dead=dead)
    (folder / "examples").mkdir(exist_ok=True)
    rng = np.random.default_rng(9)
    Image.fromarray(rng.integers(0, 256, (30, 28, 3), dtype=np.uint8)).save(folder / "examples" / "a.png")
    (folder / "spec.yaml").write_text(json.dumps(spec()))
    (folder / "audit.yaml").write_text(json.dumps(audit()))
    return folder
