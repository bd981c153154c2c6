"""A commented spec and audit to start from."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from semlens_audit.errors import Problem, UsageError
from semlens_audit.resources import templates_dir

__all__ = ["write"]

_PLACEHOLDER = "my-audit"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def write(directory: Path, name: str) -> list[Path]:
    """Write ``specs/NAME.yaml`` and ``audits/NAME.yaml`` into a folder.

    Parameters
    ----------
    directory
        Made where it does not exist.
    name
        Id of both; lower-case letters, digits, ``-`` and ``_``, at most 64.

    Returns
    -------
    list of Path
        The files written, the spec first.

    Raises
    ------
    UsageError
        ``bad-id``; ``file-exists`` with every file that is in the way, before anything is written; ``cannot-write``.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            "bad-id",
            f"`{name}` cannot be used as an id.",
            "Use at most 64 lower-case letters, digits, `_` and `-`, beginning with a letter or digit.",
        )
    targets = {kind: Path(directory) / f"{kind}s" / f"{name}.yaml" for kind in ("spec", "audit")}
    taken = [
        Problem("file-exists", "is there already.", "Choose another `--name`, or move it away.", str(path))
        for path in targets.values()
        if path.exists() or path.is_symlink()
    ]
    if taken:
        raise UsageError(taken[0].slug, taken[0].message, problems=tuple(taken))
    for kind, path in targets.items():
        text = (templates_dir() / "init" / f"{kind}.yaml").read_text(encoding="utf-8").replace(_PLACEHOLDER, name)
        try:
            _write_new(path, text)
        except OSError as error:
            raise UsageError(
                "cannot-write", f"cannot be written: {error.strerror or error}.", "Choose another folder.", file=str(path)
            ) from error
    return list(targets.values())


def _write_new(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        # mkstemp makes files that only their owner can read.
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
