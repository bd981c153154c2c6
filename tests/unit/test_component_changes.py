"""What became of components between two records: files that are handed over, the store's own, screens, reports; tiny networks."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from semlens_audit import cli, component_sheet, report
from semlens_audit.atlas.compared import Comparison
from semlens_audit.atlas.telling import kinds, telling
from semlens_audit.bounded import read_json
from semlens_audit.change_screen import markdown, print_change
from semlens_audit.component_changes import MOST_SHOWN, ComponentChanges
from semlens_audit.component_sheet import BUDGET, LIMITS, condense, held_against, read_sheet
from semlens_audit.component_words import NO_CHECK
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import AuditError, IntegrityError, Problem, UsageError
from semlens_audit.record_file import parse_record, read_record, record_bytes
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import ChangeRecord
from semlens_audit.verify_record import read_strictly, record_lines
from tests.unit import index_world as world
from tests.unit.test_atlas_comparison import permuted
from tests.unit.test_json_places import leaves

SHEETS = ("permuted", "altered")


def run(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [str(word) for word in words])


class World:
    """Audits of one network, of itself with permuted channels, and of itself with one channel made another, in one store."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        self.folder = world.write_world(folder, dead=None)
        state = load_file(folder / "small.safetensors")
        save_file(permuted(state, [2, 0, 3, 1]), folder / "permuted.safetensors")
        for name in ("layer1.1.bn2.weight", "layer1.1.bn2.bias"):
            state[name][0] *= -3.0
        save_file(state, folder / "altered.safetensors")
        for name, weights in (("one", "small"), ("permuted", "permuted"), ("altered", "altered")):
            self.write(name, weights)
            self.ask("run", self.audit(name), "--out", folder / "reports", "--quiet")
        for name in SHEETS:
            told = self.ask("compare", self.audit("one"), self.audit(name), "--json", "--pictures")
            self.sheet(name).write_text(told.stdout)
        told = self.ask("compare", self.audit("one"), self.audit("altered"), "--class", "nevus", "--json", "--pictures")
        self.sheet("nevus").write_text(told.stdout)
        self.records: dict[str, AuditRecord] = {}

    def write(self, name: str, weights: str) -> None:
        own = world.audit()["subject"]
        subject = {**own, "name": name, "model": {**own["model"], "weights": f"{weights}.safetensors"}}
        measurement = world.audit()["measurement"] | {"intervention": "none", "selection": "activation"}
        values = world.audit(audit=name, layers=["layer1"], subject=subject, measurement=measurement)
        self.audit(name).write_text(json.dumps(values))

    def ask(self, *words: str | Path) -> Result:
        told = run(*words)
        assert told.exception is None or isinstance(told.exception, SystemExit), told.output
        return told

    def audit(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def results(self, name: str) -> Path:
        return self.folder / "reports" / name / "results.json"

    def record(self, name: str) -> AuditRecord:
        if name not in self.records:
            self.records[name] = read_record(self.results(name))
        return self.records[name]

    def sheet(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import torch

    from semlens_audit import stages

    threads, before = torch.get_num_threads(), stages.NULL_CROPS
    torch.set_num_threads(1)
    stages.NULL_CROPS = 400
    yield World(tmp_path_factory.mktemp("changes"))
    stages.NULL_CROPS = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def changed(made: World) -> AuditRecord:
    """The record of the altered network, decided with the first as baseline and with what became of its components."""
    told = made.ask(
        "gate", made.results("altered"), "--baseline", made.results("one"), "--components", made.sheet("altered"),
        "--components", made.sheet("nevus"), "--out", made.folder / "changed",
    )  # fmt: skip
    assert (made.folder / "changed" / "results.json").is_file(), told.output
    return read_record(made.folder / "changed" / "results.json")


def components(record: AuditRecord) -> ComponentChanges:
    assert record.change is not None
    assert record.change.components is not None
    return record.change.components


class TestDiff:
    def test_permuted_channels_are_matched_throughout(self, made: World) -> None:
        told = made.ask("diff", made.results("one"), made.results("permuted"), "--components", made.sheet("permuted"), "--json")
        found = ChangeRecord.model_validate_json(told.stdout).components
        assert found is not None
        (layer,) = found.layers
        assert (layer.pairs, layer.shifted, layer.changed) == (4, 0, 0)
        assert (layer.learned, layer.lost, layer.became, layer.moved) == ((), (), (), ())
        held = Comparison.model_validate_json(made.sheet("permuted").read_text()).layers[0]
        assert {pair.second: pair.first for pair in held.pairs} == {0: 2, 1: 0, 2: 3, 3: 1}
        near = [row for row in layer.similarities if row.origin == "centre"]
        assert all(row.measurement.value == pytest.approx(1.0, abs=0.05) for row in near)
        assert all(row.measurement.interval is not None for row in near)

    def test_one_altered_channel_is_told_from_the_others(self, made: World) -> None:
        held = Comparison.model_validate_json(made.sheet("altered").read_text()).layers[0]
        assert [(pair.first, pair.second) for pair in held.pairs] == [(1, 1), (2, 2), (3, 3)]
        assert [pair.similarity for pair in held.pairs] == pytest.approx([1.0] * 3, abs=0.05)
        assert [(one.side, one.component) for one in held.singles] == [("first", 0), ("second", 0)]
        assert all(one.similarity is not None and one.level is not None and one.similarity < one.level for one in held.singles)
        told = made.ask("diff", made.results("one"), made.results("altered"), "--components", made.sheet("altered"), "--json")
        (layer,) = json.loads(told.stdout)["components"]["layers"]
        assert layer["pairs"] == 3
        assert {pair["first"] for pair in layer["moved"]} <= {1, 2, 3}
        assert {(row["side"], row["state"]): row["components"] for row in layer["shares"] if row["components"]} == {
            ("first", "matched"): 3, ("first", "open"): 1, ("second", "matched"): 3, ("second", "open"): 1,
        }  # fmt: skip

    @pytest.mark.parametrize("name", SHEETS)
    def test_exit_code_and_entries_are_those_without(self, made: World, name: str) -> None:
        files = (made.results("one"), made.results(name))
        bare, full = (made.ask("diff", *files, *more, "--json") for more in ((), ("--components", made.sheet(name))))
        assert bare.exit_code == full.exit_code
        assert {k: v for k, v in json.loads(full.stdout).items() if k != "components"} == json.loads(bare.stdout)
        assert "components" not in json.loads(bare.stdout)

    def test_screen_and_markdown_say_it(self, made: World) -> None:
        words = ("diff", made.results("one"), made.results("altered"), "--components", made.sheet("altered"))
        screen, table = made.ask(*words).stdout, made.ask(*words, "--markdown").stdout
        assert NO_CHECK in " ".join(screen.split())
        assert "layer1, relevance for melanoma" in screen
        assert "random sets reach" in " ".join(screen.split())
        assert "### Components since the baseline" in table
        assert "on average" in table


class TestWhatBelongs:
    def test_the_other_way_round_is_refused_with_the_right_one(self, made: World) -> None:
        told = made.ask("diff", made.results("altered"), made.results("one"), "--components", made.sheet("altered"))
        assert told.exit_code == 2
        assert "comparison-reversed" in told.output
        assert re.search(r"altered\.json:\d+:\d+", told.output.replace("\n", ""))

    def test_another_models_is_refused_with_how_it_is_made(self, made: World) -> None:
        with pytest.raises(UsageError) as caught:
            held_against(read_sheet(made.sheet("altered")), made.record("one"), made.record("permuted"))
        (problem,) = caught.value.problems
        assert problem.slug == "other-comparison"
        assert "has weights of SHA-256" in problem.message
        assert "one.yaml" in problem.hint
        assert "compare" in problem.hint
        text = made.sheet("altered").read_text().splitlines()
        assert text[(problem.line or 0) - 1][(problem.column or 0) - 1 :].startswith(
            json.dumps(Comparison.model_validate_json(made.sheet("altered").read_text()).layers[0].second.weights_sha256)
        )

    @pytest.mark.parametrize(
        ("path", "value", "said"),
        [
            (("first", "data_sha256"), "a" * 64, "test data"),
            (("second", "foundation_sha256"), "a" * 64, "a foundation model"),
            (("second", "layer"), "layer9", "is a layer that the record has not"),
            (("first", "components"), 5, "has 5 components"),
            (("first", "stages"), {}, "measured otherwise"),
            (("first", "weights_sha256"), None, "unknown"),
            (("class_name",), "wart", "no class 'wart'"),
            (("concepts",), ["hair"], "no concept 'hair'"),
        ],
    )
    def test_every_digest_counts(self, made: World, tmp_path: Path, path: tuple[str, ...], value: object, said: str) -> None:
        values = json.loads(made.sheet("altered").read_text())
        place = values["layers"][0]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (tmp_path / "other.json").write_text(json.dumps(values, indent=2))
        with pytest.raises(UsageError) as caught:
            held_against(read_sheet(tmp_path / "other.json"), made.record("one"), made.record("altered"))
        (problem,) = caught.value.problems
        assert said in problem.message
        assert problem.line is not None
        assert problem.hint

    def test_the_same_layers_twice(self, made: World) -> None:
        sheet = read_sheet(made.sheet("altered"))
        with pytest.raises(UsageError, match="compared for melanoma twice"):
            condense([sheet, sheet])

    def test_without_a_baseline_there_is_nothing_it_belongs_to(self, made: World) -> None:
        told = made.ask("gate", made.results("altered"), "--components", made.sheet("altered"))
        assert told.exit_code == 2
        assert "no-baseline" in told.output

    def test_pictures_go_with_json(self, made: World) -> None:
        assert "pictures-in-json" in made.ask("compare", made.audit("one"), made.audit("altered"), "--pictures").output


class TestStrictReading:
    def spoilt(self, made: World, place: Path, text: str) -> IntegrityError:
        file = place / "spoilt.json"
        file.write_text(text)
        with pytest.raises(IntegrityError) as caught:
            read_sheet(file)
        return caught.value

    def test_each_complaint_has_its_line_and_column(self, made: World, tmp_path: Path) -> None:
        text = made.sheet("altered").read_text()
        lines = text.splitlines()
        for old, new in (
            ('"mutual": true', '"mutual": 7'),
            ('"paired_samples": true', '"paired_samples": "perhaps"'),
            ('"samples": 22', '"samples": -1'),
            ('"of": "first"', '"of": "third"'),
        ):
            at = next(i for i, line in enumerate(lines) if old in line)
            problem = self.spoilt(made, tmp_path, text.replace(old, new, 1)).problems[0]
            assert (problem.slug, problem.line) == ("invalid-comparison", at + 1), old
            assert problem.column == lines[at].index(old) + old.index(": ") + 3

    def test_what_is_no_json(self, made: World, tmp_path: Path) -> None:
        text = made.sheet("altered").read_text()
        assert self.spoilt(made, tmp_path, text[:200]).problems[0].line is not None
        twice = self.spoilt(made, tmp_path, text.replace('"class_name"', '"first"', 1))
        assert "twice" in twice.problems[0].message
        assert twice.problems[0].line == next(i for i, line in enumerate(text.splitlines(), 1) if '"class_name"' in line)
        assert "greater" in str(self.spoilt(made, tmp_path, text.replace('"components": 4', '"components": -4', 1)))
        assert "characters" in str(self.spoilt(made, tmp_path, text.replace('"audit": "one"', f'"audit": "{"x" * 3000}"', 1)))

    def test_pictures_have_to_be_those_that_are_named(self, made: World, tmp_path: Path) -> None:
        values = json.loads(made.sheet("altered").read_text())
        assert values["portraits"]
        assert values["images"]
        assert "no such image" in str(self.spoilt(made, tmp_path, json.dumps({**values, "images": {}}, indent=2)))
        key = next(iter(values["images"]))
        other = {**values["images"], key: "AAAA"}
        assert "not the one" in str(self.spoilt(made, tmp_path, json.dumps({**values, "images": other}, indent=2)))

    def test_another_version_folder_and_missing_file(self, made: World, tmp_path: Path) -> None:
        (tmp_path / "old.json").write_text('{\n "schema_version": 1}')
        for path, slug in (
            (tmp_path / "old.json", "comparison-version"), (tmp_path, "no-comparison"), (tmp_path / "none.json", "no-comparison")
        ):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                read_sheet(path)
            assert caught.value.slug == slug
            assert caught.value.problems[0].file == str(path)
        with pytest.raises(UsageError) as caught:
            read_sheet(tmp_path / "old.json")
        assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 20)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        at=st.integers(0, 10_000),
        value=st.one_of(
            st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=40), st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
        ),
    )  # fmt: skip
    def test_any_spoilt_value_is_a_value_or_a_complaint(self, made: World, tmp_path: Path, at: int, value: Any) -> None:
        values = bare(made)
        paths = list(leaves(values))
        path = paths[at % len(paths)]
        place = values
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        file = tmp_path / "spoilt.json"
        file.write_text(json.dumps(values, indent=1))
        complaints: tuple[Problem, ...] = ()
        try:
            sheet = read_sheet(file)
            held_against(sheet, made.record("one"), made.record("altered"))
            assert condense([sheet]).components.layers
        except AuditError as error:
            complaints = error.problems
        assert all(problem.file == str(file) and problem.line is not None for problem in complaints)


