"""The same as `tests.benchmarks.virtual` on photographs: ``python -m tests.benchmarks.virtual_photographs``.

Needs the photographs and weights that ``SEMLENS_AUDIT_TESTDATA`` names: one picture for each class of ImageNet. No unit of MobileNetV2's
last layer is known by them: of 1280, none has 95 % of its 30 top images in one of the groups of classes below, and two have of 20. Known
units are therefore made: ridge regressions of a group's pictures on the pooled last layer, each without another half of the group, of those
whose top images are of the group. They and their sums are a layer of their own, with a copy of the last layer in it, beside the network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from semlens_audit.components import capture, pool
from semlens_audit.data import DataSet, open_data
from semlens_audit.devices import on_device
from semlens_audit.execution import Execution
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.spec import read_plan
from semlens_audit.work import Bench
from tests.benchmarks.virtual import HEADER, PURE, REFERENCES, Known, pairs_of, split_and_judged

AUDIT, LAYER = Path("audits/photographs.yaml"), "features.18"
GROUPS = {
    "bird": [(7, 24), (80, 100), (127, 146)],
    "reptile or amphibian": [(25, 68)],
    "dog": [(151, 268)],
    "invertebrate": [(69, 79), (107, 126), (300, 329)],
    "other mammal": [(102, 106), (147, 150), (269, 299), (330, 388)],
    "food": [(924, 969)],
}
"""First and last index of classes of ImageNet."""
HALVES, RIDGE = 4, 3.0

NETWORK = '''"""A network with a layer beside it, of known units and sums of two."""

import copy
from pathlib import Path

import numpy as np
import torch

from semlens_audit.networks import build
from semlens_audit.plan import ModelSource
from semlens_audit.weights import load_weights

SOURCE, WEIGHTS, LAYER, ARRAYS = {source!r}, {weights!r}, {layer!r}, {arrays!r}


class Units(torch.nn.Module):
    def __init__(self, layer, arrays):
        super().__init__()
        self.layer = copy.deepcopy(layer)
        self.known = torch.nn.Linear(*arrays["weights"].shape[::-1])
        pairs = torch.from_numpy(arrays["pairs"])
        self.register_buffer("pairs", pairs)
        self.register_buffer("levels", torch.from_numpy(arrays["levels"]).float())
        self.register_buffer("scales", torch.from_numpy(arrays["scales"]).float())
        with torch.no_grad():
            self.known.weight.copy_(torch.from_numpy(arrays["weights"]))
            self.known.bias.copy_(torch.from_numpy(arrays["biases"]))

    def forward(self, value):
        known = self.known(self.layer(value).mean(dim=(2, 3)))
        above = torch.relu(known[:, self.pairs] - self.levels) / self.scales
        return torch.cat([known, above.sum(dim=2)], dim=1)


class Beside(torch.nn.Module):
    def __init__(self, layer, arrays):
        super().__init__()
        self.units = Units(layer, arrays)
        self.layer = layer

    def forward(self, value):
        nothing = 0.0 * self.units(value).sum(dim=1)
        return self.layer(value) + nothing[:, None, None, None]


def network():
    model = build(ModelSource.model_validate(SOURCE))
    load_weights(model, Path(WEIGHTS))
    above, _, own = LAYER.rpartition(".")
    parent = model.get_submodule(above)
    with np.load(ARRAYS) as arrays:
        setattr(parent, own, Beside(parent.get_submodule(own), dict(arrays)))
    return model
'''


def means(plan: AuditPlan, data: DataSet) -> np.ndarray:
    """(N, C) mean activation of every unit of the layer on every image."""
    bench, rows, parts = Bench(plan, data, execution=Execution(device="cpu")), 20, list[np.ndarray]()
    for start in range(0, len(data.samples), rows):
        count = min(rows, len(data.samples) - start)
        images = on_device(bench.images(range(start, start + count), rows), bench.device)
        with torch.inference_mode(), capture(bench.subject.model, [LAYER]) as seen:
            bench.subject.model(images)
            parts.append(pool(seen[LAYER], "mean")[:count].cpu().numpy())
    return np.concatenate(parts)


def fitted(values: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K, C) and biases (K,) of known units, and the group of each (K,)."""
    rng, weights, biases, groups = np.random.default_rng(seed), list[np.ndarray](), list[float](), list[int]()
    for group, ranges in enumerate(GROUPS.values()):
        has = np.any([(classes >= first) & (classes <= last) for first, last in ranges], axis=0)
        for _ in range(HALVES):
            half = rng.permutation(np.flatnonzero(has))[: int(has.sum()) // 2]
            target = np.zeros(len(values))
            target[half] = 1.0
            used = ~has | (target > 0)
            centre, rate = values[used].mean(axis=0), target[used].mean()
            inner = (values[used] - centre) @ (values[used] - centre).T
            ridge = RIDGE * np.trace(inner) / len(inner) * np.eye(len(inner))
            weight = (values[used] - centre).T @ np.linalg.solve(inner + ridge, target[used] - rate)
            top = np.argsort(-(values @ weight), kind="stable")[:REFERENCES]
            if has[top].mean() >= PURE:
                weights.append(weight)
                biases.append(float(rate - centre @ weight))
                groups.append(group)
    return np.stack(weights), np.array(biases), np.array(groups)


def beside(plan: AuditPlan, folder: Path, most: int, seed: int) -> tuple[AuditPlan, Known]:
    """The audit of the network with the layer beside it, and what is known of that."""
    data = open_data(plan)
    classes = np.array([int(Path(sample.path).name[:4]) for sample in data.samples])
    values = means(plan, data).astype(np.float64)
    weights, biases, groups = fitted(values, classes, seed)
    every = values @ weights.T + biases
    found = pairs_of(every, np.arange(len(weights)), groups[:, None] != groups, most, [seed])
    arrays = folder / "units.npz"
    np.savez(arrays, weights=weights, biases=biases, pairs=found.pairs, levels=found.levels, scales=found.scales)
    source = plan.audit.subject.model
    assert source.weights is not None
    said = source.model_copy(update={"weights": None}).model_dump(mode="json")
    file = folder / "network.py"
    file.write_text(NETWORK.format(source=said, weights=str(resolve(plan, source.weights)), layer=LAYER, arrays=str(arrays)))
    model = type(source)(source="code", name=f"{file}:network")
    audit = plan.audit
    update = {
        "subject": audit.subject.model_copy(update={"model": model}), "layers": (f"{LAYER}.units",), "store": str(folder / "beside.duckdb"),
        "measurement": audit.measurement.model_copy(update={"reference_samples": REFERENCES}),
        "sensitivity": audit.sensitivity.model_copy(update={"layers": ()}),
    }  # fmt: skip
    return plan.model_copy(update={"audit": audit.model_copy(update=update)}), found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        plan = read_plan(AUDIT)
        other, found = beside(plan, folder, asked.pairs, asked.seed)
        print(HEADER)
        for line in split_and_judged(plan.audit.audit, f"{len(found.single)} units of `{LAYER}`", other, found, folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
