"""What a self-test prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from semlens_audit.records import SensitivityChange
from semlens_audit.selftest import Rate, Repeat, SelfTest
from semlens_audit.terminal import Text
from semlens_audit.wording import DASH, GLYPHS, STATES, count, format_number, join

__all__ = ["print_selftest"]


def print_selftest(test: SelfTest, console: Console | None = None) -> None:
    """Print the repetitions of an audit, what turned in them, and the rates.

    Parameters
    ----------
    test
        What the repetitions came to.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name in ("repetition", "seed", "images", "verdict", "turned", "other changes", "seconds"):
        table.add_column(name, justify="left" if name in ("repetition", "verdict") else "right", overflow="fold")
    for repeat in test.repeats:
        table.add_row(*map(Text, _cells(repeat)))
    console.print(table)
    console.print()
    for repeat in test.repeats:
        for change in repeat.changes:
            console.print(
                Text(f"{repeat.kind}, seed {repeat.seed}: {_change(change)}"), style="bold" if change in repeat.hard else ""
            )
        if repeat.differs:
            console.print(Text(f"{repeat.kind}: not the same to the bit: {join(list(repeat.differs))}", style="bold red"))
    same = [repeat for repeat in test.repeats if repeat.differs is not None]
    console.print(
        Text(
            f"Identical input: {'the same to the bit' if test.identical else 'NOT the same'} in"
            f" {count(len(same), 'repetition')} ({join([repeat.kind for repeat in same])})."
        )
    )
    console.print(Text(f"Findings that turned from satisfied to not satisfied or back: {_rate(test.hard)}."))
    console.print(Text(f"Findings of any other state: {_rate(test.soft)}."))
    console.print(Text(f"Verdicts that turned: {_rate(test.verdict_hard)}; of any other state: {_rate(test.verdict_soft)}."))
    if test.quick:
        console.print(
            Text(
                "Quick: nothing was indexed again. The reference samples of a half are those of the audit that are in it, fewer than"
                " the audit declares, which makes findings less conclusive than a half's own index would.",
                style="dim",
            )
        )


def _cells(repeat: Repeat) -> tuple[str, ...]:
    soft = len(repeat.changes) - len(repeat.hard)
    verdict = f"{GLYPHS[repeat.verdict]} {STATES[repeat.verdict].lower()}"
    turned = f"{len(repeat.hard)} of {repeat.findings}"
    return repeat.kind, str(repeat.seed), f"{repeat.samples:,}", verdict, turned, str(soft), f"{repeat.seconds:.1f}"


def _change(change: SensitivityChange) -> str:
    where = change.layer or ", ".join(change.concepts) or DASH
    return f"{change.check} ({change.class_name}, {where}) {STATES[change.before].lower()} → {STATES[change.after].lower()}"


def _rate(rate: Rate) -> str:
    value, low, high = (format_number(100 * part, 1) for part in (rate.hits / rate.n, rate.low, rate.high))
    return f"{rate.hits} of {rate.n:,}, {value} % (95 % interval {low}–{high} %)"
