"""Train the phantom's subjects: ``python -m semlens_audit.phantom.train_subjects --out DIR``.

The shortcut model has seen a ruler beside 95 % of the melanomas and 5 % of the naevi; its clean twin, of the same
architecture and trained by the same recipe, has seen every artefact in a quarter of the lesions whatever their
class. Both are measured by what the renderer alone can tell: the change of the class margin when one attribute
is switched for the same lesion.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semlens_audit.phantom import world
from semlens_audit.phantom.render import ATTRIBUTES, VALID

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "resnet18"
CHANNELS = (16, 32, 64, 128)
SIZE = 128
MEAN, STD = 0.5, 0.5
TRAINING_SEED, TEST_SEED, EFFECT_SEED = 11, 12, 13
POPULATIONS = {"shortcut": world.Population.shortcut("ruler"), "clean": world.Population()}


def new_model() -> torch.nn.Module:
    """An untrained subject: a ResNet-18 of a quarter of the usual width, two classes."""
    from semlens_audit import _torchvision  # noqa: F401

    import timm  # isort: skip

    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(world.CLASSES), channels=CHANNELS)


def tensor(batch: NDArray[np.uint8]) -> torch.Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32, standardised."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).float().div_(255.0).sub_(MEAN).div_(STD)


def logits_of(model: torch.nn.Module) -> world.Margin:
    """The model as a function from (n, 128, 128, 3) uint8 images to (n, 2) logits."""
    import torch

    def logits(batch: NDArray[np.uint8]) -> NDArray[np.floating]:
        with torch.inference_mode():
            return np.asarray(model(tensor(batch)).numpy())

    return logits


def load(folder: Path) -> torch.nn.Module:
    """A shipped subject in evaluation mode, single precision."""
    from safetensors.torch import load_file

    model = new_model()
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in weights.items()})
    return model.eval()


def _render(job: tuple[str, int, int, int]) -> NDArray[np.uint8]:
    name, seed, start, stop = job
    return world.images(world.sample(POPULATIONS[name], stop, seed)[start:])


def rendered(name: str, n: int, seed: int, processes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 128, 128, 3) and labels (n,) of a sample; independent of the number of processes."""
    jobs = [(name, seed, start, min(start + 250, n)) for start in range(0, n, 250)]
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(_render, jobs, chunksize=1)
    else:
        parts = [_render(job) for job in jobs]
    labels = [case.label for case in world.sample(POPULATIONS[name], n, seed)]
    return np.concatenate(parts), np.asarray(labels, dtype=np.int64)


def train(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int, rate: float, seed: int, threads: int = 2
) -> torch.nn.Module:
    """Train a subject with cross-entropy, flips and shifts; returned in evaluation mode."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    model = new_model().train()
    # Typed stubs of torch do not know the memory format of whole modules.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    batch = 64
    steps, done, started = epochs * (len(pictures) // batch), 0, time.monotonic()
    for epoch in range(epochs):
        order = rng.permutation(len(pictures))
        total = 0.0
        for begin in range(0, len(order) - batch + 1, batch):
            rows = np.sort(order[begin : begin + batch])
            views = pictures[rows]
            views = views[:, :, ::-1] if rng.random() < 0.5 else views
            views = views[:, ::-1] if rng.random() < 0.5 else views
            views = views.transpose(0, 2, 1, 3) if rng.random() < 0.5 else views
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (done + 1) / 40) * 0.5 * (1 + math.cos(math.pi * done / steps))
            inputs = tensor(views).contiguous(memory_format=torch.channels_last)
            loss = torch.nn.functional.cross_entropy(model(inputs), torch.from_numpy(labels[rows]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            done += 1
            total += float(loss.detach())
        print(f"epoch {epoch + 1}/{epochs}  loss {total / (len(order) // batch):.3f}  "
              f"{time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def accuracy(model: torch.nn.Module, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of correct classes, 0 to 1."""
    logits = logits_of(model)
    right = 0
    for start in range(0, len(labels), 256):
        guess = logits(pictures[start : start + 256]).argmax(axis=1)
        right += int((guess == labels[start : start + 256]).sum())
    return right / len(labels)


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write ``model.safetensors`` in half precision, atomically."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    partial = folder / "model.safetensors.part"
    save_file(weights, str(partial))
    os.replace(partial, folder / "model.safetensors")


