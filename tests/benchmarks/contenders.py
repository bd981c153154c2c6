"""What is measured against each other: this project's passes, the peers' (`published`) and the networks alone, each as a process.

A contender loads once, then runs as often as it is asked, so that runs of different contenders can be interleaved; when it ends it tells
its peak memory and what it found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import numpy as np

from tests.benchmarks import peer_world

__all__ = ["CONTENDERS", "Clock", "Contender", "Cost", "Here", "PeerMissingError", "Remote", "Started"]

ROOT = Path(__file__).resolve().parents[2]
SETTLING = ("Arithmetic", "Foundation model")
"""Beginnings of the titles of stages that compare arithmetics, once for a store."""


class PeerMissingError(Exception):
    """A peer that is not installed, and how to install it."""


@dataclass(frozen=True)
class Cost:
    """What one run cost.

    Parameters
    ----------
    seconds
        Wall clock, by part of the run.
    processor
        Processor seconds of all threads, all parts together.
    items
        What each part was done to.
    """

    seconds: dict[str, float]
    processor: float
    items: dict[str, int]

    def each(self, part: str) -> float:
        """Seconds per item."""
        return self.seconds[part] / max(1, self.items[part])


class Contender(Protocol):
    """One way to do some stages."""

    def run(self, turn: int) -> Cost:
        """Do it once more; `turn` counts from 0."""
        ...

    @property
    def found(self) -> dict[str, np.ndarray]:
        """What has been found in all turns."""
        ...


@dataclass
class Clock:
    """A progress that keeps how long each stage took, by wall clock and of processor time, and how many items it finished."""

    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """See `semlens_audit.progress.Progress`."""

        def advance(count: int) -> None:
            self.items[name] = self.items.get(name, 0) + count

        begun, processor = time.perf_counter(), time.process_time()
        yield advance
        # a stage comes twice where some layers are computed in another arithmetic than others
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
        self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - processor

    def cost(self, parts: Mapping[str, Sequence[str]], items: Mapping[str, int]) -> Cost:
        """Cost of the stages of each part; what chooses the arithmetic is the part ``settle``, outside the processor time."""
        seconds = {part: sum(self.seconds.get(title, 0.0) for title in titles) for part, titles in parts.items()}
        seconds["settle"] = sum(value for title, value in self.seconds.items() if title.startswith(SETTLING))
        processor = sum(self.processor.get(title, 0.0) for titles in parts.values() for title in titles)
        return Cost(seconds, processor, {**items, "settle": 1})


class Stopwatch:
    """Adds up wall-clock seconds by part, and processor seconds over all."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._processor = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def cost(self, items: Mapping[str, int]) -> Cost:
        """What it came to."""
        return Cost(self.seconds, time.process_time() - self._processor, dict(items))


class _Ours:
    """This project's index, a part at a time."""

    part: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        from semlens_audit.data import open_data
        from semlens_audit.execution import Execution
        from semlens_audit.headroom import indexed
        from semlens_audit.work import Bench, LocalEngine

        self.setting, _, self.exact = peer_world.read(folder)
        whole = self.part == "found"
        layers = self.setting.layers if whole else (self.setting.layer,)
        images = self.setting.images if whole else self.setting.cropped
        self.plan = peer_world.plan(self.setting, folder, layers=layers, images=images)
        self.data = open_data(self.plan)
        self.indexed = indexed(self.plan)
        self.engine = LocalEngine(Bench(self.indexed, self.data, execution=Execution()))
        _ = self.engine.bench.subject
        self.found: dict[str, np.ndarray] = {}


class OurActivations(_Ours):
    """Decoding, forward pass, and the reference samples of all layers, written to a store."""

    part = "found"

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        from semlens_audit.digest import digest
        from semlens_audit.passes import forward_pass
        from semlens_audit.stages import stage_inputs
        from semlens_audit.store import Store

        self.engine.bench.__dict__.pop("views", None)  # every turn decodes
        inputs, clock, settled = stage_inputs(self.plan, self.data), Clock(), []
        with TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb") as store:
            forward_pass(self.indexed, store, self.engine, inputs, clock)
            for layer in self.setting.layers:
                state = store.stage(digest(inputs[f"references:{layer}"]))
                settled.append(str(state.facts.get("precision", "fp32")) if state else "")
                rows = store.arrays(
                    "SELECT component, rank, sample FROM reference WHERE stage = ?", (digest(inputs[f"references:{layer}"]),)
                )
                ids = np.full((rows["component"].max() + 1, self.setting.references), -1)
                ids[rows["component"], rows["rank"]] = rows["sample"]
                self.found[f"ids:{layer}"] = ids
        self.found["precision"] = np.array(", ".join(settled))
        return clock.cost({"activations": ["Outputs and reference samples"]}, {"activations": len(self.data.samples)})


