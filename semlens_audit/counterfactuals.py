"""Counterfactual pairs: two images that are alike but for one concept. Never imports torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import DataError, Problem
from semlens_audit.images import read_image
from semlens_audit.paths import resolve, store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.tables import PairRow, read_pairs

__all__ = ["Pair", "PairSet", "open_pairs"]

_RENDERED_VERSION = 1


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair.

    Parameters
    ----------
    concept
        Id of what the second image has and the first has not.
    without, present
        Paths relative to `PairSet.root`: the image without and with the concept.
    line
        1-based, in the table.
    """

    concept: str
    without: str
    present: str
    line: int


@dataclass(frozen=True)
class PairSet:
    """The counterfactual pairs of an audit.

    Parameters
    ----------
    pairs
        In the order of the table.
    root
        Folder that the paths are relative to.
    table
        CSV that names them.
    digests
        Path -> SHA-256 of the file's bytes, for every image of the pairs.
    """

    pairs: tuple[Pair, ...]
    root: Path
    table: Path
    digests: dict[str, str]

    @cached_property
    def images(self) -> tuple[tuple[str, str], ...]:
        """(SHA-256, path) of each different image, sorted: what the model is run on, once each."""
        return tuple(sorted({sha256: path for path, sha256 in sorted(self.digests.items(), reverse=True)}.items()))

    @cached_property
    def sha256(self) -> str:
        """Of the pairs: sorted (concept, content digests of both images)."""
        return digest(sorted([pair.concept, self.digests[pair.without], self.digests[pair.present]] for pair in self.pairs))

    @property
    def places(self) -> np.ndarray:
        """(P, 2) int64: position in `images` of each pair's image without and with the concept."""
        at = {sha256: index for index, (sha256, _) in enumerate(self.images)}
        rows = [(at[self.digests[pair.without]], at[self.digests[pair.present]]) for pair in self.pairs]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    @property
    def units(self) -> np.ndarray:
        """(P,) int64: pairs of one concept that share an image, directly or through others, have the same number."""
        parent: dict[tuple[str, int], tuple[str, int]] = {}

        def root(node: tuple[str, int]) -> tuple[str, int]:
            while parent.setdefault(node, node) != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            return node

        ends = [
            ((pair.concept, int(without)), (pair.concept, int(present)))
            for pair, (without, present) in zip(self.pairs, self.places, strict=True)
        ]
        for first, second in ends:
            parent[root(first)] = root(second)
        numbers: dict[tuple[str, int], int] = {}
        return np.array([numbers.setdefault(root(first), len(numbers)) for first, _ in ends], dtype=np.int64)

    def verify(self, workers: int = 2, progress: Callable[[int], None] | None = None) -> None:
        """Decode every image once and compare the sizes within each pair, before hours of work.

        Raises
        ------
        DataError
            With one problem per unreadable image and per pair whose images differ in size (``pair-sizes-differ``).
        """
        problems: list[Problem] = []
        sizes: dict[str, tuple[int, int]] = {}

        def size(path: str) -> tuple[int, int] | Problem:
            try:
                return read_image(self.root / path).size
            except DataError as error:
                return error.problems[0]

        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for (sha256, _), found in zip(self.images, pool.map(size, [path for _, path in self.images]), strict=True):
                if isinstance(found, Problem):
                    problems.append(found)
                else:
                    sizes[sha256] = found
                if progress is not None:
                    progress(1)
        for pair in self.pairs:
            first, second = sizes.get(self.digests[pair.without]), sizes.get(self.digests[pair.present])
            if first is not None and second is not None and first != second:
                problems.append(
                    Problem(
                        "pair-sizes-differ",
                        f"{pair.without} has {first[0]} x {first[1]} pixels, {pair.present} {second[0]} x {second[1]}.",
                        "A pair shows the same view twice; give images of one size.",
                        str(self.table),
                        pair.line,
                    )
                )
        _raise_all(problems)


def open_pairs(
    plan: AuditPlan, root: Path, file_digest: Callable[[Path], str] = digest_file, renderer: Callable[[], str] = lambda: ""
) -> PairSet | None:
    """The pairs that the audit names or has rendered, or ``None``; decodes no image.

    Parameters
    ----------
    plan
        The audit; ``data.pairs`` names a table, ``data.rendered_pairs`` a number to render.
    root
        Folder of the data, that paths in the table are relative to.
    file_digest
        Gives the SHA-256 of a file.
    renderer
        Gives the digest of the renderer's source.

    Raises
    ------
    DataError
        With every problem of the table, of the files it names, or of the pairs that they make, at its line.
    """
    if plan.audit.data.pairs is not None:
        table = resolve(plan, plan.audit.data.pairs)
    elif plan.audit.data.rendered_pairs is not None:
        rendered = _rendered(plan, plan.audit.data.rendered_pairs, renderer)
        if rendered is None:
            return None
        root, table = rendered, rendered / "pairs.csv"
    else:
        return None
    rows = read_pairs(table, plan)
    _check_files(root, table, rows)
    digests = {path: file_digest(root / path) for path in sorted({path for row in rows for path in (row.without, row.present)})}
    _check_pairs(table, rows, digests)
    return PairSet(tuple(Pair(row.concept, row.without, row.present, row.line) for row in rows), root, table, digests)


