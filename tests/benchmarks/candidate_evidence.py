"""Evidence about qualification models in memory and on disk as plain arrays, under every variant that definitions are compared on.

Not the store: one data set, one model and one variant at a time, so that hundreds of combinations stay affordable.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semlens_audit.attribution import boxes, relevance, stream_heatmaps
from semlens_audit.components import TopReferences, capture, pool
from semlens_audit.foundation import Foundation, load_foundation
from semlens_audit.phantom import world
from semlens_audit.plan import AuditPlan
from semlens_audit.qualification import training
from semlens_audit.qualification.architectures import ARCHITECTURES
from semlens_audit.qualification.entrants import Entrant, weights_file
from semlens_audit.regions import null_regions
from semlens_audit.selection import top_by_relevance
from semlens_audit.weights import load_weights

DATA_SEED = 40_001
SIDE = 128
RANDOM_CROPS = 1500
STEPS = 8
"""Steps of the path that integrated gradients are summed over."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TestData:
    """Rendered test images with what is in them, and their embeddings as wholes."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray
    """(N, 12) bool in the order of `world.ATTRIBUTES`."""
    whole: np.ndarray


class Eye:
    """The phantom's foundation model and a pool of what it has embedded of one data set."""

    def __init__(self, plan: AuditPlan) -> None:
        self.plan = plan
        self.model: Foundation = load_foundation(plan)
        self.model.precision = "bf16"
        self._pool: dict[tuple[int, ...], np.ndarray] = {}
        self._of = ""

    def regions(self, data: TestData | tuple[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """(R, d) float16 embeddings of (R, 5) regions: sample and box."""
        name, images = (data.name, data.images) if isinstance(data, TestData) else data
        if name != self._of:
            self._pool, self._of = {}, name
        keys = [tuple(row) for row in rows.tolist()]
        missing = sorted(set(keys) - self._pool.keys())
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            crops = [self.model.prepare(Image.fromarray(images[key[0]]).crop(key[1:])) for key in part]
            self._pool.update(zip(part, self.model.embed_prepared(crops).astype(np.float16), strict=True))
        return np.stack([self._pool[key] for key in keys])

    def texts(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Concept -> (Q, T, d), and the (T, d) empty prompts."""
        templates = self.plan.spec.templates
        told = {
            concept.id: self.model.embed_texts([t.format(d) for d in concept.descriptions for t in templates]).reshape(
                len(concept.descriptions), len(templates), -1
            )
            for concept in self.plan.spec.concepts
        }
        return told, self.model.embed_texts([template.format("") for template in templates])


def test_data(eye: Eye, folder: Path, name: str, tied: Mapping[str, tuple[float, float]], samples: int, seed: int) -> TestData:
    """Render a sample of the phantom's population, or read it back."""
    path = folder / f"data-{name}.npz"
    if not path.is_file():
        cases = world.sample(world.Population(tied=tied), samples, seed)
        images = world.images(cases)
        whole = eye.regions((name, images), np.array([[i, 0, 0, SIDE, SIDE] for i in range(samples)]))
        held = np.array([[case.attributes.has(attribute) for attribute in world.ATTRIBUTES] for case in cases])
        _save(path, {"images": images, "labels": np.array([c.label for c in cases]), "attributes": held, "whole": whole})
    with np.load(path) as stored:
        return TestData(name, stored["images"], stored["labels"], stored["attributes"], stored["whole"])


def _save(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".part.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load(entrant: Entrant, work: Path) -> torch.nn.Module:
    """The trained model of an entrant."""
    model = ARCHITECTURES[entrant.member.architecture].build().eval().requires_grad_(False)
    load_weights(model, weights_file(entrant, work))
    return model


def _integrated(model: torch.nn.Module, images: torch.Tensor, layer: str) -> torch.Tensor:
    """Integrated gradients of the margin (Sundararajan et al. 2017) from a silent layer, summed over space or tokens."""
    with capture(model, [layer]) as seen, torch.no_grad():
        model(images)
    activation, total = seen[layer].detach(), torch.zeros_like(seen[layer])
    module = dict(model.named_modules())[layer]
    for step in range(STEPS):
        leaf = (activation * ((step + 0.5) / STEPS)).requires_grad_(True)
        hook = module.register_forward_hook(lambda *_, leaf=leaf: leaf)
        try:
            with torch.enable_grad():
                out = model(images)
                total += torch.autograd.grad((out[:, 1] - out[:, 0]).sum(), leaf)[0]
        finally:
            hook.remove()
    value = activation * total / STEPS
    return value.sum(dim=(2, 3)) if value.ndim == 4 else value.sum(dim=1)


def relevances(model: torch.nn.Module, images: torch.Tensor, layer: str, method: str) -> np.ndarray:
    """(N, 2, K) relevance of every component for both classes."""
    subject: Any = types.SimpleNamespace(model=model)
    parts: list[np.ndarray] = []
    for start in range(0, len(images), 50):
        part = images[start : start + 50]
        if method == "ig":
            half = _integrated(model, part, layer).numpy() / 2.0
            parts.append(np.stack([-half, half], axis=1))
        else:
            name: Any = {"lrp": "lrp", "axg": "activation_x_gradient"}[method]
            parts.append(relevance(subject, part, [layer], [0, 1], name)[0][layer])
    return np.concatenate(parts)


def evidence(eye: Eye, entrant: Entrant, data: TestData, layer: str, variant: str, work: Path, folder: Path, m: int) -> Arrays:
    """References, embeddings, random crops and relevance of one layer under one variant, computed or read back.

    Parameters
    ----------
    variant
        ``SELECTION-ATTRIBUTION``: ``rel``, ``max`` or ``mean``; ``lrp``, ``axg`` or ``ig``.
    m
        Reference samples.
    """
    suffix = "" if data.name == "independent" else f"--{data.name}"
    path = folder / "ev" / f"{entrant.name}--{layer}--{variant}{suffix}.npz"
    if not path.is_file():
        _save(path, _evidence(eye, load(entrant, work), data, layer, variant, m))
    with np.load(path) as stored:
        return {name: stored[name] for name in ("ids", "emb", "null", "rel")}


def _evidence(eye: Eye, model: torch.nn.Module, data: TestData, layer: str, variant: str, m: int) -> Arrays:
    selection, method = variant.split("-")
    images = training.tensor(data.images)
    found = relevances(model, images, layer, method)
    if selection == "rel":
        ids, _ = top_by_relevance(found[:, 1:], m, layer)
    else:
        ids = _most_active(model, images, layer, selection, m)
    component, rank = np.nonzero(ids >= 0)
    pairs = np.stack([ids[component, rank], component], axis=1)
    settings, subject = eye.plan.audit.measurement, types.SimpleNamespace(model=model)
    corners = np.zeros((*ids.shape, 4), dtype=np.int64)
    how: Any = "lrp" if method == "lrp" else "activation_x_gradient"
    for positions, heat in stream_heatmaps(subject, lambda i: images[i], layer, pairs, how, 32):  # type: ignore[arg-type]
        corners[component[positions], rank[positions]] = boxes(
            heat, settings.crop_blur, settings.crop_threshold, settings.crop_minimum
        )
    vectors = eye.regions(data, np.concatenate([pairs[:, :1], corners[component, rank]], axis=1))
    embeddings = np.zeros((*ids.shape, vectors.shape[1]), dtype=np.float16)
    embeddings[component, rank] = vectors
    sample, box = null_regions(corners[component, rank], len(images), SIDE, RANDOM_CROPS, 1, "0123456789abcdef")
    null = eye.regions(data, np.concatenate([sample[:, None], box], axis=1))
    return {"ids": ids, "emb": embeddings, "null": null, "rel": found.astype(np.float32)}


def _most_active(model: torch.nn.Module, images: torch.Tensor, layer: str, pooling: Any, m: int) -> np.ndarray:
    top: TopReferences | None = None
    for start in range(0, len(images), 100):
        part = images[start : start + 100]
        with torch.inference_mode(), capture(model, [layer]) as seen:
            model(part)
        values = pool(seen[layer], pooling).numpy().astype(np.float64)
        top = top or TopReferences(values.shape[1], m, layer)
        top.update(np.arange(start, start + len(part)), values)
    if top is None:
        raise ValueError("no images")
    return top.ids


def members(entrants: tuple[Entrant, ...], parts: tuple[str, ...]) -> Iterator[Entrant]:
    """The dermoscopy world's members of some parts."""
    return (entrant for entrant in entrants if entrant.member.world == "dermoscopy" and entrant.part in parts)
