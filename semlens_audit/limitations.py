"""What an audit does not show, derived from how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from semlens_audit.measure import Measurements
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.records import UNQUALIFIED, InterventionRecord
from semlens_audit.release_records import LockRecord
from semlens_audit.sae_header import autoencoder_of, read_dictionary
from semlens_audit.ties import remark
from semlens_audit.virtual_header import read_splitting, virtual_of
from semlens_audit.wording import count, format_measured, join

__all__ = ["limitations"]

_WEAK_PRESENCE = 0.9
_UNEVEN = 0.2
_NAMED = 3


def limitations(
    plan: AuditPlan,
    measured: Measurements,
    *,
    text: bool,
    interventions: Sequence[InterventionRecord] = (),
    qualified: str = UNQUALIFIED,
    lock: LockRecord | None = None,
    tied: Mapping[str, tuple[int, int]] | None = None,
) -> Iterator[str]:
    """Sentences for the report, most consequential first.

    Parameters
    ----------
    text
        Whether the foundation model embeds text.
    interventions
        Components switched off, concluded.
    qualified
        What is known of the instrument's error rates, see `semlens_audit.standing`.
    lock
        The lock it ran under; none: it was not locked.
    tied
        Components whose reference samples tie, see `semlens_audit.ties.tied_of`.
    """
    yield (
        "The audit looks for the concepts that the spec declares. A shortcut that nobody declared shows only as "
        "unexplained relevance, and the most relevant unexplained components are pictured for that reason."
    )
    for place in measured.class_layers:
        if place.unexplained.value is not None and place.unexplained.value > 0.5:
            yield (
                f"In {place.layer}, components that match no declared concept hold "
                f"{format_measured(place.unexplained)} of the relevance for {place.class_name}: what they "
                "stand for is open."
            )
    said = remark(tied or {}, plan.audit.measurement)
    if said:
        yield f"{said} What these components are said to mean rests on it."
    yield from _interventions(plan, interventions)
    yield (
        "The findings hold for test data like the one described here. A concept that the data never shows, or always "
        "shows together with the class, cannot be judged from behaviour."
    )
    yield from _behaviour(plan, measured)
    yield from _entangled(plan, measured)
    yield from _recognition(plan, measured)
    yield from _attribution(measured)
    yield from _autoencoders(plan)
    yield from _virtual_neurons(plan)
    if not text:
        yield (
            "Concepts are defined by example crops under an image-only foundation model: the definition is no better than "
            "the examples, and a likeness in colour or texture counts as likeness in meaning."
        )
    yield from _multiplicity(plan)
    yield qualified
    yield from _registration(lock)
    yield from plan.audit.limitations


def _attribution(measured: Measurements) -> Iterator[str]:
    """What relevance is an estimate of, and what of the output it does not account for."""
    chosen: dict[str, list[str]] = {}
    for layer in measured.layers:
        if layer.method == "activation_x_gradient" and layer.choice is not None:
            chosen.setdefault(layer.choice, []).append(layer.layer)
    for reason, layers in chosen.items():
        yield (
            f"In {join(layers)}, relevance is activation times gradient, because {reason}. It tells how the output would change to "
            "first order if a component were scaled, which need not add up to the output."
        )
    for layer in measured.layers:
        if layer.conservation is not None and abs(layer.conservation - 1.0) > _UNEVEN:
            said = f"In {layer.layer}, the attributed relevance adds up to {layer.conservation:.2f} times the output: "
            yield said + (
                "activation times gradient adds up to it only where all that follows is piecewise linear without additive constants, "
                "and to nothing where the whole layer is normalised before it is read, as in transformers; shares are relative to "
                "what there is of it."
                if layer.method == "activation_x_gradient"
                else "part of it is absorbed by biases, passes the layer by or is created on the way, so shares are relative to what "
                "arrives."
            )


def _autoencoders(plan: AuditPlan) -> Iterator[str]:
    """What the latents of autoencoders leave out."""
    for layer in plan.audit.layers:
        one = autoencoder_of(plan.audit, layer)
        if one is None:
            continue
        path = resolve(plan, one.file)
        training = read_dictionary(path).training
        how = (
            "of which it is not known how well it reconstructs the layer"
            if training is None
            else f"which explains {100 * training.explained_variance:.0f} % of the layer's variance on images held back, "
            f"{count(training.dead, 'latent')} being dead"
        )
        yield (
            f"The components of {layer} are latents of a sparse autoencoder of {one.layer} ({path.name}), {how}. What it does not "
            "reconstruct may carry relevance too, and none of its latents is given any of that."
        )


def _virtual_neurons(plan: AuditPlan) -> Iterator[str]:
    """What the splits of components leave open."""
    for layer in plan.audit.layers:
        one = virtual_of(plan.audit, layer)
        if one is None:
            continue
        path = resolve(plan, one.file)
        said = read_splitting(path).splitting
        named = [
            f"{said.width + 2 * j} and {said.width + 2 * j + 1} are component {split.component}"
            for j, split in enumerate(said.splits[:_NAMED])
        ]
        more = " Those of the other components follow in their order." if len(said.splits) > _NAMED else ""
        yield (
            f"{layer} holds {count(len(said.splits), 'component')} of {one.layer} as two virtual neurons each ({path.name}): its units "
            f"{'; '.join(named)}.{more} Nothing is left in the places of these components themselves, which count as never "
            "active. On one image "
            "all of a component counts for one of them, although both of the things that it stands for may be there; no component is split "
            "in more than two."
        )


def _registration(lock: LockRecord | None) -> Iterator[str]:
    """What is not known of when criteria, data and settings were chosen."""
    if lock is None:
        yield (
            "The audit was not locked before it ran: nothing shows that its concepts, criteria, data and settings were chosen without "
            "knowledge of the results."
        )
        return
    if lock.state == "broken":
        yield (
            "The audit was not carried out as it was locked. What differs may have been chosen with knowledge of earlier results: "
            f"{'; '.join(lock.differences[:_NAMED])}"
            + (f"; and {count(len(lock.differences) - _NAMED, 'more difference')}." if len(lock.differences) > _NAMED else ".")
        )
    looks = lock.earlier_runs + lock.runs_before_lock
    if looks:
        early = f"{lock.runs_before_lock:,}" if lock.runs_before_lock else "none"
        yield (
            f"The store had seen {count(looks, 'earlier run')} of this audit, {early} of them before it was locked: "
            "whoever chose to run it again may have known their results. Runs in other stores are not known."
        )
    if not lock.witnessed:
        yield "The store saw no lock being made: when the audit was locked rests on the lock file alone."
    if not lock.log_intact:
        yield "The store's log of runs is not intact: how often the audit was run before is not known."


def _interventions(plan: AuditPlan, interventions: Sequence[InterventionRecord]) -> Iterator[str]:
    """What attributed relevance shows, and what switching components off adds to it."""
    tested = [one for one in interventions if one.state != "not_tested"]
    if not tested:
        yield (
            "Reliance is attributed relevance, not the result of an intervention: components aligned with a concept can carry "
            "relevance without deciding. The behavioural line of evidence is the counter-check, and the report says where the "
            "two disagree."
        )
    else:
        yield (
            "Reliance is attributed relevance: components aligned with a concept can carry relevance without deciding. Whether "
            f"they decide was tested by switching them off on {tested[0].samples:,} of the test samples, and the report says "
            "for each concept whether that confirms it. Switching off shows what flows through the assigned components; a "
            "concept that other components carry as well can matter more than that, and a network with components switched off "
            "is not the network in use."
        )
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    open_ones = dict.fromkeys(
        f"{labels[one.concept]} ({one.class_name}, {one.layer})" for one in interventions if one.state == "not_tested"
    )
    if tested and open_ones:
        yield f"Not tested by intervention: {join(list(open_ones))}; the reasons stand in the section on interventions."


def _multiplicity(plan: AuditPlan) -> Iterator[str]:
    """What several checks at once mean for the claims, under the spec's setting."""
    if len(plan.spec.checks) < 2:
        return
    yield (
        "Each interval holds for its own check: among several, the chance that at least one misses is larger than for one. "
        + {
            "holm": (
                "Claims that a criterion is violated are adjusted for all measured findings (Holm's method), so that this chance does "
                "not grow with their number. That all criteria are met needs no adjustment: each of them has to be shown."
            ),
            "bh": (
                "Claims that a criterion is violated are adjusted for all measured findings (Benjamini and Hochberg's method): among "
                "such claims, the share of false ones to be expected is bounded, not the chance of a single one. That all criteria "
                "are met needs no adjustment: each of them has to be shown."
            ),
            "none": f"The spec asks for no correction for multiplicity over its {len(plan.spec.checks)} checks.",
        }[plan.spec.multiplicity]
    )


