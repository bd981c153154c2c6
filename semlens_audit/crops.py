"""What of each reference sample drives its component: conditional heatmaps, boxes and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from semlens_audit.attribution import boxes, stream_heatmaps
from semlens_audit.attribution_maps import EXACT, Way, settle
from semlens_audit.devices import describe, has_bfloat16, require_same
from semlens_audit.plan import AuditPlan, MeasurementSettings
from semlens_audit.progress import Progress
from semlens_audit.stages import THUMBNAILS
from semlens_audit.store import StageState, Store
from semlens_audit.threads import Threaded, threads_of
from semlens_audit.thumbnails import crop_thumbnail, overlay_thumbnail
from semlens_audit.work import Bench, Engine

__all__ = ["crop_pass"]

_WIDTH = 16
"""Images whose crops are written together."""

_TURNS = 32
"""Most components of one image that share its forward pass."""

_FEWEST = 1024
"""References of a layer below which the exact way is taken: a trial would cost more than it can save."""

_TRIED = 8
"""Images that a way to heatmaps is tried on, with up to four of their components each."""


@dataclass(frozen=True)
class _Group:
    """References that are computed together and written in one transaction: what is in it depends on the references alone."""

    rows: np.ndarray
    """(n, 3) int64 sample, component and rank."""
    slot: np.ndarray
    """(n,) int64: rows of one slot share a forward pass; slots are in order, with ever fewer rows."""
    last: int
    """References finished once this group is."""


def _groups(references: np.ndarray) -> list[_Group]:
    """Divide (R, 3) references, sorted by their samples, into groups."""
    samples = references[:, 0]
    slots: list[np.ndarray] = []
    for rows in np.split(np.arange(len(samples)), np.flatnonzero(np.diff(samples)) + 1):
        slots += [rows[start : start + _TURNS] for start in range(0, len(rows), _TURNS)]
    slots.sort(key=lambda rows: (-len(rows), int(rows[0])) if len(rows) else (0, 0))
    result, last = [], 0  # a layer of dead components has no reference at all
    for start in range(0, len(slots), _WIDTH):
        group = slots[start : start + _WIDTH]
        chosen = np.concatenate(group)
        last += len(chosen)
        result.append(_Group(references[chosen], np.repeat(np.arange(len(group)), [len(rows) for rows in group]), last))
    return result


@dataclass
class _Rows:
    """What is to be written for one group."""

    where: list[np.ndarray] = field(default_factory=list)
    box: list[np.ndarray] = field(default_factory=list)
    shown: list[tuple[int, int]] = field(default_factory=list)
    crop: list[bytes] = field(default_factory=list)
    overlay: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Crop:
    """Heatmaps, boxes and pictures of the references of one layer, group by group."""

    layer: str
    settings: MeasurementSettings
    way: Way = EXACT
    threads: int = 1
    ahead: int = 1

    def prepare(self, bench: Bench, group: _Group) -> dict[int, tuple[Image.Image, torch.Tensor]]:
        samples = np.unique(group.rows[:, 0]).tolist()
        return {sample: (bench.views.picture(sample), bench.images([sample])[0]) for sample in samples}

    def compute(self, bench: Bench, group: _Group, images: dict[int, tuple[Image.Image, torch.Tensor]]) -> _Rows:
        sample = group.rows[np.searchsorted(group.slot, np.arange(group.slot[-1] + 1)), 0]
        passes = stream_heatmaps(
            bench.subject,
            lambda slot: images[int(sample[slot])][1],
            self.layer,
            np.stack([group.slot, group.rows[:, 1]], axis=1),
            self.settings.method,
            batch_size=_WIDTH,
            way=self.way,
        )
        made = _Rows()
        for positions, heat in passes:
            _draw(made, group.rows[positions], heat, images, self.settings)
        return made


def crop_pass(plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress) -> None:
    """Crop every reference sample of every layer to what drives its component; the references must be complete."""
    for layer in plan.audit.layers:
        name = f"crops:{layer}"
        found = store.arrays(
            "SELECT sample, component, rank FROM reference WHERE stage = ? ORDER BY sample, component, rank",
            (inputs[name]["references"],),
        )
        references = np.stack([found[column].astype(np.int64) for column in ("sample", "component", "rank")], axis=1)
        state = store.begin(name, inputs[name], len(references))
        if state.complete:
            continue
        facts = _settled(plan, store, engine.bench, state, layer, references, progress)
        groups = [group for group in _groups(references) if group.last > state.done]
        work = _Crop(layer, plan.audit.measurement, Way.of(facts))
        with progress.stage(f"Crops, {layer}", len(references), state.done) as advance:
            for group, made in engine.run(Threaded(work, facts.get("threads")), groups):
                with store.transaction():
                    _write(store, state.key, made)
                    store.advance(state.key, group.last)
                advance(len(group.rows))
        store.finish(state.key, facts)


def _settled(
    plan: AuditPlan, store: Store, bench: Bench, state: StageState, layer: str, references: np.ndarray, progress: Progress
) -> dict[str, Any]:
    """Device, threads and way of a layer's heatmaps, and how well it agrees with the exact one: chosen once, and kept on going on."""
    device, settings = describe(bench.device), plan.audit.measurement
    require_same(state, device)
    if "device" in state.facts:
        return dict(state.facts)
    way, agreement = EXACT, dict[str, float]()
    if settings.method == "lrp" and len(references) >= _FEWEST:
        with progress.stage(f"Arithmetic of crops, {layer}", 1) as advance:
            samples, components = _tried(references)
            images = bench.images(samples)
            crop = (settings.crop_blur, settings.crop_threshold, settings.crop_minimum)
            way, agreement = settle(bench.subject, images, layer, components, crop, bfloat16=has_bfloat16(bench.device))
            advance(1)
    facts = {**way.facts(), **agreement, "device": device, **threads_of(state, bench)}
    with store.transaction():
        store.note(state.key, facts)
    return facts


