"""The two passes over all samples: outputs with reference samples, and relevance of every component for every audited class."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch

from semlens_audit.attribution import Method, describe, relevance
from semlens_audit.components import TopReferences
from semlens_audit.devices import describe as describe_device
from semlens_audit.devices import has_bfloat16, on_device, require_same
from semlens_audit.errors import ExecutionError
from semlens_audit.plan import AuditPlan
from semlens_audit.precision import CHECKED, FEWEST, Arithmetic, settle
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress
from semlens_audit.stages import audited_classes
from semlens_audit.store import StageState, Store
from semlens_audit.threads import Threaded, threads_of
from semlens_audit.work import Bench, Engine, Work

__all__ = ["forward_pass", "relevance_pass"]


class _Stream(Protocol):
    """One stage that is fed batch by batch in sample order."""

    key: str
    done: int
    layer: str
    """Layer, or empty for the outputs."""

    def write(self, store: Store, samples: np.ndarray, computed: list[dict[str, Any]]) -> bytes | None:
        """Append the rows of some batches; returns the checkpoint to keep, if the stage has a state."""

    def close(self, store: Store) -> dict[str, Any]:
        """Append what only the whole stream tells; returns the stage's facts."""


@dataclass(frozen=True)
class _Step:
    """One batch: samples from `first` to `stop`, for the streams that stand at `first`."""

    first: int
    stop: int
    outputs: bool
    layers: tuple[str, ...]


_SECONDS = 10.0
"""Time that results wait to be written together: state and rows of a stage go into the store once, not with every batch."""


def _inputs(bench: Bench, step: _Step, batch: int) -> torch.Tensor:
    """(batch, 3, S, S) network inputs; a short batch is filled up with its last row, so that a cut changes no result."""
    return bench.images(range(step.first, step.stop), batch)


def _ahead(bench: Bench, batch: int) -> int:
    """Batches of inputs prepared ahead."""
    return bench.ahead(batch * 15 * bench.plan.audit.subject.preprocessing.size ** 2)  # 8-bit views and their single precision


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
    """Compute what the streams lack, and write it some seconds at a time; what was computed by an error or Ctrl-C is written too."""
    total = len(engine.bench.data.samples)
    done = min((stream.done for stream in streams), default=total)
    waiting = _Waiting(store, streams, engine.bench.allowance.waiting)
    with progress.stage(title, total, done) as advance:
        try:
            for step, computed in engine.run(work, _steps(streams, total, batch)):
                waiting.add(step, computed)
                advance(step.stop - step.first)
        finally:
            waiting.write()
        with store.transaction():
            for stream in streams:
                store.finish(stream.key, stream.close(store))


@dataclass
class _Waiting:
    """Results that wait to be written in one transaction, for `_SECONDS` or until they take `most` bytes."""

    store: Store
    streams: Sequence[_Stream]
    most: int
    found: list[tuple[_Step, dict[str, Any]]] = field(default_factory=list)
    size: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, step: _Step, computed: dict[str, Any]) -> None:
        self.found.append((step, computed))
        self.size += _size(computed)
        if self.size >= self.most or time.monotonic() - self.since >= _SECONDS:
            self.write()

    def write(self) -> None:
        # Taken out first: a stream that has seen a batch must not see it again, whatever becomes of the transaction.
        found, self.found, self.size = self.found, [], 0
        if found:
            with self.store.transaction():
                for stream in self.streams:
                    parts = [(step, one) for step, one in found if (stream.layer in step.layers if stream.layer else step.outputs)]
                    if parts:
                        samples = np.concatenate([np.arange(step.first, step.stop) for step, _ in parts])
                        checkpoint = stream.write(self.store, samples, [one for _, one in parts])
                        self.store.advance(stream.key, parts[-1][0].stop, checkpoint)
        self.since = time.monotonic()


