"""What an audit file may touch: the folder that it belongs to, and what the user allows beyond it.

An audit file may come from a stranger. What it names is read and written below the audit's root, symbolic links resolved; anything
else needs the user's own word: ``--allow-path``, the environment variable ``SEMLENS_AUDIT_ALLOW_PATHS``, or an environment variable
that the user has set and that the path begins with. What stands after ``:-`` in a variable was written by the author of the audit
and allows nothing. (CWE-22, CWE-59, CWE-73.)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semlens_audit.errors import SpecError
from semlens_audit.paths import expand, resolve, variable_at_start
from semlens_audit.resources import SHIPPED

__all__ = ["ALLOW_PATHS", "Tree", "allowing", "audit_root", "confined", "inside", "kind_of", "roots", "survey"]

ALLOW_PATHS = "SEMLENS_AUDIT_ALLOW_PATHS"
"""Environment variable: folders that audits may reach, parted as in ``PATH``."""

_LONGEST = 4000
_LONGEST_NAME = 255
_allowed: list[Path] = []


@contextmanager
def allowing(folders: Sequence[Path]) -> Iterator[None]:
    """Let audits that are read meanwhile reach `folders` and what is below them; relative ones are those of the working folder."""
    before = list(_allowed)
    _allowed.extend(Path(os.path.realpath(folder)) for folder in folders)
    try:
        yield
    finally:
        _allowed[:] = before


def audit_root(audit_file: Path) -> Path:
    """Folder that an audit belongs to, symbolic links resolved.

    The nearest folder above the file that is a Git repository or holds both ``specs`` and ``audits``, as `semlens-audit init` lays
    them out; else the file's own folder, or the one above where its own is called ``audits``. The user's home folder, and what is
    above it, never count, since a stranger's file may lie anywhere below.
    """
    own = Path(os.path.realpath(audit_file.parent))
    home = Path(os.path.realpath(Path.home())) if os.environ.get("HOME") else None
    for folder in (own, *own.parents):
        if folder == folder.parent or (home is not None and home.is_relative_to(folder)):
            break
        if (folder / ".git").exists() or ((folder / "specs").is_dir() and (folder / "audits").is_dir()):
            return folder
    above = own.parent
    return above if own.name == "audits" and above != above.parent and above != home else own


def roots(audit_file: Path, text: str = "") -> tuple[Path, ...]:
    """Folders that `text` may lead into when the audit file says it: its root, then those that the user allows."""
    found = [audit_root(audit_file), *_allowed]
    found += [Path(os.path.realpath(folder)) for folder in os.environ.get(ALLOW_PATHS, "").split(os.pathsep) if folder]
    value = variable_at_start(text)
    if value is not None:
        found.append(Path(os.path.realpath(audit_file.parent / value)))
    return tuple(found)


def inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether `path`, symbolic links resolved, is one of `folders` or below one."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(folder) for folder in folders)


def confined(audit_file: Path, text: str, *, writing: bool = False, also: Sequence[Path] = ()) -> Path:
    """The path that `text` means, as `semlens_audit.paths.resolve` gives it, if the audit may touch it.

    Parameters
    ----------
    audit_file
        Path of the audit file.
    text
        What it says.
    writing
        Whether something will be written there; then a Git repository's own folder is out of bounds too.
    also
        Further folders that are allowed, symbolic links resolved.

    Raises
    ------
    SpecError
        ``path-outside``; ``bad-path`` for what no file system has; what `semlens_audit.paths.resolve` raises.
    """
    shown = str(audit_file)
    path = resolve(audit_file, text)
    if "\0" in str(path) or len(str(path)) > _LONGEST or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise SpecError("bad-path", "the path is longer than a file system allows.", "Shorten it.", file=shown)
    if not writing and expand(text, shown).startswith(tuple(f"{world}:" for world in SHIPPED)):
        return path
    real = Path(os.path.realpath(path))
    if writing and any(part.is_symlink() for part in (real, *real.parents)):  # all links are followed but those that lead to themselves
        raise SpecError("bad-path", f"{path} leads through a symbolic link that leads to itself.", "Mend the link.", file=shown)
    allowed = (*roots(audit_file, text), *also)
    if not inside(path, allowed):
        written = Path(os.path.normpath(path.absolute()))
        way = f" (through a symbolic link: {real})" if any(written.is_relative_to(one) for one in allowed) else ""
        raise SpecError(
            "path-outside",
            f"{path} lies outside the audit's folder {allowed[0]}{way}.",
            f"If you trust this audit with it, say so: --allow-path {real if way else path}, or set {ALLOW_PATHS}.",
            file=shown,
        )
    if writing and ".git" in real.parts:
        raise SpecError("path-outside", f"{path} lies in a Git repository's own folder.", "Name another folder.", file=shown)
    return path


def kind_of(path: Path) -> str | None:
    """``"file"``, ``"folder"``, ``"device"`` (whatever is neither: a pipe, a socket, a device), or ``None`` for nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "device"


class Tree:
    """What a folder holds.

    Parameters
    ----------
    names
        Distinct names of the files in it and below.
    astray
        Symbolic links in it and below that lead outside of what is allowed.
    """

    def __init__(self, names: frozenset[str], astray: tuple[Path, ...]) -> None:
        self.names, self.astray = names, astray


def survey(folder: Path, allowed: Sequence[Path]) -> Tree:
    """Walk through `folder`, without following symbolic links, and look where those lead.

    Parameters
    ----------
    folder
        Where to begin; it is allowed itself.
    allowed
        Folders that links may lead into, symbolic links resolved.
    """
    names: set[str] = set()
    astray: list[Path] = []
    every = (*allowed, Path(os.path.realpath(folder)))
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink() and not inside(Path(entry.path), every):
                        astray.append(Path(entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        names.add(entry.name)
        except OSError:
            continue  # what cannot be listed cannot be read either, which is said when it is
    return Tree(frozenset(names), tuple(sorted(astray)))
