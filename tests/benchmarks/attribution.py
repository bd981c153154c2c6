"""Deletion and insertion curves of attributions of components: ``python -m tests.benchmarks.attribution [--write]``.

Prints Markdown tables; ``--write`` puts them into the README beside this file, and draws the curves into ``attribution.svg``. Compared are
this project's two attributions, integrated gradients, a lens, energy and random orders; see `tests.benchmarks.deletion`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semlens_audit.attribution import Method, relevance
from semlens_audit.attribution_choice import Choice, choose
from semlens_audit.components import capture
from semlens_audit.data import open_data
from semlens_audit.plan import AuditPlan
from semlens_audit.sae.training import bare
from semlens_audit.spec import read_plan
from semlens_audit.work import Bench
from tests.benchmarks import deletion
from tests.benchmarks.peer_world import test_data
from tests.benchmarks.versus import README, write_section

__all__ = ["METHODS", "Found", "attributed", "main", "measure", "table"]

ROOT = Path(__file__).resolve().parents[2]
OURS: dict[Method, str] = {"lrp": "LRP", "activation_x_gradient": "activation × gradient"}
METHODS = (*OURS.values(), "integrated gradients", "lens", "deviation × gradient", "energy", "random")
BASE = OURS["activation_x_gradient"]
REPLACEMENTS = ("zero", "mean")
SEEDS = 5
"""Random orders of each image; the areas are their mean."""
REFERENCES = 32
"""Images over which the lens takes the mean gradient."""
CHECKED = 8
"""Images by which ``attribution: auto`` chooses: as many, and the same, as in an audit; see `semlens_audit.attribution_pass`."""
SAME = 1e-3
"""Curves that are no farther apart, as a share of the largest logit, are the same: components of equal relevance may change places."""


@dataclass(frozen=True)
class World:
    """A model, its data, and which layers are measured.

    Parameters
    ----------
    name
        In tables.
    audit
        Relative to the checkout.
    layers
        From early to late.
    classes
        Whether there are enough images of a class to rank components for the class by other images than are measured on.
    """

    name: str
    audit: str
    layers: tuple[str, ...]
    classes: bool


WORLDS = (
    World("shortcut", "audits/phantom-shortcut.yaml", ("layer3", "layer4"), True),
    World("clean", "audits/phantom-clean.yaml", ("layer3", "layer4"), True),
    World("photographs", "audits/photographs.yaml", ("features.17", "features.18"), False),
)


@dataclass(frozen=True)
class Found:
    """The curves of one layer.

    Parameters
    ----------
    model, layer
        Which.
    components
        K.
    choice
        What ``attribution: auto`` chooses here.
    steps
        (S,) components switched.
    logit, probability
        (replacement, level) -> method -> (N, 2, S): deletion, insertion. The level is ``image`` or ``class``.
    """

    model: str
    layer: str
    components: int
    choice: Choice
    steps: np.ndarray
    logit: dict[tuple[str, str], dict[str, np.ndarray]]
    probability: dict[tuple[str, str], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Images:
    """Images of a data set, and what the network decides on each.

    Parameters
    ----------
    inputs
        (N, 3, S, S).
    classes
        (N,) the class of the largest logit.
    """

    inputs: torch.Tensor
    classes: np.ndarray


def drawn(bench: Bench, count: int, both: bool) -> tuple[Images, Images]:
    """`count` images to measure on and others, as many or what the lens needs; evenly over what they show, none in both."""
    rng = np.random.default_rng(0)
    labels = bench.data.labels
    ranks = np.empty(len(labels), dtype=np.int64)
    shuffled = rng.permutation(len(labels))
    for index in np.unique(labels):
        own = shuffled[labels[shuffled] == index]
        ranks[own] = np.arange(len(own))
    ordered = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    chosen = ordered[:count], ordered[count : count + (count if both else REFERENCES)]
    first, second = (_decided(bench, bench.images([int(one) for one in ids])) for ids in chosen)
    return first, second


def _decided(bench: Bench, inputs: torch.Tensor) -> Images:
    model = bench.subject.model  # loaded here, where what it consists of can have gradients
    with torch.inference_mode():
        return Images(inputs, torch.cat([model(part).argmax(dim=1) for part in inputs.split(32)]).numpy())


def attributed(
    bench: Bench, tail: deletion.Tail, images: Images, outputs: torch.Tensor, mean: torch.Tensor, lenses: dict[int, np.ndarray]
) -> dict[str, np.ndarray]:
    """Method -> (N, K) attribution of the class that is decided for on each image; without random."""
    found: dict[str, np.ndarray] = {}
    layer, decided = tail.layer, [int(index) for index in images.classes]
    for method, name in OURS.items():
        rows = [
            relevance(bench.subject, images.inputs[i : i + 1], [layer], [index], method)[0][layer][0, 0]
            for i, index in enumerate(decided)
        ]
        found[name] = np.stack(rows)
    plain, apart = outputs.numpy(), (outputs - mean).numpy()
    found["integrated gradients"] = np.stack(
        [deletion.integrated_gradients(tail, outputs[i : i + 1], index) for i, index in enumerate(decided)]
    )
    for name, values, weights in (
        ("lens", plain, [lenses[index] for index in decided]),
        ("deviation × gradient", apart, [tail.gradients(outputs[i : i + 1], index)[0] for i, index in enumerate(decided)]),
    ):
        found[name] = np.concatenate([deletion.read_out(values[i : i + 1], one) for i, one in enumerate(weights)])
    found["energy"] = deletion.energy(plain)
    return found


def orders(scores: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[list[str], list[np.ndarray]]:
    """Names and orders of components by scores (K,), and `SEEDS` random ones."""
    names, found = list(scores), [deletion.order(one) for one in scores.values()]
    components = len(found[0])
    return names + ["random"] * SEEDS, found + [rng.permutation(components) for _ in range(SEEDS)]


def outputs_of(bench: Bench, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """(N, K, ...) the layer's outputs."""
    parts = []
    for part in inputs.split(32):
        with torch.no_grad(), capture(bench.subject.model, [layer]) as seen:
            bench.subject.model(part)
        parts.append(seen[layer].float())
    return torch.cat(parts)


