"""The samples that components are judged by, and their circuits: small passes over some of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from semlens_audit.atlas.opening import Atlas
from semlens_audit.attribution_maps import images_at_once
from semlens_audit.components import TopReferences
from semlens_audit.devices import on_device
from semlens_audit.errors import ExecutionError
from semlens_audit.headroom import slots
from semlens_audit.networks import nearest_layer
from semlens_audit.precision import Arithmetic
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress
from semlens_audit.virtual.circuits import Given, Place, circuits
from semlens_audit.work import Bench, Engine

__all__ = ["circuit_pass", "top_samples"]


class _Reached(Exception):  # noqa: N818  (no error: a way out of a forward pass)
    """The layer has been reached."""


@dataclass(frozen=True)
class _Pool:
    """Pooled activations of some components of a layer, in single precision; an item is a range of samples."""

    layer: str
    components: tuple[int, ...]
    pooling: Literal["max", "mean"]
    rows: int
    threads: int
    ahead: int

    def prepare(self, bench: Bench, item: range) -> torch.Tensor:
        return bench.images(item, self.rows)

    def compute(self, bench: Bench, item: range, images: torch.Tensor) -> np.ndarray:
        _, pooled = bench.networks.run(Arithmetic(), on_device(images, bench.device), [self.layer], self.pooling)
        return pooled[self.layer][: len(item), list(self.components)]


@dataclass(frozen=True)
class _Asked:
    component: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class _Circuits:
    """Circuits of one component on some samples."""

    layer: str
    place: Place
    rows: int
    threads: int
    ahead: int

    def prepare(self, bench: Bench, item: _Asked) -> torch.Tensor:
        return bench.images(item.samples, self.rows)

    def compute(self, bench: Bench, item: _Asked, images: torch.Tensor) -> np.ndarray:
        model = bench.subject.model
        module, reached = nearest_layer(model, self.layer), list[Given]()

        def stop(_module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            reached.append(Given(arguments, named).kept())
            raise _Reached

        handle = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.inference_mode():
                model(on_device(images, bench.device))
        except _Reached:
            pass
        finally:
            handle.remove()
        found = circuits(module, reached[0], self.place, [item.component])[: len(item.samples), 0].cpu().numpy()
        if not np.isfinite(found).all():
            raise ExecutionError(
                "not-finite", f"A circuit of component {item.component} of layer {self.layer!r} holds NaN or infinities.",
                "Check the model and its data.",
            )  # fmt: skip
        return np.asarray(found)


def _rows(bench: Bench) -> int:
    """Every pass has the same number of rows, so that what a sample gives does not depend on how many are asked for."""
    return min(bench.plan.audit.measurement.batch_size, images_at_once(bench.plan.audit.subject.preprocessing.size))


def _ahead(bench: Bench, rows: int) -> int:
    return bench.ahead(rows * 15 * bench.plan.audit.subject.preprocessing.size ** 2)


def top_samples(
    atlas: Atlas, engine: Engine, layer: str, components: Sequence[int], count: int, progress: Progress
) -> dict[int, np.ndarray]:
    """The samples that activate each component most, of those where it is above zero.

    Read from the index where it keeps as many; else a forward pass over all data finds them.

    Parameters
    ----------
    atlas
        The audit's index.
    engine
        Computes what is not there.
    layer
        Name of the layer.
    components
        n indices.
    count
        How many samples at most.

    Returns
    -------
    dict
        Component -> (<= count,) int64 sample ids, highest pooled activation first.
    """
    settings, bench = atlas.plan.audit.measurement, engine.bench
    if slots(settings) >= count:
        rows = atlas.store.arrays(
            "SELECT component, sample, activation FROM reference WHERE stage = ? AND rank < ? ORDER BY component, rank",
            (atlas.keys[f"references:{layer}"], count),
        )
        kept = rows["activation"] > 0
        owner, sample = rows["component"][kept], rows["sample"][kept].astype(np.int64)
        return {component: sample[owner == component] for component in components}
    total, height = len(bench.data.samples), _rows(bench)
    work = _Pool(layer, tuple(components), settings.pooling, height, cores(), _ahead(bench, height))
    top = TopReferences(len(components), count, layer)
    with progress.stage(f"Samples that activate most, {layer}", total) as advance:
        for item, pooled in engine.run(work, [range(at, min(at + height, total)) for at in range(0, total, height)]):
            top.update(np.asarray(item), pooled)
            advance(len(item))
    return {
        component: top.ids[row][(top.ids[row] >= 0) & (top.values[row] > 0)].astype(np.int64)
        for row, component in enumerate(components)
    }


def circuit_pass(
    engine: Engine, layer: str, place: Place, samples: dict[int, np.ndarray], progress: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """Circuits of components, one component after the other.

    Parameters
    ----------
    engine
        Does the work.
    layer, place
        See `semlens_audit.virtual.circuits.place_of`.
    samples
        Component -> (n,) sample ids; components without samples are left out.

    Yields
    ------
    component : int
    circuits : numpy.ndarray
        (n, C) float64, see `semlens_audit.virtual.circuits.circuits`.
    """
    rows = _rows(engine.bench)
    items = [
        _Asked(component, tuple(ids[at : at + rows].tolist())) for component, ids in samples.items() for at in range(0, len(ids), rows)
    ]
    work, waiting = _Circuits(layer, place, rows, cores(), _ahead(engine.bench, rows)), list[np.ndarray]()
    with progress.stage(f"Circuits, {layer}", sum(len(item.samples) for item in items)) as advance:
        for item, found in engine.run(work, items):
            waiting.append(found)
            advance(len(found))
            if sum(map(len, waiting)) == len(samples[item.component]):
                yield item.component, np.concatenate(waiting)
                waiting.clear()
