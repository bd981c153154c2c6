"""From findings to the verdict and the exit code: the only place that decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semlens_audit.confirmation import reliance
from semlens_audit.errors import ExitCode
from semlens_audit.records import ClassLayer, ConceptRecord, Finding, InterventionRecord, State, Verdict
from semlens_audit.wording import format_measured

__all__ = ["decide"]

_MECHANISTIC = ("concept_not_used", "spurious_reliance")


def decide(
    findings: Sequence[Finding],
    concepts: Sequence[ConceptRecord],
    class_layers: Sequence[ClassLayer],
    subject: str,
    *,
    interventions: Sequence[InterventionRecord] = (),
) -> Verdict:
    """Verdict over all findings.

    Precedence: not satisfied, then not measured (incomplete), then inconclusive, then satisfied. No finding at all is
    incomplete, never satisfied.

    Parameters
    ----------
    subject
        Name of the audited model, for the headline.
    interventions
        Components switched off, concluded; the headline says what they confirm. No state depends on them.
    """
    count = {
        state: sum(finding.state == state for finding in findings)
        for state in ("satisfied", "not_satisfied", "inconclusive", "not_measured")
    }
    state: State
    if count["not_satisfied"]:
        state, code = "not_satisfied", ExitCode.NOT_SATISFIED
    elif count["not_measured"] or not findings:
        state, code = "not_measured", ExitCode.INCOMPLETE
    elif count["inconclusive"]:
        state, code = "inconclusive", ExitCode.INCONCLUSIVE
    else:
        state, code = "satisfied", ExitCode.SATISFIED
    labels = {concept.id: concept.label for concept in concepts}
    return Verdict(
        state=state,
        exit_code=code,
        headline=_headline(state, findings, labels, class_layers, subject, interventions),
        satisfied=count["satisfied"],
        not_satisfied=count["not_satisfied"],
        inconclusive=count["inconclusive"],
        not_measured=count["not_measured"],
        agreement=tuple(_agreement(findings, labels)),
    )


def _headline(
    state: State,
    findings: Sequence[Finding],
    labels: Mapping[str, str],
    class_layers: Sequence[ClassLayer],
    subject: str,
    interventions: Sequence[InterventionRecord],
) -> str:
    checks = len({finding.check for finding in findings})
    if state == "satisfied":
        return f"{subject}: {f'all {checks} checks are' if checks > 1 else 'the only check is'} satisfied."
    if state == "inconclusive":
        open_checks = sorted({finding.check for finding in findings if finding.state == "inconclusive"})
        return f"{subject}: no check failed, and the data cannot settle {_list(open_checks)}."
    if state == "not_measured":
        if not findings:
            return f"{subject}: no check was evaluated."
        missing = sorted({finding.check for finding in findings if finding.state == "not_measured"})
        return f"{subject}: incomplete, {_list(missing)} could not be measured."
    failed = [finding for finding in findings if finding.state == "not_satisfied"]
    relied: dict[str, dict[str, bool]] = {}
    other: dict[str, None] = {}
    for finding in failed:
        guilty = _guilty(finding, class_layers)
        if guilty:
            known = relied.setdefault(finding.class_name, {})
            known.update({name: known.get(name, False) or finding.line != "mechanistic" for name in guilty})
        else:
            other[finding.check] = None
    parts = [part for name, found in relied.items() for part in reliance(name, found, interventions, labels)]
    if other:
        parts.append(f"{_list(list(other))} {'is' if len(other) == 1 else 'are'} not satisfied")
    return f"{subject}: {'; '.join(parts)}."


def _guilty(finding: Finding, class_layers: Sequence[ClassLayer]) -> list[str]:
    """Concepts that a failed finding speaks against."""
    # What the data show, or where accuracy differs, is no statement on what a decision rests on.
    if finding.criterion.operator != "at_most" or finding.kind == "unexplained_relevance" or finding.line == "data":
        return []
    if len(finding.concepts) <= 1:
        return list(finding.concepts)
    place = next((c for c in class_layers if c.class_name == finding.class_name and c.layer == finding.layer), None)
    if place is None:
        return list(finding.concepts)
    ranked = sorted(finding.concepts, key=lambda name: -(place.concepts[name].value or 0.0))
    largest = place.concepts[ranked[0]].value or 0.0
    return [name for name in ranked if (place.concepts[name].value or 0.0) >= 0.5 * largest]


def _list(names: Sequence[str]) -> str:
    if len(names) <= 1:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def _agreement(findings: Sequence[Finding], labels: Mapping[str, str]) -> list[str]:
    """Where both lines of evidence speak of one class and concept: whether they agree, and why not if they do not."""
    lines: list[str] = []
    for finding in findings:
        if finding.line != "behavioural" or finding.criterion.operator != "at_most":
            continue
        concept = finding.concepts[0]
        internal = [
            other
            for other in findings
            if other.kind in _MECHANISTIC and other.class_name == finding.class_name and other.concepts == (concept,)
        ]
        if internal:
            words = f"{labels[concept]} ({finding.class_name}): {_compare(finding, internal)}"
            lines.append(words + _paired(finding, findings))
    return lines


def _paired(outside: Finding, findings: Sequence[Finding]) -> str:
    """What counterfactual pairs of the same class and concept add, where there are any."""
    pairs = [
        other
        for other in findings
        if other.line == "counterfactual" and other.class_name == outside.class_name and other.concepts == outside.concepts
    ]
    if not pairs:
        return ""
    measured = pairs[0].measurement
    if measured.value is None:
        return f" Counterfactual pairs: not measured, {measured.not_measured}."
    sides = {"not_satisfied": "beyond its criterion", "satisfied": "within its criterion"}
    words = sides.get(pairs[0].state, "which does not settle its criterion")
    return f" In counterfactual pairs, the margin moves by {format_measured(measured, pairs[0].criterion)}, {words}."


def _compare(outside: Finding, inside: Sequence[Finding]) -> str:
    states = {finding.state for finding in inside}
    inner = "not_satisfied" if "not_satisfied" in states else "satisfied" if states == {"satisfied"} else "open"
    outer = outside.state
    shares = ", ".join(
        f"{format_measured(f.measurement, f.criterion)} in {f.layer}" for f in inside if f.measurement.value is not None
    )
    effect = format_measured(outside.measurement, outside.criterion) if outside.measurement.value is not None else ""
    if inner == outer == "not_satisfied":
        return f"both lines of evidence speak against it (relevance {shares}; effect on the margin {effect})."
    if inner == outer == "satisfied":
        return f"both lines of evidence find it within its criteria (relevance {shares}; effect on the margin {effect})."
    if outer == "not_measured" and shares:
        return f"only the mechanistic line speaks (relevance {shares}); behavioural: {outside.measurement.not_measured}."
    if inner == "not_satisfied" and outer == "satisfied":
        return (
            f"the lines disagree: components that mean it hold relevance ({shares}),"
            f" yet its presence moves the margin by only {effect}. Components may be aligned with it without deciding,"
            " or stand for something that accompanies it."
        )
    if inner == "satisfied" and outer == "not_satisfied":
        return (
            f"the lines disagree: its presence moves the margin by {effect},"
            f" yet components that mean it hold little relevance ({shares})."
            " The components that carry it may be too mixed to be assigned, or lie in another layer."
        )
    return f"not settled by both lines (relevance {shares or 'not measured'}; effect on the margin {effect or 'not measured'})."
