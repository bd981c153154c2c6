"""What the documents let a reader do: their commands, and the files that they have a reader write."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["PAGES", "ROOT", "Step", "console", "steps"]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "reports" / "know-the-model"
_OVERVIEW = FOLDER / "README.md"
PAGES = (_OVERVIEW, *(FOLDER / name for name in dict.fromkeys(re.findall(r"\]\((\w+\.md)", _OVERVIEW.read_text(encoding="utf-8")))))
"""The pages on what a model has learned: the overview, and the others in the order in which it names them."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (?P<file>[\w./-]+\.yaml)(?:: as (?P<base>[\w./-]+\.yaml), but)?$")


@dataclass(frozen=True)
class Step:
    """One thing that a page has its reader do.

    Parameters
    ----------
    words
        A command line; empty where a file is written.
    file, base, content
        File to write, the file that it is like, and what it says; `base` is ``None`` where it is whole.
    """

    words: tuple[str, ...] = ()
    file: str = ""
    base: str | None = None
    content: str = ""

    @property
    def command(self) -> str:
        """The command line as it stands on the page."""
        return shlex.join(self.words)

    def write(self, root: Path) -> None:
        """Write the file below `root`, from the file there that it is like."""
        if self.base is None:
            text = self.content
        else:
            text = yaml.safe_dump(_merged(yaml.safe_load((root / self.base).read_text()), yaml.safe_load(self.content)), sort_keys=False)
        (root / self.file).parent.mkdir(parents=True, exist_ok=True)
        (root / self.file).write_text(text)


def console(text: str) -> list[tuple[str, ...]]:
    """The command lines of the console blocks of a document, in order."""
    return [step.words for step in steps(text) if step.words]


def steps(text: str) -> list[Step]:
    """What a document has its reader do, in order.

    Commands are the lines of console blocks that begin with ``$``. A YAML block whose first line is ``# FILE`` is that file; one with
    ``# FILE: as BASE, but`` says in what it differs from another: mappings are merged, all else is replaced.
    """
    found = []
    for language, body in _BLOCK.findall(text):
        if language == "console":
            found += [Step(tuple(shlex.split(line[2:]))) for line in body.splitlines() if line.startswith("$ ")]
        elif language == "yaml" and (named := _FILE.match(body.splitlines()[0])):
            found.append(Step(file=named["file"], base=named["base"], content=body))
    return found


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {name: _merged(old.get(name), value) for name, value in new.items()}
