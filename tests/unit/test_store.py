from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pytest

from semlens_audit import store_file_digests
from semlens_audit.errors import StoreError
from semlens_audit.store import Store
from semlens_audit.store_errors import store_error
from semlens_audit.store_schema import TABLES, VERSION, statements


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(tmp_path / "s.duckdb") as opened:
        yield opened


def refused(path: Path, read_only: bool = False) -> StoreError:
    with pytest.raises(StoreError) as caught, Store.open(path, read_only=read_only) as opened:
        opened.content_digest()
    problem = caught.value.problems[0]
    assert problem.hint
    assert problem.file == str(path)
    return caught.value


def fill(store: Store, order: list[int]) -> None:
    store.begin("outputs", {"stage": "outputs", "x": 1}, 3)
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    for i in order:
        store.append("output", stage="k", sample=[i], logits=vectors[[i]])
        store.append("thumbnail", stage="k", component=[i], rank=[0], crop=[bytes([i])], overlay=[b"\xff\x00"])


class TestSchema:
    def test_every_table_and_column_says_what_it_is(self, store: Store) -> None:
        tables = dict(store.rows("SELECT table_name, comment FROM duckdb_tables() WHERE NOT internal"))
        columns = store.rows("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal")
        assert set(tables) == {table.name for table in TABLES}
        assert all(tables.values())
        assert len(columns) == sum(len(table.columns) for table in TABLES)
        assert [name for name in columns if not name[2]] == []

    def test_version_is_written(self, store: Store) -> None:
        assert store.rows("SELECT version FROM store_version") == [(VERSION,)]

    def test_newer_version_is_refused_with_both_versions(self, tmp_path: Path) -> None:
        path = tmp_path / "s.duckdb"
        with Store.open(path) as opened:
            opened.execute("UPDATE store_version SET version = 99, tool = '7.1'")
        error = refused(path)
        assert error.slug == "store-newer"
        assert "99" in str(error)
        assert "7.1" in str(error)
        assert str(VERSION) in str(error)

    @pytest.mark.parametrize("version", range(1, VERSION))
    def test_older_version_is_brought_up_to_date_and_keeps_its_content(self, tmp_path: Path, version: int) -> None:
        path = tmp_path / "s.duckdb"
        with Store.open(path) as opened:
            fill(opened, [0, 1, 2])
            wanted = opened.content_digest()
            for table in TABLES:
                if table.since > version:
                    opened.execute(f'DROP TABLE "{table.name}"')
            opened.execute("UPDATE store_version SET version = ?", (version,))
        assert refused(path, read_only=True).slug == "store-older"
        with Store.open(path) as opened:
            assert opened.content_digest() == wanted
            assert opened.rows("SELECT version FROM store_version") == [(VERSION,)]
            assert opened.rows("SELECT count(*) FROM run_log WHERE event = 'store-upgraded'") == [(1,)]
        with Store.open(path) as opened:  # once is enough
            assert opened.rows("SELECT count(*) FROM run_log WHERE event = 'store-upgraded'") == [(1,)]

    def test_statements_of_the_current_version_add_nothing(self) -> None:
        assert statements(VERSION) == []


