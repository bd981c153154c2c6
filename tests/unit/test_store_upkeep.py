from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from semlens_audit import explore, index, run_log, store_upkeep
from semlens_audit.cli import app
from semlens_audit.component_search import cache_folder
from semlens_audit.data import open_data
from semlens_audit.errors import IntegrityError, StoreError, UsageError
from semlens_audit.plan import AuditPlan
from semlens_audit.store import Store
from semlens_audit.store_compaction import compact, fingerprint
from tests.unit import index_world as world

OTHER = {"audit": "other", "layers": ["layer3"], "measurement": world.audit()["measurement"] | {"reference_samples": 3}}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose store holds the indexes of two audits, a log with a chain, caches and measurements."""
    with world.quick():
        folder = world.write_world(tmp_path_factory.mktemp("upkeep"))
        (folder / "other.yaml").write_text(json.dumps(world.audit(**OTHER)))
        for plan in plans(folder):
            index.build(plan)
            explore.components(plan, top=1)
        with Store.open(folder / "store.duckdb") as store:
            for i in range(3):
                run_log.append(store, "audit", {"audit": "made-up", "number_of_run": i})
            store.put_measurement("k", "{}")
            store.begin("outputs", {"stage": "outputs", "classes": ["a"]}, 5)
        yield folder


def plans(folder: Path) -> tuple[AuditPlan, AuditPlan]:
    return world.plan(folder), world.plan(folder, world.audit(**OTHER))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it whose audits read the same images."""
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    return copy


@pytest.fixture
def whole(built: Path) -> Path:
    return path_of(built)


def path_of(folder: Path) -> Path:
    return folder / "store.duckdb"


def kept_rows(store: Store, keys: set[str]) -> dict[str, list[str]]:
    """Every row of kept stages, as text, in the order of the store."""
    found = {}
    for table in ("output", "component", "reference", "crop", "thumbnail", "relevance", "null_region", "meaning"):
        rows = store.rows(f'SELECT * FROM "{table}" WHERE stage IN (SELECT unnest(?::VARCHAR[])) ORDER BY ALL', (sorted(keys),))
        found[table] = [repr(row) for row in rows]
    found["stage"] = [repr(row) for row in store.rows("SELECT * FROM stage ORDER BY rowid") if row[0] in keys]
    return found


def keys_of(folder: Path, plan: AuditPlan) -> set[str]:
    with Store.open(path_of(folder), read_only=True) as store:
        return set(index.evidence_stages(plan, open_data(plan, store.file_digest), store).values())


def digest_of(folder: Path) -> str:
    with Store.open(path_of(folder), read_only=True) as store:
        return store.content_digest()


class TestInfo:
    def test_says_who_needs_what(self, folder: Path) -> None:
        first, other = plans(folder)
        found = store_upkeep.info(path_of(folder), [first, other])
        assert list(found.audits) == ["made-up", "other"]
        needed = {stage.key: stage.audits for stage in found.stages}
        for plan in (first, other):
            assert {key for key, audits in needed.items() if plan.audit.audit in audits} == keys_of(folder, plan)
        begun = next(stage for stage in found.stages if not stage.complete)
        assert (begun.total, begun.done, begun.rows, begun.audits) == (5, 0, {}, ())
        outputs = next(stage for stage in found.stages if stage.name == "outputs" and stage.complete)
        assert outputs.rows == {"output": world.SAMPLES}
        assert outputs.begun
        with Store.open(path_of(folder), read_only=True) as store:
            assert {table.name: table.rows for table in found.tables}["region"] == store.count("region")
        assert found.bytes == path_of(folder).stat().st_size
        assert 0 < sum(table.bytes for table in found.tables) <= found.bytes
        assert [table.bytes for table in found.tables] == sorted((table.bytes for table in found.tables), reverse=True)
        assert {stage.audits for stage in store_upkeep.info(path_of(folder)).stages} == {None}

    def test_an_audit_of_another_store_is_refused(self, folder: Path) -> None:
        plan = world.plan(folder, world.audit(store="elsewhere.duckdb"))
        with pytest.raises(UsageError) as caught:
            store_upkeep.info(path_of(folder), [plan])
        assert caught.value.slug == "another-store"


