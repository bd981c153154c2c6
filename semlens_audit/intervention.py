"""Ablation: the model's outputs while chosen components of a layer are switched off.

Two replacements of a component's output, both of which leave the network on inputs like those it knows:

- *mean ablation*: its mean over the test data, at each position. Setting to zero would feed the network something it has never
  seen; the mean at each position (rather than one number for the whole map) keeps what padding and position add to every image,
  and tells a class token from a patch token.
- *resampling ablation*: its output on another sample, drawn at random (Chan et al. 2022, "Causal scrubbing": what the components
  say about this image is lost, while each of their values is one that occurs).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from semlens_audit.components import capture
from semlens_audit.devices import device_of, on_device
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.layouts import observed
from semlens_audit.networks import nearest_layer
from semlens_audit.sae.splice import Latents
from semlens_audit.subject import LoadedSubject

__all__ = ["Ablation", "Recorded", "ablate", "donors", "record_outputs", "replacement"]

Method = Literal["mean", "resampling"]

_ROWS_BYTES = 24 << 20
"""Memory that the expanded output of the layer may take."""
_KEPT_BYTES = 256 << 20
"""Outputs of the layer beyond this are kept in a temporary file."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Recorded:
    """A layer's outputs on some samples, unchanged.

    Parameters
    ----------
    outputs
        (n, ...) float32, components on the axis that `semlens_audit.components` says: 1 of (n, K, H, W), the last of (n, T, K),
        1 of (n, K). A memory map where they are large.
    mean
        (...) float32, their weighted mean over the samples, at each position.
    """

    outputs: np.ndarray
    mean: np.ndarray


def _chosen(sets: torch.Tensor, ndim: int) -> torch.Tensor:
    """(S, K) bool laid out to go with (S, B, ...) outputs of `ndim` dimensions, the batch's included."""
    count, components = sets.shape
    shapes = {2: (count, 1, components), 3: (count, 1, 1, components), 4: (count, 1, components, 1, 1)}
    if ndim not in shapes:
        raise SubjectError(
            "unknown-layout",
            f"The layer's output has {ndim} dimensions: components cannot be told from places.",
            "Audit a layer that returns (batch, components, height, width), (batch, tokens, components) or (batch, components).",
        )
    return sets.reshape(shapes[ndim])


