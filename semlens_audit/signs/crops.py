"""Rendered crops with what is true of them: what the image encoder of this world is trained and measured on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, SYMBOLS, VALID, Attributes, Place, Scene, render

__all__ = [
    "ABSENT",
    "COLOURS",
    "EVALUATION_SEEDS",
    "FACTS",
    "OPEN",
    "PRESENT",
    "SIDE",
    "SURROUNDINGS",
    "TRAINING_SEEDS",
    "Crops",
    "draw_box",
    "rendered",
    "states",
]

SIDE = 64
"""Pixels of a crop after resizing."""

# Seeds of places that the encoder is trained on, apart from those it is measured on and from every sample.
TRAINING_SEEDS = 1_000_000
EVALUATION_SEEDS = 2_000_000

ABSENT, OPEN, PRESENT = 0, -1, 1

_SHARE = {
    "triangle": 0.5,
    "red_rim": 0.2,
    "yellow_ground": 0.2,
    "exclamation_mark": 0.6,
    "sticker": 0.6,
    "watermark": 0.3,
    "snow": 0.03,
    "timestamp": 0.3,
    "lamp_post": 0.3,
}
"""Least share of an attribute's pixels inside a crop that shows it."""

COLOURS = ("red_rim", "yellow_ground")
"""Attributes that nobody can tell on a bleached plate."""

SURROUNDINGS = ("pole", "sky", "road")
PLATES = ("round_plate", "dark_rim", "white_ground", "bleached", *SYMBOLS)

FACTS = (*ATTRIBUTES, *SURROUNDINGS, *PLATES)
"""What is known of a crop: the attributes, and what else an encoder that has seen the world can tell apart."""

_TRACE = 0.03
"""A crop with fewer of an attribute's pixels than this share of `_SHARE` does not show it."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crops:
    """Crops and what they show.

    Attributes
    ----------
    images : (n, SIDE, SIDE, 3) uint8
    states : (n, len(FACTS)) int8, see `states`.
    full : (n,) bool; whether the crop is the whole image.
    """

    images: NDArray[np.uint8]
    states: NDArray[np.int8]
    full: NDArray[np.bool_]


def states(scene: Scene, box: Box) -> NDArray[np.int8]:
    """What a crop shows.

    Parameters
    ----------
    scene
        128 x 128 pixels or another size.
    box
        x0, y0, x1, y1 in pixels, ends exclusive.

    Returns
    -------
    (len(FACTS),) int8; `PRESENT`, `ABSENT`, or `OPEN` for what is seen in part only and for colours of a bleached plate.
    """
    x0, y0, x1, y1 = box

    def inside(mask: NDArray[np.bool_] | None, least: float) -> int:
        """By the share of the mask that is inside."""
        if mask is None:
            return ABSENT
        return _graded(float(mask[y0:y1, x0:x1].sum() / max(1, mask.sum())), least)

    def filling(mask: NDArray[np.bool_], least: float) -> int:
        """By the share of the crop that is filled."""
        return _graded(float(mask[y0:y1, x0:x1].mean()), least)

    has, things = scene.masks, scene.things
    found = {name: inside(has.get(name), _SHARE[name]) for name in ATTRIBUTES}
    found["pole"] = _graded(float(things["pole"][y0:y1, x0:x1].any(axis=1).mean()), 0.35)
    found["sky"], found["road"] = filling(things["sky"], 0.35), filling(things["road"], 0.35)
    found["round_plate"] = inside(None if "triangle" in has else scene.plate, 0.5)
    found["dark_rim"] = inside(None if "red_rim" in has else things["rim"], 0.2)
    found["white_ground"] = inside(None if "yellow_ground" in has else things["ground"], 0.2)
    found["bleached"] = inside(scene.plate if scene.bleached else None, 0.3)
    for name in SYMBOLS:
        found[name] = inside(things["symbol"] if name == scene.symbol else None, 0.6)
    if scene.bleached and scene.plate[y0:y1, x0:x1].any():
        found |= dict.fromkeys((*COLOURS, "dark_rim", "white_ground"), OPEN)
    return np.array([found[name] for name in FACTS], dtype=np.int8)


def _graded(share: float, least: float) -> int:
    if share >= least:
        return PRESENT
    return OPEN if share > _TRACE * least else ABSENT


def draw_box(scene: Scene, rng: np.random.Generator, least: float = 28.0) -> Box:
    """A random box of `least` pixels to the whole picture: half of them on an attribute, half anywhere."""
    size = scene.image.shape[0]
    side = np.exp(rng.uniform(np.log(least), np.log(size)))
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    width, height = (round(min(float(size), side * part)) for part in (stretch, 1 / stretch))
    names = sorted(scene.masks)
    x, y = rng.uniform(0, size, 2)
    if names and rng.random() < 0.5:
        rows, columns = np.nonzero(scene.masks[names[int(rng.integers(len(names)))]])
        if rows.size:
            pick = int(rng.integers(rows.size))
            x, y = columns[pick] + rng.normal(0, side / 6), rows[pick] + rng.normal(0, side / 6)
    x0 = int(np.clip(round(x - width / 2), 0, size - width))
    y0 = int(np.clip(round(y - height / 2), 0, size - height))
    return x0, y0, x0 + width, y0 + height


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """A random set of attributes: mostly several at once, sometimes one or none."""
    draw = rng.random()
    if draw < 0.15:
        return Attributes.of(*([] if draw < 0.04 else [ATTRIBUTES[int(rng.integers(len(ATTRIBUTES)))]]))
    chances = [0.5] * len(VALID) + [0.3] * len(ARTEFACTS)
    return Attributes.of(*(name for name, chance in zip(ATTRIBUTES, chances, strict=True) if rng.random() < chance))


def render_crops(job: tuple[int, int, int]) -> Crops:
    """Render scenes and cut crops from them.

    Parameters
    ----------
    job : (first seed, number of scenes, crops per scene); the first crop of each scene is the whole image.
    """
    first, scenes, per_scene = job
    total = scenes * per_scene
    pictures = np.empty((total, SIDE, SIDE, 3), dtype=np.uint8)
    found = np.empty((total, len(FACTS)), dtype=np.int8)
    for number in range(scenes):
        place = Place(first + number)
        rng = place.stream("crops")
        scene = render(place, draw_attributes(rng))
        side = scene.image.shape[0]
        boxes = [(0, 0, side, side), *(draw_box(scene, rng) for _ in range(per_scene - 1))]
        rows = slice(number * per_scene, (number + 1) * per_scene)
        pictures[rows] = cut(scene.image, boxes)
        found[rows] = [states(scene, box) for box in boxes]
    return Crops(pictures, found, np.arange(total) % per_scene == 0)


def cut(image: NDArray[np.uint8], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """(len(boxes), SIDE, SIDE, 3) uint8; crops of an image, resized as the tool does: cropped first, then bilinear."""
    picture = PILImage.fromarray(image)
    resized = [picture.crop(box).resize((SIDE, SIDE), PILImage.Resampling.BILINEAR) for box in boxes]
    return np.stack([np.asarray(crop) for crop in resized])


def rendered(first: int, scenes: int, per_scene: int, processes: int) -> Crops:
    """`render_crops` over several processes; the result does not depend on their number."""
    chunk = 250
    jobs = [(first + start, min(chunk, scenes - start), per_scene) for start in range(0, scenes, chunk)]
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(render_crops, jobs, chunksize=1)
    else:
        parts = [render_crops(job) for job in jobs]
    return Crops(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "states", "full")))
