"""Populations of rendered lesions with known labels, artefacts and causal effects.

The label is a rule: melanoma when at least three of the five valid criteria are present. With each criterion in
half of the lesions, both classes are equally common and each criterion is informative (present in 11/16 of the
melanomas and 5/16 of the naevi). Artefacts never enter the rule; how often each comes with a class is the
population's to say.
"""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from semlens_audit.errors import DataError
from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Lesion, Scene, render

CLASSES: tuple[str, str] = ("nevus", "melanoma")
NEVUS, MELANOMA = 0, 1
CRITERIA_NEEDED = 3

# Seeds of lesions are blocks of this many per sample seed, so samples of different seeds share no lesion.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Population:
    """How often attributes occur.

    Parameters
    ----------
    valid : float
        Probability of each valid criterion, in (0, 1).
    artefact : float
        Probability of each artefact, in [0, 1], whatever the class, where `tied` names no other.
    tied : mapping of artefact -> (probability in naevi, probability in melanomas)
        The artefacts that come with a class.
    noise : float
        Share of labels that are flipped, in [0, 0.5). An artefact follows the flipped label.

    Raises
    ------
    ValueError
        For a probability out of range or an unknown artefact.
    """

    valid: float = 0.5
    artefact: float = 0.25
    tied: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.valid < 1:
            raise ValueError(f"valid must be a probability between 0 and 1, not {self.valid}")
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise must be in [0, 0.5), not {self.noise}")
        for name, chances in (("artefact", (self.artefact,)), *self.tied.items()):
            if name != "artefact" and name not in ARTEFACTS:
                raise ValueError(f"unknown artefact {name!r}; known are {', '.join(ARTEFACTS)}")
            if not all(0 <= chance <= 1 for chance in chances):
                raise ValueError(f"{name}: probabilities must be in [0, 1], not {chances}")

    @classmethod
    def shortcut(cls, artefact: str = "ruler", with_melanoma: float = 0.95) -> Population:
        """`artefact` in `with_melanoma` of the melanomas and 1 - `with_melanoma` of the naevi; the others as usual."""
        return cls(tied={artefact: (1 - with_melanoma, with_melanoma)})


@dataclass(frozen=True)
class Case:
    """One lesion of a sample: what to render and the class it is filed under (0 nevus, 1 melanoma)."""

    lesion: Lesion
    attributes: Attributes
    label: int

    def scene(self, size: int = 128) -> Scene:
        """The rendered case."""
        return render(self.lesion, self.attributes, size)


def is_melanoma(attributes: Attributes) -> bool:
    """The label rule: at least three of the five valid criteria."""
    return sum(attributes.has(name) for name in VALID) >= CRITERIA_NEEDED


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
    cases = []
    for number in range(n):
        lesion = Lesion(seed * BLOCK + number)
        rng = lesion.stream("case")
        chance = rng.random(len(ATTRIBUTES))
        flip = rng.random() < population.noise
        present = [name for name, draw in zip(VALID, chance, strict=False) if draw < population.valid]
        label = int((len(present) >= CRITERIA_NEEDED) != flip)
        for name, draw in zip(ARTEFACTS, chance[len(VALID) :], strict=True):
            usual = (population.artefact, population.artefact)
            if draw < population.tied.get(name, usual)[label]:
                present.append(name)
        cases.append(Case(lesion, Attributes.from_names(present), label))
    return cases


def images(cases: Sequence[Case], size: int = 128) -> NDArray[np.uint8]:
    """The rendered cases, (n, size, size, 3) uint8."""
    stack = np.empty((len(cases), size, size, 3), dtype=np.uint8)
    for number, case in enumerate(cases):
        stack[number] = case.scene(size).image
    return stack


