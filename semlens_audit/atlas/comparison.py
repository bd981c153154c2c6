"""Two layers held against each other: what both mean, what only one of them means, what changed in relevance.

The layers may be of one audit or of two: of two models, or of two releases of a model. SemanticLens stands for Dreyer et al.,
arXiv 2501.05398.
"""

from __future__ import annotations

import numpy as np

from semlens_audit.atlas.compared import ComparedLayer, Comparison, LayerComparison, Side
from semlens_audit.atlas.held import Held, draw_matches, hold
from semlens_audit.atlas.judged import Told, describe_concepts, describe_pairs, judge, set_similarities, state_shares
from semlens_audit.atlas.matching import one_to_one
from semlens_audit.atlas.opening import Atlas, chosen_layers
from semlens_audit.atlas.shifts import common_concepts, counted, firm, flowed, kin, meant, shifts
from semlens_audit.digest import digest
from semlens_audit.errors import UsageError
from semlens_audit.foundation import foundation_digest
from semlens_audit.plan import AuditPlan

__all__ = ["compare", "compare_layers", "require_comparable"]

_SIDES: tuple[Side, Side] = ("first", "second")


def require_comparable(one: AuditPlan, other: AuditPlan) -> None:
    """Refuse two audits whose concept embeddings lie in different spaces.

    Raises
    ------
    UsageError
        ``other-foundation-model``.
    """
    if foundation_digest(one) == foundation_digest(other):
        return
    first, second = one.audit.foundation_model, other.audit.foundation_model
    raise UsageError(
        "other-foundation-model",
        f"The audits use different foundation models, {first.source} {first.name} in {one.audit_file} and {second.source} "
        f"{second.name} in {other.audit_file}: concepts mean something else in each, and no component can be compared.",
        f"Write the same `foundation_model` (source, name, weights, arguments, preprocessing) into both, e.g. that of "
        f"{one.audit_file} into a copy of {other.audit_file}, and run `semlens-audit index` with it: only embeddings are made anew.",
        file=other.audit_file,
    )


def compare(
    one: Atlas, other: Atlas, *, layer: str | None = None, other_layer: str | None = None, class_name: str | None = None
) -> Comparison:
    """Compare layers of two open indexes.

    Parameters
    ----------
    one, other
        Open indexes; the same one twice to compare two of its layers.
    layer, other_layer
        A layer of each; left out: the same as named for the other audit; both left out: every layer that both audits have.
    class_name
        Class of both specs whose relevance is compared; left out: the first that both have.

    Raises
    ------
    UsageError
        ``other-foundation-model``; ``unknown-layer``; ``no-common-layer``, ``unknown-class``.
    """
    require_comparable(one.plan, other.plan)
    named = (layer or other_layer, other_layer or layer)
    if named == (None, None):
        common = [name for name in one.plan.audit.layers if name in other.plan.audit.layers]
        places = [(name, name) for name in common]
    else:
        places = [(chosen_layers(one.plan, named[0])[0], chosen_layers(other.plan, named[1])[0])]
    if not places:
        raise UsageError(
            "no-common-layer",
            "The audits have no layer in common.",
            f"Name one of each with --layer ({', '.join(one.plan.audit.layers)}) and --other-layer "
            f"({', '.join(other.plan.audit.layers)}).",
        )
    chosen = _common_class(one.plan, other.plan, class_name)
    return Comparison(
        layers=tuple(compare_layers(one, left, other, right, chosen) for left, right in places),
        class_name=chosen,
        remarks=tuple(_remarks(one, other, chosen)),
    )


def _common_class(one: AuditPlan, other: AuditPlan, wanted: str | None) -> str | None:
    common = [name for name in one.spec.classes if name in other.spec.classes]
    if wanted is None:
        return common[0] if common else None
    if wanted not in common:
        raise UsageError(
            "unknown-class",
            f"The specs of both audits do not have a class {wanted!r}.",
            f"Classes of both: {', '.join(common)}." if common else "They have no class in common; leave --class out.",
        )
    return wanted


