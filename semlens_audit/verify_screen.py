"""What verifying came to, on the terminal."""

from __future__ import annotations

from rich.console import Console

from semlens_audit.errors import ExitCode
from semlens_audit.terminal import Text
from semlens_audit.verification import LineState, Verification

__all__ = ["print_verification"]

_MARKS: dict[LineState, tuple[str, str, str]] = {
    "proven": ("✓", "proven", "green"),
    "refused": ("✗", "refused", "bold red"),
    "not_checked": ("–", "not checked", "yellow"),
}


def print_verification(found: Verification) -> None:
    """Print every line, then what follows and what does not."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(found.file, style="bold"))
    for line in found.lines:
        mark, word, style = _MARKS[line.state]
        text = Text(f"  {mark} {word:<12}", style=style)
        text.append(line.question, style="default")
        console.print(text)
        console.print(Text(f"      {line.detail}", style="dim"))
    if found.proven:
        console.print(Text("\nProven", style="bold"))
        for sentence in found.proven:
            console.print(Text(f"  {sentence}"))
    console.print(Text("\nNot proven", style="bold"))
    for sentence in found.not_proven:
        console.print(Text(f"  {sentence}"))
    console.print()
    console.print(_verdict(found))


def _verdict(found: Verification) -> Text:
    if found.exit_code == ExitCode.SATISFIED:
        text = Text("Accepted", style="bold green")
        said = next((line.detail for line in found.lines if line.id == "record-verdict"), None)
        text.append(f": the file is what it claims to be. What the audit found: {said}" if said else ".", style="default")
        return text
    if found.exit_code == ExitCode.WAIVER:
        return Text("Refused: a waiver that the release hangs on no longer holds (exit code 5).", style="bold red")
    return Text("Refused (exit code 6).", style="bold red")
