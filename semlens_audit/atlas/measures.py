"""How interpretable the components of a layer are: clarity, polysemanticity, redundancy, each with its interval.

Shapes use K components, m reference samples, B draws. SemanticLens stands for Dreyer et al., arXiv 2501.05398.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semlens_audit.atlas.meanings import Meanings, draw_weights
from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers
from semlens_audit.draws import generator, interval
from semlens_audit.flow import Flows
from semlens_audit.frozen import Frozen
from semlens_audit.interpretability import (
    NO_RELEVANCE,
    QUANTITIES,
    UNDEFINED,
    ComponentMeasures,
    Quantity,
    chance,
    measure_components,
    weighted_mean,
)
from semlens_audit.measured import Interval, Measurement
from semlens_audit.units import UnitWeights
from semlens_audit.wording import join, shorten

__all__ = [
    "QUANTITIES", "ComponentMeasures", "LayerMeasures", "MeasureRow", "MeasureTable", "Quantity", "layer_measures", "measure_components",
    "measure_table", "summarise",
]  # fmt: skip


class MeasureRow(Frozen):
    """One measure of a layer."""

    audit: str
    model: str
    """The subject's name and version."""
    layer: str
    quantity: Quantity
    weighting: str | None
    """Whose relevance weighs the components; None: each counts the same."""
    measurement: Measurement
    """`n`: components that it rests on. Its interval: other test and reference samples, the same components."""
    population: Interval | None
    """The wider interval: other components, too, as another layer or another training of the kind would have them."""
    chance: float | None
    """What as many sets of random crops reach; None where nothing is measured."""
    components: int
    dead: int
    """Components that are never above zero on the data; they are never counted."""


class MeasureTable(Frozen):
    """Interpretability measures of layers of one audit or several."""

    schema_version: Literal[1] = 1
    rows: tuple[MeasureRow, ...]
    remarks: tuple[str, ...]
    """What keeps rows from being compared, in sentences; empty where nothing does."""


@dataclass(frozen=True)
class LayerMeasures:
    """The measures of a layer and what they are summarised with.

    Parameters
    ----------
    components
        Of each component.
    chance
        Measure -> mean over as many sets of random crops; absent where it is not defined.
    """

    components: ComponentMeasures
    chance: dict[Quantity, float]


def layer_measures(atlas: Atlas, layer: str, weights: UnitWeights | None = None) -> LayerMeasures:
    """Measures of a layer's components, and what random crops reach.

    Parameters
    ----------
    weights
        Of the audit's units; drawn here if left out.
    """
    meanings = Meanings(atlas, layer, draw_weights(atlas.plan) if weights is None else weights)
    return LayerMeasures(measure_components(meanings), chance(atlas.plan, meanings))


