"""Networks, pictures and reference samples that this project and its peers are run on: `write` makes them, `plan` audits them.

Real photographs and a real network are used where they are (`SEMLENS_AUDIT_TESTDATA`); a setting that needs them is left out elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semlens_audit.headroom import slots
from semlens_audit.plan import Audit, AuditPlan, MeasurementSettings, Spec

__all__ = ["QUICK", "SETTINGS", "Setting", "choose", "plan", "read", "test_data", "write", "write_clip"]

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what.

    Parameters
    ----------
    name, title
        For files, and for readers.
    network
        torchvision's ``resnet18`` with random weights, or ``mobilenet_v2`` trained on ImageNet.
    encoder
        ``vit``: image tower of ViT-B/32, ``tiny``: of a small CLIP, both random; ``timm``: mobilenetv2_100 trained on ImageNet.
    layers
        Whose reference samples are found.
    layer, components
        Where crops are made, and of how many components drawn at random.
    images
        Pictures that reference samples are found among.
    cropped
        Pictures that crops are made of: so few that each serves as many components as in an audit of the whole layer on 1000 pictures.
    references
        m, reference samples of a component.
    measured
        Components whose crops are made by the published path; its cost is that of a crop, whatever their number.
    threshold
        Share of a smoothed heatmap's maximum that a crop keeps; at the published 0.01 most crops are the whole picture.
    size, resize
        Of the network's input, and short side before the crop.
    batch
        Pictures per forward pass.
    """

    name: str
    title: str
    network: str
    encoder: str
    layers: tuple[str, ...]
    layer: str
    components: int = 64
    images: int = 512
    cropped: int = 128
    references: int = 30
    measured: int = 1
    threshold: float = 0.01
    size: int = 224
    resize: int = 256
    batch: int = 64

    @property
    def real(self) -> bool:
        """Whether trained networks are needed."""
        return self.network == "mobilenet_v2"


SETTINGS = (
    Setting(
        "resnet18", "ResNet-18 (random weights), crops in `layer4`, ViT-B/32 (random weights)", "resnet18", "vit",
        ("layer1", "layer2", "layer3", "layer4"), "layer4",
    ),
    Setting(
        "mobilenet", "MobileNetV2 (ImageNet), crops in `features.13`, mobilenetv2_100 (ImageNet)", "mobilenet_v2", "timm",
        ("features.6", "features.13", "features.18"), "features.13", threshold=0.4,
    ),
)  # fmt: skip
QUICK = Setting(
    "quick", "ResNet-18 (random weights) at 64 px, tiny CLIP", "resnet18", "tiny", ("layer2", "layer3"), "layer3",
    components=3, images=20, cropped=10, references=6, measured=2, threshold=0.4, size=64, resize=72, batch=8,
)  # fmt: skip


def test_data() -> Path:
    """Folder of the real data, whether or not it is there."""
    return Path(os.environ.get("SEMLENS_AUDIT_TESTDATA", str((ROOT / "../shared/data").resolve())))


