"""The test data as a list of samples with stable ids: folders, CSV tables, and rendered scenes. Never imports torch."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from semlens_audit.counterfactuals import PairSet, open_pairs
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import DataError, Problem
from semlens_audit.grouping import independent_units
from semlens_audit.images import read_image
from semlens_audit.paths import resolve, store_path
from semlens_audit.plan import Audit, AuditPlan
from semlens_audit.tables import read_attributes, read_labels, some

__all__ = ["IMAGE_SUFFIXES", "DataSet", "Sample", "class_names", "open_data", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"})
"""Files that count as images inside a folder; a table may name others."""

_RENDERING_VERSION = 1
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the test data.

    Parameters
    ----------
    id
        Position in the list of samples sorted by path; the identity that the index stores.
    path
        Relative to `DataSet.root`, with forward slashes.
    label
        Index into the model's classes.
    sha256
        Of the file's bytes.
    """

    id: int
    path: str
    label: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """The samples of an audit.

    Parameters
    ----------
    samples
        Sorted by path; ``samples[i].id == i``.
    root
        Folder that the paths are relative to.
    attributes
        Column -> (N,) int8: 1 holds the concept, 0 does not, -1 unknown; ``None`` without an attributes table.
    sha256
        Of the manifest: sorted (relative path, content digest, label).
    groups
        (N,) int64 independent unit of each sample, see `semlens_audit.grouping.independent_units`; None: each is one.
    skipped
        Files left out, each with the reason. Unreadable files are errors, so this is empty unless a source says otherwise.
    pairs
        Counterfactual pairs, where the audit has any.
    """

    samples: tuple[Sample, ...]
    root: Path
    attributes: dict[str, np.ndarray] | None
    sha256: str
    skipped: tuple[str, ...] = ()
    pairs: PairSet | None = None
    groups: np.ndarray | None = None

    def file(self, sample: Sample) -> Path:
        """Path of the sample's image file."""
        return self.root / sample.path

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 index into the model's classes."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    def verify(
        self,
        workers: int = 2,
        progress: Callable[[int], None] | None = None,
        keep: Callable[[int, Image.Image], object] | None = None,
    ) -> None:
        """Decode every image once, so that a broken one is reported before hours of work, together with all others.

        Parameters
        ----------
        workers
            Threads that decode.
        progress
            Called with the number of images finished since the last call.
        keep
            Called in a thread with a sample's id and its decoded image.

        Raises
        ------
        DataError
            With one problem per unreadable image, slug of the first.
        """
        problems: list[Problem] = []
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for found in pool.map(lambda sample: _complaint(self, sample, keep), self.samples):
                if found is not None:
                    problems.append(found)
                if progress is not None:
                    progress(1)
        _raise_all(problems)


def _complaint(data: DataSet, sample: Sample, keep: Callable[[int, Image.Image], object] | None) -> Problem | None:
    try:
        image = read_image(data.file(sample))
    except DataError as error:
        return error.problems[0]
    if keep is not None:
        keep(sample.id, image)
    return None


def _raise_all(problems: Sequence[Problem]) -> None:
    if problems:
        first = problems[0]
        raise DataError(first.slug, first.message, first.hint, file=first.file, problems=tuple(problems))


def class_names(plan: AuditPlan) -> tuple[str, ...]:
    """Class names of the audited model in the order of its outputs, read from the JSON list where the audit names a file.

    Raises
    ------
    DataError
        The list cannot be read, is not a list of distinct non-empty strings, or has fewer than two entries.
    """
    import json

    named = plan.audit.subject.classes
    if isinstance(named, str):
        path = resolve(plan, named)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                "unreadable-classes",
                f"The list of class names cannot be read: {error}.",
                'Write a JSON list of strings in the order of the model\'s outputs, e.g. ["nevus", "melanoma"].',
                file=str(path),
            ) from error
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise DataError(
                "unreadable-classes",
                "The list of class names is not a JSON list of non-empty strings.",
                'Write e.g. ["nevus", "melanoma"].',
                file=str(path),
            )
        named = tuple(value)
    if len(set(named)) != len(named):
        twice = sorted({name for name in named if named.count(name) > 1})
        raise DataError(
            "duplicate-class",
            f"Class names occur more than once: {', '.join(twice)}.",
            "Name every output differently.",
        )
    if len(named) < 2:
        raise DataError(
            "too-few-classes",
            f"The model has {len(named)} class; an audit needs at least two.",
            "List the class name of every output.",
        )
    return named


