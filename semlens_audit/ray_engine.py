"""The engine of a Ray cluster: shards of a pass are computed by workers on any of its machines, and read back in order.

Only this process writes the store. Workers agree with it in code, libraries, arithmetic and files, or are refused, so the store's bytes
are those of the local engine. A worker that is lost costs time: its shard is computed by another.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from semlens_audit import machine
from semlens_audit.devices import describe
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.paths import variables
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress
from semlens_audit.ray_worker import Assignment, Worker, unpacked
from semlens_audit.work import Bench, Work

__all__ = ["RayEngine", "shards"]

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

_DEPTH = 2
"""Shards that a worker has at a time: one that it computes and the next, so that it waits for nothing."""

_PARTS = 4
"""A shard is at most this part of what each worker has still to do: the last ones are short, and all end at nearly the same time."""

_LONGEST = 8
"""Most items of a shard: what a lost worker costs."""

_LOSSES = 3
"""Workers that a shard may take with it before it is believed to be the cause."""

_PATIENCE = 300.0
_GRACE = 5.0
_ANSWER = 10.0
_OBJECTS = 256 << 20
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_SETTINGS = b"\x04"
"""What a client of HTTP/2 begins with, as which Ray speaks, and the type of the frame that a server answers with (RFC 9113, 3.4)."""


def shards(count: int, workers: int) -> list[range]:
    """Runs of consecutive items, 1 to 8 each and shorter towards the end, so that every worker has several where there are enough.

    Shrinking with what is left is guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers C-36, 1987, section 3).

    Parameters
    ----------
    count
        Items.
    workers
        Who computes them.
    """
    found, start = [], 0
    while start < count:
        size = max(1, min(_LONGEST, (count - start) // max(1, workers * _PARTS)))
        found.append(range(start, start + size))
        start += size
    return found


@dataclass(eq=False)
class _Shard:
    """Items that are computed together; `losses` counts the workers that were lost over them."""

    number: int
    items: range
    losses: int = 0


@dataclass(eq=False)
class _Hand:
    """One worker as this process knows it."""

    actor: Any
    starting: Any
    """What it answers before it is given shards: who it is, then that it has taken over the audit."""
    name: str = ""
    shards: deque[tuple[Any, _Shard]] = field(default_factory=deque)
    """What it was given, in the order in which it computes them."""

    @property
    def ready(self) -> bool:
        """Whether it takes shards."""
        return self.starting is None

    def awaited(self) -> list[Any]:
        """Everything that it owes an answer to."""
        return [ref for ref, _ in self.shards] if self.ready else [self.starting]


class RayEngine:
    """Does the work with the workers of a Ray cluster; a context manager that connects, and lets the workers go.

    Parameters
    ----------
    bench
        Of this process, which settles what all workers keep to.
    patience
        Seconds to wait for any worker to come up before giving up.

    Raises
    ------
    UsageError
        On entering: ``ray-missing``; ``no-cluster`` for an address where none answers; ``too-few-gpus``.
    ExecutionError
        On running: ``node-differs`` for a worker that would compute something else or reads other files, naming it and what differs;
        ``no-workers``; ``shard-lost`` for items that one worker after another is lost over; ``worker-failed``.
    """

    def __init__(self, bench: Bench, *, patience: float = _PATIENCE) -> None:
        self.bench = bench
        self._patience = patience
        self._hands: list[_Hand] = []
        self._waiting: deque[_Shard] = deque()
        self._started_here = False
        self._vain, self._why, self._heard = 0, "", time.monotonic()

    def __enter__(self) -> RayEngine:
        import torch

        self._ray = _ray()
        device = self.bench.device
        # A worker sees nothing but the GPU that it was given, by whatever number.
        self._device = "cuda" if device.type == "cuda" else "cpu"
        self._threads = torch.get_num_threads()
        self._connect()
        try:
            self._traits = machine.traits(device)
            self._count, self._needs = self._division()
            self._given = self._ray.put(self._assignment())
            for _ in range(self._count):
                self._hire()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go and leave the cluster; one that was started here ends."""
        if not self._ray.is_initialized():
            return
        for hand in self._hands:
            self._ray.kill(hand.actor, no_restart=True)
        self._hands.clear()
        if self._started_here:
            self._ray.shutdown()

    def forget_subject(self) -> None:
        """Free the audited model, here and in all workers."""
        self.bench.forget_subject()
        for hand in self._hands:
            if hand.ready:
                hand.actor.forget_subject.remote()

    def start(self, progress: Progress) -> None:
        """Wait until a worker is ready, and a little for the others; those that come later join in."""
        with progress.stage("Workers of the cluster", self._count) as advance:
            told = 0
            while told < self._count and not (told and time.monotonic() - self._heard > _GRACE):
                self._hear({})
                ready = min(self._count, sum(hand.ready for hand in self._hands))
                advance(max(0, ready - told))
                told = max(told, ready)

    def run(self, work: Work[Item, Ready, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """See `semlens_audit.work.Engine.run`."""
        if not len(items):
            return
        parts = [_Shard(number, part) for number, part in enumerate(shards(len(items), self._count))]
        self._waiting = deque(parts)
        given = self._ray.put(work)
        found: dict[int, bytes] = {}
        try:
            for shard in parts:
                while shard.number not in found:
                    # Results come in any order and are read in one: how far ahead anybody computes is bounded.
                    self._give(given, items, shard.number + self._count * _DEPTH + _DEPTH)
                    self._hear(found)
                results, failure = unpacked(found.pop(shard.number))
                self._give(given, items, shard.number + 1 + self._count * _DEPTH + _DEPTH)
                yield from zip([items[position] for position in shard.items], results, strict=False)
                if failure is not None:
                    raise failure
        finally:
            self._drop()

    def _give(self, work: Any, items: Sequence[Any], before: int) -> None:
        """Give waiting shards, up to the one of number `before`, to those who have least to do."""
        while self._waiting and self._waiting[0].number < before:
            free = [hand for hand in self._hands if hand.ready and len(hand.shards) < _DEPTH]
            if not free:
                return
            hand, shard = min(free, key=lambda one: len(one.shards)), self._waiting.popleft()
            hand.shards.append((hand.actor.run.remote(work, [items[position] for position in shard.items]), shard))

    def _hear(self, found: dict[int, bytes]) -> None:
        """Wait for an answer of any worker, at most a second, and do what follows from it."""
        owed = {ref: hand for hand in self._hands for ref in hand.awaited()}
        answered, _ = self._ray.wait(list(owed), num_returns=1, timeout=1.0)
        if answered:
            self._heard = time.monotonic()
        elif not any(hand.ready for hand in self._hands) and time.monotonic() - self._heard > self._patience:
            raise self._nobody()
        for ref in answered:
            hand = owed[ref]
            try:
                value = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                raise ExecutionError(
                    "worker-failed",
                    f"The worker on {hand.name or 'a node of the cluster'} failed: {_last_line(error)}",
                    "Install the same version of semlens-audit and of its libraries on every node.",
                ) from error
            except self._ray.exceptions.RayError as error:
                self._lost(hand, error)
                continue
            if not hand.ready:
                self._welcome(hand, value)
                continue
            self._vain = 0
            for place, (asked, shard) in enumerate(hand.shards):
                if asked == ref:
                    found[shard.number] = value
                    del hand.shards[place]
                    break

    def _welcome(self, hand: _Hand, value: Any) -> None:
        """Take a step in getting a worker ready."""
        if not hand.name:
            hand.name, theirs = value
            if different := machine.different_traits(self._traits, theirs):
                raise ExecutionError(
                    "node-differs",
                    f"The worker on {hand.name} would not compute the same bytes; it differs in {', '.join(different)}.",
                    "Use nodes of one kind with the same installation, or --engine local.",
                )
            hand.starting = hand.actor.take_over.remote(self._given)
            return
        if value:
            path, wrong = value[0]
            more = f" So do {len(value) - 1} more files." if len(value) > 1 else ""
            raise ExecutionError(
                "node-differs",
                f"For the worker on {hand.name}, a file that the audit needs {wrong}.{more}",
                "Every node needs the same files at the same paths, as on a shared file system.",
                file=path,
            )
        hand.starting = None

    def _lost(self, hand: _Hand, error: Exception) -> None:
        """Hire another worker for one that is gone; what it was given is computed by others."""
        where = hand.name or "a node of the cluster"
        self._vain, self._why = self._vain + 1, f"the last one, on {where}: {_first_line(error)}"
        self._hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)  # one that only cannot be reached must not go on either
        if hand.shards:
            first = hand.shards[0][1]
            first.losses += 1
            if first.losses >= _LOSSES:
                raise ExecutionError(
                    "shard-lost",
                    f"{first.losses} workers were lost one after another over the items {first.items.start} to "
                    f"{first.items.stop - 1} of this pass; {self._why}",
                    "Look at that node's memory and log; what was finished is kept. --workers with a smaller number leaves each more room.",
                )
            again = [shard for _, shard in hand.shards]
            self._waiting = deque(sorted([*again, *self._waiting], key=lambda shard: shard.number))
        if self._vain >= _LOSSES * (self._count + 1):
            raise self._nobody()
        self._hire()

    def _nobody(self) -> ExecutionError:
        reason = f" ({self._why})" if self._why else ""
        needs = " and ".join(f"{amount} {what.removeprefix('num_').upper()}" for what, amount in self._needs.items() if amount)
        return ExecutionError(
            "no-workers",
            f"No worker of the cluster could be had for {self._patience:.0f} s, or all were lost{reason}. Each needs {needs}.",
            "Look with `ray status` whether the cluster is free and alive; what was finished is kept.",
        )

    def _hire(self) -> None:
        """Ask the cluster for a worker; it takes shards once it has shown that it computes the same."""
        actor = self._remote.options(**self._needs, max_restarts=0, scheduling_strategy="SPREAD").remote(self._threads)
        self._hands.append(_Hand(actor, actor.look.remote(self._device)))

    def _drop(self) -> None:
        """Forget what was asked for and is no longer wanted."""
        self._waiting.clear()
        for hand in self._hands:
            while hand.shards:
                self._ray.cancel(hand.shards.pop()[0])

    def _assignment(self) -> Assignment:
        bench = self.bench
        return Assignment(
            bench.plan, bench.data, bench.allow_code, replace(bench.execution, device=self._device), str(Path.cwd()),
            variables(bench.plan.audit.model_dump_json()), machine.files(bench.plan, bench.data),
        )  # fmt: skip

    def _connect(self) -> None:
        ray, execution = self._ray, self.bench.execution
        if not ray.is_initialized():
            address = execution.address or os.environ.get("RAY_ADDRESS") or None
            if address is not None:
                _require_answer(address)
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
            try:
                if address is None:
                    ray.init(
                        address="local", num_cpus=max((execution.workers or 0) * self._threads, cores()),
                        object_store_memory=_OBJECTS, include_dashboard=False, **quiet,
                    )  # fmt: skip
                else:
                    ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                raise _no_cluster(address or "this machine", _first_line(error)) from error
            self._started_here = True
        self._remote = ray.remote(Worker)

    def _division(self) -> tuple[int, dict[str, int]]:
        """Number of workers, and what of the cluster each takes."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        # Where a node has fewer processors than this process has threads, a worker's threads take turns there.
        each = max(1, min(self._threads, max(cpus, default=1)))
        workers = self.bench.execution.workers
        if self._device == "cpu":
            return workers or max(1, sum(count // each for count in cpus)), {"num_cpus": each, "num_gpus": 0}
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if gpus < (workers or 1):
            raise UsageError(
                "too-few-gpus",
                f"{workers or 1} workers are asked for on {describe(self.bench.device)}, and the cluster has {gpus} GPUs.",
                "Use fewer --workers, or --device cpu.",
            )
        return workers or gpus, {"num_cpus": 1, "num_gpus": 1}


def _ray() -> Any:
    # Nothing is sent anywhere but within the cluster; what this process prints is its own.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "ray-missing", "Ray, which --engine ray computes with, is not installed.",
            "Install it on every node: pip install 'semlens-audit[ray]'. Or use --engine local.",
        ) from error  # fmt: skip
    return ray


def _require_answer(address: str) -> None:
    """Complain at once about an address where no cluster listens; Ray itself goes on trying for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal():
        raise UsageError("bad-address", f"{address!r} is no address of a Ray cluster.", "Write HOST:PORT, or auto.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER) as connection:
            connection.sendall(_GREETING)
            answer = connection.recv(4)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, str(error)) from error
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", "")
    if answer[3:] != _SETTINGS and not encrypted:
        raise _no_cluster(address, "what listens there is something else, such as the cluster's dashboard.")


def _no_cluster(address: str, why: str) -> UsageError:
    return UsageError(
        "no-cluster",
        f"No Ray cluster answers at {address}: {why}",
        "Start one with `ray start --head`, and give its --address HOST:PORT; left out, this machine is used.",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[:300]
