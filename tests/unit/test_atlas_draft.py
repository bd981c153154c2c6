"""From a run to drafted concepts, and back through lint and another run; boxes from the network's view back to the image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from semlens_audit import cli, results
from semlens_audit.atlas.description import Description, describe
from semlens_audit.atlas.draft import UNDECIDED, DraftedConcept, draft_concepts, entries
from semlens_audit.atlas.extended_spec import with_concepts
from semlens_audit.atlas.image_boxes import image_box
from semlens_audit.atlas.opening import Atlas
from semlens_audit.errors import UsageError
from semlens_audit.plan import Example, Preprocessing
from semlens_audit.progress import SilentProgress
from semlens_audit.spec import lint, read_plan
from semlens_audit.subject import make_view
from semlens_audit.yaml_source import parse
from tests.unit import index_world as world

runner = CliRunner()

# -- boxes


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    resize=st.sampled_from([None, 24, 32]),
    box=st.tuples(st.integers(0, 16), st.integers(0, 16), st.integers(4, 8), st.integers(4, 8)),
)
def test_what_a_box_shows_in_the_image_is_what_it_shows_in_the_view(
    width: int, height: int, resize: int | None, box: tuple[int, int, int, int]
) -> None:
    preprocessing = Preprocessing(size=24, resize=resize)
    # each pixel says where it is
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([across, down, across * 0], axis=-1).astype(np.uint8))
    x0, y0, side_x, side_y = box
    view = make_view(image, preprocessing)
    found = image_box((x0, y0, x0 + side_x, y0 + side_y), image.size, preprocessing) or (0, 0, width, height)
    shown = np.asarray(view.crop((x0, y0, x0 + side_x, y0 + side_y)), dtype=float)
    there = np.asarray(image.crop(found), dtype=float)
    # the middle of the crop, to within a pixel of either picture
    tolerance = 255 * (1.0 / min(width, height) + 1.0 / 24)
    assert np.abs(shown[..., :2].mean((0, 1)) - there[..., :2].mean((0, 1))).max() <= tolerance
    assert 0 <= found[0] < found[2] <= width
    assert 0 <= found[1] < found[3] <= height


def test_boxes_by_hand() -> None:
    squashed, cropped = Preprocessing(size=100), Preprocessing(size=100, resize=120)
    assert image_box((10, 20, 30, 60), (200, 50), squashed) == (20, 10, 60, 30)
    assert image_box((0, 0, 100, 100), (200, 50), squashed) is None
    assert image_box((0, 0, 100, 100), (100, 100), cropped) == (8, 8, 92, 92)
    assert image_box((0, 0, 100, 100), (240, 120), cropped) == (70, 10, 170, 110)
    assert image_box((99, 99, 100, 100), (10, 10), squashed) == (9, 9, 10, 10)


# -- YAML

FOUND = Description("an-audit", "melanoma", None, None, "2026-01-01T00:00:00+00:00", 0.6, ())


def concept(**changes: object) -> DraftedConcept:
    values: dict[str, object] = {
        "id": "layer3-c4", "title": None, "layer": "layer3", "components": (4, 2), "share": 0.123, "signed": 0.9,
        "clarity": (0.2, 0.4), "likeness": 0.7, "descriptions": (), "examples": (Example(image="a.png", box=(1, 2, 3, 4)),),
    }  # fmt: skip
    return DraftedConcept(**{**values, **changes})  # type: ignore[arg-type]


def test_an_entry_says_where_it_comes_from_and_leaves_the_role_open() -> None:
    text = entries([concept()], FOUND)
    assert "components 4 and 2 of layer3: 12.3" in text
    assert "they speak for melanoma" in text
    assert "take out those that do not show it" in " ".join(text.replace("#", " ").split())
    (entry,) = parse(text.encode(), "x.yaml").data
    assert entry == {"id": "layer3-c4", "role": UNDECIDED, "examples": [{"image": "a.png", "box": [1, 2, 3, 4]}]}
    assert all(len(line) <= 120 for line in text.splitlines())


@settings(deadline=None, max_examples=60)
@given(word=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(str.strip))
def test_any_word_and_any_path_come_back_from_the_yaml(word: str) -> None:
    made = concept(title=word, descriptions=(word,), examples=(Example(image=word),))
    (entry,) = YAML(typ="safe", pure=True).load(entries([made], FOUND))
    assert (entry["title"], entry["descriptions"], entry["examples"]) == (word, [word], [{"image": word}])


SPEC = """\
# A comment at the top.
spec: made-up
version: "1"
title: A made-up spec
purpose: To be indexed.
classes: {melanoma: {}, nevus: {}}
concepts:
  - id: ruler    # of plastic
    role: spurious
    descriptions: [a ruler, ruler marks]
  - id: border
    role: valid
    source: >-
      Somebody said so,
      at length.

  # what follows are not concepts