class TestRefusals:
    def test_read_only_without_a_store(self, tmp_path: Path) -> None:
        assert refused(tmp_path / "none.duckdb", read_only=True).slug == "store-missing"
        assert not (tmp_path / "none.duckdb").exists()

    @pytest.mark.parametrize("content", [b"hello" * 5000, b""])
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "s.duckdb"
        path.write_bytes(content)
        assert refused(path).slug == "store-corrupt"
        assert path.read_bytes() == content

    def test_a_database_of_someone_else(self, tmp_path: Path) -> None:
        path = tmp_path / "s.duckdb"
        with duckdb.connect(str(path)) as other:
            other.execute("CREATE TABLE customers (id INTEGER)")
        assert refused(path).slug == "store-foreign"

    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_a_damaged_store(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "s.duckdb"
        with Store.open(path) as opened:
            rows = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
            opened.append("output", stage="k", sample=np.arange(len(rows)), logits=rows)
        content = bytearray(path.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        else:
            for place in range(13_000, len(content), 4_000):
                content[place] ^= 0xFF
        path.write_bytes(content)
        assert refused(path).slug == "store-corrupt"

    @pytest.mark.parametrize(
        ("said", "slug"),
        [
            (
                "IO Error: Trying to read a database file with version number 99, but we can only read versions between 64 and 68.\n"
                "The database file was created with a newer version of DuckDB.",
                "store-newer",
            ),
            ("IO Error: Could not write file: No space left on device", "store-full-disk"),
            ("IO Error: Could not set lock on file: Conflicting lock is held in python (PID 42)", "store-locked"),
            ("Corrupt database file: computed checksum 1 does not match stored checksum 2 in block", "store-corrupt"),
            ("Out of Memory Error: could not allocate block of size 256.0 KiB (60.8 MiB/61.0 MiB used)", "store-out-of-memory"),
            ("Out of Memory Error: failed to offload data block: limit set by 'max_temp_directory_size'", "store-full-disk"),
            ("Out of Range Error: something new", "store-failed"),
        ],
    )
    def test_what_duckdb_says_is_said_in_plain_words(self, said: str, slug: str) -> None:
        (problem,) = store_error(duckdb.Error(said), Path("index.duckdb")).problems
        assert (problem.slug, problem.where) == (slug, "index.duckdb")
        assert problem.hint
        assert "Error:" not in problem.message or slug == "store-failed"
        if slug == "store-locked":
            assert "42" in problem.message

    def test_a_folder(self, tmp_path: Path) -> None:
        assert refused(tmp_path).slug == "store-not-a-file"

    def test_a_path_that_is_not_utf8(self, tmp_path: Path) -> None:
        (problem,) = refused(tmp_path / "by\udcffte" / "s.duckdb").problems
        assert (problem.slug, "UTF-8" in problem.message) == ("store-failed", True)

    def test_a_path_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert refused(tmp_path / "file" / "s.duckdb").slug == "store-not-writable"

    @pytest.mark.parametrize("read_only", [False, True])
    def test_locked_by_another_process_names_it(self, tmp_path: Path, read_only: bool) -> None:
        path = tmp_path / "s.duckdb"
        holding = f"s = Store.open({str(path)!r}); print('open', flush=True); sys.stdin.read()"
        code = f"import sys; from semlens_audit.store import Store; {holding}"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            error = refused(path, read_only=read_only)
            assert error.slug == "store-locked"
            assert str(other.pid) in str(error)
            other.communicate(b"")
        with Store.open(path):
            pass

    def test_a_folder_without_permission(self) -> None:
        outer = Path(tempfile.mkdtemp())  # pytest's own folders are closed to the other user that root becomes below
        outer.chmod(0o755)
        folder = outer / "sealed"
        folder.mkdir(mode=0o555)
        code = f"""
            import os
            from semlens_audit.errors import StoreError
            from semlens_audit.store import Store
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                Store.open({str(folder / "s.duckdb")!r})
            except StoreError as error:
                print(error.slug)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        folder.rmdir()
        outer.rmdir()
        assert done.stdout.strip() == "store-not-writable", done.stderr

    def test_a_full_disk_keeps_what_was_finished(self, tmp_path: Path) -> None:
        """The limit on the file's size stands for the end of the disk: the same write fails, with another errno."""
        path = tmp_path / "s.duckdb"
        code = f"""
            import resource, signal
            import numpy as np
            from semlens_audit.errors import StoreError
            from semlens_audit.store import Store
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
            store = Store.open({str(path)!r})
            rows = np.random.default_rng(0).normal(size=(500, 128)).astype(np.float32)
            for i in range(100):
                try:
                    with store.transaction():
                        store.append("output", stage="k", sample=np.arange(500) + 500 * i, logits=rows)
                except StoreError as error:
                    print(error.slug, i)
                    break
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        slug, finished = done.stdout.split()
        assert slug == "store-full-disk", done.stderr
        assert int(finished) > 0
        with Store.open(path) as opened:
            assert opened.rows("SELECT count(*) FROM output") == [(500 * int(finished),)]


class TestWriting:
    def test_values_come_back_as_they_went_in(self, store: Store) -> None:
        vectors = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
        store.append(
            "relevance",
            stage="k",
            sample=np.arange(3),
            **{"class": [1, 1, 1]},
            relevance=vectors,
            conservation=[0.5, None, 1.0],
        )
        found = store.arrays("SELECT relevance, conservation FROM relevance ORDER BY sample")
        np.testing.assert_array_equal(found["relevance"], vectors)
        assert found["relevance"].dtype == np.float32
        np.testing.assert_array_equal(np.ma.filled(found["conservation"], -1.0), np.float32([0.5, -1.0, 1.0]))
        store.append("thumbnail", stage="k", component=[3], rank=[0], crop=[b"\x00\xff'"], overlay=[b""])
        assert store.rows("SELECT component, crop, overlay FROM thumbnail") == [(3, b"\x00\xff'", b"")]

    def test_no_rows_are_no_error(self, store: Store) -> None:
        store.append("output", stage="k", sample=np.zeros(0, dtype=np.int64), logits=np.zeros((0, 3), dtype=np.float32))
        assert store.rows("SELECT count(*) FROM output") == [(0,)]

    @pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_transaction_is_kept_whole_or_not_at_all(self, store: Store, interruption: type[BaseException]) -> None:
        key = store.begin("outputs", {"stage": "outputs"}, 2).key
        with pytest.raises(interruption), store.transaction():
            store.append("output", stage=key, sample=[0], logits=np.ones((1, 2), dtype=np.float32))
            store.advance(key, 1)
            raise interruption
        assert store.rows("SELECT count(*) FROM output") == [(0,)]
        state = store.stage(key)
        assert state is not None
        assert state.done == 0
        with store.transaction():
            store.advance(key, 1)
        state = store.stage(key)
        assert state is not None
        assert state.done == 1

    def test_a_failed_append_says_why_and_leaves_the_store_usable(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no_such_table"), store.transaction():
            store.append("no_such_table", stage="k", sample=[1])
        fill(store, [0])
        assert store.rows("SELECT count(*) FROM output") == [(1,)]

    def test_only_one_of_two_stages_with_equal_inputs(self, store: Store) -> None:
        first = store.begin("outputs", {"a": 1, "b": 2}, 5)
        store.advance(first.key, 3, b"state")
        again = store.begin("outputs", {"b": 2, "a": 1}, 5)
        assert (again.key, again.done, again.checkpoint, again.complete) == (first.key, 3, b"state", False)
        assert not store.complete([first.key])
        store.finish(first.key, {"parameters": 7})
        done = store.begin("outputs", {"a": 1, "b": 2}, 5)
        assert (done.done, done.complete, done.checkpoint, done.facts) == (5, True, None, {"parameters": 7})
        assert store.complete([first.key, first.key])
        assert not store.complete([first.key, "another"])
        assert store.begin("outputs", {"a": 2, "b": 2}, 5).key != first.key

    def test_measurements_are_replaced(self, store: Store) -> None:
        assert store.get_measurement("k") is None
        store.put_measurement("k", "1")
        store.put_measurement("k", "2")
        assert store.get_measurement("k") == "2"

    def test_the_log_only_grows(self, store: Store) -> None:
        store.log("run", {"a": 1})
        store.log("run", {"a": 1})
        assert store.rows("SELECT event, detail FROM run_log") == [("run", '{"a":1}')] * 2


class TestContentDigest:
    def test_is_free_of_order_time_and_caches(self, tmp_path: Path) -> None:
        digests = set()
        for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
            with Store.open(tmp_path / f"{name}.duckdb") as opened:
                fill(opened, order)
                if name == "b":
                    opened.log("something", {})
                    opened.put_measurement("k", "x")
                    opened.file_digest(Path(__file__))
                digests.add(opened.content_digest())
        assert len(digests) == 1

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE output SET logits = [0.0, 1.0, 2.0, 3.0000002]::FLOAT[] WHERE sample = 0",
            "UPDATE thumbnail SET overlay = '\\xFF\\x01'::BLOB WHERE component = 2",
            "DELETE FROM output WHERE sample = 1",
            "UPDATE stage SET done = 1",
            "INSERT INTO component VALUES ('k', 0, false)",
        ],
    )
    def test_sees_every_change_of_content(self, store: Store, change: str) -> None:
        fill(store, [0, 1, 2])
        before = store.content_digest()
        store.execute(change)
        assert store.content_digest() != before


class TestFileDigest:
    def test_reads_a_file_again_only_if_it_changed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file, path, read = tmp_path / "f.bin", tmp_path / "s.duckdb", []
        file.write_bytes(b"one")
        real = store_file_digests.digest_file
        monkeypatch.setattr(store_file_digests, "digest_file", lambda path: read.append(path) or real(path))
        with Store.open(path) as opened:
            first = opened.file_digest(file)
            assert opened.file_digest(file) == first == real(file)
        with Store.open(path) as opened:
            assert opened.file_digest(file) == first
        assert len(read) == 1
        file.write_bytes(b"two")  # as long as before
        os.utime(file, ns=(1, 1))
        with Store.open(path) as opened:
            assert opened.file_digest(file) == real(file) != first
        assert len(read) == 2
        with Store.open(path, read_only=True) as opened:
            assert opened.file_digest(file) == real(file)
        assert len(read) == 2

    def test_a_file_replaced_by_one_of_equal_size_and_time_is_told_by_its_inode(self, tmp_path: Path) -> None:
        file, other = tmp_path / "f.bin", tmp_path / "g.bin"
        file.write_bytes(b"one")
        other.write_bytes(b"two")
        for one in (file, other):
            os.utime(one, ns=(5, 5))
        with Store.open(tmp_path / "s.duckdb") as opened:
            first = opened.file_digest(file)
            os.replace(other, file)
            assert opened.file_digest(file) != first


def test_the_store_needs_neither_torch_nor_pandas_to_be_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb") as opened:
        fill(opened, [0, 1])
    code = f"""
        import sys
        from pathlib import Path
        from semlens_audit.store import Store
        with Store.open(Path({str(tmp_path / "s.duckdb")!r}), read_only=True) as store:
            assert store.arrays("SELECT logits FROM output")["logits"].shape == (2, 4)
        print(sorted({{"torch", "open_clip", "timm", "pandas"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestBlocks:
    SQL = "SELECT sample, class, relevance, conservation FROM relevance WHERE stage = ? ORDER BY sample, class"

    @pytest.fixture
    def written(self, store: Store) -> np.ndarray:
        """30 samples x 2 classes, written in an order of their own, between rows of another stage."""
        rng = np.random.default_rng(4)
        values = rng.normal(size=(30, 2, 5)).astype(np.float32)
        for part in np.array_split(rng.permutation(30), 7):
            sample, label = np.repeat(part, 2), np.tile([3, 1], len(part))
            for key, sign in (("k", 1.0), ("other", -1.0)):
                kept = [None if i == 4 else 0.5 * i for i in sample.tolist()]
                rows = values[part].reshape(-1, 5) * np.float32(sign)
                store.append("relevance", stage=key, sample=sample, **{"class": label}, relevance=rows, conservation=kept)
        return values[:, ::-1].reshape(60, 5)

    @pytest.mark.parametrize("rows", [1, 7, 59, 60, 1000])
    def test_together_are_the_whole_in_order(self, store: Store, written: np.ndarray, rows: int) -> None:
        blocks = list(store.blocks(self.SQL, ("k",), rows))
        assert [len(block["sample"]) for block in blocks] == [min(rows, 60 - i) for i in range(0, 60, rows)]
        assert all(list(block) == ["sample", "class", "relevance", "conservation"] for block in blocks)
        np.testing.assert_array_equal(np.concatenate([block["relevance"] for block in blocks]), written)
        np.testing.assert_array_equal(np.concatenate([block["sample"] for block in blocks]), np.repeat(np.arange(30), 2))
        np.testing.assert_array_equal(np.concatenate([block["class"] for block in blocks]), np.tile([1, 3], 30))
        ratio = np.ma.concatenate([block["conservation"] for block in blocks])
        assert np.ma.getmaskarray(ratio).tolist() == [i == 4 for i in np.repeat(np.arange(30), 2).tolist()]
        np.testing.assert_array_equal(np.ma.filled(ratio, 2.0), np.float32([2 if i == 4 else i / 2 for i in np.repeat(range(30), 2)]))

    def test_rows_written_one_after_the_other(self, store: Store) -> None:
        values = np.arange(40, dtype=np.float32).reshape(20, 2)
        store.append("output", stage="k", sample=np.arange(20), logits=values)
        sql = "SELECT logits FROM output WHERE stage = ? AND sample >= ? ORDER BY sample"
        np.testing.assert_array_equal(np.concatenate([b["logits"] for b in store.blocks(sql, ("k", 5), 4)]), values[5:])
        assert list(store.blocks(sql, ("none", 0))) == []

    def test_the_store_may_be_used_between_two(self, store: Store, written: np.ndarray) -> None:
        seen = []
        for block in store.blocks(self.SQL, ("k",), 10):
            store.put_measurement("m", str(len(seen)))
            seen.append(block["relevance"])
        np.testing.assert_array_equal(np.concatenate(seen), written)

    @pytest.mark.parametrize("sql", ["SELECT sample FROM relevance", "SELECT 1", "DELETE FROM relevance WHERE true ORDER BY sample"])
    def test_other_statements_are_refused(self, store: Store, sql: str) -> None:
        with pytest.raises(ValueError, match="ORDER BY"):
            next(store.blocks(sql))

    def test_no_rows_at_a_time_are_refused(self, store: Store) -> None:
        with pytest.raises(ValueError, match="no rows"):
            next(store.blocks(self.SQL, ("k",), 0))


class TestMemory:
    def test_a_limit_holds_while_more_than_it_is_read(self, tmp_path: Path) -> None:
        """120 MB of rows through 64 MB of database, a block at a time."""
        path, limit = tmp_path / "s.duckdb", 64 << 20
        rows = np.random.default_rng(0).normal(size=(3000, 1000)).astype(np.float32)
        with Store.open(path, memory_limit=limit) as opened:
            for i in range(10):
                opened.append("output", stage="k", sample=np.arange(3000) + 3000 * i, logits=rows + np.float32(i))
        code = f"""
            from pathlib import Path
            import numpy as np
            from semlens_audit.store import Store

            def resident():
                return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

            with Store.open(Path({str(path)!r}), read_only=True, memory_limit={limit}) as store:
                list(store.blocks("SELECT sample FROM output WHERE stage = ? ORDER BY sample", ("k",)))
                before, held, most, count = resident(), [], 0, 0
                for block in store.blocks("SELECT sample, logits FROM output WHERE stage = ? ORDER BY sample", ("k",), 500):
                    count += len(block["sample"])
                    held.append(store.rows("SELECT sum(memory_usage_bytes) FROM duckdb_memory()")[0][0])
                    most = max(most, resident() - before)
            print(count, max(held), most)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
        count, held, grown = map(int, done.stdout.split())
        assert count == 30_000
        assert held <= limit
        assert grown < 115_000_000

    def test_what_exceeds_it_goes_beside_the_store(self, tmp_path: Path) -> None:
        with Store.open(tmp_path / "s.duckdb", memory_limit=1) as opened:  # far too little: the least that works is taken
            assert opened.rows("SELECT current_setting('temp_directory'), current_setting('memory_limit')") == [
                (str(tmp_path / "s.duckdb.tmp"), "64.0 MiB")
            ]
            with Store.open(tmp_path / "s.duckdb") as again:  # the same process may open it twice
                assert again.count("stage") == 0
