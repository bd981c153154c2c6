"""What two machines have to have in common for the same work to give the same bytes: code, libraries, arithmetic, files."""

from __future__ import annotations

import hashlib
import io
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from semlens_audit import __version__
from semlens_audit.devices import describe
from semlens_audit.digest import digest, digest_file
from semlens_audit.open_clip_models import file_digests
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.subject import code_file

if TYPE_CHECKING:
    import torch

    from semlens_audit.data import DataSet

__all__ = ["arithmetic", "different_files", "different_traits", "files", "name", "traits"]

_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "zennit", "numpy", "scipy", "pillow")
_SAMPLES = 4
"""Images that are compared; a folder that holds other data differs in the first one already."""


def name() -> str:
    """The machine as people call it."""
    return platform.node() or "an unnamed machine"


def traits(device: torch.device) -> dict[str, str]:
    """What results depend on besides the audit's files: versions, the code itself, the device, and how it computes.

    Parameters
    ----------
    device
        Where networks run.

    Returns
    -------
    dict
        Trait in words -> value; see `different_traits`.
    """
    found = {"semlens_audit": __version__, "the code of semlens_audit": _code(), "the device": describe(device)}
    for library in _LIBRARIES:
        found[library] = metadata.version(library)
    return found | {"the last bits of its arithmetic": arithmetic(device)}


def different_traits(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """In words, where two machines differ: ``torch (2.9.0 here, 2.8.0 there)``."""
    shown = {trait: (ours.get(trait, "none"), theirs.get(trait, "none")) for trait in {**ours, **theirs}}
    return [
        f"{trait} ({one} here, {other} there)" if len(one) < 60 and len(other) < 60 else trait
        for trait, (one, other) in shown.items()
        if one != other
    ]


@cache
def _code() -> str:
    folder = Path(__file__).parent
    return digest({path.relative_to(folder).as_posix(): digest_file(path) for path in sorted(folder.rglob("*.py"))})


def arithmetic(device: torch.device) -> str:
    """Digest of a fixed computation: operations of networks on `device` with the threads of this process, and pictures.

    The last bits of a convolution, a matrix product or a long sum depend on the instructions of the processor, on the number of threads
    that share the work, and on the libraries' builds; those of a JPEG picture on its encoder.
    """
    import torch
    from torch.nn import functional

    from semlens_audit.thumbnails import crop_thumbnail

    random = torch.Generator().manual_seed(20)
    maps = torch.randn(4, 32, 28, 28, generator=random)
    kernel = torch.randn(48, 32, 3, 3, generator=random)
    deep, tokens = torch.randn(32, 1, 3, 3, generator=random), torch.randn(2, 4, 50, 32, generator=random)
    rows, matrix = torch.randn(100, 512, generator=random), torch.randn(256, 512, generator=random)
    state = hashlib.sha256()

    def take(result: torch.Tensor) -> None:
        state.update(result.float().cpu().contiguous().numpy().tobytes())

    with torch.no_grad():
        for kind in (torch.float32, torch.bfloat16):
            x, w, d, q, r, m = (value.to(device, kind) for value in (maps, kernel, deep, tokens, rows, matrix))
            take(functional.conv2d(x, w, padding=1))
            take(functional.conv2d(x.contiguous(memory_format=torch.channels_last), w, padding=1))
            take(functional.conv2d(x, w[:, :, :1, :1]))
            take(functional.conv2d(x, d, padding=1, groups=32))
            take(functional.linear(r, m))
            take(functional.scaled_dot_product_attention(q, q, q))
            take(functional.gelu(r).softmax(-1))
            if device.type == "cpu":  # on a GPU the order of these sums is not fixed on one machine either
                take(functional.conv_transpose2d(functional.conv2d(x, w, padding=1), w, padding=1))
                take(x.sum().reshape(1))
    pixels = np.random.default_rng(20).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    encoded = crop_thumbnail(Image.fromarray(pixels), (3, 5, 37, 33))
    state.update(encoded)
    state.update(np.asarray(Image.open(io.BytesIO(encoded)).resize((31, 29), Image.Resampling.BILINEAR)).tobytes())
    return state.hexdigest()


def files(plan: AuditPlan, data: DataSet) -> dict[str, str]:
    """Absolute path -> SHA-256 of what workers read: the models' files, the class list, and a few images evenly over the data."""
    audit, found = plan.audit, {}
    model, foundation = audit.subject.model, audit.foundation_model
    named = [model.weights, model.head, foundation.weights]
    named += [source.name for source in (model, foundation) if source.source in ("open_clip", "export")]
    named += [audit.subject.classes] if isinstance(audit.subject.classes, str) else []
    places = [resolve(plan, text) for text in named if text is not None]
    own = code_file(plan, model)
    for place in [*places, *([] if own is None else [own])]:
        if place.is_dir():
            found.update({str((place / file).absolute()): value for file, value in file_digests(place).items()})
        elif place.is_file():  # a name may also be that of an architecture
            found[str(place.absolute())] = digest_file(place)
    for sample in data.samples[:: max(1, len(data.samples) // _SAMPLES)][:_SAMPLES]:
        found[str(data.file(sample).absolute())] = sample.sha256
    if data.pairs is not None and data.pairs.images:
        sha256, path = data.pairs.images[0]
        found[str((data.pairs.root / path).absolute())] = sha256
    return found


def different_files(expected: dict[str, str]) -> list[tuple[str, str]]:
    """Of `files` of another machine, those that are not the same here, each with what is wrong with it."""
    wrong: list[tuple[str, str]] = []
    for path, sha256 in expected.items():
        try:
            if digest_file(Path(path)) != sha256:
                wrong.append((path, "holds something else"))
        except FileNotFoundError:
            wrong.append((path, "does not exist"))
        except OSError as error:
            wrong.append((path, f"cannot be read ({error.strerror or error})"))
    return wrong