DAMAGES = {
    "a sample without output": ("DELETE FROM output WHERE sample = 3", "outputs"),
    "an output twice": ("INSERT INTO output SELECT * FROM output WHERE sample = 3", "outputs"),
    "an output that is no number": ("UPDATE output SET logits = ['nan'::FLOAT, 0] WHERE sample = 3", "outputs"),
    "an output of another length": ("UPDATE output SET logits = [1.0::FLOAT] WHERE sample = 3", "outputs"),
    "a component less": ("DELETE FROM component WHERE component = 3", "references"),
    "a dead component awake": ("UPDATE component SET dead = false", "references"),
    "a reference sample less": ("DELETE FROM reference WHERE rank = 1 AND component = 2", "references"),
    "reference samples in disorder": ("UPDATE reference SET activation = -5 WHERE rank = 0", "references"),
    "a sample that is none": ("UPDATE reference SET sample = 999 WHERE rank = 0 AND component = 2", "references"),
    "relevance of a sample less": ("DELETE FROM relevance WHERE sample = 21", "relevance"),
    "relevance of another class": ('UPDATE relevance SET "class" = 7 WHERE sample = 2 AND "class" = 0', "relevance"),
    "infinite relevance": ("UPDATE relevance SET relevance = {inf} WHERE sample = 2", "relevance"),
    "a crop less": ("DELETE FROM crop WHERE rank = 2 AND component = 2", "crops"),
    "a crop of another sample": ("UPDATE crop SET sample = (sample + 1) % 22 WHERE rank = 2", "crops"),
    "an empty crop": ("UPDATE crop SET x1 = x0 WHERE rank = 2", "crops"),
    "a thumbnail less": ("DELETE FROM thumbnail WHERE rank = 0 AND component = 2", "crops"),
    "a thumbnail that is no picture": ("UPDATE thumbnail SET overlay = 'x'::BLOB WHERE rank = 0", "crops"),
    "an embedding less": ("DELETE FROM region WHERE sample = 5", "views"),
    "an embedding twice": ("INSERT INTO region SELECT * FROM region WHERE sample = 5", "foundation"),
    "an embedding that is too long": ("UPDATE region SET vector = {long} WHERE sample = 5", "foundation"),
    "an embedding that is no number": ("UPDATE region SET vector = {nan} WHERE sample = 5", "foundation"),
    "a random crop less": ("DELETE FROM null_region WHERE position = 7", "null"),
    "a concept embedding less": ("DELETE FROM meaning WHERE component = 2", "null"),
    "a concept embedding that is no number": ("UPDATE meaning SET centred = {nan}", "null"),
    "a prompt less": ("DELETE FROM prompt WHERE text = 'a ruler'", "probes"),
    "an example less": ("DELETE FROM example WHERE box = ''", "probes"),
    "inputs that were changed": ("UPDATE stage SET inputs = replace(inputs, 'seed\":3', 'seed\":4') WHERE name LIKE 'null:%'", "null"),
    "inputs that are no JSON": ("UPDATE stage SET inputs = 'x' WHERE name LIKE 'crops:%'", "crops"),
    "facts that were emptied": ("UPDATE stage SET facts = '{}' WHERE name LIKE 'references:%'", "references"),
    "rows of no stage": ("INSERT INTO component VALUES ('k', 0, false)", "component"),
    "a cached measurement cut short": ("UPDATE measurement SET payload = '{'", "measurement"),
    "a cached digest that is none": ("UPDATE file_digest SET sha256 = 'x'", "file_digest"),
}  # fmt: skip


def damaging(name: str) -> str:
    """The statement that does the damage."""
    nan, long = "[{}]::FLOAT[]".format(", ".join(["'nan'"] * 16)), "list_transform(vector, lambda x: 1.1 * x)"
    statement = DAMAGES[name][0]
    for mark, value in (("{nan}", nan), ("{inf}", "list_transform(relevance, lambda x: 'inf'::FLOAT)"), ("{long}", long)):
        statement = statement.replace(mark, value)
    return statement


