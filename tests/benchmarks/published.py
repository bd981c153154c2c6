"""The published path: semanticlens 0.2.1 for reference samples, zennit-crp 0.6 for crops, open_clip or timm for embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

import semlens_audit._torchvision  # noqa: F401
from tests.benchmarks import peer_world
from tests.benchmarks.contenders import Cost, PeerMissingError, Stopwatch

# isort: split
from torchvision import transforms
from torchvision.transforms.functional import gaussian_blur

__all__ = ["INSTALL", "ConditionalCrops", "SemanticLensActivations", "published_box"]

INSTALL = """semanticlens is not installed where Python finds it. Put it beside the environment, not into it, and say where:
    pip install --no-deps --target /tmp/peers semanticlens==0.2.1 einops
    PYTHONPATH=/tmp/peers python -m tests.benchmarks.versus"""


class _Pictures(Dataset):  # type: ignore[type-arg]
    """Picture files, decoded and prepared each time that they are asked for, as torchvision's data sets do."""

    name = "pictures"

    def __init__(self, files: list[str], prepare: Callable[[Image.Image], Any]) -> None:
        self.files, self.prepare = files, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with Image.open(self.files[index]) as image:
            return self.prepare(image.convert("RGB")), 0


def _view(setting: peer_world.Setting) -> Callable[[Image.Image], Image.Image]:
    view: Callable[[Image.Image], Image.Image] = transforms.Compose(
        [transforms.Resize(setting.resize), transforms.CenterCrop(setting.size)]
    )
    return view


_NORMAL = transforms.Compose([transforms.ToTensor(), transforms.Normalize(peer_world.MEAN, peer_world.STD)])


class SemanticLensActivations:
    """`ActivationComponentVisualizer.run`: reference samples of all layers by largest activation."""

    def __init__(self, folder: Path) -> None:
        try:
            from semanticlens.component_visualization import activation_based, aggregators
        except ImportError as error:
            raise PeerMissingError(INSTALL) from error
        self._visualizer, self._pooling = activation_based.ActivationComponentVisualizer, aggregators.aggregate_conv_max
        self.setting, files, _ = peer_world.read(folder)
        self.model = peer_world.network(self.setting, folder)
        self.model.name = self.setting.network
        view = _view(self.setting)
        self.images = _Pictures(files["found"], lambda image: _NORMAL(view(image)))
        self.found: dict[str, np.ndarray] = {}

    def run(self, turn: int) -> Cost:
        """See `tests.benchmarks.contenders.Contender.run`."""
        # made anew each time: a second `run` of the same object shifts the ids of samples
        finder = self._visualizer(
            self.model, self.images, self.images, list(self.setting.layers), self.setting.references, aggregate_fn=self._pooling
        )
        watch = Stopwatch()
        with watch.part("activations"):
            finder.run(batch_size=self.setting.batch)
        for layer in self.setting.layers:
            self.found[f"ids:{layer}"] = finder.get_max_reference(layer).numpy()
        return watch.cost({"activations": len(self.images)})