checks:
  - {id: one, kind: concept_not_used, class: melanoma, concepts: [ruler], statement: No ruler.,
     criterion: {at_most: 0.2}, rationale: Chosen so that the test has a threshold.}
"""


@pytest.mark.parametrize("end", ["", "    descriptions: [a border]\n", "    examples:\n      - {image: a.png}  # the first\n"])
@pytest.mark.parametrize("indent", ["", "  "])
def test_a_spec_keeps_its_text_and_comments(end: str, indent: str) -> None:
    text = SPEC.replace("      at length.\n", "      at length.\n" + end)
    if not indent:
        head, _, rest = text.partition("concepts:\n")
        listed, _, tail = rest.partition("checks:\n")
        text = head + "concepts:\n" + "".join(line[2:] if line.strip() else line for line in listed.splitlines(True)) + "checks:\n" + tail
    made = with_concepts(text, "spec.yaml", lambda spaces: entries([concept()], FOUND, spaces))
    assert [one["id"] for one in parse(made.encode(), "x").data["concepts"]] == ["ruler", "border", "layer3-c4"]
    added = made.splitlines()
    for line in text.splitlines():
        assert line in added
        added.remove(line)
    assert made.index("layer3-c4") < made.index("# what follows are not concepts") < made.index("checks:")


def test_a_spec_whose_concepts_come_last_and_without_a_line_end() -> None:
    head, _, tail = SPEC.partition("concepts:\n")
    listed, _, checks = tail.partition("checks:\n")
    text = head + "checks:\n" + checks + "concepts:\n" + listed.split("\n\n")[0]
    assert not text.endswith("\n")
    made = with_concepts(text, "spec.yaml", lambda spaces: entries([concept()], FOUND, spaces))
    assert [one["id"] for one in parse(made.encode(), "x").data["concepts"]] == ["ruler", "border", "layer3-c4"]


def test_a_list_in_brackets_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        with_concepts(json.dumps(world.spec()), "spec.yaml", lambda spaces: entries([concept()], FOUND, spaces))
    assert caught.value.slug == "no-block-list"


# -- an audit


def of_three_kinds(folder: Path) -> None:
    """Make the pictures alike within each of three kinds, so that the crops of a component have something in common."""
    rng = np.random.default_rng(5)
    kinds = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((40, 40), 0) for _ in range(3)]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        noisy = np.asarray(kinds[number % 3], dtype=float) + rng.normal(scale=12, size=(40, 40, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the small world, whose only concept no component means."""
    with world.quick(60):
        folder = world.write_world(tmp_path_factory.mktemp("draft"))
        of_three_kinds(folder / "images")
        values = world.spec()
        values["concepts"] = [{"id": "ruler", "role": "spurious", "descriptions": ["a ruler"]}]
        with (folder / "spec.yaml").open("w") as stream:
            YAML().dump(values, stream)
        changed = world.audit(layers=["layer3"], examples_root="images")
        changed["measurement"] |= {"minimum_samples": 5, "intervention": "none", "minimum_recognition": 0.5, "false_discovery_rate": 0.2}
        changed["measurement"]["significance"] = 1.5
        (folder / "audit.yaml").write_text(json.dumps(changed))
        results.carry_out(read_plan(folder / "audit.yaml"), progress=SilentProgress(), pdf=False)
        yield folder / "audit.yaml"