def _size(computed: Any) -> int:
    """Bytes of all arrays in nested dictionaries."""
    return sum(map(_size, computed.values())) if isinstance(computed, dict) else int(computed.nbytes)


@dataclass
class _Outputs:
    key: str
    done: int
    bench: Bench
    facts: dict[str, Any]
    layer: str = ""

    def write(self, store: Store, samples: np.ndarray, computed: list[dict[str, Any]]) -> bytes | None:
        logits = np.concatenate([one["logits"] for one in computed])
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
            **self.facts,
        }


@dataclass
class _References:
    key: str
    done: int
    layer: str
    m: int
    how: str
    top: TopReferences | None
    facts: dict[str, Any]

    def write(self, store: Store, samples: np.ndarray, computed: list[dict[str, Any]]) -> bytes | None:
        batches, first = [one["pooled"][self.layer] for one in computed], 0
        if self.top is None:
            self.top = TopReferences(batches[0].shape[1], self.m, self.layer)
        for values in batches:  # one at a time: what merging takes grows with the rows that are merged
            self.top.update(samples[first : first + len(values)], values)
            first += len(values)
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
        return {"components": len(ids), "dead": int(dead.sum()), **self.facts}


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
    arithmetic: Arithmetic
    threads: int
    ahead: int

    def prepare(self, bench: Bench, step: _Step) -> torch.Tensor:
        return _inputs(bench, step, self.batch)

    def compute(self, bench: Bench, step: _Step, images: torch.Tensor) -> dict[str, Any]:
        count = step.stop - step.first
        logits, pooled = bench.networks.run(self.arithmetic, on_device(images, bench.device), step.layers, self.pooling)
        return {"logits": logits[:count], "pooled": {layer: values[:count] for layer, values in pooled.items()}}


def forward_pass(plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress) -> None:
    """Run the model once over all samples: outputs, and the reference samples of every component of every layer.

    Outputs and layers are computed in the arithmetic that each of them was settled on, see `semlens_audit.precision`; those that come to
    the same one share their passes.
    """
    settings, bench = plan.audit.measurement, engine.bench
    states = _begun(plan, store, bench, inputs, {"": "outputs", **{layer: f"references:{layer}" for layer in plan.audit.layers}})
    if not states:
        return
    batch = _batch(plan, bench)
    settled = _settled(plan, store, bench, states, batch, progress)
    streams: dict[tuple[Arithmetic, int | None], list[_Stream]] = {}
    for layer, state in states.items():
        if state.complete:
            continue
        facts = settled[layer]
        stream: _Stream = _Outputs(state.key, state.done, bench, facts)
        if layer:
            top = _restored(state.checkpoint, layer)
            stream = _References(state.key, state.done, layer, settings.reference_samples, settings.pooling, top, facts)
        streams.setdefault((Arithmetic.of(facts), facts.get("threads")), []).append(stream)
    for (arithmetic, threads), some in streams.items():
        work = Threaded(_Forward(batch, settings.pooling, arithmetic, cores(), _ahead(bench, batch)), threads)
        _run(store, some, engine, work, batch, progress, "Outputs and reference samples")


def _begun(
    plan: AuditPlan, store: Store, bench: Bench, inputs: dict[str, dict[str, Any]], names: dict[str, str]
) -> dict[str, StageState]:
    """Layer (empty: the outputs) -> its stage, begun or to be gone on with on this device; none if all are complete."""
    states = {layer: store.begin(name, inputs[name], len(bench.data.samples)) for layer, name in names.items()}
    open_ = [state for state in states.values() if not state.complete]
    for state in open_:
        require_same(state, describe_device(bench.device))
    return states if open_ else {}


def _batch(plan: AuditPlan, bench: Bench) -> int:
    """Samples that are computed together."""
    return min(plan.audit.measurement.batch_size, len(bench.data.samples))


def _where(state: StageState, bench: Bench) -> dict[str, Any]:
    """Facts of a stage about who computes it: device, and threads of a CPU."""
    return {"device": describe_device(bench.device), **threads_of(state, bench)}


