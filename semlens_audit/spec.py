"""Specs and audits: from YAML to a validated `AuditPlan`, with every complaint at once as ``file:line:column``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from semlens_audit.audit_rules import check_audit, check_pair, read_classes
from semlens_audit.errors import Problem, SpecError
from semlens_audit.paths import examples_root, reports_path, resolve, store_path
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.spec_rules import check_spec
from semlens_audit.spec_shape import schemas, validate
from semlens_audit.yaml_source import Source, SourceMap, load

__all__ = [
    "SourceMap", "examples_root", "lint", "model_classes", "read_plan", "read_spec", "reports_path", "resolve", "schemas", "store_path",
]


def read_plan(audit_file: Path, *, check_files: bool = True) -> AuditPlan:
    """Read an audit and its spec, checked against each other.

    Parameters
    ----------
    audit_file
        Path of the audit.
    check_files
        Whether the weights, data and example images that it names must be there.

    Returns
    -------
    AuditPlan
        Nothing is loaded yet.

    Raises
    ------
    SpecError
        With every problem of both files, the audit's first, each file's in the order of its lines.
    """
    audit_source, spec_source, audit, spec, spec_file = _read_pair(Path(audit_file), check_files)
    problems = _sorted(audit_source) + (_sorted(spec_source) if spec_source is not None else [])
    if problems:
        raise SpecError.of(problems)
    assert audit is not None and spec is not None and spec_source is not None and spec_file is not None
    lines = {check.id: spec_source.places.value(("checks", index))[0] for index, check in enumerate(spec.checks)}
    return AuditPlan(
        spec=spec, audit=audit, spec_file=str(spec_file), audit_file=str(audit_file), spec_digest=spec_source.sha256,
        audit_digest=audit_source.sha256, check_lines=lines,
    )


def read_spec(path: Path) -> tuple[Spec, SourceMap]:
    """Read a spec by itself.

    Returns
    -------
    spec : Spec
    places : SourceMap
        Line and column of each of its keys and values.

    Raises
    ------
    SpecError
        With every problem of the file, in the order of its lines.
    """
    source, spec = _read_spec(Path(path))
    if source.problems:
        raise SpecError.of(_sorted(source))
    assert spec is not None
    return spec, source.places


def model_classes(plan: AuditPlan) -> tuple[str, ...]:
    """Class names of the audited model in the order of its outputs, read from the JSON file where the audit names one.

    Raises
    ------
    SpecError
        See `semlens_audit.audit_rules.read_classes`.
    """
    return read_classes(plan.audit.subject.classes, Path(plan.audit_file))


def lint(paths: Sequence[Path], *, check_files: bool = True) -> list[Problem]:
    """Every problem of some files.

    Parameters
    ----------
    paths
        Specs, audits, or folders of them (``*.yaml`` and ``*.yml``, not below). An audit is known by its key ``audit``; it is
        checked together with its spec.
    check_files
        Whether the files that audits name must be there.

    Returns
    -------
    list of Problem
        File by file, each in the order of its lines, none twice.
    """
    found: dict[Problem, None] = {}
    for given in paths:
        for path in _files(Path(given)):
            source = load(path)
            if isinstance(source.data, dict) and "audit" in source.data:
                audit_source, spec_source, *_ = _read_pair(path, check_files)
                found.update(dict.fromkeys(_sorted(audit_source)))
                if spec_source is not None:
                    found.update(dict.fromkeys(_sorted(spec_source)))
            else:
                found.update(dict.fromkeys(_sorted(_read_spec(path)[0])))
    return list(found)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.suffix in (".yaml", ".yml"))
    return [path]


def _read_spec(path: Path, shown: str | None = None) -> tuple[Source, Spec | None]:
    source = load(path, shown)
    if source.data is None:
        return source, None
    spec = validate(Spec, source)
    check_spec(source)
    return source, spec


def _read_pair(audit_file: Path, check_files: bool) -> tuple[Source, Source | None, Audit | None, Spec | None, Path | None]:
    """Audit and spec as read, with all their problems."""
    audit_source = load(audit_file)
    if audit_source.data is None:
        return audit_source, None, None, None, None
    audit = validate(Audit, audit_source)
    check_audit(audit_source, audit_file, check_files=check_files)
    named = audit_source.data.get("spec") if isinstance(audit_source.data, dict) else None
    if not isinstance(named, str) or not named:
        return audit_source, None, audit, None, None
    try:
        spec_file = resolve(audit_file, named)
    except SpecError as error:
        first = error.problems[0]
        audit_source.problems.append(audit_source.places.problem(first.slug, ("spec",), first.message, first.hint))
        return audit_source, None, audit, None, None
    spec_source, spec = _read_spec(spec_file, os.path.normpath(spec_file))
    if spec_source.problems and spec_source.problems[0].slug == "missing-file" and spec_source.data is None:
        audit_source.problems.append(audit_source.places.problem(
            "missing-file", ("spec",), f"the spec is not there: {spec_file}.", "Write its path relative to the audit file.",
        ))
        return audit_source, None, audit, None, None
    check_pair(audit_source, audit_file, spec_source, check_files=check_files)
    return audit_source, spec_source, audit, spec, spec_file


def _sorted(source: Source) -> list[Problem]:
    """Problems in the order of the file; those of one place in the order they were found."""
    return sorted(dict.fromkeys(source.problems), key=lambda problem: (problem.line or 0, problem.column or 0))