class Ablation:
    """Switches sets of components of one layer off, many sets in one pass where the network allows it.

    The layer's outputs on B samples are known. They are repeated for each of S sets, with the set's components replaced, and put
    in the place of what the layer gives on a single image, so that what follows runs on S x B rows and what comes before on one.
    Of the latents of an autoencoder, what comes before runs on all B images, because what is not reconstructed of each goes with it.
    Where something goes round the layer (a dense or a skip connection), that is not the network's answer; then each set costs a
    pass of its own over the images. Which of the two holds is settled on the first batch, on which the quick way must give what
    the plain one gives.

    Parameters
    ----------
    subject
        The audited model.
    layer
        Name of the layer.
    sets
        S sets of component indices; an empty set leaves the network as it is.
    """

    def __init__(self, subject: LoadedSubject, layer: str, sets: Sequence[Sequence[int]]) -> None:
        # a layer that is not there is complained about at once
        self._latents = isinstance(nearest_layer(subject.model, layer), Latents)
        self._model = subject.model
        self._layer, self._sets = layer, [sorted(set(chosen)) for chosen in sets]
        self._one: torch.Tensor | None = None
        self.expanded: bool | None = None
        """Whether many sets share a pass; None before the first batch."""

    def __call__(self, images: Callable[[], torch.Tensor], outputs: torch.Tensor, values: torch.Tensor) -> np.ndarray:
        """Outputs of the model under every set.

        Parameters
        ----------
        images
            Gives the (B, 3, H, W) float32 network inputs; called where they are needed.
        outputs
            (B, ...) the layer's outputs on them.
        values
            What takes the place of the layer's output in the components of a set: of the shape of one sample's output (mean
            ablation), or of the batch's (resampling ablation).

        Returns
        -------
        numpy.ndarray
            (S, B, C) float32.

        Raises
        ------
        SubjectError
            ``unknown-layout``, ``unknown-component``.
        ExecutionError
            ``not-finite``: the ablated model outputs NaN or infinities.
        """
        device = device_of(self._model)
        outputs, values = on_device(outputs, device), on_device(values, device)
        with torch.inference_mode():
            if self.expanded is None:
                self.expanded = self._agree(on_device(images(), device), outputs, values)
            if self.expanded:
                if self._latents:
                    self._one = on_device(images(), device)
                each = max(1, _ROWS_BYTES // (4 * outputs[0].numel() * len(outputs)))
                parts = [self._sets[start : start + each] for start in range(0, len(self._sets), each)]
                answers = torch.cat([self._together(outputs, values, part) for part in parts])
            else:
                answers = self._apart(on_device(images(), device), values, self._sets)
        if not bool(torch.isfinite(answers).all()):
            raise ExecutionError(
                "not-finite",
                f"With components of layer {self._layer!r} switched off, the model outputs NaN or infinities.",
                "Set `measurement: {intervention: none}`, or audit another layer.",
            )
        return answers.float().cpu().numpy()

    def _masks(self, sets: Sequence[Sequence[int]], output: torch.Tensor) -> torch.Tensor:
        components = int(output.shape[-1] if output.ndim == 3 else output.shape[1])
        masks = torch.zeros((len(sets), components), dtype=torch.bool, device=output.device)
        for row, chosen in enumerate(sets):
            if chosen and not 0 <= chosen[0] <= chosen[-1] < components:
                raise SubjectError(
                    "unknown-component",
                    f"Layer {self._layer!r} has {components} components; {list(chosen)} names others.",
                    "Run `semlens-audit index` with this audit again.",
                )
            masks[row, list(chosen)] = True
        return _chosen(masks, output.ndim)

    def _together(self, outputs: torch.Tensor, values: torch.Tensor, sets: Sequence[Sequence[int]]) -> torch.Tensor:
        """(S, B, C): one pass for all `sets`."""

        def change(_layer: str, output: torch.Tensor) -> torch.Tensor:
            mixed = torch.where(self._masks(sets, outputs), values, outputs)
            return mixed.reshape(len(sets) * len(outputs), *outputs.shape[1:]).to(output.dtype)

        with observed(self._model, [self._layer], change):
            answers = self._model(self._one)
        if len(answers) != len(sets) * len(outputs):
            raise _RowsError
        return answers.reshape(len(sets), len(outputs), -1)

    def _apart(self, images: torch.Tensor, values: torch.Tensor, sets: Sequence[Sequence[int]]) -> torch.Tensor:
        """(S, B, C): one pass for each of `sets`."""
        rows = []
        for chosen in sets:

            def change(_layer: str, output: torch.Tensor, chosen: Sequence[int] = chosen) -> torch.Tensor:
                return torch.where(self._masks([chosen], output)[0], values.to(output.dtype), output)

            with observed(self._model, [self._layer], change):
                rows.append(self._model(images))
        return torch.stack(rows)

    def _agree(self, images: torch.Tensor, outputs: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether one pass for several sets gives what one pass for each gives, on this batch."""
        few = [[], *[chosen for chosen in self._sets if chosen][:2]]
        plain = self._apart(images, values, few)
        # The batch's last image stands for what comes before the layer: what goes round it would show in the other rows.
        self._one = images if self._latents else images[-1:].clone()
        try:
            quick = self._together(outputs, values, few)
        except (RuntimeError, ValueError, IndexError, _RowsError):
            return False
        return quick.shape == plain.shape and bool(
            (quick - plain).abs().max() <= _TOLERANCE * max(1.0, float(plain.abs().max()))
        )


class _RowsError(Exception):
    """The network's output does not have a row for each set and sample."""


def ablate(
    subject: LoadedSubject, images: torch.Tensor, layer: str, sets: Sequence[Sequence[int]], values: torch.Tensor
) -> np.ndarray:
    """Outputs (S, B, C) of the model on `images` with each set of components of `layer` replaced by `values`; see `Ablation`."""
    with torch.inference_mode(), capture(subject.model, [layer]) as seen:
        subject.model(on_device(images, device_of(subject.model)))
        outputs = seen[layer].float()
    return Ablation(subject, layer, sets)(lambda: images, outputs, values)


def record_outputs(
    subject: LoadedSubject,
    layer: str,
    batches: Iterator[torch.Tensor],
    count: int,
    weights: np.ndarray,
    progress: Callable[[int], None] | None = None,
) -> Recorded:
    """Run the unchanged model over all batches and keep the layer's outputs.

    Parameters
    ----------
    batches
        Network inputs, `count` rows in all.
    weights
        (count,) positive: what each sample counts in the mean.
    progress
        Called with the rows of each batch.
    """
    kept: np.ndarray | None = None
    done = 0
    for images in batches:
        with torch.inference_mode(), capture(subject.model, [layer]) as seen:
            subject.model(on_device(images, device_of(subject.model)))
            output = seen[layer].float().cpu().numpy()
        if kept is None:
            kept = _room((count, *output.shape[1:]))
        kept[done : done + len(output)] = output
        done += len(output)
        if progress is not None:
            progress(len(output))
    if kept is None or done != count:
        raise ExecutionError("no-samples", f"Layer {layer!r} was run on {done} of {count} samples.", "Give test data.")
    share = weights / weights.sum()
    mean = np.zeros(kept.shape[1:])
    for row, part in zip(kept, share, strict=True):
        mean += part * row
    return Recorded(kept, mean.astype(np.float32))


def _room(shape: tuple[int, ...]) -> np.ndarray:
    if 4 * int(np.prod(shape)) <= _KEPT_BYTES:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile() as file:  # the map keeps the file alive after it is closed
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def donors(samples: Sequence[int], seed: int) -> np.ndarray:
    """(n,) position of the sample whose output takes each sample's place: a random permutation that moves every one.

    Depends on the samples and the seed only, not on batches: one random cycle through all of them. A single sample is its own.
    """
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    given = np.empty(len(samples), dtype=np.int64)
    given[order] = np.roll(order, -1)
    return given


def replacement(recorded: Recorded, method: Method, rows: slice, given: np.ndarray) -> torch.Tensor:
    """What takes the components' place on the samples of `rows`: see `Ablation`.

    Parameters
    ----------
    recorded
        Outputs of all samples.
    method
        ``mean`` or ``resampling``.
    rows
        Positions of the batch.
    given
        (n,) donors, see `donors`.
    """
    if method == "mean":
        return torch.from_numpy(recorded.mean)
    return torch.from_numpy(np.ascontiguousarray(recorded.outputs[given[rows]]))
