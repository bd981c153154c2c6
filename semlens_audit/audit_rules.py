"""What must hold inside one audit beyond its shape, and for the files it names; none of them is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semlens_audit.confinement import confined, kind_of, roots, survey
from semlens_audit.errors import SpecError
from semlens_audit.model_rules import check_arguments, check_model_directory, check_model_name, swells
from semlens_audit.name_pattern import pattern_complaint
from semlens_audit.paths import PHANTOM, resolve
from semlens_audit.plan import Audit, MeasurementSettings, Preprocessing
from semlens_audit.resources import SHIPPED
from semlens_audit.spec_rules import texts
from semlens_audit.spec_shape import nearest
from semlens_audit.spliced_rules import check_autoencoders, check_virtual_neurons
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["AuditSource", "check_audit", "look"]

_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
_MOST_PIXELS = 2**28
_MOST_TABLE_BYTES = 500_000_000
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
        """The path written at `path`, complaining where a variable or a shipped model is unknown, or the audit may not go there."""
        text = self.text(*path)
        if text is None:
            return None
        try:
            return confined(self.file, text)
        except SpecError as error:
            first = error.problems[0]
            if first.slug == "path-outside" and not self.check_files and text.startswith("${"):
                return resolve(self.file, text)  # the variable may be set where the files are
            self.add(first.slug, path, first.message, first.hint)
            return None

    def existing(self, what: str, *path: str, folder: bool | None = None) -> Path | None:
        """The path written at `path` where it exists; complains where it does not, or is not a file or folder as wanted."""
        found = self.path(*path)
        if found is None or not self.check_files:
            return found
        kind = kind_of(found)
        if kind is None:
            self.add("missing-file", path, f"{what} is not there: {found}.", look(found))
            return None
        if kind == "device" or (folder is not None and (kind == "folder") != folder):
            wanted = "a file or a folder" if folder is None else "a folder" if folder else "a file"
            self.add("missing-file", path, f"{what} must be {wanted}, but {found} is a {kind}.")
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
    check_autoencoders(audit)
    check_virtual_neurons(audit)
    _data(audit)
    _foundation(audit)
    audit.existing("the folder of the examples", "examples_root", folder=True)
    audit.existing("the qualification", "qualification", folder=False)
    _outputs(audit)
    _batch(audit)
    side, smallest = audit.number("subject", "preprocessing", "size"), audit.number("measurement", "crop_minimum")
    if side is not None and smallest is not None and smallest > side:
        audit.add(
            "out-of-range",
            ("measurement", "crop_minimum"),
            f"a crop of at least {smallest} pixels does not fit an input of {side}.",
        )
    if audit.number("measurement", "gamma") is not None and audit.text("measurement", "concept_embedding") != "contrastive":
        audit.add(
            "unused-setting",
            ("measurement", "gamma"),
            "gamma says how much of the contrastive crops is projected out, and this audit has none.",
            "Write `concept_embedding: contrastive` beside it, or leave it out.",
        )


def _batch(audit: AuditSource) -> None:
    """A batch of images has to fit into memory."""
    side, batch = audit.number("subject", "preprocessing", "size"), audit.number("measurement", "batch_size")
    side = Preprocessing.model_fields["size"].default if side is None else side
    batch = MeasurementSettings.model_fields["batch_size"].default if batch is None else batch
    if 8 <= side <= 4096 and batch >= 1 and batch * side**2 > _MOST_PIXELS:
        at = ("measurement", "batch_size") if audit.get("measurement", "batch_size") is not None else ("subject", "preprocessing", "size")
        most = max(1, int(_MOST_PIXELS // side**2))
        audit.add(
            "out-of-range", at, f"a batch of {batch} images of {side} x {side} pixels is too large; at most {most} fit.",
            f"Write `measurement: {{batch_size: {most}}}`.",
        )  # fmt: skip


def _outputs(audit: AuditSource) -> None:
    """Nothing is written outside of the audit's folder, not even through a link that lies there already."""
    identifier = audit.text("audit")
    if identifier is None or re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", identifier) is None:
        return
    beside = Path(os.path.realpath(audit.file.parent.parent))
    for key in ("store", "reports"):
        said = audit.text(key)
        # where the file says nothing, the tool's own choice is to write beside the audit's folder
        text = (said or str(Audit.model_fields[key].default)).replace("{audit}", identifier)
        try:
            path = confined(audit.file, text, writing=True, also=() if said else (beside,))
            for part in _written(path, key, identifier):
                confined(audit.file, str(part.absolute()), writing=True, also=(Path(os.path.realpath(path.parent)),))
        except SpecError as error:
            audit.add(error.slug, (key,), error.problems[0].message, error.problems[0].hint)


def _written(path: Path, key: str, identifier: str) -> list[Path]:
    """Files that will be written there, and symbolic links that lie where they will be."""
    if key == "store":
        return [path.with_name(path.name + suffix) for suffix in (".wal", ".tmp")]
    try:
        return [path / identifier, *(entry for entry in (path / identifier).iterdir() if entry.is_symlink())]
    except OSError:
        return [path / identifier]


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
        else:
            _code_file(audit, match["file"], *at, "name")
    elif source == "export" and name is not None:
        _program(audit, *at)
    elif source == "open_clip" and weights is None:
        _model_directory(audit, *at, "name")
    elif source in ("timm", "torchvision") and audit.get(*at) is not None and weights is None:
        audit.add(
            "missing-weights",
            at,
            f"`{source}` models need `weights`.",
            "Name a local .safetensors or .pt file; nothing is ever downloaded.",
        )
    if source in ("timm", "torchvision") or (source == "open_clip" and weights is not None):
        check_model_name(audit.source, (*at, "name"), name)
    if source != "code":
        check_arguments(audit.source, (*at, "arguments"), audit.get(*at, "arguments"))
    _weights(audit, source, *at, "weights")
    _head(audit, source, *at)


