"""Classifiers made of an open_clip image tower: zero-shot by class prompts, or with a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semlens_audit.digest import digest_file
from semlens_audit.errors import SubjectError
from semlens_audit.open_clip_models import AUDITED, file_digests, load_open_clip, model_directory
from semlens_audit.plan import ModelSource, Preprocessing
from semlens_audit.weights import read_state, weights_file

if TYPE_CHECKING:
    import torch

    from semlens_audit.open_clip_models import OpenClip

__all__ = ["TEMPLATES", "class_texts", "identity", "load_classifier"]

TEMPLATES = ("a photo of a {}.",)
"""Prompt template where the audit gives none: that of CLIP (Radford et al. 2021, section 3.1.4)."""

_TEXTS_AT_ONCE = 64
_SAME = 1e-3


def class_texts(source: ModelSource, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The texts that stand for each class: every prompt of the class (default: its name) in every template.

    Raises
    ------
    SubjectError
        ``unknown-class``: prompts for what is no class of the model.
    """
    for name in source.prompts:
        if name not in classes:
            raise SubjectError(
                "unknown-class", f"`prompts` speaks of {name!r}, which is none of the model's classes.",
                "Write the class as `subject.classes` does.",
            )  # fmt: skip
    templates = source.templates or TEMPLATES
    return tuple(
        tuple(template.replace("{}", prompt) for prompt in source.prompts.get(name) or (name,) for template in templates)
        for name in classes
    )


def identity(source: ModelSource, folder: Path | None, weights: Path | None, head: Path | None, classes: Sequence[str]) -> dict[str, Any]:
    """What the outputs of such a classifier depend on, for its digest: bytes of files, class texts. Needs no torch.

    Parameters
    ----------
    source
        As the audit says it.
    folder, weights
        Model directory, or weights file of an architecture.
    head
        Weights file of the linear head, if there is one.
    classes
        Class names of the model.
    """
    parts: dict[str, Any] = {"files": file_digests(model_directory(folder, AUDITED))} if folder is not None else {"name": source.name}
    if weights is not None:
        parts["weights"] = digest_file(weights)
    if head is not None:
        return {**parts, "head": digest_file(weights_file(head)), "normalised": source.normalised}
    return {**parts, "texts": [list(texts) for texts in class_texts(source, classes)]}


def load_classifier(
    source: ModelSource,
    folder: Path | None,
    weights: Path | None,
    head: Path | None,
    classes: Sequence[str],
    preprocessing: Preprocessing | None,
) -> torch.nn.Module:
    """Load the image tower, and put its head on.

    Zero-shot, the head's rows are the class embeddings: y_c = s * cos(image, t_c) + b with t_c the normalised mean of the unit
    embeddings of the class's texts, s the model's own logit scale and b its logit bias, where it has one (Radford et al. 2021,
    section 3.1.4). The text tower runs once, here, and is let go. With `head`, y = W x + b, with x the image embedding, of unit
    length if ``source.normalised``.

    Parameters
    ----------
    source, folder, weights, head, classes
        See `identity`.
    preprocessing
        Of the audit; ``None`` where the answers do not matter.

    Returns
    -------
    torch.nn.Module
        With the sub-modules ``visual`` (open_clip's image tower, its layers named as there) and ``head``.

    Raises
    ------
    SubjectError
        ``preprocessing-differs``: other means or deviations than a zero-shot model was trained with; ``bad-head``; and see
        `semlens_audit.open_clip_models.load_open_clip`.
    """
    if folder is not None:
        model_directory(folder, AUDITED)
    loaded = load_open_clip(source.name, folder, weights, source.arguments, AUDITED)
    if head is not None:
        weight, bias = _head(head)
        normalised = source.normalised
    else:
        _check_preprocessing(loaded, preprocessing)
        weight, bias = _class_embeddings(loaded, class_texts(source, classes))
        normalised = True
    return _classifier(loaded.model.visual, weight, bias, normalised, head)


