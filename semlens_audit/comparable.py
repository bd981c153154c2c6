"""Whether two records measured the same: what keeps a finding of one from being held against the same finding of the other."""

from __future__ import annotations

from collections.abc import Sequence

from semlens_audit.records import AuditRecord, EffectRecord, Finding, Measurement
from semlens_audit.wording import KINDS, format_criterion, join, shorten

__all__ = ["criterion_changed", "effect_of", "obstacle", "refusal", "remarks", "signed"]

_MECHANISTIC = (
    "reference_samples", "selection", "pooling", "attribution", "crop_blur", "crop_threshold", "crop_minimum", "probe",
    "significance", "false_discovery_rate",
)  # fmt: skip
"""Settings that change what is measured inside the model; those that change only how precisely, or from how many samples on,
leave it comparable."""
_PRESENCE = ("probe",)
"""Settings that change where a foundation model sees a concept."""


def refusal(old: AuditRecord, new: AuditRecord) -> str | None:
    """Why nothing of `new` can be compared with `old`, as a sentence; None where something may be."""
    if old.spec.name != new.spec.name:
        return f"The baseline is an audit under another spec, {old.spec.name}; this one is under {new.spec.name}."
    before, after = old.foundation_model, new.foundation_model
    if before.sha256 != after.sha256:
        return (
            f"The baseline was measured with another foundation model, {before.name} (SHA-256 {shorten(before.sha256)}…); this "
            f"audit with {after.name} ({shorten(after.sha256)}…). Concepts mean something else in each."
        )
    return None


def remarks(old: AuditRecord, new: AuditRecord) -> list[str]:
    """What a reader of a comparison has to know, in sentences."""
    said = []
    if old.subject.weights_sha256 == new.subject.weights_sha256:
        said.append("Both audits are of the same weights.")
    if old.data.sha256 != new.data.sha256:
        said.append("The test data differ, so that a difference may come from the data as well as from the model.")
    if old.spec.sha256 != new.spec.sha256:
        said.append("The spec was changed; results are compared where what they measure and their criterion stayed the same.")
    if (old.tool.version, old.tool.revision) != (new.tool.version, new.tool.revision):
        said.append("The baseline was written by another revision of the tool.")
    return said


def obstacle(old: AuditRecord, new: AuditRecord, before: Finding, after: Finding) -> str | None:
    """Why a finding cannot be held against the same one of the baseline, as a clause; None where it can, or only its criterion differs.

    Parameters
    ----------
    old, new
        Records.
    before, after
        Findings of these with the same `Finding.id`.
    """
    if before.kind != after.kind:
        return f"the check measured something else: {KINDS[before.kind].lower()}"
    if before.class_name != after.class_name:
        return f"the check was on another class: {before.class_name}"
    if set(before.concepts) != set(after.concepts):
        return f"the check spoke of other concepts: {join(sorted(before.concepts)) or 'none'}"
    return _definitions(old, new, after) or _sources(old, new, after) or _settings(old, new, after) or _missing(before, after)


def criterion_changed(before: Finding, after: Finding) -> str | None:
    """What the criterion was, as a clause, where it is another one now."""
    if before.criterion == after.criterion:
        return None
    unit = after.measurement.unit
    return f"the criterion was {format_criterion(before.criterion, unit)}, and is {format_criterion(after.criterion, unit)} now"


def effect_of(record: AuditRecord, finding: Finding) -> EffectRecord | None:
    """The behavioural effect that a finding is held against: by attributes where they are known."""
    matching = [one for one in record.effects if (one.class_name, one.concept) == (finding.class_name, *finding.concepts[:1])]
    return min(matching, key=lambda one: one.presence.source != "attributes", default=None)


def signed(record: AuditRecord, finding: Finding) -> Measurement:
    """The measurement that a finding is held against, before only its size was looked at.

    Where it is the finding's own, or the record has no other, that of the finding.
    """
    if not finding.concepts or finding.line == "mechanistic" or finding.criterion.operator != "at_most":
        return finding.measurement
    name, concept = finding.class_name, finding.concepts[0]
    found: Measurement | None = None
    if finding.kind == "behavioural_effect":
        effect = effect_of(record, finding)
        found = effect.effect if effect else None
    elif finding.kind == "pair_effect":
        found = next((p.effect for p in record.pair_effects if (p.class_name, p.concept) == (name, concept)), None)
    else:
        part = next(
            (s for p in record.presence_in_data if p.concept == concept for s in p.subgroups if s.class_name == name), None
        )
        if part is not None:
            found = part.gap if finding.kind == "subgroup_gap" else part.difference
    own = finding.measurement
    if found is None or found.value is None or own.value is None or abs(abs(found.value) - own.value) > 1e-9:
        return own
    return _with_levels(found, own)