def plan(setting: Setting, folder: Path, *, layers: tuple[str, ...], images: int, samples: Path | None = None) -> AuditPlan:
    """An audit of the setting's network on `images` pictures, whose index keeps the setting's number of reference samples."""
    settings = MeasurementSettings()
    declared = next(m for m in range(2, 1000) if slots(settings.model_copy(update={"reference_samples": m})) >= setting.references)
    encoders = {
        "vit": {"source": "open_clip", "name": "clip"},
        "tiny": {"source": "open_clip", "name": "clip"},
        "timm": {
            "source": "timm", "name": "mobilenetv2_100", "weights": str(test_data() / "models/mobilenetv2_100_tf.safetensors"),
            "arguments": {"pad_type": "same", "num_classes": CLASSES},
            "preprocessing": {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3},
        },
    }  # fmt: skip
    weights = test_data() / "models/mobilenet_v2_imagenet.safetensors" if setting.real else folder / "network.safetensors"
    audit = {
        "audit": setting.name, "title": setting.title, "spec": "spec.yaml", "layers": layers,
        "subject": {
            "name": setting.network,
            "model": {
                "source": "torchvision", "name": setting.network, "weights": str(weights), "arguments": {"num_classes": CLASSES}
            },
            "preprocessing": {"resize": setting.resize, "size": setting.size, "mean": MEAN, "std": STD},
            "classes": [f"class {i}" for i in range(CLASSES)],
        },
        "data": {
            "source": "folder", "path": str(samples or pictures(folder)), "pattern": r"^(?P<class_index>\d+)_", "limit": images
        },
        "foundation_model": encoders[setting.encoder],
        "measurement": {
            "reference_samples": declared, "selection": "activation", "batch_size": min(setting.batch, images),
            "crop_threshold": setting.threshold, "minimum_spread": 0.0,
        },
    }  # fmt: skip
    spec = {
        "spec": setting.name, "version": "1", "title": setting.title, "purpose": "Cost.", "classes": {"class 7": {}},
        "concepts": [{"id": "something", "role": "spurious", "examples": [{"image": "example.png"}]}],
        "checks": [{
            "id": "check", "kind": "concept_not_used", "class": "class 7", "concepts": ["something"], "statement": "S.",
            "criterion": {"at_most": 0.2}, "rationale": "R.",
        }],
    }  # fmt: skip
    return AuditPlan(
        spec=Spec.model_validate(spec), audit=Audit.model_validate(audit), spec_file=str(folder / "spec.yaml"),
        audit_file=str(folder / "audit.yaml"), spec_digest="0" * 64, audit_digest="1" * 64,
    )  # fmt: skip


def pictures(folder: Path) -> Path:
    """The photographs, or the pictures made up in `folder`."""
    real = test_data() / "imagenet_samples"
    return real if real.is_dir() and not (folder / "pictures").is_dir() else folder / "pictures"


def write(setting: Setting, folder: Path, seed: int = 0) -> None:
    """Make networks, pictures and the exact reference samples that both sides are held against."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    import semlens_audit._torchvision  # noqa: F401

    from torchvision import models  # isort: skip

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if setting.encoder == "tiny" or not (test_data() / "imagenet_samples").is_dir():
        _draw(folder / "pictures", max(setting.images, setting.cropped), setting.resize, rng)
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / "example.png")
    if setting.encoder != "timm":
        write_clip(folder / "clip", setting.encoder, seed)
    files, inputs = _inputs(setting, folder, setting.layers, setting.images)
    if not setting.real:
        torch.manual_seed(seed)
        model = models.resnet18(num_classes=CLASSES)
        _settle(model, inputs[: min(64, setting.images)])
        save_file(model.state_dict(), folder / "network.safetensors")
    found = _pooled(network(setting, folder), setting.layers, inputs, setting.batch)
    exact = {f"ids:{layer}": _top(values, setting.references)[0] for layer, values in found.items()}
    choose(setting, folder, folder, {"found": files}, exact, seed)


def choose(
    setting: Setting, made: Path, folder: Path, files: dict[str, list[str]] | None = None,
    exact: dict[str, np.ndarray] | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Draw the components whose crops are made and find their reference samples; what `write` made in `made` serves `folder` too."""
    if folder != made:
        folder.mkdir(parents=True)
        for path in made.iterdir():
            if path.name in ("clip", "example.png", "network.safetensors", "pictures"):
                (folder / path.name).symlink_to(path)
    cropped, inputs = _inputs(setting, folder, (setting.layer,), setting.cropped)
    pooled = _pooled(network(setting, folder), (setting.layer,), inputs, setting.batch)[setting.layer]
    alive = np.flatnonzero(pooled.max(axis=0) > pooled.min(axis=0))
    chosen = np.sort(np.random.default_rng([1, seed]).choice(alive, min(setting.components, len(alive)), replace=False))
    ids, values = _top(pooled[:, chosen], setting.references)
    np.savez(folder / "exact.npz", **(exact or {}), components=chosen, ids=ids, values=values)  # type: ignore[arg-type]
    (folder / "world.json").write_text(json.dumps({"setting": asdict(setting), "files": (files or {}) | {"cropped": cropped}}))