def _tried(references: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Samples spread over (R, 3) references, sorted by sample, and (C, B) components that they are references of."""
    samples, starts, counts = np.unique(references[:, 0], return_index=True, return_counts=True)
    often = np.sort(np.argsort(-counts, kind="stable")[: max(_TRIED, len(counts) // 2)])
    chosen = often[:: max(1, len(often) // _TRIED)][:_TRIED]
    turns = min(4, int(counts[chosen].max()))
    rows = [starts[place] + np.minimum(np.arange(turns) * counts[place] // turns, counts[place] - 1) for place in chosen]
    return samples[chosen].tolist(), references[np.stack(rows, axis=1), 1]


def _draw(
    made: _Rows,
    rows: np.ndarray,
    heat: np.ndarray,
    images: dict[int, tuple[Image.Image, torch.Tensor]],
    settings: MeasurementSettings,
) -> None:
    box = boxes(heat, settings.crop_blur, settings.crop_threshold, settings.crop_minimum)
    made.where.append(rows)
    made.box.append(box)
    for (sample, component, rank), corners, one in zip(rows.tolist(), box.tolist(), heat, strict=True):
        if rank < THUMBNAILS:
            view = images[sample][0]
            made.shown.append((component, rank))
            made.crop.append(crop_thumbnail(view, tuple(corners)))
            made.overlay.append(overlay_thumbnail(view, one, tuple(corners)))


def _write(store: Store, key: str, made: _Rows) -> None:
    where, box = np.concatenate(made.where), np.concatenate(made.box)
    x0, y0, x1, y1 = (box[:, i] for i in range(4))
    store.append("crop", stage=key, component=where[:, 1], rank=where[:, 2], sample=where[:, 0], x0=x0, y0=y0, x1=x1, y1=y1)
    component, rank = [place[0] for place in made.shown], [place[1] for place in made.shown]
    store.append("thumbnail", stage=key, component=component, rank=rank, crop=made.crop, overlay=made.overlay)