def _settled(
    plan: AuditPlan, store: Store, bench: Bench, states: dict[str, StageState], batch: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Layer (empty: the outputs) -> arithmetic, device and agreement of its stage, settled before its first row and kept ever after."""
    total = len(bench.data.samples)
    facts = {layer: dict(state.facts) for layer, state in states.items() if "precision" in state.facts or state.complete}
    open_ = [layer for layer in states if layer not in facts]
    if open_ and total < FEWEST:
        facts.update({layer: {**Arithmetic().facts(), **_where(states[layer], bench)} for layer in open_})
    elif open_:
        chosen = np.arange(total)[:: max(1, total // CHECKED)][:CHECKED]
        parts = [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
        with progress.stage("Arithmetic", 1) as advance:
            limit, layers, agreement = settle(
                bench.networks,
                [(on_device(bench.images(part.tolist(), batch), bench.device), len(part)) for part in parts],
                [layer for layer in open_ if layer],
                plan.audit.measurement.pooling,
                outputs=Arithmetic.of(facts[""]) if "" in facts else None,
                native=has_bfloat16(bench.device),
            )
            advance(1)
        for layer in open_:
            arithmetic = layers[layer] if layer else limit
            reached = {name: round(value, 6) for name, value in agreement.get(layer or "outputs", {}).items() if np.isfinite(value)}
            agreed = {"bf16_agreement": reached} if reached else {}
            facts[layer] = {**arithmetic.facts(), **_where(states[layer], bench), **agreed}
    with store.transaction():
        for layer in open_:
            store.note(states[layer].key, facts[layer])
    return facts


@dataclass
class _Relevance:
    key: str
    done: int
    layer: str
    classes: tuple[int, ...]
    attribution: str
    facts: dict[str, Any]

    def write(self, store: Store, samples: np.ndarray, computed: list[dict[str, Any]]) -> bytes | None:
        values = np.concatenate([one["relevance"][self.layer] for one in computed])
        ratio = np.concatenate([one["conservation"][self.layer] for one in computed])
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
        return {"attribution": self.attribution, **self.facts}


@dataclass(frozen=True)
class _Attribute:
    """Every component's relevance for every audited class."""

    batch: int
    classes: tuple[int, ...]
    method: Method
    threads: int
    ahead: int

    def prepare(self, bench: Bench, step: _Step) -> torch.Tensor:
        return _inputs(bench, step, self.batch)

    def compute(self, bench: Bench, step: _Step, images: torch.Tensor) -> dict[str, Any]:
        count = step.stop - step.first
        values, ratios = relevance(bench.subject, on_device(images, bench.device), step.layers, self.classes, self.method)
        return {
            "relevance": {layer: value[:count] for layer, value in values.items()},
            "conservation": {layer: ratio[:count] for layer, ratio in ratios.items()},
        }


def relevance_pass(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Attribute every audited class's logit to the components of every layer, on every sample."""
    settings, bench, classes = plan.audit.measurement, engine.bench, audited_classes(plan)
    states = _begun(plan, store, bench, inputs, {layer: f"relevance:{layer}" for layer in plan.audit.layers})
    if not states:
        return
    words = describe(bench.subject, on_device(bench.images([0]), bench.device), settings.method)
    streams: dict[int | None, list[_Stream]] = {}
    for layer, state in states.items():
        if not state.complete:
            facts = _where(state, bench)
            store.note(state.key, facts)
            streams.setdefault(facts.get("threads"), []).append(_Relevance(state.key, state.done, layer, classes, words, facts))
    batch = _batch(plan, bench)
    for threads, some in streams.items():
        work = Threaded(_Attribute(batch, classes, settings.method, cores(), _ahead(bench, batch)), threads)
        _run(store, some, engine, work, batch, progress, "Relevance of components")
