"""Rendered crops with what is true of them: what the phantom's CLIP is trained and measured on."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from semlens_audit.phantom import captions
from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Lesion, render

if TYPE_CHECKING:
    import torch

IMAGE_SIZE = 64
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

# Seeds of lesions that models are trained on, kept apart from those they are measured on.
TRAINING_SEEDS = 1_000_000
EVALUATION_SEEDS = 2_000_000


@dataclass(frozen=True)
class Crops:
    """Rendered crops and what can be said of them.

    Attributes
    ----------
    images : (n, 64, 64, 3) uint8
    states : (n, len(FACTS)) int8, see `captions.facts`
    full : (n,) bool; whether the crop is the whole image
    """

    images: NDArray[np.uint8]
    states: NDArray[np.int8]
    full: NDArray[np.bool_]


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """A random set of attributes: mostly several at once, sometimes one or none."""
    draw = rng.random()
    if draw < 0.04:
        return Attributes()
    if draw < 0.2:
        return Attributes.of(ATTRIBUTES[int(rng.integers(len(ATTRIBUTES)))])
    chosen = [name for name in VALID if rng.random() < 0.45] + [name for name in ARTEFACTS if rng.random() < 0.28]
    return Attributes.from_names(chosen)


def render_crops(job: tuple[int, int, int]) -> Crops:
    """Render scenes and cut crops from them.

    Parameters
    ----------
    job : (first seed, number of scenes, crops per scene); the first crop of each scene is the whole image.
    """
    first, scenes, per_scene = job
    total = scenes * per_scene
    images = np.empty((total, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    states = np.empty((total, len(captions.FACTS)), dtype=np.int8)
    full = np.zeros(total, dtype=bool)
    for number in range(scenes):
        lesion = Lesion(first + number)
        rng = lesion.stream("crops")
        attributes = draw_attributes(rng)
        scene = render(lesion, attributes)
        picture = PILImage.fromarray(scene.image)
        side = scene.image.shape[0]
        for crop in range(per_scene):
            row = number * per_scene + crop
            box = (0, 0, side, side) if crop == 0 else captions.draw_box(scene, rng)
            small = picture.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BICUBIC, box=box)
            images[row] = np.asarray(small)
            states[row] = captions.facts(scene, attributes, box)
            full[row] = crop == 0
    return Crops(images, states, full)


def rendered(first: int, scenes: int, per_scene: int, processes: int) -> Crops:
    """`render_crops` over several processes; the result does not depend on their number."""
    chunk = 250
    jobs = [(first + start, min(chunk, scenes - start), per_scene) for start in range(0, scenes, chunk)]
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(render_crops, jobs, chunksize=1)
    else:
        parts = [render_crops(job) for job in jobs]
    return Crops(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.full for part in parts]),
    )


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """(n, 64, 64, 3) uint8 -> (n, 3, 64, 64) float32, standardised, channels last in memory."""
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255.0)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return batch.sub_(mean).div_(std)
