"""Where the files that come with the tool lie: at the top of a source checkout, inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

from semlens_audit.errors import UsageError

__all__ = ["audits_dir", "checkout", "phantom_weights", "phantom_weights_names", "specs_dir", "templates_dir"]

_PACKAGE = Path(__file__).resolve().parent
_WEIGHTS = _PACKAGE / "phantom" / "weights"


def checkout() -> Path | None:
    """Root of the source checkout that this package is imported from, or ``None`` where it is installed."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and not (_PACKAGE / "specs").is_dir() else None


def _room(name: str) -> Path:
    path = (checkout() or _PACKAGE) / name
    if not path.is_dir():
        raise UsageError(
            "incomplete-installation",
            f"The installation lacks its folder {name!r} ({path}).",
            "Install semlens-audit again, or run it from a complete checkout.",
        )
    return path


def specs_dir() -> Path:
    """Folder of the specs that come with the tool."""
    return _room("specs")


def templates_dir() -> Path:
    """Folder of the templates: ``init/`` for new specs and audits, ``report/`` for pages."""
    return _room("templates")


def audits_dir() -> Path:
    """Folder of the audits that come with the tool: in a wheel, those of the phantom only."""
    return _room("audits")


def phantom_weights_names() -> tuple[str, ...]:
    """Names that ``phantom:NAME`` accepts as weights, sorted."""
    return tuple(sorted(path.name for path in _WEIGHTS.iterdir() if path.is_dir())) if _WEIGHTS.is_dir() else ()


def phantom_weights(name: str) -> Path:
    """Folder of the shipped weights ``phantom:NAME``.

    Raises
    ------
    UsageError
        Slug ``unknown-phantom-weights``: nothing of that name is shipped.
    """
    names = phantom_weights_names()
    if name not in names:
        known = ", ".join(f"phantom:{known}" for known in names) or "none"
        raise UsageError("unknown-phantom-weights", f"No weights 'phantom:{name}' come with the tool.", f"There are: {known}.")
    return _WEIGHTS / name
