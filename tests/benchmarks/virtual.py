"""Whether made-up polysemantic units are recovered, and others left whole: ``python -m tests.benchmarks.virtual [AUDIT.yaml ...]``.

Prints a Markdown table. Units that are the sum of two known units of a layer, with different concepts, are appended to the layer (two
1 x 1 convolutions behind it): each of the two counts as far as it is above the level that it reaches on one image in ten, scaled to like
size, as a unit with a bias and a ReLU answers to either of two things. The network goes on with the original units. The layer with its sums
is indexed and split as any other. Everything is built into a temporary folder, or into ``--folder``, where it is kept and taken up again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from semlens_audit import index
from semlens_audit.atlas.opening import Atlas
from semlens_audit.components import capture, pool
from semlens_audit.data import DataSet, open_data
from semlens_audit.devices import on_device
from semlens_audit.execution import Execution
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.polysemanticity import polysemanticity
from semlens_audit.progress import LineProgress
from semlens_audit.proportions import clopper_pearson
from semlens_audit.scores import gram, unit
from semlens_audit.spec import read_plan
from semlens_audit.splitting.fit import Fit, Settings, bare, fit, judged
from semlens_audit.splitting.screen import as_json
from semlens_audit.virtual.splice import splice_virtual
from semlens_audit.work import Bench, LocalEngine

DEFAULT = ("audits/phantom-clean.yaml", "audits/phantom-shortcut.yaml")
DECLARED = (0.0, 0.2, 0.3)
"""Polysemanticities that are declared."""
SEEDS = (0, 1, 2)
MOST = 0.3
"""Below which a unit is known to stand for one thing where only crops tell."""
APART = 0.2
"""Most cosine of the centred concept embeddings of two units that are added up."""
TOP, REFERENCES, PURE, OFTEN, OFTEN_SEEN = 100, 30, 0.95, 6, 0.6
HEADER = (
    "| audit | layer | seed | declared polysemanticity | sums over it | sums split | purity of their top 100: mean, median "
    "| sums recovered: split, at least 95 % pure | known units left whole | all original units left whole |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)

NETWORK = '''"""A network with units that are sums of two others."""

from pathlib import Path

import torch

from semlens_audit.networks import build
from semlens_audit.plan import ModelSource
from semlens_audit.weights import load_weights

SOURCE, WEIGHTS, LAYER = {source!r}, {weights!r}, {layer!r}
PAIRS, LEVELS, SCALES, WIDTH = {pairs!r}, {levels!r}, {scales!r}, {width!r}


class Cut(torch.nn.Module):
    def forward(self, value):
        return value[:, :WIDTH]


class Mix(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.Conv2d(WIDTH, 2 * len(PAIRS), 1)
        self.relu = torch.nn.ReLU()
        self.sums = torch.nn.Conv2d(2 * len(PAIRS), len(PAIRS), 1, bias=False)
        with torch.no_grad():
            self.parts.weight.zero_()
            self.sums.weight.zero_()
            for row, pair in enumerate(PAIRS):
                for side in range(2):
                    self.parts.weight[2 * row + side, pair[side], 0, 0] = 1.0
                    self.parts.bias[2 * row + side] = -LEVELS[row][side]
                    self.sums.weight[row, 2 * row + side, 0, 0] = 1.0 / SCALES[row][side]

    def forward(self, value):
        return torch.cat([value, self.sums(self.relu(self.parts(value)))], dim=1)


def network():
    model = build(ModelSource.model_validate(SOURCE))
    load_weights(model, Path(WEIGHTS))
    above, _, own = LAYER.rpartition(".")
    parent = model.get_submodule(above) if above else model
    mixed = torch.nn.Sequential()
    mixed.add_module("layer", parent.get_submodule(own))
    mixed.add_module("mix", Mix())
    whole = torch.nn.Sequential()
    whole.add_module("mixed", mixed)
    whole.add_module("cut", Cut())
    parent.add_module(own, whole)
    return model
'''


@dataclass(frozen=True)
class Known:
    """What is known of a layer before sums are appended to it.

    Parameters
    ----------
    pairs
        (P, 2) units that are added up.
    levels
        (P, 2) what the pooled activation of either exceeds on one image in ten.
    scales
        (P, 2) how far either is above it on average, on the images on which it is highest.
    single
        Units that are known to stand for one thing. Where the data says what is in its images: those of whose top 30 images 95 % have one
        attribute in common, which no more than 60 % of all have. Elsewhere those of the clearer half that are not polysemantic.
    width
        K.
    drawn
        Seed -> (P,) bool: the pairs that it draws.
    """

    pairs: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    single: np.ndarray
    width: int
    drawn: dict[int, np.ndarray]


def prepared(file: Path, layer: str | None, folder: Path) -> AuditPlan:
    """The plan of an audit for one layer, whose reference samples are those that activate most; its store in `folder`."""
    plan = read_plan(file)
    layer = layer or plan.audit.layers[0]
    settings = plan.audit.measurement.model_copy(update={"selection": "activation"})
    update = {
        "layers": (layer,), "measurement": settings, "store": str(folder / "plain.duckdb"),
        "sensitivity": plan.audit.sensitivity.model_copy(update={"layers": ()}),
    }  # fmt: skip
    return plan.model_copy(update={"audit": plan.audit.model_copy(update=update)})


def pooled_activations(bench: Bench, layer: str) -> np.ndarray:
    """(N, K) largest activation of every unit on every image."""
    total, rows, parts = len(bench.data.samples), 32, list[np.ndarray]()
    for start in range(0, total, rows):
        images = on_device(bench.images(range(start, min(start + rows, total)), rows), bench.device)
        with torch.inference_mode(), capture(bench.subject.model, [layer]) as seen:
            bench.subject.model(images)
            parts.append(pool(seen[layer], "max")[: total - start].cpu().numpy())
    return np.concatenate(parts)


def known(plan: AuditPlan, most: int, seeds: Sequence[int]) -> Known:
    """Units that stand for one thing, and pairs of those that stand for different things."""
    layer = plan.audit.layers[0]
    data = open_data(plan)
    every = pooled_activations(Bench(plan, data, execution=Execution(device="cpu")), layer)
    if data.attributes:
        single, different = _told_by_data(data, every)
    else:
        index.build(plan, progress=LineProgress(sys.stderr), execution=Execution(device="cpu"))
        single, different = _told_by_crops(plan)
    return pairs_of(every, single, different, most, seeds)


def pairs_of(every: np.ndarray, single: np.ndarray, different: np.ndarray, most: int, seeds: Sequence[int]) -> Known:
    """Pairs of known units of different things, drawn with each seed; a pair that several draw is one.

    Parameters
    ----------
    every
        (N, K) activation of every unit on every image.
    single, different
        (n,) known units, and (n, n) whether two of them stand for different things.
    most
        Pairs for each seed.
    seeds
        Draw them.
    """
    pooled = every[:, single]
    levels = np.quantile(pooled, 0.9, axis=0)
    above = np.maximum(pooled - levels, 0.0)
    scales = np.sort(above, axis=0)[-REFERENCES:].mean(axis=0)
    above /= scales
    drawn = {seed: _drawn(above, different, most, np.random.default_rng(seed)) for seed in seeds}
    pairs = list(dict.fromkeys(pair for some in drawn.values() for pair in some))
    chosen = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    owned = {seed: np.array([pair in some for pair in pairs], dtype=bool) for seed, some in drawn.items()}
    return Known(single[chosen], levels[chosen], scales[chosen], single, every.shape[1], owned)


def _drawn(above: np.ndarray, different: np.ndarray, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    pairs, used = list[tuple[int, int]](), np.zeros(len(different), dtype=int)
    for place in rng.permutation(len(different) ** 2):
        one, other = divmod(int(place), len(different))
        apart = one < other and max(used[one], used[other]) < OFTEN and different[one, other]
        if apart and _either_or(above[:, one], above[:, other]):
            used[[one, other]] += 1
            pairs.append((one, other))
        if len(pairs) == most:
            break
    return pairs


def _told_by_data(data: DataSet, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known units, and (n, n) whether two of them are known for different attributes."""
    assert data.attributes is not None
    has = np.stack([column == 1 for column in data.attributes.values()], axis=1)
    common = has[np.argsort(-pooled, axis=0, kind="stable")[:REFERENCES]].mean(axis=0)
    common[:, has.mean(axis=0) > OFTEN_SEEN] = 0.0
    single = np.flatnonzero((common.max(axis=1) >= PURE) & (pooled.max(axis=0) > 0))
    named = common[single].argmax(axis=1)
    return single, named[:, None] != named


