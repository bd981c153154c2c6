"""What a worker of a cluster does: say what it is, take over an audit, compute shards. Knows nothing of the cluster itself."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from semlens_audit import machine
from semlens_audit.data import DataSet
from semlens_audit.devices import find_device
from semlens_audit.errors import AuditError, ExecutionError
from semlens_audit.execution import Execution
from semlens_audit.plan import AuditPlan
from semlens_audit.work import Bench, LocalEngine, Work

__all__ = ["Assignment", "Worker", "portable", "unpacked"]


@dataclass(frozen=True)
class Assignment:
    """The audit as a worker takes it over.

    Parameters
    ----------
    plan
        As it is indexed.
    data
        Its test data.
    allow_code
        Whether a model defined by the user's own Python file may be imported.
    execution
        Device and memory limit.
    folder
        Working folder, which relative paths start from.
    variables
        Environment variables that the audit's paths are made of.
    files
        See `semlens_audit.machine.files`.
    """

    plan: AuditPlan
    data: DataSet
    allow_code: bool
    execution: Execution
    folder: str
    variables: dict[str, str]
    files: dict[str, str]


class Worker:
    """Computes with models of its own; its methods are called one after the other.

    Parameters
    ----------
    threads
        Threads that an operation is shared among: the same on all machines, since the last bits of sums depend on it.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._engine: LocalEngine | None = None

    def look(self, device: str) -> tuple[str, dict[str, str]]:
        """Name of the machine and process, and `semlens_audit.machine.traits`."""
        return f"{machine.name()} (process {os.getpid()})", machine.traits(find_device(device))

    def take_over(self, assignment: Assignment) -> list[tuple[str, str]]:
        """Get ready for an audit; returns the files that are not as they should be, see `semlens_audit.machine.different_files`."""
        if os.path.isdir(assignment.folder):  # noqa: PTH112 - elsewhere the files named below say what is missing
            os.chdir(assignment.folder)
        os.environ.update(assignment.variables)
        wrong = machine.different_files(assignment.files)
        if not wrong:
            execution = replace(assignment.execution, engine="local")
            self._engine = LocalEngine(
                Bench(assignment.plan, assignment.data, allow_code=assignment.allow_code, execution=execution)
            )
        return wrong

    def run(self, work: Work[Any, Any, Any], items: Sequence[Any]) -> bytes:
        """Compute a shard; `unpacked` gives the results up to the first item that fails, and its error."""
        assert self._engine is not None
        results: list[Any] = []
        failure: Exception | None = None
        try:
            for _, result in self._engine.run(work, items):
                results.append(result)
        except Exception as error:  # noqa: BLE001 - raised where the item's turn comes
            failure = portable(error)
        # Packed here, results become the reader's own memory instead of a claim on the cluster's shared one.
        return pickle.dumps((results, failure), protocol=pickle.HIGHEST_PROTOCOL)

    def forget_subject(self) -> None:
        """Free the audited model."""
        if self._engine is not None:
            self._engine.bench.forget_subject()


def unpacked(packed: bytes) -> tuple[list[Any], Exception | None]:
    """Results and error of `Worker.run`."""
    results, failure = pickle.loads(packed)
    return results, failure


def portable(error: Exception) -> Exception:
    """`error` as another process can raise it, with the traceback of this one as a note.

    An `AuditError` keeps its problems. What cannot be packed becomes an `ExecutionError` ``worker-failed`` that says the same.
    """
    told = f"On {machine.name()}:\n{''.join(traceback.format_exception(error))}"
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
        same = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # noqa: BLE001 - whatever keeps an error from being packed
        same = False
    if not same:
        first = next(iter(str(error).splitlines()), "")[:300]
        copy = ExecutionError(
            "worker-failed", f"A worker failed on {machine.name()}: {type(error).__name__}: {first}",
            "Run with --engine local to see it in this process.",
        )  # fmt: skip
    if not isinstance(copy, AuditError) or not same:
        copy.add_note(told)
    return copy