def _classifier(
    visual: Any, weight: torch.Tensor, bias: torch.Tensor | None, normalised: bool, file: Path | None
) -> torch.nn.Module:
    import torch

    class Classifier(torch.nn.Module):
        """An image tower and a linear head on its embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = visual
            self.head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """(B, 3, S, S) -> (B, C)."""
            embedding = self.visual(images)
            if not isinstance(embedding, torch.Tensor):  # CoCa gives the tokens too
                embedding = embedding[0]
            if normalised:
                embedding = embedding / embedding.norm(dim=-1, keepdim=True)
            answers: torch.Tensor = self.head(embedding)
            return answers

    model = Classifier()
    dimension = getattr(visual, "output_dim", None)
    if isinstance(dimension, int) and dimension != weight.shape[1]:
        raise SubjectError(
            "bad-head", f"The head reads {weight.shape[1]} values, the image tower gives {dimension}.",
            "Give the head that was trained on this model's embeddings.", file=None if file is None else str(file),
        )  # fmt: skip
    with torch.no_grad():
        model.head.weight.copy_(weight)
        if bias is not None:
            model.head.bias.copy_(bias)
    return model.float().eval().requires_grad_(False)


def _head(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight (C, d) and bias (C,) of a linear head, whatever stands before ``weight`` and ``bias`` in their names."""
    state = read_state(path)
    named = {name.rpartition(".")[2]: tensor for name, tensor in state.items()}
    weight, bias = named.get("weight"), named.get("bias")
    fits = weight is not None and weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])
    if len(named) != len(state) or not set(named) <= {"weight", "bias"} or not fits or weight is None:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items())[:4])
        raise SubjectError(
            "bad-head", f"The file holds no linear head, but {shapes}.",
            "Save `weight` (classes, embedding) and, if it has one, `bias` (classes,) as .safetensors.", file=str(path),
        )  # fmt: skip
    if not all(bool(tensor.isfinite().all()) for tensor in named.values()):
        raise SubjectError("weights-not-finite", "The head holds NaN or infinities.", "Train or convert it again.", file=str(path))
    return weight.float(), None if bias is None else bias.float()


def _class_embeddings(loaded: OpenClip, texts: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(C, d) class embeddings times the logit scale, and (C,) logit biases where the model has one."""
    import torch

    model: Any = loaded.model
    rows = []
    with torch.inference_mode():
        for own in texts:
            parts = []
            for start in range(0, len(own), _TEXTS_AT_ONCE):
                vectors = model.encode_text(loaded.tokenise(list(own[start : start + _TEXTS_AT_ONCE]))).float()
                parts.append(vectors / vectors.norm(dim=-1, keepdim=True))
            mean = torch.cat(parts).mean(dim=0)
            rows.append(mean / mean.norm())
        weight = model.logit_scale.exp() * torch.stack(rows)
        said = getattr(model, "logit_bias", None)
        bias = None if said is None else said.reshape(1).expand(len(rows)).float()
    if not bool(weight.isfinite().all()):
        raise SubjectError("weights-not-finite", "The text tower gives NaN, infinities or zero vectors.", "Mend its weights.")
    return weight.clone(), None if bias is None else bias.clone()


def _check_preprocessing(loaded: OpenClip, preprocessing: Preprocessing | None) -> None:
    """A zero-shot classifier means something only on inputs scaled as those that it was trained on."""
    if preprocessing is None:
        return
    visual: Any = loaded.model.visual
    for key, own, said in (("mean", visual.image_mean, preprocessing.mean), ("std", visual.image_std, preprocessing.std)):
        if own is not None and max(abs(a - b) for a, b in zip(own, said, strict=True)) > _SAME:
            raise SubjectError(
                "preprocessing-differs",
                f"The model was trained on inputs with another `{key}`: {[round(float(value), 5) for value in own]}.",
                f"Write it under `subject.preprocessing`: {key}: [{', '.join(f'{float(value):.8g}' for value in own)}]; if these weights "
                f"were trained with yours, say `model: {{arguments: {{image_{key}: [...]}}}}`.",
            )
