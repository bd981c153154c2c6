"""Names and arguments of architectures from someone else's file: nothing is fetched, no other file is named, nothing is gigantic."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from semlens_audit.bounded import read_bytes
from semlens_audit.confinement import inside
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["PLAIN_ARGUMENTS", "check_arguments", "check_model_directory", "check_model_name", "swells", "wrong_argument"]

PLAIN_ARGUMENTS = "Give only what describes the architecture, in sizes that exist."
"""What to do about a wrong argument."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}(/[A-Za-z0-9_.+-]{1,40})?")
_ELSEWHERE = re.compile(
    r"pretrained|checkpoint|weights|cache|url|hub|trust|import|module_name|(^|_)(path|file|dir|folder)$(?<!drop_path)"
)
_REPEATED = re.compile(r"depths?|layers|num_layers|n_layers?|blocks|stages|num_blocks")
_MOST_ARGUMENTS = 500
_DEEPEST = 8
_LARGEST = 1_000_000
_MOST_LAYERS = 2_000
_MOST_WEIGHTS = 2**30
_CONFIG = "open_clip_config.json"
_CONFIG_BYTES = 1_000_000


def check_model_name(source: Source, at: KeyPath, name: str | None) -> None:
    """Complain where `name` is no plain name of an architecture, such as ``hf-hub:owner/model``, which would be looked up elsewhere."""
    if name is not None and (_NAME.fullmatch(name) is None or ".." in name):
        source.complain(
            "bad-model-name",
            at,
            "this is not the name of an architecture.",
            "Write a name that the library knows, e.g. `resnet18`; weights are local files, and nothing is ever downloaded.",
        )


def check_arguments(source: Source, at: KeyPath, arguments: Any) -> None:
    """Complain where arguments of an architecture name other files or weights, or ask for something gigantic.

    Parameters
    ----------
    source
        The file.
    at
        Where they stand in it.
    arguments
        As read; anything but a mapping is complained about elsewhere.
    """
    if not isinstance(arguments, dict):
        return
    if (wrong := wrong_argument(arguments)) is not None:
        key, why = wrong
        source.complain("bad-arguments", (*at, key) if key in arguments else at, why, PLAIN_ARGUMENTS)


def wrong_argument(arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """Key and fault of the first argument of an architecture that names other files or weights, or asks for something gigantic.

    The key is empty where the fault is of several together.
    """
    return next(_complaints(dict(arguments)), None)


def check_model_directory(source: Source, at: KeyPath, folder: Path, allowed: Sequence[Path]) -> None:
    """Complain where an open_clip model directory leads elsewhere: by links, by names of other models, or by code to trust.

    Parameters
    ----------
    source, at
        The audit file, and where it names the folder.
    folder
        The model directory, with its configuration in it.
    allowed
        Folders that its links may lead into, symbolic links resolved.
    """
    own = Path(os.path.realpath(folder))
    try:
        astray = sorted(entry.name for entry in folder.iterdir() if not inside(entry, (own, *allowed)))
    except OSError as error:
        source.complain("missing-file", at, f"the model directory {folder} cannot be listed: {error.strerror}.")
        return
    if astray:
        source.complain(
            "path-outside",
            at,
            f"{folder / astray[0]} is a symbolic link that leads out of the audit's folder.",
            "Put the file itself there.",
        )
    config = _config(folder / _CONFIG)
    if config is None:
        source.complain(
            "bad-model-directory", at, f"{folder / _CONFIG} is no JSON object of at most 1 MB.", "Save the model directory again."
        )
        return
    why = _leads_elsewhere(config) or (wrong_argument(config) or ("", None))[1]
    if why is not None:
        source.complain("bad-model-directory", at, f"{folder / _CONFIG}: {why}", "Nothing is downloaded and no code is run.")


def swells(path: Path) -> bool:
    """Whether a file is a ZIP archive whose members together are larger than it, so that reading them could fill the memory.

    ``torch.save`` stores members as they are; what is no archive is for torch to refuse.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist()) > path.stat().st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _leads_elsewhere(config: dict[str, Any]) -> str | None:
    """What names another model in the ``model_cfg`` of an open_clip configuration, or ``None``."""
    text, vision = config.get("text_cfg"), config.get("vision_cfg")
    if isinstance(text, dict) and text.get("hf_model_name"):
        return "`hf_model_name` names a text tower that lies elsewhere; only open_clip's own are read."
    timm = vision.get("timm_model_name") if isinstance(vision, dict) else None
    if timm is not None and (not isinstance(timm, str) or _NAME.fullmatch(timm) is None):
        return "`timm_model_name` is no plain name of an architecture."
    return None


def _config(path: Path) -> dict[str, Any] | None:
    """``model_cfg`` of an open_clip configuration, empty where it has none; ``None`` where it is not to be read."""
    try:
        content = read_bytes(path, _CONFIG_BYTES)
        value = json.loads(content.decode("utf-8")) if content.strip() else {}
    except (OSError, ValueError, RecursionError):
        return None
    found = value.get("model_cfg", {}) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else None


def _complaints(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key at the top, what is wrong) for everything wrong with some arguments."""
    sizes: list[int] = []
    layers = 0
    for count, (top, key, value, depth) in enumerate(_walk(arguments)):
        if count >= _MOST_ARGUMENTS:
            yield top, f"there are more than {_MOST_ARGUMENTS} values."
            return
        if depth > _DEEPEST:
            yield top, f"`{key}` is nested deeper than {_DEEPEST} levels."
            return
        if _ELSEWHERE.search(key.lower()) and value not in (None, False, [], {}, ""):
            yield top, f"`{key}` speaks of other files, weights or code, which are never read."
            return
        if isinstance(value, str) and key != "hf_tokenizer_name" and (len(value) > 200 or re.search(r"[:/\\]", value)):
            yield top, f"`{key}` is a text that looks like a path or an address."
            return
        if isinstance(value, float) and not isfinite(value):
            yield top, f"`{key}` must be a finite number."
            return
        if isinstance(value, int) and not isinstance(value, bool):
            if not -_LARGEST <= value <= _LARGEST:
                yield top, f"`{key}` is larger than {_LARGEST:,}."
                return
            sizes.append(abs(value))
            layers += abs(value) if _REPEATED.fullmatch(key.lower()) else 0
    if layers > _MOST_LAYERS:
        yield "", f"they ask for {layers:,} layers; at most {_MOST_LAYERS:,} are built."
    first, second = (sorted([*sizes, 1, 1])[-2:])
    if first * second > _MOST_WEIGHTS:
        yield "", f"they ask for a layer of {second:,} by {first:,}; at most {_MOST_WEIGHTS:,} weights are built."


def _walk(value: dict[str, Any]) -> Iterator[tuple[str, str, Any, int]]:
    """(key at the top, nearest key, value, depth) of every value, mappings and lists too, without recursion."""
    waiting: list[tuple[str, str, Any, int]] = [(str(key), str(key), inner, 1) for key, inner in reversed(value.items())]
    while waiting:
        top, key, inner, depth = waiting.pop()
        yield top, key, inner, depth
        if isinstance(inner, dict):
            waiting += [(top, str(name), part, depth + 1) for name, part in reversed(inner.items())]
        elif isinstance(inner, list):
            waiting += [(top, key, part, depth + 1) for part in reversed(inner)]
