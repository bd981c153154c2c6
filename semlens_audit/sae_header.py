"""Files of sparse autoencoders as far as their header tells: what they were trained on, and their shapes. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from semlens_audit import safetensors_header
from semlens_audit.digest import digest_file
from semlens_audit.errors import SubjectError
from semlens_audit.plan import Audit, Autoencoder, Preprocessing
from semlens_audit.safetensors_header import read_header

__all__ = ["LATENTS", "TENSORS", "Dictionary", "Places", "Training", "autoencoder_of", "identity", "latents_of", "read_dictionary"]

LATENTS = ".sae.latents"
"""What the name of a layer is followed by in the name of the latents of its autoencoder."""

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
"""Of every file: encoder (width, latents), decoder (latents, width), and their biases (latents,) and (width,)."""
_SCALE = "scale"
_METADATA = "semlens_audit_sae"
_MOST_WEIGHTS = 2**31

Places = Literal["all", "class", "spatial"]
"""Which of a layer's vectors an autoencoder reads: all, the tokens before those of the grid, or those of the grid."""


class Training(BaseModel):
    """What an autoencoder was trained on, and how well it does; the metadata of its file.

    Parameters
    ----------
    version
        Of the format.
    layer
        Name of the layer whose activations it reads.
    k
        Latents that are active at most in one place.
    places
        Which of the layer's vectors it reads.
    subject
        SHA-256 of the network's tensors, see `semlens_audit.weights.state_digest`.
    preprocessing
        From image to input.
    data
        SHA-256 of the manifest of the training images.
    samples, held_back
        Images that it was trained on, and images that were held back to judge it.
    steps, batch, learning_rate, seed
        Of the training: optimiser steps, vectors in each, and so on.
    explained_variance
        On vectors of the images held back: 1 - FVU, at most 1.
    active
        Mean number of latents above zero, on the same vectors.
    dead
        Latents that are above zero on none of the vectors, of the training images and of those held back.
    device
        Where it was trained.
    tool
        Version of semlens_audit.
    key
        Digest of all that the training depended on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    layer: str
    k: int
    places: Places
    subject: str
    preprocessing: Preprocessing
    data: str
    samples: int
    held_back: int
    steps: int
    batch: int
    learning_rate: float
    seed: int
    explained_variance: float
    active: float
    dead: int
    device: str
    tool: str
    key: str

    def metadata(self) -> dict[str, str]:
        """As it stands in the file: one entry, so that its bytes do not depend on an order."""
        return {_METADATA: json.dumps(self.model_dump(mode="json"), sort_keys=True)}


@dataclass(frozen=True)
class Dictionary:
    """A file of an autoencoder.

    Parameters
    ----------
    path
        The file.
    width, latents
        Values in a vector that it reads, and number of its latents.
    training
        What the file says of itself; ``None`` for a file of another tool.
    """

    path: Path
    width: int
    latents: int
    training: Training | None


def latents_of(layer: str) -> str:
    """Name under which the latents of a layer's autoencoder are a layer themselves."""
    return layer + LATENTS


def autoencoder_of(audit: Audit, layer: str) -> Autoencoder | None:
    """The autoencoder whose latents are called `layer`; ``None`` where it is a layer of the network itself."""
    return next((one for one in audit.subject.autoencoders if latents_of(one.layer) == layer), None)


def identity(one: Autoencoder, path: Path, file_digest: Callable[[Path], str] = digest_file) -> dict[str, Any]:
    """What cache keys know an autoencoder by: its layer, the bytes of its file, what the audit says about it.

    Raises
    ------
    SubjectError
        ``missing-autoencoder``.
    """
    if not path.is_file():
        raise SubjectError(
            "missing-autoencoder", f"The file of the autoencoder of layer {one.layer!r} does not exist.",
            "Train it with `semlens-audit sae train`, or mend `subject.autoencoders` in the audit.", file=str(path),
        )  # fmt: skip
    return {"layer": one.layer, "file": file_digest(path), "k": one.k}


def read_dictionary(path: Path) -> Dictionary:
    """Read the header of a safetensors file, and nothing of its tensors.

    Tensors have the names and shapes of `TENSORS`, in single or half precision: for vectors x of `width`,
    ``z = relu(topk((x / scale - b_dec) W_enc + b_enc))`` and ``x^ = scale (z W_dec + b_dec)``. ``scale`` () may be left out: 1.

    Raises
    ------
    SubjectError
        ``bad-autoencoder``: not such a file.
    """
    try:
        header, metadata = read_header(path)
    except ValueError as error:
        raise _bad(path, f"It is no safetensors file: {error}.", "Copy it again, or save it with safetensors.") from error
    shapes = safetensors_header.shapes(header)
    missing = [name for name in TENSORS if name not in shapes]
    unexpected = [name for name in shapes if name not in (*TENSORS, _SCALE)]
    if missing or unexpected:
        what = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for names, kind in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        )
        raise _bad(path, f"Its tensors are not those of a TopK autoencoder: {what}.", f"It must hold exactly {', '.join(TENSORS)}.")
    if len(shapes["W_enc"]) != 2 or 0 in shapes["W_enc"]:
        raise _bad(path, f"W_enc has shape {shapes['W_enc']}.", "It must be (width, latents).")
    width, latents = shapes["W_enc"]
    for name, shape in {"W_dec": (latents, width), "b_enc": (latents,), "b_dec": (width,), _SCALE: ()}.items():
        if name in shapes and shapes[name] != shape:
            raise _bad(path, f"{name} has shape {shapes[name]} instead of {shape}.", f"W_enc {(width, latents)} is (width, latents).")
    if width * latents > _MOST_WEIGHTS:
        raise _bad(path, f"It says that it has {latents:,} latents of {width:,} values.", "Give a dictionary that fits into memory.")
    return Dictionary(path, width, latents, _training(path, metadata, latents))


def _training(path: Path, metadata: Any, latents: int) -> Training | None:
    said = metadata.get(_METADATA) if isinstance(metadata, Mapping) else None
    if said is None:
        return None
    try:
        training = Training.model_validate_json(said)
    except (ValidationError, TypeError) as error:
        raise _bad(path, "What it says of its training cannot be read.", "Train it anew with this version of the tool.") from error
    if not 1 <= training.k <= latents:
        raise _bad(path, f"It says that {training.k} of {latents} latents are active.", "Train it anew.")
    return training


def _bad(path: Path, what: str, hint: str) -> SubjectError:
    return SubjectError("bad-autoencoder", f"{path.name} is not a sparse autoencoder that can be loaded. {what}", hint, file=str(path))
