"""What a run prints: the findings with the verdict's own words, and the same as plain values for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from semlens_audit import sensitivity
from semlens_audit.records import AuditRecord, Finding, State
from semlens_audit.release_records import GateOutcome
from semlens_audit.terminal import Text
from semlens_audit.wording import GLYPHS, STATES, format_criterion, format_measured, format_number, format_share

if TYPE_CHECKING:
    from semlens_audit.explore import ComponentRow, Found

__all__ = ["component_values", "found_values", "print_components", "print_findings", "print_found", "summary"]

_STYLES: dict[State, str] = {
    "satisfied": "green",
    "not_satisfied": "bold red",
    "inconclusive": "yellow",
    "not_measured": "bold magenta",
}
_OUTCOMES: dict[GateOutcome, tuple[str, str, str]] = {
    "passed": ("✓", "passed", "green"),
    "conditional": ("!", "conditional", "yellow"),
    "failed": ("✗", "failed", "bold red"),
    "inconclusive": ("≈", "inconclusive", "yellow"),
    "incomplete": ("○", "incomplete", "bold magenta"),
    "invalid_waiver": ("✗", "invalid waiver", "bold red"),
}
_ORDER: tuple[State, ...] = ("not_satisfied", "not_measured", "inconclusive", "satisfied")


def print_findings(record: AuditRecord, files: Sequence[Path], console: Console | None = None) -> None:
    """Print the findings (failures first), the verdict, the gate's decision and where the files lie.

    Parameters
    ----------
    record
        What was found.
    files
        Files written, in the order to name them.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    several = len({finding.class_name for finding in record.findings}) > 1
    table = _table()
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    if several:
        table.add_column("class", overflow="fold")
    table.add_column("where", overflow="fold")
    table.add_column("measured", justify="right", overflow="fold")
    table.add_column("criterion", justify="right", overflow="fold")
    for finding in sorted(record.findings, key=lambda one: _ORDER.index(one.state)):
        state = Text(f"{GLYPHS[finding.state]} {STATES[finding.state].lower()}", style=_STYLES[finding.state])
        cells = [
            finding.check,
            *([finding.class_name] if several else []),
            finding.layer or ", ".join(finding.concepts) or "–",
            _measured(finding),
        ]
        table.add_row(state, *map(Text, cells), Text(_criterion(finding)))
    console.print(table)
    console.print()
    for reason, checks in _missing(record).items():
        console.print(Text(f"Not measured: {', '.join(checks)}: {reason}."))
    verdict = record.verdict
    code = f" (exit code {int(record.exit_code)}). "
    headline = Text(f"{GLYPHS[verdict.state]} {STATES[verdict.state]}", style=_STYLES[verdict.state])
    headline.append(code if record.gate is None else ". ", style="default not bold")
    headline.append(verdict.headline, style="default not bold")
    console.print(headline)
    if record.gate is not None:
        glyph, word, style = _OUTCOMES[record.gate.outcome]
        decision = Text(f"{glyph} Gate {word}", style=style)
        decision.append(code, style="default not bold")
        decision.append(record.gate.sentence, style="default not bold")
        console.print(decision)
    for waiver in record.waivers:
        console.print(Text(f"Waiver of {waiver.check}{f' at {waiver.where}' if waiver.where else ''}: {waiver.sentence}"))
    if record.change is not None:
        console.print(Text(record.change.sentence))
    for sentence in _disputed(record):
        console.print(Text(sentence))
    if hangs := sensitivity.sentence(record):
        console.print(Text(hangs))
    console.print()
    for path in files:
        console.print(Text(str(path), style="cyan"), soft_wrap=True)


def _disputed(record: AuditRecord) -> list[str]:
    """What the two lines of evidence say of the concepts that a failed check names alone; the report has the others."""
    failed = {
        concept
        for finding in record.findings
        if finding.state == "not_satisfied" and len(finding.concepts) == 1
        for concept in finding.concepts
    }
    labels = tuple(record.concept(concept).label for concept in sorted(failed))
    return [sentence for sentence in record.verdict.agreement if sentence.lower().startswith(tuple(map(str.lower, labels)))]


def _criterion(finding: Finding) -> str:
    words = format_criterion(finding.criterion, finding.measurement.unit)
    return words.replace("at most ", "≤ ").replace("at least ", "≥ ")


def _measured(finding: Finding) -> str:
    if finding.measurement.value is None:
        return "–"
    return format_measured(finding.measurement, finding.criterion)


def _missing(record: AuditRecord) -> dict[str, list[str]]:
    """Reason -> checks that could not be measured for it, each named once."""
    reasons: dict[str, dict[str, None]] = {}
    for finding in record.findings:
        if finding.measurement.not_measured is not None:
            reasons.setdefault(finding.measurement.not_measured, {})[finding.check] = None
    return {reason: list(checks) for reason, checks in reasons.items()}


