"""The engine of a cluster: order, bounded haste, lost workers, workers that differ. The cluster is one within this process."""

from __future__ import annotations

import os
import pickle
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from semlens_audit import machine, ray_engine
from semlens_audit.data import DataSet, open_data
from semlens_audit.errors import AuditError, DataError, ExecutionError, Problem, UsageError
from semlens_audit.execution import Execution
from semlens_audit.ray_engine import RayEngine, shards
from semlens_audit.ray_worker import Assignment, Worker, portable, unpacked
from semlens_audit.work import Bench, LocalEngine
from semlens_audit.yaml_source import TooManyProblems
from tests.unit import index_world as world
from tests.unit.ray_stand_in import Cluster


@dataclass(frozen=True)
class Squares:
    """Work whose results tell their item and the sample that they were made from."""

    broken: int = -1
    threads: int = 1
    ahead: int = 2

    def prepare(self, bench: Bench, item: int) -> str:
        return bench.data.samples[item % len(bench.data.samples)].path

    def compute(self, bench: Bench, item: int, ready: str) -> tuple[int, str]:
        if item == self.broken:
            raise DataError("unreadable-image", "It is broken.", "Mend it.", file=ready, line=3)
        return item * item, ready


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    plan = world.plan(folder)
    return Bench(plan, open_data(plan), execution=Execution(engine="ray", device="cpu", workers=3))


@pytest.fixture
def clustered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[Cluster], RayEngine]:
    def engine(cluster: Cluster) -> RayEngine:
        monkeypatch.setattr(ray_engine, "_ray", lambda: cluster)
        monkeypatch.setattr(machine, "traits", lambda device: {"the device": str(device)})
        return RayEngine(bench, patience=0.0)

    return engine


def test_shards_are_runs_of_all_items() -> None:
    for count in (1, 2, 7, 16, 100, 1000):
        for workers in (1, 2, 5):
            found = shards(count, workers)
            assert [item for part in found for item in part] == list(range(count))
            assert 1 <= min(map(len, found)) <= max(map(len, found)) <= 8
            assert len(found) >= min(count, workers)
            assert sorted(map(len, found), reverse=True) == list(map(len, found))
            assert all(len(part) == 1 for part in found[-min(count, 4 * workers) :])
            left = [count - part.start for part in found]
            assert all(len(part) == 1 or len(part) * 4 * workers <= more for part, more in zip(found, left, strict=True))
    assert shards(0, 2) == []


@pytest.mark.parametrize("seed", range(4))
def test_results_come_in_order_whoever_answers_first_and_nobody_hastens_ahead(
    clustered: Callable[[Cluster], RayEngine], bench: Bench, seed: int
) -> None:
    draw = random.Random(seed)
    cluster = Cluster(order=draw.choice)
    items = list(range(100))
    with clustered(cluster) as engine:
        for work in (Squares(), Squares(threads=2)):
            assert list(engine.run(work, items)) == list(LocalEngine(bench).run(work, items))
        assert list(engine.run(Squares(), [])) == []
    assert len(cluster.hired) == 3
    assert cluster.most_owed <= 6
    assert not any(actor.alive for actor in cluster.hired)


@pytest.mark.parametrize("seed", range(6))
def test_shards_of_lost_workers_are_computed_by_others(
    clustered: Callable[[Cluster], RayEngine], bench: Bench, seed: int
) -> None:
    draw, taken = random.Random(seed), Counter[int]()

    def dies(number: int, method: str, arguments: tuple[Any, ...]) -> bool:
        """Any call may kill, the same items once."""
        items = arguments[1] if method == "run" else []
        if draw.random() >= 0.15 or any(taken[item] for item in items):
            return False
        taken.update(items)
        return True

    cluster = Cluster(dies=dies, order=draw.choice)
    with clustered(cluster) as engine:
        found = list(engine.run(Squares(), list(range(100))))
    assert found == list(LocalEngine(bench).run(Squares(), range(100)))
    assert len(cluster.hired) > 3


def test_items_that_take_every_worker_with_them_are_named(clustered: Callable[[Cluster], RayEngine]) -> None:
    def deadly(number: int, method: str, arguments: tuple[Any, ...]) -> bool:
        return method == "run" and 50 in arguments[1]

    seen = []
    with clustered(Cluster(dies=deadly)) as engine, pytest.raises(ExecutionError) as caught:
        for item, _ in engine.run(Squares(), range(100)):
            seen.append(item)
    assert caught.value.slug == "shard-lost"
    assert "3 workers were lost one after another over the items 48 to 51 of this pass" in str(caught.value)
    assert machine.name() in str(caught.value)
    assert "The actor died." in str(caught.value)
    assert seen == list(range(len(seen)))