class TestCheck:
    def test_a_whole_store(self, built: Path) -> None:
        assert store_upkeep.check(path_of(built)) == ()

    @pytest.mark.parametrize("name", DAMAGES)
    def test_finds_every_damage(self, whole: Path, tmp_path: Path, name: str) -> None:
        statement, where = damaging(name), DAMAGES[name][1]
        shutil.copy(whole, path := tmp_path / "store.duckdb")
        with Store.open(path) as store:
            store.execute(statement)
        found = store_upkeep.check(path)
        assert any(damage.where.startswith(where) for damage in found), found
        assert all(damage.remedy for damage in found)
        error = store_upkeep.complaint(path, found)
        assert isinstance(error, IntegrityError)
        assert all("--mend" in problem.hint for problem in error.problems)

    @pytest.mark.parametrize("part", range(3))
    def test_what_is_mended_is_computed_again(self, folder: Path, part: int) -> None:
        wanted = digest_of(folder)
        with Store.open(path_of(folder)) as store:
            for name in list(DAMAGES)[part::3]:
                store.execute(damaging(name))
        assert store_upkeep.mend(path_of(folder))[1] == ()
        for plan in plans(folder):
            index.build(plan)
        assert store_upkeep.check(path_of(folder)) == ()
        assert digest_of(folder) == wanted

    def test_a_log_that_was_changed_is_told_and_cannot_be_mended(self, folder: Path) -> None:
        with Store.open(path_of(folder)) as store:
            store.execute("""UPDATE run_log SET detail = replace(detail, '"number_of_run":1', '"number_of_run":7')""")
        (found,) = store_upkeep.check(path_of(folder))
        assert (found.where, found.remedy) == ("run_log", ())
        assert store_upkeep.mend(path_of(folder)) == (0, (found,))
        assert "copy" in store_upkeep.complaint(path_of(folder), (found,)).problems[0].hint

    def test_a_file_that_cannot_be_read(self, folder: Path) -> None:
        content = bytearray(path_of(folder).read_bytes())
        for place in range(13_000, len(content), 4_000):
            content[place] ^= 0xFF
        path_of(folder).write_bytes(content)
        (found,) = store_upkeep.check(path_of(folder))
        assert "damaged" in found.what


