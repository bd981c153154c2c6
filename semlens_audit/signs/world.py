"""Populations of road scenes with known labels, artefacts and causal effects.

The label is a rule: warning when at least three of the four attributes of the plate are there, else prohibition. Each is there
with probability `EVEN`, which makes both classes equally common; a single one tells the class in 71 % of the cases, so that a
network has to combine them. Artefacts never enter the rule; how often each comes with a class is the population's to say.

The functions are those of `semlens_audit.phantom.world`, so that whatever is measured in one world can be measured in both.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from semlens_audit.errors import DataError
from semlens_audit.phantom.world import Effect
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Place, Scene, render

__all__ = [
    "ARTEFACTS",
    "ATTRIBUTES",
    "BLOCK",
    "CLASSES",
    "EVEN",
    "VALID",
    "Attributes",
    "Case",
    "Effect",
    "Place",
    "Population",
    "images",
    "is_warning",
    "sample",
    "toggle",
    "true_effects",
    "write_folder",
]

CLASSES: tuple[str, str] = ("prohibition", "warning")
PROHIBITION, WARNING = 0, 1
NEEDED = 3

EVEN = 0.614272
"""Root of 4 p^3 (1 - p) + p^4 = 1/2."""

BLOCK = 1 << 24
"""Seeds of places are blocks of this many per sample seed, so that samples of different seeds share no place."""


@dataclass(frozen=True)
class Population:
    """How often attributes occur.

    Parameters
    ----------
    valid : float
        Probability of each attribute of the plate, in (0, 1).
    artefact : float
        Probability of each artefact, in [0, 1], whatever the class, where `tied` names no other.
    tied : mapping of artefact -> (probability with prohibition, probability with warning)
        The artefacts that come with a class.
    noise : float
        Share of labels that are flipped, in [0, 0.5). An artefact follows the flipped label.

    Raises
    ------
    ValueError
        For a probability out of range or an unknown artefact.
    """

    valid: float = EVEN
    artefact: float = 0.25
    tied: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.valid < 1:
            raise ValueError(f"valid must be a probability between 0 and 1, not {self.valid}")
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise must be in [0, 0.5), not {self.noise}")
        unknown = sorted(set(self.tied) - set(ARTEFACTS))
        if unknown:
            raise ValueError(f"unknown artefact {unknown[0]!r}; known are {', '.join(ARTEFACTS)}")
        for chance in (self.artefact, *(chance for pair in self.tied.values() for chance in pair)):
            if not 0 <= chance <= 1:
                raise ValueError(f"probabilities must be in [0, 1], not {chance}")

    @classmethod
    def shortcut(cls, artefact: str = "sticker", with_warning: float = 0.95) -> Population:
        """`artefact` in `with_warning` of the warnings and 1 - `with_warning` of the prohibitions; the others as usual."""
        return cls(tied={artefact: (1 - with_warning, with_warning)})

    def chance(self, artefact: str, label: int) -> float:
        """Probability of an artefact in a class."""
        return self.tied[artefact][label] if artefact in self.tied else self.artefact


@dataclass(frozen=True)
class Case:
    """One place of a sample: what to render and the class it is filed under (0 prohibition, 1 warning)."""

    place: Place
    attributes: Attributes
    label: int

    def scene(self, size: int = 128) -> Scene:
        """The rendered case."""
        return render(self.place, self.attributes, size)

    def switched(self, name: str, on: bool) -> Case:
        """The same place and label with attribute `name` present (`on`) or absent."""
        return replace(self, attributes=self.attributes.switched(name, on))


def is_warning(attributes: Attributes) -> bool:
    """The label rule: at least three of the four attributes of the plate."""
    return sum(attributes.has(name) for name in VALID) >= NEEDED


def sample(population: Population, n: int, seed: int) -> list[Case]:
    """Draw `n` cases.

    Parameters
    ----------
    population : Population
    n : int
        From 0 to 2**24.
    seed : int
        Non-negative. The first m cases of a sample are the sample of size m.

    Raises
    ------
    ValueError
        If `n` or `seed` is out of range.
    """
    if not 0 <= n <= BLOCK:
        raise ValueError(f"n must be in 0 .. {BLOCK}, not {n}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, but is {seed}")
    return [_draw(population, Place(seed * BLOCK + number)) for number in range(n)]


def _draw(population: Population, place: Place) -> Case:
    rng = place.stream("case")
    flipped = bool(rng.random() < population.noise)
    plate = [name for name, draw in zip(VALID, rng.random(len(VALID)), strict=True) if draw < population.valid]
    label = int((len(plate) >= NEEDED) != flipped)
    draws = zip(ARTEFACTS, rng.random(len(ARTEFACTS)), strict=True)
    around = [name for name, draw in draws if draw < population.chance(name, label)]
    return Case(place, Attributes.of(*plate, *around), label)


def images(cases: Sequence[Case], size: int = 128) -> NDArray[np.uint8]:
    """The rendered cases, (n, size, size, 3) uint8."""
    stack = np.empty((len(cases), size, size, 3), dtype=np.uint8)
    for row, case in zip(stack, cases, strict=True):
        row[:] = case.scene(size).image
    return stack


def toggle(
    place: Place | int, attributes: Attributes, name: str, size: int = 128
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The same place without and with attribute `name`, each (size, size, 3) uint8.

    Raises ValueError for an unknown name.
    """
    off, on = (render(place, attributes.switched(name, present), size).image for present in (False, True))
    return off, on


