"""Labels: against slow loops, at their nominal error rate, and the verb on a small index."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from semlens_audit import cli
from semlens_audit.atlas import embedded_words, label_pages, labelling, labels, vocabulary
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import WordExample
from semlens_audit.atlas.word_alignment import WordBlock, label_words, set_sizes, tail_p
from semlens_audit.component_search import cache_folder
from semlens_audit.errors import DataError, ExitCode, SubjectError, UsageError
from semlens_audit.foundation import Foundation
from semlens_audit.plan import AuditPlan
from semlens_audit.scores import unit
from tests.unit import index_world as world

D, CROPS, SETS = 16, 200, 100
runner = CliRunner()


def made_up(components: int, words: int, seed: int = 0, pictured: int = 0) -> tuple[np.ndarray, np.ndarray, list[WordBlock]]:
    """Concept embeddings, random crops, and words in blocks of three, of which the last ones are given by images."""
    rng = np.random.default_rng(seed)
    pool = unit(rng.standard_normal((CROPS, D)) + 1.5).astype(np.float32)
    concepts = rng.standard_normal((components, D)).astype(np.float32) * 0.2 + 0.25
    directions = unit(rng.standard_normal((words, D))).astype(np.float32)
    starts = [*range(0, words - pictured, 3), *range(words - pictured, words, 3)]
    ends = [*starts[1:], words]
    blocks = [WordBlock(a, directions[a:b], a >= words - pictured) for a, b in zip(starts, ends, strict=True)]
    return concepts, pool, blocks


def generator(size: int) -> np.random.Generator:
    return np.random.default_rng([7, size])


def slowly(concepts: np.ndarray, sizes: np.ndarray, pool: np.ndarray, blocks: list[WordBlock]) -> tuple[np.ndarray, ...]:
    """(K, V) alignment, z and p by loops over components, words and random sets."""
    words = [(block.directions[i].astype(np.float64), block.pictured) for block in blocks for i in range(len(block.directions))]
    crops = pool.astype(np.float64)
    centre = crops.mean(axis=0)

    def reached(vector: np.ndarray, word: tuple[np.ndarray, bool]) -> float:
        seen = vector - centre if word[1] else vector
        return float(seen @ word[0] / np.linalg.norm(seen))

    out = tuple(np.full((len(concepts), len(words)), np.nan) for _ in range(3))
    for size in np.unique(sizes[sizes > 0]):
        rng = generator(int(size))
        even = [1 / len(crops)] * len(crops)
        drawn = [rng.multinomial(int(size), even) for _ in range(SETS)]
        others = [rng.multinomial(len(crops), even) for _ in range(SETS)]
        means = [np.repeat(crops, one, axis=0).mean(axis=0) for one in drawn]
        means = [mean + np.repeat(crops, other, axis=0).mean(axis=0) - centre for mean, other in zip(means, others, strict=True)]
        null = np.array([[reached(mean, word) for word in words] for mean in means])
        mean, deviation = null.mean(axis=0), null.std(axis=0, ddof=1)
        maxima = ((null - mean) / deviation).max(axis=1)
        for k in np.flatnonzero(sizes == size):
            out[0][k] = [reached(concepts[k].astype(np.float64), word) for word in words]
            out[1][k] = (out[0][k] - mean) / deviation
            out[2][k] = tail_p(maxima, out[1][k])
    return out


# -- the arithmetic -------------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_a_slow_loop() -> None:
    concepts, pool, blocks = made_up(9, 20, pictured=7)
    sizes = np.array([5, 5, 0, 8, 5, 8, 5, 5, 5])
    found = label_words(concepts, sizes, pool, lambda: iter(blocks), 20, top=4, sets=SETS, generator=generator)
    alignment, z, p = slowly(concepts, sizes, pool, blocks)
    for k in range(9):
        if sizes[k] == 0:
            assert (found.words[k] == -1).all()
            assert np.isnan(found.z[k]).all()
            continue
        order = np.argsort(-z[k])[:4]
        assert found.words[k].tolist() == order.tolist()
        np.testing.assert_allclose(found.alignment[k], alignment[k, order], rtol=1e-9)
        np.testing.assert_allclose(found.z[k], z[k, order], rtol=1e-7)
        np.testing.assert_allclose(found.p[k], p[k, order], rtol=1e-6)


def test_more_words_asked_for_than_there_are() -> None:
    concepts, pool, blocks = made_up(3, 2)
    found = label_words(concepts, np.full(3, 5), pool, lambda: iter(blocks), 2, top=5, sets=SETS, generator=generator)
    assert (found.words[:, 2:] == -1).all()
    assert np.isnan(found.p[:, 2:]).all()
    assert (np.sort(found.words[:, :2], axis=1) == [0, 1]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5), st.data())
def test_neither_blocks_nor_other_components_nor_the_order_of_words_matter(seed: int, words: int, top: int, data: st.DataObject) -> None:
    concepts, pool, blocks = made_up(6, words, seed)
    whole = np.concatenate([block.directions for block in blocks])
    sizes = np.full(6, 5)

    def found(some: np.ndarray, parts: list[WordBlock]) -> tuple[np.ndarray, ...]:
        one = label_words(some, sizes[: len(some)], pool, lambda: iter(parts), words, top=top, sets=20, generator=generator)
        return one.words, np.round(one.z, 8), np.round(one.p, 8)

    first = found(concepts, blocks)
    at_once = found(concepts, [WordBlock(0, whole)])
    few = found(concepts[2:4], blocks)
    for a, b, c in zip(first, at_once, few, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[2:4], c)
    turned = data.draw(st.permutations(range(words)))
    other = found(concepts, [WordBlock(0, whole[turned])])
    names = np.array([*turned, -1])
    np.testing.assert_array_equal(first[0], names[other[0]])
    np.testing.assert_array_equal(first[1], other[1])


def test_a_planted_component_finds_its_word_and_a_word_that_says_nothing_is_nobodys() -> None:
    concepts, pool, blocks = made_up(30, 60, seed=3)
    whole = np.concatenate([block.directions for block in blocks])
    whole[5] = 0.0
    concepts[4] = pool[:30].mean(axis=0) + 1.2 * whole[17]
    found = label_words(concepts, np.full(30, 30), pool, lambda: iter([WordBlock(0, whole)]), 60, top=60, sets=SETS, generator=generator)
    assert found.words[4, 0] == 17
    assert found.p[4, 0] < 0.001
    nothing = found.words == 5
    assert (found.z[nothing] == 0).all()
    assert (found.p[nothing] > 0.5).all()


def test_random_reference_samples_get_labels_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(11)
    common = rng.standard_normal((4, D))
    # crops that fall into kinds, and words alike to each other: what real embeddings are like
    def crops(count: int) -> np.ndarray:
        return unit(rng.standard_normal((count, D)) + common[rng.integers(4, size=count)] + 1.0)

    words = unit(common[rng.integers(4, size=300)] + 0.7 * rng.standard_normal((300, D))).astype(np.float32)
    sizes, blocks = np.full(250, 20), [WordBlock(0, words)]
    p, z = [], []
    for _ in range(16):  # the pool is limited, and another one would do as well: components come from the data, not from the pool
        components = np.stack([crops(20).mean(axis=0) for _ in range(250)])
        found = label_words(components, sizes, crops(300), lambda: iter(blocks), 300, top=1, sets=500, generator=generator)
        p.append(found.p[:, 0])
        z.append(found.z[:, 0])
    for level, most in ((0.01, 0.02), (0.05, 0.075), (0.2, 0.25)):
        assert 0.4 * level < (np.concatenate(p) <= level).mean() < most
    # without the correction for the vocabulary every other one would have a label
    assert (np.concatenate(z) > 1.645).mean() > 0.5


def test_p_values_never_rise_with_z_and_continue_beyond_the_sets() -> None:
    maxima = np.random.default_rng(0).gumbel(3.0, 0.5, 1000)
    z = np.linspace(0, 30, 400)
    p = tail_p(maxima, z)
    assert (np.diff(p) <= 1e-15).all()
    assert p[0] == 1.0
    assert 0 < p[-1] < 1e-6
    middle = np.quantile(maxima, 0.6)
    assert tail_p(maxima, np.array(middle)) == pytest.approx((1 + (maxima >= middle).sum()) / 1001)
    # the truth of a Gumbel distribution, within the factor that a thousand sets leave open
    far = np.array([3.0 + 0.5 * 7, 3.0 + 0.5 * 9])
    truth = -np.expm1(-np.exp(-np.array([7.0, 9.0])))
    assert (tail_p(maxima, far) > 0.5 * truth).all()
    assert (tail_p(maxima, far) < 5 * truth).all()
    assert np.isnan(tail_p(maxima, np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_the_fewer_words_the_more_random_sets() -> None:
    assert [labels.random_sets(words) for words in (1, 2000, 4000, 20_000, 10**6)] == [10_000, 10_000, 5000, 1000, 1000]


def test_sizes_of_random_sets_never_exceed_what_a_component_has() -> None:
    counts = np.array([31.0, 31.0 - 1e-12, 30.9, 7.2, 2.0, 1.0, 45.0, 31.0])
    assert set_sizes(counts, counts >= 2).tolist() == [31, 31, 30, 6, 2, 0, 38, 31]
    assert set_sizes(counts, np.zeros(8, dtype=bool)).tolist() == [0] * 8


# -- on an index ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    with world.indexed(tmp_path_factory.mktemp("labels")) as made:
        yield made


@pytest.fixture
def atlas(plan: AuditPlan) -> Iterator[Atlas]:
    with Atlas(plan) as opened:
        yield opened


WORDS = ("a ruler", "hair", "a dog", "a cat", "something red", "a small blue thing")


def test_a_component_has_the_same_labels_whoever_is_asked_about(atlas: Atlas) -> None:
    every = labels.label_components(atlas, "layer1", WORDS, top=2, level=0.5)
    assert len(every) == atlas.layers["layer1"].components
    assert every[1] == []  # dead
    assert labels.best_label(every[1]) is None
    assert all(len(one) == 2 and one[0].z >= one[1].z for k, one in enumerate(every) if k != 1)
    assert labels.label_components(atlas, "layer1", WORDS[::-1], top=2, level=0.5, components=[3, 0]) == [every[3], every[0]]
    vector = atlas.concept_embeddings("layer1")[0].astype(np.float64)
    probe = unit(atlas.text_probe(every[0][0].word))
    assert every[0][0].alignment == pytest.approx(float(unit(vector) @ probe), abs=1e-6)


def test_words_are_embedded_once_and_damage_is_noticed(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    words = vocabulary.of_words([f"word {i}" for i in range(70)])
    monkeypatch.setattr(embedded_words, "CHUNK", 32)
    calls: list[int] = []
    embed = Foundation.embed_texts

    def counted(self: Foundation, texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        if sum(calls) > 2 + 2 * 64 and len(calls) < 100:
            raise KeyboardInterrupt
        return embed(self, texts)

    monkeypatch.setattr(Foundation, "embed_texts", counted)
    with pytest.raises(KeyboardInterrupt):
        embedded_words.embed_words(atlas, words)
    assert len(list(cache_folder(atlas.store.path).glob("*.words"))) >= 2
    calls[:] = [0] * 100
    whole = embedded_words.embed_words(atlas, words)
    assert sum(calls) == 2 + 2 * 6, "only what was missing is embedded"
    calls[:] = [0] * 100
    again = embedded_words.embed_words(atlas, words)
    assert sum(calls) == 0
    centre = atlas.centre("layer1")
    for one, other in zip(whole.blocks(centre), again.blocks(centre), strict=True):
        np.testing.assert_array_equal(one.directions, other.directions)
    for file in cache_folder(atlas.store.path).glob("*.words"):
        content = bytearray(file.read_bytes())
        content[40] ^= 1
        file.write_bytes(content)
    repaired = embedded_words.embed_words(atlas, words)
    assert sum(calls) > 70
    for one, other in zip(whole.blocks(centre), repaired.blocks(centre), strict=True):
        np.testing.assert_array_equal(one.directions, other.directions)
    assert repaired.sha256 == whole.sha256


def test_long_vocabularies_are_read_again_instead_of_held(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    held = labels.label_components(atlas, "layer3", WORDS)
    monkeypatch.setattr(embedded_words, "_IN_MEMORY", 0)
    assert labels.label_components(atlas, "layer3", WORDS) == held
    embedded = embedded_words.embed_words(atlas, vocabulary.of_words(WORDS))
    for file in cache_folder(atlas.store.path).glob("*.words"):
        file.unlink()
    with pytest.raises(Exception, match="words-changed"):
        list(embedded.blocks(atlas.centre("layer3")))


def test_words_given_by_images_are_seen_from_the_centre_of_random_crops(atlas: Atlas, plan: AuditPlan) -> None:
    folder = Path(plan.audit_file).parent
    (folder / "w.csv").write_text("word,image,box\nborder,examples/a.png,2 3 20 22\nborder,examples/a.png,\n")
    found = embedded_words.embed_words(atlas, labelling.read_vocabulary(str(folder / "w.csv")))
    block = next(iter(found.blocks(atlas.centre("layer1"))))
    assert block.pictured
    # the spec's concept has the same examples, which the index has embedded
    expected = unit(atlas.evidence.probes["border"].examples.astype(np.float64).mean(axis=0) - atlas.centre("layer1"))
    np.testing.assert_allclose(block.directions[0], expected, atol=2e-3)
    assert found.from_data == 0
    own = vocabulary.Vocabulary("w", ("a",), {"a": (WordExample(folder / "images" / atlas.evidence.paths[3], None),)})
    assert embedded_words.embed_words(atlas, own).from_data == 1
    assert "1 of 1 words are given by pictures of the audited data" in labelling.label(atlas, own, layer="layer1").notes[0]
    for box, slug in (((0, 0, 500, 500), "box-outside-image"), (None, "missing-image")):
        image = folder / ("examples/a.png" if box else "examples/none.png")
        wrong = vocabulary.Vocabulary("w", ("a",), {"a": (WordExample(image, box, "w.csv", 7),)})
        with pytest.raises(DataError, match=slug) as caught:
            embedded_words.embed_words(atlas, wrong)
        assert caught.value.problems[0].where == "w.csv:7"


def test_words_without_images_need_a_model_that_reads(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_words, "has_text_tower", lambda plan: False)
    with pytest.raises(SubjectError, match="--vocabulary spec"):
        labels.label_components(atlas, "layer1", WORDS)


def test_random_crops_have_to_be_as_many_as_reference_samples(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "set_sizes", lambda counts, eligible: np.full(len(counts), 1000))
    with pytest.raises(DataError, match="too-few-random-crops"):
        labels.label_components(atlas, "layer1", WORDS)


def test_false_discovery_is_controlled_over_the_layer() -> None:
    p = np.array([0.001, 0.012, 0.039, 0.2, np.nan, 0.9])
    assert labels._critical_p(p, 0.05) == 0.012
    assert labels._critical_p(p, 0.001) < 0
    assert labels._critical_p(np.array([np.nan]), 0.05) < 0


def test_labels_are_listed_by_relevance(atlas: Atlas) -> None:
    words = vocabulary.of_words(WORDS)
    found = labelling.label(atlas, words, layer="layer3", class_name="nevus", count=5)
    share = atlas.shares("layer3")[1]
    assert [each.row.component for each in found.layers[0].rows] == np.argsort(-share, kind="stable")[:5].tolist()
    assert found.sha256 == words.sha256
    assert found.layers[0].tested <= found.layers[0].components
    rows = list(csv.DictReader(labelling.csv_text(found).splitlines()))
    assert len(rows) == 15
    assert rows[0]["relevance for nevus"] == f"{share.max():.6g}"
    with pytest.raises(UsageError, match="bad-level"):
        labelling.label(atlas, words, level=1.0)
    with pytest.raises(UsageError, match="unknown-layer"):
        labelling.label(atlas, words, layer="layer9")
    assert labelling._cell("=1+1") == "'=1+1"


def test_a_note_says_how_sure_a_label_is() -> None:
    near, far = labels.Label("a ruler", 0.3, 8.0, 1e-6, True), labels.Label("hair", 0.1, 2.0, 0.3, False)
    assert label_pages.label_note([near, far], 20_000) == "z 8.0, p <0.001 among 20,000\u00a0words."
    assert label_pages.label_note([near, near], 1) == "z 8.0, p <0.001 among 1\u00a0word. Also beyond chance: a ruler (z 8.0)."
    assert label_pages.label_note([far], 2).startswith("No label fits: the nearest of 2\u00a0words, “hair”")
    assert label_pages.label_note([], 2).startswith("No label: never active")


# -- the verb -------------------------------------------------------------------------------------------------------------------


def test_the_verb_prints_and_writes(plan: AuditPlan, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join([*WORDS, "HAIR"]) + "\n")
    audit = Path(plan.audit_file)
    arguments = ["label", str(audit), "--vocabulary", str(words), "--layer", "layer1", "-q"]
    page, table = tmp_path / "labels.html", tmp_path / "labels.csv"
    done = runner.invoke(cli.app, [*arguments, "--html", str(page), "--csv", str(table)])
    assert done.exit_code == ExitCode.SATISFIED, done.output
    assert "layer1: " in done.output
    assert "of 3 components have a label; 1 never active" in " ".join(done.output.split())
    assert "1 entry stands there already" in done.output
    text = page.read_text()
    assert "Component 1 of layer1" in text
    assert "never active" in text
    assert text.count("data:image/jpeg;base64,") > 3
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert {row["component"] for row in csv.DictReader(table.read_text().splitlines())} == {"0", "1", "2", "3"}
    printed = json.loads(runner.invoke(cli.app, [*arguments, "--json", "--components", "2"]).stdout)
    assert printed["vocabulary"]["words"] == 6
    assert [len(one["rows"]) for one in printed["layers"]] == [2]
    spec = json.loads(runner.invoke(cli.app, ["label", str(audit), "--vocabulary", "spec", "--json", "-q"]).stdout)
    assert spec["vocabulary"]["words"] == 4
    assert runner.invoke(cli.app, [*arguments, "--level", "2"]).exit_code == ExitCode.USAGE
    assert runner.invoke(cli.app, ["label", str(audit), "--vocabulary", str(tmp_path / "no.txt")]).exit_code == ExitCode.USAGE


def test_the_vocabulary_is_general_for_a_model_that_reads_and_else_the_specs(plan: AuditPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert labelling.chosen_vocabulary(plan, ()).name == "general"
    monkeypatch.setattr(labelling, "has_text_tower", lambda plan: False)
    assert labelling.chosen_vocabulary(plan, ()).words == ("border",)
