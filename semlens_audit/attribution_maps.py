"""Where in the input a component is driven from: heatmaps of many components at once, and how exactly they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch

from semlens_audit.components import capture, maps
from semlens_audit.cropping import blurred, boxes
from semlens_audit.devices import device_of, on_device, out_of_memory
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.layouts import prefix_tokens
from semlens_audit.lrp import relevance_model
from semlens_audit.lrp_conditional import Conditional

__all__ = [
    "EXACT", "Attributable", "Method", "Way", "heatmaps", "images_at_once", "lifted", "outputs_of", "settle", "stream_heatmaps",
]  # fmt: skip

Method = Literal["lrp", "activation_x_gradient"]
_AT_ONCE = 8 * 224**2
"""Pixels per channel whose graph is held at a time; bounds memory, changes no result."""
_CONDITIONS = 8
"""Most components of each image whose maps are made at once."""
SAME_MAP = 0.98
"""Least cosine between blurred heatmaps, reached by nine in ten, at which a shorter way counts as the same."""
SAME_BOX = 0.95
"""Least intersection over union of the boxes, reached by nine in ten."""


class Attributable(Protocol):
    """What is needed of a subject: its network."""

    @property
    def model(self) -> torch.nn.Module:
        """Network in eval mode."""
        ...


@dataclass(frozen=True)
class Way:
    """How heatmaps by relevance propagation are computed; every way is held against `EXACT` before it is taken.

    Parameters
    ----------
    precision
        ``fp32``, or ``bf16``: what convolutions multiply on the way back is rounded to bfloat16.
    side
        Relevance is followed back no further than to the first map of at least this side, in elements, which is then up-sampled:
        a crop needs no more than where relevance is after a blur. ``None``: to the pixels.
    offset
        How far relevance lies right of and below the middle of its place in that map, in pixels.
    forward
        ``fp32``, or ``bf16``: the same for convolutions on the way to the layer. Rounding there can change which units are active,
        rounding on the way back cannot; and the way to the layer is gone once for all components of an image.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    side: int | None = None
    offset: float = 0.0
    forward: Literal["fp32", "bf16"] = "fp32"

    def facts(self) -> dict[str, Any]:
        """For the facts of a stage."""
        return {"heatmap_" + name: value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Way:
        """What `facts` say; a stage that says nothing was computed exactly."""
        return cls(**{name: facts["heatmap_" + name] for name in asdict(EXACT) if "heatmap_" + name in facts})


EXACT = Way()
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def images_at_once(size: int) -> int:
    """Images of `size` x `size` pixels whose graph is held at a time."""
    return max(1, _AT_ONCE // size**2)


def outputs_of(outputs: Mapping[str, torch.Tensor], layers: Sequence[str]) -> list[torch.Tensor]:
    """The outputs of `layers`.

    Raises
    ------
    SubjectError
        ``unused-layer``: the forward pass did not reach one.
    """
    for layer in layers:
        if layer not in outputs:
            raise SubjectError("unused-layer", f"The forward pass leaves out layer {layer!r}.", "Audit another layer.")
    return [outputs[layer] for layer in layers]


def heatmaps(
    subject: Attributable,
    images: torch.Tensor,
    layer: str,
    components: Sequence[int] | np.ndarray,
    method: Method,
    way: Way = EXACT,
) -> np.ndarray:
    """Where in each image the given component is driven from.

    With ``lrp``: conditional relevance (CRP, Achtibat et al. 2023): propagation starts at the layer with the component's own
    activation, all other components masked, and ends at the pixels. With ``activation_x_gradient``, and for layers of tokens:
    the component's activation map, up-sampled (SemanticLens, arXiv 2501.05398); where a layer has no map, input x gradient.

    Parameters
    ----------
    subject
        The audited model.
    images
        (B, 3, S, S) float32.
    layer
        Layer name.
    components
        (B,) component of each row; rows do not influence each other.
    method
        See above.
    way
        How relevance is propagated.

    Returns
    -------
    np.ndarray
        (B, S, S) float32.
    """
    rows = np.asarray(components, dtype=np.int64)
    if rows.shape != (len(images),):
        raise ValueError(f"expected {len(images)} components, got shape {rows.shape}")
    step = images_at_once(images.shape[-1])
    parts = [
        _prepare(subject, images[first : first + step], layer, method, way)(rows[None, first : first + step])[0]
        for first in range(0, len(images), step)
    ]
    return np.concatenate([lifted(part, images.shape[-1], way.offset) for part in parts])


def stream_heatmaps(
    subject: Attributable,
    load: Callable[[int], torch.Tensor],
    layer: str,
    rows: Sequence[tuple[int, int]] | np.ndarray,
    method: Method,
    batch_size: int = 32,
    way: Way = EXACT,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Heatmaps of many (sample, component) pairs, each image's forward pass shared by all of its components.

    Parameters
    ----------
    subject
        The audited model.
    load
        Sample id -> (3, S, S) float32 input; called once per sample.
    layer
        Layer name.
    rows
        (R, 2) pairs of sample id and component, in any order.
    method, way
        See `heatmaps`.
    batch_size
        Most images per pass; fewer where inputs are large, to bound memory.

    Yields
    ------
    tuple
        (n,) positions in `rows`, and their (n, S, S) float32 heatmaps. Every position comes exactly once; the order depends
        only on `rows`, `batch_size` and S.
    """
    pairs = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    by_sample: dict[int, list[int]] = {}
    for position, sample in enumerate(pairs[:, 0].tolist()):
        by_sample.setdefault(sample, []).append(position)
    for group in _alike({sample: len(positions) for sample, positions in by_sample.items()}, batch_size):
        images = torch.stack([load(sample) for sample in group])
        size = images.shape[-1]
        for first in range(0, len(group), images_at_once(size)):
            part = [by_sample[sample] for sample in group[first : first + images_at_once(size)]]
            run = _prepare(subject, images[first : first + len(part)], layer, method, way)
            for turns in _turns(max(len(positions) for positions in part)):
                # An image whose components are all done repeats its last one, which is thrown away.
                chosen = np.array([[positions[min(turn, len(positions) - 1)] for positions in part] for turn in turns])
                wanted = np.array([[turn < len(positions) for positions in part] for turn in turns])
                yield chosen[wanted], lifted(run(pairs[chosen, 1])[wanted], size, way.offset)


def _turns(count: int) -> Iterator[range]:
    """Divide `count` turns into runs of a power of two, so that few shapes ever occur."""
    first = 0
    while first < count:
        step = min(_CONDITIONS, 1 << ((count - first).bit_length() - 1))
        yield range(first, first + step)
        first += step


def _alike(counts: dict[int, int], batch_size: int) -> Iterator[list[int]]:
    """Groups of at most `batch_size` samples with like numbers of components, so that few places of a pass stay empty."""
    group: list[int] = []
    for sample in sorted(counts, key=lambda sample: (-counts[sample], sample)):
        if group and (len(group) == batch_size or counts[sample] < 0.8 * counts[group[0]] - 2):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


_Run = Callable[[np.ndarray], np.ndarray]


def _prepare(subject: Attributable, images: torch.Tensor, layer: str, method: Method, way: Way) -> _Run:
    """One forward pass; the returned function gives the maps (C, B, H, W) of (C, B) components, as often as it is called."""
    model = subject.model
    images = on_device(images, device_of(model))
    if method == "lrp":
        activation, inputs = relevance_model(model, images).up_to(images, layer, _DTYPES[way.forward])
        if activation.ndim != 3:
            return _conditional(Conditional(activation, inputs, _DTYPES[way.precision], way.side), layer)
        return _upsampled(maps(activation.detach(), prefix_tokens(model)), images.shape[-1])
    with capture(model, [layer]) as outputs, torch.no_grad():
        model(images)
    (activation,) = outputs_of(outputs, [layer])
    if activation.ndim == 2:
        return _input_times_gradient(model, images, layer)
    return _upsampled(maps(activation, prefix_tokens(model)), images.shape[-1])


def _conditional(relevance: Conditional, layer: str) -> _Run:
    def run(components: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _finite(relevance(torch.from_numpy(np.asarray(components, dtype=np.int64))), layer)

    return run


def _input_times_gradient(model: torch.nn.Module, images: torch.Tensor, layer: str) -> _Run:
    inputs = images.detach().clone().requires_grad_(True)
    with capture(model, [layer]) as outputs, torch.enable_grad():
        model(inputs)
    activation = outputs[layer]

    def one(components: np.ndarray) -> torch.Tensor:
        start = torch.zeros_like(activation)
        start[torch.arange(len(components)), torch.from_numpy(components)] = 1.0
        (gradient,) = torch.autograd.grad(activation, inputs, start, retain_graph=True)
        return (gradient * inputs.detach()).sum(dim=1)

    def run(components: np.ndarray) -> np.ndarray:
        return _finite(torch.stack([one(row) for row in np.asarray(components, dtype=np.int64)]), layer)

    return run


def _upsampled(activation: torch.Tensor, size: int) -> _Run:
    def run(components: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(np.asarray(components, dtype=np.int64)).to(activation.device)
        chosen = activation[torch.arange(index.shape[1], device=activation.device), index].detach()
        # What drives a component is where it is high; one that is nowhere positive is judged by its least negative places.
        highest = chosen.amax(dim=(2, 3), keepdim=True)
        lowest = chosen.amin(dim=(2, 3), keepdim=True)
        chosen = torch.where(highest > 0, chosen.clamp(min=0), chosen - lowest)
        up = torch.nn.functional.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
        return np.asarray(up.cpu().numpy(), dtype=np.float32)

    return run


def _finite(heat: torch.Tensor, layer: str) -> np.ndarray:
    found = heat.cpu().numpy()
    if not np.isfinite(found).all():
        raise ExecutionError(
            "not-finite", f"A heatmap of layer {layer!r} holds NaN or infinities.", "Check the model and its data."
        )
    return np.asarray(found, dtype=np.float32)


@lru_cache(maxsize=8)
def _lifting(side: int, size: int, offset: float) -> torch.Tensor:
    """(S, s) float32 matrix of linear interpolation from s places to S pixels, constant beyond the outermost."""
    place = np.clip((np.arange(size) + 0.5 - offset) * side / size - 0.5, 0, side - 1)
    return torch.from_numpy(np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(side))).astype(np.float32))


def lifted(heat: np.ndarray, size: int, offset: float = 0.0) -> np.ndarray:
    """Maps at the size of the input.

    Parameters
    ----------
    heat
        (n, s, s) float32.
    size
        S, pixels; where it is s, the maps are returned as they are.
    offset
        See `Way`.

    Returns
    -------
    np.ndarray
        (n, S, S) float32, interpolated linearly.
    """
    if heat.shape[-1] == size:
        return heat
    matrix = _lifting(heat.shape[-1], size, offset)
    return (matrix @ torch.from_numpy(heat) @ matrix.T).numpy()


def settle(
    subject: Attributable,
    images: torch.Tensor,
    layer: str,
    components: np.ndarray,
    crop: tuple[int, float, int],
    *,
    bfloat16: bool,
) -> tuple[Way, dict[str, float]]:
    """The shortest way to heatmaps by relevance propagation that gives the same crops as the exact one, by trial.

    Parameters
    ----------
    subject
        The audited model.
    images
        (B, 3, S, S) float32; taken in parts where they are large.
    layer
        Layer name.
    components
        (C, B) components to try.
    crop
        Blur, threshold and minimum of `boxes`.
    bfloat16
        Whether the processor computes in bfloat16 by instructions of its own.

    Returns
    -------
    way
        The first whose maps and boxes agree with the exact ones to `SAME_MAP` and `SAME_BOX` in nine of ten cases: to a map of an
        eighth of the input's side, then of a quarter, then to the pixels, each in bfloat16 both ways, then on the way back only; then
        the same in single precision.
    agreement
        ``heatmap_cosine`` of the blurred maps and ``heatmap_iou`` of the boxes, the value that nine of ten reach; empty where the
        way is exact.
    """
    size = images.shape[-1]

    def found_by(way: Way) -> np.ndarray:
        step = images_at_once(size)
        parts = [
            _prepare(subject, images[first : first + step], layer, "lrp", way)(components[:, first : first + step])
            for first in range(0, len(images), step)
        ]
        return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])

    exact = found_by(EXACT)
    known, reference = boxes(exact, *crop), blurred(exact, crop[0])
    for way in _shorter(size, bfloat16):
        try:
            found = found_by(way)
        except (RuntimeError, ValueError, ExecutionError) as error:
            if out_of_memory(error):
                raise
            continue  # an operation that does not know this arithmetic, or maps of several sizes: no way for this network
        if way.side is not None:
            if found.shape[-1] == size:
                continue
            way = replace(way, offset=_offset(found, exact))
        found = lifted(found, size, way.offset)
        cosine = np.quantile(_cosines(blurred(found, crop[0]), reference), 0.1, method="lower")
        overlap = np.quantile(_overlaps(boxes(found, *crop), known), 0.1, method="lower")
        if cosine >= SAME_MAP and overlap >= SAME_BOX:
            return way, {"heatmap_cosine": round(float(cosine), 6), "heatmap_iou": round(float(overlap), 6)}
    return EXACT, {}


def _shorter(size: int, bfloat16: bool) -> Iterator[Way]:
    """Ways that are shorter than the exact one, the shortest first."""
    sides = (-(-size // 8), -(-size // 4), None)
    if bfloat16:
        for side in sides:
            yield Way("bf16", side, forward="bf16")
            yield Way("bf16", side)
    yield from (Way("fp32", side) for side in sides if side is not None)


def _offset(found: np.ndarray, exact: np.ndarray) -> float:
    """Median, over maps and both axes, of how far relevance lies behind where the smaller map has it, in pixels."""
    return round(float(np.median(_centres(exact) - _centres(found))) * exact.shape[-1], 2)


def _centres(heat: np.ndarray) -> np.ndarray:
    """(n, 2) centres of gravity of ``|heat|`` (n, s, s) along either axis, in shares of the side."""
    weight = np.abs(heat.astype(np.float64))
    place = (np.arange(heat.shape[-1]) + 0.5) / heat.shape[-1]
    total = np.maximum(weight.sum(axis=(1, 2)), np.finfo(np.float64).tiny)
    return np.stack([(weight.sum(axis=axis) * place).sum(axis=1) / total for axis in (1, 2)], axis=1)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) cosine of each map with its other; 1 where both are zero."""
    one, other = (value.reshape(len(value), -1).astype(np.float64) for value in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.divide((one * other).sum(axis=1), lengths, out=np.zeros(len(one)), where=lengths > 0)
    return np.where(~one.any(axis=1) & ~other.any(axis=1), 1.0, same)


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of (n, 4) boxes, none empty."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    shared = np.clip(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0, None).prod(axis=1)
    own = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (one, other)]
    return shared / (own[0] + own[1] - shared)
