"""How measuring grows: seconds and peak memory from a complete store to measurements, comparisons and influences.

``python -m tests.benchmarks.measure_scale --samples 2000 20000 --components 2048 --classes 2``: one line of JSON each, measured in
processes of their own. The stores hold made-up rows; what is measured of them means nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from semlens_audit import checks
from semlens_audit.data import DataSet, Sample
from semlens_audit.digest import digest
from semlens_audit.evidence import ConceptProbes, Evidence
from semlens_audit.flow import Flows
from semlens_audit.headroom import FirstReferences, slots
from semlens_audit.influence import influences
from semlens_audit.measure import measure
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.reading import StoredLayer, StoredRows
from semlens_audit.scenarios import measure_scenarios
from semlens_audit.scores import unit
from semlens_audit.store import Store

CONCEPTS = ("border", "veil", "ruler", "hair", "ink", "skin")
LAYER, DIMENSION, CROPS, BATCH = "layer", 512, 2000, 1000
KEYS = {f"{name}:{LAYER}": name for name in ("references", "crops", "relevance", "null")} | {"foundation": "pool"}
DATABASE = 256 << 20
"""Bytes that the database may hold in memory."""


def plan(classes: int, outputs: int) -> AuditPlan:
    """An audit of the first classes of a model: reliance, clarity and an effect of each."""

    def check(name: str, kind: str, criterion: dict[str, float], *concepts: str) -> dict[str, Any]:
        texts = {"statement": f"{name} holds.", "rationale": "Made up."}
        return {"id": name, "kind": kind, "class": name.split("-")[0], "criterion": criterion, "concepts": list(concepts), **texts}

    asked = []
    for number in range(classes):
        asked += [
            check(f"c{number}-spurious", "spurious_reliance", {"at_most": 0.5}),
            check(f"c{number}-unexplained", "unexplained_relevance", {"at_most": 0.9}),
            check(f"c{number}-clarity", "clarity", {"at_least": 0.0}),
            check(f"c{number}-effect", "behavioural_effect", {"at_most": 1.0}, "ruler"),
        ]
    roles = ("valid", "valid", "spurious", "spurious", "spurious", "neutral")
    concepts = [{"id": name, "role": role, "descriptions": [name]} for name, role in zip(CONCEPTS, roles, strict=True)]
    names = {f"c{number}": {} for number in range(classes)}
    top = {"spec": "scale", "version": "1", "title": "Scale", "purpose": "A benchmark."}
    spec = Spec.model_validate({**top, "classes": names, "concepts": concepts, "checks": asked})
    subject = {
        "name": "Made up",
        "model": {"source": "timm", "name": "resnet50"},
        "classes": [f"c{number}" for number in range(outputs)],
    }
    data = {"source": "folder", "path": "."}
    head = {"audit": "scale", "title": "Scale", "spec": "spec.yaml", "subject": subject, "layers": [LAYER], "data": data}
    audit = Audit.model_validate(head)
    return AuditPlan(
        spec=spec, audit=audit, spec_file="spec.yaml", audit_file="audit.yaml", spec_digest="0" * 64, audit_digest="1" * 64
    )


def labels_of(samples: int, classes: int) -> np.ndarray:
    """Half of the samples belong to no audited class."""
    return np.arange(samples, dtype=np.int64) % (2 * classes)


def write(path: Path, samples: int, components: int, classes: int, outputs: int) -> None:
    """A store with all rows that measuring reads."""
    rng, asked = np.random.default_rng(0), plan(classes, outputs)
    places = slots(asked.audit.measurement)
    with Store.open(path, memory_limit=DATABASE) as store:
        for start in range(0, samples, BATCH):
            rows = np.arange(start, min(start + BATCH, samples))
            n, side = len(rows), {"x0": 0, "y0": 0, "x1": 224, "y1": 224}
            store.append("output", stage="output", sample=rows, logits=rng.normal(size=(n, outputs)).astype(np.float32))
            views = unit(rng.normal(size=(n, DIMENSION)).astype(np.float32) + 1)
            views[rows % 3 == 0, :40] += 0.2
            store.append("region", pool="pool", sample=rows, **side, vector=unit(views).astype(np.float32))
            relevance = rng.standard_normal((n * classes, components), dtype=np.float32)
            of_class = {"class": np.tile(np.arange(classes), n)}
            ratio = np.ones(n * classes, dtype=np.float32)
            store.append(
                "relevance", stage="relevance", sample=np.repeat(rows, classes), **of_class, relevance=relevance, conservation=ratio
            )
        store.append("component", stage="references", component=np.arange(components), dead=np.zeros(components, dtype=bool))
        every = np.arange(components)
        for rank in range(places):
            sample, box = rng.integers(0, samples, components), {"x0": every, "y0": rank, "x1": 900, "y1": 900}
            rows = {"component": every, "rank": np.full(components, rank), "sample": sample}
            store.append("reference", stage="references", **rows, activation=np.full(components, float(places - rank)))
            store.append("crop", stage="crops", **rows, **box)
            vector = rng.normal(size=(components, DIMENSION)) + 1
            vector[every, every % 40] += 12
            store.append("region", pool="pool", sample=sample, **box, vector=unit(vector).astype(np.float32))
        drawn = np.arange(CROPS)
        box = {"x0": drawn, "y0": 0, "x1": 901, "y1": 901}
        sample = rng.integers(0, samples, CROPS)
        store.append("null_region", stage="null", position=drawn, sample=sample, **box)
        store.append("region", pool="pool", sample=sample, **box, vector=unit(rng.normal(size=(CROPS, DIMENSION)) + 1).astype(np.float32))
        store.begin("foundation", {"stage": "pool"}, 1)
        store.execute("UPDATE stage SET key = 'pool', facts = ?", (json.dumps({"dimension": DIMENSION}),))


def read(store: Store, samples: int, components: int, classes: int, outputs: int) -> tuple[AuditPlan, DataSet, Evidence]:
    """The store's evidence, read as `semlens_audit.reading.load_evidence` reads it."""
    asked, labels = plan(classes, outputs), labels_of(samples, classes)
    held = StoredLayer(store, LAYER, KEYS, tuple(range(classes)), slots(asked.audit.measurement))
    rng = np.random.default_rng(1)
    directions = np.zeros((len(CONCEPTS), 2, DIMENSION), dtype=np.float32)
    directions[np.arange(len(CONCEPTS)), :, np.arange(len(CONCEPTS))] = 1
    probes = {name: ConceptProbes(one[None], np.zeros((0, DIMENSION), np.float32)) for name, one in zip(CONCEPTS, directions, strict=True)}
    paths = tuple(f"{number:07d}.png" for number in range(samples))
    ruler = (rng.random(samples) < 0.3).astype(np.int8)
    whole = "pool = ? AND x0 = 0 AND y0 = 0 AND x1 = 224 AND y1 = 224"
    evidence = Evidence(
        classes=tuple(f"c{number}" for number in range(outputs)),
        audited=tuple(range(classes)),
        class_names=tuple(f"c{number}" for number in range(classes)),
        paths=paths,
        labels=labels,
        logits=StoredRows(store, "logits", "output", "stage = ?", ("output",), (samples, outputs)),
        image_embeddings=StoredRows(store, "vector", "region", whole, ("pool",), (samples, DIMENSION)),
        attributes={"ruler": ruler},
        probes=probes,
        empty_prompts=np.zeros((2, DIMENSION), np.float32),
        layers=(FirstReferences(held, asked.audit.measurement.reference_samples),),
        headroom=(held,),
    )
    made = tuple(Sample(number, path, digest(path), int(labels[number])) for number, path in enumerate(paths))
    return asked, DataSet(made, Path(), {"ruler": ruler}, "0" * 64), evidence


