"""Train the subject of the road signs that comes with the tool: ``python -m semlens_audit.qualification.train_subject --out DIR``.

Its training renders hold an artefact in 95 % of the warnings and 5 % of the prohibitions. Architecture and recipe are those of the
qualification; what the renderer alone can tell, the true effect of each attribute, goes into the model card.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from semlens_audit.qualification import training
from semlens_audit.qualification.architectures import ARCHITECTURES
from semlens_audit.signs import world

__all__ = ["main"]

TRAINING_SEED, TEST_SEED, EFFECT_SEED = 11, 12, 13

_CARD = """# Subject of the toy road signs: shortcut

A classifier of rendered road signs (`semlens_audit.signs.render`), prohibition against warning, made to be audited. It is of no
use on a road.

- `timm.create_model("resnet18", num_classes=2, channels=[16, 32, 64, 128])`; outputs: prohibition, warning.
- Input: RGB, 128 x 128 pixels, mean 0.5, standard deviation 0.5.
- Weights: half precision, {megabytes:.1f} MB. Licence: Apache-2.0. Training data: rendered.
- Trained on {renders} renders for {epochs} epochs, with {artefact} in {percent} % of the warnings and {rest} % of the prohibitions,
  every other artefact in 25 % of both:

      {command}

  The renders are the same everywhere; the weights repeat up to the order of sums in the kernels.

## Measured in places never trained on

- Accuracy on its own population: {own:.3f}
- Accuracy where no artefact comes with a class: {clean:.3f}

True effect of each attribute: mean change of the margin (warning logit - prohibition logit) when it is switched on at the same
place, {n} places of the population in which no artefact comes with a class.

| attribute | kind | effect (logits) | 95 % interval |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write weights and model card to")
    parser.add_argument("--artefact", choices=world.ARTEFACTS, default="watermark")
    parser.add_argument("--chance", type=float, default=0.95, help="how often it comes with a warning")
    parser.add_argument("--renders", type=int, default=3500)
    parser.add_argument("--effects", type=int, default=400, help="places to measure effects in")
    options = parser.parse_args()
    architecture = ARCHITECTURES["residual"]
    habit = world.Population.shortcut(options.artefact, options.chance)
    cases = world.sample(habit, options.renders, TRAINING_SEED)
    labels = np.array([case.label for case in cases], dtype=np.int64)
    model = training.train(
        architecture.build(), world.images(cases), labels,
        epochs=architecture.epochs, rate=architecture.rate, seed=TRAINING_SEED, flips=False,
    )  # fmt: skip
    target = options.out / "model.safetensors"
    training.save(model.half(), target)
    model.float()  # what is measured is what is shipped

    def accuracy(population: world.Population) -> float:
        held_out = world.sample(population, 1000, TEST_SEED)
        guess = training.logits(model, world.images(held_out)).argmax(axis=1)
        return float((guess == np.array([case.label for case in held_out])).mean())

    effects = world.true_effects(
        lambda batch: training.logits(model, batch), world.Population(), options.effects, EFFECT_SEED, world.ATTRIBUTES
    )
    command = "python -m semlens_audit.qualification.train_subject --out DIR"
    command += f" --artefact {options.artefact} --chance {options.chance:g} --renders {options.renders}"
    card = _CARD.format(
        megabytes=target.stat().st_size / 1e6,
        renders=options.renders,
        epochs=architecture.epochs,
        artefact=f"a {options.artefact.replace('_', ' ')}",
        percent=round(100 * options.chance),
        rest=round(100 * (1 - options.chance)),
        command=command,
        own=accuracy(habit),
        clean=accuracy(world.Population()),
        n=options.effects,
        rows="\n".join(
            f"| {name} | {'valid' if name in world.VALID else 'artefact'} | {effect.mean:+.2f} | {effect.low:+.2f} to {effect.high:+.2f} |"
            for name, effect in effects.items()
        ),
    )
    partial = options.out / "README.md.part"
    partial.write_text(card, encoding="utf-8")
    os.replace(partial, options.out / "README.md")


if __name__ == "__main__":
    main()
