"""An audit repeated on identical and on resampled input: whether it gives the same again, and how often a finding turns."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from semlens_audit import checks, engine, verdict
from semlens_audit.data import DataSet, open_data
from semlens_audit.digest import digest
from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.evidence import Evidence
from semlens_audit.halves import halves, part, restricted
from semlens_audit.index import build, load_evidence
from semlens_audit.measure import measure
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan, Sensitivity
from semlens_audit.progress import Progress
from semlens_audit.proportions import clopper_pearson
from semlens_audit.records import AuditRecord, ConceptRecord, Finding, SensitivityChange, State
from semlens_audit.sensitivity import changed
from semlens_audit.store import Store

__all__ = ["Kind", "Rate", "Repeat", "SelfTest", "selftest"]

Kind = Literal["measured again", "index rebuilt", "other draws", "half of the data"]

_WHEN = datetime(2000, 1, 1, tzinfo=UTC)
_TURNED = {"satisfied", "not_satisfied"}
_CIRCUMSTANCES = {"tool", "environment"}
"""Fields of a record on which nothing measured depends."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rate(_Value):
    """How many of some states turned, with the exact 95 % interval of Clopper and Pearson (Biometrika 26:404-413, 1934).

    The findings of one repeat share model and data, so that the interval is narrower than that of as many independent findings.
    """

    hits: int = Field(ge=0)
    n: int = Field(ge=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, hits: int, n: int) -> Rate:
        """`hits` of `n`, at least 1."""
        low, high = clopper_pearson(hits, n)
        return cls(hits=hits, n=n, low=low, high=high)


class Repeat(_Value):
    """One repetition, held against the audit itself."""

    kind: Kind
    seed: int
    """Of the random crops, null sets, bootstrap and interventions."""
    samples: int
    findings: int
    verdict: State
    changes: tuple[SensitivityChange, ...] = ()
    """Findings of another state than in the audit."""
    differs: tuple[str, ...] | None = None
    """Fields of the record that are not the same to the bit; none where the input was not the same either."""
    digest: str | None = None
    """SHA-256 of everything measured and decided, where the input is the same as the audit's."""
    seconds: float = Field(ge=0)

    @property
    def hard(self) -> tuple[SensitivityChange, ...]:
        """Findings that turned from satisfied to not satisfied or back."""
        return tuple(change for change in self.changes if {change.before, change.after} == _TURNED)


class SelfTest(_Value):
    """What the repetitions of an audit came to."""

    audit: str
    quick: bool
    """Whether halves were measured without building an index of their own."""
    verdict: State
    findings: int
    repeats: tuple[Repeat, ...]
    identical: bool
    """Whether every repetition on identical input gave the same to the bit."""
    hard: Rate
    """Findings on resampled input that turned from satisfied to not satisfied or back."""
    soft: Rate
    """Findings on resampled input of any other state."""
    verdict_hard: Rate
    """Verdicts on resampled input that turned from satisfied to not satisfied or back."""
    verdict_soft: Rate
    """Verdicts on resampled input of any other state."""

    @property
    def exit_code(self) -> ExitCode:
        """6 where identical input did not give identical results; else 1 where a finding turned; else 0."""
        if not self.identical:
            return ExitCode.INTEGRITY
        return ExitCode.NOT_SATISFIED if self.hard.hits or self.verdict_hard.hits else ExitCode.SATISFIED


@dataclass(frozen=True)
class _Result:
    """What a repetition found."""

    verdict: State
    findings: tuple[Finding, ...]
    samples: int
    values: dict[str, str]
    """Field -> digest of everything that must be the same on identical input."""


