"""Train the phantom's small CLIP: ``python -m semlens_audit.phantom.train_clip --out DIR``.

Renders (crop, caption) pairs, trains a ModifiedResNet and a two-layer text transformer with the contrastive loss
of CLIP (Radford et al., ICML 2021, section 2.3), and writes a model directory that ``open_clip`` loads by
``local-dir:DIR``. Several captions of a batch are true of one crop, so the targets are all true pairs, as in
UniCL (Yang et al., CVPR 2022, equation 4), and pairs that are neither true nor false are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semlens_audit.phantom import captions
from semlens_audit.phantom.crops import IMAGE_SIZE, MEAN, STD, TRAINING_SEEDS, Crops, pixels, rendered

if TYPE_CHECKING:
    import torch

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS_CFG: dict[str, Any] = {
    "size": [IMAGE_SIZE, IMAGE_SIZE],
    "mode": "RGB",
    "mean": list(MEAN),
    "std": list(STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def contrastive_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Contrastive loss with every true pair as a target.

    Parameters
    ----------
    logits : (images, texts) float tensor
    truth : (images, texts) int8 tensor of captions.FALSE, TRUE, OPEN; open pairs are neither target nor negative

    Returns
    -------
    Scalar: the mean of -log softmax over the true pairs, first per row or column, then over those, both directions.
    """
    import torch

    positive = (truth == captions.TRUE).float()
    masked = logits.masked_fill(truth == captions.OPEN, -1e4)

    def one_way(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_likelihood = torch.log_softmax(scores, dim=1)
        return -(log_likelihood * targets).sum(1).div(targets.sum(1).clamp(min=1.0)).mean()

    return 0.5 * (one_way(masked, positive) + one_way(masked.t(), positive.t()))


def new_model() -> torch.nn.Module:
    """An untrained model of the architecture `MODEL_CFG`."""
    from semlens_audit import _torchvision  # noqa: F401  (open_clip imports torchvision)

    import open_clip  # isort: skip

    return open_clip.CLIP(**json.loads(json.dumps(MODEL_CFG)))


def train(crops: Crops, epochs: int, batch: int, rate: float, seed: int, threads: int = 2) -> torch.nn.Module:
    """Train a model on crops; captions are drawn anew in every epoch.

    Returns the model in evaluation mode. Deterministic for one `seed` up to the order of sums in the kernels.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    model = new_model().train()
    # Typed stubs of torch do not know the memory format of whole modules.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    from open_clip import get_tokenizer

    tokenizer = get_tokenizer("RN50", context_length=MODEL_CFG["text_cfg"]["context_length"])
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98)
    )
    count = len(crops.images)
    steps = epochs * (count // batch)
    done, started = 0, time.monotonic()
    for epoch in range(epochs):
        order = rng.permutation(count)
        losses = []
        for begin in range(0, count - batch + 1, batch):
            rows = order[begin : begin + batch]
            drawn = [captions.caption(crops.states[row], rng) for row in rows]
            texts, column = np.unique([text for text, _ in drawn], return_index=True)
            true = torch.from_numpy(captions.truth(crops.states[rows], [drawn[i][1] for i in column]))
            images = crops.images[rows]
            images = images[:, :, ::-1] if rng.random() < 0.5 else images
            images = images[:, ::-1] if rng.random() < 0.5 else images
            views = pixels(images).contiguous(memory_format=torch.channels_last)
            views = views * (1 + 0.08 * torch.randn(batch, 1, 1, 1)) + 0.08 * torch.randn(batch, 3, 1, 1)
            for group in optimiser.param_groups:
                warm = min(1.0, (done + 1) / 60)
                group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * done / steps))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                image_features = model.encode_image(views, normalize=True)  # type: ignore[operator]
                text_features = model.encode_text(tokenizer(list(texts)), normalize=True)  # type: ignore[operator]
            scale = model.logit_scale.exp().clamp(max=50.0)  # type: ignore[operator,union-attr]
            loss = contrastive_loss(scale * image_features.float() @ text_features.float().t(), true)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            done += 1
            losses.append(float(loss.detach()))
            if done % 10 == 0:
                spent = time.monotonic() - started
                print(f"step {done}/{steps}  loss {np.mean(losses[-10:]):.3f}  {spent:.0f} s", flush=True)
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}", flush=True)
    return model.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--scenes", type=int, default=15_000, help="rendered scenes, three crops each")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="for rendering")
    parser.add_argument("--threads", type=int, default=2, help="for training; 1 is faster on a machine that is busy")
    parser.add_argument("--evaluation-scenes", type=int, default=1500)
    options = parser.parse_args()
    from semlens_audit.phantom import evaluate_clip

    started = time.monotonic()
    crops = rendered(TRAINING_SEEDS + 100_000 * options.seed, options.scenes, 3, options.processes)
    print(f"rendered {len(crops.images)} crops in {time.monotonic() - started:.0f} s", flush=True)
    model = train(crops, options.epochs, options.batch, options.rate, options.seed, options.threads)
    command = (
        f"python -m semlens_audit.phantom.train_clip --out DIR --scenes {options.scenes} --epochs {options.epochs} "
        f"--batch {options.batch} --rate {options.rate:g} --seed {options.seed}"
    )
    save(model, options.out)
    evaluate_clip.write_card(options.out, command, options.evaluation_scenes, len(crops.images))


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the open_clip model directory: configuration and half-precision weights, each atomically."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    bad = [name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ArithmeticError(f"weights are not finite in half precision: {bad[0]}")
    partial = folder / "open_clip_model.safetensors.part"
    save_file(weights, str(partial))
    os.replace(partial, folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}, indent=2) + "\n"
    partial = folder / "open_clip_config.json.part"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / "open_clip_config.json")


if __name__ == "__main__":
    main()