def open_data(plan: AuditPlan, file_digest: Callable[[Path], str] = digest_file) -> DataSet:
    """List the test data of `plan` with labels, attributes and content digests; decodes no image.

    Parameters
    ----------
    plan
        The audit; its ``data`` section says where the samples are.
    file_digest
        Gives the SHA-256 of a file; a caching one saves reading unchanged files again.

    Raises
    ------
    DataError
        Missing or empty files, labels that match no class of the model, fewer than two classes, attributes that do not
        match: all problems of one kind at once.
    """
    audit = plan.audit
    classes = class_names(plan)
    attributes_file: Path | None
    if audit.data.rendered:
        root, rows, attributes_file = _rendered(plan)
    else:
        root = _existing_folder(plan)
        rows = _rows(plan, root)
        attributes_file = resolve(plan, audit.data.attributes) if audit.data.attributes else None
    labelled = _label(rows, classes, audit, _where(plan, root, rows))
    labelled = _spread(sorted(labelled), audit.data.limit)
    _check_files(root, [path for path, _ in labelled])
    if len({label for _, label in labelled}) < 2:
        only = classes[labelled[0][1]] if labelled else "none"
        raise DataError(
            "one-class",
            f"All {len(labelled)} samples belong to one class ({only}); nothing can be compared.",
            "Give test data with at least two classes.",
            file=str(root),
        )
    samples = tuple(
        Sample(id=i, path=path, label=label, sha256=file_digest(root / path)) for i, (path, label) in enumerate(labelled)
    )
    attributes = read_attributes(attributes_file, plan, [sample.path for sample in samples]) if attributes_file else None
    manifest = digest([[sample.path, sample.sha256, sample.label] for sample in samples])
    pairs = open_pairs(plan, root, file_digest, partial(_renderer_digest, audit.data.source))
    groups = independent_units(plan, [sample.path for sample in samples], [sample.sha256 for sample in samples])
    return DataSet(samples, root, attributes, manifest, pairs=pairs, groups=groups)


def _existing_folder(plan: AuditPlan) -> Path:
    data = plan.audit.data
    if data.path is None:
        raise DataError("no-data-path", f"The data source {data.source!r} needs a path.", "Add `path:` to the audit's data.")
    root = resolve(plan, data.path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError("missing-data", f"The data folder {what}.", "Mend `data.path` in the audit.", file=str(root))
    return root


def _rows(plan: AuditPlan, root: Path) -> list[tuple[str, str]]:
    """(relative path, label text) of every sample."""
    data = plan.audit.data
    if data.labels is not None:
        return read_labels(resolve(plan, data.labels), data.image_column, data.label_column, data.image_suffix)
    if data.source == "csv":
        raise DataError("no-labels", "The data source 'csv' needs `labels`.", "Name the CSV file with one row per image.")
    if data.pattern is not None:
        return _pattern_rows(root, data.pattern, class_names(plan))
    return _folder_rows(root)


def _images_below(root: Path) -> list[str]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    relative = (path.relative_to(root) for path in found)
    return sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))


def _folder_rows(root: Path) -> list[tuple[str, str]]:
    paths = _images_below(root)
    loose = [path for path in paths if "/" not in path]
    if not paths:
        raise DataError(
            "no-images",
            "The data folder holds no image.",
            f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
            file=str(root),
        )
    if loose:
        raise DataError(
            "images-without-class",
            f"{len(loose)} images lie directly in the data folder ({some(loose)}), so their class is unknown.",
            "Put them into one sub-folder per class, or give `labels` or `pattern`.",
            file=str(root),
        )
    return [(path, PurePosixPath(path).parts[0]) for path in paths]


