"""Counterfactual pairs of road signs as files: the same place without and with one attribute, all else equal."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from semlens_audit.errors import DataError
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES
from semlens_audit.signs.world import Case, Population, sample

__all__ = ["write_pairs"]


def write_pairs(
    directory: Path, population: Population, n: int, seed: int, names: Sequence[str] = ARTEFACTS, size: int = 128
) -> None:
    """Write pairs as files: ``images/00000.png``, ``images/00000-NAME.png`` and ``pairs.csv``.

    ``images/00000.png`` is a place of the population as it is, ``images/00000-NAME.png`` the same with attribute NAME switched: on
    where it was off, off where it was on. ``pairs.csv`` has the columns without, with (paths) and concept (NAME). The directory
    appears complete or not at all.

    Parameters
    ----------
    directory
        New, or empty.
    population
        Of the places and of all attributes but the one switched.
    n
        Places, from 1; the first n of the sample that `seed` gives.
    seed
        Non-negative.
    names
        Attributes to switch, each at every place.
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

    def picture(case: Case, name: str) -> str:
        path = f"images/{name}.png"
        PILImage.fromarray(case.scene(size).image).save(partial / path, compress_level=4)
        return path

    try:
        (partial / "images").mkdir()
        with (partial / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["without", "with", "concept"])
            for number, case in enumerate(cases):
                base = picture(case, f"{number:05d}")
                for name in names:
                    present = case.attributes.has(name)
                    switched = picture(case.switched(name, not present), f"{number:05d}-{name}")
                    rows.writerow([switched, base, name] if present else [base, switched, name])
        partial.chmod(0o755)
        os.replace(partial, directory)  # onto an empty directory: replaces it
    finally:
        shutil.rmtree(partial, ignore_errors=True)
