"""Measure this world's image encoder and write its model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semlens_audit.signs import encoder, examples
from semlens_audit.signs.crops import EVALUATION_SEEDS, FACTS, OPEN, PRESENT, Crops, rendered
from semlens_audit.signs.examples import CONCEPTS
from semlens_audit.signs.render import ARTEFACTS, VALID
from semlens_audit.statistics import auroc

if TYPE_CHECKING:
    import torch

__all__ = ["presence", "write_card"]


def presence(model: torch.nn.Module, crops: Crops, shown: dict[str, NDArray[np.uint8]]) -> dict[str, dict[str, float]]:
    """How well a handful of example crops finds a concept in pictures never trained on.

    Parameters
    ----------
    model
        Encoder.
    crops
        To search.
    shown
        concept -> (E, SIDE, SIDE, 3) uint8 example crops.

    Returns
    -------
    concept -> ``whole images`` and ``crops`` -> area under the ROC curve of the cosine with the example probe, both seen from
    the mean of the crops (`semlens_audit.scores.example_probe`). A crop that shows the concept in part counts neither for nor
    against it; what every picture shows has no area.
    """
    embedded = encoder.embeddings(model, crops.images).astype(np.float64)
    centre = embedded[~crops.full].mean(axis=0)
    seen = embedded - centre
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    table: dict[str, dict[str, float]] = {}
    for name in CONCEPTS:
        index = FACTS.index(name)
        probe = encoder.embeddings(model, shown[name]).astype(np.float64).mean(axis=0) - centre
        cosines, state = seen @ probe, crops.states[:, index]
        table[name] = {}
        for part, chosen in (("whole images", crops.full), ("crops", ~crops.full)):
            rows = chosen & (state != OPEN)
            area = auroc(cosines[rows], state[rows] == PRESENT)
            if area is not None:
                table[name][part] = area
    return table


def _kind(name: str) -> str:
    return "valid" if name in VALID else "artefact" if name in ARTEFACTS else "neutral"


def _stated(area: float | None) -> str:
    return "in every one" if area is None else f"{area:.3f}"


def write_card(path: Path, command: str, trained_on: int, scenes: int = 1000) -> None:
    """Measure the encoder of `path` and write ``README.md`` beside it."""
    shown = {name: examples.pictures(name, 12, examples.SEED) for name in CONCEPTS}
    table = presence(encoder.load(path), rendered(EVALUATION_SEEDS, scenes, 4, 1), shown)
    rows = "\n".join(
        f"| {name} | {_kind(name)} | {_stated(values.get('whole images'))} | {_stated(values.get('crops'))} |"
        for name, values in table.items()
    )
    text = _CARD.format(
        architecture=encoder.ARCHITECTURE,
        arguments=", ".join(f"{key}={value}" for key, value in encoder.ARGUMENTS.items()),
        megabytes=path.stat().st_size / 1e6,
        trained_on=trained_on,
        command=command,
        scenes=scenes,
        crops=3 * scenes,
        rows=rows,
    )
    partial = path.with_name("README.md.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path.with_name("README.md"))
    print(text)


_CARD = """# Image encoder of the toy road signs

A small image encoder for rendered road scenes (`semlens_audit.signs.render`). It stands in for a foundation model where an
audit is proved on that world. It reads no text: concepts are defined by example crops. It knows the attributes of this world
and nothing of photographs.

- `timm.create_model("{architecture}", {arguments})`; the embedding is the pooled last feature map.
- Input: RGB, 64 x 64 pixels (bilinear), mean 0.5, standard deviation 0.5.
- Weights: half precision, {megabytes:.1f} MB. Licence: Apache-2.0. Training data: rendered.
- Trained on {trained_on} crops, a quarter of them whole images:

      {command}

  The renders are the same everywhere; the weights repeat up to the order of sums in the kernels.

## Measured

Area under the ROC curve of the cosine between an image and a concept's probe (mean of 12 example crops, seen from the mean of
random crops), in places never trained on: {scenes} whole images, {crops} crops of 28 pixels and more. A crop that shows a concept
only in part counts neither for nor against it.

| concept | kind | whole images | crops |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measure an encoder: ``python -m semlens_audit.signs.evaluate_foundation FILE``."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    options = parser.parse_args()
    shown = {name: examples.pictures(name, 12, examples.SEED) for name in CONCEPTS}
    for name, values in presence(encoder.load(options.file), rendered(EVALUATION_SEEDS, options.scenes, 4, 1), shown).items():
        print(f"{name:18s} " + "  ".join(f"{part} {area:.3f}" for part, area in values.items()))


if __name__ == "__main__":
    main()
