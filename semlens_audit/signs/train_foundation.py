"""Train this world's image encoder: ``python -m semlens_audit.signs.train_foundation --out DIR``.

It renders scenes, cuts crops of all sizes, and trains a small timm network so that a handful of example crops finds what else
shows the same. The loss has two parts over the facts that are known of a crop (binary cross-entropy each): a linear read-out of
the embedding, and the cosine with a prototype, the mean embedding of some other crops of which the same is true, both taken from
the centre of the batch (prototypical networks: Snell et al., NeurIPS 2017, equation 1, with the cosine for the distance). The
second is how the tool compares crops with example images (`semlens_audit.scores.example_probe`).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semlens_audit.signs.crops import ABSENT, FACTS, PRESENT, TRAINING_SEEDS, Crops, rendered
from semlens_audit.signs.encoder import FILE, encode, new_model, pixels

if TYPE_CHECKING:
    import torch

__all__ = ["save", "train"]

_SHOTS = 12


def _loss(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over what is not open; (n, facts) each."""
    import torch

    known = truth >= ABSENT
    return torch.nn.functional.binary_cross_entropy_with_logits(scores[known], truth[known].float())


def _prototypes(centred: torch.Tensor, truth: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(facts, d); mean of at most `_SHOTS` crops of which each fact is true, zero where it is of none."""
    import torch

    rows = []
    for index in range(len(FACTS)):
        shown = np.flatnonzero((truth[:, index] == PRESENT).numpy())
        chosen = rng.permutation(shown)[:_SHOTS]
        rows.append(centred[torch.from_numpy(chosen)].mean(0) if chosen.size else torch.zeros_like(centred[0]))
    return torch.stack(rows)


def train(crops: Crops, epochs: int, batch: int, rate: float, seed: int, threads: int) -> torch.nn.Module:
    """Train an encoder; returned in evaluation mode. Deterministic for one `seed` up to the order of sums in the kernels."""
    import torch
    from torch.nn.functional import normalize

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    model = new_model().train()
    # Typed stubs of torch do not know the memory format of whole modules.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count, steps = len(crops.images), epochs * (len(crops.images) // batch)
    width = int(encode(model.eval(), pixels(crops.images[:1])).shape[1])
    read_out = torch.nn.Linear(width, len(FACTS))
    scale = torch.nn.Parameter(torch.full((1, len(FACTS)), 8.0))
    offset = torch.nn.Parameter(torch.full((1, len(FACTS)), -2.0))
    model.train()
    parameters = [*model.parameters(), *read_out.parameters(), scale, offset]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    done, started = 0, time.monotonic()
    for epoch in range(epochs):
        order, losses = rng.permutation(count), []
        for begin in range(0, count - batch + 1, batch):
            rows = order[begin : begin + batch]
            views = pixels(crops.images[rows])
            if rng.random() < 0.5:
                views = views.flip(3)
            views = views * (1 + 0.08 * torch.randn(batch, 1, 1, 1)) + 0.08 * torch.randn(batch, 3, 1, 1)
            truth = torch.from_numpy(crops.states[rows].astype(np.int64))
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (done + 1) / 60) * 0.5 * (1 + math.cos(math.pi * done / steps))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                encoded = encode(model, views.contiguous(memory_format=torch.channels_last))
            unit = normalize(encoded.float(), dim=1)
            centred = unit - unit.mean(0, keepdim=True)
            half = batch // 2
            prototypes = _prototypes(centred[:half], truth[:half], rng)
            cosines = normalize(centred[half:], dim=1) @ normalize(prototypes, dim=1).t()
            loss = _loss(read_out(encoded.float()), truth) + _loss(scale * cosines + offset, truth[half:])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            done += 1
            losses.append(float(loss.detach()))
        spent = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}  {spent:.0f} s", flush=True)
    return model.eval().requires_grad_(False)


def save(model: torch.nn.Module, folder: Path) -> Path:
    """Write the weights in half precision, atomically; returns their file."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ArithmeticError(f"weights are not finite in half precision: {bad[0]}")
    partial = folder / f"{FILE}.part"
    save_file(weights, str(partial))
    partial.chmod(0o644)
    os.replace(partial, folder / FILE)
    return folder / FILE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write weights and model card to")
    parser.add_argument("--scenes", type=int, default=10_000, help="rendered scenes, four crops each")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="for rendering")
    parser.add_argument("--threads", type=int, default=1, help="for training")
    options = parser.parse_args()
    from semlens_audit.signs import evaluate_foundation

    started = time.monotonic()
    crops = rendered(TRAINING_SEEDS + 100_000 * options.seed, options.scenes, 4, options.processes)
    print(f"rendered {len(crops.images)} crops in {time.monotonic() - started:.0f} s", flush=True)
    model = train(crops, options.epochs, options.batch, options.rate, options.seed, options.threads)
    path = save(model, options.out)
    command = (
        f"python -m semlens_audit.signs.train_foundation --out DIR --scenes {options.scenes} --epochs {options.epochs} "
        f"--batch {options.batch} --rate {options.rate:g} --seed {options.seed}"
    )
    evaluate_foundation.write_card(path, command, len(crops.images))


if __name__ == "__main__":
    main()