def compare_layers(one: Atlas, layer: str, other: Atlas, other_layer: str, class_name: str | None = None) -> LayerComparison:
    """Compare two layers.

    Components are compared by the cosine of their concept embeddings, each seen from the centre of its layer's random crops, because
    embeddings of images crowd in a narrow cone. What counts as similar is decided against chance: random reference sets, drawn from
    the layer's random crops, reach some similarity with the best of the other layer's components, too
    (`semlens_audit.atlas.matching`). Among components that are similar enough, those that the audits' checks count for the same
    concept are paired first (`semlens_audit.atlas.shifts`). Intervals are of a bootstrap over reference samples, and over test
    samples where relevance is concerned; on the same data both sides are resampled together.

    Parameters
    ----------
    one, layer, other, other_layer
        The two sides; their foundation models must be the same, see `require_comparable`.
    class_name
        Class of both specs whose relevance is compared; None: relevance is not compared.
    """
    paired = _same_samples(one, other)
    plans = (one.plan, one.plan if paired else _reseeded(one.plan, other.plan))
    sides = hold((one, other), (layer, other_layer), plans, class_name)
    left, right = sides
    tie = None if left.flow is None or right.flow is None else (left.flow.mean, right.flow.mean)
    concepts = common_concepts(one.plan, other.plan)
    held = [
        counted(atlas, side.meanings.layer, side.meanings.weights, concepts)
        for atlas, side in zip((one, other), sides, strict=True)
    ]
    kinds = (meant(held[0]), meant(held[1]))
    pairs = one_to_one(left.directions, right.directions, left.chance, right.chance, kinds, tie)
    drawn = draw_matches(sides, pairs)
    rate, level = one.plan.audit.measurement.false_discovery_rate, one.plan.audit.measurement.confidence
    moved = shifts(held[0], held[1], pairs, concepts, rate)
    described = describe_pairs(one.plan, sides, pairs, drawn.pairs, moved, paired=paired)
    singles = []
    for at, side in enumerate(sides):
        against = sides[1 - at]
        levels = (side.chance.level, against.chance.level)
        near, same = kin(side.directions, against.directions, levels, (kinds[at], kinds[1 - at]), len(concepts))
        told = Told([[*concepts, None][kind] for kind in kinds[at]], near, same, firm(held[at], level))
        singles.append(judge(one.plan, _SIDES[at], side, drawn.centred[at], pairs[at], told))
    by_concept = []
    if left.flow is not None and right.flow is not None:
        flow = flowed((held[0], held[1]), (left.flow, right.flow))
        by_concept = describe_concepts(one.plan, sides, flow, concepts, paired=paired)
    return LayerComparison(
        first=_described(one, layer, left),
        second=_described(other, other_layer, right),
        class_name=class_name,
        paired_samples=paired,
        concepts=tuple(concepts),
        similarities=tuple(
            row for at in (0, 1) for row in set_similarities(one.plan, _SIDES[at], sides[at], at, drawn, class_name)
        ),
        pairs=tuple(described),
        singles=(*singles[0], *singles[1]),
        shares=tuple(row for at in (0, 1) for row in state_shares(one.plan, _SIDES[at], sides[at], singles[at], described)),
        concept_shares=tuple(by_concept),
    )


def _same_samples(one: Atlas, other: Atlas) -> bool:
    """Whether both indexes are of the same samples in the same independent units."""
    return one.data.sha256 == other.data.sha256 and np.array_equal(one.evidence.units, other.evidence.units)


def _reseeded(one: AuditPlan, other: AuditPlan) -> AuditPlan:
    """The other plan with as many draws as the first, and a seed by which units of the same number are drawn apart."""
    settings = other.audit.measurement.model_copy(update={"bootstrap": one.audit.measurement.bootstrap})
    seed = int(digest(["other data", one.audit.seed, other.audit.seed])[:8], 16)
    return other.model_copy(update={"audit": other.audit.model_copy(update={"seed": seed, "measurement": settings})})


def _described(atlas: Atlas, layer: str, side: Held) -> ComparedLayer:
    subject, weights = atlas.plan.audit.subject, atlas.evidence.subject.get("weights_sha256")
    return ComparedLayer(
        audit=atlas.plan.audit.audit,
        model=" ".join(part for part in (subject.name, subject.version) if part),
        weights_sha256=None if weights is None else str(weights),
        layer=layer,
        components=side.meanings.components,
        dead=int(side.meanings.dead.sum()),
        known=int(side.meanings.known.sum()),
        reference_samples=atlas.plan.audit.measurement.reference_samples,
        samples=len(atlas.evidence.paths),
        data_sha256=atlas.data.sha256,
        foundation_sha256=str(atlas.evidence.foundation["sha256"]),
        stages={name: key for name, key in atlas.keys.items() if ":" not in name or name.endswith(f":{layer}")},
    )


def _remarks(one: Atlas, other: Atlas, class_name: str | None) -> list[str]:
    """What keeps the two sides from being alike but for the models, in sentences."""
    said = []
    first, second = one.plan.audit, other.plan.audit
    weights = [atlas.evidence.subject.get("weights_sha256") for atlas in (one, other)]
    if weights[0] is not None and weights[0] == weights[1] and one is not other:
        said.append("Both audits are of the same weights.")
    if one.data.sha256 != other.data.sha256:
        said.append("The audits were made on different data, so that a difference may come from the data as well as from the model.")
    elif not _same_samples(one, other):
        said.append("The audits group the same samples into independent units differently; both sides are resampled independently.")
    names = ("reference_samples", "selection", "pooling", "attribution", "crop_blur", "crop_threshold", "crop_minimum")
    differ = [name for name in names if getattr(first.measurement, name) != getattr(second.measurement, name)]
    said += [
        f"The audits differ in `measurement.{name}`: {getattr(first.measurement, name)} and {getattr(second.measurement, name)}."
        for name in differ
    ]
    precision = [atlas.evidence.foundation.get("precision") for atlas in (one, other)]
    if precision[0] != precision[1]:
        said.append(f"The foundation model embedded in {precision[0]} for one audit and in {precision[1]} for the other.")
    if class_name is None:
        said.append("The specs have no class in common, so that relevance is not compared.")
    return said
