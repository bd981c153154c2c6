"""Sizes of memory, the limit, and an index whose memory does not grow with its data."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.memory import DATABASE, LEAST_DATABASE, Limit, divide, parse_size, resident, show_size
from tests.unit import index_world as world

pytestmark = pytest.mark.usefixtures("one_thread")


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "bytes_"),
        [
            ("4GB", 4 * 10**9), ("4 GB", 4 * 10**9), ("800MiB", 800 << 20), ("2.5g", 2_500_000_000), ("1TiB", 1 << 40),
            ("1073741824", 1 << 30), (" 512 mb ", 512 * 10**6), ("200000kB", 200_000_000), ("9" * 400 + "GB", 1 << 62),
        ],
    )  # fmt: skip
    def test_are_read_as_people_write_them(self, text: str, bytes_: int) -> None:
        assert parse_size(text) == bytes_

    @pytest.mark.parametrize("text", ["", "GB", "four GB", "4XB", "-4GB", "4,5GB", "1e9", "4GB8", "nan"])
    def test_nonsense_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_size(text)
        assert caught.value.slug == "bad-size"
        assert "4GB" in caught.value.problems[0].hint

    def test_less_than_the_libraries_take_is_refused(self) -> None:
        with pytest.raises(UsageError) as caught:
            parse_size("64MB")
        assert caught.value.slug == "memory-too-small"
        assert "64 MB" in str(caught.value)

    @pytest.mark.parametrize(
        ("size", "text"), [(999, "999 bytes"), (12_345, "12 kB"), (3_210_000_000, "3.2 GB"), (10**9, "1 GB"), (810 * 10**6, "810 MB")]
    )
    def test_are_shown(self, size: int, text: str) -> None:
        assert show_size(size) == text


class TestLimit:
    def test_divides_what_can_be_divided(self) -> None:
        assert divide(None).database == DATABASE
        for limit in (200 << 20, 1 << 30, 64 << 30):
            parts = divide(limit)
            assert LEAST_DATABASE <= parts.database <= DATABASE
            assert parts.database <= max(LEAST_DATABASE, limit // 8)
            assert parts.waiting + parts.ahead <= limit // 8
        assert divide(1 << 30).ahead < divide(8 << 30).ahead

    def test_says_how_much_is_held(self) -> None:
        held = resident()
        if held is None:
            pytest.skip("the system does not tell how much memory a process holds")
        Limit(None).require("Nothing")
        Limit(held + (8 << 30)).require("Little")
        with pytest.raises(ExecutionError) as caught:
            Limit(held // 2).require("The index")
        assert caught.value.slug == "memory-exceeded"
        assert show_size(held // 2) in str(caught.value)

    def test_what_was_held_in_between_counts(self) -> None:
        code = """
            import numpy as np
            from semlens_audit.errors import ExecutionError
            from semlens_audit.memory import Limit, resident
            limit = Limit(resident() + (200 << 20))
            limit.require("Little")
            np.ones(50 << 20)  # 400 MiB, given back at once
            try:
                limit.require("Much")
            except ExecutionError as error:
                print(error.slug)
        """
        if resident() is None:
            pytest.skip("the system does not tell how much memory a process holds")
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "memory-exceeded", done.stderr


BUILD = """
    import sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from semlens_audit import index, stages
    from semlens_audit.execution import Execution
    from semlens_audit.memory import _status
    from tests.unit import index_world as world
    stages.NULL_CROPS = 40
    values = world.audit(layers=["layer3"])
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    index.build(world.plan(Path(sys.argv[1]), values), execution=Execution(device="cpu", max_memory=limit))
    print(_status("VmHWM"))
"""


def build(folder: Path, *limit: int) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(BUILD)
    return subprocess.run([sys.executable, "-c", code, str(folder), *map(str, limit)], capture_output=True, text=True, check=False)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A world with 100 samples, indexed without a limit."""
    folder = world.write_world(tmp_path / "few")
    world.write_images(folder / "images", samples=100)
    return folder


@pytest.mark.skipif(resident() is None, reason="the system does not tell how much memory a process holds")
class TestIndex:
    def test_memory_does_not_grow_with_the_samples(self, few: Path, tmp_path: Path) -> None:
        many = world.write_world(tmp_path / "many")
        world.write_images(many / "images", samples=800)
        peaks = []
        for folder in (few, many):
            done = build(folder)
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stdout.split()[-1]))
        assert peaks[1] < 1.1 * peaks[0]

    def test_a_limit_that_is_too_small_ends_it_and_a_larger_one_goes_on(self, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from semlens_audit import index, stages
        from semlens_audit.store import Store

        monkeypatch.setattr(stages, "NULL_CROPS", 40)
        plan = world.plan(few, world.audit(layers=["layer3"]))
        index.build(plan)
        (few / "store.duckdb").rename(few / "unlimited.duckdb")
        done = build(few, 300 << 20)
        assert done.returncode != 0
        assert "memory-exceeded" in done.stderr
        index.build(plan)
        with Store.open(few / "store.duckdb") as limited, Store.open(few / "unlimited.duckdb") as unlimited:
            assert limited.content_digest() == unlimited.content_digest()


def test_large_blocks_are_used_again() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")
    code = """
        import resource
        import torch
        from semlens_audit.memory import release, resident, reuse
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(6 << 20)  # 24 MiB, freed at once
                torch.ones(7 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        torch.set_num_threads(1)
        torch.empty(20 << 20)  # glibc learns from what is freed; beyond its limit of 32 MiB it learns nothing
        one = torch.ones(10 << 20)
        del one
        reuse()
        faults()
        print(faults())
        held = resident()
        release()
        print(held - resident())
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    faults, given = map(int, child.stdout.split())
    assert faults < 2000  # each of the blocks is 6144 pages or more
    assert given > 20 << 20


def test_memory_between_what_is_kept_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library is not glibc")
    code = """
        import ctypes
        from semlens_audit.memory import release, resident
        made = [ctypes.create_string_buffer(100_000) for _ in range(1500)]
        for one in made:
            ctypes.memset(one, 1, 100_000)
        made = made[::3]
        before = resident()
        release()
        print(before - resident(), all(one.raw == bytes([1]) * 100_000 for one in made))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    given, whole = child.stdout.split()
    assert int(given) > 60_000_000  # of the 100 MB that lie in pieces
    assert whole == "True"
