"""Counterfactual pairs of the phantom as files: the same lesion without and with one attribute, all else equal."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from semlens_audit.errors import DataError
from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, render
from semlens_audit.phantom.world import Population, sample

__all__ = ["write_pairs"]


def write_pairs(
    directory: Path, population: Population, n: int, seed: int, names: Sequence[str] = ARTEFACTS, size: int = 128
) -> None:
    """Write pairs as files: ``images/00000.png``, ``images/00000-NAME.png`` and ``pairs.csv``.

    ``images/00000.png`` is a lesion of the population as it is, ``images/00000-NAME.png`` the same with attribute NAME switched:
    on where it was off, off where it was on. ``pairs.csv`` has the columns without, with (paths) and concept (NAME). The bytes
    depend on the arguments and the versions of NumPy and Pillow alone. The directory appears complete or not at all.

    Parameters
    ----------
    directory
        New, or empty.
    population
        Of the lesions and of all attributes but the one switched.
    n
        Lesions, from 1; the first n of the sample that `seed` gives.
    seed
        Non-negative.
    names
        Attributes to switch, each in every lesion.
    size
        Side of the images, pixels.

    Raises
    ------
    DataError
        If `directory` exists and is not an empty directory.
    ValueError
        For an unknown attribute, a negative seed, or n below 1.
    """
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown or n < 1:
        raise ValueError(f"unknown attributes {', '.join(unknown)}" if unknown else f"n must be at least 1, not {n}")
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(
            "folder-exists", f"'{directory}' already exists and is not empty.", "Name a new folder, or delete this one."
        )
    cases = sample(population, n, seed)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (partial / "images").mkdir()
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["without", "with", "concept"])
        for number, case in enumerate(cases):
            base = f"images/{number:05d}.png"
            PILImage.fromarray(case.scene(size).image).save(partial / base, compress_level=4)
            for name in names:
                present = case.attributes.has(name)
                switched = f"images/{number:05d}-{name}.png"
                other = render(case.lesion, case.attributes.switched(name, not present), size)
                PILImage.fromarray(other.image).save(partial / switched, compress_level=4)
                rows.writerow([switched, base, name] if present else [base, switched, name])
        (partial / "pairs.csv").write_bytes(table.getvalue().encode())
        partial.chmod(0o755)
        # Renaming onto an empty directory replaces it.
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
