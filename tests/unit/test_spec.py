from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from semlens_audit import paths, scaffold, spec
from semlens_audit.errors import Problem, SpecError, UsageError
from semlens_audit.plan import AuditPlan

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
GOOD_SPEC = DATA / "good" / "spec.yaml"
GOOD_AUDIT = DATA / "good" / "audit.yaml"
BAD = sorted((DATA / "bad").glob("*.yaml"))
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
AUDITS = sorted((ROOT / "audits").glob("*.yaml"))
EXPECT = re.compile(r"# expect (\d+):(\d+) ([a-z0-9-]+)")


def problems_of(path: Path) -> list[Problem]:
    try:
        if "audit:" in re.findall(r"^(audit:|spec:)", path.read_text(encoding="utf-8"), re.M):
            spec.read_plan(path)
        else:
            spec.read_spec(path)
    except SpecError as error:
        return list(error.problems)
    return []


def problems_of_pair(audit_file: Path) -> list[Problem]:
    """Problems of an audit and its spec; none where they make a plan."""
    try:
        spec.read_plan(audit_file)
    except SpecError as error:
        found = list(error.problems)
        return found or [Problem("empty-error", "an error without a problem")]
    return []


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with a good spec and audit and all that they name."""
    folder = tmp_path / "good"
    shutil.copytree(DATA / "good", folder)
    return folder


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# -- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_bad_file_gives_exactly_its_problems_at_their_places(path: Path) -> None:
    expected = [
        (int(line), int(column), slug) for line, column, slug in EXPECT.findall(path.read_text(encoding="utf-8"))
    ]
    assert expected
    found = problems_of(path)
    assert [(problem.line, problem.column, problem.slug) for problem in found] == expected
    for problem in found:
        assert problem.file == str(path)
        assert problem.message.endswith(".")
        assert "Input should" not in problem.message + problem.hint
        assert "pydantic" not in problem.message + problem.hint
    assert spec.lint([path]) == found


def test_every_slug_of_the_rules_has_a_bad_file() -> None:
    rooms = (
        "spec_shape", "spec_rules", "audit_rules", "pair_rules", "yaml_source", "paths", "confinement", "model_rules",
        "name_pattern",
    )  # fmt: skip
    source = "".join((ROOT / "semlens_audit" / f"{room}.py").read_text(encoding="utf-8") for room in rooms)
    slugs = set(re.findall(r'^\s*(?:.*\(\s*)?"([a-z0-9]+(?:-[a-z0-9]+)+)",?', source, re.M))
    tested = {slug for path in BAD for _, _, slug in EXPECT.findall(path.read_text(encoding="utf-8"))}
    elsewhere = {
        "file-too-large", "not-utf8", "empty-file", "unknown-layer", "no-text-tower", "unreadable-image", "invalid-value",
        "bad-model-directory", "too-many-problems",
    }  # fmt: skip
    assert slugs - tested - elsewhere - {"utf-8"} == set()
    assert elsewhere - slugs == set()


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (b"", "empty-file"),
        (b"# only a comment\n", "empty-file"),
        (b"---\n...\n", "empty-file"),
        (b"spec: a\ntitle: caf\xe9\n", "not-utf8"),
        (b'spec: "\\ud800"\n', "not-utf8"),
        (b"spec: a\0b\n", "hidden-character"),
        (b"x: " + b"y" * 2_000_001, "file-too-large"),
        (b"x: [" + b"1," * 50_001 + b"1]", "file-too-large"),
        (b"spec: 'a\n", "yaml-syntax"),
        (b"just text\n", "wrong-type"),
        (b"? [a]\n: b\n", "bad-key"),
        (b"a: *nothing\n", "yaml-alias"),
        (b"a: &a [*a]\n", "yaml-alias"),
    ],
)
def test_files_that_are_no_yaml_of_ours(tmp_path: Path, content: bytes, slug: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        spec.read_spec(path)
    assert caught.value.slug == slug
    assert caught.value.exit_code == 2


def test_position_of_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"spec: a\ntitle: caf\xe9\n")
    assert [(problem.line, problem.column) for problem in spec.lint([path])] == [(2, 11)]


def test_aliases_cannot_blow_up_memory(tmp_path: Path) -> None:
    levels = ["a: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"b{i}: &a{i + 1} [{','.join([f'*a{i}'] * 2)}]" for i in range(60)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(levels), encoding="utf-8")
    assert [problem.slug for problem in spec.lint([path])] == ["yaml-alias"]


def test_few_aliases_are_welcome(pair: Path) -> None:
    change(
        pair / "spec.yaml",
        "rationale: A quarter is clearly too much.",
        "rationale: &why A quarter is clearly too much.",
    )
    change(pair / "spec.yaml", "rationale: One logit decides many close calls.", "rationale: *why")
    found, _ = spec.read_spec(pair / "spec.yaml")
    assert found.checks[0].rationale == found.checks[2].rationale


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(SpecError) as caught:
            spec.read_spec(path)
        assert caught.value.slug == "missing-file"
    assert [problem.slug for problem in spec.lint([tmp_path / "none.yaml"])] == ["missing-file"]


def test_all_problems_of_both_files_at_once_audit_first(pair: Path) -> None:
    change(pair / "audit.yaml", "layers: [layer3, layer4]", "layers: [layer3, layer5]\nlayer: x")
    change(pair / "spec.yaml", "role: valid", "role: vaild")
    change(pair / "spec.yaml", "at_most: 1.0", "at_most: -1.0")
    with pytest.raises(SpecError) as caught:
        spec.read_plan(pair / "audit.yaml")
    assert [(Path(problem.file or "").name, problem.slug) for problem in caught.value.problems] == [
        ("audit.yaml", "unknown-key"),
        ("spec.yaml", "unknown-role"),
        ("spec.yaml", "unknown-layer"),
        ("spec.yaml", "threshold-range"),
    ]
    assert str(caught.value).count("\n") == 3
    assert "Did you mean `valid`?" in str(caught.value)


def test_problems_of_the_spec_that_only_an_audit_shows(pair: Path) -> None:
    change(pair / "spec.yaml", "    examples:\n      - {image: leaf.png, box: [0, 0, 8, 8]}\n", "")
    change(pair / "spec.yaml", "box: [4, 4, 16, 12]", "box: [4, 4, 17, 12]")
    table = "      - {image: table.png"
    change(pair / "spec.yaml", table, f"      - {{image: tabel.png}}\n      - {{image: broken.png}}\n{table}")
    (pair / "examples" / "broken.png").write_bytes(b"no image")
    with pytest.raises(SpecError) as caught:
        spec.read_plan(pair / "audit.yaml")
    assert [problem.slug for problem in caught.value.problems] == [
        "no-text-tower",
        "missing-file",
        "unreadable-image",
        "bad-box",
    ]
    assert "Did you mean `table.png`?" in caught.value.problems[1].hint
    assert spec.lint([pair / "spec.yaml"]) == []
    timm = "source: timm\n  name: resnet18\n  weights: weights.safetensors\n  preprocessing: {size: 64}"
    change(pair / "audit.yaml", timm, "source: open_clip\n  name: ViT-B-32\n  weights: weights.safetensors")
    assert "no-text-tower" not in [problem.slug for problem in spec.lint([pair / "audit.yaml"])]


def test_boxes_of_turned_photographs_are_held_against_what_is_displayed(pair: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 16)).save(pair / "examples" / "table.png", exif=exif)
    assert spec.lint([pair / "audit.yaml"]) == []


def test_without_files_only_their_absence_is_forgiven(pair: Path) -> None:
    for name in ("weights.safetensors", "classes.json"):
        (pair / name).unlink()
    shutil.rmtree(pair / "examples")
    assert {problem.slug for problem in spec.lint([pair / "audit.yaml"])} == {"missing-file"}
    assert spec.lint([pair / "audit.yaml"], check_files=False) == []
    assert isinstance(spec.read_plan(pair / "audit.yaml", check_files=False), AuditPlan)
    change(pair / "spec.yaml", "role: valid", "role: vaild")
    assert [problem.slug for problem in spec.lint([pair], check_files=False)] == ["unknown-role"]


# -- good files -----------------------------------------------------------------------------------------------------


def test_a_plan_carries_digests_lines_and_values() -> None:
    plan = spec.read_plan(GOOD_AUDIT)
    assert plan.spec.concept("table").role_for("scab") == "spurious"
    lines = GOOD_SPEC.read_text(encoding="utf-8").splitlines()
    for check, line in plan.check_lines.items():
        assert lines[line - 1] == f"  - id: {check}"
    assert spec.model_classes(plan) == ("healthy", "Venturia")
    assert spec.examples_root(plan) == DATA / "good" / "examples"
    assert spec.store_path(plan).name == "leaves.duckdb"
    assert len(plan.spec_digest) == len(plan.audit_digest) == 64
    assert spec.resolve(plan, "spec.yaml") == Path(plan.spec_file)
    assert spec.resolve(GOOD_AUDIT, "/a/../b") == Path("/b")


def test_values_follow_yaml_1_2_and_nothing_is_converted(pair: Path) -> None:
    change(pair / "spec.yaml", "title: Scab by the spots", "title: no")
    change(pair / "spec.yaml", 'version: "1"', "version: 2026-01-01")
    change(pair / "spec.yaml", "at_most: 0.25", "at_most: 2.5e-1")
    found, _ = spec.read_spec(pair / "spec.yaml")
    assert (found.title, found.version) == ("no", "2026-01-01")
    assert found.checks[0].criterion.at_most == 0.25


def test_environment_variables_in_paths(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(pair / "audit.yaml", "path: images", "path: ${SEMLENS_AUDIT_TEST_ROOM:-elsewhere}/images")
    assert [problem.slug for problem in spec.lint([pair / "audit.yaml"])] == ["missing-file"]
    monkeypatch.setenv("SEMLENS_AUDIT_TEST_ROOM", str(pair))
    assert spec.lint([pair / "audit.yaml"]) == []
    assert paths.expand("a $HOME ${SEMLENS_AUDIT_TEST_ROOM:-}") == f"a $HOME {pair}"
    monkeypatch.setenv("SEMLENS_AUDIT_TEST_ROOM", "")
    assert paths.expand("${SEMLENS_AUDIT_TEST_ROOM:-x}") == "x"


def test_a_folder_is_linted_whole(pair: Path) -> None:
    (pair / "third.yml").write_text("spec: x\n", encoding="utf-8")
    assert {Path(problem.file or "").name for problem in spec.lint([pair])} == {"third.yml"}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_specs(path: Path) -> None:
    found, _ = spec.read_spec(path)
    for concept in found.concepts:
        assert concept.source
        assert concept.hazard or concept.role != "spurious"
    assert len({check.kind for check in found.checks}) >= 3


@pytest.mark.parametrize("path", AUDITS, ids=lambda path: path.stem)
def test_shipped_audits(path: Path) -> None:
    plan = spec.read_plan(path, check_files=False)
    for audited in plan.spec.classes:
        names = spec.model_classes(plan) if "SEMLENS" not in str(plan.audit.subject.classes) else None
        assert names is None or plan.audit.subject.class_map.get(audited, audited) in names
    assert plan.audit.limitations
    assert plan.audit.foundation_model.statement


@pytest.mark.parametrize("name", ["ham10000", "photographs"])
def test_audits_of_real_data_fit_that_data(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMLENS_AUDIT_TESTDATA", str(shared_data))
    plan = spec.read_plan(ROOT / "audits" / f"{name}.yaml")
    assert set(plan.audit.subject.class_map.values()) <= set(spec.model_classes(plan))


def test_melanoma_spec_speaks_of_every_attribute_of_the_phantom() -> None:
    from semlens_audit.phantom.render import ARTEFACTS, VALID

    found, _ = spec.read_spec(ROOT / "specs" / "melanoma-abcde.yaml")
    roles = {concept.id: concept.role for concept in found.concepts}
    assert {name for name, role in roles.items() if role == "valid"} == set(VALID)
    assert {name for name, role in roles.items() if role == "spurious"} == set(ARTEFACTS)
    for kind in ("concept_not_used", "behavioural_effect"):
        named = [check.concepts for check in found.checks if check.kind == kind]
        assert sorted(named) == sorted((name,) for name in ARTEFACTS)


# -- schema ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SPECS, *AUDITS, GOOD_SPEC, GOOD_AUDIT], ids=lambda path: path.stem)
def test_json_schema_accepts_what_is_shipped(path: Path) -> None:
    data = json.loads(json.dumps(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))))
    schema = spec.schemas()["audit" if "audit" in data else "spec"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not list(jsonschema.Draft202012Validator(schema).iter_errors(data))


@pytest.mark.parametrize(
    "name", ["unknown-key", "unknown-role", "missing-rationale", "two-bounds", "missing-bound", "audit-unknown-key"]
)
def test_json_schema_refuses_what_is_wrong(name: str) -> None:
    data = YAML(typ="safe", pure=True).load((DATA / "bad" / f"{name}.yaml").read_text(encoding="utf-8"))
    schema = spec.schemas()["audit" if "audit" in data else "spec"]
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(data))


def test_json_schema_explains_the_keys_to_editors() -> None:
    schema = spec.schemas()["spec"]
    assert "must not (spurious)" in schema["$defs"]["Concept"]["properties"]["role"]["description"]
    assert "class" in schema["$defs"]["Check"]["properties"]


# -- scaffold -------------------------------------------------------------------------------------------------------


def test_scaffold_lints_clean_but_for_the_files_it_asks_for(tmp_path: Path) -> None:
    written = scaffold.write(tmp_path / "new", "leaves-2")
    assert [path.relative_to(tmp_path / "new").as_posix() for path in written] == [
        "specs/leaves-2.yaml",
        "audits/leaves-2.yaml",
    ]
    found, _ = spec.read_spec(written[0])
    assert found.spec == "leaves-2"
    problems = spec.lint(written)
    assert {problem.slug for problem in problems} == {"missing-file"}
    assert len(problems) == 3
    assert all("does not exist" in problem.hint for problem in problems)
    assert spec.read_plan(written[1], check_files=False).audit.audit == "leaves-2"
    assert sorted(path.name for path in written[0].parent.iterdir()) == ["leaves-2.yaml"]


def test_scaffold_overwrites_nothing(tmp_path: Path) -> None:
    scaffold.write(tmp_path, "leaves")
    (tmp_path / "specs" / "leaves.yaml").write_text("mine", encoding="utf-8")
    (tmp_path / "audits" / "leaves.yaml").unlink()
    with pytest.raises(UsageError) as caught:
        scaffold.write(tmp_path, "leaves")
    assert [problem.slug for problem in caught.value.problems] == ["file-exists"]
    assert (tmp_path / "specs" / "leaves.yaml").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "audits" / "leaves.yaml").exists()


@pytest.mark.parametrize("name", ["", "Leaves", "../x", "a b", "-x", "x" * 65, "x\n"])
def test_scaffold_refuses_names_that_are_no_ids(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        scaffold.write(tmp_path, name)
    assert caught.value.slug == "bad-id"
    assert list(tmp_path.iterdir()) == []


def test_scaffold_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        scaffold.write(tmp_path / "taken", "leaves")
    assert caught.value.slug == "cannot-write"


# -- robustness -----------------------------------------------------------------------------------------------------

_TOKENS = st.sampled_from(
    ["", " ", "\n", "\t", "- ", ": ", "[", "]", "{", "}", "~", "null", "0", "-1", "1e999", ".nan", "'", '"', "#", "&a ", "*a"]
    + ["!!str ", "!x ", "|", ">", "---\n", "? ", "<<: ", "%", "@", "\\", "\0", "\u2028", "\ud7ff", "é", "{}", "[]", "true"]
    + ["0x1F", "12345678901234567890", "concepts", "../", "${", "${X}", "phantom:", "phantom:clip"]
)


@st.composite
def _mutated(draw: st.DrawFn, text: str) -> str:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 1, 3, 10, 40]))
        text = text[:at] + draw(_TOKENS | st.text(max_size=3)) + text[at + length :]
    return text


@pytest.mark.parametrize("name", ["spec.yaml", "audit.yaml"])
def test_no_mutation_gives_anything_but_a_spec_error(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    shutil.copytree(DATA / "good", folder)
    original = (folder / name).read_text(encoding="utf-8")

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_mutated(original))
    def attempt(text: str) -> None:
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        for problem in problems_of_pair(folder / "audit.yaml"):
            assert problem.file
            assert "Input should" not in str(problem)
        spec.lint([folder / name])

    attempt()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, inner in entries for found in _places(inner, (*path, key))]


@pytest.mark.parametrize("name", ["spec.yaml", "audit.yaml"])
def test_no_value_in_the_wrong_place_gives_anything_but_a_spec_error(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    shutil.copytree(DATA / "good", folder)
    original = YAML(typ="safe", pure=True).load((folder / name).read_text(encoding="utf-8"))

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(_places(original)[1:]), _VALUES)
    def attempt(path: tuple[str | int, ...], value: object) -> None:
        data = json.loads(json.dumps(original))
        inner = data
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
        # JSON is YAML, but for the words it has for what is not finite.
        text = json.dumps(data).replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")
        (folder / name).write_text(text, encoding="utf-8")
        assert all(problem.file for problem in problems_of_pair(folder / "audit.yaml"))

    attempt()


def test_reading_a_plan_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from semlens_audit import spec; "
        f"spec.read_plan(Path({str(GOOD_AUDIT)!r})); "
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'scipy', 'open_clip', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
