"""Measure the phantom's CLIP and write its model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semlens_audit.phantom import captions
from semlens_audit.phantom.crops import EVALUATION_SEEDS, Crops, pixels, rendered
from semlens_audit.phantom.render import ATTRIBUTES

if TYPE_CHECKING:
    import torch

PROBE_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a close-up of {}",
    "a dermoscopic image of {}",
    "an image showing {}",
)


def load(folder: Path) -> tuple[torch.nn.Module, Any]:
    """The model and its tokenizer, through open_clip's own loader of local directories."""
    from semlens_audit import _torchvision  # noqa: F401

    import open_clip  # isort: skip

    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")


def image_embeddings(model: torch.nn.Module, crops: Crops, batch: int = 512) -> NDArray[np.float32]:
    """(n, d) float32 unit vectors of the crops."""
    import torch

    with torch.inference_mode():
        parts = [
            model.encode_image(pixels(crops.images[start : start + batch]), normalize=True)  # type: ignore[operator]
            for start in range(0, len(crops.images), batch)
        ]
    return np.asarray(torch.cat(parts).float().numpy())


def probe(model: torch.nn.Module, tokenizer: Any, phrase: str) -> NDArray[np.float32]:
    """Mean over templates of the phrase's unit embedding minus the empty prompt's; (d,) float32."""
    import torch

    texts = [template.format(phrase) for template in PROBE_TEMPLATES]
    empty = [template.format("") for template in PROBE_TEMPLATES]
    with torch.inference_mode():
        both = model.encode_text(tokenizer(texts + empty), normalize=True).float().numpy()  # type: ignore[operator]
    return np.asarray((both[: len(texts)] - both[len(texts) :]).mean(axis=0), dtype=np.float32)


def separation(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks (ties count half). Raises ValueError if a class is empty."""
    from scipy.stats import rankdata

    count, total = int(positive.sum()), positive.size
    if count in (0, total):
        raise ValueError("both positive and negative crops are needed")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (total - count)))


def retrieval(folder: Path, crops: Crops) -> dict[str, dict[str, list[float]]]:
    """Zero-shot separation of crops that show a concept from crops that do not.

    Parameters
    ----------
    folder : model directory
    crops : Crops
        Crops on which a concept's fact is open do not count for it.

    Returns
    -------
    concept -> {"full": AUROC of each phrase on whole images, "crops": on crops}
    """
    model, tokenizer = load(folder)
    embeddings = image_embeddings(model, crops)
    table: dict[str, dict[str, list[float]]] = {}
    for place, name in enumerate(ATTRIBUTES):
        table[name] = {"full": [], "crops": []}
        state = crops.states[:, place]
        for phrase in captions.PROBES[name]:
            direction = probe(model, tokenizer, phrase)
            scores = embeddings @ (direction / np.linalg.norm(direction))
            for part, chosen in (("full", crops.full), ("crops", ~crops.full)):
                used = chosen & (state != captions.OPEN)
                positive = state[used] == captions.TRUE
                table[name][part].append(separation(scores[used].astype(np.float64), positive))
    return table


def write_card(folder: Path, command: str, scenes: int, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Measure the model on lesions it has not seen and write its model card, README.md, atomically."""
    crops = rendered(EVALUATION_SEEDS, scenes, 3, 2)
    table = retrieval(folder, crops)
    rows = []
    for name, parts in table.items():
        phrases = captions.PROBES[name]
        rows.append(
            f"| {name} | {phrases[0]} | {parts['full'][0]:.3f} | {parts['crops'][0]:.3f} "
            f"| {min(parts['full']):.3f} | {min(parts['crops']):.3f} |"
        )
    size = (folder / "open_clip_model.safetensors").stat().st_size / 1e6
    text = _CARD.format(
        command=command, pairs=pairs, full=int(crops.full.sum()), cut=int((~crops.full).sum()), rows="\n".join(rows), size=size
    )
    partial = folder / "README.md.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "README.md")
    print("\n".join(rows), flush=True)
    return table


_CARD = """# Phantom CLIP

A small CLIP for rendered dermoscopy images (`semlens_audit.phantom.render`). It stands in for a foundation model
where an audit is proved on the phantom. It knows the phantom's concepts and no others: it is of no use on
photographs, and of none in the clinic.

- Loaded by open_clip: `open_clip.create_model_from_pretrained("local-dir:DIRECTORY")`.
- Image tower: ModifiedResNet, one block a stage, 64 x 64 pixels. Text tower: 2 layers, width 64, CLIP's tokenizer.
- Weights: half precision, {size:.1f} MB. Licence: Apache-2.0. Training data: rendered, none of it from patients.
- Trained on {pairs} crops with captions drawn anew in every epoch:

      {command}

  The renders are the same everywhere; the weights repeat up to the order of sums in the kernels.

## Measured

Area under the ROC curve of the cosine between an image and a probe (mean over five templates of the phrase's
embedding minus the empty prompt's), on lesions never trained on: {full} whole images, {cut} crops of 28 pixels
and more. "Least" is the worst of four phrasings of the concept. A crop that shows a concept only in part counts
neither for nor against it.

| concept | phrase | whole images | crops | least, whole | least, crops |
|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measure a model directory: ``python -m semlens_audit.phantom.evaluate_clip DIR``."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=1500)
    options = parser.parse_args()
    table = retrieval(options.folder, rendered(EVALUATION_SEEDS, options.scenes, 3, 2))
    for name, parts in table.items():
        values = "  ".join(f"{part} {values[0]:.3f} (least {min(values):.3f})" for part, values in parts.items())
        print(f"{name:18s} {values}")


if __name__ == "__main__":
    main()
