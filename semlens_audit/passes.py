"""The two passes over all samples: outputs with reference samples, and relevance of every component for every audited class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from semlens_audit.attribution import Method, describe, relevance
from semlens_audit.components import TopReferences, capture, pool
from semlens_audit.data import read_image
from semlens_audit.errors import ExecutionError
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.stages import audited_classes
from semlens_audit.store import Store
from semlens_audit.work import Bench, Engine, Work

__all__ = ["forward_pass", "relevance_pass"]


class _Stream(Protocol):
    """One stage that is fed batch by batch in sample order."""

    key: str
    done: int
    layer: str
    """Layer, or empty for the outputs."""

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        """Append the rows of a batch; returns the checkpoint to keep, if the stage has a state."""

    def close(self, store: Store) -> dict[str, Any]:
        """Append what only the whole stream tells; returns the stage's facts."""


@dataclass(frozen=True)
class _Step:
    """One batch: samples from `first` to `stop`, for the streams that stand at `first`."""

    first: int
    stop: int
    outputs: bool
    layers: tuple[str, ...]


def _inputs(bench: Bench, step: _Step, batch: int) -> torch.Tensor:
    """(batch, 3, S, S) network inputs; a short batch is filled up with its last row, so that a cut changes no result."""
    samples = bench.data.samples[step.first : step.stop]
    rows = [bench.subject.transform(read_image(bench.data.file(sample))) for sample in samples]
    return torch.stack(rows + rows[-1:] * (batch - len(rows)))


def _steps(streams: Sequence[_Stream], total: int, batch: int) -> list[_Step]:
    """Feed every stream from where it stands; streams that lag behind go first until they have caught up."""
    steps: list[_Step] = []
    at = {stream.key: stream.done for stream in streams}
    while start := [position for position in at.values() if position < total]:
        first = min(start)
        later = [position for position in at.values() if position > first]
        stop = min([first + batch, total, *later])
        active = [stream for stream in streams if at[stream.key] == first]
        at.update({stream.key: stop for stream in active})
        layers = tuple(stream.layer for stream in active if stream.layer)
        steps.append(_Step(first, stop, any(not stream.layer for stream in active), layers))
    return steps


def _run(
    store: Store, streams: Sequence[_Stream], engine: Engine, work: Work[_Step, Any, dict[str, Any]], batch: int,
    progress: Progress, title: str,
) -> None:  # fmt: skip
    """Compute what the streams lack, and write it batch by batch."""
    total = len(engine.bench.data.samples)
    by_layer = {stream.layer: stream for stream in streams}
    done = min((stream.done for stream in streams), default=total)
    with progress.stage(title, total, done) as advance:
        for step, computed in engine.run(work, _steps(streams, total, batch)):
            samples = np.arange(step.first, step.stop)
            with store.transaction():
                for layer in (*([""] if step.outputs else []), *step.layers):
                    stream = by_layer[layer]
                    store.advance(stream.key, step.stop, stream.write(store, samples, computed))
            advance(step.stop - step.first)
        with store.transaction():
            for stream in streams:
                store.finish(stream.key, stream.close(store))


@dataclass
class _Outputs:
    key: str
    done: int
    bench: Bench
    layer: str = ""

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        logits = computed["logits"]
        bad = ~np.isfinite(logits).all(axis=1)
        if bad.any():
            sample = int(samples[bad][0])
            raise ExecutionError(
                "not-finite",
                f"The model outputs NaN or infinities on {int(bad.sum())} samples, first sample {sample} "
                f"({self.bench.data.samples[sample].path}).",
                "Mend the model, or look at that image.",
            )
        store.append("output", stage=self.key, sample=samples, logits=logits)
        return None

    def close(self, store: Store) -> dict[str, Any]:
        return {
            "weights_sha256": self.bench.subject.sha256,
            "parameters": self.bench.subject.parameters,
            "architecture": self.bench.subject.architecture,
        }


@dataclass
class _References:
    key: str
    done: int
    layer: str
    m: int
    how: str
    top: TopReferences | None

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        values = computed["pooled"][self.layer]
        if self.top is None:
            self.top = TopReferences(values.shape[1], self.m, self.layer)
        self.top.update(samples, values)
        stream = io.BytesIO()
        np.savez(stream, **self.top.state())  # type: ignore[arg-type]
        return stream.getvalue()

    def close(self, store: Store) -> dict[str, Any]:
        if self.top is None:
            raise ExecutionError("no-samples", f"Layer {self.layer!r} has seen no sample.", "Give test data.")
        ids, values, dead = self.top.ids, self.top.values, self.top.dead
        # A component that is the same on every sample has no samples that speak for it, whatever a tie would name.
        constant = self.top.maximum == self.top.minimum
        component, rank = np.nonzero((ids >= 0) & ~(dead & constant)[:, None])
        store.append("component", stage=self.key, component=np.arange(len(ids)), dead=dead)
        store.append(
            "reference",
            stage=self.key,
            component=component,
            rank=rank,
            sample=ids[component, rank],
            activation=values[component, rank],
        )
        return {"components": len(ids), "dead": int(dead.sum())}