class OurCrops(_Ours):
    """Boxes, thumbnails and embeddings of given reference samples, written to a store."""

    part = "cropped"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        _ = self.engine.bench.foundation

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        from semlens_audit import stages

        usual, stages.NULL_CROPS = stages.NULL_CROPS, 8  # random crops are no part of the published path
        try:
            return self._run()
        finally:
            stages.NULL_CROPS = usual

    def _run(self) -> Cost:
        from semlens_audit.crops import crop_pass
        from semlens_audit.digest import digest
        from semlens_audit.regions import embedding_pass, settle_precision
        from semlens_audit.stages import stage_inputs
        from semlens_audit.store import Store
        from semlens_audit.vectors import crop_vectors

        inputs, clock, layer = stage_inputs(self.plan, self.data), Clock(), self.setting.layer
        with TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb") as store:
            self._give_references(store, digest(inputs[f"references:{layer}"]))
            crop_pass(self.indexed, store, self.engine, inputs, clock)
            settle_precision(self.plan, self.data, store, self.engine.bench.foundation, inputs, clock)
            embedding_pass(self.indexed, store, self.engine, inputs, clock)
            crops, pool = digest(inputs[f"crops:{layer}"]), digest(inputs["foundation"])
            component, rank, vectors = crop_vectors(store, crops, pool)
            boxes = store.arrays("SELECT component, rank, x0, y0, x1, y1 FROM crop WHERE stage = ?", (crops,))
            facts = store.stage(pool)
        places = {int(name): place for place, name in enumerate(self.exact["components"])}
        shape = (len(places), self.setting.references)
        self.found |= {"boxes": np.zeros((*shape, 4), dtype=np.int64), "vectors": np.zeros((*shape, vectors.shape[1]))}
        at = np.array([places[int(name)] for name in boxes["component"]])
        self.found["boxes"][at, boxes["rank"]] = np.stack([boxes[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
        self.found["vectors"][np.array([places[int(name)] for name in component]), rank] = vectors
        self.found["precision"] = np.array(str(facts.facts["precision"]) if facts else "")
        # a crop that is the whole view is embedded as that: the views count as crops, though an audit needs them in any case
        stages = {"crop": [f"Crops, {layer}"], "embed": ["Embeddings, whole images", f"Embeddings, {layer}"]}
        self.found["distinct"] = np.array(sum(clock.items.get(title, 0) for title in stages["embed"]))
        count = int(np.prod(shape))
        return clock.cost(stages, {"crop": count, "embed": count})

    def _give_references(self, store: Any, key: str) -> None:
        ids = self.exact["ids"]
        place, rank = np.divmod(np.arange(ids.size), ids.shape[1])
        component = self.exact["components"][place]
        with store.transaction():
            store.append("component", stage=key, component=self.exact["components"], dead=np.zeros(len(ids), dtype=bool))
            store.append(
                "reference", stage=key, component=component, rank=rank, sample=ids.reshape(-1),
                activation=self.exact["values"].reshape(-1),
            )  # fmt: skip


class _Floor:
    """The networks' forward passes alone, channels_last, inputs decoded and in memory."""

    bfloat16: ClassVar[bool]

    def __init__(self, folder: Path) -> None:
        import torch

        from semlens_audit.foundation import BATCH, load_foundation

        setting, _, _ = peer_world.read(folder)
        self.model = peer_world.network(setting, folder).to(memory_format=torch.channels_last)
        plan = peer_world.plan(setting, folder, layers=setting.layers, images=setting.images)
        self.foundation = load_foundation(plan)
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        shape = (min(setting.batch, setting.images), 3, setting.size, setting.size)
        self.inputs = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        one = self.foundation.prepare(Image.new("RGB", (setting.size, setting.size), (90, 120, 30)))
        crops = torch.randn((BATCH, *one.shape), generator=generator)
        self.crops = crops.contiguous(memory_format=torch.channels_last)
        self.found: dict[str, np.ndarray] = {}

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        import torch

        watch = Stopwatch()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            with watch.part("forward"):
                self.model(self.inputs)
            with watch.part("encode"):
                self.foundation.encode(self.crops)
        return watch.cost({"forward": len(self.inputs), "encode": len(self.crops)})


class FloorSingle(_Floor):
    """In single precision."""

    bfloat16 = False


class FloorHalf(_Floor):
    """Under bfloat16 autocast."""

    bfloat16 = True


class Decoding:
    """Reading, decoding and preparing the pictures, without any network; loads no torch."""

    def __init__(self, folder: Path) -> None:
        setting, files, _ = peer_world.read(folder)
        self.files = files["found"][: 2 * setting.batch]
        self.preprocessing = peer_world.plan(setting, folder, layers=setting.layers, images=2).audit.subject.preprocessing
        self.found: dict[str, np.ndarray] = {}

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        from semlens_audit.images import read_image
        from semlens_audit.subject import make_view

        watch = Stopwatch()
        with watch.part("decode"):
            for file in self.files:
                make_view(read_image(Path(file)), self.preprocessing)
        return watch.cost({"decode": len(self.files)})


CONTENDERS = {
    "ours-activations": "tests.benchmarks.contenders:OurActivations",
    "ours-crops": "tests.benchmarks.contenders:OurCrops",
    "semanticlens": "tests.benchmarks.published:SemanticLensActivations",
    "zennit-crp": "tests.benchmarks.published:ConditionalCrops",
    "floor-fp32": "tests.benchmarks.contenders:FloorSingle",
    "floor-bf16": "tests.benchmarks.contenders:FloorHalf",
    "decoding": "tests.benchmarks.contenders:Decoding",
}
"""Name -> where it is defined."""


def _make(name: str, folder: Path) -> Contender:
    module, _, kind = CONTENDERS[name].partition(":")
    contender: Contender = getattr(importlib.import_module(module), kind)(folder)
    return contender


class Started(Protocol):
    """A contender that has loaded."""

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        ...

    def end(self) -> tuple[int | None, dict[str, np.ndarray]]:
        """Peak resident memory in bytes, where it is its own, and what was found."""
        ...


class Here:
    """A contender in this process; its memory cannot be told from that of others."""

    def __init__(self, name: str, folder: Path) -> None:
        self._contender = _make(name, folder)

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        return self._contender.run(turn)

    def end(self) -> tuple[int | None, dict[str, np.ndarray]]:
        """See `Started.end`."""
        return None, self._contender.found


class Remote:
    """A contender in a process of its own.

    Raises
    ------
    PeerMissingError
        It needs a package that is not installed.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        command = [sys.executable, "-m", "tests.benchmarks.contenders", name, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        ready = self._read()
        if "missing" in ready:
            self._close()
            raise PeerMissingError(ready["missing"])

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._read()

    def run(self, turn: int) -> Cost:
        """See `Contender.run`."""
        return Cost(**self._ask(str(turn)))

    def end(self) -> tuple[int | None, dict[str, np.ndarray]]:
        """See `Started.end`."""
        answer = self._ask("end")
        self._close()
        with np.load(answer["found"]) as found:
            return int(answer["peak"]), dict(found)


def peak_memory() -> int:
    """Largest resident set size of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins, on Linux, with the size of the process that started this one
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def main() -> None:
    """Answer on standard output, a line for each line of standard input; whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(CONTENDERS))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        contender = _make(asked.name, asked.folder)
    except PeerMissingError as missing:
        answer({"missing": str(missing)})
        return
    answer({"ready": True})
    for line in sys.stdin:
        if line.strip() != "end":
            answer(vars(contender.run(int(line))))
            continue
        found = asked.folder / f"{asked.name}.npz"
        np.savez(found, **contender.found)  # type: ignore[arg-type]
        answer({"peak": peak_memory(), "found": str(found)})
        return


if __name__ == "__main__":
    # classes of this module are imported by name: they must be those of the imported module, not of __main__
    from tests.benchmarks.contenders import main as _main

    _main()
