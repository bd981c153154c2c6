"""OSCAL assessment results 1.2.1 (NIST): check -> observation by TEST, finding -> finding, what is open or waived -> risk.

Controls are those that checks name; a finding speaks of one check's objective and supports evidence for a control, it does not assess
the control. Documents stay outside and are named by their digests.
"""

from __future__ import annotations

from typing import Any

from semlens_audit.exports.dispositions import Judged, decision, judge, measured, particulars, where
from semlens_audit.exports.plain import identifier, line, moment, token, uri
from semlens_audit.exports.written import write
from semlens_audit.plan import Responsible
from semlens_audit.records import AuditRecord, State
from semlens_audit.release_records import WaiverRecord
from semlens_audit.wording import STATES, format_criterion

__all__ = ["OSCAL_VERSION", "PROPERTIES", "render"]

OSCAL_VERSION = "1.2.1"
PROPERTIES = "urn:semlens-audit:oscal"
"""Name space of the properties that OSCAL itself does not define."""
_REASONS: dict[State, str] = {"satisfied": "pass", "not_satisfied": "fail", "inconclusive": "other", "not_measured": "other"}


def render(record: AuditRecord, record_sha256: str) -> str:
    """The record as OSCAL assessment results in JSON.

    Parameters
    ----------
    record
        What was found.
    record_sha256
        Its digest; every UUID derives from it.

    Returns
    -------
    str
        The same text for the same record.

    Raises
    ------
    UsageError
        Slug ``invalid-time``, see `semlens_audit.exports.plain.moment`.
    """
    return write({"assessment-results": _Document(record, record_sha256).whole()})