def _pattern_rows(root: Path, pattern: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError("bad-pattern", f"`data.pattern` is no regular expression: {error}.", "Mend it.") from error
    if "class_index" not in expression.groupindex:
        raise DataError("bad-pattern", "`data.pattern` has no group named class_index.", r"Write e.g. ^(?P<class_index>\d+)_.")
    rows, problems = [], []
    for path in _images_below(root):
        match = expression.search(PurePosixPath(path).name)
        text = match["class_index"] if match else None
        if text is None or not text.isdecimal() or int(text) >= len(classes):
            why = "does not match `data.pattern`" if text is None else f"gives class index {text}, of {len(classes)} classes"
            problems.append(
                Problem("label-mismatch", f"The file name {why}.", "Rename the file or mend the pattern.", str(root / path))
            )
        else:
            rows.append((path, classes[int(text)]))
    _raise_all(problems)
    if not rows:
        raise DataError("no-images", "The data folder holds no image.", file=str(root))
    return rows


def _where(plan: AuditPlan, root: Path, rows: Sequence[tuple[str, str]]) -> dict[str, tuple[str, int | None]]:
    """Label text -> file and line of the table that gives it first, or the sub-folder of that name."""
    data = plan.audit.data
    first: dict[str, int] = {}
    for line, (_, text) in enumerate(rows, start=2):
        first.setdefault(text, line)
    if data.rendered:
        return {}
    if data.labels is None:
        return {text: (str(root / text), None) for text in first}
    table = str(resolve(plan, data.labels))
    return {text: (table, line) for text, line in first.items()}


def _label(
    rows: Iterable[tuple[str, str]], classes: Sequence[str], audit: Audit, where: Mapping[str, tuple[str, int | None]]
) -> list[tuple[str, int]]:
    """Turn label texts into class indices; a label may be a class of the model or a class of the spec mapped to one."""
    index = {name: i for i, name in enumerate(classes)}
    for spec_name, model_name in audit.subject.class_map.items():
        if spec_name not in index and model_name in index:
            index[spec_name] = index[model_name]
    labelled: list[tuple[str, int]] = []
    unknown: dict[str, list[str]] = {}
    for path, text in rows:
        if text in index:
            labelled.append((path, index[text]))
        else:
            unknown.setdefault(text, []).append(path)
    problems = []
    for text, paths in sorted(unknown.items()):
        near = get_close_matches(text, list(index), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The model's classes: {', '.join(classes[:_LISTED])}."
        file, line = where.get(text, (None, None))
        count = f"{len(paths)} samples, e.g." if len(paths) > 1 else "of"
        problems.append(
            Problem(
                "label-mismatch",
                f"The label {text!r} ({count} {paths[0]}) is no class of the model.",
                hint,
                file,
                line,
            )
        )
    _raise_all(problems)
    return labelled


def _spread(rows: list[tuple[str, int]], limit: int | None) -> list[tuple[str, int]]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[(2 * i + 1) * len(rows) // (2 * limit)] for i in range(limit)]


def _check_files(root: Path, paths: Sequence[str]) -> None:
    problems = []
    for path in paths:
        file = root / path
        try:
            size = file.stat().st_size if file.is_file() else -1
        except OSError:
            size = -1
        if size < 0:
            problems.append(
                Problem("missing-image", "The image does not exist.", "Restore the file or remove its row.", str(file))
            )
        elif size == 0:
            problems.append(
                Problem("empty-image", "The image file has zero bytes.", "Restore the file or remove it.", str(file))
            )
    _raise_all(problems)


def _rendered(plan: AuditPlan) -> tuple[Path, list[tuple[str, str]], Path]:
    """Render the scenes once beside the store and return their folder, rows and attributes table."""
    data, store = plan.audit.data, store_path(plan)
    key = digest(
        {
            data.source: _RENDERING_VERSION,
            "samples": data.samples,
            "seed": data.seed,
            "renderer": _renderer_digest(data.source),
        }
    )
    root = store.parent / f"{data.source}-{key[:16]}"
    if not (root / "labels.csv").is_file():
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{data.source}-", dir=root.parent))
        try:
            _render(data.source, temporary / "data", data.samples, data.seed)
            os.replace(temporary / "data", root)
        except OSError as error:
            # Another process may have been first: its bytes are the same. Anything else in the way is not ours to remove.
            if not (root / "labels.csv").is_file():
                raise DataError(
                    "phantom-not-written",
                    f"The rendered images cannot be put in place: {error.strerror or error}.",
                    "Remove what is at that path, or mend the disk, then run the same command again.",
                    file=str(root),
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root, read_labels(root / "labels.csv", "path", "label", ""), root / "attributes.csv"


def _render(source: str, folder: Path, samples: int, seed: int) -> None:
    """Write scenes in which no artefact comes with a class."""
    if source == "signs":
        from semlens_audit.signs import world as signs

        signs.write_folder(folder, signs.Population(), samples, seed)
    else:
        from semlens_audit.phantom import world as phantom

        phantom.write_folder(folder, phantom.Population(), samples, seed)


def _renderer_digest(source: str) -> str:
    """Digest of the renderer's source, so that a changed renderer never reuses old images."""
    folder = Path(__file__).parent / source
    return digest({path.name: digest_file(path) for path in sorted(folder.glob("*.py")) if not path.name.startswith("train_")})