def _behaviour(plan: AuditPlan, measured: Measurements) -> Iterator[str]:
    blind = [
        f"{plan.spec.concept(effect.concept).label} ({effect.class_name})"
        for effect in measured.effects
        if effect.effect.value is None and effect.presence.source == "attributes"
    ]
    if blind:
        yield f"No behavioural effect could be measured for {join(blind)}; the reasons stand beside the findings."


def _entangled(plan: AuditPlan, measured: Measurements) -> Iterator[str]:
    """Concepts that the test data tie to a class."""
    for entry in measured.presence_in_data:
        for part in entry.subgroups:
            if part.class_name in entry.entangled:
                label = plan.spec.concept(entry.concept).label
                seen = "" if entry.source == "attributes" else " (as the foundation model sees it)"
                yield (
                    f"The test data tie {label} to {part.class_name}: {part.inside.hits:,} of {part.inside.n:,} images of"
                    f" {part.class_name} hold it{seen}, and {part.outside.hits:,} of {part.outside.n:,} others. From outside, its"
                    f" effect can hardly be told from the class's own, so that the behavioural line of evidence on {label} is weak."
                )


def _recognition(plan: AuditPlan, measured: Measurements) -> Iterator[str]:
    """What the foundation model is known not to recognise, recognises poorly, or may not recognise."""
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    missed = [label for name, label in labels.items() if name in measured.unrecognised]
    if missed:
        yield (
            f"The foundation model does not recognise {join(missed)}. No criterion counts as met because nothing was found that "
            "means what it cannot see."
        )
    judged = measured.presence_auroc | measured.probe_auroc
    weak = [
        label
        for name, label in labels.items()
        if measured.presence_auroc.get(name, 1.0) < _WEAK_PRESENCE and name not in measured.unrecognised
    ]
    if weak:
        yield (
            f"The foundation model recognises {join(weak)} poorly on whole images (area under the ROC curve "
            f"below {_WEAK_PRESENCE}); alignment with these concepts is less certain than its z suggests."
        )
    if not measured.presence_auroc:
        yield (
            "The data has no column that says which sample holds which concept. Presence is what the foundation model "
            "sees, and how well it sees it could not be checked."
        )
    unknown = [label for name, label in labels.items() if name not in judged]
    if unknown:
        yield (
            f"Whether the foundation model recognises {join(unknown)} could not be checked: there are neither enough example "
            "images nor enough samples that are known to hold the concept and to lack it."
        )