def _inputs(setting: Setting, folder: Path, layers: tuple[str, ...], images: int) -> tuple[list[str], Any]:
    """Picture files of an audit, and what the network is given of them."""
    import torch

    from semlens_audit.data import open_data, read_image

    opened, transform = open_data(plan(setting, folder, layers=layers, images=images)), _transform(setting)
    files = [opened.file(sample) for sample in opened.samples]
    return [str(file) for file in files], torch.stack([transform(read_image(file)) for file in files])


def read(folder: Path) -> tuple[Setting, dict[str, list[str]], dict[str, np.ndarray]]:
    """The setting, the picture files of either part, and what `write` found exactly."""
    found = json.loads((folder / "world.json").read_text())
    values = found["setting"] | {"layers": tuple(found["setting"]["layers"])}
    with np.load(folder / "exact.npz") as exact:
        return Setting(**values), found["files"], dict(exact)


def network(setting: Setting, folder: Path) -> Any:
    """The network as its users load it: torchvision's class with the weights, in eval mode."""
    import semlens_audit._torchvision  # noqa: F401

    from safetensors.torch import load_file  # isort: skip
    from torchvision import models

    model = getattr(models, setting.network)(num_classes=CLASSES)
    weights = test_data() / "models/mobilenet_v2_imagenet.safetensors" if setting.real else folder / "network.safetensors"
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)


def _transform(setting: Setting) -> Any:
    """torchvision's preprocessing, as a user of the peers writes it."""
    import semlens_audit._torchvision  # noqa: F401

    from torchvision import transforms  # isort: skip

    steps = [transforms.Resize(setting.resize), transforms.CenterCrop(setting.size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def _pooled(model: Any, layers: tuple[str, ...], images: Any, batch: int) -> dict[str, np.ndarray]:
    """Layer -> (N, K) largest activation of every component, in single precision."""
    import torch

    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}

    def keep(layer: str) -> Callable[[Any, Any, Any], None]:
        return lambda _module, _inputs, output: found[layer].append(output.amax((2, 3)).numpy())

    handles = [model.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    with torch.inference_mode():
        for first in range(0, len(images), batch):
            model(images[first : first + batch])
    for handle in handles:
        handle.remove()
    return {layer: np.concatenate(values) for layer, values in found.items()}


def _top(pooled: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, m) ids of the largest of (N, K) values, ties by the smaller id, and the values."""
    ids = np.argsort(-pooled, axis=0, kind="stable")[:m].T
    return ids, np.take_along_axis(pooled.T, ids, axis=1)


def _settle(model: Any, images: Any) -> None:
    """Estimate the statistics of the batch norms on `images`, so that activations are of the size that training gives."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        for first in range(0, len(images), 16):
            model(images[first : first + 16])
    model.eval()


def _draw(folder: Path, count: int, side: int, rng: np.random.Generator) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        coarse.resize((side + i % 5, side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}_made-up.png"[-64:])


def write_clip(folder: Path, encoder: str, seed: int) -> None:
    """An open_clip model directory with random weights: the image tower in question beside a small text tower."""
    import torch
    from safetensors.torch import save_file

    import semlens_audit._torchvision  # noqa: F401

    import open_clip  # isort: skip

    tower = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 32}
    if encoder == "tiny":
        tower = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 512 if encoder == "vit" else 16, "vision_cfg": tower, "text_cfg": text}
    folder.mkdir(exist_ok=True)
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(seed)
    state = open_clip.model.CLIP(**config).state_dict()
    save_file({name: value.half().contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