class TestCollection:
    def test_removes_what_is_not_needed_and_nothing_else(self, folder: Path) -> None:
        first, other = plans(folder)
        keep, path = keys_of(folder, first), path_of(folder)
        with Store.open(path, read_only=True) as store:
            before, log = kept_rows(store, keep), store.rows("SELECT * FROM run_log ORDER BY rowid")
            regions = set(store.rows("SELECT sample, x0, y0, x1, y1, vector::VARCHAR FROM region"))
            probes = store.rows("SELECT * FROM prompt ORDER BY ALL"), store.rows("SELECT * FROM example ORDER BY ALL")
        plan = store_upkeep.collect(path, [first], forget=["other"])
        assert (plan.done, plan.after, plan.lacking) == (False, None, {})
        assert {"layer1" in name for name in plan.stages} == {False}
        found = store_upkeep.collect(path, [first], forget=["other"], really=True)
        assert found.removals == plan.removals
        assert found.after == path.stat().st_size < found.before
        assert {one.table for one in found.removals} > {"stage", "crop", "region", "meaning", "measurement"}
        with Store.open(path, read_only=True) as store:
            assert kept_rows(store, keep) == before
            assert {key for (key,) in store.rows("SELECT key FROM stage")} == keep
            after = store.rows("SELECT * FROM run_log ORDER BY rowid")
            assert after[: len(log)] == log
            assert [row[1] for row in after[len(log) :]] == ["store-compacted"]
            assert run_log.complaints(run_log.read(store)) == ()
            left = set(store.rows("SELECT sample, x0, y0, x1, y1, vector::VARCHAR FROM region"))
            assert left < regions
            assert (store.rows("SELECT * FROM prompt ORDER BY ALL"), store.rows("SELECT * FROM example ORDER BY ALL")) == probes
            assert store.rows("SELECT count(*) FROM duckdb_columns() WHERE comment IS NULL AND NOT internal") == [(0,)]
            assert index.is_complete(first, open_data(first, store.file_digest), store)
            assert not index.is_complete(other, open_data(other, store.file_digest), store)
        assert store_upkeep.check(path) == ()
        assert all(file.name.partition(".")[0] in keep for file in cache_folder(path).iterdir())
        assert any(cache_folder(path).iterdir())
        assert sorted(file.name for file in folder.iterdir() if "store" in file.name) == ["store.duckdb", "store.duckdb.cache"]
        again = store_upkeep.collect(path, [first])
        assert again.removals == ()

    def test_what_was_forgotten_once_is_not_asked_about_until_it_is_used_again(self, folder: Path) -> None:
        first, other = plans(folder)
        path = path_of(folder)
        assert store_upkeep.collect(path, [first], forget=["other"]).left_out == ()
        assert store_upkeep.collect(path, [first]).left_out == ("other",)  # nothing was removed, so nothing is forgotten
        store_upkeep.collect(path, [first], forget=["other", "made-up", "nobody"], really=True)
        assert set(store_upkeep.info(path).audits) == {"made-up"}
        again = store_upkeep.collect(path, [first], really=True)
        assert (again.done, again.left_out, again.removals) == (True, (), ())
        index.build(other)
        assert set(store_upkeep.info(path).audits) == {"made-up", "other"}
        with pytest.raises(UsageError, match="other"):
            store_upkeep.collect(path, [first], really=True)

    def test_what_comes_after_is_what_was_before(self, folder: Path) -> None:
        first, other = plans(folder)
        with Store.open(path_of(folder)) as store:
            store.execute("DELETE FROM stage WHERE NOT complete")
        wanted = digest_of(folder)
        store_upkeep.collect(path_of(folder), [first], forget=["other"], really=True)
        index.build(other)
        assert digest_of(folder) == wanted

    def test_keeps_all_that_is_needed_by_several(self, folder: Path) -> None:
        with Store.open(path_of(folder)) as store:
            store.execute("DELETE FROM stage WHERE NOT complete")
        wanted = digest_of(folder)
        found = store_upkeep.collect(path_of(folder), plans(folder), really=True)
        assert [one.table for one in found.removals] == ["measurement"]
        assert digest_of(folder) == wanted

    def test_keeps_ablations_of_what_is_kept_and_only_them(self, folder: Path) -> None:
        first, _ = plans(folder)
        with Store.open(path_of(folder)) as store:
            outputs = index.evidence_stages(first, open_data(first, store.file_digest), store)["outputs"]
            for source in (outputs, "0" * 64):
                key = store.begin("ablation:layer1:mean", {"stage": "ablation", "outputs": source}, 2).key
                store.append("ablation", stage=key, sample=[0, 1], outputs=np.ones((2, 4), np.float32))
                store.finish(key)
        found = store_upkeep.collect(path_of(folder), [first], forget=["other"], really=True)
        assert next(one for one in found.removals if one.table == "ablation").rows == 2
        with Store.open(path_of(folder), read_only=True) as store:
            assert store.rows("SELECT count(*) FROM ablation") == [(2,)]

    def test_an_audit_that_was_not_given_is_not_forgotten_by_accident(self, folder: Path) -> None:
        first, _ = plans(folder)
        content, wanted = path_of(folder).read_bytes(), digest_of(folder)
        assert store_upkeep.collect(path_of(folder), [first]).left_out == ("other",)
        assert path_of(folder).read_bytes() == content
        with pytest.raises(UsageError) as caught:
            store_upkeep.collect(path_of(folder), [first], really=True)
        assert caught.value.slug == "audits-left-out"
        assert "other" in str(caught.value)
        with pytest.raises(UsageError) as caught:
            store_upkeep.collect(path_of(folder), [], really=True)
        assert caught.value.slug == "nothing-to-keep"
        assert digest_of(folder) == wanted

    def test_says_what_the_kept_index_lacks(self, folder: Path) -> None:
        first, _ = plans(folder)
        changed = world.plan(folder, world.audit(seed=77))
        assert store_upkeep.collect(path_of(folder), [changed], forget=["other"]).lacking == {"made-up": 2}
        assert store_upkeep.collect(path_of(folder), [first], forget=["other"]).lacking == {}

    def test_what_is_written_in_between_is_not_lost(self, folder: Path) -> None:
        first, path = plans(folder)[0], path_of(folder)
        keep = keys_of(folder, first)
        with Store.open(path) as store:
            planned = fingerprint(store)
            store.begin("outputs", {"stage": "outputs", "new": True}, 3)
        with pytest.raises(StoreError) as caught:
            compact(path, keep, planned)
        assert caught.value.slug == "store-changed"
        assert not list(folder.glob(".*compacting*"))

    def test_a_store_in_use_is_left_alone(self, folder: Path) -> None:
        first, path = plans(folder)[0], path_of(folder)
        holding = f"s = Store.open({str(path)!r}); print('open', flush=True); sys.stdin.read()"
        code = f"import sys; from semlens_audit.store import Store; {holding}"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            for really in (False, True):
                with pytest.raises(StoreError) as caught:
                    store_upkeep.collect(path, [first], forget=["other"], really=really)
                assert caught.value.slug == "store-locked"
            other.communicate(b"")
        assert store_upkeep.collect(path, [first], forget=["other"], really=True).done

    def test_what_a_kill_cut_short_beside_the_store_does_not_keep_it_from_being_done(self, folder: Path) -> None:
        waiting = folder / "store.duckdb.wal"
        waiting.write_bytes(os.urandom(20))
        assert store_upkeep.collect(path_of(folder), plans(folder), really=True).done
        assert not waiting.exists()

    def test_two_at_once_do_not_meet(self, folder: Path) -> None:
        import fcntl

        first, path = plans(folder)[0], path_of(folder)
        with Store.open(path, read_only=True) as store:
            planned = fingerprint(store)
        keep = keys_of(folder, first)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError) as caught:
            compact(path, keep, planned)
        assert caught.value.slug == "store-locked"
        os.close(handle)
        compact(path, keep, planned)

    def test_killed_at_any_moment_nothing_is_lost(self, folder: Path) -> None:
        first, path = plans(folder)[0], path_of(folder)
        keep = keys_of(folder, first)
        with Store.open(path) as store:  # enough rows for a copy that takes a while
            key = store.begin("ablation:layer1:mean", {"stage": "ablation", "outputs": "x"}, 20_000).key
            rows = np.random.default_rng(0).normal(size=(20_000, 100)).astype(np.float32)
            store.append("ablation", stage=key, sample=np.arange(20_000), outputs=rows)
        with Store.open(path, read_only=True) as store:
            planned, before = fingerprint(store), kept_rows(store, keep)
            log = store.rows("SELECT * FROM run_log ORDER BY rowid")
        keep = keep | {key}
        original = path.read_bytes()
        code = f"""
            from pathlib import Path
            from semlens_audit.store_compaction import compact
            print("begin", flush=True)
            compact(Path({str(path)!r}), {keep!r}, {planned!r})
            print("end", flush=True)
        """
        rng, outcomes, waits = random.Random(0), [], [0.0, 0.05, 0.1, 0.2, 0.4, 0.7]
        for wait in waits:
            path.write_bytes(original)
            with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                assert other.stdout.readline() == b"begin\n"
                time.sleep(wait * rng.uniform(0.8, 1.2))
                other.send_signal(signal.SIGKILL)
                other.wait()
            with Store.open(path) as store:
                assert kept_rows(store, keep - {key}) == before
                assert store.rows("SELECT * FROM run_log ORDER BY rowid")[: len(log)] == log
                assert store.rows("SELECT count(*), sum(outputs[1]) FROM ablation")[0][0] == 20_000
                outcomes.append(store.rows("SELECT count(*) FROM run_log WHERE event = 'store-compacted'")[0][0])
        assert outcomes[0] == 0
        path.write_bytes(original)
        compact(path, keep, planned)  # whatever the killed ones left behind is cleared away
        assert not list(folder.glob(".*compacting*"))

    def test_a_full_disk_leaves_the_store_as_it_was(self, folder: Path) -> None:
        first, path = plans(folder)[0], path_of(folder)
        with Store.open(path) as store:
            rows = np.random.default_rng(0).normal(size=(30_000, 128)).astype(np.float32)
            outputs = index.evidence_stages(first, open_data(first, store.file_digest), store)["outputs"]
            key = store.begin("ablation:layer1:mean", {"stage": "ablation", "outputs": outputs}, 30_000).key
            store.append("ablation", stage=key, sample=np.arange(30_000), outputs=rows)
        with Store.open(path, read_only=True) as store:
            planned = fingerprint(store)
        content = path.read_bytes()
        code = f"""
            import resource, signal
            from pathlib import Path
            from semlens_audit.errors import StoreError
            from semlens_audit.store_compaction import compact
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
            try:
                compact(Path({str(path)!r}), {keys_of(folder, first) | {key}!r}, {planned!r})
            except StoreError as error:
                print(error.slug)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "store-full-disk", done.stderr
        assert path.read_bytes() == content
        assert not list(folder.glob(".*compacting*"))


class TestCommands:
    def run(self, *arguments: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["store", *map(str, arguments)])
        return done.exit_code, done.output

    def test_look_after_a_store(self, folder: Path) -> None:
        audit, store = folder / "audit.yaml", path_of(folder)
        code, said = self.run("info", audit, "--keep", folder / "other.yaml", "--json")
        assert code == 0
        values = json.loads(said)
        assert {tuple(stage["audits"]) for stage in values["stages"]} >= {("made-up",), ("made-up", "other"), ("other",)}
        code, said = self.run("info", store)
        assert (code, "references:layer1" in said, "needed by" in said) == (0, True, False)
        assert self.run("check", audit)[0] == 0
        code, said = self.run("gc", audit)
        assert (code, "--yes" in said, "--forget" in said) == (0, True, True)
        assert self.run("gc", audit, "--yes")[0] == 2
        code, said = self.run("gc", store, "--keep", audit, "--forget", "other", "--yes", "--max-memory", "800MiB", "--json")
        assert code == 0
        assert json.loads(said)["done"] is True
        assert self.run("check", store, "--json") == (0, json.dumps({"store": str(store), "mended": 0, "damages": []}, indent=2) + "\n")

    def test_damage_ends_with_6(self, folder: Path) -> None:
        with Store.open(path_of(folder)) as store:
            store.execute("DELETE FROM output WHERE sample = 3")
        code, said = self.run("check", path_of(folder))
        assert code == 6
        assert "outputs" in said
        assert "--mend" in said
        code, said = self.run("check", path_of(folder), "--json")
        assert (code, len(json.loads(said)["damages"])) == (6, 1)
        code, said = self.run("check", path_of(folder), "--mend")
        assert code == 0
        assert "semlens-audit index" in said
        assert self.run("check", path_of(folder))[0] == 0

    def test_a_file_that_is_no_store_is_told_with_one_advice(self, tmp_path: Path) -> None:
        (tmp_path / "junk.duckdb").write_bytes(os.urandom(5000))
        for options in ([], ["--mend"]):
            code, said = self.run("check", tmp_path / "junk.duckdb", *options)
            assert code == 6
            assert ("index again" in said, "cannot be computed again" in said) == (True, False)

    def test_what_is_damaged_is_told_by_whichever_verb(self, folder: Path) -> None:
        path, audit = path_of(folder), folder / "audit.yaml"
        with Store.open(path) as store:
            store.execute("UPDATE run_log SET detail = 'xx' WHERE event = 'stage-begun'")
            store.execute("UPDATE stage SET inputs = '[1]' WHERE name = 'null:layer1'")
            store.execute("UPDATE stage SET inputs = '{' WHERE name = 'crops:layer1'")
        assert self.run("info", audit)[0] == 0
        code, said = self.run("gc", audit)
        assert (code, "store-damaged" in said, "store check" in said) == (4, True, True)
        code, said = self.run("check", audit, "--json")
        assert (code, {one["where"] for one in json.loads(said)["damages"]}) == (6, {"null:layer1", "crops:layer1", "run_log"})
        with Store.open(path) as store:
            store.execute("DROP TABLE crop")
        code, said = self.run("check", audit)
        assert (code, "lacks the table crop" in said) == (6, True)
        with Store.open(path) as store:
            store.execute("DELETE FROM store_version")
        assert (self.run("info", audit)[0], self.run("check", audit)[0]) == (4, 6)

    def test_no_store(self, tmp_path: Path) -> None:
        for verb in ("info", "check"):
            assert self.run(verb, tmp_path / "none.duckdb")[0] == 4
        assert self.run("gc", tmp_path / "none.duckdb")[0] == 2


def test_two_can_read_at_once_and_neither_can_write(folder: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from semlens_audit.store import Store
        with Store.open(Path({str(path_of(folder))!r}), read_only=True) as store:
            print(store.count("region"), flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        counted = int(other.stdout.readline())
        with Store.open(path_of(folder), read_only=True) as store:
            assert store.count("region") == counted
            with pytest.raises(StoreError):
                store.execute("DELETE FROM region")
        with pytest.raises(StoreError) as caught:
            Store.open(path_of(folder))
        assert caught.value.slug == "store-locked"
        other.communicate(b"")


def test_an_older_store_is_brought_up_to_date_before_it_is_collected(folder: Path) -> None:
    with duckdb.connect(str(path_of(folder))) as connection:
        for table in ("ablation", "contrast", "null_contrast"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE store_version SET version = 2")
    with pytest.raises(StoreError) as caught:
        store_upkeep.info(path_of(folder))
    assert caught.value.slug == "store-older"
    found = store_upkeep.collect(path_of(folder), plans(folder), really=True)
    assert found.done
    assert store_upkeep.check(path_of(folder)) == ()