def measure(
    bench: Bench, model: str, layer: str, images: Images, others: Images, checked: torch.Tensor, *, classes: bool
) -> Found:
    """The curves of one layer.

    Parameters
    ----------
    bench
        The model and its data.
    model, layer
        Which.
    images
        On which curves are measured.
    others
        From which the lens and the orders for a class come.
    checked
        (B, 3, S, S) by which ``attribution: auto`` chooses.
    classes
        Whether orders for a class are measured.
    """
    outputs, before = (outputs_of(bench, layer, one.inputs) for one in (images, others))
    tail = deletion.Tail(bench.subject, layer, others.inputs[:4])
    wanted = np.union1d(images.classes, others.classes if classes else images.classes)
    lenses = {int(index): deletion.mean_gradient(tail, before[:REFERENCES], int(index)) for index in wanted}
    mean = torch.cat([outputs, before]).double().mean(dim=0).float()
    by_image = attributed(bench, tail, images, outputs, mean, lenses)
    by_class: dict[int, dict[str, np.ndarray]] = {}
    if classes:
        known = attributed(bench, tail, others, before, mean, lenses)
        by_class = {
            int(index): {name: rows[others.classes == index].mean(axis=0) for name, rows in known.items()} for index in wanted
        }
    steps = deletion.counts(outputs.shape[1])
    values = {"zero": torch.zeros_like(mean), "mean": mean}
    found: tuple[dict[tuple[str, str], dict[str, list[np.ndarray]]], ...] = ({}, {})
    for i, index in enumerate(images.classes.tolist()):
        levels = {"image": {name: rows[i] for name, rows in by_image.items()}} | ({"class": by_class[index]} if classes else {})
        ranked = {level: orders(scores, np.random.default_rng([1, i])) for level, scores in levels.items()}
        every = [one for _, listed in ranked.values() for one in listed]
        for how, replacement in values.items():
            curves = deletion.curves(
                bench.subject, layer, images.inputs[i : i + 1], outputs[i : i + 1], replacement, every, steps, index
            )
            for scores, kept in zip((curves.logit, curves.probability), found, strict=True):
                start = 0
                for level, (names, _) in ranked.items():
                    place = kept.setdefault((how, level), {name: [] for name in METHODS})
                    for name in METHODS:
                        mine = [start + row for row, one in enumerate(names) if one == name]
                        place[name].append(scores[mine].mean(axis=0))
                    start += len(names)
    logit, probability = (
        {key: {name: np.stack(rows) for name, rows in one.items()} for key, one in kept.items()} for kept in found
    )
    choice = choose(bench.subject.model, checked, [layer])[layer]
    return Found(model, layer, outputs.shape[1], choice, steps, logit, probability)


