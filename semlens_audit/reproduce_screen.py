"""What `reproduce` prints: what agrees and what does not, for people and for scripts."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from semlens_audit.agreement import Agreement, Compared, Match
from semlens_audit.terminal import Text
from semlens_audit.wording import STATES, capital, count

__all__ = ["print_agreement", "values"]

_WORDS: dict[Match, str] = {
    "identical": "identical to the bit",
    "within_tolerance": "within tolerance",
    "differs": "different",
}
_SHOWN = 20


def values(agreement: Agreement) -> dict[str, Any]:
    """JSON-ready values: the whole comparison and what it comes to."""
    return {
        "reproduced": agreement.reproduced,
        "exit_code": int(agreement.exit_code),
        **{match: agreement.number(match) for match in _WORDS},
        **agreement.model_dump(mode="json"),
    }


def print_agreement(agreement: Agreement, console: Console | None = None) -> None:
    """Print the counts, what is different (the worst first), and the conclusion."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    table.add_column("measurements")
    table.add_column("", justify="right")
    for match, words in _WORDS.items():
        table.add_row(Text(words), Text(f"{agreement.number(match):,}"))
    console.print(table)
    console.print()
    apart = sorted((one for one in agreement.compared if one.match == "differs"), key=lambda one: -(one.deviation or 0.0))
    for one in apart[:_SHOWN]:
        console.print(Text(f"Different: {one.what}: {_number(one.before)} then, {_number(one.after)} now{_why(one)}"))
    if len(apart) > _SHOWN:
        console.print(Text(f"and {len(apart) - _SHOWN:,} more; --json lists all."))
    if near := [one for one in agreement.compared if one.match == "within_tolerance"]:
        worst = max(near, key=lambda one: one.deviation or 0.0)
        console.print(Text(f"Largest deviation within the tolerance: {worst.what}{_why(worst)}."))
    for name, before, after in agreement.states:
        console.print(Text(f"finding {name}: {_state(before)} then, {_state(after)} now"))
    if agreement.fields:
        console.print(Text(f"Parts of the record that hold something else: {', '.join(agreement.fields)}."))
    for clause in agreement.environment:
        console.print(Text(f"Other circumstances: {clause}."))
    first, second = (STATES[state].lower() for state in agreement.verdict)
    verdict = f"the verdict is {second} again" if first == second else f"the verdict was {first} and is {second}"
    conclusion = "Reproduced" if agreement.reproduced else "Not reproduced"
    number = count(len(agreement.compared), "measurement")
    style = "green" if agreement.reproduced else "bold red"
    line = Text(conclusion, style=style)
    line.append(f": {number} compared, {verdict}. Waivers and the gate's policy are not part of the comparison.", style="default not bold")
    console.print(line)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"


def _why(one: Compared) -> str:
    if one.reason:
        return f" ({one.reason})"
    return "" if one.deviation is None else f" ({100 * one.deviation:.3g} % of the interval's half-width)"


def _state(state: str | None) -> str:
    return "absent" if state is None else capital(state.replace("_", " ")).lower()