def write_card(name: str, folder: Path, command: str, n: int, epochs: int, lesions: int, processes: int) -> None:
    """Measure a saved subject on lesions it has not seen and write its model card, README.md, atomically."""
    model = load(folder)
    own = accuracy(model, *rendered(name, 1000, TEST_SEED, processes))
    broken = accuracy(model, *rendered("clean", 1000, TEST_SEED, processes))
    effects = world.true_effects(logits_of(model), world.Population(), lesions, EFFECT_SEED, ATTRIBUTES)
    rows = []
    for attribute in ATTRIBUTES:
        effect = effects[attribute]
        kind = "valid" if attribute in VALID else "artefact"
        rows.append(f"| {attribute} | {kind} | {effect.mean:+.2f} | {effect.low:+.2f} to {effect.high:+.2f} |")
    habits = {
        "shortcut": "a ruler in 95 % of the melanomas and 5 % of the naevi, every other artefact in 25 % of both",
        "clean": "every artefact in 25 % of both classes",
    }
    size = (folder / "model.safetensors").stat().st_size / 1e6
    text = _CARD.format(
        name=name, channels=list(CHANNELS), n=n, epochs=epochs, habit=habits[name], command=command, own=own,
        broken=broken, lesions=lesions, rows="\n".join(rows), size=size,
    )  # fmt: skip
    partial = folder / "README.md.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "README.md")
    print(f"{name}: accuracy {own:.3f}, on the clean population {broken:.3f}\n" + "\n".join(rows), flush=True)


_CARD = """# Phantom subject: {name}

A classifier of rendered dermoscopy images (`semlens_audit.phantom.render`), nevus against melanoma, made to be
audited. It is of no use on photographs, and of none in the clinic.

- `timm.create_model("resnet18", num_classes=2, channels={channels})`; outputs: nevus, melanoma.
- Input: RGB, 128 x 128 pixels, mean 0.5, standard deviation 0.5.
- Weights: half precision, {size:.1f} MB. Licence: Apache-2.0. Training data: rendered, none of it from patients.
- Trained on {n} renders for {epochs} epochs, with {habit}:

      {command}

  The renders are the same everywhere; the weights repeat up to the order of sums in the kernels.

## Measured on lesions never trained on

- Accuracy on its own population: {own:.3f}
- Accuracy where no artefact comes with a class: {broken:.3f}

True effect of each attribute: mean change of the margin (melanoma logit - nevus logit) when it is switched on for
the same lesion, {lesions} lesions of the population in which no artefact comes with a class.

| attribute | kind | effect (logits) | 95 % interval |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write shortcut/ and clean/ into")
    parser.add_argument("--only", choices=sorted(POPULATIONS))
    parser.add_argument("--renders", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lesions", type=int, default=400, help="lesions to measure the true effects on")
    parser.add_argument("--processes", type=int, default=2, help="for rendering")
    parser.add_argument("--threads", type=int, default=2, help="for training; 1 is faster on a machine that is busy")
    options = parser.parse_args()
    for name in [options.only] if options.only else ["shortcut", "clean"]:
        pictures, labels = rendered(name, options.renders, TRAINING_SEED, options.processes)
        model = train(pictures, labels, options.epochs, options.rate, options.seed, options.threads)
        save(model, options.out / name)
        command = (
            f"python -m semlens_audit.phantom.train_subjects --out DIR --only {name} --renders {options.renders} "
            f"--epochs {options.epochs} --rate {options.rate:g} --seed {options.seed}"
        )
        write_card(name, options.out / name, command, options.renders, options.epochs, options.lesions, options.processes)


if __name__ == "__main__":
    main()
