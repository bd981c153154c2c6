"""Paths that people write in audit files: relative to the file, with ``${VAR:-default}`` and ``phantom:NAME`` or ``signs:NAME``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from semlens_audit.errors import SpecError
from semlens_audit.plan import AuditPlan
from semlens_audit.resources import SHIPPED, shipped_weights, shipped_weights_names

__all__ = ["PHANTOM", "examples_root", "expand", "reports_path", "resolve", "store_path"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
PHANTOM = "phantom:"


def expand(text: str, file: str | None = None) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by environment variables; an empty variable counts as unset.

    Raises
    ------
    SpecError
        ``unset-variable``: a variable without default is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise SpecError(
                "unset-variable",
                f"the environment variable {name} is not set.",
                f"Set it, or write a default: ${{{name}:-path}}.",
                file=file,
            )
        return found

    return _VARIABLE.sub(value, text)


def resolve(plan: AuditPlan | Path | str, text: str) -> Path:
    """The path that `text` means.

    Parameters
    ----------
    plan
        The plan, or the path of its audit file.
    text
        What the audit file says: absolute, or relative to the audit file; ``${VAR:-default}`` is expanded, and ``phantom:NAME``
        or ``signs:NAME`` is the model folder shipped under that name, or the one weights file in it where the folder is no
        open_clip model.

    Raises
    ------
    SpecError
        ``unset-variable``, or ``unknown-phantom`` for a name that is not shipped.
    """
    audit_file = plan.audit_file if isinstance(plan, AuditPlan) else str(plan)
    text = expand(text, audit_file)
    world, colon, name = text.partition(":")
    if colon and world in SHIPPED:
        names = shipped_weights_names(world)
        if name not in names:
            known = ", ".join(f"`{world}:{other}`" for other in names) or "none in this installation"
            raise SpecError("unknown-phantom", f"there is no shipped model `{text}`.", f"There are: {known}.", file=audit_file)
        folder = shipped_weights(world, name)
        weights = sorted(folder.glob("*.safetensors"))
        return folder if (folder / "open_clip_config.json").exists() or len(weights) != 1 else weights[0]
    return Path(os.path.normpath(Path(audit_file).parent / text))


def store_path(plan: AuditPlan) -> Path:
    """Path of the plan's store; ``{audit}`` stands for the audit's id."""
    return resolve(plan, plan.audit.store.replace("{audit}", plan.audit.audit))


def reports_path(plan: AuditPlan) -> Path:
    """Folder of the plan's reports; ``{audit}`` stands for the audit's id."""
    return resolve(plan, plan.audit.reports.replace("{audit}", plan.audit.audit))


def examples_root(plan: AuditPlan) -> Path:
    """Folder that the spec's example images are relative to: the audit's ``examples_root``, else the spec's folder."""
    if plan.audit.examples_root is not None:
        return resolve(plan, plan.audit.examples_root)
    return Path(plan.spec_file).parent