def measured(count: int, worlds: Sequence[World] = WORLDS) -> Iterator[Found]:
    """Curves of every layer of the worlds whose data are on this machine."""
    for world in worlds:
        if not world.classes and not (test_data() / "models").is_dir():
            print(f"  {world.name}: left out, the weights are not on this machine", file=sys.stderr, flush=True)
            continue
        plan: AuditPlan = bare(read_plan(ROOT / world.audit))
        bench = Bench(plan, open_data(plan))
        images, others = drawn(bench, count, world.classes)
        whole = len(bench.data.samples)
        checked = bench.images(range(0, whole, max(1, whole // CHECKED))[:CHECKED])
        for layer in world.layers:
            begun = time.monotonic()
            yield measure(bench, world.name, layer, images, others, checked, classes=world.classes)
            print(f"  {world.name} {layer}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _cell(value: float, apart: float, low: float, high: float, *, base: bool) -> str:
    if base:
        return _percent(value)
    bold = "**" if low > 0 or high < 0 else ""
    sign = "+" if apart > 0 else ""
    return f"{_percent(value)} ({bold}{sign}{_percent(apart)}{bold}; {_percent(low)} to {_percent(high)})"


def table(every: Sequence[Found], level: str) -> list[str]:
    """Areas under the logit's curves, and how far they are from those of activation × gradient."""
    lines = [
        "| model, layer | order by | deletion, zero | insertion, zero | deletion, mean | insertion, mean |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for found in every:
        if ("zero", level) not in found.logit:
            continue
        columns = []
        for how in REPLACEMENTS:
            scores = found.logit[how, level]
            full, empty = scores[BASE][:, 0, 0], scores[BASE][:, 0, -1]
            for way in (0, 1):
                under = {name: deletion.areas(one[:, way], found.steps) for name, one in scores.items()}
                columns.append(deletion.paired(under, full, empty, BASE))
        for names in alike(found, level):
            name = BASE if BASE in names else names[0]
            cells = [_cell(*column[name], base=name == BASE) for column in columns]
            lines.append(f"| {found.model} `{found.layer}` | {', '.join(names)} | {' | '.join(cells)} |")
    return lines


def alike(found: Found, level: str) -> list[list[str]]:
    """Methods in the order of `METHODS`, those together whose curves are the same on every image."""
    groups: list[list[str]] = []
    for name in METHODS:
        for group in groups:
            both = [(found.logit[how, level][name], found.logit[how, level][group[0]]) for how in REPLACEMENTS]
            if all(np.allclose(one, other, rtol=0, atol=SAME * np.abs(other).max()) for one, other in both):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def probabilities(every: Sequence[Found]) -> list[str]:
    """Mean probability of the class along the curves, in per cent."""
    ends = "nothing off, all off"
    lines = [
        f"| model, layer | {ends}: zero | {ends}: mean | order by | deletion, zero | insertion, zero | deletion, mean | insertion, mean |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for found in every:
        sides = [found.probability[how, "image"][BASE][:, 0] for how in REPLACEMENTS]
        said = [f"{_percent(one[:, 0].mean())}, {_percent(one[:, -1].mean())}" for one in sides]
        for names in alike(found, "image"):
            cells = [
                _percent(float(deletion.areas(found.probability[how, "image"][names[0]][:, way], found.steps).mean()))
                for how in REPLACEMENTS
                for way in (0, 1)
            ]
            lines.append(f"| {found.model} `{found.layer}` | {' | '.join(said)} | {', '.join(names)} | {' | '.join(cells)} |")
    return lines


def choices(every: Sequence[Found]) -> list[str]:
    """What ``attribution: auto`` chooses, and how many logits there are to lose."""
    lines = [
        "| model, layer | components | logit: nothing off, all at zero, all at their mean | `auto` | why |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for found in every:
        ends = [found.logit[how, "image"][BASE][:, 0] for how in REPLACEMENTS]
        said = ", ".join(f"{value:.2f}".replace("-", "−") for value in (ends[0][:, 0].mean(), *(one[:, -1].mean() for one in ends)))
        lines.append(
            f"| {found.model} `{found.layer}` | {found.components:,} | {said} | {OURS[found.choice.method]} | {found.choice.reason} |"
        )
    return lines


def section(every: Sequence[Found], count: int) -> list[str]:
    """What is written into the README."""
    return [
        f"Measured on {count} images of each model. Areas in per cent of the way from all off to nothing off; in brackets, how far",
        f"they are from those of {BASE}, with the interval of 95 %: bold where it excludes 0.",
        "", *choices(every),
        "", "One order for each image:", "", *table(every, "image"),
        "", "One order for a class, the mean over other images of it:", "", *table(every, "class"),
        "", "Mean probability of the class along the curves of each image's orders, in per cent:", "", *probabilities(every),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, where asked, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120, help="of each model")
    parser.add_argument("--write", action="store_true", help="into README.md and attribution.svg")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every = list(measured(asked.images))
    lines = section(every, asked.images)
    print("\n".join(lines))
    if asked.write:
        from tests.benchmarks.attribution_figure import draw

        README.with_name("attribution.svg").write_text(draw(every), encoding="utf-8")
        write_section("attribution", lines)


if __name__ == "__main__":
    main()