def write_folder(directory: Path, population: Population, n: int, seed: int, size: int = 128) -> None:
    """Write a sample as files: ``images/00000.png``, ``labels.csv`` and ``attributes.csv``.

    ``labels.csv`` has the columns path and label (a class name), ``attributes.csv`` path and one 0/1 column per attribute. The
    bytes depend on the arguments and the versions of NumPy and Pillow alone. The directory appears complete or not at all.

    Raises
    ------
    DataError
        If `directory` exists and is not an empty directory.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(
            "folder-exists", f"'{directory}' already exists and is not empty.", "Name a new folder, or delete this one."
        )
    cases = sample(population, n, seed)
    paths = [f"images/{number:05d}.png" for number in range(n)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (partial / "images").mkdir()
        for path, case in zip(paths, cases, strict=True):
            PILImage.fromarray(case.scene(size).image).save(partial / path, compress_level=4)
        labels = [[path, CLASSES[case.label]] for path, case in zip(paths, cases, strict=True)]
        columns = [
            [path, *(int(case.attributes.has(name)) for name in ATTRIBUTES)] for path, case in zip(paths, cases, strict=True)
        ]
        for name, header, rows in (("labels", ["label"], labels), ("attributes", list(ATTRIBUTES), columns)):
            with (partial / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([["path", *header], *rows])
        partial.chmod(0o755)
        os.replace(partial, directory)  # onto an empty directory: replaces it
    finally:
        shutil.rmtree(partial, ignore_errors=True)


Margin = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


def true_effects(
    logits: Margin, population: Population, n: int, seed: int, names: Sequence[str] = ARTEFACTS, size: int = 128
) -> dict[str, Effect]:
    """The causal effect of attributes on a model.

    Each of `n` places of the population is rendered without and with each attribute, all else equal; the effect is the mean
    change of the margin (warning logit - prohibition logit).

    Parameters
    ----------
    logits : callable
        (B, size, size, 3) uint8 images -> (B, 2) logits in the order of `CLASSES`.
    population : Population
        Of the places and of all attributes but the one switched.
    n : int
        At least 2.
    seed : int
    names : attribute names

    Returns
    -------
    attribute name -> Effect

    Raises
    ------
    ValueError
        If `n` is below 2, a name is unknown or the model returns another shape.
    """
    if n < 2:
        raise ValueError("at least two places are needed for an interval")
    cases = sample(population, n, seed)
    as_drawn = _margins(logits, cases, size)
    effects = {}
    for name in names:
        sign = np.array([1.0 if case.attributes.has(name) else -1.0 for case in cases])
        other = _margins(logits, [case.switched(name, not case.attributes.has(name)) for case in cases], size)
        effects[name] = Effect.of(sign * (as_drawn - other))
    return effects


def _margins(logits: Margin, cases: Sequence[Case], size: int, chunk: int = 64) -> NDArray[np.float64]:
    """(n,) difference of the two logits, a chunk of images in memory at a time."""
    margins = np.empty(len(cases))
    for start in range(0, len(cases), chunk):
        part = cases[start : start + chunk]
        values = np.asarray(logits(images(part, size)), dtype=np.float64)
        if values.shape != (len(part), len(CLASSES)):
            raise ValueError(f"the model must return ({len(part)}, {len(CLASSES)}) logits, not {values.shape}")
        margins[start : start + len(part)] = values[:, WARNING] - values[:, PROHIBITION]
    return margins
