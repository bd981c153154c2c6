"""Which worker of ``pytest -n`` runs what: whole files, and files of one set-up together, the longest first.

A test alone as the unit of work would make every set-up of a module once a worker. The mark ``xdist_group`` does not keep tests
together: pytest-xdist 3.8 writes the group's name into the identifier of a test, where pytest 9.2 no longer looks for it.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = (
    ("tests/e2e/test_exit_codes.py", "tests/e2e/test_gate.py", "tests/e2e/test_diff.py", "tests/e2e/test_ci_action.py",
     "tests/e2e/test_lock_and_reproduce.py"),
    ("tests/unit/test_verify.py", "tests/unit/test_signing.py", "tests/unit/test_pdf_structure.py", "tests/unit/test_attest.py",
     "tests/unit/test_verify_numbers.py"),
)  # fmt: skip
"""Files that share a fixture of the session, or signed reports that `tests.unit.signing_world` makes once a process."""

LONGEST = (
    *TOGETHER[0],
    "tests/e2e/test_readme.py",
    "tests/e2e/test_kill_resume.py",
    "tests/e2e/test_ray.py",
    "tests/unit/test_hostile_specs.py",
    "tests/e2e/test_accessibility.py",
    "tests/e2e/test_sign_and_verify.py",
    *TOGETHER[1],
    "tests/e2e/test_families.py",
    "tests/unit/test_qualification_campaign.py",
)
"""Handed out first, so that no worker begins a long file when the other has nothing left."""

_GROUP = {file: files[0] for files in TOGETHER for file in files}
_RANK = {file: rank for rank, file in enumerate(LONGEST)}


class ByFile(LoadScopeScheduling):
    """Hands out files, and the files of `TOGETHER` as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return _GROUP.get(file, file)


def scheduler(config: pytest.Config, log: Any) -> ByFile:
    """The scheduler of this suite; `order` has put the files in order, which their numbers of tests would not."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def order(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first, in place; the others keep their order."""
    items.sort(key=lambda item: _RANK.get(item.nodeid.split("::", 1)[0], len(_RANK)))