def summarise(
    atlas: Atlas, layer: str, quantity: Quantity, measures: ComponentMeasures, share: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[Measurement, Interval | None]:
    """A layer's mean of a measure over its components, with its interval and the wider one for other components.

    Parameters
    ----------
    quantity
        Which measure.
    measures
        Of the layer's components.
    share
        (K,) share of relevance of each component, and (B, K) draws of it, that components are weighted by; left out: each
        counts the same.
    """
    value, draws = measures.values[quantity], measures.draws[quantity]
    known = np.isfinite(value)
    if not known.any():
        return Measurement(quantity=quantity, unit="cosine", n=0, not_measured=UNDEFINED[quantity]), None
    weight, drawn = share if share is not None else (np.ones(len(value)), np.ones(draws.shape))
    n = int((known & (weight > 0)).sum())
    if not n or (drawn[:, known].sum(axis=1) <= 0).any():
        return Measurement(quantity=quantity, unit="cosine", n=0, not_measured=NO_RELEVANCE), None
    bounds = QUANTITIES[quantity]
    mean = weighted_mean(value, weight, bounds)
    over = "reference samples" if share is None else "test and reference samples"
    own = (drawn[:, known] * draws[:, known]).sum(axis=1) / drawn[:, known].sum(axis=1)
    chosen = generator(atlas.plan, "components", layer).standard_exponential((len(draws), len(value)))[:, known]
    wide = (chosen * drawn[:, known] * draws[:, known]).sum(axis=1) / (chosen * drawn[:, known]).sum(axis=1)
    return (
        Measurement(quantity=quantity, unit="cosine", value=mean, n=n, interval=interval(atlas.plan, mean, own, over, bounds)),
        interval(atlas.plan, mean, wide, f"{over} and components", bounds),
    )


def measure_table(atlases: Sequence[Atlas], *, layer: str | None = None, class_name: str | None = None) -> MeasureTable:
    """Interpretability measures of the layers of audits, plain and weighted by relevance.

    Parameters
    ----------
    atlases
        Open indexes, at least one.
    layer
        One layer, which each of the audits must have; left out: all of them.
    class_name
        Class of the specs whose relevance weighs the components; left out: the mean over all audited classes.

    Raises
    ------
    UsageError
        ``unknown-layer``, ``unknown-class``.
    """
    rows = [row for atlas in atlases for name in chosen_layers(atlas.plan, layer) for row in _rows(atlas, name, class_name)]
    return MeasureTable(rows=tuple(rows), remarks=tuple(_remarks(atlases)))


def _rows(atlas: Atlas, layer: str, class_name: str | None) -> list[MeasureRow]:
    weights = draw_weights(atlas.plan)
    found, source, subject = layer_measures(atlas, layer, weights), atlas.layers[layer], atlas.plan.audit.subject
    weighting = "all audited classes" if class_name is None else chosen_class(atlas.plan, class_name)
    weighted = _shares(atlas, layer, class_name, weights.draws)
    rows = []
    for quantity in QUANTITIES:
        for by, share in ((None, None), (weighting, weighted)):
            measurement, population = summarise(atlas, layer, quantity, found.components, share)
            rows.append(
                MeasureRow(
                    audit=atlas.plan.audit.audit,
                    model=" ".join(part for part in (subject.name, subject.version) if part),
                    layer=layer,
                    quantity=quantity,
                    weighting=by,
                    measurement=measurement,
                    population=population,
                    chance=None if measurement.value is None else found.chance.get(quantity),
                    components=source.components,
                    dead=int(source.dead.sum()),
                )
            )
    return rows


def _shares(atlas: Atlas, layer: str, class_name: str | None, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(K,) mean share of relevance over the classes, (B, K) draws of it; classes without samples do not count."""
    names = list(atlas.plan.spec.classes)
    places = range(len(names)) if class_name is None else [names.index(chosen_class(atlas.plan, class_name))]
    flows, source = Flows(atlas.plan, atlas.evidence), atlas.layers[layer]
    mean, drawn, classes = np.zeros(source.components), np.zeros((draws, source.components)), 0
    for place in places:
        flow = flows.of(source, place)
        if flow.samples:
            mean, drawn, classes = mean + flow.mean, drawn + flow.drawn[:draws], classes + 1
    return mean / max(classes, 1), drawn / max(classes, 1)


def _remarks(atlases: Sequence[Atlas]) -> list[str]:
    """What differs between audits whose rows stand side by side."""

    def differing(value: list[str]) -> bool:
        return len(set(value)) > 1

    said = []
    meanings = [f"{a.evidence.foundation['name']} ({shorten(str(a.evidence.foundation['sha256']))})" for a in atlases]
    if differing(meanings):
        said.append(
            f"The audits use different foundation models, {join(list(dict.fromkeys(meanings)))}: their values are not comparable. "
            "Give each audit the same `foundation_model` and index again."
        )
    sizes = [str(a.plan.audit.measurement.reference_samples) for a in atlases]
    if differing(sizes):
        said.append(
            f"The audits have different numbers of reference samples, {join(list(dict.fromkeys(sizes)))}: their values depend on that "
            "number. Give each the same `measurement.reference_samples`."
        )
    if differing([a.data.sha256 for a in atlases]):
        said.append("The audits were made on different data, so that a difference may come from the data as well as from the model.")
    return said
