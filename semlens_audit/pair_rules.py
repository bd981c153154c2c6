"""What must hold between an audit and its spec: classes, layers, concepts, example images.

Nothing heavier than the header of an image is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

from semlens_audit.audit_rules import AuditSource, look
from semlens_audit.bounded import read_bytes
from semlens_audit.confinement import confined, inside, kind_of, roots
from semlens_audit.errors import SpecError
from semlens_audit.plain_text import find_hidden
from semlens_audit.plan import Role
from semlens_audit.spec_rules import mappings, texts
from semlens_audit.spec_shape import nearest
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["check_pair", "read_classes"]

_MOST_BYTES = 4_000_000
_MOST_CLASSES = 100_000
_LONGEST_NAME = 500


def check_pair(audit_source: Source, audit_file: Path, spec: Source, *, check_files: bool = True) -> None:
    """Add to either file's problems every rule that spec and audit break together: classes, layers, concepts, examples."""
    if not isinstance(audit_source.data, dict) or not isinstance(spec.data, dict):
        return
    audit = AuditSource(audit_source, audit_file, check_files)
    _classes(audit, list(spec.data["classes"]) if isinstance(spec.data.get("classes"), dict) else [])
    layers = [layer for _, layer in texts(audit_source.data, "layers")]
    for index, check in mappings(spec.data, "checks"):
        for position, layer in texts(check, "layers"):
            if layers and layer not in layers:
                spec.complain(
                    "unknown-layer",
                    ("checks", index, "layers", position),
                    f"check '{check.get('id')}': the layer `{layer}` is not among the audit's.",
                    nearest(layer, layers),
                )
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
        path = confined(audit_file, classes)
        try:
            names = json.loads(read_bytes(path, _MOST_BYTES).decode("utf-8"))
        except OSError:
            raise SpecError(
                "missing-file", f"the list of classes is not there: {path}.", look(path), file=shown
            ) from None
        except (ValueError, RecursionError):
            raise SpecError(
                "bad-classes", f"{path} is not JSON.", 'Write a JSON list: ["nevus", "melanoma"].', file=shown
            ) from None
    if (
        not isinstance(names, list | tuple)
        or not all(isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and find_hidden(name) is None for name in names)
        or not 2 <= len(names) <= _MOST_CLASSES
    ):
        raise SpecError(
            "bad-classes",
            f"`classes` must be a list of 2 to {_MOST_CLASSES:,} names, in the order of the model's outputs, each of at "
            f"most {_LONGEST_NAME} visible characters.",
            file=shown,
        )
    seen: set[str] = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        raise SpecError(
            "duplicate-class", f"the class `{twice}` is listed twice.", "Give every output its own name.", file=shown
        )
    return tuple(names)


def _classes(audit: AuditSource, wanted: list[str]) -> None:
    """The spec's classes against the model's."""
    at: KeyPath = ("subject", "classes")
    value = audit.get("subject", "classes")
    names: tuple[str, ...] | None = None
    named = isinstance(value, str) and value and audit.check_files
    if named or (isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)):
        try:
            names = read_classes(value, audit.file)
        except SpecError as error:
            audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
    found = audit.get("subject", "class_map")
    mapping = found if isinstance(found, dict) else {}
    for key, target in mapping.items():
        path = ("subject", "class_map", key)
        if wanted and key not in wanted:
            audit.add(
                "unknown-class",
                path,
                f"class_map: `{key}` is no class of the spec.",
                nearest(key, wanted),
                at_key=True,
            )
        if names is not None and isinstance(target, str) and target not in names:
            audit.add(
                "unknown-class", path, f"class_map: `{target}` is no class of the model.", nearest(target, names)
            )
    for name in wanted:
        if names is not None and name not in mapping and name not in names:
            audit.add(
                "unknown-class",
                at,
                f"the spec's class `{name}` is not among the model's classes.",
                f"{nearest(name, names)} Map it: `class_map: {{{name}: ...}}`.",
            )
    targets = [str(mapping.get(name, name)) for name in wanted]
    for target in sorted({target for target in targets if targets.count(target) > 1}):
        audit.add(
            "duplicate-class",
            ("subject", "class_map"),
            f"two classes of the spec mean the model's `{target}`.",
            "Map each to its own.",
        )


def _concepts_without_text(audit: AuditSource, spec: Source) -> None:
    """An image-only foundation model sees nothing in a concept that has descriptions only."""
    if audit.text("foundation_model", "source") != "timm":
        return
    for index, concept in mappings(spec.data, "concepts"):
        if concept.get("descriptions") and not concept.get("examples") and concept.get("role") in get_args(Role):
            spec.complain(
                "no-text-tower",
                ("concepts", index),
                f"concept '{concept.get('id')}' has only descriptions, but the audit's foundation model cannot read.",
                "Give it example images, or use a foundation model with a text tower (`source: open_clip`).",
            )


def _examples(audit: AuditSource, audit_file: Path, spec: Source) -> None:
    """The example images of the concepts: there, readable, with boxes inside."""
    text = audit.text("examples_root")
    root = Path(spec.places.file).parent
    if text is not None:
        try:
            root = confined(audit_file, text)
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
            if not path.is_relative_to(os.path.normpath(root)):
                continue  # Such a path has been complained about; what lies there is none of this audit's business.
            if not inside(path, (Path(os.path.realpath(root)), *roots(audit_file, text or ""))):
                spec.complain(
                    "path-outside",
                    (*at, "image"),
                    f"concept '{concept.get('id')}': {path} is a symbolic link that leads out of the audit's folder.",
                    f"Put the image itself there, or allow the link: --allow-path {Path(os.path.realpath(path)).parent}.",
                )
                continue
            if kind_of(path) != "file":
                spec.complain(
                    "missing-file",
                    (*at, "image"),
                    f"concept '{concept.get('id')}': the example image is not there: {path}.",
                    look(path),
                )
                continue
            if image not in sizes:
                sizes[image] = _image_size(path)
            size, box = sizes[image], example.get("box")
            if size is None:
                spec.complain(
                    "unreadable-image",
                    (*at, "image"),
                    f"concept '{concept.get('id')}': {path} is no readable image.",
                    "Restore the file, or name another.",
                )
            elif (
                isinstance(box, list)
                and len(box) == 4
                and all(type(side) is int for side in box)
                and (box[2] > size[0] or box[3] > size[1])
            ):
                spec.complain(
                    "bad-box",
                    (*at, "box"),
                    f"concept '{concept.get('id')}': the box {box} reaches out of the image ({size[0]} x {size[1]}).",
                    "Write x0, y0, x1, y1 in pixels of the image as it is displayed.",
                )


def _image_size(path: Path) -> tuple[int, int] | None:
    """Width and height as displayed, from the header only; ``None`` for what is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None
