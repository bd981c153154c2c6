from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit import component_search, search_codes
from semlens_audit.component_search import ComponentSearch, Hit, cache_folder
from semlens_audit.errors import StoreError
from semlens_audit.search_codes import BLOCK, Codes, CodesDamagedError, estimates, write_codes
from semlens_audit.store import Store


def slow(layers: dict[str, np.ndarray], directions: dict[str, np.ndarray], count: int) -> list[Hit]:
    """Every component compared, in extended precision."""
    every = []
    for place, (stage, direction) in enumerate(directions.items()):
        wanted = direction.astype(np.longdouble)
        for component, row in enumerate(layers[stage].astype(np.longdouble)):
            length = np.sqrt((row @ row) * (wanted @ wanted))
            every.append((-float(row @ wanted / length) if length else 0.0, place, component, stage))
    return [Hit(stage, component, -cosine) for cosine, _, component, stage in sorted(every)[:count]]


def write(path: Path, layers: dict[str, np.ndarray]) -> Store:
    store = Store.open(path)
    for stage, vectors in layers.items():
        store.append("meaning", stage=stage, component=np.arange(len(vectors)), vector=vectors, centred=-vectors)
    return store


def same(found: list[Hit], wanted: list[Hit]) -> None:
    assert [(hit.stage, hit.component) for hit in found] == [(hit.stage, hit.component) for hit in wanted]
    assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in wanted], abs=1e-12)


@pytest.fixture
def layers() -> dict[str, np.ndarray]:
    """A narrow cone with two dimensions much larger than the others, rows of different lengths, ties and a zero."""
    rng = np.random.default_rng(3)
    one = rng.normal(size=(3000, 37)) * np.exp(rng.normal(size=37)) + 4 * rng.normal(size=37)
    one[:, 5] *= 40
    one *= rng.uniform(0.1, 10, size=(3000, 1))
    one[[10, 2500]] = one[7]
    one[99] = 0
    two = rng.normal(size=(700, 37))
    two[3] = one[7]
    return {"b": one.astype(np.float32), "a": two.astype(np.float32), "empty": np.zeros((0, 37), np.float32)}


@pytest.mark.parametrize("few", [0, 10**6])
def test_is_what_comparing_all_of_them_gives(tmp_path: Path, layers: dict[str, np.ndarray], few: int) -> None:
    rng = np.random.default_rng(8)
    with write(tmp_path / "s.duckdb", layers) as store:
        search = ComponentSearch(store, few=few)
        for direction in [*rng.normal(size=(6, 37)), layers["b"][7].astype(float), -layers["b"][7].astype(float)]:
            for names in (["a", "b", "empty"], ["b", "a"], ["b"]):
                directions = dict.fromkeys(names, direction)
                for count in (1, 4, 300, 10_000):
                    same(search.nearest(directions, "vector", count), slow(layers, directions, count))
        other = {"a": rng.normal(size=37), "b": rng.normal(size=37)}  # a direction of its own for each
        same(search.nearest(other, "vector", 20), slow(layers, other, 20))
        same(search.nearest(other, "centred", 20), slow({k: -v for k, v in layers.items()}, other, 20))
        assert search.nearest(other, "vector", 0) == []
        assert search.nearest({"none": rng.normal(size=37)}, "vector", 3) == []
    assert cache_folder(tmp_path / "s.duckdb").exists() == (few == 0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_bounds_hold_and_answers_are_exact_whatever_the_vectors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 20))
    number = st.sampled_from([0.0, 1.0, -1.0, 3e-3, -7e4, 1e-12, 0.5]) | st.floats(-100, 100, width=32)
    vectors = np.array(data.draw(st.lists(st.lists(number, min_size=width, max_size=width), min_size=rows, max_size=rows)), np.float32)
    direction = np.array(data.draw(st.lists(number, min_size=width, max_size=width).filter(any)))
    count = data.draw(st.integers(1, rows + 2))
    folder = tmp_path_factory.mktemp("search")
    with write(folder / "s.duckdb", {"k": vectors}) as store:
        search = ComponentSearch(store, few=0)
        found = search.nearest({"k": direction}, "vector", count)
        same(found, ComponentSearch(store).nearest({"k": direction}, "vector", count))
        codes = search._opened("k", "vector")
        assert codes is not None
        every = ComponentSearch(store).nearest({"k": direction}, "vector", rows)
        exact = np.array([hit.similarity for hit in sorted(every, key=lambda hit: hit.component)])
        assert np.all(np.abs(codes.estimate(direction) - exact) <= codes.bound)


