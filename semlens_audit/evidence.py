"""The measured raw material of a verdict, as NumPy arrays: what `semlens_audit.index` stores and `semlens_audit.measure` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from semlens_audit.errors import DataError
from semlens_audit.outputs import Decisions, Rows, decisions, in_blocks

__all__ = ["SAMPLES", "ConceptProbes", "Evidence", "LayerEvidence", "PairEvidence", "not_finite"]

SAMPLES = 1024
"""Samples whose relevance is read together: with 2,048 components 8 MB."""


@dataclass(frozen=True)
class LayerEvidence:
    """One layer's components.

    Parameters
    ----------
    layer
        Name of the layer.
    reference_ids
        (K, m) int64 sample ids of the reference samples, highest pooled activation first; -1 where there are fewer than m.
    activations
        (K, m) float64 pooled activations; 0 where the id is -1.
    embeddings
        (K, m, d) float32 foundation-model embeddings of the crops, unit length; zeros where the id is -1.
    boxes
        (K, m, 4) int32 crops x0, y0, x1, y1 in pixels of the network's input.
    relevance
        (N, C, K) float32 signed relevance of each component for each audited class, over all N samples; C in the order of
        `Evidence.audited`.
    conservation
        (N, C) float32 relevance in the layer over relevance at the output.
    dead
        (K,) bool: never above zero on the data.
    null_embeddings
        (M, d) float32 embeddings of random crops whose sizes are distributed as the components' own.
    attribution
        Method and composite in words.
    null_samples
        (M,) int64 sample ids that the random crops were taken from; None where that is not known.
    chosen
        ``lrp`` or ``activation_x_gradient``, and why that applies; None where the audit names the method.
    residuals
        (K, m, d) float32 what is left of `embeddings` when each one's contrastive crop is projected out; None where concept
        embeddings are means of the embeddings themselves.
    null_residuals
        (M, d) float32 the same of `null_embeddings`.
    """

    layer: str
    reference_ids: np.ndarray
    activations: np.ndarray
    embeddings: np.ndarray
    boxes: np.ndarray
    relevance: np.ndarray
    conservation: np.ndarray
    dead: np.ndarray
    null_embeddings: np.ndarray
    attribution: str
    null_samples: np.ndarray | None = None
    chosen: tuple[str, str] | None = None
    residuals: np.ndarray | None = None
    null_residuals: np.ndarray | None = None

    @property
    def meant(self) -> np.ndarray:
        """(K, m, d) float32 what concept embeddings are the mean of."""
        return self.embeddings if self.residuals is None else self.residuals

    @property
    def null_meant(self) -> np.ndarray:
        """(M, d) float32 what random reference sets are drawn from."""
        return self.null_embeddings if self.null_residuals is None else self.null_residuals

    @property
    def components(self) -> int:
        """K."""
        return len(self.dead)

    def relevance_blocks(self, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Relevance of one class for each sample, some samples at a time: what is measured from is read this way only.

        Parameters
        ----------
        classes
            (N,) int64 position among the audited classes of the class whose relevance is wanted; -1: none is.

        Yields
        ------
        samples : numpy.ndarray
            (r,) int64 sample ids, ascending from block to block; at most `SAMPLES`.
        relevance : numpy.ndarray
            (r, K) float32.
        """
        for start in range(0, len(classes), SAMPLES):
            samples = start + np.flatnonzero(classes[start : start + SAMPLES] >= 0)
            if len(samples):
                yield samples, self.relevance[samples, classes[samples]]

    def require_finite(self) -> None:
        """Refuse embeddings that hold NaN or infinities: they would drop out of means unnoticed.

        Relevance is checked where it is read, see `semlens_audit.flow`.

        Raises
        ------
        DataError
            Naming what is broken.
        """
        broken = sum(_broken(block) for array in (self.embeddings, self.null_embeddings) for block in in_blocks(array, 64))
        if broken:
            raise not_finite(f"embeddings of crops in layer {self.layer}", broken)


@dataclass(frozen=True)
class ConceptProbes:
    """What the foundation model makes of a concept's definition.

    Parameters
    ----------
    text
        (Q, T, d) float32: description x template, unit length; Q = 0 without descriptions or without a text tower.
    examples
        (E, d) float32: example crops, unit length; E = 0 without examples.
    """

    text: np.ndarray
    examples: np.ndarray