def test_a_cluster_whose_workers_never_come_up_is_given_up(clustered: Callable[[Cluster], RayEngine]) -> None:
    with clustered(Cluster(dies=lambda *_: True)) as engine, pytest.raises(ExecutionError, match="no-workers") as caught:
        list(engine.run(Squares(), range(10)))
    assert "Each needs 1 CPUS" in str(caught.value)

    cluster = Cluster()
    cluster.wait = lambda refs, num_returns, timeout: ([], refs)  # type: ignore[method-assign]
    with clustered(cluster) as engine, pytest.raises(ExecutionError, match="no-workers"):
        list(engine.run(Squares(), range(10)))


def test_an_error_of_an_item_is_raised_when_its_turn_comes(clustered: Callable[[Cluster], RayEngine], bench: Bench) -> None:
    seen = []
    with clustered(Cluster()) as engine:
        with pytest.raises(DataError) as caught:
            for item, _ in engine.run(Squares(broken=29), range(60)):
                seen.append(item)
        assert seen == list(range(29))
        assert caught.value.problems[0].line == 3
        # What was asked for beyond it is forgotten, and the workers go on with other work.
        assert [item for item, _ in engine.run(Squares(), range(60))] == list(range(60))
        before = engine.run(Squares(), range(60))
        assert next(before)[0] == 0
        before.close()  # type: ignore[attr-defined]
        assert [item for item, _ in engine.run(Squares(), range(60))] == list(range(60))