def bare(made: World) -> dict[str, Any]:
    """A comparison as JSON, without pictures."""
    values: dict[str, Any] = copy.deepcopy(json.loads(made.sheet("altered").read_text()))
    return values | {"images": {}, "portraits": []}


class TestRecord:
    def test_one_without_has_no_such_field(self, made: World) -> None:
        told = made.ask("diff", made.results("one"), made.results("altered"), "--json")
        change = ChangeRecord.model_validate_json(told.stdout)
        assert change.components is None
        assert '"components"' not in change.model_dump_json()
        assert "components" not in change.model_dump(mode="json")

    def test_reads_back_as_it_was_written_and_is_accepted(self, changed: AuditRecord) -> None:
        data = record_bytes(changed)
        assert read_strictly(data, "results.json") == changed
        assert {line.state for line in record_lines(changed)} == {"proven"}
        found = components(changed)
        assert found.source == "files"
        assert [layer.class_name for layer in found.layers] == ["melanoma", "nevus"]
        assert len(found.portraits) == len({(one.side, one.component) for one in found.portraits}) > 0

    def test_of_file_and_of_store_are_the_same(self, made: World, changed: AuditRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        from semlens_audit.atlas import comparison

        told = made.ask("run", made.audit("altered"), "--baseline", made.results("one"), "--out", made.folder / "store", "--quiet")
        own = read_record(made.folder / "store" / "altered" / "results.json")
        assert components(own).source == "store", told.output
        alike = {"source": "files", "files": components(changed).files}
        assert components(own).model_copy(update=alike) == components(changed)
        monkeypatch.setattr(comparison, "compare", None)
        again = made.ask("run", made.audit("altered"), "--baseline", made.results("one"), "--out", made.folder / "again", "--quiet")
        assert components(read_record(made.folder / "again" / "altered" / "results.json")) == components(own), again.output

    def test_a_baseline_that_cannot_be_opened_again_is_said(self, made: World) -> None:
        weights = made.folder / "permuted.safetensors"
        kept = weights.rename(made.folder / "kept")
        told = made.ask("run", made.audit("altered"), "--baseline", made.results("permuted"), "--out", made.folder / "lost", "--quiet")
        kept.rename(weights)
        record = read_record(made.folder / "lost" / "altered" / "results.json")
        assert "components-not-compared" in told.output
        assert record.change is not None
        assert record.change.components is None
        assert told.exit_code == int(record.exit_code)

    def test_verdict_and_gate_are_those_without(self, made: World, changed: AuditRecord) -> None:
        made.ask("gate", made.results("altered"), "--out", made.folder / "bare")
        bare = read_record(made.folder / "bare" / "results.json")
        assert (bare.findings, bare.verdict, bare.gate) == (changed.findings, changed.verdict, changed.gate)

    def test_stays_with_its_baseline_and_goes_with_another(self, made: World) -> None:
        file, base = made.folder / "changed" / "results.json", made.results("one")
        made.ask("gate", file, "--baseline", base, "--out", made.folder / "kept")
        before, kept = read_record(file), read_record(made.folder / "kept" / "results.json")
        assert components(kept) == components(before)
        assert kept.images == before.images
        made.ask("gate", file, "--baseline", made.results("permuted"), "--out", made.folder / "gone")
        gone = read_record(made.folder / "gone" / "results.json")
        assert gone.change is not None
        assert gone.change.components is None
        assert gone.images == made.record("altered").images

    def test_what_it_names_has_to_be_there(self, changed: AuditRecord) -> None:
        values = json.loads(record_bytes(changed))
        found = values["change"]["components"]
        for spoil, said in (
            (lambda one: one["portraits"][0]["references"][0].update(image="0" * 64), "there is no image"),
            (lambda one: one["layers"][0]["concepts"].append("hair"), "there is no concept hair"),
            (lambda one: one["layers"][0].update(pairs=-1), "pairs"),
            (lambda one: one.update(layers=[]), "layers"),
        ):
            own = copy.deepcopy(found)
            spoil(own)
            other = {**values, "change": {**values["change"], "components": own}}
            with pytest.raises(IntegrityError, match=said):
                parse_record(json.dumps(other).encode(), "results.json")

    def test_shows_few_of_many(self, made: World) -> None:
        held = Comparison.model_validate_json(made.sheet("altered").read_text()).layers[0]
        pair = held.pairs[0].model_copy(update={"shifted": True})
        many = held.model_copy(
            update={"pairs": tuple(pair.model_copy(update={"first": i, "second_share": i / 100}) for i in range(30))}
        )
        assert len(kinds(many).became) == 30
        assert [one.first for one in telling(many).became] == [29 - i for i in range(MOST_SHOWN)]
        with pytest.raises(ValidationError):
            ComponentChanges(source="store", layers=())

    def test_pictures_keep_their_budget(self, made: World, monkeypatch: pytest.MonkeyPatch) -> None:
        sheet = read_sheet(made.sheet("altered"))
        whole = condense([sheet])
        weight = sum(len(text) * 3 // 4 for text in whole.images.values())
        assert 0 < weight <= BUDGET
        assert all(digest_bytes(base64.b64decode(text)) == key for key, text in whole.images.items())
        for most in (weight * 2 // 3, weight // 4):
            monkeypatch.setattr(component_sheet, "BUDGET", most)
            less = condense([sheet])
            assert sum(len(text) * 3 // 4 for text in less.images.values()) <= most
            used = {one.image for portrait in less.components.portraits for one in portrait.references}
            assert used == set(less.images)


class TestShown:
    def test_the_section_of_the_page(self, changed: AuditRecord) -> None:
        text = report.render_html(changed)
        assert "What became of the components" in text
        assert NO_CHECK in text
        for one in components(changed).portraits:
            for reference in one.references:
                assert f"data:image/jpeg;base64,{changed.images[reference.image]}" in text
        assert report.render_html(AuditRecord.model_validate_json(changed.model_dump_json())) == text

    def test_the_paper(self, changed: AuditRecord) -> None:
        pytest.importorskip("weasyprint", reason="Pango is not installed", exc_type=OSError)
        from tests.pdf_ua_rules import complaints

        assert complaints(report.render_pdf(changed)) == []

    def test_a_strangers_text_stays_text(self, changed: AuditRecord, capsys: pytest.CaptureFixture[str]) -> None:
        bad = "a|b](http://x) <script> @all \x1b[2J`x`\u202e"
        found = components(changed)
        layer = found.layers[0]
        sides = {side: getattr(layer, side).model_copy(update={"audit": bad, "model": bad}) for side in ("first", "second")}
        hostile = found.model_copy(
            update={"layers": (layer.model_copy(update={**sides, "sentences": (bad,), "class_name": bad}),), "remarks": (bad,)}
        )
        assert changed.change is not None
        change = changed.change.model_copy(update={"components": hostile})
        table = markdown(change)
        assert "<script>" not in table
        assert "@all" not in table
        print_change(change)
        assert "\x1b[2J" not in capsys.readouterr().out
        page = report.render_html(changed.model_copy(update={"change": change}))
        assert "<script> @all" not in page
        assert "\x1b" not in page


def test_limits_hold_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 30 + "]" * 30)
    with pytest.raises(IntegrityError, match="nested deeper"):
        read_sheet(tmp_path / "deep.json")
    assert read_json(b'{"a": 1}', LIMITS) == {"a": 1}