def write_folder(directory: Path, population: Population, n: int, seed: int, size: int = 128) -> None:
    """Write a sample as files: ``images/00000.png``, ``labels.csv`` and ``attributes.csv``.

    ``labels.csv`` has the columns path and label (a class name), ``attributes.csv`` path and one 0/1 column per
    attribute. The bytes depend on the arguments and the versions of NumPy and Pillow alone. The directory appears
    complete or not at all.

    Raises
    ------
    DataError
        If `directory` exists and is not an empty directory.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError("folder-exists", f"'{directory}' already exists and is not empty.",
                        "Name a new folder, or delete this one.")
    cases = sample(population, n, seed)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (partial / "images").mkdir()
        labels, attributes = io.StringIO(), io.StringIO()
        label_rows = csv.writer(labels, lineterminator="\n")
        attribute_rows = csv.writer(attributes, lineterminator="\n")
        label_rows.writerow(["path", "label"])
        attribute_rows.writerow(["path", *ATTRIBUTES])
        for number, case in enumerate(cases):
            path = f"images/{number:05d}.png"
            PILImage.fromarray(case.scene(size).image).save(partial / path, compress_level=4)
            label_rows.writerow([path, CLASSES[case.label]])
            attribute_rows.writerow([path, *(int(case.attributes.has(name)) for name in ATTRIBUTES)])
        (partial / "labels.csv").write_bytes(labels.getvalue().encode())
        (partial / "attributes.csv").write_bytes(attributes.getvalue().encode())
        partial.chmod(0o755)
        # Renaming onto an empty directory replaces it.
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def toggle(
    lesion: Lesion | int, attributes: Attributes, name: str, size: int = 128
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The same lesion without and with attribute `name`, each (size, size, 3) uint8.

    Raises ValueError for an unknown name.
    """
    off = render(lesion, attributes.switched(name, False), size).image
    on = render(lesion, attributes.switched(name, True), size).image
    return off, on


@dataclass(frozen=True)
class Effect:
    """Mean change of the class margin when an attribute is switched on for the same lesion.

    Attributes
    ----------
    mean : float; logits.
    low, high : float; 95 % interval of the mean over lesions (normal).
    n : int; lesions.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, changes: NDArray[np.float64]) -> Effect:
        """From the change of each lesion, (n,) with n >= 2."""
        n = int(changes.size)
        if n < 2:
            raise ValueError("at least two lesions are needed for an interval")
        mean, half = float(changes.mean()), 1.96 * float(changes.std(ddof=1)) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


Margin = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


def true_effects(
    logits: Margin, population: Population, n: int, seed: int, names: Sequence[str] = ARTEFACTS, size: int = 128
) -> dict[str, Effect]:
    """The causal effect of attributes on a model.

    Each of `n` lesions of the population is rendered without and with each attribute, all else equal; the effect
    is the mean change of the margin (melanoma logit - nevus logit).

    Parameters
    ----------
    logits : callable
        (B, size, size, 3) uint8 images -> (B, 2) logits in the order of `CLASSES`.
    population : Population
        Of the lesions and of all attributes but the one switched.
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
        If `n` is below 2 or a name is unknown.
    """
    if n < 2:
        raise ValueError("at least two lesions are needed for an interval")
    cases = sample(population, n, seed)
    changes = {name: np.empty(n) for name in names}
    chunk = 64
    for start in range(0, n, chunk):
        part = cases[start : start + chunk]
        base = _margin(logits, images(part, size))
        for name in names:
            present = np.array([case.attributes.has(name) for case in part])
            other = [
                Case(case.lesion, case.attributes.switched(name, not case.attributes.has(name)), case.label)
                for case in part
            ]
            switched = _margin(logits, images(other, size))
            changes[name][start : start + len(part)] = np.where(present, base - switched, switched - base)
    return {name: Effect.of(values) for name, values in changes.items()}


def _margin(logits: Margin, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
    values = np.asarray(logits(batch), dtype=np.float64)
    if values.shape != (len(batch), 2):
        raise ValueError(f"the model must return ({len(batch)}, 2) logits, not {values.shape}")
    return np.asarray(values[:, MELANOMA] - values[:, NEVUS])