def published_box(heat: torch.Tensor, blur: int = 51, threshold: float = 0.01) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the crop around an (S, S) heatmap, as semanticlens 0.2.1 cuts it (``_get_square_crop_box``)."""
    from crp.image import get_crop_range

    smooth = gaussian_blur(heat[None], kernel_size=blur)[0].abs()
    top, bottom, left, right = (int(v) for v in get_crop_range(smooth / smooth.max(), threshold))
    higher = (bottom - top) - (right - left)
    if higher > 0:
        left, right = left - higher // 2, right + higher // 2
        left, right = (0, right - left) if left < 0 else (left, right)
    elif higher < 0:
        top, bottom = top + higher // 2, bottom - higher // 2
        top, bottom = (0, bottom - top) if top < 0 else (top, bottom)
    side = heat.shape[-1]
    # an empty heatmap gives 0 to -1, which slicing takes for all but the last row
    return left, top, min(right, side) if right > 0 else side - 1, min(bottom, side) if bottom > 0 else side - 1


class ConditionalCrops:
    """One conditional attribution of the reference samples of each component, their crops, and the crops' embeddings."""

    def __init__(self, folder: Path) -> None:
        try:
            from crp.attribution import CondAttribution
        except ImportError as error:
            raise PeerMissingError("zennit-crp is not installed: pip install -e '.[dev]'") from error
        from zennit.composites import EpsilonPlusFlat

        self.setting, files, self.exact = peer_world.read(folder)
        self.attribution = CondAttribution(peer_world.network(self.setting, folder))
        self.composite = EpsilonPlusFlat([_canonizer(self.setting)])
        self.views = _Pictures(files["cropped"], _view(self.setting))
        self.prepare, self.encode = _encoder(self.setting, folder)
        self._kept: dict[str, list[np.ndarray]] = {}

    @property
    def found(self) -> dict[str, np.ndarray]:
        """Place among the chosen components, boxes by this project's rule, and embeddings of what they show, by component."""
        return {name: np.stack(values) for name, values in self._kept.items()}

    def run(self, turn: int) -> Cost:
        """The next components, in turn; see `tests.benchmarks.contenders.Contender.run`."""
        chosen = np.arange(turn * self.setting.measured, (turn + 1) * self.setting.measured) % len(self.exact["components"])
        watch, kept = Stopwatch(), []
        for place in chosen.tolist():
            component, ids = int(self.exact["components"][place]), self.exact["ids"][place].tolist()
            with watch.part("crop"):
                views = [self.views[i][0] for i in ids]
                data = torch.stack([_NORMAL(view) for view in views]).requires_grad_(True)
                layer = self.setting.layer
                heat = self.attribution(data, [{layer: [component]}], self.composite, start_layer=layer).heatmap.detach()
                crops = [view.crop(published_box(one, threshold=self.setting.threshold)) for view, one in zip(views, heat, strict=True)]
            with watch.part("embed"), torch.no_grad():
                self.encode(torch.stack([self.prepare(crop) for crop in crops]))
            kept.append((place, views, heat.numpy()))
        count = len(chosen) * self.setting.references
        cost = watch.cost({"crop": count, "embed": count})
        for place, views, heat in kept:
            self._keep(place, views, heat)
        return cost

    def _keep(self, place: int, views: list[Image.Image], heat: np.ndarray) -> None:
        from semlens_audit.cropping import boxes

        found = boxes(heat, threshold=self.setting.threshold)
        crops = [self.prepare(view.crop(tuple(box))) for view, box in zip(views, found.tolist(), strict=True)]
        with torch.no_grad():
            vectors = self.encode(torch.stack(crops)).float().numpy()
        kept = {"places": np.array(place), "boxes": found, "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}
        for name, value in kept.items():
            self._kept.setdefault(name, []).append(value)


def _canonizer(setting: peer_world.Setting) -> Any:
    from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
    from zennit.layer import Sum
    from zennit.torchvision import ResNetCanonizer

    if setting.network != "mobilenet_v2":
        return ResNetCanonizer()
    from torchvision.models.mobilenetv2 import InvertedResidual

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.canonizer_sum(torch.stack([x, self.conv(x)], dim=-1))
        return total

    def attributes(name: str, module: torch.nn.Module) -> dict[str, Any] | None:
        """zennit has no canonizer for MobileNets; this is what its `ResNetCanonizer` does, for their blocks."""
        if not isinstance(module, InvertedResidual) or not module.use_res_connect:
            return None
        return {"forward": functools.partial(forward, module), "canonizer_sum": Sum()}

    return CompositeCanonizer((SequentialMergeBatchNorm(), AttributeCanonizer(attributes)))


def _encoder(setting: peer_world.Setting, folder: Path) -> tuple[Callable[[Image.Image], torch.Tensor], Callable[..., torch.Tensor]]:
    """From a crop to the input, and from inputs to embeddings, as the libraries' own users write it."""
    if setting.encoder == "timm":
        import timm
        from safetensors.torch import load_file

        model = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=peer_world.CLASSES)
        model.load_state_dict(load_file(peer_world.test_data() / "models/mobilenetv2_100_tf.safetensors"))
        model.eval().requires_grad_(False)
        steps = [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        return transforms.Compose(steps), lambda batch: model.forward_head(model.forward_features(batch), pre_logits=True)
    import open_clip

    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'clip'}", pretrained_text=False)
    model.eval().requires_grad_(False)
    return prepare, model.encode_image