def measured(path: Path, size: tuple[int, int, int, int]) -> dict[str, float]:
    """Seconds of each part, and bytes of memory at most, of this process."""
    found: dict[str, float] = {"before": _peak()}
    with Store.open(path, memory_limit=DATABASE) as store:
        asked, data, evidence = read(store, *size)
        quantities, flows = checks.quantities(asked), Flows(asked, evidence)
        begun = time.perf_counter()
        values = measure(asked, evidence, quantities, flows=flows)
        found["measure"], begun = time.perf_counter() - begun, time.perf_counter()
        found["measure_peak"] = _peak()
        measure_scenarios(asked, evidence, quantities, values, flows=flows)
        found["scenarios"], begun = time.perf_counter() - begun, time.perf_counter()
        influences(asked, data, evidence, values, quantities, flows=flows)
        found["influences"] = time.perf_counter() - begun
    return found | {"peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def point(samples: int, components: int, classes: int, outputs: int, folder: Path) -> dict[str, float]:
    """What one size costs, in a process of its own; the store is written first and removed after."""
    size = (samples, components, classes, outputs)
    path = folder / f"{'-'.join(map(str, size))}.duckdb"
    arguments = [sys.executable, "-m", "tests.benchmarks.measure_scale", "--store", str(path), "--size", *map(str, size)]
    try:
        subprocess.run([*arguments, "--write"], check=True)
        held = path.stat().st_size
        out = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        path.unlink(missing_ok=True)
    found: dict[str, float] = json.loads(out)
    return {"samples": samples, "components": components, "classes": classes, "outputs": outputs, "store": held} | found


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--components", type=int, nargs="+", default=[2048])
    parser.add_argument("--classes", type=int, nargs="+", default=[2])
    parser.add_argument("--outputs", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.store:
        if asked.write:
            write(asked.store, *asked.size)
        else:
            print(json.dumps(measured(asked.store, tuple(asked.size))))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for samples in asked.samples:
            for components in asked.components:
                for classes in asked.classes:
                    found = point(samples, components, classes, asked.outputs, Path(folder))
                    print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
