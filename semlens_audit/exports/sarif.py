"""SARIF 2.1.0 (OASIS): every check is a rule, every finding a result at its line of the spec.

`render` says everything in SARIF's terms: `kind` pass, fail, open (inconclusive) or review (not measured), `suppressions` for what is
waived, `baselineState` where the record was compared with an earlier one. `render_alerts` is for consumers that know neither `kind` nor
`suppressions` and take each result for a problem, as GitHub code scanning does: it holds only what is not satisfied, inconclusive or
not measured, with a level that says how grave it is. Both name every rule, so that alerts of checks that pass now are closed.
"""

from __future__ import annotations

from typing import Any, Literal

from semlens_audit.digest import digest
from semlens_audit.errors import ExitCode
from semlens_audit.exports.dispositions import Judged, decision, judge, measured, particulars, refused_waivers, where
from semlens_audit.exports.plain import block, identifier, line, moment, uri
from semlens_audit.exports.written import write
from semlens_audit.plan import Severity
from semlens_audit.records import AuditRecord, Finding, State
from semlens_audit.release_records import ChangeLabel, WaiverRecord
from semlens_audit.wording import KINDS, STATES, format_criterion

__all__ = ["BASELINE", "render", "render_alerts"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KINDS: dict[State, Literal["pass", "fail", "open", "review"]] = {
    "satisfied": "pass",
    "not_satisfied": "fail",
    "inconclusive": "open",
    "not_measured": "review",
}
_LEVELS: dict[Severity, Literal["error", "warning", "note"]] = {"critical": "error", "major": "warning", "minor": "note"}
BASELINE: dict[ChangeLabel, Literal["new", "unchanged", "updated", "absent"]] = {
    "new": "new",
    "added": "new",
    "fixed": "updated",
    "worsened": "updated",
    "improved": "updated",
    "not_comparable": "updated",
    "within_noise": "unchanged",
    "removed": "absent",
}
"""What a change is called here. A finding that was satisfied and is not any more is ``new``, as for any analysis tool whose earlier
run raised nothing at that place."""


def render(record: AuditRecord, record_sha256: str) -> str:
    """The whole record as SARIF.

    Parameters
    ----------
    record
        What was found.
    record_sha256
        Its digest.

    Returns
    -------
    str
        The same text for the same record.

    Raises
    ------
    UsageError
        Slug ``invalid-time``, see `semlens_audit.exports.plain.moment`.
    """
    judged = judge(record)
    rules = {check: place for place, check in enumerate(dict.fromkeys(one.finding.check for one in judged))}
    results = [_result(one, record, rules, record_sha256) for one in judged]
    return _log(record, record_sha256, judged, rules, results + _absent(record, record_sha256))


def render_alerts(record: AuditRecord, record_sha256: str) -> str:
    """What needs attention as SARIF for code scanning: each result is one alert; parameters and errors as in `render`.

    What stops the release has the level of its severity; what is waived or tolerated stays visible as a note.
    """
    judged = judge(record)
    rules = {check: place for place, check in enumerate(dict.fromkeys(one.finding.check for one in judged))}
    results = []
    for one in judged:
        if one.disposition != "passed":
            result = _result(one, record, rules, record_sha256)
            for name in ("kind", "suppressions", "baselineState"):
                result.pop(name, None)
            result["level"] = _LEVELS[one.finding.severity] if one.stops else "note"
            # code scanning refuses a location without a region
            result["locations"][0]["physicalLocation"].setdefault("region", {"startLine": 1})
            results.append(result)
    return _log(record, record_sha256, judged, rules, results)


def _log(
    record: AuditRecord, record_sha256: str, judged: tuple[Judged, ...], rules: dict[str, int], results: list[dict[str, Any]]
) -> str:
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": record.tool.name,
                "version": line(record.tool.version + (f" ({record.tool.revision})" if record.tool.revision else "")),
                "semanticVersion": line(record.tool.version),
                "rules": [_rule(_first(judged, check), record) for check in rules],
            }
        },
        "automationDetails": {
            "id": f"{record.tool.name}/{line(record.audit.name)}/",
            "guid": identifier(record_sha256, "sarif"),
            "description": {"text": line(record.title) or "Audit"},
        },
        "invocations": [_invocation(record)],
        "artifacts": [
            {
                "location": _spec_file(record),
                "roles": ["analysisTarget"],
                "hashes": {"sha-256": record.spec.sha256},
                "description": {"text": "The spec: concepts, checks and acceptance criteria."},
            }
        ],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {
            "record_sha256": record_sha256,
            "exit_code": int(record.exit_code),
            "verdict": record.verdict.state,
            "gate": record.gate.outcome if record.gate else None,
            "subject": line(record.subject.name),
            "weights_sha256": record.subject.weights_sha256,
            "data_sha256": record.data.sha256,
        },
    }
    if record.change is not None and record.change.refused is None:
        run["baselineGuid"] = identifier(record.change.baseline.record_sha256, "sarif")
    return write({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _first(judged: tuple[Judged, ...], check: str) -> Finding:
    return next(one.finding for one in judged if one.finding.check == check)


def _rule(finding: Finding, record: AuditRecord) -> dict[str, Any]:
    criterion = format_criterion(finding.criterion, finding.measurement.unit)
    hazards = [f"{one.label}: {one.hazard}" for one in record.concepts if one.id in finding.concepts and one.hazard]
    help_text = block(
        finding.statement,
        f"Quantity: {KINDS[finding.kind]}",
        f"Criterion: {criterion}",
        f"Why this criterion: {finding.rationale}",
        *(f"Hazard: {hazard}" for hazard in hazards),
        f"Supports evidence for: {'; '.join(finding.supports)}" if finding.supports else None,
    )
    return {
        "id": line(finding.check),
        "name": "".join(part.capitalize() for part in finding.kind.split("_")),
        "shortDescription": {"text": line(finding.statement, 250) or line(finding.check)},
        "fullDescription": {"text": line(f"{KINDS[finding.kind]}: {criterion}. {finding.rationale}", 1000)},
        "help": {"text": help_text},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": {
            "tags": [finding.kind, finding.line, finding.severity, *map(line, finding.supports)],
            "problem.severity": {"critical": "error", "major": "warning", "minor": "recommendation"}[finding.severity],
        },
    }


def _result(one: Judged, record: AuditRecord, rules: dict[str, int], record_sha256: str) -> dict[str, Any]:
    finding = one.finding
    location: dict[str, Any] = {"artifactLocation": {**_spec_file(record), "index": 0}}
    if finding.spec_line is not None and finding.spec_line > 0:
        location["region"] = {"startLine": finding.spec_line}
    kind = _KINDS[finding.state]
    said = {"tolerated": " Tolerated by policy.", "waived": " Waived."}.get(one.disposition, "")
    place = where(finding)
    text = line(
        f"{STATES[finding.state]}: {finding.statement} {record.subject.name}, class {finding.class_name}"
        f"{f', {place}' if place else ''}: {measured(finding)}; "
        f"criterion: {format_criterion(finding.criterion, finding.measurement.unit)}.{said}"
    )
    interval = finding.measurement.interval
    result: dict[str, Any] = {
        "ruleId": line(finding.check),
        "ruleIndex": rules[finding.check],
        "guid": identifier(record_sha256, "result", one.key),
        "kind": kind,
        # 3.27.10: a level is for failures only
        "level": _LEVELS[finding.severity] if kind == "fail" else "none",
        "message": {"text": text},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": _fingerprints(finding.check, finding.id, record),
        "properties": {
            "finding": line(finding.id),
            "state": finding.state,
            "disposition": one.disposition,
            "severity": finding.severity,
            "class": line(finding.class_name),
            "quantity": line(finding.measurement.quantity),
            "unit": finding.measurement.unit,
            "value": finding.measurement.value,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "level": interval.level if interval else None,
            "n": finding.measurement.n,
            "details": particulars(one, record),
        },
    }
    if record.gate is not None:
        result["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": _justification(waiver)}
            for waiver in (one.waivers if one.disposition == "waived" else ())
        ]
    if (labels := _labels(record)) is not None:
        # what the comparison does not speak of was in no earlier run
        result["baselineState"] = BASELINE[labels.get(finding.id, "added")]
    return result


