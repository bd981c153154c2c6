"""JUnit XML (the schema of Jenkins' xUnit plugin, junit-10): one suite for each class, and one for the gate.

Failures and errors stand exactly where something stops the release: a check not satisfied or inconclusive is a failure, one not
measured an error, an invalid waiver an error of the suite ``release gate``. What is waived is skipped; what is tolerated passes and
says so.
"""

from __future__ import annotations

from xml.etree import ElementTree

from semlens_audit.errors import ExitCode
from semlens_audit.exports.dispositions import Judged, decision, judge, measured, particulars
from semlens_audit.exports.plain import block, line, moment
from semlens_audit.gate import BAD
from semlens_audit.records import AuditRecord
from semlens_audit.wording import format_criterion

__all__ = ["GATE", "render"]

GATE = "release gate"
"""Name of the suite that holds waivers and decision."""


def render(record: AuditRecord, record_sha256: str) -> str:
    """The record as JUnit XML.

    Parameters
    ----------
    record
        What was found.
    record_sha256
        Its digest.

    Returns
    -------
    str
        The same text for the same record. It holds failures or errors if and only if the exit code is not 0.

    Raises
    ------
    UsageError
        Slug ``invalid-time``, see `semlens_audit.exports.plain.moment`.
    """
    root = ElementTree.Element("testsuites", name=line(record.audit.name))
    judged = judge(record)
    for name in dict.fromkeys(one.finding.class_name for one in judged):
        suite = _suite(root, line(f"{record.spec.name}: {name}"), record, record_sha256)
        for one in judged:
            if one.finding.class_name == name:
                _case(suite, one, record)
    gate = _suite(root, GATE, record, record_sha256)
    _gate_cases(gate, record, judged)
    cases = root.findall("testsuite")
    stopped = sum(len(suite.findall(f"testcase/{kind}")) for suite in cases for kind in ("failure", "error"))
    if stopped == 0 and record.exit_code != ExitCode.SATISFIED:
        # Whatever else the gate may hold against a release, a reader of this file alone sees that it is stopped.
        _trouble(_testcase(gate, "decision", "gate"), "error", "gate", decision(record), "")
    for suite in cases:
        _count(suite)
    for kind in ("tests", "failures", "errors"):
        root.set(kind, str(sum(int(suite.get(kind, "0")) for suite in cases)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(root: ElementTree.Element, name: str, record: AuditRecord, record_sha256: str) -> ElementTree.Element:
    suite = ElementTree.SubElement(root, "testsuite", name=name, timestamp=moment(record.created).rstrip("Z"))
    properties = ElementTree.SubElement(suite, "properties")
    values = {
        "exit_code": str(int(record.exit_code)),
        "verdict": record.verdict.state,
        "record_sha256": record_sha256,
        "subject": record.subject.name,
        "subject_version": record.subject.version or "",
        "weights_sha256": record.subject.weights_sha256,
        "spec": f"{record.spec.name} {record.spec.detail.get('version', '')}",
        "spec_sha256": record.spec.sha256,
        "tool": f"{record.tool.name} {record.tool.version}",
    }
    if record.gate is not None:
        values |= {
            "gate": record.gate.outcome,
            "fail_on": record.gate.fail_on,
            "on_inconclusive": record.gate.on_inconclusive,
            "today": record.gate.today,
        }
    for key, value in values.items():
        ElementTree.SubElement(properties, "property", name=f"semlens_audit.{key}", value=line(value))
    return suite


def _testcase(suite: ElementTree.Element, name: str, classname: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=line(name), classname=line(classname))


def _case(suite: ElementTree.Element, judged: Judged, record: AuditRecord) -> None:
    finding = judged.finding
    case = _testcase(suite, judged.key, f"{record.audit.name}.{finding.class_name}")
    text = particulars(judged, record)
    gist = block(finding.statement, finding.explanation)
    against = f"{measured(finding)}; criterion: {format_criterion(finding.criterion, finding.measurement.unit)}"
    match judged.disposition:
        case "failed":
            _trouble(case, "failure", "not satisfied", against, gist)
        case "inconclusive":
            _trouble(case, "failure", "inconclusive", against, gist)
        case "not_measured":
            _trouble(case, "error", "not measured", measured(finding), gist)
        case "waived":
            reasons = [f"waived until {one.expires}, ticket {one.ticket}: {one.justification}" for one in judged.waivers]
            _trouble(case, "skipped", "waived", "; ".join(reasons) or "waived", "")
        case "tolerated" | "passed":
            pass
    ElementTree.SubElement(case, "system-out").text = text


def _gate_cases(suite: ElementTree.Element, record: AuditRecord, judged: tuple[Judged, ...]) -> None:
    if not judged:
        _trouble(_testcase(suite, "checks", "gate"), "error", "incomplete", "No check was evaluated.", "")
    for number, waiver in enumerate(record.waivers, 1):
        name = "/".join(part for part in ("waiver", str(number), waiver.check, waiver.where) if part)
        case = _testcase(suite, name, "gate.waivers")
        if waiver.state in BAD:
            _trouble(case, "error", f"waiver {waiver.state}", waiver.sentence, "")
        said = f"{waiver.owner}, approved by {waiver.approver}, {waiver.created} to {waiver.expires}, ticket {waiver.ticket}"
        ElementTree.SubElement(case, "system-out").text = block(waiver.sentence, said, waiver.justification)
    ElementTree.SubElement(suite, "system-out").text = block(decision(record), record.verdict.headline)


def _trouble(case: ElementTree.Element, kind: str, type_: str, message: str, text: str) -> None:
    element = ElementTree.SubElement(case, kind, type=type_, message=line(message, 1000))
    element.text = text or None


def _count(suite: ElementTree.Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
