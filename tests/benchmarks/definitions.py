"""Which definition of reference samples and crops tells the shortcut model from its clean twin, as a Markdown table.

The truth is known: the shortcut model relies on the ruler and on no other artefact, the clean twin on none. A definition is the
better, the more relevance it gives to the ruler in the first and the less to artefacts otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from semlens_audit.checks import quantities
from semlens_audit.data import open_data
from semlens_audit.index import build, load_evidence
from semlens_audit.measure import measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import ClassLayer
from semlens_audit.spec import read_plan
from semlens_audit.store import Store

ROOT = Path(__file__).resolve().parents[2]
SELECTIONS = (("relevance", "max"), ("activation", "max"), ("activation", "mean"))
THRESHOLDS = (0.01, 0.1, 0.3)
LAYERS = ("layer3", "layer4")


def _plan(name: str, samples: int, selection: str, pooling: str, threshold: float) -> AuditPlan:
    plan = read_plan(ROOT / "audits" / f"phantom-{name}.yaml")
    settings = plan.audit.measurement.model_copy(
        update={"selection": selection, "pooling": pooling, "crop_threshold": threshold}
    )
    data = plan.audit.data.model_copy(update={"samples": samples})
    audit = plan.audit.model_copy(update={"measurement": settings, "data": data, "layers": LAYERS})
    return plan.model_copy(update={"audit": audit})


def _places(store: Store, plan: AuditPlan) -> dict[str, ClassLayer]:
    data = open_data(plan, store.file_digest)
    build(plan, data, store)
    evidence = load_evidence(plan, data, store)
    if evidence is None:
        raise RuntimeError("the index is incomplete")
    return {place.layer: place for place in measure(plan, evidence, quantities(plan)).class_layers}


def _others(place: ClassLayer, role: str, but: str | None) -> float:
    spurious = {"ruler", "plaster", "hair", "pen_ink", "dark_corners", "red_skin", "colour_chart"}
    names = spurious if role == "spurious" else set(place.concepts) - spurious - {"plain_skin"}
    return sum(place.concepts[name].value or 0.0 for name in names if name != but)


def rows(samples: int, folder: Path) -> Iterator[str]:
    """One line per definition and layer."""
    for (selection, pooling), threshold in product(SELECTIONS, THRESHOLDS):
        found = {}
        for name in ("shortcut", "clean"):
            with Store.open(folder / f"{name}.duckdb") as store:
                found[name] = _places(store, _plan(name, samples, selection, pooling, threshold))
        label = selection if selection == "relevance" else f"activation, {pooling}"
        for layer in LAYERS:
            shortcut, clean = found["shortcut"][layer], found["clean"][layer]
            cells = [
                shortcut.concepts["ruler"].value or 0.0, _others(shortcut, "spurious", "ruler"),
                clean.concepts["ruler"].value or 0.0, _others(clean, "spurious", "ruler"), _others(clean, "valid", None),
            ]  # fmt: skip
            yield f"| {label} | {threshold:g} | {layer} | " + " | ".join(f"{100 * cell:.0f} %" for cell in cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500, help="rendered test images")
    samples = parser.parse_args().samples
    print(
        "| reference samples by | crop threshold | layer | shortcut: ruler | shortcut: other artefacts | clean: ruler |"
        " clean: other artefacts | clean: valid concepts |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(samples, Path(folder)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
