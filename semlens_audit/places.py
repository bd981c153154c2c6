"""Where in the audit file a complaint about the model belongs: what only loading it shows still gets its line and column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from semlens_audit.errors import AuditError, Problem
from semlens_audit.plan import AuditPlan
from semlens_audit.yaml_source import KeyPath, load

__all__ = ["placed_in_audit"]

_KEYS: dict[str, KeyPath] = {
    "bad-arguments": ("subject", "model", "arguments"),
    "cannot-splice": ("subject", "autoencoders"),
    "classes-do-not-fit": ("subject", "classes"),
    "code-not-allowed": ("subject", "model", "name"),
    "crop-larger-than-resize": ("subject", "preprocessing"),
    "model-fails": ("subject", "model"),
    "layer-runs-often": ("subject", "autoencoders"),
    "no-tokens": ("subject", "autoencoders"),
    "not-a-classifier": ("subject", "model", "name"),
    "other-width": ("subject", "autoencoders"),
    "preprocessing-differs": ("subject", "preprocessing"),
    "unknown-architecture": ("subject", "model", "name"),
    "unknown-class": ("subject", "model", "prompts"),
}
_OF_LAYERS = frozenset(
    {"ambiguous-layout", "no-tensor-output", "partitioned-output", "unknown-layer", "unknown-layout", "unused-layer"}
)


@contextmanager
def placed_in_audit(plan: AuditPlan) -> Iterator[None]:
    """Give every `AuditError` from inside that names no file its place in the plan's audit file, where it has one there."""
    try:
        yield
    except AuditError as error:
        problems = tuple(_placed(plan, problem) for problem in error.problems)
        if problems == error.problems:
            raise
        raise type(error)(error.slug, problems[0].message, problems=problems) from error


def _placed(plan: AuditPlan, problem: Problem) -> Problem:
    path = _KEYS.get(problem.slug)
    if problem.slug in _OF_LAYERS:
        audit = plan.audit
        places: list[tuple[KeyPath, str]] = [(("layers", index), layer) for index, layer in enumerate(audit.layers)]
        places += [(("sensitivity", "layers", index), layer) for index, layer in enumerate(audit.sensitivity.layers)]
        path = next((place for place, layer in places if repr(layer) in problem.message), ("layers",))
    if problem.file is not None or path is None:
        return problem
    line, column = load(Path(plan.audit_file)).places.value(path)
    return replace(problem, file=plan.audit_file, line=line, column=column)
