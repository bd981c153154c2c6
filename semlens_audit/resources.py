"""Where the files that come with the tool lie: at the top of a source checkout, inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

from semlens_audit.errors import UsageError

__all__ = [
    "SHIPPED",
    "audits_dir",
    "checkout",
    "phantom_weights",
    "phantom_weights_names",
    "shipped_weights",
    "shipped_weights_names",
    "specs_dir",
    "templates_dir",
]

_PACKAGE = Path(__file__).resolve().parent

SHIPPED: tuple[str, ...] = ("phantom", "signs")
"""Rendered worlds whose weights come with the tool; ``WORLD:NAME`` in an audit file names them."""


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
    """Folder of the audits that come with the tool: in a wheel, those of rendered data only."""
    return _room("audits")


def shipped_weights_names(world: str) -> tuple[str, ...]:
    """Names that ``WORLD:NAME`` accepts as weights, sorted; `world` is one of `SHIPPED`."""
    room = _PACKAGE / world / "weights"
    return tuple(sorted(path.name for path in room.iterdir() if path.is_dir())) if room.is_dir() else ()


def shipped_weights(world: str, name: str) -> Path:
    """Folder of the shipped weights ``WORLD:NAME``.

    Raises
    ------
    UsageError
        Slug ``unknown-phantom-weights``: nothing of that name is shipped.
    """
    names = shipped_weights_names(world)
    if name not in names:
        known = ", ".join(f"{world}:{known}" for known in names) or "none"
        raise UsageError("unknown-phantom-weights", f"No weights '{world}:{name}' come with the tool.", f"There are: {known}.")
    return _PACKAGE / world / "weights" / name


def phantom_weights_names() -> tuple[str, ...]:
    """Names that ``phantom:NAME`` accepts as weights, sorted."""
    return shipped_weights_names("phantom")


def phantom_weights(name: str) -> Path:
    """Folder of the shipped weights ``phantom:NAME``; see `shipped_weights`."""
    return shipped_weights("phantom", name)
