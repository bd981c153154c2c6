"""Example crops of every concept, as an expert would mark them: ``python -m semlens_audit.signs.examples --out DIR``.

The scenes are of places that no sample and no training uses. A scene serves as an example of several concepts, with a box for
each; boxes are somewhat larger than the attribute, by how much varies. Pole, sky and road are marked where no artefact is.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from semlens_audit.plan import Example
from semlens_audit.signs.crops import ABSENT, FACTS, PRESENT, SURROUNDINGS, Box, cut, states
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Place, Scene, render

__all__ = ["CONCEPTS", "PER_CONCEPT", "SEED", "Marked", "boxed", "listing", "marked", "pictures", "write_examples"]

SEED = 0
PER_CONCEPT = 12

CONCEPTS = (*ATTRIBUTES, *SURROUNDINGS)
"""What is marked: valid, spurious and neutral."""

_PLACES = 3_000_000
_LEAST = 32.0
_NARROWEST = 0.45
_SNOWED = 2


@dataclass(frozen=True)
class Marked:
    """A scene with concepts marked in it.

    Attributes
    ----------
    seed : int; of the place.
    scene : Scene
    boxes : concept -> x0, y0, x1, y1 in pixels, ends exclusive.
    """

    seed: int
    scene: Scene
    boxes: Mapping[str, Box]

    @property
    def file(self) -> str:
        """Name of the image file."""
        return f"{self.seed}.jpg"


def boxed(scene: Scene, name: str, rng: np.random.Generator) -> Box | None:
    """A box around an attribute with some of its surroundings, or ``None`` where other things hide it.

    Parameters
    ----------
    scene
        128 x 128 pixels or more.
    name
        An attribute that is present.
    rng
        Decides how much of the surroundings.
    """
    size = scene.image.shape[0]
    rows, columns = (np.flatnonzero(scene.masks[name].any(axis=axis)) for axis in (1, 0))
    margin, place = rng.uniform(1.1, 1.6), rng.random(2)
    if not rows.size:
        return None
    width, height = (columns[-1] + 1 - columns[0]) * margin, (rows[-1] + 1 - rows[0]) * margin
    middle = ((columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2)
    if name == "snow":  # all over the picture: any part of it is an example
        width = height = size * rng.uniform(0.35, 0.75)
        middle = (place[0] * size, place[1] * size)
    width, height = max(width, _LEAST, _NARROWEST * height), max(height, _LEAST, _NARROWEST * width)
    wide, high = (round(min(float(size), side)) for side in (width, height))
    x0 = int(np.clip(round(middle[0] - wide / 2), 0, size - wide))
    y0 = int(np.clip(round(middle[1] - high / 2), 0, size - high))
    box = (x0, y0, x0 + wide, y0 + high)
    clear = scene.masks[name].sum() >= 0.5 * _painted(scene, name)
    return box if clear and states(scene, box)[ATTRIBUTES.index(name)] == PRESENT else None


def surroundings_box(scene: Scene, name: str, rng: np.random.Generator) -> Box | None:
    """A box that shows pole, sky or road with little of the plate and no artefact, or ``None`` where none is found."""
    size = scene.image.shape[0]
    mask = scene.things[name]
    rows, columns = np.nonzero(mask)
    apart = [FACTS.index(other) for other in ARTEFACTS]
    for _ in range(40 if rows.size else 0):
        side = int(rng.integers(round(_LEAST), round(0.45 * size)))
        pick = int(rng.integers(rows.size))
        x0, y0 = (int(np.clip(at[pick] - side // 2, 0, size - side)) for at in (columns, rows))
        box = (x0, y0, x0 + side, y0 + side)
        found, window = states(scene, box), np.s_[y0 : y0 + side, x0 : x0 + side]
        clear = bool((found[apart] == ABSENT).all()) and float(scene.plate[window].mean()) < 0.05
        others = [FACTS.index(other) for other in SURROUNDINGS if other != name] if name != "pole" else []
        if clear and found[FACTS.index(name)] == PRESENT and not (found[others] == PRESENT).any():
            return box
    return None


def _painted(scene: Scene, name: str) -> int:
    # The attributes of the plate have the whole plate for their extent, the exclamation mark least of it: 5 % and more.
    extent = int(scene.extents[name].sum())
    return extent if name not in VALID else extent // 10


@lru_cache(maxsize=4)
def marked(per_concept: int = PER_CONCEPT, seed: int = SEED) -> tuple[Marked, ...]:
    """Scenes that hold `per_concept` marked examples of every concept between them.

    Parameters
    ----------
    per_concept
        At least 1.
    seed
        Non-negative; below 1000.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if per_concept < 1 or not 0 <= seed < 1000:
        raise ValueError(f"per_concept must be at least 1 and seed in 0 .. 999, not {per_concept} and {seed}")
    wanted = dict.fromkeys(CONCEPTS, per_concept)
    found: list[Marked] = []
    number = _PLACES + 10_000 * seed
    while any(wanted.values()):
        place = Place(number)
        rng = place.stream("examples")
        chances = rng.random(len(ATTRIBUTES))
        names = [name for name, draw in zip(ATTRIBUTES, chances, strict=True) if draw < 0.45]
        scene = render(place, Attributes.of(*names))
        boxes = {name: box for name in names if (box := boxed(scene, name, rng)) is not None and wanted[name]}
        if "snow" in names:  # which is all over the picture: few examples of anything else may show it
            rarest = sorted((name for name in boxes if name != "snow"), key=lambda name: -wanted[name])[:_SNOWED]
            boxes = {name: box for name, box in boxes.items() if name in rarest or name == "snow"} if "snow" in boxes else {}
        # Scenes are dear: only those that serve several attributes, unless few are wanted any more.
        if len(boxes) >= min(3, sum(wanted[name] > 0 for name in ATTRIBUTES)) and (boxes or "snow" not in names):
            around = place.stream("surroundings examples")
            boxes |= {
                name: box
                for name in SURROUNDINGS
                if wanted[name] and "snow" not in names and (box := surroundings_box(scene, name, around)) is not None
            }
            if boxes:
                found.append(Marked(number, scene, boxes))
            for name in boxes:
                wanted[name] -= 1
        number += 1
    return tuple(found)