@dataclass(frozen=True)
class _Prefixed:
    """Progress whose stages say which repetition they belong to."""

    inner: Progress
    prefix: str

    def stage(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """See `Progress.stage`."""
        return self.inner.stage(f"{self.prefix}: {name}", total, done)


def selftest(plan: AuditPlan, *, repeats: int, quick: bool = False, allow_code: bool = False, progress: Progress) -> SelfTest:
    """Repeat an audit on identical input, with other random draws, and on halves of its data.

    The audit is carried out first, as `semlens_audit.engine.run` does. On identical input it is measured again from the same store
    and, but for `quick`, from an index rebuilt in a temporary store; whole records are compared. Each further repeat has seeds of its
    own, once on all the data and once on a random half of each class, for which the index is rebuilt: outputs, reference samples,
    crops and embeddings. Two repeats in turn share the two halves of one division.

    Parameters
    ----------
    repeats
        Repeats on resampled input, at least 1; each counts twice, as said above.
    quick
        Rebuild no index: a half's reference samples are those of the audit's stored ones that are in the half, about two thirds of
        the declared number, and other seeds draw no other random crops.
    allow_code
        Whether a model defined by the user's own Python file may be imported.
    progress
        Where long stages report.

    Raises
    ------
    AuditError
        Whatever the user can mend; the first repetition that fails ends the test, since an error is no result.
    """
    made: list[Repeat] = []
    with Store.open(store_path(plan)) as store:
        data = open_data(plan, store.file_digest)
    runs = _quick(plan, data, repeats, allow_code, progress) if quick else _whole(plan, data, repeats, allow_code, progress)
    _, _, first = next(runs)
    begun = time.monotonic()
    for kind, seed, result in runs:
        now = time.monotonic()
        made.append(_repeat(kind, seed, first, result, now - begun))
        begun = now
    return _concluded(plan.audit.audit, quick, first, made)


def _repeat(kind: Kind, seed: int, first: _Result, result: _Result, seconds: float) -> Repeat:
    same = kind in ("measured again", "index rebuilt")
    differs = tuple(name for name in first.values if first.values[name] != result.values.get(name)) if same else None
    return Repeat(
        kind=kind,
        seed=seed,
        samples=result.samples,
        findings=len(result.findings),
        verdict=result.verdict,
        changes=tuple(changed(first.findings, result.findings)),
        differs=differs,
        digest=digest(result.values) if same else None,
        seconds=round(seconds, 3),
    )


def _concluded(name: str, quick: bool, first: _Result, repeats: Sequence[Repeat]) -> SelfTest:
    resampled = [repeat for repeat in repeats if repeat.differs is None]
    findings = sum(repeat.findings for repeat in resampled)
    turned = sum({repeat.verdict, first.verdict} == _TURNED for repeat in resampled)
    return SelfTest(
        audit=name,
        quick=quick,
        verdict=first.verdict,
        findings=len(first.findings),
        repeats=tuple(repeats),
        identical=not any(repeat.differs for repeat in repeats),
        hard=Rate.of(sum(len(repeat.hard) for repeat in resampled), findings),
        soft=Rate.of(sum(len(repeat.changes) for repeat in resampled), findings),
        verdict_hard=Rate.of(turned, len(resampled)),
        verdict_soft=Rate.of(sum(repeat.verdict != first.verdict for repeat in resampled), len(resampled)),
    )


def _seeded(plan: AuditPlan, seed: int, **changes: object) -> AuditPlan:
    return plan.model_copy(update={"audit": plan.audit.model_copy(update={"seed": seed, **changes})})


def _divisions(plan: AuditPlan, labels: np.ndarray, units: np.ndarray, repeats: int) -> list[np.ndarray]:
    """Samples of the half of each repeat: both halves of a division, then those of the next."""
    found: list[np.ndarray] = []
    while len(found) < repeats:
        found += halves(labels, units, np.random.default_rng([plan.audit.seed, len(found)]))
    return found[:repeats]


def _whole(
    plan: AuditPlan, data: DataSet, repeats: int, allow_code: bool, progress: Progress
) -> Iterator[tuple[Kind, int, _Result]]:
    """The audit, then its repetitions, each by the engine itself."""
    seed = plan.audit.seed

    def run(asked: AuditPlan, samples: DataSet, words: str, anew: bool = False) -> _Result:
        record = engine.run(
            asked,
            allow_code=allow_code,
            progress=_Prefixed(progress, words),
            now=_WHEN,
            command="",
            data=samples,
            anew=anew,
            counted=False,
        )
        return _of_record(record)

    yield "measured again", seed, run(plan, data, "Audit")
    yield "measured again", seed, run(plan, data, "Measured again", anew=True)
    # What the repeats do not look at costs nothing: other layers, and what happens when components are switched off.
    settings = plan.audit.measurement.model_copy(update={"intervention": "none"})
    lean = {"sensitivity": Sensitivity(), "measurement": settings}
    with tempfile.TemporaryDirectory(prefix="semlens-audit-selftest-") as folder:
        path = Path(folder) / "store.duckdb"
        yield "index rebuilt", seed, run(_seeded(plan, seed, store=str(path)), data, "Index rebuilt")
        path.unlink()
        for number, rows in enumerate(_divisions(plan, data.labels, _units(data), repeats), start=1):
            words = f"Repeat {number} of {repeats}"
            shutil.copyfile(store_path(plan), path)
            yield (
                "other draws",
                seed + number,
                run(_seeded(plan, seed + number, store=str(path), **lean), data, f"{words}, other draws"),
            )
            path.unlink()
            yield (
                "half of the data",
                seed + number,
                run(_seeded(plan, seed + number, store=str(path), **lean), part(data, rows), f"{words}, half of the data"),
            )
            path.unlink()


def _units(data: DataSet) -> np.ndarray:
    """(N,) int64 independent unit of each sample: as the data say, else one for each content."""
    if data.groups is not None:
        return data.groups
    number: dict[str, int] = {}
    return np.array([number.setdefault(sample.sha256, len(number)) for sample in data.samples], dtype=np.int64)


def _of_record(record: AuditRecord) -> _Result:
    whole = record.model_dump(mode="json", by_alias=True, exclude=_CIRCUMSTANCES)
    values = {name: digest(value) for name, value in whole.items()}
    return _Result(record.verdict.state, record.findings, record.data.samples, values)


def _quick(
    plan: AuditPlan, data: DataSet, repeats: int, allow_code: bool, progress: Progress
) -> Iterator[tuple[Kind, int, _Result]]:
    """The audit, then its repetitions, measured from the one index."""
    seed, m = plan.audit.seed, plan.audit.measurement.reference_samples
    with Store.open(store_path(plan)) as store:
        build(plan, data, store, allow_code=allow_code, progress=progress)
        evidence = load_evidence(plan, data, store)
        if evidence is None:
            raise IntegrityError(
                "index-incomplete", "The store lacks evidence that was just written.", "Run the same command again."
            )
        with progress.stage("Measured", 2 + 2 * repeats) as advance:

            def run(asked: AuditPlan, source: Evidence) -> _Result:
                result = _measured(asked, source)
                advance(1)
                return result

            yield "measured again", seed, run(plan, evidence)
            yield "measured again", seed, run(plan, evidence)
            for number, rows in enumerate(_divisions(plan, evidence.labels, _units(data), repeats), start=1):
                other = _seeded(plan, seed + number)
                yield "other draws", seed + number, run(other, evidence)
                yield "half of the data", seed + number, run(other, restricted(evidence, rows, m))


def _measured(plan: AuditPlan, evidence: Evidence) -> _Result:
    measured = measure(plan, evidence, checks.quantities(plan))
    found = checks.findings(plan, measured.quantities, measured.class_layers, measured.unrecognised)
    concepts = [ConceptRecord(id=concept.id, label=concept.label, role=concept.role) for concept in plan.spec.concepts]
    state = verdict.decide(found, concepts, measured.class_layers, plan.audit.subject.name).state
    values = {name: digest(value) for name, value in measured.model_dump(mode="json").items()}
    return _Result(
        state, tuple(found), len(evidence.paths), values | {"findings": digest([f.model_dump(mode="json") for f in found])}
    )
