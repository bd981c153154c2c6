"""Specs and audits: from YAML to a validated `AuditPlan`, with every complaint at once as ``file:line:column``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from semlens_audit import waivers
from semlens_audit.audit_rules import check_audit, look
from semlens_audit.catalogues import check_controls, read_catalogue
from semlens_audit.confinement import confined
from semlens_audit.errors import Problem, SpecError
from semlens_audit.pair_rules import check_pair, read_classes
from semlens_audit.paths import examples_root, reports_path, resolve, store_path
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.spec_rules import check_spec
from semlens_audit.spec_shape import schemas, validate
from semlens_audit.yaml_source import Source, SourceMap, TooManyProblems, load

__all__ = [
    "SourceMap",
    "examples_root",
    "lint",
    "model_classes",
    "read_plan",
    "read_spec",
    "reports_path",
    "resolve",
    "schemas",
    "store_path",
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
    pair = _Pair.read(Path(audit_file), check_files)
    spec, audit, spec_source = pair.spec, pair.audit, pair.spec_source
    if pair.problems or spec is None or audit is None or spec_source is None:
        raise SpecError.of(pair.problems)
    return AuditPlan(
        spec=spec,
        audit=audit,
        spec_file=str(pair.spec_file),
        audit_file=str(audit_file),
        spec_digest=spec_source.sha256,
        audit_digest=pair.audit_source.sha256,
        spec_text=spec_source.text,
        audit_text=pair.audit_source.text,
        check_lines={check.id: spec_source.places.value(("checks", index))[0] for index, check in enumerate(spec.checks)},
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
    if source.problems or spec is None:
        raise SpecError.of(_sorted(source))
    return spec, source.places


def model_classes(plan: AuditPlan) -> tuple[str, ...]:
    """Class names of the audited model in the order of its outputs, read from the JSON file where the audit names one.

    Raises
    ------
    SpecError
        See `semlens_audit.pair_rules.read_classes`.
    """
    return read_classes(plan.audit.subject.classes, Path(plan.audit_file))


def lint(paths: Sequence[Path], *, check_files: bool = True) -> list[Problem]:
    """Every problem of some files.

    Parameters
    ----------
    paths
        Specs, audits, or folders of them (``*.yaml`` and ``*.yml``, not below). An audit is known by its key ``audit``; it is
        checked together with its spec. A file of waivers is known by its key ``waivers``.
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
                found.update(dict.fromkeys(_Pair.read(path, check_files).problems))
            elif isinstance(source.data, dict) and "waivers" in source.data:
                found.update(dict.fromkeys(waivers.complaints(path)))
            elif isinstance(source.data, dict) and "catalogue" in source.data:
                found.update(dict.fromkeys(_sorted(read_catalogue(path)[0])))
            else:
                found.update(dict.fromkeys(_sorted(_read_spec(path)[0])))
    return list(found)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.suffix in (".yaml", ".yml"))
    return [path]


def _read_spec(path: Path) -> tuple[Source, Spec | None]:
    source = load(path)
    if source.data is None:
        return source, None
    spec = None
    with suppress(TooManyProblems):
        spec = validate(Spec, source)
        check_spec(source)
        check_controls(source, path)
    return source, spec


@dataclass
class _Pair:
    """An audit and its spec as read, with all their problems."""

    audit_source: Source
    audit: Audit | None = None
    spec_source: Source | None = None
    spec: Spec | None = None
    spec_file: Path | None = None

    @classmethod
    def read(cls, audit_file: Path, check_files: bool) -> _Pair:
        """Read both files as far as they can be read."""
        pair = cls(load(audit_file))
        if pair.audit_source.data is not None:
            with suppress(TooManyProblems):
                pair._check(audit_file, check_files)
        return pair

    def _check(self, audit_file: Path, check_files: bool) -> None:
        """Shape and rules of both files, as far as they can be read."""
        source = self.audit_source
        self.audit = validate(Audit, source)
        check_audit(source, audit_file, check_files=check_files)
        named = source.data.get("spec") if isinstance(source.data, dict) else None
        if not isinstance(named, str) or not named:
            return
        try:
            self.spec_file = confined(audit_file, named)
        except SpecError as error:
            source.complain(error.slug, ("spec",), error.problems[0].message, error.problems[0].hint)
            return
        self.spec_source, self.spec = _read_spec(self.spec_file)
        check_pair(source, audit_file, self.spec_source, check_files=check_files)
        if "missing-file" in (problem.slug for problem in self.spec_source.problems if problem.line is None):
            source.complain("missing-file", ("spec",), f"the spec is not there: {self.spec_file}.", look(self.spec_file))
            self.spec_source = None

    @property
    def problems(self) -> list[Problem]:
        """Those of the audit, then those of the spec."""
        return _sorted(self.audit_source) + (_sorted(self.spec_source) if self.spec_source is not None else [])


def _sorted(source: Source) -> list[Problem]:
    """Problems in the order of the file; those of one place in the order they were found."""
    return sorted(dict.fromkeys(source.problems), key=lambda problem: (problem.line or 0, problem.column or 0))