def _told_by_crops(plan: AuditPlan) -> tuple[np.ndarray, np.ndarray]:
    """The same as far as the foundation model tells."""
    layer = plan.audit.layers[0]
    with Atlas(plan) as atlas:
        source = atlas.layers[layer]
        present, embeddings = source.reference_ids >= 0, np.asarray(source.embeddings)
        several, count = polysemanticity(embeddings, present), present.sum(axis=1)
        clear = (gram(embeddings).sum(axis=(1, 2)) - count) / np.maximum(count * (count - 1), 1)
        alive = ~source.dead & (source.activations > 0).all(axis=1)
        single = np.flatnonzero(alive & (several <= MOST) & (clear >= np.median(clear[alive])))
        directions = unit(atlas.concept_embeddings(layer, "centred")[single].astype(np.float64))
    return single, directions @ directions.T <= APART


def _either_or(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether nearly all top samples of a sum are driven by one of its parts alone, and enough by either."""
    top = np.argsort(-(one + other), kind="stable")[:TOP]
    first, second = (int((a[top] >= 2 * b[top]).sum()) for a, b in ((one, other), (other, one)))
    return min(first, second) >= TOP // 5 and first + second >= 0.9 * TOP


def mixed(plan: AuditPlan, found: Known, folder: Path) -> AuditPlan:
    """The audit of the network with the sums."""
    source = plan.audit.subject.model
    assert source.weights is not None
    weights, layer = str(resolve(plan, source.weights)), plan.audit.layers[0]
    said = source.model_copy(update={"weights": None}).model_dump(mode="json")
    text = NETWORK.format(
        source=said, weights=weights, layer=layer, pairs=found.pairs.tolist(), levels=found.levels.tolist(),
        scales=found.scales.tolist(), width=found.width,
    )  # fmt: skip
    file = folder / "network.py"
    file.write_text(text)
    model = type(source)(source="code", name=f"{file}:network")
    subject = plan.audit.subject.model_copy(update={"model": model})
    update = {"subject": subject, "layers": (f"{layer}.mixed",), "store": str(folder / "mixed.duckdb")}
    return plan.model_copy(update={"audit": plan.audit.model_copy(update=update)})


def purities(bench: Bench, found: Fit, known: Known, layer: str) -> dict[int, float]:
    """Sum -> share of its top samples that its virtual neurons put with the unit that drove them, the better way round.

    What drove a sample is the unit that is farther above its level, scaled as in the sum. All sums whose circuits could be divided are
    spliced in, whether or not they would be kept.
    """
    sums = sorted(
        (one for one in found.looked if one.component >= known.width and one.centroids.any()), key=lambda one: one.component
    )
    model = bench.subject.model
    size = bench.plan.audit.subject.preprocessing.size
    splice_virtual(
        model, layer, torch.tensor([one.component for one in sums]), torch.from_numpy(np.stack([one.centroids for one in sums])), size
    )
    pooled = pooled_activations(bench, f"{layer}.virtual.units")
    result = {}
    for row, one in enumerate(sums):
        halves = pooled[:, found.components + 2 * row : found.components + 2 * row + 2]
        top = np.argsort(-halves.max(axis=1), kind="stable")[:TOP]
        pair = one.component - known.width
        drove = (pooled[top][:, known.pairs[pair]] - known.levels[pair]) / known.scales[pair]
        agree = float(((halves[top, 0] > 0) == (drove[:, 0] >= drove[:, 1])).mean())
        result[one.component] = max(agree, 1 - agree)
    return result


def share(hits: int, n: int) -> str:
    """``97 % (35 of 36; 86–100 %)``."""
    if not n:
        return "–"
    low, high = clopper_pearson(hits, n)
    return f"{100 * hits / n:.0f} % ({hits} of {n}; {100 * low:.0f}–{100 * high:.0f} %)"


def measured(file: Path, layer: str | None, most: int, seeds: Sequence[int], folder: Path) -> Iterator[str]:
    """Rows of the table for one audit."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = prepared(file, layer, folder)
    name, units = f"`{plan.audit.layers[0]}`", known(plan, most, seeds)
    if not len(units.pairs):
        yield f"| {plan.audit.audit} | {name} | no two of {len(units.single)} known units exclude each other | | | | | | | |"
        return
    yield from split_and_judged(plan.audit.audit, name, mixed(plan, units, folder), units, folder)


def split_and_judged(title: str, layer: str, plan: AuditPlan, known: Known, folder: Path) -> Iterator[str]:
    """Rows of the table for a layer with sums, which is indexed and split.

    What comes of components is computed once; p-values are adjusted over the original units and the sums of each seed apart.
    """
    progress, where, name = LineProgress(sys.stderr), Execution(device="cpu"), plan.audit.layers[0]
    index.build(plan, allow_code=True, progress=progress, execution=where)
    with Atlas(bare(plan, name)) as atlas:
        engine = LocalEngine(Bench(atlas.plan, atlas.data, allow_code=True, execution=where))
        found = fit(atlas, engine, Settings(name, polysemanticity=0.0, references=TOP, at_most=10_000), progress)
        purity = purities(engine.bench, found, known, name)
    for seed, drawn in known.drawn.items():
        sums, every = (known.width + np.flatnonzero(drawn)).tolist(), range(known.width)
        own = [one for one in found.looked if one.component < known.width or one.component in sums]
        pure = [purity[one] for one in sums if one in purity]
        for threshold in DECLARED:
            over = [one for one in own if one.polysemanticity > threshold]
            kept = {one.component for one in judged(over, replace(found.settings, polysemanticity=threshold)) if one.kept}
            recovered, many = sum(one in kept and purity[one] >= PURE for one in sums), {one.component for one in over}
            whole = (share(sum(one not in kept for one in some), len(some)) for some in (known.single.tolist(), every))
            yield (
                f"| {title} | {layer} | {seed} | {threshold:g} | {share(sum(one in many for one in sums), len(sums))} "
                f"| {share(sum(one in kept for one in sums), len(sums))} | {100 * np.mean(pure):.1f} %, {100 * np.median(pure):.1f} % "
                f"| {share(recovered, len(sums))} | {' | '.join(whole)} |"
            )
    (folder / "purity.json").write_text(json.dumps({str(one): value for one, value in purity.items()}, indent=1))
    rows = [row | {"purity": purity.get(row["component"])} for row in as_json(found, None)["looked"]]
    (folder / "looked.json").write_text(json.dumps(rows, indent=1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audits", nargs="*", default=DEFAULT, type=Path)
    parser.add_argument("--layer", help="of each audit; default: its first")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="each draws its own pairs; all sums are indexed together")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    print(HEADER)
    with tempfile.TemporaryDirectory() as temporary:
        for file in asked.audits:
            for line in measured(Path(file), asked.layer, asked.pairs, asked.seeds, (asked.folder or Path(temporary)) / Path(file).stem):
                print(line, flush=True)


if __name__ == "__main__":
    main()
