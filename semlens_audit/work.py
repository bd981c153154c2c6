"""A pass over many items as work that any process can do: prepared in threads, computed item by item, yielded in order.

What an item gives depends on the item and the pass alone, never on its neighbours or on who computed it. Only the process that
was asked writes the store, so that every engine leaves the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from semlens_audit.data import DataSet
from semlens_audit.devices import find_device
from semlens_audit.execution import Execution
from semlens_audit.memory import Allowance, Limit, divide, release, reuse
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.prefetch import prefetched
from semlens_audit.progress import Progress

if TYPE_CHECKING:
    import torch

    from semlens_audit.foundation import Foundation
    from semlens_audit.precision import Networks
    from semlens_audit.subject import LoadedSubject
    from semlens_audit.views import Views

__all__ = ["Bench", "Engine", "LocalEngine", "Work"]

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Ready = TypeVar("Ready")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Bench:
    """What items are computed with: the audit, its data, and the networks, each loaded when first asked for.

    Parameters
    ----------
    plan
        The audit, as it is indexed.
    data
        Its test data.
    allow_code
        Whether a model defined by the user's own Python file may be imported.
    execution
        Where and with what.
    """

    def __init__(
        self, plan: AuditPlan, data: DataSet, *, allow_code: bool = False, execution: Execution | None = None
    ) -> None:
        self.plan, self.data, self.allow_code = plan, data, allow_code
        self.execution = execution or Execution()

    @cached_property
    def device(self) -> torch.device:
        """Where the networks are."""
        return find_device(self.execution.device)

    @cached_property
    def subject(self) -> LoadedSubject:
        """The audited model, on `device`."""
        import torch

        from semlens_audit.subject import load_subject

        device = self.device  # one that is not there is complained about before a model is loaded
        subject = load_subject(self.plan, allow_code=self.allow_code)
        # One layout in every process, whatever it computes first: last bits depend on it.
        subject.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return subject

    @cached_property
    def foundation(self) -> Foundation:
        """The foundation model, on `device`."""
        from semlens_audit.foundation import load_foundation

        return load_foundation(self.plan, self.device)

    @cached_property
    def networks(self) -> Networks:
        """The audited model in each arithmetic of the forward pass."""
        from semlens_audit.precision import Networks

        return Networks(self.subject.model, self.plan.audit.subject.preprocessing.size, self.device)

    @cached_property
    def views(self) -> Views:
        """What the network sees of each sample, decoded once."""
        from semlens_audit.views import Views

        return Views(self.data, self.plan.audit.subject.preprocessing, store_path(self.plan).parent)

    @cached_property
    def allowance(self) -> Allowance:
        """Memory for what can do with less."""
        return divide(self.execution.max_memory)

    def images(self, samples: Sequence[int], rows: int | None = None) -> torch.Tensor:
        """(rows, 3, S, S) float32 network inputs of samples, channels last in memory; more rows than samples repeat the last one."""
        return self.views.inputs(samples, rows)

    def ahead(self, item: int) -> int:
        """How many items of `item` bytes may be prepared before they are asked for: 1 to 4."""
        return max(1, min(4, self.allowance.ahead // max(1, item)))

    def forget_subject(self) -> None:
        """Free the audited model; asked for again, it is loaded again."""
        self.__dict__.pop("networks", None)
        self.__dict__.pop("subject", None)


class Work(Protocol[Item_contra, Ready, Result_co]):
    """One pass, as it is told to whoever does a part of it: picklable, without networks or open files."""

    @property
    def threads(self) -> int:
        """Threads that prepare."""
        ...

    @property
    def ahead(self) -> int:
        """Items prepared before they are asked for; what is prepared is held in memory."""
        ...

    def prepare(self, bench: Bench, item: Item_contra) -> Ready:
        """Read and decode what the item needs; runs in a thread."""
        ...

    def compute(self, bench: Bench, item: Item_contra, ready: Ready) -> Result_co:
        """What the item gives, as picklable values on the CPU."""
        ...


class Engine(Protocol):
    """Does the work of a pass."""

    @property
    def bench(self) -> Bench:
        """The bench of the process that writes the store."""
        ...

    def start(self, progress: Progress) -> None:
        """Wait until somebody can compute."""
        ...

    def run(self, work: Work[Item, Ready, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield every item with its result, in the order of `items`; an item's error is raised when its turn comes."""
        ...

    def forget_subject(self) -> None:
        """Free the audited model wherever it is held."""
        ...


_RELEASE = 2.0
"""Seconds after which memory that is free is given back: what is given back has to be had again, and cleared, for the next item."""


class LocalEngine:
    """Does all work in this process.

    Parameters
    ----------
    bench
        What it is done with.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._limit = Limit(bench.execution.max_memory)
        reuse()

    def start(self, progress: Progress) -> None:
        """See `Engine.start`: there is nobody to wait for."""

    def run(self, work: Work[Item, Ready, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """See `Engine.run`."""
        prepare, released = partial(work.prepare, self.bench), time.monotonic()
        for item, ready in prefetched(prepare, items, workers=work.threads, ahead=work.ahead):
            computed = work.compute(self.bench, item, ready)
            self._limit.require("The index")
            yield item, computed
            if time.monotonic() - released > _RELEASE:
                release()
                released = time.monotonic()

    def forget_subject(self) -> None:
        """See `Engine.forget_subject`."""
        self.bench.forget_subject()