def summary(record: AuditRecord, files: Sequence[Path], exit_code: int) -> dict[str, Any]:
    """Give verdict, gate, findings and files as JSON-ready values; the whole record is the first of `files`.

    `exit_code` is the one the process ends with: the record's, unless a file that was asked for is missing.
    """
    verdict = record.verdict
    return {
        "audit": record.audit.name,
        "state": verdict.state,
        "exit_code": exit_code,
        "headline": verdict.headline,
        "gate": record.gate.model_dump(mode="json") if record.gate else None,
        "change": record.change.model_dump(mode="json") if record.change else None,
        "waivers": [waiver.model_dump(mode="json") for waiver in record.waivers],
        "findings": [
            {
                "check": finding.check,
                "class": finding.class_name,
                "layer": finding.layer,
                "concepts": list(finding.concepts),
                "line": finding.line,
                "severity": finding.severity,
                "state": finding.state,
                "measurement": finding.measurement.model_dump(mode="json"),
                "criterion": finding.criterion.model_dump(mode="json", exclude_none=True),
            }
            for finding in record.findings
        ],
        "sensitivity": [tried.model_dump(mode="json") for tried in record.sensitivity],
        "files": [str(path) for path in files],
    }


def component_values(
    rows: Sequence[ComponentRow], assigned: Mapping[tuple[str, int], str | None] | None
) -> list[dict[str, Any]]:
    """Give components as JSON-ready values; `assigned` as in `print_components`."""
    values = []
    for row in rows:
        value = asdict(row)
        if assigned is not None and row.index is None:
            value["assigned"] = assigned.get((row.layer, row.component))
        values.append(value)
    return values


def print_components(
    rows: Sequence[ComponentRow],
    class_name: str,
    assigned: Mapping[tuple[str, int], str | None] | None,
    console: Console | None = None,
) -> None:
    """Print components as a table.

    Parameters
    ----------
    rows
        In the order to print.
    class_name
        Class of the spec whose share of relevance is shown.
    assigned
        (layer, component) -> concept, ``None`` for a component without one; left out where no run has assigned any, and where
        components of other indexes are among the rows.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    table = _table()
    searched, tested = any(row.similarity is not None for row in rows), any(row.z is not None for row in rows)
    foreign = any(row.index is not None for row in rows)
    assigned = None if foreign else assigned
    if tested:
        table.add_column("", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    table.add_column("component", justify="right", no_wrap=True)
    worded = any(row.words is not None for row in rows)
    for name, shown in (("similarity", searched), ("z", tested), ("adj. p", tested), ("words", worded), ("relevance", True)):
        if shown:
            table.add_column(name, justify="right", no_wrap=True)
    if assigned is not None:
        table.add_column("concept", no_wrap=True)
    if foreign:
        table.add_column("model", overflow="fold", min_width=20)
    # As many names as fit, so that the columns of numbers and concepts are never the ones that give way.
    names = [max((len(Path(r.sample).name) for r in row.references), default=1) + 1 for row in rows]
    taken = max((len(row.layer) for row in rows), default=0) + 28 + 12 * searched + 18 * tested + 7 * worded
    taken += 16 * (assigned is not None) + 24 * foreign
    most = max(1, (console.width - taken) // max(names, default=1))
    room = console.width - taken >= 8 or not searched
    if room:
        table.add_column("first reference samples" if most > 1 else "first sample", no_wrap=True, overflow="ellipsis")
    for row in rows:
        samples = "never active" if row.dead else " ".join(Path(r.sample).name for r in row.references[:most])
        cells = [row.layer, str(row.component)]
        if searched:
            cells.append("–" if row.similarity is None else format_number(row.similarity, 3))
        if tested:
            z = "–" if row.z is None else format_number(row.z, 1)
            cells = ["✓" if row.significant else " ", *cells, z, _probability(row.adjusted_p)]
        if worded:
            cells.append("–" if row.words is None else format_share(row.words))
        cells.append(format_share(row.share[class_name]) if class_name in row.share else "–")
        if assigned is not None:
            cells.append(assigned.get((row.layer, row.component)) or "–")
        if foreign:
            cells.append("this audit's" if row.index is None else f"{row.model} (index {row.index})")
        table.add_row(*map(Text, [*cells, *([samples] if room else [])]))
    console.print(table)
    if tested:
        console.print(Text("✓: significantly near; z, adj. p: against random reference sets, adjusted for all components", style="dim"))
    if worded:
        console.print(Text("words: everyday words that stand out as much for any component", style="dim"))
    console.print(Text(f"relevance: share of the relevance for {class_name} in the layer", style="dim"))


def found_values(found: Found, assigned: Mapping[tuple[str, int], str | None] | None, page: Path | None) -> dict[str, Any]:
    """Give what a search found as JSON-ready values; `assigned` as in `print_components`, `page` the HTML file that was written."""
    query = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(found.query).items()}
    return {
        "query": query,
        "sentence": found.sentence,
        "searched": found.searched,
        "layers": found.layers,
        "significantly_near": found.near,
        "tested": found.tested,
        "false_discovery_rate": found.rate,
        "least_z": found.least_z,
        "components": component_values(found.rows, assigned),
        "files": [] if page is None else [str(page)],
    }


def print_found(
    found: Found,
    class_name: str,
    assigned: Mapping[tuple[str, int], str | None] | None,
    page: Path | None = None,
    console: Console | None = None,
) -> None:
    """Print what a search found: the nearest components, and whether they are significantly near; arguments as above."""
    console = console or Console(highlight=False)
    if found.rows:
        print_components(found.rows, class_name, assigned, console)
        console.print()
    console.print(Text(found.sentence))
    if page is not None:
        console.print(Text(str(page), style="cyan"), soft_wrap=True)


def _probability(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