def test_few_are_read_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    read = []
    real = ComponentSearch._chosen
    monkeypatch.setattr(ComponentSearch, "_chosen", lambda self, *given: read.append(len(given[1])) or real(self, *given))
    with write(tmp_path / "s.duckdb", {"k": vectors}) as store:
        search = ComponentSearch(store, few=0)
        direction = np.random.default_rng(1).normal(size=64)
        same(search.nearest({"k": direction}, "vector", 10), slow({"k": vectors}, {"k": direction}, 10))
    assert sum(read) < 1000


class TestThreads:
    """Several files, scanned share by share by as many threads as there are."""

    @pytest.fixture
    def asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Codes, np.ndarray]]:
        monkeypatch.setattr(search_codes, "_SHARE", 2 * BLOCK * 24)  # two blocks of the narrowest
        monkeypatch.setattr(search_codes, "_WIDE", 300 * 4 * 24)  # a block is widened in parts, the last one shorter
        rng = np.random.default_rng(4)
        asked = []
        for number, (rows, width) in enumerate([(7 * BLOCK + 5, 24), (1, 40), (0, 8), (3 * BLOCK, 90)]):
            vectors = rng.normal(size=(rows, width)).astype(np.float32)
            path = tmp_path / f"{number}.codes"
            write_codes(path, "stage", "vector", rows, width, lambda v=vectors: [(np.arange(len(v)), v)] if len(v) else [])
            asked.append((Codes.open(path, "stage", "vector"), rng.normal(size=width)))
        return asked

    def test_find_the_same_bits_however_many_they_are(self, asked: list[tuple[Codes, np.ndarray]]) -> None:
        alone = estimates(asked, threads=1)
        for threads in (2, 3, 16):
            for one, other in zip(alone, estimates(asked, threads=threads), strict=True):
                assert isinstance(one, np.ndarray)
                np.testing.assert_array_equal(one, other)
        assert [len(one) for one in alone] == [len(codes.component) for codes, _ in asked]

    def test_more_than_one_take_shares(self, asked: list[tuple[Codes, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
        together, read = threading.Barrier(2, timeout=60), search_codes._Scan.read
        met = []

        def wait(self: search_codes._Scan, blocks: range, room: search_codes._Room) -> None:
            if len(met) < 2:  # the first two shares are only read while both are being read
                met.append(threading.get_ident())
                together.wait()
            read(self, blocks, room)

        monkeypatch.setattr(search_codes._Scan, "read", wait)
        estimates(asked, threads=2)
        assert len(set(met)) == 2

    @pytest.mark.parametrize("threads", [1, 3])
    def test_damage_to_one_file_is_of_that_file_alone(self, asked: list[tuple[Codes, np.ndarray]], threads: int) -> None:
        whole = estimates(asked, threads=1)
        codes = asked[0][0]
        content = bytearray(codes.path.read_bytes())
        content[codes.offset + 5 * BLOCK * codes.width + 7] ^= 1
        codes.path.write_bytes(content)
        asked[1][0].path.unlink()
        found = estimates(asked, threads)
        assert isinstance(found[0], CodesDamagedError)
        assert isinstance(found[1], FileNotFoundError)
        np.testing.assert_array_equal(found[2], whole[2])
        np.testing.assert_array_equal(found[3], whole[3])


class TestFile:
    @pytest.fixture
    def store(self, tmp_path: Path, layers: dict[str, np.ndarray]):
        with write(tmp_path / "s.duckdb", layers) as store:
            yield store

    def expected(self, store: Store, layers: dict[str, np.ndarray], search: ComponentSearch | None = None) -> None:
        direction = np.random.default_rng(5).normal(size=37)
        found = (search or ComponentSearch(store, few=0)).nearest({"b": direction}, "vector", 12)
        same(found, slow(layers, {"b": direction}, 12))

    def test_is_made_once(self, store: Store, layers: dict[str, np.ndarray]) -> None:
        self.expected(store, layers)
        (file,) = cache_folder(store.path).iterdir()
        before = file.stat().st_mtime_ns
        self.expected(store, layers)
        assert file.stat().st_mtime_ns == before
        assert file.stat().st_size < layers["b"].nbytes / 2

    @pytest.mark.parametrize("place", [0, 9, 30, 300, 3000, 40_000, -1])
    def test_a_damaged_one_is_never_trusted(self, store: Store, layers: dict[str, np.ndarray], place: int) -> None:
        self.expected(store, layers)
        search = ComponentSearch(store, few=0)
        self.expected(store, layers, search)  # has the tables in memory already
        (file,) = cache_folder(store.path).iterdir()
        good = file.read_bytes()
        damaged = bytearray(good)
        damaged[place] ^= 0x40
        for content in (bytes(damaged), good[: len(good) // 2], b"", good + b"\0" * 40):
            file.write_bytes(content)
            self.expected(store, layers)
            assert file.read_bytes() == good
        file.write_bytes(bytes(damaged))
        self.expected(store, layers, search)
        file.unlink()
        self.expected(store, layers, search)

    def test_of_embeddings_that_were_computed_anew_it_is_made_anew(self, store: Store, layers: dict[str, np.ndarray]) -> None:
        store.log("stage-finished", {"stage": "b"})
        self.expected(store, layers)
        (file,) = cache_folder(store.path).iterdir()
        anew = {"b": np.random.default_rng(77).normal(size=layers["b"].shape).astype(np.float32)}
        with store.transaction():
            store.execute("DELETE FROM meaning WHERE stage = 'b'")
            store.append("meaning", stage="b", component=np.arange(len(anew["b"])), vector=anew["b"], centred=-anew["b"])
            store.log("stage-finished", {"stage": "b"})
        self.expected(store, anew)
        assert list(cache_folder(store.path).iterdir()) == [file]

    def test_one_of_another_stage_or_size_is_not_used(self, store: Store, layers: dict[str, np.ndarray]) -> None:
        ComponentSearch(store, few=0).nearest({"a": np.ones(37)}, "vector", 1)
        (other,) = cache_folder(store.path).iterdir()
        other.rename(other.with_name("b.vector.codes"))
        self.expected(store, layers)
        with pytest.raises(CodesDamagedError):
            Codes.open(cache_folder(store.path) / "b.vector.codes", "b", "centred")
        store.execute("DELETE FROM meaning WHERE stage = 'b' AND component = 2999")
        self.expected(store, {"b": layers["b"][:2999]})

    def test_without_a_folder_to_write_it_in(self, store: Store, layers: dict[str, np.ndarray]) -> None:
        cache_folder(store.path).write_text("in the way")
        self.expected(store, layers)

    def test_is_whole_or_not_there(self, tmp_path: Path) -> None:
        def blocks():
            yield np.arange(5), np.ones((5, 3), np.float32)
            if len(seen) > 1:
                raise KeyboardInterrupt

        seen = []
        with pytest.raises(KeyboardInterrupt):
            write_codes(tmp_path / "c", "k", "vector", 5, 3, lambda: seen.append(1) or blocks())
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ValueError, match="5 embeddings instead of 6"):
            write_codes(tmp_path / "c", "k", "vector", 6, 3, lambda: [(np.arange(5), np.ones((5, 3), np.float32))])

    def test_does_not_depend_on_the_blocks_it_was_made_from(self, tmp_path: Path) -> None:
        vectors = np.random.default_rng(2).normal(size=(2 * BLOCK + 100, 5)).astype(np.float32)
        made = []
        for name, cut in (("one", [4000]), ("two", [1, 2, 2500])):
            parts = [(np.arange(len(vectors))[part], vectors[part]) for part in np.split(np.arange(len(vectors)), cut)]
            write_codes(tmp_path / name, "k", "vector", len(vectors), 5, lambda parts=parts: parts)
            made.append(Codes.open(tmp_path / name, "k", "vector"))
        for one in made:
            assert np.all(np.abs(one.estimate(np.ones(5)) - made[0].estimate(np.ones(5))) <= one.bound)
            assert one.component.tolist() == list(range(len(vectors)))


@pytest.mark.parametrize("few", [0, 10**6])
def test_damaged_embeddings_are_refused(tmp_path: Path, few: int) -> None:
    vectors = np.ones((4, 3), np.float32)
    vectors[2, 1] = np.nan
    with write(tmp_path / "s.duckdb", {"k": vectors, "other": np.ones((2, 4), np.float32)}) as store:
        for stage in ("k", "other"):
            with pytest.raises(StoreError, match="damaged") as caught:
                ComponentSearch(store, few=few).nearest({stage: np.ones(3)}, "vector", 2)
            assert caught.value.slug == "store-damaged"


def test_needs_neither_torch_nor_pandas() -> None:
    import subprocess
    import sys

    code = f"import sys, {component_search.__name__}; print(sorted({{'torch', 'pandas', 'scipy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
