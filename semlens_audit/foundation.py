"""The foundation model: gives crops and prompts a common meaning. Torch is imported only once a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from semlens_audit.arithmetic import fix_arithmetic
from semlens_audit.devices import has_bfloat16, on_device, out_of_memory
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.open_clip_models import FOUNDATION, file_digests, load_open_clip, model_directory
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan, FoundationModel, ModelSource, Preprocessing
from semlens_audit.weights import weights_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "BATCH",
    "SAME",
    "TEXT_BATCH",
    "VERSION",
    "Foundation",
    "Precision",
    "foundation_digest",
    "has_text_tower",
    "load_foundation",
]

VERSION = 1
"""Raised whenever a change here changes an embedding; part of every cache key."""

BATCH = 64
"""Images per forward pass. Short batches are filled up, so that an embedding does not depend on its company."""

TEXT_BATCH = 16
"""Texts per forward pass, filled up likewise."""

SAME = 0.999
"""Least cosine at which bfloat16 counts as giving the same embedding as single precision."""

Precision = Literal["fp32", "bf16"]

_FOLDING = 1e-4
"""Most difference that folding batch norms may make to a feature, over the largest one."""


def _model_directory(plan: AuditPlan) -> Path | None:
    """Folder of an open_clip model directory, or ``None`` for an architecture with weights, or timm."""
    model = plan.audit.foundation_model
    if model.source != "open_clip" or model.weights is not None:
        return None
    return model_directory(resolve(plan, model.name), FOUNDATION)


def foundation_digest(plan: AuditPlan) -> str:
    """Identity of the foundation model for cache keys: bytes of its files, its settings and preprocessing. Needs no torch.

    Raises
    ------
    SubjectError
        Files are missing.
    """
    model = plan.audit.foundation_model
    parts: dict[str, Any] = {"version": VERSION, "source": model.source, "arguments": model.arguments}
    folder = _model_directory(plan)
    if folder is not None:
        parts["files"] = file_digests(folder)
    else:
        parts["name"] = model.name
        parts["weights"] = digest_file(_weights(plan, model))
        if model.source == "timm":
            parts["preprocessing"] = (model.preprocessing or Preprocessing()).model_dump(mode="json")
    return digest(parts)


def _weights(plan: AuditPlan, model: FoundationModel) -> Path:
    if model.weights is None:
        raise SubjectError(
            "missing-weights",
            f"The foundation model {model.name!r} has no weights; a random model means nothing.",
            "Add `weights:` to the audit's foundation_model.",
        )
    return weights_file(resolve(plan, model.weights))


def has_text_tower(plan: AuditPlan) -> bool:
    """Whether the foundation model embeds text; else concepts are defined by example images only."""
    return plan.audit.foundation_model.source == "open_clip"


class Foundation:
    """A loaded foundation model; use `load_foundation`.

    Parameters
    ----------
    name
        For the report.
    sha256
        `foundation_digest` of it.
    encode
        (n, 3, S, S) float32 on `device` -> (n, d) float32, not yet normalised, in single precision. What an image's last bits are
        may depend on n: whatever is kept goes through `embed_prepared`.
    prepare
        PIL RGB image of any size -> (3, S, S) float32.
    encode_text
        n texts -> (n, d) float32, not yet normalised; ``None`` for an image-only model.
    dimension
        d.
    halve
        Gives another `encode`, for autocast to bfloat16; ``None``: `encode` itself.
    device
        Where `encode` computes; ``None``: the CPU.
    """

    precision: Precision = "fp32"
    """Arithmetic of `embed_prepared`; whoever stores embeddings records it and sets it again on resuming."""

    def __init__(
        self,
        name: str,
        sha256: str,
        encode: Callable[[torch.Tensor], torch.Tensor],
        prepare: Callable[[Image.Image], torch.Tensor],
        encode_text: Callable[[list[str]], torch.Tensor] | None,
        dimension: int,
        halve: Callable[[], Callable[[torch.Tensor], torch.Tensor]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        import torch

        self.name, self.sha256, self.dimension = name, sha256, dimension
        self.prepare, self.device = prepare, device or torch.device("cpu")
        self.encode, self._encode_text, self._halve = encode, encode_text, halve

    @cached_property
    def _encode_half(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.encode if self._halve is None else self._halve()

    @property
    def has_text(self) -> bool:
        """Whether `embed_texts` can be called."""
        return self._encode_text is not None

    @cached_property
    def prepared_bytes(self) -> int:
        """Bytes of one prepared image."""
        return int(self.prepare(Image.new("RGB", (8, 8))).nbytes)

    def embed_prepared(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """Embed at most `BATCH` prepared images.

        Parameters
        ----------
        prepared
            n tensors as `prepare` gives them, 1 <= n <= BATCH.

        Returns
        -------
        numpy.ndarray
            (n, d) float32, unit length.

        Raises
        ------
        ExecutionError
            ``embedding-not-finite``: the model gives NaN, infinities or a zero vector.
        """
        import torch

        if not 1 <= len(prepared) <= BATCH:
            raise ValueError(f"{len(prepared)} images, expected 1 to {BATCH}")
        batch = torch.zeros((BATCH, *prepared[0].shape))
        torch.stack(list(prepared), out=batch[: len(prepared)])
        half = self.precision == "bf16"
        encode = self._encode_half if half else self.encode
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            values = encode(on_device(batch.contiguous(memory_format=torch.channels_last), self.device))[: len(prepared)]
        return _unit(values.float().cpu().numpy(), self.name)

    def choose_precision(self, images: Sequence[Image.Image]) -> float | None:
        """Compute in bfloat16 from now on if this machine has instructions for it and it gives the same embeddings of `images`.

        Returns
        -------
        float or None
            Least cosine between an image's embeddings in bfloat16 and in single precision; `precision` becomes ``"bf16"`` if it
            is at least `SAME`. ``None``: not tried, because the processor would only emulate it.
        """
        if not images or not has_bfloat16(self.device):
            return None
        self.precision = "fp32"
        single = self.embed_images(images)
        self.precision = "bf16"
        try:
            least = float((single * self.embed_images(images)).sum(axis=1).min())
        except (ExecutionError, RuntimeError) as error:  # an operator without a bfloat16 kernel, or an overflow: single precision then
            if out_of_memory(error):
                raise
            least = -1.0
        self.precision = "bf16" if least >= SAME else "fp32"
        return least

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed n RGB images: (n, d) float32, unit length; see `embed_prepared`."""
        parts = [
            self.embed_prepared([self.prepare(image) for image in images[start : start + BATCH]])
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), dtype=np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed n texts: (n, d) float32, unit length.

        Raises
        ------
        SubjectError
            ``no-text-tower``: the model is image-only.
        """
        import torch

        if self._encode_text is None:
            raise SubjectError(
                "no-text-tower",
                f"The foundation model {self.name} cannot read text.",
                "Search with an image, or use a foundation model of source open_clip.",
            )
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                some = list(texts[start : start + TEXT_BATCH])
                filled = some + [""] * (TEXT_BATCH - len(some))
                parts.append(self._encode_text(filled)[: len(some)].float().cpu().numpy())
        return _unit(np.concatenate(parts), self.name) if parts else np.zeros((0, self.dimension), dtype=np.float32)


def _unit(values: np.ndarray, name: str) -> np.ndarray:
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ExecutionError(
            "embedding-not-finite",
            f"The foundation model {name} gives NaN, infinite or zero embeddings.",
            "Its weights are damaged or do not belong to its configuration.",
        )
    return (values / lengths).astype(np.float32)


def load_foundation(plan: AuditPlan, device: torch.device | None = None) -> Foundation:
    """Load the foundation model of `plan` from local files, in single precision; nothing is ever downloaded.

    Parameters
    ----------
    plan
        The audit.
    device
        Where it computes; ``None``: the CPU.

    Raises
    ------
    SubjectError
        Missing files, weights that do not fit, an architecture that is not known.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    fix_arithmetic()
    sha256 = foundation_digest(plan)
    if plan.audit.foundation_model.source == "timm":
        return _load_timm(plan, sha256, device)
    return _load_open_clip(plan, sha256, device)


