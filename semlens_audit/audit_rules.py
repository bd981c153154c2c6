"""What must hold inside one audit beyond its shape, and for the files it names; none of them is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semlens_audit.errors import SpecError
from semlens_audit.paths import PHANTOM, resolve
from semlens_audit.resources import SHIPPED
from semlens_audit.spec_rules import texts
from semlens_audit.spec_shape import nearest
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["AuditSource", "check_audit", "look"]

_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
_CODE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


class AuditSource:
    """An audit's raw value with the means to complain about it."""

    def __init__(self, source: Source, audit_file: Path, check_files: bool) -> None:
        self.source = source
        self.file = audit_file
        self.check_files = check_files

    def get(self, *path: str) -> Any:
        """The value at `path`, or ``None``."""
        value: Any = self.source.data
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def text(self, *path: str) -> str | None:
        """The text at `path`, or ``None`` where there is none or something else."""
        value = self.get(*path)
        return value if isinstance(value, str) and value else None

    def number(self, *path: str) -> float | None:
        """The number at `path`, or ``None`` where there is none or something else."""
        value = self.get(*path)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def add(self, slug: str, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """Complain about the value (or the key) at `path`."""
        self.source.complain(slug, path, message, hint, at_key=at_key)

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
            self.add("missing-file", path, f"{what} is not there: {found}.", look(found))
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
    audit = AuditSource(source, audit_file, check_files)
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
        audit.add(
            "out-of-range",
            ("measurement", "crop_minimum"),
            f"a crop of at least {smallest} pixels does not fit an input of {side}.",
        )


def _model(audit: AuditSource, *at: str) -> None:
    """Rules of a `ModelSource`."""
    source, name, weights = audit.text(*at, "source"), audit.text(*at, "name"), audit.get(*at, "weights")
    if source == "code" and name is not None:
        match = _CODE.fullmatch(name)
        if match is None:
            audit.add(
                "bad-code-name",
                (*at, "name"),
                f"`{name}` does not name a function.",
                "Write `path.py:function`, relative to the audit file.",
            )
        elif audit.check_files:
            path = resolve(audit.file, match["file"])
            if not path.is_file():
                audit.add("missing-file", (*at, "name"), f"the code is not there: {path}.", look(path))
    elif source in ("timm", "torchvision", "open_clip") and audit.get(*at) is not None and weights is None:
        audit.add(
            "missing-weights",
            at,
            f"`{source}` models need `weights`.",
            "Name a local .safetensors or .pt file; nothing is ever downloaded.",
        )
    _weights(audit, source, *at, "weights")


def _weights(audit: AuditSource, source: str | None, *at: str) -> None:
    path = audit.existing("the weights file", *at, folder=None if source == "open_clip" else False)
    text = audit.text(*at)
    if path is not None and text is not None and not path.is_dir() and path.suffix not in _WEIGHT_FILES:
        audit.add(
            "bad-weights",
            at,
            f"`{path.name}` is no weights file.",
            "Give a state dict as .safetensors (or .pt / .pth).",
        )


def _preprocessing(audit: AuditSource, *at: str) -> None:
    deviations = audit.get(*at, "std")
    for index, value in enumerate(deviations if isinstance(deviations, list) else []):
        if isinstance(value, int | float) and value <= 0:
            audit.add("out-of-range", (*at, "std", index), f"a standard deviation of {value} is not greater than 0.")
    size, resize = audit.number(*at, "size"), audit.number(*at, "resize")
    if size is not None and resize is not None and resize < size:
        audit.add(
            "out-of-range",
            (*at, "resize"),
            f"resizing to {resize} leaves less than the centre crop of {size}.",
            "Make `resize` at least `size`.",
        )


def _layers(audit: AuditSource) -> None:
    seen: set[str] = set()
    for index, layer in texts(audit.source.data, "layers"):
        if layer in seen:
            audit.add("duplicate-layer", ("layers", index), f"the layer `{layer}` is listed twice.", "Keep one.")
        seen.add(layer)
    for index, layer in texts(audit.get("sensitivity"), "layers"):
        if layer in seen:
            audit.add(
                "duplicate-layer",
                ("sensitivity", "layers", index),
                f"the layer `{layer}` is named already: comparing it with itself would show nothing.",
                "Name another layer, or leave it out.",
            )
        seen.add(layer)


def _data(audit: AuditSource) -> None:
    source = audit.text("data", "source")
    if source in ("folder", "csv") and audit.text("data", "path") is None:
        audit.add("missing-key", ("data",), f"data: `{source}` data needs `path`.", "Name the folder of the images.")
    if source == "csv" and audit.text("data", "labels") is None:
        audit.add(
            "missing-key", ("data",), "data: `csv` data needs `labels`.", "Name the CSV with one row per image."
        )
    if source in SHIPPED:
        for key in ("path", "labels", "pattern", "attributes", "pairs", "groups"):
            if audit.get("data", key) is not None:
                audit.add(
                    "unused-key",
                    ("data", key),
                    f"data: `{key}` means nothing for rendered data.",
                    "Leave it out.",
                    at_key=True,
                )
        return
    if audit.text("data", "groups") and audit.get("data", "labels") is None and audit.get("data", "attributes") is None:
        audit.add(
            "unused-key",
            ("data", "groups"),
            "data: `groups` names a column, but there is no table that could hold it.",
            "Give `labels` or `attributes`: the CSV that has this column.",
        )
    audit.existing("the folder of the images", "data", "path", folder=True)
    audit.existing("the CSV of the labels", "data", "labels", folder=False)
    audit.existing("the CSV of the attributes", "data", "attributes", folder=False)
    audit.existing("the CSV of the pairs", "data", "pairs", folder=False)
    if audit.get("data", "rendered_pairs") is not None:
        audit.add(
            "unused-key",
            ("data", "rendered_pairs"),
            "data: only rendered data can have pairs rendered.",
            "Name a CSV of your own pairs in `pairs`.",
            at_key=True,
        )
    pattern = audit.text("data", "pattern")
    if pattern is not None:
        try:
            groups = re.compile(pattern).groupindex
        except (re.error, RecursionError, OverflowError) as error:
            audit.add("bad-pattern", ("data", "pattern"), f"the pattern is no regular expression: {error}.")
        else:
            if "class_index" not in groups:
                audit.add(
                    "bad-pattern",
                    ("data", "pattern"),
                    "the pattern has no group `class_index`.",
                    r"Write for example `(?P<class_index>\d+)_.*`.",
                )


def _foundation(audit: AuditSource) -> None:
    """Rules of the foundation model."""
    at = ("foundation_model",)
    source, name = audit.text(*at, "source"), audit.text(*at, "name")
    if source == "timm":
        if name is None or name.startswith(PHANTOM):
            audit.add(
                "missing-key",
                (*at, "name") if name else at,
                "foundation_model: `timm` needs the `name` of an architecture.",
            )
        if audit.get(*at, "weights") is None:
            audit.add(
                "missing-weights",
                at,
                "foundation_model: `timm` models need `weights`.",
                "Name a local .safetensors file.",
            )
        _preprocessing(audit, *at, "preprocessing")
        _weights(audit, source, *at, "weights")
    elif source == "open_clip" and name is not None:
        if audit.get(*at, "preprocessing") is not None:
            audit.add(
                "unused-key",
                (*at, "preprocessing"),
                "foundation_model: open_clip models bring their own preprocessing.",
                "Leave it out.",
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
                    "missing-file",
                    (*at, "name"),
                    f"{folder} holds no open_clip_config.json.",
                    "Give an open_clip model directory, or an architecture together with `weights`.",
                )


def look(path: Path) -> str:
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
