"""CycloneDX 1.6 ML-BOM: audited model with its model card, foundation model, test data and the tool, each with its digest.

No ``declarations`` are made: they attest conformance to a standard, which an audit like this does not decide.
"""

from __future__ import annotations

import re
from typing import Any

from semlens_audit.exports.dispositions import Judged, decision, judge, measured, where
from semlens_audit.exports.plain import identifier, line, moment
from semlens_audit.exports.written import write
from semlens_audit.records import AuditRecord
from semlens_audit.wording import STATES, format_criterion

__all__ = ["PREFIX", "render"]

PREFIX = "semlens-audit"
"""Of the names of properties."""
_SUBJECT, _FOUNDATION, _DATA, _TOOL = "audited-model", "foundation-model", "test-data", "tool"


def render(record: AuditRecord, record_sha256: str) -> str:
    """The record as CycloneDX JSON.

    Parameters
    ----------
    record
        What was found.
    record_sha256
        Its digest; the serial number derives from it.

    Returns
    -------
    str
        The same text for the same record.

    Raises
    ------
    UsageError
        Slug ``invalid-time``, see `semlens_audit.exports.plain.moment`.
    """
    return write(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{identifier(record_sha256, 'cyclonedx')}",
            "version": 1,
            "metadata": _metadata(record, record_sha256),
            "components": [_foundation(record), _data(record)],
            "dependencies": [
                {"ref": _SUBJECT},
                {"ref": _FOUNDATION},
                {"ref": _DATA},
            ],
            "properties": _properties(
                {
                    "record_sha256": record_sha256,
                    "exit_code": str(int(record.exit_code)),
                    "verdict": record.verdict.state,
                    "headline": line(record.verdict.headline),
                    "gate": record.gate.outcome if record.gate else "",
                    "decision": decision(record),
                    "audit": line(record.audit.name),
                    "audit_sha256": record.audit.sha256,
                    "spec": line(f"{record.spec.name} {record.spec.detail.get('version', '')}"),
                    "spec_sha256": record.spec.sha256,
                }
            ),
        }
    )


def _metadata(record: AuditRecord, record_sha256: str) -> dict[str, Any]:
    tool = {
        "type": "application",
        "bom-ref": _TOOL,
        "name": line(record.tool.name),
        "version": line(record.tool.version),
        **({"properties": _properties({"revision": line(record.tool.revision)})} if record.tool.revision else {}),
    }
    return {
        "timestamp": moment(record.created),
        "tools": {"components": [tool]},
        **({"authors": [{"name": line(one.name)} for one in record.responsible]} if record.responsible else {}),
        "component": _subject(record, record_sha256),
    }


def _subject(record: AuditRecord, record_sha256: str) -> dict[str, Any]:
    subject = record.subject
    return {
        "type": "machine-learning-model",
        "bom-ref": _SUBJECT,
        "name": line(subject.name),
        **({"version": line(subject.version)} if subject.version else {}),
        **({"description": line(subject.intended_purpose)} if subject.intended_purpose else {}),
        **_hashes(subject.weights_sha256),
        "modelCard": _card(record),
        "properties": _properties(
            {
                "source": line(subject.source),
                "parameters": str(subject.parameters),
                "weights_digest": "SHA-256 of the tensors by name, dtype, shape and bytes, whatever file they came from",
                "classes": ", ".join(map(line, subject.classes)),
                "record_sha256": record_sha256,
            }
        ),
    }


def _card(record: AuditRecord) -> dict[str, Any]:
    judged = judge(record)
    metrics = [_metric(one) for one in judged if one.finding.measurement.value is not None]
    if record.subject.accuracy is not None:
        metrics.insert(0, {"type": "accuracy", "value": repr(record.subject.accuracy), "slice": "all test samples"})
    considerations: dict[str, Any] = {}
    if record.subject.intended_purpose:
        considerations["useCases"] = [line(record.subject.intended_purpose)]
    if record.limitations:
        considerations["technicalLimitations"] = [line(text) for text in record.limitations]
    if hazards := _hazards(record, judged):
        considerations["ethicalConsiderations"] = hazards
    return {
        "modelParameters": {
            "task": "image classification",
            "modelArchitecture": line(record.subject.architecture),
            "datasets": [{"ref": _DATA}],
            "inputs": [{"format": f"RGB image, {record.subject.preprocessing.get('size', 'unknown')} px square"}],
            "outputs": [{"format": f"scores of {len(record.subject.classes)} classes"}],
        },
        **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        **({"considerations": considerations} if considerations else {}),
        "properties": _properties(
            {
                line(f"finding:{one.key}"): f"{one.finding.state}, {one.disposition}: {measured(one.finding)}"
                for one in judged
            }
        ),
    }


def _metric(one: Judged) -> dict[str, Any]:
    finding = one.finding
    measurement, interval = finding.measurement, finding.measurement.interval
    place = where(finding)
    return {
        "type": line(f"{finding.check}: {measurement.quantity} ({measurement.unit})"),
        "value": repr(measurement.value),
        "slice": line(
            f"class {finding.class_name}{f', {place}' if place else ''}; "
            f"criterion {format_criterion(finding.criterion, measurement.unit)}: {STATES[finding.state].lower()}"
        ),
        **({"confidenceInterval": {"lowerBound": repr(interval.low), "upperBound": repr(interval.high)}} if interval else {}),
    }


def _hazards(record: AuditRecord, judged: tuple[Judged, ...]) -> list[dict[str, str]]:
    """What goes wrong when decisions rest on a concept, and what the checks that name it found."""
    risks = []
    for concept in record.concepts:
        if concept.hazard:
            about = [one for one in judged if concept.id in one.finding.concepts]
            found = "; ".join(f"{one.finding.id}: {STATES[one.finding.state].lower()}" for one in about)
            said = f"Checked: {found}." if found else "No check names it."
            risks.append({"name": line(f"{concept.label}: {concept.hazard}"), "mitigationStrategy": line(said)})
    return risks


def _foundation(record: AuditRecord) -> dict[str, Any]:
    foundation = record.foundation_model
    return {
        "type": "machine-learning-model",
        "bom-ref": _FOUNDATION,
        "name": line(foundation.name),
        "description": line(f"Gives image crops and concepts a common meaning during the audit. {foundation.statement}"),
        "scope": "excluded",
        **_hashes(foundation.sha256),
        "properties": _properties(
            {
                "source": line(foundation.source),
                "dimension": str(foundation.dimension),
                "text": "true" if foundation.text else "false",
            }
        ),
    }


def _data(record: AuditRecord) -> dict[str, Any]:
    data = record.data
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": line(data.source),
        **({"description": line(data.description)} if data.description else {}),
        "scope": "excluded",
        **_hashes(data.sha256),
        "data": [
            {
                "type": "dataset",
                "name": "test data",
                "contents": {
                    "properties": _properties(
                        {
                            "samples": str(data.samples),
                            "data_digest": "SHA-256 of the manifest: sorted path, content digest and label of each sample",
                            **{f"samples:{line(name)}": str(number) for name, number in data.per_class.items()},
                        }
                    )
                },
            }
        ],
    }


def _hashes(sha256: str) -> dict[str, Any]:
    """Digest of a component; left out where the record holds no SHA-256."""
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if re.fullmatch("[0-9a-f]{64}", sha256) else {}


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"{PREFIX}:{name}", "value": value} for name, value in values.items() if value]
