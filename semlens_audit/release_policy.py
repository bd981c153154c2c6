"""The policy of a release: what stops it, as far as nothing is waived."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.plan import Severity
from semlens_audit.records import Finding
from semlens_audit.release_records import GateOutcome, OnInconclusive

__all__ = ["SEVERITIES", "Policy"]

SEVERITIES: dict[Severity, int] = {"minor": 0, "major": 1, "critical": 2}
"""Rank of each severity."""


@dataclass(frozen=True)
class Policy:
    """What stops a release.

    Parameters
    ----------
    fail_on
        Least severity of a finding that stops it.
    on_inconclusive
        inconclusive: exit code 3. fail: like a finding that is not satisfied. pass: does not stop it.
    """

    fail_on: Severity = "minor"
    on_inconclusive: OnInconclusive = "inconclusive"

    def stopping(self, finding: Finding) -> GateOutcome | None:
        """What `finding` would make of the release if nothing were waived; ``None`` where it does not stop it."""
        if finding.state == "satisfied":
            return None
        if finding.state == "not_measured":
            return "incomplete"
        if SEVERITIES[finding.severity] < SEVERITIES[self.fail_on]:
            return None
        if finding.state == "not_satisfied":
            return "failed"
        by_policy: dict[OnInconclusive, GateOutcome | None] = {"inconclusive": "inconclusive", "fail": "failed", "pass": None}
        return by_policy[self.on_inconclusive]
