"""What must hold between an audit, its spec and the files it names; nothing heavier than a file's header is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from semlens_audit.errors import SpecError
from semlens_audit.paths import PHANTOM, resolve
from semlens_audit.plan import Role
from semlens_audit.spec_rules import mappings, texts
from semlens_audit.spec_shape import nearest
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["check_audit", "check_pair", "read_classes"]

_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
_CODE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


class _Audit:
    """An audit's raw value with the means to complain about it."""

    def __init__(self, source: Source, audit_file: Path, check_files: bool) -> None:
        self.source = source
        self.file = audit_file
        self.check_files = check_files

    def get(self, *path: str) -> Any:
        value: Any = self.source.data
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def text(self, *path: str) -> str | None:
        value = self.get(*path)
        return value if isinstance(value, str) and value else None

    def number(self, *path: str) -> float | None:
        value = self.get(*path)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def add(self, slug: str, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> None:
        self.source.problems.append(self.source.places.problem(slug, path, message, hint, at_key=at_key))

    def path(self, *path: str) -> Path | None:
        """The path written at `path`, complaining where a variable or a shipped model is unknown."""
        text = self.text(*path)
        if text is None:
            return None
        try:
            return resolve(self.file, text)
        except SpecError as error:
            first = error.problems[0]
            self.add(first.slug, path, first.message, first.hint)
            return None

    def existing(self, what: str, *path: str, folder: bool | None = None) -> Path | None:
        """The path written at `path` where it exists; complains where it does not, or is not a file or folder as wanted."""
        found = self.path(*path)
        if found is None or not self.check_files:
            return found
        if not found.exists():
            self.add("missing-file", path, f"{what} is not there: {found}.", _look(found))
            return None
        if folder is not None and found.is_dir() != folder:
            kind, wanted = ("a folder", "a file") if found.is_dir() else ("a file", "a folder")
            self.add("missing-file", path, f"{what} must be {wanted}, but {found} is {kind}.")
            return None
        return found


def check_audit(source: Source, audit_file: Path, *, check_files: bool = True) -> None:
    """Add to ``source.problems`` every rule that the audit breaks by itself.

    Parameters
    ----------
    source
        The audit file as read.
    audit_file
        Its path; what it names is relative to it.
    check_files
        Whether the files it names must be there.
    """
    if not isinstance(source.data, dict):
        return
    audit = _Audit(source, audit_file, check_files)
    _model(audit, "subject", "model")
    _preprocessing(audit, "subject", "preprocessing")
    _layers(audit)
    _data(audit)
    _foundation(audit)
    audit.existing("the folder of the examples", "examples_root", folder=True)
    for key in ("store", "reports"):
        audit.path(key)
    side, smallest = audit.number("subject", "preprocessing", "size"), audit.number("measurement", "crop_minimum")
    if side is not None and smallest is not None and smallest > side:
        audit.add("out-of-range", ("measurement", "crop_minimum"), f"a crop of at least {smallest} pixels does not fit an input of {side}.")


def check_pair(audit_source: Source, audit_file: Path, spec: Source, *, check_files: bool = True) -> None:
    """Add to either file's problems every rule that spec and audit break together: classes, layers, concepts, examples."""
    if not isinstance(audit_source.data, dict) or not isinstance(spec.data, dict):
        return
    audit = _Audit(audit_source, audit_file, check_files)
    _classes(audit, list(spec.data["classes"]) if isinstance(spec.data.get("classes"), dict) else [])
    layers = [layer for _, layer in texts(audit_source.data, "layers")]
    for index, check in mappings(spec.data, "checks"):
        for position, layer in texts(check, "layers"):
            if layers and layer not in layers:
                spec.problems.append(spec.places.problem(
                    "unknown-layer", ("checks", index, "layers", position),
                    f"check '{check.get('id')}': the layer `{layer}` is not among the audit's.", nearest(layer, layers),
                ))
    _concepts_without_text(audit, spec)
    if check_files:
        _examples(audit, audit_file, spec)


def read_classes(classes: Any, audit_file: Path) -> tuple[str, ...]:
    """Class names of the model, from the list itself or from the JSON file that it names.

    Parameters
    ----------
    classes
        ``subject.classes``: names, or the path of a JSON list, relative to `audit_file`.
    audit_file
        Path of the audit file.

    Raises
    ------
    SpecError
        ``missing-file``, ``bad-classes`` (no JSON list of text, or fewer than two names) or ``duplicate-class``.
    """
    names = classes
    shown = str(audit_file)
    if isinstance(classes, str):
        path = resolve(audit_file, classes)
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise SpecError("missing-file", f"the list of classes is not there: {path}.", _look(path), file=shown) from None
        except (ValueError, RecursionError):
            raise SpecError("bad-classes", f"{path} is not JSON.", 'Write a JSON list: ["nevus", "melanoma"].', file=shown) from None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names) or len(names) < 2:
        raise SpecError("bad-classes", "`classes` must be a list of at least two names, in the order of the model's outputs.", file=shown)
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise SpecError("duplicate-class", f"the class `{twice}` is listed twice.", "Give every output its own name.", file=shown)
    return tuple(names)


