"""Surprising components: a class's relevance flows through them, their crops have something in common, and nobody expected it.

After Attributing CLIP (arXiv 2505.20229), which looks among a layer's components for those of high relevance, a clarity of at least
0.40 and low alignment with what is expected. Here "low" is held against chance, as everywhere in an audit: a component is expected
if it aligns with an expected concept beyond what random reference samples reach, see `semlens_audit.assignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from semlens_audit.assignment import assign_layer
from semlens_audit.atlas.likeness import clear_components
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.rows import Reference, own_row
from semlens_audit.draws import SHARE, interval
from semlens_audit.errors import UsageError
from semlens_audit.flow import Flows
from semlens_audit.plan import AuditPlan
from semlens_audit.records import Interval

__all__ = ["CARRIED", "CLARITY", "Expected", "Surprise", "Surprises", "surprise_values", "surprising"]

CLARITY = 0.4
"""Least clarity of a surprising component, as published for CLIP; it depends on the foundation model, so that chance is asked as well."""

CARRIED = 0.8
"""Share of the class's relevance in the layer that the fewest components carry together: these are relevant."""

VERSION = 1
"""Of the shape of `surprise_values`."""

Expected = Literal["declared", "valid"]
"""What is expected: every concept that the spec declares, or only those that a decision for the class may rest on."""

_DRAWS = 100


@dataclass(frozen=True)
class Surprise:
    """One surprising component.

    Parameters
    ----------
    layer, component
        Which.
    share, interval
        Mean share of the class's absolute relevance in the layer, 0 to 1, over resampled test samples.
    clarity
        Mean pairwise cosine of its reference crops, -1 to 1.
    nearest, z
        Of the expected concepts the one that it aligns with most, in deviations from random reference samples, and these deviations;
        ``None`` where nothing is expected.
    means
        A concept of the spec that it means though nobody expects it, such as a spurious one; ``None``: none.
    references
        Its first reference samples.
    """

    layer: str
    component: int
    share: float
    interval: Interval
    clarity: float
    nearest: str | None
    z: float | None
    means: str | None
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Surprises:
    """The surprising components of a class.

    Parameters
    ----------
    class_name
        Class of the spec.
    expected, carried, clarity
        What was asked.
    layers
        Layer -> components in it, and those of them that are relevant, that are clear as well, that are surprising; and the share
        of the class's relevance that the surprising ones carry together.
    found
        Largest share first.
    """

    class_name: str
    expected: Expected
    carried: float
    clarity: float
    layers: dict[str, tuple[int, int, int, int, float]]
    found: tuple[Surprise, ...]


def surprising(
    atlas: Atlas,
    class_name: str,
    *,
    layers: Sequence[str] | None = None,
    expected: Expected = "declared",
    carried: float = CARRIED,
    clarity: float = CLARITY,
) -> Surprises:
    """Components that a class's relevance flows through, that are clear, and that mean nothing expected.

    Parameters
    ----------
    atlas
        Opened index.
    class_name
        Class of the spec.
    layers
        Layers of the audit; ``None``: all.
    expected
        See `Expected`.
    carried
        See `CARRIED`; above 0 and at most 1.
    clarity
        Least clarity, -1 to 1. A component's clarity has to exceed that of 95 in 100 random reference sets as well.

    Raises
    ------
    UsageError
        ``bad-share``, ``bad-clarity``; ``no-samples``: the data has no sample of the class.
    DataError
        ``too-few-random-crops``.
    """
    if not 0 < carried <= 1:
        raise UsageError("bad-share", f"{carried:g} is no share above 0 and at most 1.", f"Write e.g. {CARRIED}.")
    if not -1 <= clarity <= 1:
        raise UsageError("bad-clarity", f"{clarity:g} is no clarity: it lies between -1 and 1.", f"Write e.g. {CLARITY}.")
    position = list(atlas.plan.spec.classes).index(class_name)
    flows, counts, found = Flows(atlas.plan, atlas.evidence), {}, list[Surprise]()
    for layer in atlas.plan.audit.layers if layers is None else layers:
        counts[layer], some = _layer(atlas, layer, class_name, position, flows, expected, carried, clarity)
        found += some
    found.sort(key=lambda one: (-one.share, one.layer, one.component))
    return Surprises(class_name, expected, carried, clarity, counts, tuple(found))


def surprise_values(found: Surprises) -> dict[str, Any]:
    """As JSON-ready values: ``{"document": "surprising-components", "version": 1, ...}`` with the fields of `Surprises`."""
    values = asdict(found)
    names = ("components", "relevant", "clear", "surprising", "share")
    values["layers"] = {layer: dict(zip(names, row, strict=True)) for layer, row in found.layers.items()}
    for value, one in zip(values["found"], found.found, strict=True):
        value["interval"] = {"low": one.interval.low, "high": one.interval.high, "level": one.interval.level, "method": one.interval.method}
    return {"document": "surprising-components", "version": VERSION, **values}


def _layer(
    atlas: Atlas, layer: str, class_name: str, position: int, flows: Flows, expected: Expected, carried: float, clarity: float
) -> tuple[tuple[int, int, int, int, float], list[Surprise]]:
    plan, source = atlas.plan, atlas.layers[layer]
    flow = flows.of(source, position)
    if not flow.rows:
        raise UsageError("no-samples", f"The test data has no sample of class {class_name}.", "Choose another class.")
    chosen = _carriers(flow.mean, carried)
    values, beyond = clear_components(atlas, layer, chosen)
    known = np.array([np.nan if value is None else value for value in values])
    clear = beyond & (known >= clarity)
    # Meanings are needed at the point only: fewer draws than the audit's change none of them.
    assigned = assign_layer(_fewer_draws(plan), atlas.evidence, source)
    concepts = plan.spec.concepts
    wanted = np.array([expected == "declared" or concept.role_for(class_name) == "valid" for concept in concepts])
    told: np.ndarray = np.any(assigned.weights[:, wanted] > 0, axis=1)
    kept = np.flatnonzero(clear & ~told[chosen])
    out = []
    for place in kept:
        component = int(chosen[place])
        share, weights, z = float(flow.mean[component]), assigned.weights[component], np.where(wanted, assigned.z[component], -np.inf)
        near = int(z.argmax()) if np.isfinite(z).any() else None
        out.append(
            Surprise(
                layer,
                component,
                share,
                interval(plan, min(share, 1.0), flow.drawn[:, component], "test samples", SHARE),
                float(known[place]),
                None if near is None else concepts[near].id,
                None if near is None else float(z[near]),
                concepts[int(weights.argmax())].id if weights.any() else None,
                own_row(atlas, layer, component).references,
            )
        )
    return (source.components, len(chosen), int(clear.sum()), len(out), float(sum(one.share for one in out))), out


def _carriers(share: np.ndarray, carried: float) -> np.ndarray:
    """The fewest components that carry so much of the relevance together, in order of their numbers."""
    order = np.argsort(-share, kind="stable")
    running = np.cumsum(share[order])
    if not len(running) or not running[-1] > 0:
        return np.zeros(0, dtype=np.int64)
    enough = int(np.searchsorted(running, carried * running[-1] * (1 - 1e-12))) + 1
    return np.sort(order[:enough][share[order[:enough]] > 0])


def _fewer_draws(plan: AuditPlan) -> AuditPlan:
    settings = plan.audit.measurement.model_copy(update={"bootstrap": min(_DRAWS, plan.audit.measurement.bootstrap)})
    return plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": settings})})
