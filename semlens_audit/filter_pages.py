"""What a reader can narrow the results of a report down by: the values that occur, with their numbers of results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from semlens_audit.check_pages import SEVERITY_ORDER, STATE_ORDER, release_words
from semlens_audit.facets import Facet, Filters, Option
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.wording import STATES, capital, count

__all__ = ["filters"]

_LINES = {
    "mechanistic": "Inside the network (mechanistic)",
    "behavioural": "Outputs on test data (behavioural)",
    "counterfactual": "Outputs on pairs (counterfactual)",
    "data": "The test data",
}


def filters(record: AuditRecord) -> Filters | None:
    """Facets of which at least two values occur; none where there are fewer than two results.

    Parameters
    ----------
    record
        What was found.
    """
    if len(record.findings) < 2:
        return None
    release = release_words(record)
    labels = {concept.id: capital(concept.label) for concept in record.concepts}
    states = _facet("state", "Result", record.findings, lambda f: [f.state], STATES, list(STATE_ORDER))
    facets = (
        _facet("class", "Class", record.findings, lambda f: [f.class_name]),
        _facet("layer", "Layer", record.findings, lambda f: [f.layer] if f.layer else []),
        _facet("concepts", "Concept", record.findings, lambda f: f.concepts, labels),
        _facet("severity", "Severity", record.findings, lambda f: [f.severity], order=list(SEVERITY_ORDER)),
        _facet("line", "Line of evidence", record.findings, lambda f: [f.line], _LINES),
        _facet("release", "Release", record.findings, lambda f: [release[f.id]] if f.id in release else []),
    )
    # One layer is a choice where other results look at none.
    partial = {"layer", "release"}
    shown = tuple(f for f in facets if len(f.options) > 1 or (f.options and f.name in partial))
    return Filters(states, shown, count(len(record.findings), "result"))


def _facet(
    name: str,
    label: str,
    findings: Iterable[Finding],
    values: Callable[[Finding], Iterable[str]],
    words: Mapping[Any, str] | None = None,
    order: list[str] | None = None,
) -> Facet:
    """The values of all findings, in the order given or in that of the spec."""
    numbers: dict[str, int] = {}
    for finding in findings:
        for value in values(finding):
            numbers[value] = numbers.get(value, 0) + 1
    if order is not None:
        numbers = {value: numbers[value] for value in order if value in numbers}
    named = dict(words or {})
    return Facet(name, label, tuple(Option(value, named.get(value, value), f"{n:,}") for value, n in numbers.items()))