def unexplained(audit: Path) -> float:
    record = results.last(read_plan(audit))
    assert record is not None
    value = record.class_layers[0].unexplained.value
    assert record.class_layers[0].class_name == "melanoma"
    assert value is not None
    return value


def test_drafted_concepts_explain_what_nothing_explained(audit: Path) -> None:
    before, drafted = unexplained(audit), audit.with_name("drafted.yaml")
    arguments = ["draft", str(audit), "melanoma", "--likeness", "0.3", "--quiet"]
    printed = runner.invoke(cli.app, arguments)
    assert printed.exit_code == 0, printed.output
    done = runner.invoke(cli.app, [*arguments, "--out", str(drafted)])
    assert done.exit_code == 0, done.output
    alone, whole = parse(printed.stdout.encode(), "printed").data, parse(drafted.read_bytes(), "drafted").data
    assert whole["concepts"][1:] == alone
    problems = lint([drafted])
    added = drafted.read_text().count(f"role: {UNDECIDED}")
    assert added >= 1
    assert [problem.slug for problem in problems] == ["unknown-role"] * added
    text = drafted.read_text().splitlines()
    assert all(UNDECIDED in text[(problem.line or 1) - 1] for problem in problems)
    drafted.write_text(drafted.read_text().replace(f"role: {UNDECIDED}", "role: neutral"))
    second = audit.with_name("second.yaml")
    second.write_text(audit.read_text().replace('"spec.yaml"', '"drafted.yaml"').replace('"audit": "made-up"', '"audit": "second"'))
    assert lint([drafted, second]) == []
    results.carry_out(read_plan(second), progress=SilentProgress(), pdf=False)
    assert unexplained(second) < before - 0.05


def test_examples_are_independent_reference_samples(audit: Path) -> None:
    plan = read_plan(audit)
    with Atlas(plan) as atlas:
        found = describe(atlas, "melanoma", record=results.last(plan), likeness=0.3)
        made = draft_concepts(atlas, found, top=3, examples=4)
        assert len({one.id for one in made}) == len(made)
        for one in made:
            paths = [example.image for example in one.examples]
            assert len(set(paths)) == len(paths) == 4
            ids = atlas.layers["layer3"].reference_ids[list(one.components)]
            assert set(paths) <= {atlas.evidence.paths[int(sample)] for sample in ids.ravel() if sample >= 0}
            assert all((Path(plan.audit_file).parent / "images" / path).is_file() for path in paths)


def test_what_cannot_be_drafted_is_said(audit: Path, tmp_path: Path) -> None:
    def slug(*arguments: str, file: Path = audit) -> str:
        done = runner.invoke(cli.app, ["draft", str(file), "melanoma", "--likeness", "0.3", "--quiet", *arguments])
        assert done.exit_code == 2, done.output
        return done.output.split("[")[-1].split("]")[0]

    there = tmp_path / "there.yaml"
    there.write_text("mine")
    assert slug("--out", str(there)) == "file-exists"
    assert there.read_text() == "mine"
    elsewhere = audit.with_name("elsewhere.yaml")
    elsewhere.write_text(audit.read_text().replace('"examples_root": "images"', '"examples_root": "examples"'))
    plan = read_plan(elsewhere)
    record = results.last(read_plan(audit))
    with Atlas(plan) as atlas, pytest.raises(UsageError) as caught:
        draft_concepts(atlas, describe(atlas, "melanoma", record=record, likeness=0.3))
    assert caught.value.slug == "examples-elsewhere"
    assert slug(file=elsewhere) == "no-run"
    unknown = runner.invoke(cli.app, ["draft", str(audit), "nonesuch"])
    assert "unknown-class" in unknown.output
    assert unknown.exit_code == 2