@dataclass(frozen=True)
class PairEvidence:
    """The model's outputs on counterfactual pairs: two images that are alike but for one concept.

    Parameters
    ----------
    concepts
        P ids: what the second image of each pair has and the first has not.
    without, present
        (P, C) float32 outputs for the image without and with the concept, in the order of the model's classes.
    units
        (P,) int64: pairs that share an image have the same number, and are not independent of each other.
    """

    concepts: tuple[str, ...]
    without: np.ndarray
    present: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Everything `semlens_audit.measure` needs.

    Parameters
    ----------
    classes
        Class names of the model, in output order.
    audited
        Indices into `classes` of the audited classes, in the order of the spec's classes.
    class_names
        Names of the audited classes in the spec, parallel to `audited`.
    paths
        N sample paths relative to the data's root; the position is the sample id.
    labels
        (N,) int64 index into `classes`.
    logits
        (N, len(classes)) float32 outputs.
    image_embeddings
        (N, d) float32 embeddings of the whole view.
    attributes
        concept attribute column -> (N,) int8, -1 where unknown.
    probes
        concept id -> probes.
    empty_prompts
        (T, d) float32 embeddings of each template filled with the empty string; T = 0 without text tower.
    layers
        One entry per audited layer.
    stages
        stage -> key it was read under.
    """

    classes: tuple[str, ...]
    audited: tuple[int, ...]
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    logits: Rows
    image_embeddings: Rows
    attributes: dict[str, np.ndarray]
    probes: dict[str, ConceptProbes]
    empty_prompts: np.ndarray
    layers: tuple[LayerEvidence, ...]
    stages: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    """(N,) int64 independent unit of each sample: samples with the same number are no independent evidence. None: every sample
    is a unit of its own."""
    subject: dict[str, object] = field(default_factory=dict)
    """weights_sha256, parameters, architecture of the loaded model."""
    foundation: dict[str, object] = field(default_factory=dict)
    """name, sha256, dimension, text (bool)."""
    thumbnails: Callable[[str, int, int], tuple[bytes, bytes]] | None = None
    """(layer, component, rank) -> JPEG bytes of crop and overlay."""
    look_alikes: Callable[[str, int, int], tuple[str, tuple[int, int, int, int], bytes] | None] | None = None
    """(layer, component, rank) -> path of the sample that the reference sample's contrastive crop was taken from, its box and JPEG
    bytes, see `semlens_audit.look_alikes`; None where it has none, and where concept embeddings are means."""
    headroom: tuple[LayerEvidence, ...] = ()
    """The entries of `layers` with every stored reference sample, more than m; empty where none beyond m are stored."""
    other_layers: tuple[LayerEvidence, ...] = ()
    """Layers that findings are compared with and that have none of their own."""
    other_probes: dict[str, ConceptProbes] = field(default_factory=dict)
    """concept id -> probes with other prompt templates; empty without a text tower."""
    other_prompts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(T', d) float32 embeddings of each of the other templates filled with the empty string."""
    pairs: PairEvidence | None = None
    """Counterfactual pairs; None where the data has none."""

    @property
    def units(self) -> np.ndarray:
        """(N,) int64: `groups`, or the sample ids where every sample is a unit of its own."""
        return np.arange(len(self.labels), dtype=np.int64) if self.groups is None else self.groups

    @cached_property
    def _decisions(self) -> Decisions:
        return decisions(self.logits, self.audited)

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int64 class that the model decides for."""
        return self._decisions.predicted

    def margin(self, position: int) -> np.ndarray:
        """(N,) float64 margin of the audited class at `position`, see `semlens_audit.outputs.class_margin`."""
        return self._decisions.margins[:, position]

    def require_finite(self) -> None:
        """Refuse outputs and embeddings that hold NaN or infinities: they would drop out of means unnoticed.

        Raises
        ------
        DataError
            Naming what is broken.
        """
        texts = [array for probe in self.probes.values() for array in (probe.text, probe.examples)]
        for what, broken in (
            ("outputs of the model", self._decisions.broken),
            ("embeddings of the test images", sum(_broken(block) for block in in_blocks(self.image_embeddings))),
            ("embeddings of the concepts", sum(_broken(array) for array in [*texts, self.empty_prompts])),
        ):
            if broken:
                raise not_finite(what, broken)


def _broken(array: np.ndarray) -> int:
    return int((~np.isfinite(array)).sum())


def not_finite(what: str, broken: int) -> DataError:
    """The error that says how many values of the evidence are no numbers."""
    return DataError(
        "not-finite",
        f"The {what} hold {broken} values that are not finite, so that nothing sound can be measured.",
        "Check the model's weights and its number format; remove the audit's store and run again.",
    )