class _Document:
    """The parts of one document, which refer to each other by UUID."""

    def __init__(self, record: AuditRecord, record_sha256: str) -> None:
        self.record = record
        self.sha256 = record_sha256
        self.created = moment(record.created)
        self.judged = judge(record)

    def uuid(self, *parts: str) -> str:
        return identifier(self.sha256, "oscal", *parts)

    def whole(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid("document"),
            "metadata": self.metadata(),
            "import-ap": {
                "href": f"#{self.uuid('resource', 'audit', self.record.audit.sha256)}",
                "remarks": "There is no OSCAL assessment plan. What was planned is in the audit file and the spec it names; both "
                "are among the resources, with their digests.",
            },
            "results": [self.result()],
            "back-matter": {"resources": self.resources()},
        }

    def metadata(self) -> dict[str, Any]:
        people = self.record.responsible
        metadata: dict[str, Any] = {
            "title": line(self.record.title) or "Audit",
            "last-modified": self.created,
            "version": line(self.record.schema_version) or "1",
            "oscal-version": OSCAL_VERSION,
            "props": self.decision(),
        }
        if not people:
            return metadata
        organisations = dict.fromkeys(line(one.organisation) for one in people if one.organisation and line(one.organisation))
        roles = {token(one.role): line(one.role) for one in people}
        metadata["roles"] = [{"id": name, "title": title or name} for name, title in roles.items()]
        metadata["parties"] = [
            *({"uuid": self.uuid("organisation", name), "type": "organization", "name": name} for name in organisations),
            *self.people(people),
        ]
        metadata["responsible-parties"] = [
            {
                "role-id": role["id"],
                "party-uuids": [self.person(n) for n, one in enumerate(people) if token(one.role) == role["id"]],
            }
            for role in metadata["roles"]
        ]
        return metadata

    def person(self, number: int) -> str:
        return self.uuid("person", str(number))

    def people(self, people: tuple[Responsible, ...]) -> list[dict[str, Any]]:
        parties = []
        for number, one in enumerate(people):
            party: dict[str, Any] = {"uuid": self.person(number), "type": "person", "name": line(one.name) or "unnamed"}
            if one.organisation and line(one.organisation):
                party["member-of-organizations"] = [self.uuid("organisation", line(one.organisation))]
            parties.append(party)
        return parties

    def decision(self) -> list[dict[str, str]]:
        record = self.record
        values = {
            "exit-code": str(int(record.exit_code)),
            "verdict": record.verdict.state,
            "record-sha256": self.sha256,
        }
        if record.gate is not None:
            gate = record.gate
            values |= {
                "gate": gate.outcome,
                "fail-on": gate.fail_on,
                "on-inconclusive": gate.on_inconclusive,
                "judged-on": line(gate.today),
            }
        return _properties(values)

    def result(self) -> dict[str, Any]:
        record = self.record
        result: dict[str, Any] = {
            "uuid": self.uuid("result"),
            "title": line(record.verdict.headline) or STATES[record.verdict.state],
            "description": f"{decision(record)} Purpose: {line(record.purpose)}",
            "start": self.created,
            "end": self.created,
            "props": self.decision(),
            "local-definitions": {
                "components": [self.subject()],
                "assessment-assets": {
                    "components": [self.tool()],
                    "assessment-platforms": [
                        {"uuid": self.uuid("platform"), "uses-components": [{"component-uuid": self.uuid("tool")}]}
                    ],
                },
            },
            "reviewed-controls": self.controls(),
        }
        if self.judged:
            result["observations"] = [self.observation(one) for one in self.judged]
        if risks := [risk for one in self.judged if one.disposition != "passed" for risk in self.risks(one)]:
            result["risks"] = risks
        if self.judged:
            result["findings"] = [self.finding(one) for one in self.judged]
        result["remarks"] = "Limitations: " + " ".join(map(line, record.limitations)) if record.limitations else decision(record)
        return result

    def subject(self) -> dict[str, Any]:
        subject = self.record.subject
        values = {
            "weights-sha256": subject.weights_sha256,
            "data-sha256": self.record.data.sha256,
            "architecture": line(subject.architecture),
            "version": line(subject.version or ""),
        }
        return {
            "uuid": self.uuid("subject"),
            "type": "software",
            "title": line(subject.name) or "audited model",
            "description": line(subject.intended_purpose or "") or "The audited model; its intended purpose is not stated.",
            "props": _properties(values),
            "status": {"state": "other", "remarks": "Under assessment; where it is in its life cycle is not known to the tool."},
        }

    def tool(self) -> dict[str, Any]:
        tool = self.record.tool
        return {
            "uuid": self.uuid("tool"),
            "type": "software",
            "title": line(tool.name),
            "description": "Audits what a vision model has learned: concept specs, measurements with intervals, verdicts.",
            "props": _properties({"version": line(tool.version), "revision": line(tool.revision or "")}),
            "status": {"state": "operational"},
        }

    def controls(self) -> dict[str, Any]:
        supports = sorted({support for one in self.judged for support in one.finding.supports})
        if not supports:
            return {
                "description": "No check of this audit names a control. The schema asks for a selection; none is meant.",
                "control-selections": [{"include-controls": [{"control-id": "none"}]}],
            }
        return {
            "description": "Controls that checks support evidence for. Whether a control is met is not decided here.",
            "props": [
                {"name": "supports", "ns": PROPERTIES, "value": line(support), "class": token(support)}
                for support in supports
                if line(support)
            ],
            "control-selections": [self.selection(key, named) for key, named in _by_catalogue(supports).items()],
        }

    def selection(self, key: str, supports: list[str]) -> dict[str, Any]:
        known = next((catalogue for catalogue in self.record.catalogues if catalogue.id == key), None)
        described = {"description": line(f"{known.title}, {known.edition}")} if known is not None else {}
        return {**described, "include-controls": [{"control-id": name} for name in dict.fromkeys(map(token, supports))]}

    def observation(self, one: Judged) -> dict[str, Any]:
        finding = one.finding
        measurement, interval = finding.measurement, finding.measurement.interval
        values = {
            "check": line(finding.check),
            "kind": finding.kind,
            "line-of-evidence": finding.line,
            "quantity": line(measurement.quantity),
            "unit": measurement.unit,
            "value": "" if measurement.value is None else repr(measurement.value),
            "interval-low": repr(interval.low) if interval else "",
            "interval-high": repr(interval.high) if interval else "",
            "interval-level": repr(interval.level) if interval else "",
            "samples": str(measurement.n),
        }
        return {
            "uuid": self.uuid("observation", one.key),
            "title": line(f"{finding.check}: {where(finding) or finding.class_name}"),
            "description": particulars(one, self.record),
            "props": _properties(values),
            "methods": ["TEST"],
            "types": ["finding"],
            "origins": [{"actors": [{"type": "tool", "actor-uuid": self.uuid("tool")}]}],
            "subjects": [{"subject-uuid": self.uuid("subject"), "type": "component"}],
            "relevant-evidence": [
                {
                    "href": f"#{self.uuid('resource', 'record')}",
                    "description": "The record of the audit, which holds the measurement and the images it rests on.",
                }
            ],
            "collected": self.created,
        }

    def finding(self, one: Judged) -> dict[str, Any]:
        finding = one.finding
        status = {
            "state": "satisfied" if finding.state == "satisfied" else "not-satisfied",
            "reason": _REASONS[finding.state],
            "remarks": f"{STATES[finding.state]}. {line(finding.explanation)}",
        }
        values = {
            "state": finding.state,
            "disposition": one.disposition,
            "severity": finding.severity,
            "supports": "; ".join(filter(None, map(line, finding.supports))),
            "spec-line": str(finding.spec_line or ""),
        }
        made: dict[str, Any] = {
            "uuid": self.uuid("finding", one.key),
            "title": line(f"{finding.check}: {STATES[finding.state].lower()}"),
            "description": line(
                f"{finding.statement} {measured(finding)}; "
                f"criterion: {format_criterion(finding.criterion, finding.measurement.unit)}."
            ),
            "props": _properties(values),
            "target": {"type": "objective-id", "target-id": token(finding.check), "status": status},
            "related-observations": [{"observation-uuid": self.uuid("observation", one.key)}],
        }
        if one.disposition != "passed":
            made["related-risks"] = [{"risk-uuid": risk["uuid"]} for risk in self.risks(one)]
        return made

    def risks(self, one: Judged) -> list[dict[str, Any]]:
        """One for each waiver that was applied; else one that is open."""
        if one.disposition == "waived" and one.waivers:
            return [self.waived(one, waiver, str(number)) for number, waiver in enumerate(one.waivers)]
        risk = self.risk(one, "open")
        if one.disposition == "tolerated":
            risk["props"] = _properties({"tolerated": "by the policy of the gate"})
        return [risk]

    def risk(self, one: Judged, status: str, *names: str) -> dict[str, Any]:
        finding = one.finding
        hazards = [f"{c.label}: {c.hazard}" for c in self.record.concepts if c.id in finding.concepts and c.hazard]
        return {
            "uuid": self.uuid("risk", one.key, *names),
            "title": line(f"{finding.check}: {STATES[finding.state].lower()}"),
            "description": line(finding.explanation) or STATES[finding.state],
            "statement": line(" ".join(hazards) or finding.statement) or "No statement is recorded.",
            "status": status,
            "related-observations": [{"observation-uuid": self.uuid("observation", one.key)}],
        }

    def waived(self, one: Judged, waiver: WaiverRecord, number: str) -> dict[str, Any]:
        values = {
            "ticket": line(waiver.ticket),
            "owner": line(waiver.owner),
            "approver": line(waiver.approver),
            "granted": line(waiver.created),
            "scope": line(waiver.scope),
            "score-ceiling": repr(waiver.ceiling),
            "revalidate-on": line(waiver.revalidate_on),
        }
        return {
            **self.risk(one, "deviation-approved", number),
            "props": _properties(values),
            "deadline": moment(f"{waiver.expires}T23:59:59+00:00"),
            "mitigating-factors": [
                {
                    "uuid": self.uuid("mitigation", one.key, number),
                    "description": line(waiver.justification) or "No justification is recorded.",
                }
            ],
        }

    def resources(self) -> list[dict[str, Any]]:
        record = self.record
        resources = [
            {
                "uuid": self.uuid("resource", "record"),
                "title": "Record of the audit",
                "description": "The digest is that of the record's canonical JSON, as the report prints it.",
                "props": _properties({"record-sha256": self.sha256, "schema-version": line(record.schema_version)}),
                "rlinks": [{"href": "results.json", "media-type": "application/json"}],
            },
            self.resource("audit", record.audit.name, record.audit.detail.get("file"), record.audit.sha256),
            self.resource("spec", record.spec.name, record.spec.detail.get("file"), record.spec.sha256),
        ]
        known = {record.audit.sha256, record.spec.sha256}
        for document in record.documents:
            if document.sha256 not in known:
                known.add(document.sha256)
                resources.append(self.resource(document.kind, document.name, document.name, document.sha256))
        return resources

    def resource(self, kind: str, name: str, file: object, sha256: str) -> dict[str, Any]:
        href = uri(file) if isinstance(file, str) else ""
        return {
            "uuid": self.uuid("resource", kind, sha256),
            "title": line(f"{kind}: {name}"),
            "rlinks": [
                {
                    "href": href or f"{uri(name) or kind}.yaml",
                    "hashes": [{"algorithm": "SHA-256", "value": sha256}],
                }
            ],
        }


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ns": PROPERTIES, "value": value} for name, value in values.items() if value]


def _by_catalogue(supports: list[str]) -> dict[str, list[str]]:
    """Catalogue -> its controls, of names like ``eu-ai-act:art-10-2-f``; free text stands under the empty name."""
    grouped: dict[str, list[str]] = {}
    for support in supports:
        grouped.setdefault(support.partition(":")[0] if ":" in support else "", []).append(support)
    return grouped
