"""The two passes over all samples: outputs with reference samples, and relevance of every component for every audited class."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from semlens_audit.attribution import describe, relevance
from semlens_audit.components import TopReferences, capture, pool
from semlens_audit.data import DataSet, read_image
from semlens_audit.errors import ExecutionError
from semlens_audit.plan import AuditPlan
from semlens_audit.prefetch import prefetched
from semlens_audit.progress import Progress
from semlens_audit.stages import audited_classes
from semlens_audit.store import Store
from semlens_audit.subject import LoadedSubject

__all__ = ["forward_pass", "relevance_pass"]


class _Stream(Protocol):
    """One stage that is fed batch by batch in sample order."""

    key: str
    done: int

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        """Append the rows of a batch; returns the checkpoint to keep, if the stage has a state."""

    def close(self, store: Store) -> dict[str, Any]:
        """Append what only the whole stream tells; returns the stage's facts."""


def _run(
    store: Store,
    streams: Sequence[_Stream],
    subject: LoadedSubject,
    data: DataSet,
    batch: int,
    compute: Callable[[torch.Tensor, Sequence[_Stream]], dict[str, Any]],
    progress: Progress,
    title: str,
) -> None:
    """Feed every stream from where it stands; streams that lag behind go first until they have caught up."""
    total = len(data.samples)
    batch = min(batch, total)
    open_streams = [stream for stream in streams if stream.done < total]
    steps: list[tuple[int, int, list[_Stream]]] = []
    at = {id(stream): stream.done for stream in open_streams}
    while start := [position for position in at.values() if position < total]:
        first = min(start)
        later = [position for position in at.values() if position > first]
        stop = min([first + batch, total, *later])
        active = [stream for stream in open_streams if at[id(stream)] == first]
        at.update({id(stream): stop for stream in active})
        steps.append((first, stop, active))

    def prepare(step: tuple[int, int, list[_Stream]]) -> torch.Tensor:
        samples = data.samples[step[0] : step[1]]
        rows = [subject.transform(read_image(data.file(sample))) for sample in samples]
        # A short batch is filled up with its last row, so that results do not depend on where a run was cut.
        return torch.stack(rows + rows[-1:] * (batch - len(rows)))

    done = min((stream.done for stream in open_streams), default=total)
    with progress.stage(title, total, done) as advance:
        for (first, stop, active), images in prefetched(prepare, steps, workers=1, ahead=2):
            computed = compute(images, active)
            samples = np.arange(first, stop)
            with store.transaction():
                for stream in active:
                    store.advance(stream.key, stop, stream.write(store, samples, computed))
            advance(stop - first)
        with store.transaction():
            for stream in streams:
                store.finish(stream.key, stream.close(store))


@dataclass
class _Outputs:
    key: str
    done: int
    subject: LoadedSubject

    def write(self, store: Store, samples: np.ndarray, computed: dict[str, Any]) -> bytes | None:
        logits = computed["logits"][: len(samples)]
        bad = ~np.isfinite(logits).all(axis=1)
        if bad.any():
            sample = int(samples[bad][0])
            raise ExecutionError(
                "not-finite",
                f"The model outputs NaN or infinities on {int(bad.sum())} samples, first sample {sample} "
                f"({computed['paths'](sample)}).",
                "Mend the model, or look at that image.",
            )
        store.append("output", stage=self.key, sample=samples, logits=logits)
        return None

    def close(self, store: Store) -> dict[str, Any]:
        return {
            "weights_sha256": self.subject.sha256,
            "parameters": self.subject.parameters,
            "architecture": self.subject.architecture,
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
        values = computed["pooled"][self.layer][: len(samples)]
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


def forward_pass(
    plan: AuditPlan, data: DataSet, store: Store, subject: LoadedSubject, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Run the model once over all samples: outputs, and the reference samples of every component of every layer."""
    settings, total = plan.audit.measurement, len(data.samples)
    streams: list[_Stream] = []
    state = store.begin("outputs", inputs["outputs"], total)
    if not state.complete:
        streams.append(_Outputs(state.key, state.done, subject))
    for layer in plan.audit.layers:
        name = f"references:{layer}"
        state = store.begin(name, inputs[name], total)
        if not state.complete:
            top = _restored(state.checkpoint, layer)
            streams.append(_References(state.key, state.done, layer, settings.reference_samples, settings.pooling, top))
    if not streams:
        return

    def compute(images: torch.Tensor, active: Sequence[_Stream]) -> dict[str, Any]:
        layers = [stream.layer for stream in active if isinstance(stream, _References)]
        with torch.inference_mode(), capture(subject.model, layers) as seen:
            logits = subject.model(images)
            pooled = {layer: pool(seen[layer], settings.pooling).numpy() for layer in layers}
        return {"logits": logits.float().numpy(), "pooled": pooled, "paths": lambda sample: data.samples[sample].path}

    _run(store, streams, subject, data, settings.batch_size, compute, progress, "Outputs and reference samples")


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
        values = values[:count].reshape(count * classes, -1)
        if not np.isfinite(values).all():
            raise ExecutionError(
                "not-finite",
                f"The relevance in layer {self.layer!r} is NaN or infinite on some samples.",
                "Try `attribution: activation_x_gradient`, and check the model.",
            )
        ratio = ratio[:count].reshape(-1).astype(np.float32)
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


def _first(data: DataSet, subject: LoadedSubject) -> torch.Tensor:
    return subject.transform(read_image(data.file(data.samples[0])))[None]


def relevance_pass(
    plan: AuditPlan, data: DataSet, store: Store, subject: LoadedSubject, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Attribute every audited class's logit to the components of every layer, on every sample."""
    settings, total = plan.audit.measurement, len(data.samples)
    classes = audited_classes(plan)
    words = ""
    streams: list[_Stream] = []
    for layer in plan.audit.layers:
        name = f"relevance:{layer}"
        state = store.begin(name, inputs[name], total)
        if not state.complete:
            words = words or describe(subject, _first(data, subject), settings.attribution)
            streams.append(_Relevance(state.key, state.done, layer, classes, words))
    if not streams:
        return

    def compute(images: torch.Tensor, active: Sequence[_Stream]) -> dict[str, Any]:
        layers = [stream.layer for stream in active if isinstance(stream, _Relevance)]
        values, ratios = relevance(subject, images, layers, classes, settings.attribution)
        return {"relevance": values, "conservation": ratios}

    _run(store, streams, subject, data, settings.batch_size, compute, progress, "Relevance of components")