def test_a_worker_that_would_compute_something_else_is_refused(
    clustered: Callable[[Cluster], RayEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Worker):
        def look(self, device: str) -> tuple[str, dict[str, str]]:
            return "node-7 (process 12)", {"the device": "cpu", "torch": "1.0"}

    monkeypatch.setattr(ray_engine, "Worker", Other)
    with clustered(Cluster()) as engine, pytest.raises(ExecutionError, match="node-differs") as caught:
        list(engine.run(Squares(), range(10)))
    assert "node-7 (process 12)" in str(caught.value)
    assert "torch (none here, 1.0 there)" in str(caught.value)


def test_a_worker_that_reads_other_files_is_refused(
    clustered: Callable[[Cluster], RayEngine], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Worker):
        def take_over(self, assignment: Assignment) -> list[tuple[str, str]]:
            files = {path.replace("small.", "none."): sha256 for path, sha256 in assignment.files.items()}
            return machine.different_files(files)

    monkeypatch.setattr(ray_engine, "Worker", Elsewhere)
    with clustered(Cluster()) as engine, pytest.raises(ExecutionError, match="node-differs") as caught:
        list(engine.run(Squares(), range(10)))
    assert caught.value.problems[0].file == str(folder / "none.safetensors")
    assert "does not exist" in str(caught.value)


def test_a_worker_that_cannot_be_talked_to_says_why(
    clustered: Callable[[Cluster], RayEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older(Worker):
        def look(self, device: str) -> tuple[str, dict[str, str]]:
            raise ModuleNotFoundError("No module named 'semlens_audit.machine'")

    monkeypatch.setattr(ray_engine, "Worker", Older)
    with clustered(Cluster()) as engine, pytest.raises(ExecutionError, match=r"No module named 'semlens_audit\.machine'"):
        list(engine.run(Squares(), range(10)))


def test_files_that_are_compared(folder: Path, bench: Bench, tmp_path: Path) -> None:
    files = machine.files(bench.plan, bench.data)
    named = {Path(path).relative_to(folder).as_posix() for path in files}
    assert {"small.safetensors", "clip/open_clip_model.safetensors", "clip/open_clip_config.json"} <= named
    assert sum(name.startswith("images/") for name in named) == 4
    assert machine.different_files(files) == []
    other = tmp_path / "other"
    other.write_bytes(b"1")
    wrong = machine.different_files({str(other): "0" * 64, str(tmp_path): "0" * 64, str(tmp_path / "none"): "0" * 64})
    assert [how.partition(" (")[0] for _, how in wrong] == ["holds something else", "cannot be read", "does not exist"]


def test_the_arithmetic_of_a_machine_is_told_by_its_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    before = machine.arithmetic(cpu)
    assert machine.arithmetic(cpu) == before
    real = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *tensors: torch.nextafter(real(*tensors).float(), torch.tensor(9e9)))
    assert machine.arithmetic(cpu) != before
    ours = machine.traits(cpu)
    assert machine.different_traits(ours, ours) == []
    assert machine.different_traits(ours, ours | {"torch": "1.0"}) == [f"torch ({ours['torch']} here, 1.0 there)"]
    assert machine.different_traits(ours, ours | {"the last bits of its arithmetic": "0" * 64}) == [
        "the last bits of its arithmetic"
    ]


def test_a_worker_takes_over_threads_variables_and_files(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEMLENS_AUDIT_ELSEWHERE", raising=False)
    monkeypatch.chdir(Path.cwd())  # put back afterwards
    worker = Worker(1)
    files = machine.files(bench.plan, bench.data)
    given = Assignment(bench.plan, bench.data, False, bench.execution, str(tmp_path), {"SEMLENS_AUDIT_ELSEWHERE": "x"}, files)
    assert worker.take_over(pickle.loads(pickle.dumps(given))) == []
    assert Path.cwd() == tmp_path
    assert os.environ["SEMLENS_AUDIT_ELSEWHERE"] == "x"
    results, failure = unpacked(worker.run(Squares(broken=4), [3, 4, 5]))
    assert [value for value, _ in results] == [9]
    assert isinstance(failure, DataError)
    worker.forget_subject()


def test_threads_are_shared_since_last_bits_depend_on_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(cpus=4)
    asked = []
    monkeypatch.setattr(ray_engine, "_ray", lambda: cluster)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads, workers, each in ((1, 4, 1), (3, 1, 3), (8, 1, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        engine = RayEngine(Bench(bench.plan, bench.data, execution=Execution(engine="ray", device="cpu")))
        with engine:
            assert (engine._count, engine._needs) == (workers, {"num_cpus": each, "num_gpus": 0})
        assert asked[-1] == threads


class UnpackableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("kind", [AuditError, DataError, ExecutionError, UsageError, TooManyProblems])
def test_audit_errors_travel_with_all_their_problems(kind: type[AuditError]) -> None:
    problems = (Problem("first", "One.", "Do this.", "a.yaml", 3, 4), Problem("second", "Two."))
    error = kind("first", "One.", problems=problems)
    for copy in (pickle.loads(pickle.dumps(error)), portable(error)):
        assert type(copy) is kind
        assert isinstance(copy, AuditError)
        assert copy.problems == problems
        assert str(copy) == str(error)
        assert copy.exit_code == kind.exit_code
        assert not getattr(copy, "__notes__", [])


def test_other_errors_travel_as_what_they_are_or_say_what_they_were() -> None:
    def raised(error: Exception) -> Exception:
        try:
            raise error
        except type(error) as caught:
            return portable(caught)

    full = raised(OSError(28, "No space left on device", "file"))
    assert isinstance(full, OSError)
    assert (full.errno, full.filename) == (28, "file")
    assert "Traceback" in full.__notes__[0]
    assert isinstance(raised(MemoryError()), MemoryError)
    strange = raised(UnpackableError(1, 2))
    assert isinstance(strange, ExecutionError)
    assert strange.slug == "worker-failed"
    assert "UnpackableError: 1 and 2" in str(strange)


def test_without_ray_it_is_said_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'semlens-audit\[ray\]'") as caught, RayEngine(bench):
        pass
    assert caught.value.slug == "ray-missing"


@pytest.mark.parametrize(
    ("address", "slug"),
    [
        ("127.0.0.1:1", "no-cluster"), ("[::1]:1", "no-cluster"), ("127.0.0.1:99999", "no-cluster"), ("127.0.0.1", "bad-address"),
        (":6379", "bad-address"), ("ray://127.0.0.1:10001", "bad-address"), ("host:port", "bad-address"), ("local", "bad-address"),
    ],
)  # fmt: skip
def test_an_address_where_no_cluster_is_is_said_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, address: str, slug: str
) -> None:
    cluster = Cluster()
    monkeypatch.setattr(ray_engine, "_ray", lambda: cluster)
    monkeypatch.setattr(cluster, "is_initialized", lambda: False)
    how = Execution(engine="ray", device="cpu", address=address)
    with pytest.raises(UsageError) as caught, RayEngine(Bench(bench.plan, bench.data, execution=how)):
        pass
    assert caught.value.slug == slug
    assert address in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "cluster"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", False), (b"", False), (bytes(3) + b"\x04" + bytes(5), True)]
)
def test_what_listens_at_an_address_is_told_from_a_cluster(monkeypatch: pytest.MonkeyPatch, answer: bytes, cluster: bool) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if cluster:
            ray_engine._require_answer(address)
        else:
            with pytest.raises(UsageError) as caught:
                ray_engine._require_answer(address)
            assert (caught.value.slug, "something else" in str(caught.value)) == ("no-cluster", True)
        thread.join(10)


def test_data_travel_whole(bench: Bench) -> None:
    copy: DataSet = pickle.loads(pickle.dumps(bench.data))
    assert copy.samples == bench.data.samples
    assert copy.root == bench.data.root


def test_the_start_waits_for_workers_and_reports_them(clustered: Callable[[Cluster], RayEngine]) -> None:
    told: list[int] = []

    class Told:
        @contextmanager
        def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
            told.append(total)
            yield told.append

    with clustered(Cluster()) as engine:
        engine.start(Told())
        assert all(hand.ready for hand in engine._hands)
    assert told[0] == 3
    assert sum(told[1:]) == 3
    with clustered(Cluster(dies=lambda *_: True)) as engine, pytest.raises(ExecutionError, match="no-workers"):
        engine.start(Told())
