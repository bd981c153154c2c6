"""Whether a record agrees with itself: its form, the files that it carries, and every decision made again from the measurements."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from math import inf
from typing import Any

from semlens_audit import checks, gate, verdict
from semlens_audit.confirmation import conclude, confirm
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import AuditError, ExitCode, IntegrityError, SpecError
from semlens_audit.lock_statement import contradictions
from semlens_audit.multiplicity import control
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.recognition import unrecognised
from semlens_audit.record_file import parse_record, record_bytes
from semlens_audit.records import AuditRecord, Finding, Interval
from semlens_audit.release_records import DocumentRecord
from semlens_audit.spec_rules import check_spec
from semlens_audit.spec_shape import validate
from semlens_audit.verification import CheckedLine, proven, refused
from semlens_audit.wording import count, shorten
from semlens_audit.yaml_source import Source, parse

__all__ = ["plan_of", "read_strictly", "record_lines", "waiver_line"]

_MOST_BYTES = 64 << 20
_ROUNDING = 1e-9
_UNTOLD = object()
_HINT = "Take the file as `run` wrote it, or run the audit again."


def read_strictly(data: bytes, file: str) -> AuditRecord:
    """The record in `data`, if that is byte for byte what `run` writes.

    Raises
    ------
    IntegrityError
        Slugs ``record-too-large``, ``invalid-record``, ``record-form``.
    UsageError
        If it was written under another schema version.
    """
    if len(data) > _MOST_BYTES:
        raise IntegrityError("record-too-large", f"The record is larger than {_MOST_BYTES >> 20} MiB.", _HINT, file=file)
    record = parse_record(data, file)
    if record_bytes(record) != data:
        said = "The record is not in the form in which `run` writes records: the file was edited."
        raise IntegrityError("record-form", said, _HINT, file=file)
    return record


def record_lines(record: AuditRecord) -> Iterator[CheckedLine]:
    """Answers to whether a record agrees with itself; stops at the first that makes further ones meaningless."""
    question = "Spec and audit file in the record are those that it names"
    try:
        plan = plan_of(record)
    except AuditError as error:
        yield refused("record-documents", question, error)
        return
    names = " and ".join(document.name for document in record.documents if document.kind in ("spec", "audit"))
    yield proven("record-documents", question, f"{names}: SHA-256 as stated, read again without a complaint.")
    steps: tuple[tuple[str, str, Callable[[AuditRecord, AuditPlan], str], str], ...] = (
        ("record-asked", "What the record says was asked is what these files ask", _asked, "Model, data, settings, concepts, persons."),
        ("record-findings", "Every finding follows from its measurement and criterion", _findings, ""),
        ("record-measurements", "Findings state the numbers of the measurements beside them", _measurements, ""),
        ("record-verdict", "The verdict follows from the findings", _verdict, record.verdict.headline),
        ("record-gate", "The decision on the release follows from findings, waivers and policy", _gate, _decision(record)),
        ("record-lock", "What the record says of its lock follows from the lock that it carries", _lock, _locked(record)),
        ("record-images", "Every image is the one that its digest names", _images, f"{len(record.images)} images."),
    )
    for identifier, question, look, said in steps:
        try:
            different = look(record, plan)
        except (AuditError, LookupError, ValueError, ArithmeticError, TypeError) as error:
            different = f"It cannot be decided again: {type(error).__name__}: {error}"
        if different:
            yield refused(identifier, question, different)
        else:
            counted = f"{len(record.findings)} findings decided again: states, p-values and explanations are the same."
            yield proven(identifier, question, counted if identifier == "record-findings" else said or "They agree.")


def plan_of(record: AuditRecord) -> AuditPlan:
    """What was asked, read again from the files that the record carries; paths in it lead nowhere.

    Raises
    ------
    IntegrityError
        Slug ``record-documents``: a file is missing, or not the one that the record names.
    SpecError
        If they are no valid spec and audit.
    """
    spec_document, audit_document = _document(record, "spec"), _document(record, "audit")
    for document in record.documents:
        if digest_bytes(document.text.encode("utf-8")) != document.sha256:
            raise _missing(f"The text of {document.name} does not have the SHA-256 that the record states")
    for document, stated in ((spec_document, record.spec.sha256), (audit_document, record.audit.sha256)):
        if document.sha256 != stated:
            raise _missing(f"{document.name} is not the file that the findings rest on")
    spec_source = parse(spec_document.text.encode("utf-8"), spec_document.name)
    audit_source = parse(audit_document.text.encode("utf-8"), audit_document.name)
    spec, audit = _valid(Spec, spec_source), _valid(Audit, audit_source)
    check_spec(spec_source)
    _complain(spec_source)
    return AuditPlan(
        spec=spec,
        audit=audit,
        spec_file=spec_document.name,
        audit_file=audit_document.name,
        spec_digest=spec_document.sha256,
        audit_digest=audit_document.sha256,
        spec_text=spec_document.text,
        audit_text=audit_document.text,
        check_lines={check.id: spec_source.places.value(("checks", index))[0] for index, check in enumerate(spec.checks)},
    )


def _missing(said: str) -> IntegrityError:
    return IntegrityError("record-documents", f"{said}.", _HINT)


def _document(record: AuditRecord, kind: str) -> DocumentRecord:
    found = [document for document in record.documents if document.kind == kind]
    if len(found) != 1:
        raise _missing(f"The record carries {'no' if not found else 'more than one'} {kind} file")
    return found[0]


def _valid(model: type[Any], source: Source) -> Any:
    value = validate(model, source) if source.data is not None else None
    _complain(source)
    if value is None:
        raise _missing(f"{source.places.file} cannot be read")
    return value


def _complain(source: Source) -> None:
    if source.problems:
        raise SpecError.of(source.problems)


def _asked(record: AuditRecord, plan: AuditPlan) -> str:
    """What differs between what was asked and what the record says was; empty where nothing does."""
    spec, audit, subject = plan.spec, plan.audit, record.subject
    named = {concept.id: concept for concept in spec.concepts}
    pairs: dict[str, tuple[object, object]] = {
        "title": (record.title, audit.title),
        "name of the audit": (record.audit.name, audit.audit),
        "name of the spec": (record.spec.name, spec.spec),
        "version of the spec": (record.spec.detail.get("version", spec.version), spec.version),
        "purpose": (record.purpose, spec.purpose),
        "responsible persons": (record.responsible, audit.responsible),
        "settings": (record.settings, audit.measurement),
        "seed": (record.seed, audit.seed),
        "name of the model": (subject.name, audit.subject.name),
        "version of the model": (subject.version, audit.subject.version),
        "intended purpose": (subject.intended_purpose, audit.subject.intended_purpose),
        "preprocessing": (subject.preprocessing, audit.subject.preprocessing.model_dump(mode="json")),
        "source of the data": (record.data.source, audit.data.source),
        "description of the data": (record.data.description, audit.data.description),
        "source of the foundation model": (record.foundation_model.source, audit.foundation_model.source),
        "concepts": ([concept.id for concept in record.concepts], list(named)),
        "layers": ([layer.layer for layer in record.layers], list(audit.layers)),
    }
    for one in record.concepts:
        asked = named.get(one.id)
        if asked is not None:
            pairs[f"concept {one.id}"] = (
                (one.label, one.role, one.roles, one.descriptions, one.examples, one.source, one.hazard),
                (asked.label, asked.role, asked.roles, asked.descriptions, len(asked.examples), asked.source, asked.hazard),
            )
    return _listed([name for name, (said, asked_for) in pairs.items() if said != asked_for], "Not as asked")


def _listed(names: Sequence[str], opening: str) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{opening}: {shown}." if names else ""


def _decided(record: AuditRecord, plan: AuditPlan) -> list[tuple[Finding, str]]:
    """All findings made again from the measurements that they state, each with what its explanation begins with.

    Remarks on what a measurement rests on, which stand behind that, are not made again.
    """
    found: list[Finding] = []
    probes = {one.id: one.probe_auroc for one in record.concepts if one.probe_auroc is not None}
    seen = {one.id: one.presence_auroc for one in record.concepts if one.presence_auroc is not None}
    missed = unrecognised(plan, probes, seen)
    for check in plan.spec.checks:
        alone = plan.model_copy(update={"spec": plan.spec.model_copy(update={"checks": (check,), "multiplicity": "none"})})
        asked = checks.quantities(alone)
        given = record.findings[len(found) : len(found) + len(asked)]
        measured = {quantity.key: finding.measurement for quantity, finding in zip(asked, given, strict=True)}
        found += checks.findings(alone, measured, record.class_layers, missed)
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    whole = confirm(control(found, plan.spec.multiplicity), record.interventions, labels)
    return [(finding, first.explanation) for finding, first in zip(whole, found, strict=True)]


def _findings(record: AuditRecord, plan: AuditPlan) -> str:
    labels = {concept.id: concept.label for concept in plan.spec.concepts}
    for one in record.interventions:
        again = conclude(one, record.effects, labels, plan.audit.measurement.smallest_effect) if one.ablations else one
        if again != one or (not one.ablations and one.state != "not_tested"):
            return f"What switching components off says of {one.concept} in {one.layer} does not follow from its numbers."
    decided = _decided(record, plan)
    if len(decided) != len(record.findings):
        return f"The spec asks for {len(decided)} findings; the record states {len(record.findings)}."
    odd = [finding.id for finding in record.findings if not _formed(finding, plan)]
    if odd:
        return _listed(odd, "No measurement of the kind that the check asks for")
    wrong = [stated.id for stated, again in zip(record.findings, decided, strict=True) if not _same(stated, *again)]
    return _listed(wrong, "Not what follows from measurement, criterion and spec")


def _formed(finding: Finding, plan: AuditPlan) -> bool:
    """Whether a measurement has the quantity, unit, range and confidence level that its check asks for."""
    own, kind = finding.measurement, checks.KINDS[finding.kind]
    if (own.quantity, own.unit) != (kind.quantity, kind.unit):
        return False
    if own.value is None or own.interval is None:
        return own.interval is None
    low, high = {"share": (0.0, 1.0), "logits": (-inf, inf), "cosine": kind.range}.get(own.unit, (-1.0, 1.0))
    inside = all(low - _ROUNDING <= value <= high + _ROUNDING for value in (own.value, own.interval.low, own.interval.high))
    return inside and own.n > 0 and abs(own.interval.level - plan.audit.measurement.confidence) < _ROUNDING


def _same(stated: Finding, again: Finding, first: str) -> bool:
    """Whether a finding is the one decided again; its explanation may hold a remark behind its first sentence."""
    if stated.model_copy(update={"explanation": again.explanation}) != again:
        return False
    rest = again.explanation.removeprefix(first)
    told = stated.explanation
    return told.startswith(first) and told.endswith(rest) and len(told) >= len(first) + len(rest)


def _measurements(record: AuditRecord, plan: AuditPlan) -> str:
    """Findings whose number stands elsewhere in the record too, and is another one there."""
    wrong = []
    for finding in record.findings:
        own, other = finding.measurement, _beside(record, finding)
        if own.value is None or own.interval is None or other is _UNTOLD:
            continue  # what is not measured passes nothing, whatever stands beside it
        if other is None or other.interval is None:
            wrong.append(finding.id)
            continue
        if (own.value, own.n, _ends(own.interval)) != (other.value, other.n, _ends(other.interval)):
            wrong.append(finding.id)
    return _listed(wrong, "Another number than where it was measured")


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.high, interval.level


def _beside(record: AuditRecord, finding: Finding) -> Any:
    """The measurement of the same quantity in the records of classes and layers: none where it has to be and is not.

    `_UNTOLD` where those records hold no quantity of the same definition.
    """
    if finding.layer is None or finding.kind in checks.CROPS:
        return _UNTOLD
    place = next((c for c in record.class_layers if (c.class_name, c.layer) == (finding.class_name, finding.layer)), None)
    if place is None:
        return None
    if finding.kind == "unexplained_relevance":
        return place.unexplained
    if len(finding.concepts) == 1:
        return place.concepts.get(finding.concepts[0])
    roles = {concept.id: concept.roles.get(finding.class_name, concept.role) for concept in record.concepts}
    for role, measured in (("valid", place.valid), ("spurious", place.spurious), ("neutral", place.neutral)):
        if set(finding.concepts) == {name for name, given in roles.items() if given == role}:
            return measured
    return _UNTOLD


def _verdict(record: AuditRecord, plan: AuditPlan) -> str:
    again = verdict.decide(
        record.findings, record.concepts, record.class_layers, record.subject.name, interventions=record.interventions
    )
    return "" if again == record.verdict else f"From the findings follows: {again.headline}"


def _decision(record: AuditRecord) -> str:
    return record.gate.sentence if record.gate is not None else "No gate decided; the verdict counts."


def _gate(record: AuditRecord, plan: AuditPlan) -> str:
    again = gate.again(record)
    return "" if again == record else f"From findings, waivers and policy follows: {_decision(again)}"


def waiver_line(record: AuditRecord, today: date) -> CheckedLine | None:
    """Whether the waivers that the release hangs on hold on `today` too; none where there are no waivers."""
    if record.gate is None or not record.waivers:
        return None
    question = f"Waivers hold on {today.isoformat()}"
    now = gate.again(record.model_copy(update={"gate": record.gate.model_copy(update={"today": today.isoformat()})}))
    bad = [waiver for waiver in now.waivers if waiver.state in gate.BAD]
    if bad:
        said = " ".join(f"{waiver.check}: {waiver.sentence}" for waiver in bad[:3])
        return refused("waivers", question, said, ExitCode.WAIVER)
    if date.fromisoformat(record.gate.today) > today + timedelta(days=1):
        said = f"They were judged as of {record.gate.today}, which is yet to come."
        return refused("waivers", question, said, ExitCode.WAIVER)
    if now.gate is not None and now.gate.exit_code != record.gate.exit_code:
        said = f"Judged on that day, the release is decided otherwise: {now.gate.sentence}"
        return refused("waivers", question, said, ExitCode.WAIVER)
    until = min(waiver.expires for waiver in now.waivers)
    return proven("waivers", question, f"{count(len(now.waivers), 'waiver')}; the first expires after {until}.")


def _locked(record: AuditRecord) -> str:
    if record.lock is None:
        return "The audit was not locked before it ran."
    word = "kept" if record.lock.state == "kept" else "broken, and the record says in what"
    return f"Lock {shorten(record.lock.sha256)}: {word}. When it was made, and how many runs there were, rests on the word of the store."


def _lock(record: AuditRecord, plan: AuditPlan) -> str:
    return " ".join(contradictions(record, plan))


def _images(record: AuditRecord, plan: AuditPlan) -> str:
    wrong = []
    for key, text in record.images.items():
        try:
            data = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            data = b""
        if digest_bytes(data) != key:
            wrong.append(key[:16])
    shown = {
        key
        for place in record.class_layers
        for component in place.components
        for reference in component.references
        for key in reference.keys
    }
    return _listed(wrong + [key[:16] for key in sorted(shown - record.images.keys())], "Images that are not there or differ")
