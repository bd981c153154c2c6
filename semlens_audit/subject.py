"""The audited model: loaded, checked and ready to be asked. Imports torch only once a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from semlens_audit import clip_classifier
from semlens_audit.arithmetic import fix_arithmetic
from semlens_audit.data import class_names
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan, ModelSource, Preprocessing
from semlens_audit.sae_header import identity
from semlens_audit.virtual_header import identity as virtual_identity
from semlens_audit.weights import load_weights, state_digest, weights_file

if TYPE_CHECKING:
    import torch

__all__ = ["LoadedSubject", "load_subject", "make_view", "normalise", "source_digest", "subject_digest"]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def make_view(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """What the network sees of `image`: resized with antialiasing and cropped, not normalised.

    Parameters
    ----------
    image
        RGB, any size.
    preprocessing
        ``resize``: short side first, then the centre crop of ``size``; without: straight to ``size`` x ``size``.

    Returns
    -------
    PIL.Image.Image
        RGB, (size, size).
    """
    size, short = preprocessing.size, preprocessing.resize
    how = _RESAMPLING[preprocessing.interpolation]
    if short is None:
        return image if image.size == (size, size) else image.resize((size, size), how)
    width, height = image.size
    if width <= height:
        width, height = short, max(short, int(short * height / width))
    else:
        width, height = max(short, int(short * width / height)), short
    if image.size != (width, height):
        image = image.resize((width, height), how)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def normalise(view: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """(3, S, S) float32: pixel values in 0 to 1, minus mean, over standard deviation per channel."""
    import torch

    pixels = np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / np.float32(255.0)
    mean = np.asarray(preprocessing.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, dtype=np.float32)[:, None, None]
    return torch.from_numpy(np.ascontiguousarray((pixels - mean) / std))


def source_digest(plan: AuditPlan, source: ModelSource) -> str:
    """Identity of a model as files tell it: weights bytes, fields of the source, bytes of own code. Needs no torch."""
    parts: dict[str, Any] = {"source": source.source, "name": source.name, "arguments": source.arguments}
    if source.source == "open_clip":
        return digest({**parts, "name": "", **clip_classifier.identity(source, *_open_clip_files(plan, source), class_names(plan))})
    if source.source == "export":
        return digest({**parts, "name": "", "program": digest_file(_program(plan, source))})
    if source.weights is not None:
        parts["weights"] = digest_file(weights_file(resolve(plan, source.weights)))
    code = code_file(plan, source)
    if code is not None:
        if not code.is_file():
            raise SubjectError(
                "bad-code",
                "The Python file of the model does not exist.",
                "Write path/to/file.py:function.",
                file=str(code),
            )
        parts["name"] = source.name.rpartition(":")[2]
        parts["code"] = digest_file(code)
    return digest(parts)


def code_file(plan: AuditPlan, source: ModelSource) -> Path | None:
    """Path of the Python file of a ``code`` source, else ``None``."""
    if source.source != "code":
        return None
    path, colon, function = source.name.rpartition(":")
    if not colon or not path or not function.isidentifier():
        raise SubjectError("bad-code", f"{source.name!r} names no function.", "Write path/to/file.py:function.")
    return resolve(plan, path)


def _open_clip_files(plan: AuditPlan, source: ModelSource) -> tuple[Path | None, Path | None, Path | None]:
    """Model directory, weights file and head of an open_clip source, as far as it names them."""
    head = None if source.head is None else resolve(plan, source.head)
    if source.weights is None:
        return resolve(plan, source.name), None, head
    return None, weights_file(resolve(plan, source.weights)), head


def _program(plan: AuditPlan, source: ModelSource) -> Path:
    path = resolve(plan, source.name)
    if not path.is_file():
        raise SubjectError("bad-export", "The exported program does not exist.", "Mend `model.name` in the audit.", file=str(path))
    return path


def subject_digest(plan: AuditPlan) -> str:
    """Identity of the audited model with what is spliced into it, without importing torch; a retrained one never has an old identity."""
    own = source_digest(plan, plan.audit.subject.model)
    autoencoders = [identity(one, resolve(plan, one.file)) for one in plan.audit.subject.autoencoders]
    virtual = [virtual_identity(one, resolve(plan, one.file)) for one in plan.audit.subject.virtual_neurons]
    spliced = {**({"autoencoders": autoencoders} if autoencoders else {}), **({"virtual": virtual} if virtual else {})}
    return digest({"model": own, **spliced}) if spliced else own


@dataclass(frozen=True)
class LoadedSubject:
    """The audited model, ready to be asked.

    Parameters
    ----------
    model
        In eval mode, single precision, on the CPU, without gradients for its parameters.
    classes
        Class names in the order of the outputs.
    sha256
        Of the tensors by name, dtype, shape and bytes; without those of what is spliced in.
    parameters
        Number of trainable values.
    architecture
        Library and architecture in words, e.g. ``torchvision mobilenet_v2``.
    preprocessing
        From image to input.
    """

    model: torch.nn.Module = field(repr=False)
    classes: tuple[str, ...]
    sha256: str
    parameters: int
    architecture: str
    preprocessing: Preprocessing

    def view(self, image: Image.Image) -> Image.Image:
        """What the network sees of `image`: (S, S) RGB; see `make_view`."""
        return make_view(image, self.preprocessing)

    def transform(self, image: Image.Image) -> torch.Tensor:
        """(3, S, S) float32 network input of `image`: the normalised view."""
        return normalise(self.view(image), self.preprocessing)

    def layer(self, name: str) -> torch.nn.Module:
        """The sub-module called `name`; `SubjectError` ``unknown-layer`` suggests the nearest."""
        from semlens_audit.networks import nearest_layer

        return nearest_layer(self.model, name)


def load_subject(plan: AuditPlan, *, allow_code: bool = False) -> LoadedSubject:
    """Build the audited model, load its weights strictly, and check that it answers with one finite number per class.

    Raises
    ------
    SubjectError
        Unknown architecture or layer, a layer whose output cannot be audited, weights, an autoencoder or virtual neurons that do not fit, a
        number of outputs other than the classes'.
    UsageError
        ``code-not-allowed``: own code without `allow_code`.
    ExecutionError
        ``not-finite``: the model outputs NaN or infinities.
    """
    subject = plan.audit.subject
    preprocessing = subject.preprocessing
    if preprocessing.resize is not None and preprocessing.resize < preprocessing.size:
        raise SubjectError(
            "crop-larger-than-resize",
            f"The crop of {preprocessing.size} px is larger than the short side after "
            f"resizing, {preprocessing.resize} px.",
            "Make `resize` at least `size`, or leave it out.",
        )
    fix_arithmetic()
    classes = class_names(plan)
    model = _load_model(plan, classes, allow_code)
    _check_outputs(model, preprocessing.size, classes)
    loaded = LoadedSubject(
        model=model,
        classes=classes,
        sha256=state_digest(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        architecture=_architecture(subject.model),
        preprocessing=preprocessing,
    )
    if subject.autoencoders:
        from semlens_audit.sae.splice import splice_audited

        splice_audited(plan, model, loaded.sha256)
    if subject.virtual_neurons:
        from semlens_audit.virtual.splice import splice_virtual_audited

        splice_virtual_audited(plan, model, loaded.sha256)
    for name in plan.audit.layers:
        loaded.layer(name)
    _check_layers(model, preprocessing.size, plan.audit.layers)
    return loaded


def _check_layers(model: torch.nn.Module, size: int, layers: Sequence[str]) -> None:
    """Refuse layers that cannot be audited before any data are read."""
    import torch

    from semlens_audit.layouts import grid_of, observed, prefix_tokens

    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: torch.Tensor) -> None:
        shapes[name] = tuple(output.shape)

    with torch.inference_mode(), observed(model, layers, note):
        model(torch.zeros(2, 3, size, size))
    for name in layers:
        if name not in shapes:
            raise SubjectError(
                "unused-layer", f"The forward pass leaves out layer {name!r}.", "Audit another layer: `semlens-audit layers` lists them."
            )
        if len(shapes[name]) == 3 and grid_of(shapes[name][1], prefix_tokens(model)) is None:
            raise SubjectError(
                "unknown-layout",
                f"The output of layer {name!r} has shape {shapes[name]}: its {shapes[name][1]} tokens form no square grid, so they have no "
                "place.",
                "Audit a layer whose tokens are those of square patches of the image, with class and register tokens before them.",
            )


def _load_model(plan: AuditPlan, classes: tuple[str, ...], allow_code: bool) -> torch.nn.Module:
    """The network with its weights, whatever its source."""
    source, preprocessing = plan.audit.subject.model, plan.audit.subject.preprocessing
    if source.source == "open_clip":
        return clip_classifier.load_classifier(source, *_open_clip_files(plan, source), classes, preprocessing)
    if source.source == "export":
        from semlens_audit.exported import load_exported

        batch = plan.audit.measurement.batch_size
        model = load_exported(_program(plan, source), preprocessing.size, batch, allow_code=allow_code)
        return model.to(device="cpu").float().eval().requires_grad_(False)
    from semlens_audit import networks

    model = networks.build(source, code_file=code_file(plan, source), allow_code=allow_code)
    if source.weights is not None:
        load_weights(model, resolve(plan, source.weights))
    elif source.source != "code":
        raise SubjectError(
            "missing-weights",
            "The audited model has no weights; a random network is not worth an audit.",
            "Add `weights:` to the audit's model.",
        )
    return model


def _architecture(source: ModelSource) -> str:
    """Library and architecture in words; the name of a file or folder without what leads there."""
    name = Path(source.name).name
    if source.source != "open_clip":
        return f"{source.source} {name}"
    return f"open_clip {'zero-shot' if source.head is None else 'linear-head'} {name}"


def _check_outputs(model: torch.nn.Module, size: int, classes: tuple[str, ...]) -> None:
    import torch

    with torch.inference_mode():
        try:
            output = model(torch.zeros(1, 3, size, size))
        except Exception as error:
            raise SubjectError(
                "model-fails",
                f"The model does not run on a {size} x {size} RGB input: {type(error).__name__}: {error}.",
                "Mend `preprocessing.size` or the model.",
            ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise SubjectError(
            "not-a-classifier",
            f"The model returns {what} instead of (batch, classes) scores.",
            "Audit a classifier, or wrap it in own code that returns its logits.",
        )
    if output.shape[1] != len(classes):
        raise SubjectError(
            "classes-do-not-fit",
            f"The model has {output.shape[1]} outputs, the audit names {len(classes)} classes.",
            "List one class name per output, in the order of the outputs.",
        )
    if not bool(torch.isfinite(output).all()):
        raise ExecutionError(
            "not-finite", "The model outputs NaN or infinities, even on a plain grey image.", "Mend the model."
        )
