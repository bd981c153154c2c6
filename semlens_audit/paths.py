"""Paths that people write in audit files: relative to the file, with ``${VAR:-default}`` and ``phantom:NAME`` or ``signs:NAME``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from semlens_audit.errors import SpecError
from semlens_audit.plan import AuditPlan
from semlens_audit.resources import SHIPPED, shipped_weights, shipped_weights_names

__all__ = ["PHANTOM", "examples_root", "expand", "reports_path", "resolve", "store_path", "variable_at_start", "variables"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_NAMES = re.compile(r"SEMLENS_AUDIT_[A-Z0-9_]{1,64}")
_SECRETS = re.compile(r"PASS|SECRET|TOKEN|KEY|PIN\b|_PIN_|CREDENTIAL")
ALLOW_VARIABLES = "SEMLENS_AUDIT_ALLOW_VARIABLES"
"""Environment variable: names of further variables that audits may use in paths, parted by commas."""
PHANTOM = "phantom:"


def expand(text: str, file: str | None = None) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by environment variables; an empty variable counts as unset.

    Only variables made for it are looked at: those called ``SEMLENS_AUDIT_...`` (but for secrets), and those that the user lists in
    ``SEMLENS_AUDIT_ALLOW_VARIABLES``. A stranger's audit file cannot have others shown or used.

    Raises
    ------
    SpecError
        ``unset-variable``: a variable without default is not set. ``variable-not-allowed``: another variable.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if not _may_be_used(name):
            raise SpecError(
                "variable-not-allowed",
                f"the environment variable {name} may not be used in an audit file.",
                f"Use one called SEMLENS_AUDIT_..., or allow it yourself: {ALLOW_VARIABLES}={name}.",
                file=file,
            )
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


def variable_at_start(text: str) -> str | None:
    """What the user has set the variable to that `text` begins with; ``None`` where it begins with none, or with a default."""
    match = _VARIABLE.match(text)
    return os.environ.get(match.group(1)) or None if match is not None and _may_be_used(match.group(1)) else None


def variables(text: str) -> dict[str, str]:
    """Name -> value of the environment variables that paths in `text` are made of, and of the one that allows them."""
    named = {match.group(1) for match in _VARIABLE.finditer(text)}
    used = {name: os.environ[name] for name in sorted(named) if name in os.environ and _may_be_used(name)}
    return used | ({ALLOW_VARIABLES: os.environ[ALLOW_VARIABLES]} if used and ALLOW_VARIABLES in os.environ else {})


def _may_be_used(name: str) -> bool:
    listed = {one.strip() for one in os.environ.get(ALLOW_VARIABLES, "").split(",")}
    return name in listed or (_NAMES.fullmatch(name) is not None and _SECRETS.search(name) is None)


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
        ``unset-variable``, ``variable-not-allowed``, or ``unknown-phantom`` for a name that is not shipped.
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