def _load_open_clip(plan: AuditPlan, sha256: str, device: torch.device | None) -> Foundation:
    import torch

    from semlens_audit.inference import halved, shared_copy

    model_plan = plan.audit.foundation_model
    folder = _model_directory(plan)
    checkpoint = None if folder is not None else _weights(plan, model_plan)
    loaded = load_open_clip(model_plan.name, folder, checkpoint, model_plan.arguments, FOUNDATION)
    model: Any = loaded.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = model.visual.image_size
    side = (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))
    with torch.inference_mode():
        dimension = int(model.encode_image(torch.zeros(1, 3, *side, device=device)).shape[1])

    def halve() -> Callable[[torch.Tensor], torch.Tensor]:
        half: Any = shared_copy(model)
        half.visual = halved(half.visual)
        return half.encode_image  # type: ignore[no-any-return]

    return Foundation(
        name=model_plan.name,
        sha256=sha256,
        encode=model.encode_image,
        prepare=loaded.prepare,
        encode_text=lambda texts: model.encode_text(loaded.tokenise(texts).to(device)),
        dimension=dimension,
        halve=halve,
        device=device,
    )


def _load_timm(plan: AuditPlan, sha256: str, device: torch.device | None) -> Foundation:
    import torch

    from semlens_audit import networks
    from semlens_audit.inference import halved
    from semlens_audit.subject import make_view, normalise
    from semlens_audit.weights import load_weights

    model_plan = plan.audit.foundation_model
    preprocessing = model_plan.preprocessing or Preprocessing()
    path = _weights(plan, model_plan)
    model = networks.build(ModelSource(source="timm", name=model_plan.name, arguments=model_plan.arguments))
    load_weights(model, path)
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encoder(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda batch: network.forward_head(network.forward_features(batch), pre_logits=True).flatten(1)

    noise = torch.randn(2, 3, preprocessing.size, preprocessing.size, generator=torch.Generator().manual_seed(0)).to(device)
    model, features = _folded_if_same(model, encoder, noise)
    return Foundation(
        name=model_plan.name,
        sha256=sha256,
        encode=encoder(model),
        prepare=lambda image: normalise(make_view(image, preprocessing), preprocessing),
        encode_text=None,
        dimension=int(features.shape[1]),
        halve=lambda: encoder(halved(model)),
        device=device,
    )


def _folded_if_same(
    model: torch.nn.Module, encoder: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]], noise: torch.Tensor
) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model with batch norms folded into its convolutions if that gives the same features, else as it is; and its features."""
    import torch

    from semlens_audit.inference import folded

    with torch.inference_mode():
        plain = encoder(model)(noise)
        network, _ = folded(model, noise[:1])
        other = encoder(network)(noise)
    same = bool((other - plain).abs().max() <= _FOLDING * plain.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    return (network, other) if same else (model, plain)