def pictures(name: str, per_concept: int = PER_CONCEPT, seed: int = SEED) -> NDArray[np.uint8]:
    """The example crops of one concept as the encoder takes them: (per_concept, SIDE, SIDE, 3) uint8."""
    chosen = [entry for entry in marked(per_concept, seed) if name in entry.boxes]
    return np.concatenate([cut(entry.scene.image, [entry.boxes[name]]) for entry in chosen])


def write_examples(folder: Path, per_concept: int = PER_CONCEPT, seed: int = SEED) -> dict[str, tuple[Example, ...]]:
    """Write the marked scenes as JPEG files.

    Parameters
    ----------
    folder
        Created where it does not exist; files of the same name are replaced.
    per_concept, seed
        See `marked`.

    Returns
    -------
    concept -> its examples, with paths relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = marked(per_concept, seed)
    for entry in scenes:
        buffer = io.BytesIO()
        PILImage.fromarray(entry.scene.image).save(buffer, "JPEG", quality=85, optimize=True)
        partial = folder / f".{entry.file}.part"
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, folder / entry.file)
    return {
        name: tuple(Example(image=entry.file, box=entry.boxes[name]) for entry in scenes if name in entry.boxes)
        for name in CONCEPTS
    }


def listing(examples: Sequence[Example], folder: str = "") -> str:
    """The examples as lines of a spec file."""
    entries = ((example.image, list(example.box or ())) for example in examples)
    return "\n".join(f"      - {{image: {folder}{image}, box: {box}}}" for image, box in entries)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--per-concept", type=int, default=PER_CONCEPT)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    for name, found in write_examples(options.out, options.per_concept, options.seed).items():
        print(f"  - id: {name}\n    examples:\n{listing(found, f'{options.out.name}/')}")


if __name__ == "__main__":
    main()