def _model(audit: _Audit, *at: str) -> None:
    """Rules of a `ModelSource`."""
    source, name, weights = audit.text(*at, "source"), audit.text(*at, "name"), audit.get(*at, "weights")
    if source == "code" and name is not None:
        match = _CODE.fullmatch(name)
        if match is None:
            audit.add("bad-code-name", (*at, "name"), f"`{name}` does not name a function.", "Write `path.py:function`, relative to the audit file.")
        elif audit.check_files:
            path = resolve(audit.file, match["file"])
            if not path.is_file():
                audit.add("missing-file", (*at, "name"), f"the code is not there: {path}.", _look(path))
    elif source in ("timm", "torchvision", "open_clip") and audit.get(*at) is not None and weights is None:
        audit.add(
            "missing-weights", at, f"`{source}` models need `weights`.",
            "Name a local .safetensors or .pt file; nothing is ever downloaded.",
        )
    _weights(audit, source, *at, "weights")


def _weights(audit: _Audit, source: str | None, *at: str) -> None:
    path = audit.existing("the weights file", *at, folder=None if source == "open_clip" else False)
    text = audit.text(*at)
    if path is not None and text is not None and not path.is_dir() and path.suffix not in _WEIGHT_FILES:
        audit.add(
            "bad-weights", at, f"`{path.name}` is no weights file.", "Give a state dict as .safetensors (or .pt / .pth).",
        )


def _preprocessing(audit: _Audit, *at: str) -> None:
    deviations = audit.get(*at, "std")
    for index, value in enumerate(deviations if isinstance(deviations, list) else []):
        if isinstance(value, int | float) and value <= 0:
            audit.add("out-of-range", (*at, "std", index), f"a standard deviation of {value} is not greater than 0.")
    size, resize = audit.number(*at, "size"), audit.number(*at, "resize")
    if size is not None and resize is not None and resize < size:
        audit.add(
            "out-of-range", (*at, "resize"), f"resizing to {resize} leaves less than the centre crop of {size}.", "Make `resize` at least `size`.",
        )


def _layers(audit: _Audit) -> None:
    seen: set[str] = set()
    for index, layer in texts(audit.source.data, "layers"):
        if layer in seen:
            audit.add("duplicate-layer", ("layers", index), f"the layer `{layer}` is listed twice.", "Keep one.")
        seen.add(layer)


def _data(audit: _Audit) -> None:
    source = audit.text("data", "source")
    if source in ("folder", "csv") and audit.text("data", "path") is None:
        audit.add("missing-key", ("data",), f"data: `{source}` data needs `path`.", "Name the folder of the images.")
    if source == "csv" and audit.text("data", "labels") is None:
        audit.add("missing-key", ("data",), "data: `csv` data needs `labels`.", "Name the CSV with one row per image.")
    if source == "phantom":
        for key in ("path", "labels", "pattern", "attributes"):
            if audit.get("data", key) is not None:
                audit.add("unused-key", ("data", key), f"data: `{key}` means nothing for rendered data.", "Leave it out.", at_key=True)
        return
    audit.existing("the folder of the images", "data", "path", folder=True)
    audit.existing("the CSV of the labels", "data", "labels", folder=False)
    audit.existing("the CSV of the attributes", "data", "attributes", folder=False)
    pattern = audit.text("data", "pattern")
    if pattern is not None:
        try:
            groups = re.compile(pattern).groupindex
        except (re.error, RecursionError, OverflowError) as error:
            audit.add("bad-pattern", ("data", "pattern"), f"the pattern is no regular expression: {error}.")
        else:
            if "class_index" not in groups:
                audit.add(
                    "bad-pattern", ("data", "pattern"), "the pattern has no group `class_index`.",
                    r"Write for example `(?P<class_index>\d+)_.*`.",
                )


def _foundation(audit: _Audit) -> None:
    """Rules of the foundation model."""
    at = ("foundation_model",)
    source, name = audit.text(*at, "source"), audit.text(*at, "name")
    if source == "timm":
        if name is None or name.startswith(PHANTOM):
            audit.add("missing-key", (*at, "name") if name else at, "foundation_model: `timm` needs the `name` of an architecture.")
        if audit.get(*at, "weights") is None:
            audit.add("missing-weights", at, "foundation_model: `timm` models need `weights`.", "Name a local .safetensors file.")
        _preprocessing(audit, *at, "preprocessing")
        _weights(audit, source, *at, "weights")
    elif source == "open_clip" and name is not None:
        if audit.get(*at, "preprocessing") is not None:
            audit.add(
                "unused-key", (*at, "preprocessing"), "foundation_model: open_clip models bring their own preprocessing.", "Leave it out.",
                at_key=True,
            )
        if name.startswith(PHANTOM):
            audit.path(*at, "name")
        elif audit.get(*at, "weights") is not None:
            _weights(audit, source, *at, "weights")
        else:
            folder = audit.existing("the model directory", *at, "name", folder=True)
            if folder is not None and audit.check_files and not (folder / "open_clip_config.json").is_file():
                audit.add(
                    "missing-file", (*at, "name"), f"{folder} holds no open_clip_config.json.",
                    "Give an open_clip model directory, or an architecture together with `weights`.",
                )