def _restored(checkpoint: bytes | None, layer: str) -> TopReferences | None:
    if checkpoint is None:
        return None
    with np.load(io.BytesIO(checkpoint), allow_pickle=False) as state:
        return TopReferences.restore(dict(state), layer)


@dataclass(frozen=True)
class _Forward:
    """Outputs, and every component's pooled activation."""

    batch: int
    pooling: Literal["max", "mean"]
    threads: int = 1
    ahead: int = 2

    def prepare(self, bench: Bench, step: _Step) -> torch.Tensor:
        return _inputs(bench, step, self.batch)

    def compute(self, bench: Bench, step: _Step, images: torch.Tensor) -> dict[str, Any]:
        count = step.stop - step.first
        with torch.inference_mode(), capture(bench.subject.model, step.layers) as seen:
            logits = bench.subject.model(images)
            pooled = {layer: pool(seen[layer], self.pooling)[:count].numpy() for layer in step.layers}
        return {"logits": logits.float()[:count].numpy(), "pooled": pooled}


def forward_pass(plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress) -> None:
    """Run the model once over all samples: outputs, and the reference samples of every component of every layer."""
    settings, total = plan.audit.measurement, len(engine.bench.data.samples)
    streams: list[_Stream] = []
    state = store.begin("outputs", inputs["outputs"], total)
    if not state.complete:
        streams.append(_Outputs(state.key, state.done, engine.bench))
    for layer in plan.audit.layers:
        name = f"references:{layer}"
        state = store.begin(name, inputs[name], total)
        if not state.complete:
            top = _restored(state.checkpoint, layer)
            streams.append(_References(state.key, state.done, layer, settings.reference_samples, settings.pooling, top))
    if streams:
        batch = min(settings.batch_size, total)
        _run(store, streams, engine, _Forward(batch, settings.pooling), batch, progress, "Outputs and reference samples")


@dataclass
class _Relevance:
    key: str
    done: int
    layer: str
    classes: tuple[int, ...]
    attribution: str

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        values, ratio = computed["relevance"][self.layer], computed["conservation"][self.layer]
        count, classes = len(samples), len(self.classes)
        values = values.reshape(count * classes, -1)
        if not np.isfinite(values).all():
            raise ExecutionError(
                "not-finite",
                f"The relevance in layer {self.layer!r} is NaN or infinite on some samples.",
                "Try `attribution: activation_x_gradient`, and check the model.",
            )
        ratio = ratio.reshape(-1).astype(np.float32)
        kept = [float(value) if np.isfinite(value) else None for value in ratio]
        store.append(
            "relevance",
            stage=self.key,
            sample=np.repeat(samples, classes),
            **{"class": np.tile(self.classes, count)},
            relevance=values.astype(np.float32),
            conservation=kept,
        )
        return None

    def close(self, store: Store) -> dict[str, Any]:
        return {"attribution": self.attribution}


@dataclass(frozen=True)
class _Attribute:
    """Every component's relevance for every audited class."""

    batch: int
    classes: tuple[int, ...]
    method: Method
    threads: int = 1
    ahead: int = 2

    def prepare(self, bench: Bench, step: _Step) -> torch.Tensor:
        return _inputs(bench, step, self.batch)

    def compute(self, bench: Bench, step: _Step, images: torch.Tensor) -> dict[str, Any]:
        count = step.stop - step.first
        values, ratios = relevance(bench.subject, images, step.layers, self.classes, self.method)
        return {
            "relevance": {layer: value[:count] for layer, value in values.items()},
            "conservation": {layer: ratio[:count] for layer, ratio in ratios.items()},
        }


def relevance_pass(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Attribute every audited class's logit to the components of every layer, on every sample."""
    settings, bench = plan.audit.measurement, engine.bench
    classes, total = audited_classes(plan), len(bench.data.samples)
    words = ""
    streams: list[_Stream] = []
    for layer in plan.audit.layers:
        name = f"relevance:{layer}"
        state = store.begin(name, inputs[name], total)
        if not state.complete:
            first = bench.subject.transform(read_image(bench.data.file(bench.data.samples[0])))[None]
            words = words or describe(bench.subject, first, settings.method)
            streams.append(_Relevance(state.key, state.done, layer, classes, words))
    if streams:
        batch = min(settings.batch_size, total)
        work = _Attribute(batch, classes, settings.method)
        _run(store, streams, engine, work, batch, progress, "Relevance of components")
