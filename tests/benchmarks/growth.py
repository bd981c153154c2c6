"""How time and memory of an index and of its measurement grow with images, components and classes.

A small network on small pictures, so that what grows is this project's own work. Each point is two processes: one that builds the index
from nothing, one that measures what the index holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks.agreement import slope
from tests.benchmarks.contenders import peak_memory

__all__ = ["BASE", "Point", "Size", "draw", "grow", "lay", "write_pictures"]

ROOT = Path(__file__).resolve().parents[2]
SIDE, MOST_CLASSES = 32, 16
NETWORK = '''
import torch
from torch import nn


def make(components, classes):
    """A narrow stem, the audited layer `wide`, and a linear head; random weights."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()))
    model.add_module("wide", nn.Sequential(nn.Conv2d(16, components, 3, stride=2, padding=1), nn.ReLU()))
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("head", nn.Linear(components, classes))
    return model
'''


@dataclass(frozen=True)
class Size:
    """How large an audit is."""

    images: int
    components: int
    classes: int


@dataclass(frozen=True)
class Point:
    """What an audit of one size cost.

    Parameters
    ----------
    size
        Of the audit.
    index, measure
        Wall-clock seconds, libraries loaded before.
    index_peak, measure_peak
        Peak resident memory of the process, bytes, libraries included.
    """

    size: Size
    index: float
    measure: float
    index_peak: int
    measure_peak: int


BASE = Size(1000, 64, 1)
AXES: dict[str, tuple[int, ...]] = {
    "images": (250, 1000, 4000, 10_000), "components": (64, 256, 1024, 2048), "classes": (1, 4, 16)
}  # fmt: skip
QUICK: dict[str, tuple[int, ...]] = {"images": (12, 24), "components": (4, 8), "classes": (1, 2)}


def write_pictures(folder: Path, count: int) -> None:
    """Small blotchy pictures, each named after its class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i % MOST_CLASSES:02d}_{i:06d}.png", compress_level=1)


def lay(folder: Path, size: Size) -> tuple[Path, Path]:
    """Write an audit of this size into `folder`, beside pictures and foundation model; returns the audit file and the spec."""
    tag = f"{size.images}-{size.components}-{size.classes}"
    (folder / "network.py").write_text(NETWORK)
    names = [f"class {i}" for i in range(MOST_CLASSES)]
    checked = [
        {
            "id": f"check-{i}", "kind": "concept_not_used", "class": names[i], "concepts": ["ruler"], "statement": "S.",
            "criterion": {"at_most": 0.2}, "rationale": "Any value between 0 and 1 costs the same to decide.",
        }
        for i in range(size.classes)
    ]  # fmt: skip
    spec = {
        "spec": "growth", "version": "1", "title": "Growth", "purpose": "Cost.",
        "classes": {name: {} for name in names[: size.classes]},
        "concepts": [
            {"id": name, "role": role, "descriptions": [f"a {name}", f"{name} marks"]}
            for name, role in (("ruler", "spurious"), ("hair", "spurious"), ("border", "valid"))
        ],
        "checks": checked,
    }  # fmt: skip
    audit = {
        "audit": "growth", "title": "Growth", "spec": f"spec-{tag}.yaml", "store": f"store-{tag}.duckdb", "reports": "reports",
        "layers": ["wide"],
        "subject": {
            "name": "network",
            "model": {
                "source": "code", "name": "network.py:make",
                "arguments": {"components": size.components, "classes": MOST_CLASSES},
            },
            "preprocessing": {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3}, "classes": names,
        },
        "data": {
            "source": "folder", "path": "pictures", "pattern": r"^(?P<class_index>\d+)_", "limit": size.images
        },
        "foundation_model": {"source": "open_clip", "name": "clip"},
        "measurement": {
            "reference_samples": 6, "crop_minimum": 8, "crop_threshold": 0.4, "minimum_spread": 0.0, "minimum_samples": 2,
            "intervention": "none",
        },
    }  # fmt: skip
    (folder / f"spec-{tag}.yaml").write_text(json.dumps(spec))
    (folder / f"audit-{tag}.yaml").write_text(json.dumps(audit))
    return folder / f"audit-{tag}.yaml", folder / f"spec-{tag}.yaml"


def work(audit: Path, what: str) -> dict[str, float]:
    """Build the index of `audit`, or measure it; seconds and peak memory."""
    import torch  # noqa: F401

    import semlens_audit._torchvision  # noqa: F401
    from semlens_audit import engine, index
    from semlens_audit.spec import read_plan

    import open_clip  # noqa: F401  # isort: skip

    plan = read_plan(audit)
    begun = time.perf_counter()
    if what == "index":
        index.build(plan, allow_code=True)
    else:
        engine.run(plan, command="growth", comparisons=False)
    return {"seconds": time.perf_counter() - begun, "peak": peak_memory()}


def _remote(audit: Path, what: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.growth", what, str(audit)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if child.returncode:
        raise SystemExit(f"{what} of {audit} ended with exit code {child.returncode}")
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def point(size: Size, folder: Path, do: Callable[[Path, str], dict[str, float]]) -> Point:
    """Cost of one size."""
    audit, _ = lay(folder, size)
    built, measured = do(audit, "index"), do(audit, "measure")
    return Point(size, built["seconds"], measured["seconds"], int(built["peak"]), int(measured["peak"]))


def grow(*, quick: bool = False, pictures: Path | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Measure along each axis from one base, draw ``growth.svg`` into `pictures`, and return a table and the points.

    `quick`: two small sizes along each axis, in this process.
    """
    from tests.benchmarks.peer_world import write_clip

    axes, base = (QUICK, Size(12, 4, 1)) if quick else (AXES, BASE)
    points: dict[Size, Point] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", max(axes["images"]))
        write_clip(folder / "clip", "tiny", 0)
        for axis, values in axes.items():
            for value in values:
                size = replace(base, **{axis: value})
                if size not in points:
                    print(f"  {size}", file=sys.stderr, flush=True)
                    points[size] = point(size, folder, work if quick else _remote)
    curves = {axis: [points[replace(base, **{axis: value})] for value in values] for axis, values in axes.items()}
    if pictures is not None:
        (pictures / "growth.svg").write_text(draw(curves), encoding="utf-8")
    return list(_table(curves)), [asdict(one) for one in points.values()]


def _table(curves: dict[str, list[Point]]) -> list[str]:
    lines = [
        "| grows | from, to | index, s | exponent | index, peak GB | measure, s | exponent | measure, peak GB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for axis, points in curves.items():
        sizes = [getattr(one.size, axis) for one in points]
        cells = [axis, ", ".join(f"{size:,}" for size in sizes)]
        for what in ("index", "measure"):
            seconds = [getattr(one, what) for one in points]
            cells.append(", ".join(f"{one:.1f}" for one in seconds))
            cells.append(f"{slope(sizes, seconds):.2f}")
            cells.append(", ".join(f"{getattr(one, f'{what}_peak') / 1e9:.2f}" for one in points))
        lines.append(f"| {' | '.join(cells)} |")
    by_images = {one.size.images: one.index_peak for one in curves["images"]}
    if {1000, 10_000} <= by_images.keys():
        more = by_images[10_000] / by_images[1000] - 1
        asked = "asked for: at most 10 %" + ("" if more <= 0.1 else ", **falls short**")
        lines += ["", f"Peak memory of the index of 10,000 pictures against 1,000: {100 * more:+.1f} % ({asked})."]
    return lines


def draw(curves: dict[str, list[Point]]) -> str:
    """The curves as SVG: seconds above, peak memory below, a column for each axis, both axes of each plot logarithmic."""
    import io

    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "growth", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999999", "xtick.color": "#555555", "ytick.color": "#555555",
        "text.color": "#222222", "axes.labelcolor": "#222222",
    })  # fmt: skip
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, panels = pyplot.subplots(2, len(curves), figsize=(3.1 * len(curves), 5.2), sharey="row", squeeze=False)
    for column, (axis, points) in enumerate(curves.items()):
        sizes = [getattr(one.size, axis) for one in points]
        for what, colour, place in (("index", "#0072b2", 0.93), ("measure", "#b35c00", 0.83)):
            seconds = [getattr(one, what) for one in points]
            memory = [getattr(one, f"{what}_peak") / 1e9 for one in points]
            for panel, values in zip(panels[:, column], (seconds, memory), strict=True):
                panel.loglog(sizes, values, marker="o", markersize=4, linewidth=1.4, color=colour)
                said = f"{what}: exponent {slope(sizes, values):.2f}"
                panel.text(0.04, place, said, transform=panel.transAxes, color=colour)
        for panel in panels[:, column]:
            panel.grid(visible=True, color="#e5e5e5", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.minorticks_off()
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory, GB")
    for panel in panels[:, 0]:
        low, high = panel.get_ylim()
        panel.set_ylim(low / 1.2, high * 2.2)  # room for the words
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Title": "Growth of cost with images, components and classes"})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do one part of a point and print what it cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("index", "measure"))
    parser.add_argument("audit", type=Path)
    asked = parser.parse_args(arguments)
    print(json.dumps(work(asked.audit, asked.what)))


if __name__ == "__main__":
    main()