def _check_files(root: Path, table: Path, rows: list[PairRow]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        for path in (row.without, row.present):
            first.setdefault(path, row.line)
    problems = []
    for path, line in first.items():
        try:
            size = (root / path).stat().st_size if (root / path).is_file() else -1
        except OSError:
            size = -1
        if size < 0:
            problems.append(
                Problem("missing-image", f"The image {path} does not exist.", f"Its place is below {root}.", str(table), line)
            )
        elif size == 0:
            problems.append(Problem("empty-image", f"The image {path} has zero bytes.", "Restore the file.", str(table), line))
    _raise_all(problems)


def _check_pairs(table: Path, rows: list[PairRow], digests: dict[str, str]) -> None:
    """Two different images in each pair, and no pair twice."""
    problems: list[Problem] = []
    seen: dict[tuple[str, str, str], int] = {}
    for row in rows:
        first, second = digests[row.without], digests[row.present]
        if first == second:
            what = (
                "the same file twice"
                if row.without == row.present
                else f"{row.without} and {row.present}, whose bytes are equal"
            )
            problems.append(
                Problem(
                    "pair-same-image", f"The pair is {what}.", "Give the image without and the image with the concept.",
                    str(table), row.line,
                )
            )  # fmt: skip
        elif (row.concept, first, second) in seen:
            line = seen[row.concept, first, second]
            problems.append(
                Problem("duplicate-pair", f"The pair stands in line {line} already.", "Keep one row.", str(table), row.line)
            )
        elif (row.concept, second, first) in seen:
            line = seen[row.concept, second, first]
            problems.append(
                Problem(
                    "contradictory-pair", f"The same two images stand in line {line} the other way round.",
                    "Keep the row in which `with` shows the concept.", str(table), row.line,
                )
            )  # fmt: skip
        else:
            seen[row.concept, first, second] = row.line
    _raise_all(problems)


def _raise_all(problems: list[Problem]) -> None:
    if problems:
        first = problems[0]
        raise DataError(first.slug, first.message, first.hint, file=first.file, line=first.line, problems=tuple(problems))


def _rendered(plan: AuditPlan, count: int, renderer: Callable[[], str]) -> Path | None:
    """Folder of the rendered pairs, made once beside the store; ``None`` where no check asks for any."""
    asked = {name for check in plan.spec.checks if check.kind == "pair_effect" for name in check.concepts}
    wanted = {concept.attribute or concept.id for concept in plan.spec.concepts if concept.id in asked}
    source = plan.audit.data.source
    names = [name for name in _attributes(source) if name in wanted]
    if not names:
        return None
    key = digest(
        {
            "pairs": _RENDERED_VERSION,
            "count": count,
            "seed": plan.audit.data.seed,
            "names": names,
            "renderer": renderer(),
        }
    )
    root = store_path(plan).parent / f"{source}-pairs-{key[:16]}"
    if (root / "pairs.csv").is_file():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{source}-pairs-", dir=root.parent))
    try:
        _write_pairs(source, temporary / "data", count, plan.audit.data.seed, names)
        os.replace(temporary / "data", root)
    except OSError as error:
        # Another process may have been first: its bytes are the same. Anything else in the way is not ours to remove.
        if not (root / "pairs.csv").is_file():
            raise DataError(
                "phantom-not-written",
                f"The rendered pairs cannot be put in place: {error.strerror or error}.",
                "Remove what is at that path, or mend the disk, then run the same command again.",
                file=str(root),
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _attributes(source: str) -> tuple[str, ...]:
    if source == "signs":
        from semlens_audit.signs import render as signs

        return signs.ATTRIBUTES
    from semlens_audit.phantom import render as phantom

    return phantom.ATTRIBUTES


def _write_pairs(source: str, folder: Path, count: int, seed: int, names: list[str]) -> None:
    """Pairs of scenes in which no artefact comes with a class."""
    if source == "signs":
        from semlens_audit.signs import pairs as signs
        from semlens_audit.signs.world import Population as Signs

        signs.write_pairs(folder, Signs(), count, seed, names)
    else:
        from semlens_audit.phantom import pairs as phantom
        from semlens_audit.phantom.world import Population as Phantom

        phantom.write_pairs(folder, Phantom(), count, seed, names)
