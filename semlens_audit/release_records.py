"""What a release hangs on, beside the findings: documents, lock, waivers, the gate's decision, the change since a baseline, controls.

Parts of `semlens_audit.records.AuditRecord`, and like it frozen and without NaN.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from semlens_audit.component_changes import ComponentChanges
from semlens_audit.errors import ExitCode
from semlens_audit.frozen import Frozen
from semlens_audit.measured import Measurement, State
from semlens_audit.plan import Severity

__all__ = [
    "BaselineRecord",
    "CatalogueRecord",
    "ChangeEntry",
    "ChangeLabel",
    "ChangeRecord",
    "ClauseRecord",
    "DocumentRecord",
    "GateOutcome",
    "GateRecord",
    "InfluenceRecord",
    "LockRecord",
    "OnInconclusive",
    "WaiverRecord",
    "WaiverState",
]

OnInconclusive = Literal["inconclusive", "fail", "pass"]
GateOutcome = Literal["passed", "conditional", "failed", "inconclusive", "incomplete", "invalid_waiver"]
WaiverState = Literal["applied", "not_needed", "not_in_force", "expired", "exceeded", "unmatched", "invalid"]
ChangeLabel = Literal["new", "fixed", "worsened", "improved", "within_noise", "not_comparable", "added", "removed"]


class DocumentRecord(Frozen):
    """A file that people wrote and the audit rests on, with its content, so that the record can be verified without it."""

    kind: Literal["spec", "audit", "waivers", "lock"]
    name: str
    """File name without folders."""
    media_type: str
    sha256: str
    """Of the UTF-8 bytes of `text`, which are the file's bytes."""
    text: str


class LockRecord(Frozen):
    """The lock (pre-registration) that an audit ran under, or departed from."""

    state: Literal["kept", "broken"]
    sha256: str
    """Of the canonical JSON of the lock."""
    created: str
    """UTC, ISO 8601: when the lock was made."""
    differences: tuple[str, ...] = ()
    """What differs from what was locked, one clause each; empty where the lock was kept."""
    earlier_runs: int = Field(ge=0)
    """Runs under this lock that the store had seen before this one."""
    runs_before_lock: int = Field(ge=0)
    """Runs of this audit that the store had seen before the lock was made."""
    replaced: int = Field(default=0, ge=0)
    """Earlier locks that this one replaced."""
    witnessed: bool = True
    """Whether the store's run log has an entry of the lock being made; else its time rests on the lock file alone."""
    log_sha256: str | None = None
    """Digest that stands for the store's run log as it was before this run, see `semlens_audit.run_log.head`."""
    log_intact: bool = True
    """Whether every entry of that log follows the one before it."""
    sentence: str
    """For a reader."""


class WaiverRecord(Frozen):
    """A declared exception and what became of it."""

    check: str
    where: str | None = None
    """Layer or concept of the finding waived; none: every finding of the check."""
    scope: str
    """Of which model it speaks, in words: a digest of weights, or a range of versions."""
    justification: str
    owner: str
    approver: str
    created: str
    """Date, ISO 8601."""
    expires: str
    """Last day on which it holds, ISO 8601."""
    ticket: str
    revalidate_on: str
    """What makes a new decision necessary before it expires."""
    ceiling: float
    """The worst value that it was granted for, in the measurement's unit."""
    state: WaiverState
    findings: tuple[str, ...] = ()
    """`Finding.id` of the findings it waives; empty unless applied."""
    sentence: str
    """Why it holds or not."""
    line: int | None = None
    """Of the waivers file."""


class GateRecord(Frozen):
    """The decision on the release: findings, waivers and policy in, exit code out."""

    fail_on: Severity
    """Least severity of a finding that stops the release."""
    on_inconclusive: OnInconclusive
    """inconclusive: exit code 3. fail: like a finding that is not satisfied. pass: does not stop the release."""
    today: str
    """Date on which waivers were judged, ISO 8601."""
    outcome: GateOutcome
    exit_code: ExitCode
    sentence: str
    """What was decided and why, naming what stops the release or was waived."""
    stopped_by: tuple[str, ...] = ()
    """`Finding.id` of the findings that stop the release."""
    tolerated: tuple[str, ...] = ()
    """`Finding.id` of findings that are not satisfied or inconclusive, and do not stop the release by policy."""
    waived: tuple[str, ...] = ()
    """`Finding.id` of findings that would stop the release but for a waiver."""


class BaselineRecord(Frozen):
    """The earlier record that an audit is compared with."""

    record_sha256: str
    """Digest of its canonical JSON, as its report prints it."""
    created: str
    subject: str
    version: str | None
    weights_sha256: str
    data_sha256: str
    tool: str


class ChangeEntry(Frozen):
    """One finding against the same finding of the baseline."""

    finding: str
    """`Finding.id`."""
    label: ChangeLabel
    """new: satisfied then, not satisfied now. fixed: the reverse. worsened, improved: the difference is beyond noise, adjusted for the
    number of findings. within_noise: it is not. not_comparable: a value is missing, or criterion or quantity differ. added, removed:
    one record only has it. See `semlens_audit.change.compare`."""
    before: State | None = None
    after: State | None = None
    old: Measurement | None = None
    new: Measurement | None = None
    difference: Measurement | None = None
    """New minus old, with the interval of the difference."""
    paired: bool = False
    """Whether both rest on the same samples, and the interval uses that."""
    p_value: float | None = None
    """Smallest alpha at which the interval of the difference of level 1 - alpha leaves 0 out, two-sided."""
    adjusted_p: float | None = None
    """The same adjusted for all comparable findings (Holm)."""
    sentence: str = ""


class ChangeRecord(Frozen):
    """What changed since a baseline."""

    baseline: BaselineRecord
    refused: str | None = None
    """Why nothing is compared, where it is not: another spec, another foundation model."""
    entries: tuple[ChangeEntry, ...] = ()
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the differences, before control for their number."""
    sentence: str
    """The gist, for page one."""
    components: ComponentChanges | None = None
    """What became of the components, where that was compared; a record without it has no such field. It decides no check."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return written if self.components is not None else {name: value for name, value in written.items() if name != "components"}


class ClauseRecord(Frozen):
    """One clause of a standard or regulation, as far as an audit like this can give evidence for it."""

    id: str
    title: str
    summary: str
    """What it asks, in our words."""
    sections: tuple[str, ...] = ()
    """Anchors of the report's sections that are evidence for it, whatever the checks."""
    note: str | None = None
    """What it asks beyond what this report can show."""


class CatalogueRecord(Frozen):
    """A standard or regulation whose clauses checks can support evidence for."""

    id: str
    title: str
    edition: str
    source: str
    """Where the text is published."""
    clauses: tuple[ClauseRecord, ...]


class InfluenceRecord(Frozen):
    """How one measured value moves with the samples it rests on; what makes two audits on the same samples comparable in pairs.

    The inner product of two such vectors of the same basis is the covariance of the two values, see `semlens_audit.influence`.
    """

    quantity: str
    """Key of the quantity, see `semlens_audit.checks.Quantity`."""
    basis: Literal["samples", "pairs", "draws"]
    """What the numbers belong to: groups of samples, groups of counterfactual pairs, or bootstrap draws of the samples."""
    basis_sha256: str
    """Over which sample is in which group, or drawn how often; equal: the numbers of two records belong to the same."""
    length: int = Field(ge=1)
    values: str
    """Base64 of `length` little-endian float32, in the measurement's unit."""
