"""Words that a generator proposes: what it is shown, what it may answer, and that its words are tested on what it has not seen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from semlens_audit import cli, index, scores, stages
from semlens_audit.atlas import candidates as module
from semlens_audit.atlas.candidate_grids import MOST, component_grids, draw_grid, shown_references
from semlens_audit.atlas.candidate_program import CandidateProgram
from semlens_audit.atlas.candidates import CandidateGenerator, propose, vocabulary_text
from semlens_audit.atlas.labels import label_components
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import VocabularyError
from semlens_audit.atlas.vocabulary_files import read_vocabulary
from semlens_audit.atlas.word_alignment import WordBlock, label_words
from semlens_audit.errors import AuditError, ExecutionError, SubjectError, UsageError
from tests.unit import index_world as world

GREETING = '{"name": "mean colour", "version": "1.2"}'

PROGRAM = f"""
import json, sys
from PIL import Image, ImageStat
print('{GREETING}', flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    words = []
    for path, prefix in ((asked["positive"], ""), (asked["contrastive"], "beside ")):
        if path is not None:
            red, green, blue = ImageStat.Stat(Image.open(path).convert("RGB")).mean
            words.append(prefix + ("red skin" if red >= max(green, blue) else "green grass" if green >= blue else "blue ink"))
    print(json.dumps({{"words": words + ["dark hair"]}}), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny world with contrastive embeddings, and a generator beside it."""
    folder = world.write_world(tmp_path_factory.mktemp("candidates"))
    values = world.audit(layers=["layer3"])
    values["measurement"] |= {"concept_embedding": "contrastive", "gamma": 0.5}
    (folder / "audit.yaml").write_text(json.dumps(values))
    (folder / "colours.py").write_text(PROGRAM)
    threads, before = torch.get_num_threads(), stages.NULL_CROPS
    torch.set_num_threads(1)
    stages.NULL_CROPS = 60
    index.build(world.plan(folder, values))
    yield folder
    stages.NULL_CROPS = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def atlas(folder: Path) -> Iterator[Atlas]:
    with Atlas(world.plan(folder, json.loads((folder / "audit.yaml").read_text()))) as opened:
        yield opened


class Saying:
    """A generator that says the same of everything."""

    name, version = "saying", "0"

    def __init__(self, *words: str) -> None:
        self.words, self.asked = words, list[tuple[str, int]]()

    def candidates(self, positive: Image.Image, contrastive: Image.Image | None, *, layer: str, component: int) -> Sequence[str]:
        self.asked.append((layer, component))
        return self.words


def command(folder: Path, source: str, name: str = "program.py") -> str:
    (folder / name).write_text(source)
    return f"'{sys.executable}' '{folder / name}'"


# -- what is shown ------------------------------------------------------------------------------------------------------------------


def test_a_grid_shows_each_crop_whole_in_its_place() -> None:
    colours = [(20 * i, 255 - 20 * i, 40) for i in range(MOST)]
    tiles: list[Image.Image | None] = [Image.new("RGB", (10 + 5 * i, 30), colour) for i, colour in enumerate(colours)]
    tiles[4] = None
    grid = np.asarray(draw_grid(tiles))
    assert grid.shape == (704, 704, 3)
    for place, colour in enumerate(colours):
        row, column = divmod(place, 3)
        middle = grid[8 + 232 * row + 112, 8 + 232 * column + 112]
        assert tuple(middle) == ((255, 255, 255) if place == 4 else colour)
        width = min(224, round((10 + 5 * place) * 224 / max(30, 10 + 5 * place)))
        if place != 4:
            same = (grid[8 + 232 * row + 112, 8 + 232 * column : 232 + 232 * column] == colour).all(axis=1)
            assert same.sum() == width
    assert (grid[:8] == 255).all()
    with pytest.raises(ValueError, match="do not fit"):
        draw_grid([None] * 10)


@pytest.mark.parametrize(("references", "shown"), [(30, 9), (18, 9), (17, 8), (5, 2), (2, 1), (1, 0)])
def test_half_of_the_reference_samples_at_most_is_shown(references: int, shown: int) -> None:
    assert shown_references(references) == shown


def test_grids_are_of_the_first_reference_samples_and_always_the_same(atlas: Atlas) -> None:
    source = atlas.layers["layer3"]
    component = int(np.flatnonzero((source.reference_ids >= 0).all(axis=1))[0])
    grids = component_grids(atlas, "layer3", component)
    again = component_grids(atlas, "layer3", component)
    assert grids is not None
    assert again is not None
    assert grids.contrastive is not None
    assert again.contrastive is not None
    assert grids.positive.tobytes() == again.positive.tobytes()
    assert grids.contrastive.tobytes() == again.contrastive.tobytes()
    assert grids.contrastive.tobytes() != grids.positive.tobytes()
    pixels = np.asarray(grids.positive)
    # two of five reference samples are shown: the others' places are white
    assert (pixels[:232, 472:] == 255).all()
    assert (pixels[240:] == 255).all()
    assert not (pixels[:232, :464] == 255).all()


# -- what is made of it -------------------------------------------------------------------------------------------------------------


def test_words_are_joined_and_the_file_says_whose_they_are(atlas: Atlas, tmp_path: Path) -> None:
    generator: CandidateGenerator = Saying("Red  skin", "dark hair", "DARK HAIR", "")
    found = propose(atlas, generator, {"layer3": [3, 0]})
    assert found.vocabulary().words == ("dark hair", "Red skin")
    assert found.words_of("layer3", 3) == ("Red skin", "dark hair")
    assert found.words_of("layer3", 1) is None
    assert "2 proposed words were left out" in found.notes[0]
    (tmp_path / "words.txt").write_text(vocabulary_text(found))
    assert read_vocabulary(str(tmp_path / "words.txt")).words == found.vocabulary().words
    assert "Red skin  # layer3:3, layer3:0" in vocabulary_text(found)
    assert f"--leave-out {found.shown}" in vocabulary_text(found)


@pytest.mark.parametrize("word", ["red\u202eniks", "a\u200bb", "x" * 201, "  ", "# red", "red # skin", "red\x1b[31m"])
def test_words_that_no_vocabulary_can_hold_are_left_out_and_it_is_said(atlas: Atlas, word: str) -> None:
    found = propose(atlas, Saying(word, "hair"), {"layer3": [0]})
    assert found.vocabulary().words == ("hair",)
    (note,) = found.notes
    assert "1 proposed word was left out: layer3:0" in note
    assert "\u202e" not in note
    assert "\x1b" not in note
    with pytest.raises(VocabularyError) as caught:
        propose(atlas, Saying(word), {"layer3": [0]}).vocabulary()
    assert caught.value.slug == "no-candidates"


def test_labels_are_tested_on_what_was_not_looked_at(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    source, words = atlas.layers["layer3"], ["ruler", "hair", "skin"]
    units = np.arange(len(atlas.evidence.paths)) // 2  # pairs of samples are no independent evidence
    monkeypatch.setattr(type(atlas.evidence), "units", units)
    found = label_components(atlas, "layer3", words, leave_out=2)
    whole = label_components(atlas, "layer3", words)
    seen = 0
    for component, ids in enumerate(source.reference_ids):
        looked = {int(units[i]) for i in ids[:2] if i >= 0}
        left = [rank for rank in range(2, len(ids)) if ids[rank] >= 0 and int(units[ids[rank]]) not in looked]
        if not found[component]:
            _, sizes = np.unique(units[ids[left]], return_counts=True)
            assert (sizes.sum() ** 2 < 2 * (sizes**2).sum()) or source.dead[component]
            continue
        theta = source.meant[component, left].astype(np.float64).mean(axis=0)
        text = atlas.foundation.embed_texts([t.format(w) for w in words for t in atlas.plan.spec.templates]).reshape(3, 2, -1)
        empty = atlas.foundation.embed_texts([t.format("") for t in atlas.plan.spec.templates])
        probes = scores.unit(scores.template_probes(text.astype(np.float64), empty.astype(np.float64)))
        for one in found[component]:
            assert one.alignment == pytest.approx(float(scores.unit(theta) @ probes[words.index(one.word)]), abs=1e-5)
        seen += found[component] != whole[component]
    assert seen > 2


def test_the_best_describer_of_random_crops_gets_no_more_labels_than_chance_allows() -> None:
    rng = np.random.default_rng(4)
    pool = scores.unit(rng.standard_normal((1000, 64)) + 1.5)
    crops = scores.unit(rng.standard_normal((80, 30, 64)) + 1.5)  # components that mean nothing
    middle = scores.unit(rng.standard_normal((50_000, 64)) + 1.5).mean(axis=0)
    words = scores.unit(crops[:, :MOST].mean(axis=1) - middle).astype(np.float32)  # each told by what was shown of it

    def rejected(first: int) -> float:
        found = label_words(
            crops[:, first:].mean(axis=1), np.full(80, 30 - first), pool, lambda: iter([WordBlock(0, words)]), 80, top=1, sets=500,
            generator=lambda size: np.random.default_rng(size),
        )  # fmt: skip
        return float((found.p[:, 0] <= 0.05).mean())

    assert rejected(MOST) <= 0.1
    assert rejected(0) >= 0.2


def test_a_foundation_model_that_does_not_read_is_refused(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_text_tower", lambda _plan: False)
    generator = Saying("hair")
    with pytest.raises(SubjectError) as caught:
        propose(atlas, generator, {"layer3": [0]})
    assert caught.value.slug == "no-text-tower"
    assert not generator.asked


def test_too_few_references_are_refused(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas.plan.audit.measurement.__class__, "reference_samples", 2, raising=False)
    settings = atlas.plan.audit.measurement.model_copy(update={"reference_samples": 2})
    plan = atlas.plan.model_copy(update={"audit": atlas.plan.audit.model_copy(update={"measurement": settings})})
    monkeypatch.setattr(atlas, "plan", plan)
    with pytest.raises(UsageError) as caught:
        propose(atlas, Saying("hair"), {"layer3": [0]})
    assert caught.value.slug == "too-few-references"


# -- programs -----------------------------------------------------------------------------------------------------------------------


ASKED = Image.new("RGB", (8, 8), (200, 10, 10))


def test_a_program_is_shown_pictures_and_answers(tmp_path: Path) -> None:
    with CandidateProgram(command(tmp_path, PROGRAM), 60) as program:
        assert (program.name, program.version) == ("mean colour", "1.2")
        for blue in (0, 255):
            image = Image.new("RGB", (8, 8), (100, 0, blue))
            words = program.candidates(ASKED, image if blue else None, layer="a b", component=3)
            assert words == (("red skin", "beside blue ink", "dark hair") if blue else ("red skin", "dark hair"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys; sys.exit('no model at hand')", "no model at hand"),
        ("print('loading')", "is no JSON"),
        ("print('[1]')", "is not {"),
        ('print(\'{"name": "x\\u202e", "version": "1"}\')', "can all be seen"),
        ('print(\'{"name": "x", "version": 2}\')', "can all be seen"),
        ("import sys; sys.stdout.write('x' * 10_000_000)", "more than 65,536 bytes"),
        (f"print('{GREETING}', flush=True); input(); raise MemoryError('weights')", "weights"),
        (f"print('{GREETING}', flush=True); input(); print('x' * 10_000_000)", "more than 65,536 bytes"),
        (f"print('{GREETING}', flush=True); input(); print('\\n' * 10_000_000)", "is no JSON"),
        (f"print('{GREETING}', flush=True); input(); print('[' * 60_000)", "is no JSON"),
        (f"print('{GREETING}', flush=True); input(); print('{{\"words\": \"hair\"}}')", "no list of at most"),
        (f"print('{GREETING}', flush=True); input(); import json; print(json.dumps({{'words': ['a'] * 101}}))", "no list of at most"),
        (f"import sys; print('{GREETING}', flush=True); input(); sys.stdout.buffer.write(b'\\xff\\n')", "is no JSON"),
    ],
)
def test_a_program_that_says_something_else_is_refused(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(ExecutionError) as caught, CandidateProgram(command(tmp_path, source), 60) as program:
        program.candidates(ASKED, None, layer="layer3", component=0)
    assert caught.value.slug == "candidates-failed"
    assert said in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    source = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    source += f"print('{GREETING}', flush=True)\ntime.sleep(600)"
    with pytest.raises(ExecutionError) as caught, CandidateProgram(command(tmp_path, source), 30) as program:
        program._seconds = 0.3
        program.candidates(ASKED, None, layer="layer3", component=0)
    assert "nothing for 0.3 s" in str(caught.value)
    assert program._process.poll() is not None
    time.sleep(3.5)
    assert not mark.exists()


def test_answers_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    # both lines in one piece, so that the second is there when the first has been read
    source = f"import sys; sys.stdout.write('{GREETING}\\n{{\"words\": []}}\\n'); sys.stdout.flush(); input()"
    with pytest.raises(ExecutionError) as caught, CandidateProgram(command(tmp_path, source), 60) as program:
        program.candidates(ASKED, None, layer="layer3", component=0)
    assert "without being asked" in str(caught.value)


@pytest.mark.parametrize("text", ["", "'", "/no/such/program --now", "a\0b"])
def test_what_cannot_be_started_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        CandidateProgram(text, 1)
    assert caught.value.slug == "bad-candidates"


def test_nothing_is_given_to_a_shell(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(AuditError):
        CandidateProgram(f"echo $(touch {mark}); touch {mark}", 30)
    assert not mark.exists()


# -- the verb -----------------------------------------------------------------------------------------------------------------------


def test_the_verb_labels_with_candidates_and_without_the_program_again(folder: Path, tmp_path: Path) -> None:
    run, audit, words, page = CliRunner().invoke, str(folder / "audit.yaml"), tmp_path / "words.txt", tmp_path / "page.html"
    program = f"'{sys.executable}' '{folder / 'colours.py'}'"
    made = run(
        cli.app,
        ["label", audit, "--candidates", program, "--save-candidates", str(words), "--html", str(page), "--components", "4", "--json"],
    )
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found["candidates"]["generator"] == {"name": "mean colour", "version": "1.2"}
    assert found["left_out_references"] == found["candidates"]["shown_references"] == 2
    assert len(found["candidates"]["components"]) == 4
    assert found["candidates"]["components"][0]["grids_sha256"]["contrastive"] is not None
    assert any(word.startswith("beside") for one in found["candidates"]["components"] for word in one["words"])
    assert found["vocabulary"]["words"] == len({word for one in found["candidates"]["components"] for word in one["words"]})
    assert "labels are tested on the others" in found["notes"][0]
    text = page.read_text()
    assert "mean colour 1.2, asked for words for 4 components, each shown by its first 2 reference samples" in " ".join(text.split())
    assert "proposed <strong>" in text
    again = run(cli.app, ["label", audit, "--vocabulary", str(words), "--leave-out", "2", "--components", "4", "--json"])
    assert again.exit_code == 0, again.output
    other = json.loads(again.stdout)
    assert other["layers"] == found["layers"]
    assert other["candidates"] is None
    more = run(cli.app, ["label", audit, "--vocabulary", "spec", "--candidates", program, "--components", "1", "--json", "-q"])
    assert more.exit_code == 0, more.output
    assert json.loads(more.stdout)["vocabulary"]["words"] > 3


@pytest.mark.parametrize(
    ("options", "slug"),
    [
        (["--save-candidates", "words.txt"], "no-candidates"),
        (["--candidates", "python", "--save-candidates", "words.csv"], "bad-candidates-file"),
        (["--vocabulary", "spec", "--leave-out", "4"], "too-many-left-out"),
        (["--candidates", "/no/such/program"], "bad-candidates"),
    ],
)
def test_options_without_sense_are_refused(folder: Path, options: list[str], slug: str) -> None:
    done = CliRunner().invoke(cli.app, ["label", str(folder / "audit.yaml"), *options])
    assert done.exit_code != 0
    assert slug in done.output