def _classes(audit: _Audit, wanted: list[str]) -> None:
    """The spec's classes against the model's."""
    at: KeyPath = ("subject", "classes")
    value = audit.get("subject", "classes")
    names: tuple[str, ...] | None = None
    if isinstance(value, list | str) and value and (audit.check_files or not isinstance(value, str)):
        try:
            names = read_classes(value, audit.file)
        except SpecError as error:
            audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
    found = audit.get("subject", "class_map")
    mapping = found if isinstance(found, dict) else {}
    for key, target in mapping.items():
        path = ("subject", "class_map", key)
        if wanted and key not in wanted:
            audit.add("unknown-class", path, f"class_map: `{key}` is no class of the spec.", nearest(key, wanted), at_key=True)
        if names is not None and isinstance(target, str) and target not in names:
            audit.add("unknown-class", path, f"class_map: `{target}` is no class of the model.", nearest(target, names))
    for name in wanted:
        if names is not None and name not in mapping and name not in names:
            audit.add(
                "unknown-class", at, f"the spec's class `{name}` is not among the model's classes.",
                f"{nearest(name, names)} Map it: `class_map: {{{name}: ...}}`.",
            )
    targets = [str(mapping.get(name, name)) for name in wanted]
    for target in sorted({target for target in targets if targets.count(target) > 1}):
        audit.add("duplicate-class", ("subject", "class_map"), f"two classes of the spec mean the model's `{target}`.", "Map each to its own.")


def _concepts_without_text(audit: _Audit, spec: Source) -> None:
    """An image-only foundation model sees nothing in a concept that has descriptions only."""
    if audit.text("foundation_model", "source") != "timm":
        return
    for index, concept in mappings(spec.data, "concepts"):
        if concept.get("descriptions") and not concept.get("examples") and concept.get("role") in get_args(Role):
            spec.problems.append(spec.places.problem(
                "no-text-tower", ("concepts", index),
                f"concept '{concept.get('id')}' has only descriptions, but the audit's foundation model cannot read.",
                "Give it example images, or use a foundation model with a text tower (`source: open_clip`).",
            ))


def _examples(audit: _Audit, audit_file: Path, spec: Source) -> None:
    """The example images of the concepts: there, readable, with boxes inside."""
    text = audit.text("examples_root")
    root = Path(spec.places.file).parent
    if text is not None:
        try:
            root = resolve(audit_file, text)
        except SpecError:
            return
        if not root.is_dir():
            return  # The missing folder has been complained about; its images need not be.
    sizes: dict[str, tuple[int, int] | None] = {}
    for index, concept in mappings(spec.data, "concepts"):
        for position, example in mappings(concept, "examples"):
            image, at = example.get("image"), ("concepts", index, "examples", position)
            if not isinstance(image, str) or not image or "\0" in image:
                continue
            path = Path(os.path.normpath(root / image))
            if not path.is_file():
                spec.problems.append(spec.places.problem(
                    "missing-file", (*at, "image"), f"concept '{concept.get('id')}': the example image is not there: {path}.", _look(path),
                ))
                continue
            if image not in sizes:
                sizes[image] = _image_size(path)
            size, box = sizes[image], example.get("box")
            if size is None:
                spec.problems.append(spec.places.problem(
                    "unreadable-image", (*at, "image"), f"concept '{concept.get('id')}': {path} is no readable image.",
                ))
            elif isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box) and (box[2] > size[0] or box[3] > size[1]):
                spec.problems.append(spec.places.problem(
                    "bad-box", (*at, "box"), f"concept '{concept.get('id')}': the box {box} reaches out of the image ({size[0]} x {size[1]}).",
                ))


def _image_size(path: Path) -> tuple[int, int] | None:
    """Width and height as displayed, from the header only; ``None`` for what is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


def _look(path: Path) -> str:
    """Where to look for a path that is not there: the nearest name beside it, or the first folder that is missing."""
    try:
        if path.parent.is_dir():
            names = sorted(entry.name for entry in path.parent.iterdir())
            hint = nearest(path.name, names)
            return hint if hint.startswith("Did") else f"Its folder is there, but holds no `{path.name}`."
        missing = next((parent for parent in reversed(path.parents) if not parent.is_dir()), path.parent)
    except (OSError, ValueError):
        return "Check the path."
    return f"The folder {missing} does not exist."
