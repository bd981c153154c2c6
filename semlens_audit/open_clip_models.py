"""open_clip models from local files: a model directory, or an architecture with a weights file. Torch is imported only to load one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from semlens_audit.digest import digest_file
from semlens_audit.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["AUDITED", "FOUNDATION", "OpenClip", "Use", "file_digests", "load_open_clip", "model_directory"]

_CONFIG = "open_clip_config.json"
_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")


class Use(NamedTuple):
    """What an open_clip model is used as, for messages: noun, and the slugs of a missing and of a bad one."""

    noun: str
    missing: str
    bad: str


FOUNDATION = Use("foundation model", "missing-foundation-model", "bad-foundation-model")
AUDITED = Use("audited model", "missing-model-directory", "bad-model-directory")


class OpenClip(NamedTuple):
    """A loaded open_clip model.

    Parameters
    ----------
    model
        In single precision and eval mode, without gradients for its parameters.
    prepare
        PIL RGB image of any size -> (3, S, S) float32, as the model's configuration says.
    tokenise
        Texts -> (n, L) int64 tokens.
    """

    model: torch.nn.Module
    prepare: Callable[..., torch.Tensor]
    tokenise: Callable[[list[str]], torch.Tensor]


def model_directory(folder: Path, use: Use) -> Path:
    """`folder`, if it is an open_clip model directory with weights in it.

    Raises
    ------
    SubjectError
        The slugs of `use`, or ``missing-weights``.
    """
    if not folder.is_dir():
        raise SubjectError(
            use.missing,
            "The open_clip model directory does not exist.",
            "Name a folder with open_clip_config.json, or an open_clip architecture together with `weights`, or phantom:clip.",
            file=str(folder),
        )
    if not (folder / _CONFIG).is_file():
        raise SubjectError(
            use.bad,
            f"The folder has no {_CONFIG}.",
            "Save the model as an open_clip model directory.",
            file=str(folder),
        )
    if not any(path.suffix in _CHECKPOINTS for path in folder.iterdir()):
        raise SubjectError(
            "missing-weights",
            "The open_clip model directory has no weights; a random model means nothing.",
            "Put open_clip_model.safetensors beside the configuration.",
            file=str(folder),
        )
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that make up a model directory."""
    return {
        path.name: digest_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")
    }


def load_open_clip(
    name: str, folder: Path | None, checkpoint: Path | None, arguments: dict[str, Any], use: Use
) -> OpenClip:
    """Load a model from local files, in single precision on the CPU; nothing is ever downloaded, and no code in them is run.

    Parameters
    ----------
    name
        Architecture, where there is no `folder`.
    folder
        See `model_directory`.
    checkpoint
        Weights file, where there is no `folder`.
    arguments
        Keyword arguments of ``open_clip.create_model_from_pretrained``.
    use
        What it is used as.

    Raises
    ------
    SubjectError
        The slug for a bad one, in the words of open_clip.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import semlens_audit._torchvision  # noqa: F401

    import open_clip  # isort: skip
    import torch

    if folder is not None:
        _check_config(folder, use)
        name = f"local-dir:{folder}"
    try:
        model, prepare = open_clip.create_model_from_pretrained(
            name,
            pretrained=None if checkpoint is None else str(checkpoint),
            precision="fp32",
            device="cpu",
            weights_only=True,
            pretrained_text=False,
            **arguments,
        )
        tokenise = open_clip.get_tokenizer(name)
    except Exception as error:
        first = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise SubjectError(
            use.bad,
            f"open_clip cannot load the {use.noun}: {first}",
            "Check that configuration and weights belong together.",
            file=str(folder or checkpoint),
        ) from error
    broken = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken and use is AUDITED:
        raise SubjectError(
            "weights-not-finite",
            f"{len(broken)} tensors hold NaN or infinities ({', '.join(broken[:3])}).",
            "Train or convert the model again.",
            file=str(folder or checkpoint),
        )
    return OpenClip(model.float().eval().requires_grad_(False), prepare, tokenise)


def _check_config(folder: Path, use: Use) -> None:
    """Refuse a configuration that would make open_clip build something random or look for files on the network."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        known = isinstance(config, dict) and isinstance(config.get("model_cfg"), dict)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        known = False
    if not known:
        raise SubjectError(
            use.bad,
            f"{_CONFIG} is no JSON object with a `model_cfg`.",
            "Save the model as an open_clip model directory.",
            file=str(folder / _CONFIG),
        )