def _justification(waiver: WaiverRecord) -> str:
    return line(
        f"{waiver.justification} Owner {waiver.owner}, approved by {waiver.approver}, ticket {waiver.ticket}, "
        f"until {waiver.expires}; to be decided again: {waiver.revalidate_on}."
    )


def _labels(record: AuditRecord) -> dict[str, ChangeLabel] | None:
    """`Finding.id` -> how it changed; none where nothing was compared."""
    if record.change is None or record.change.refused is not None:
        return None
    return {entry.finding: entry.label for entry in record.change.entries}


def _absent(record: AuditRecord, record_sha256: str) -> list[dict[str, Any]]:
    """Findings of the baseline whose check is asked no more."""
    if _labels(record) is None or record.change is None:
        return []
    present = {finding.id for finding in record.findings}
    results = []
    for entry in record.change.entries:
        if entry.label == "removed" and entry.finding not in present:
            check = entry.finding.split("/", 1)[0]
            results.append(
                {
                    "ruleId": line(check),
                    "guid": identifier(record_sha256, "result", entry.finding),
                    "kind": "notApplicable",
                    "level": "none",
                    "baselineState": "absent",
                    "message": {"text": line(entry.sentence) or "The check is not in the spec any more."},
                    "locations": [{"physicalLocation": {"artifactLocation": {**_spec_file(record), "index": 0}}}],
                    "partialFingerprints": _fingerprints(check, entry.finding, record),
                    **({"suppressions": []} if record.gate is not None else {}),
                }
            )
    return results


def _fingerprints(check: str, finding: str, record: AuditRecord) -> dict[str, str]:
    """Which alert it is, from run to run: check, place and subject's name; no measured value, no digest of weights, no line."""
    print_ = digest([check, finding, record.subject.name])[:32]
    # the second is what code scanning tells alerts of one line apart by
    return {"checkAndSubject/v1": print_, "primaryLocationLineHash": f"{print_[:16]}:1"}


def _spec_file(record: AuditRecord) -> dict[str, Any]:
    file = record.spec.detail.get("file")
    name = uri(file) if isinstance(file, str) else ""
    return {"uri": name or f"{uri(record.spec.name) or 'spec'}.yaml", "uriBaseId": "%SRCROOT%"}


def _invocation(record: AuditRecord) -> dict[str, Any]:
    notes = [
        {"level": "error", "message": {"text": line(f"Waiver of {one.check} is {one.state}: {one.sentence}")}}
        for one in refused_waivers(record)
    ]
    if not record.findings:
        notes.append({"level": "error", "message": {"text": "No check was evaluated."}})
    invocation: dict[str, Any] = {
        "commandLine": line(record.command),
        "endTimeUtc": moment(record.created),
        "exitCode": int(record.exit_code),
        "exitCodeDescription": decision(record),
        # an audit in which something could not be measured has not done what it was asked to
        "executionSuccessful": record.exit_code != ExitCode.INCOMPLETE and bool(record.findings),
    }
    if notes:
        invocation["toolConfigurationNotifications"] = notes
    return invocation