def _program(audit: AuditSource, *at: str) -> None:
    """Rules of an exported program."""
    path = audit.existing("the exported program", *at, "name", folder=False)
    if path is not None and path.suffix != ".pt2":
        audit.add(
            "bad-export", (*at, "name"), f"`{path.name}` is no exported program.", "Give a .pt2 file that torch.export.save has written."
        )
    for key in ("weights", "arguments"):
        if audit.get(*at, key):
            audit.add(
                "unused-key", (*at, key), f"model: `{key}` means nothing for an exported program, which is complete.", "Leave it out.",
                at_key=True,
            )  # fmt: skip


def _head(audit: AuditSource, source: str | None, *at: str) -> None:
    """Rules of what makes a classifier of an image tower: a linear head, or class prompts."""
    head = audit.get(*at, "head") is not None
    for key in ("head", "normalised", "prompts", "templates"):
        given = audit.get(*at, key) not in (None, False, {}, [])
        if given and source != "open_clip":
            audit.add("unused-key", (*at, key), f"model: only `open_clip` models have `{key}`.", "Leave it out.", at_key=True)
        elif given and (head if key in ("prompts", "templates") else key == "normalised" and not head):
            why = "a classifier with a linear head reads no prompts" if head else "a zero-shot classifier always normalises"
            audit.add("unused-key", (*at, key), f"model: `{key}` means nothing here: {why}.", "Leave it out.", at_key=True)
    for index, template in texts(audit.get(*at), "templates"):
        if "{}" not in template:
            audit.add(
                "bad-template", (*at, "templates", index), f"the template `{template}` has no {{}} for the class.",
                "Write e.g. `a photo of a {}.`",
            )  # fmt: skip
    if source == "open_clip":
        _weights(audit, None, *at, "head")


def _code_file(audit: AuditSource, text: str, *at: str) -> None:
    try:
        path = confined(audit.file, text)
    except SpecError as error:
        audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
        return
    if audit.check_files and kind_of(path) != "file":
        audit.add("missing-file", at, f"the code is not there: {path}.", look(path))


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
    if path is not None and audit.check_files and path.suffix != ".safetensors" and swells(path):
        audit.add(
            "bad-weights",
            at,
            f"`{path.name}` is an archive that is larger inside than outside; torch writes none.",
            "Save it again with torch.save, better as .safetensors.",
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
    images = audit.existing("the folder of the images", "data", "path", folder=True)
    names: frozenset[str] = _image_names(audit, images) if images is not None and audit.check_files else frozenset()
    for key in ("labels", "attributes", "pairs"):
        _table(audit, key)
    if audit.get("data", "rendered_pairs") is not None:
        audit.add(
            "unused-key",
            ("data", "rendered_pairs"),
            "data: only rendered data can have pairs rendered.",
            "Name a CSV of your own pairs in `pairs`.",
            at_key=True,
        )
    pattern = audit.text("data", "pattern")
    complaint = pattern_complaint(pattern, names) if pattern is not None else None
    if complaint is not None:
        audit.add(complaint[0], ("data", "pattern"), *complaint[1:])


def _table(audit: AuditSource, key: str) -> None:
    table = audit.existing(f"the CSV of the {key}", "data", key, folder=False)
    if table is not None and audit.check_files and table.stat().st_size > _MOST_TABLE_BYTES:
        said = f"the CSV of the {key} is larger than {_MOST_TABLE_BYTES // 1_000_000} MB."
        audit.add("file-too-large", ("data", key), said, "It is read whole: keep one row per image, and few columns.")


def _image_names(audit: AuditSource, folder: Path) -> frozenset[str]:
    """Names of the files in the data folder; complains of links in it that lead elsewhere."""
    found = survey(folder, roots(audit.file, audit.text("data", "path") or ""))
    if found.astray:
        first, real = found.astray[0], os.path.realpath(found.astray[0])
        more = f", and so do {len(found.astray) - 1} more" if len(found.astray) > 1 else ""
        audit.add(
            "path-outside",
            ("data", "path"),
            f"the symbolic link {first} leads out of the audit's folder, to {real}{more}.",
            f"If you trust this audit with it, say so: --allow-path {Path(real).parent}.",
        )
    return found.names


def _foundation(audit: AuditSource) -> None:
    """Rules of the foundation model."""
    at = ("foundation_model",)
    source, name = audit.text(*at, "source"), audit.text(*at, "name")
    check_arguments(audit.source, (*at, "arguments"), audit.get(*at, "arguments"))
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
        check_model_name(audit.source, (*at, "name"), name)
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
            check_model_name(audit.source, (*at, "name"), name)
            _weights(audit, source, *at, "weights")
        else:
            _model_directory(audit, *at, "name")


def _model_directory(audit: AuditSource, *at: str) -> None:
    """Rules of an open_clip model directory."""
    name = audit.text(*at)
    folder = audit.existing("the model directory", *at, folder=True)
    if name is None or folder is None or not audit.check_files or name.startswith(PHANTOM):
        return
    if not (folder / "open_clip_config.json").is_file():
        audit.add(
            "missing-file",
            at,
            f"{folder} holds no open_clip_config.json.",
            "Give an open_clip model directory, or an architecture together with `weights`.",
        )
    else:
        check_model_directory(audit.source, at, folder, roots(audit.file, name))


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