def _with_levels(found: Measurement, size: Measurement) -> Measurement:
    """`found` with intervals at the levels that its size keeps: its own, widened as the size's is on the side away from zero."""
    interval, outer = found.interval, size.interval
    if interval is None or outer is None or found.value is None or interval.nested:
        return found
    value, reach = found.value, outer.high - abs(found.value)
    if reach <= 0.0:
        return found
    nested = []
    for level, _, high in outer.nested:
        wider = (high - abs(value)) / reach
        nested.append((level, value - (value - interval.low) * wider, value + (interval.high - value) * wider))
    return found.model_copy(update={"interval": interval.model_copy(update={"nested": tuple(nested)})})


def _definitions(old: AuditRecord, new: AuditRecord, finding: Finding) -> str | None:
    """Whether what the foundation model was told of the concepts is the same; all of them where they compete with each other."""
    before = {concept.id: concept for concept in old.concepts}
    after = {concept.id: concept for concept in new.concepts}
    together = finding.line == "mechanistic" or not _by_attributes(new, finding)
    if together and set(before) != set(after):
        gone, come = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        parts = [f"without {join(come)}" if come else "", f"with {join(gone)}" if gone else ""]
        return f"the baseline was measured {' and '.join(part for part in parts if part)} among the concepts"
    if finding.line == "behavioural":
        role = [
            {key for key, one in side.items() if one.roles.get(finding.class_name, one.role) == "neutral"}
            for side in (before, after)
        ]
        if role[0] != role[1]:
            return f"the role of {join(sorted(role[0] ^ role[1]))} was changed, which the effect is adjusted for"
    if "probes" in old.stages and old.stages["probes"] == new.stages.get("probes"):
        return None
    names = sorted(after) if together else sorted(finding.concepts)
    digests = {name: [side[name].definition_sha256 if name in side else None for side in (before, after)] for name in names}
    if any(None in pair for pair in digests.values()):
        return "a record does not say how its concepts were defined"
    changed = [name for name, pair in digests.items() if pair[0] != pair[1]]
    return f"the definition of {join(changed)} was changed" if changed else None


def _by_attributes(record: AuditRecord, finding: Finding) -> bool:
    """Whether where the concept is, is told by the data themselves."""
    if finding.line == "counterfactual":
        return True
    if finding.kind == "behavioural_effect":
        # other concepts stand beside it in the regression, wherever their presence is from
        return False
    return any(p.source == "attributes" for p in record.presence_in_data if p.concept in finding.concepts)


def _sources(old: AuditRecord, new: AuditRecord, finding: Finding) -> str | None:
    sources: list[str | None] = []
    for record in (old, new):
        if finding.kind == "behavioural_effect":
            effect = effect_of(record, finding)
            sources.append(effect.presence.source if effect else None)
        elif finding.line == "data":
            sources.append(next((p.source for p in record.presence_in_data if p.concept in finding.concepts[:1]), None))
    if len(set(sources)) > 1:
        return f"where the concept is was told by the {sources[0] or 'data'}, and now by the {sources[1] or 'data'}"
    if finding.layer is not None:
        layers = [next((one.attribution for one in record.layers if one.layer == finding.layer), None) for record in (old, new)]
        if layers[0] != layers[1]:
            return f"relevance was attributed by {layers[0]}"
    return None


def _settings(old: AuditRecord, new: AuditRecord, finding: Finding) -> str | None:
    if finding.line == "mechanistic":
        names: Sequence[str] = _MECHANISTIC
    elif _by_attributes(new, finding):
        names = ()
    else:
        names = _PRESENCE
    before, after = (_effective(record) for record in (old, new))
    changed = [name for name in names if before[name] != after[name]]
    if not changed:
        return None
    return "measured with other settings: " + ", ".join(f"{name} {before[name]}, and {after[name]} now" for name in changed)


def _effective(record: AuditRecord) -> dict[str, object]:
    """The settings, with what an attribution that was left open came to."""
    settings = record.settings.model_dump(mode="json")
    methods: list[str] = sorted({layer.method for layer in record.layers if layer.method is not None})
    return {**settings, "attribution": join(methods)} if methods else settings


def _missing(before: Finding, after: Finding) -> str | None:
    if before.measurement.value is None and after.measurement.value is None:
        return "it was measured in neither audit"
    if before.measurement.value is None:
        return f"the baseline did not measure it: {before.measurement.not_measured}"
    if after.measurement.value is None:
        return f"it could not be measured now: {after.measurement.not_measured}"
    return None
