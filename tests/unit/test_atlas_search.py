from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from semlens_audit import assignment, explore, index, scores, screen
from semlens_audit.atlas import random_sets
from semlens_audit.atlas.cards import card, component_named, foreign_card
from semlens_audit.atlas.common_words import WORDS, word_probes
from semlens_audit.atlas.query_images import embed_one
from semlens_audit.calibration import calibrate, concept_z
from semlens_audit.draws import generator
from semlens_audit.errors import AuditError, DataError, SubjectError, UsageError
from semlens_audit.explore import Explorer, Found, Query
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import prompts
from semlens_audit.statistics import benjamini_hochberg, normal_tail
from tests.unit import index_world as world


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    with world.indexed(tmp_path_factory.mktemp("search")) as made:
        yield made


@pytest.fixture(scope="module")
def atlas(plan: AuditPlan) -> Iterator[Explorer]:
    with Explorer(plan, max_memory=1 << 30) as opened:
        yield opened


@pytest.fixture(scope="module")
def image(plan: AuditPlan) -> Path:
    return Path(plan.audit_file).parent / "images" / "nevus" / "000.png"


def meaning(atlas: Explorer, layer: str, component: int) -> np.ndarray:
    """Concept embedding the slow way: mean over the stored embeddings of the crops."""
    source = atlas.layers[layer]
    present = source.reference_ids[component] >= 0
    return source.embeddings[component][present].astype(np.float64).mean(axis=0)


def centre(atlas: Explorer, layer: str) -> np.ndarray:
    return atlas.layers[layer].null_embeddings.astype(np.float64).mean(axis=0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def probe(atlas: Explorer, text: str) -> np.ndarray:
    texts = atlas.foundation.embed_texts([text, f"a photo of {text}", "", "a photo of "]).astype(np.float64)
    return (texts[:2] - texts[2:]).mean(axis=0)


def slow(atlas: Explorer, direction: Any, centred: bool) -> list[tuple[float, str, int]]:
    """Every living component with its cosine, nearest first; `direction` gives that of a layer."""
    hits = []
    for name, layer in atlas.layers.items():
        origin = centre(atlas, name) if centred else 0.0
        hits += [
            (cosine(meaning(atlas, name, int(k)) - origin, direction(name)), name, int(k)) for k in np.flatnonzero(~layer.dead)
        ]
    return sorted(hits, key=lambda hit: -hit[0])


def same(found: Found, wanted: list[tuple[float, str, int]]) -> None:
    assert [row.similarity for row in found.rows] == pytest.approx([hit[0] for hit in wanted], abs=1e-5)
    assert {(row.layer, row.component) for row in found.rows} == {hit[1:] for hit in wanted}
    assert found.searched == len(wanted)


class TestQueries:
    def test_text(self, atlas: Explorer) -> None:
        found = atlas.search(Query(text="a green dot"), top=50)
        same(found, slow(atlas, lambda layer: probe(atlas, "a green dot"), centred=False))
        assert atlas.search(Query(text="a green dot"), top=3).rows == found.rows[:3]
        assert explore.search(atlas.plan, Query(text="a green dot"), top=3).rows == found.rows[:3], "whatever was asked before"

    def test_image(self, atlas: Explorer, image: Path) -> None:
        embedded = atlas.foundation.embed_images([read_image(image)])[0].astype(np.float64)
        same(atlas.search(Query(image=image), top=50), slow(atlas, lambda layer: embedded - centre(atlas, layer), centred=True))
        rows = atlas.search(Query(image=image), layer="layer1", top=50).rows
        assert {row.layer for row in rows} == {"layer1"}

    def test_part_of_an_image(self, atlas: Explorer, image: Path) -> None:
        part = read_image(image).crop((3, 5, 30, 40))
        embedded = atlas.foundation.embed_images([part])[0].astype(np.float64)
        found = atlas.search(Query(image=image, box=(3, 5, 30, 40)), top=50)
        same(found, slow(atlas, lambda layer: embedded - centre(atlas, layer), centred=True))
        assert found.picture is not None
        with Image.open(io.BytesIO(found.picture)) as shown:
            assert shown.size == (27, 35)

    def test_one_image_by_itself_is_embedded_as_in_a_batch(self, atlas: Explorer, image: Path) -> None:
        batch = atlas.foundation.embed_images([read_image(image)] * 3)[2]
        assert embed_one(atlas.foundation, read_image(image)) == pytest.approx(batch, abs=1e-5)

    def test_component_finds_others_and_not_itself(self, atlas: Explorer) -> None:
        direction = meaning(atlas, "layer3", 2) - centre(atlas, "layer3")
        wanted = [hit for hit in slow(atlas, lambda layer: direction, centred=True) if hit[1:] != ("layer3", 2)]
        same(atlas.search(Query(like="layer3:2"), top=50), wanted)
        assert len(atlas.search(Query(like="layer3:2"), layer="layer1", top=50).rows) == 3, "another layer lacks none but the dead one"

    def test_several_together(self, atlas: Explorer, image: Path) -> None:
        embedded = atlas.foundation.embed_images([read_image(image)])[0].astype(np.float64)
        own = meaning(atlas, "layer1", 0) - centre(atlas, "layer1")
        text = scores.unit(probe(atlas, "a dot"))

        def direction(layer: str) -> np.ndarray:
            return 0.5 * text + scores.unit(embedded - centre(atlas, layer)) + scores.unit(own)

        wanted = [hit for hit in slow(atlas, direction, centred=True) if hit[1:] != ("layer1", 0)]
        same(atlas.search(Query(text="a dot", image=image, like="layer1:0", weight=0.5), top=50), wanted)

    def test_what_is_not_meant_is_projected_out(self, atlas: Explorer, image: Path) -> None:
        text, unwanted = probe(atlas, "a dot"), probe(atlas, "skin")
        left = text - (text @ unwanted) / (unwanted @ unwanted) * unwanted
        same(atlas.search(Query(text="a dot", without="skin"), top=50), slow(atlas, lambda layer: left, centred=False))
        embedded = atlas.foundation.embed_images([read_image(image)])[0].astype(np.float64)

        def direction(layer: str) -> np.ndarray:
            system = np.stack([unwanted, embedded - centre(atlas, layer)]).T
            return text - system @ np.linalg.lstsq(system, text, rcond=None)[0]

        found = atlas.search(Query(text="a dot", without="skin", without_image=image), top=50)
        same(found, slow(atlas, direction, centred=False))

    def test_words_of_a_query(self) -> None:
        query = Query(text="a dot", image=Path("x/y.png"), box=(1, 2, 3, 4), without="skin")
        assert query.words == "“a dot” and the image y.png within (1, 2, 3, 4), without “skin”"


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "no-query"),
    ({"without": "skin"}, "no-query"),
    ({"text": ""}, "empty-query"),
    ({"text": " "}, "empty-query"),
    ({"text": "a dot", "without": ""}, "empty-query"),
    ({"text": "a dot", "without": "a dot"}, "nothing-left"),
    ({"text": "a dot", "box": (0, 0, 4, 4)}, "box-without-image"),
    ({"text": "a dot", "weight": 2.0}, "weight-without-text"),
    ({"text": "a dot", "like": "layer1:0", "weight": 0.0}, "bad-weight"),
    ({"text": "a dot", "like": "layer1:0", "weight": float("nan")}, "bad-weight"),
    ({"like": "layer1"}, "component-name"),
    ({"like": "layer1:-1"}, "component-name"),
    ({"like": "layer1:²"}, "component-name"),
    ({"like": "layer9:1"}, "unknown-layer"),
    ({"like": "layer1:4"}, "unknown-component"),
    ({"like": "layer1:" + "9" * 400}, "unknown-component"),
    ({"like": "layer1:1"}, "dead-component"),
]


class TestBadInput:
    @pytest.mark.parametrize(("values", "slug"), BAD)
    def test_queries(self, atlas: Explorer, values: dict[str, Any], slug: str) -> None:
        with pytest.raises(UsageError) as caught:
            atlas.search(Query(**values))
        assert caught.value.slug == slug

    @pytest.mark.parametrize("box", [(0, 0, 99, 4), (-1, 0, 4, 4), (4, 4, 4, 8), (5, 0, 4, 8)])
    def test_boxes_outside_of_the_image(self, atlas: Explorer, image: Path, box: tuple[int, int, int, int]) -> None:
        with pytest.raises(DataError) as caught:
            atlas.search(Query(image=image, box=box))
        assert caught.value.slug == "box-outside-image"

    def test_images_that_are_none(self, atlas: Explorer, plan: AuditPlan, tmp_path: Path) -> None:
        (tmp_path / "empty.png").write_bytes(b"")
        for path, slug in ((Path(plan.audit_file), "unreadable-image"), (tmp_path / "empty.png", "empty-image"),
                           (tmp_path / "no.png", "missing-image"), (tmp_path, "unreadable-image")):  # fmt: skip
            for query in (Query(image=path), Query(text="a dot", without_image=path)):
                with pytest.raises(AuditError) as caught:
                    atlas.search(query)
                assert caught.value.slug == slug

    def test_unknown_layer(self, plan: AuditPlan) -> None:
        with pytest.raises(UsageError) as caught:
            explore.search(plan, Query(text="a dot"), layer="layer9")
        assert caught.value.slug == "unknown-layer"

    def test_text_needs_a_text_tower(self, plan: AuditPlan, tmp_path: Path) -> None:
        folder = world.write_world(tmp_path)
        values = world.audit(
            layers=["layer3"],
            foundation_model={
                "source": "timm",
                "name": "resnet18",
                "weights": "small.safetensors",
                "arguments": {"channels": list(world.CHANNELS), "num_classes": 2},
                "preprocessing": {"size": 32},
            },
        )
        other = world.plan(folder, values)
        index.build(other)
        with Explorer(other) as explorer:
            for query in (Query(text="a ruler"), Query(like="layer3:0", without="a ruler")):
                with pytest.raises(SubjectError) as caught:
                    explorer.search(query)
                assert caught.value.slug == "no-text-tower"
            example = folder / "examples" / "a.png"
            assert explorer.search(Query(image=example, without_image=folder / "images" / "nevus" / "000.png")).rows[0].z is not None


class TestSignificance:
    def test_z_is_that_of_the_audit(self, atlas: Explorer) -> None:
        """Of a text: the alignment's z by `calibrate`, with the very sets that a run draws."""
        found = atlas.search(Query(text="a dot"), layer="layer3", top=50)
        source, text = atlas.layers["layer3"], probe(atlas, "a dot")
        zero = np.zeros((1, len(text)))
        probes = scores.ProbeSet(text[None], zero, zero, np.array([0]))
        pool = source.null_embeddings.astype(np.float64)
        for row in found.rows:
            m = int((source.reference_ids[row.component] >= 0).sum())
            made = calibrate(pool, m, 100, probes, generator(atlas.plan, "null", "layer3", str(m)))
            value = scores.alignment(meaning(atlas, "layer3", row.component)[None], probes)
            assert row.z == pytest.approx(float(concept_z(value, made, probes)[0, 0]), abs=1e-4)
            assert row.expected == pytest.approx(float(made.mean[0]), abs=1e-6)
            assert row.p is not None
            assert row.z is not None
            assert float(normal_tail(np.array([row.z]))[0]) <= row.p * (1 + 1e-9)

    def test_centred_similarities_are_held_against_centred_sets(self, atlas: Explorer, image: Path) -> None:
        found = atlas.search(Query(image=image), layer="layer3", top=50)
        pool = atlas.layers["layer3"].null_embeddings.astype(np.float64)
        direction = atlas.foundation.embed_images([read_image(image)])[0].astype(np.float64) - pool.mean(axis=0)
        rng = generator(atlas.plan, "null", "layer3", "5")
        sets = [pool[rng.integers(len(pool), size=5)].mean(axis=0) - pool.mean(axis=0) for _ in range(100)]
        null = np.arctanh([cosine(one, direction) for one in sets])
        for row in found.rows:
            assert row.similarity is not None
            assert row.z == pytest.approx(float((np.arctanh(row.similarity) - null.mean()) / null.std(ddof=1)), abs=1e-4)

    def test_adjusted_p_counts_every_component_searched(self, atlas: Explorer) -> None:
        found = atlas.search(Query(text="a dot"), top=50)
        p = np.array([row.p for row in found.rows])
        assert [row.adjusted_p for row in found.rows] == pytest.approx(benjamini_hochberg(p).tolist())
        assert atlas.search(Query(text="a dot"), top=2).rows == found.rows[:2]

    def test_everyday_words(self, atlas: Explorer) -> None:
        """A slow loop over words and components: how far each stands out, and the most of each word anywhere."""
        found = atlas.search(Query(text="a dot"), top=50)
        templates, foundation = atlas.plan.spec.templates, atlas.foundation
        empty = foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
        directions = [(foundation.embed_texts(prompts(templates, [word])).astype(np.float64) - empty).mean(axis=0) for word in WORDS]
        z = np.empty((len(found.rows), len(WORDS)))
        for name in atlas.layers:
            pool = atlas.layers[name].null_embeddings.astype(np.float64)
            rng = generator(atlas.plan, "null", name, "5")
            sets = [pool[rng.integers(len(pool), size=5)].mean(axis=0) for _ in range(100)]
            for j, direction in enumerate(directions):
                null = np.array([cosine(one, direction) for one in sets])
                for i, row in enumerate(found.rows):
                    if row.layer == name:
                        own = cosine(meaning(atlas, name, row.component), direction)
                        z[i, j] = (own - null.mean()) / null.std(ddof=1)
        mean, deviation = z.mean(axis=1), z.std(axis=1, ddof=1)
        most = ((z - mean[:, None]) / deviation[:, None]).max(axis=0)
        for i, row in enumerate(found.rows):
            beyond = (float(row.z or 0) - mean[i]) / deviation[i]
            assert row.words == pytest.approx((1 + (most >= beyond).sum()) / (1 + len(WORDS)))
            assert row.significant == ((row.adjusted_p or 0) <= 0.05 and (row.z or 0) >= 3 and row.words <= 0.05)
        assert found.words == 0.05
        assert np.array_equal(word_probes(atlas), word_probes(atlas))
        assert len(set(WORDS)) == len(WORDS) == 199, "with the component itself two hundred"

    def test_what_is_kept_of_words_is_not_trusted_when_damaged(self, atlas: Explorer, plan: AuditPlan) -> None:
        wanted = atlas.search(Query(text="a dot"), top=50)
        folder = Path(plan.audit_file).parent / "store.duckdb.cache"
        files = sorted(folder.glob("*.words"))
        assert len(files) == 3, "the words, and how near each layer is to them"
        good = [file.read_bytes() for file in files]
        for file, content in zip(files, good, strict=True):
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert explore.search(plan, Query(text="a dot"), top=50) == wanted
        assert [file.read_bytes() for file in files] == good

    def test_a_text_with_an_image_is_not_held_against_words(self, atlas: Explorer, image: Path) -> None:
        found = atlas.search(Query(text="a dot", image=image))
        assert found.words is None
        assert {row.words for row in found.rows} == {None}

    def test_sentence(self, atlas: Explorer) -> None:
        found = replace(atlas.search(Query(text="a dot")), near=0, searched=9, tested=9, layers=2)
        assert found.sentence.startswith("Nothing here is significantly near: none of 9\u00a0components in 2\u00a0layers")
        assert replace(found, near=1).sentence.startswith("1 of 9\u00a0components in 2\u00a0layers is significantly near")
        assert replace(found, near=4, tested=4).sentence.startswith("At least 4 of 9")
        assert replace(found, searched=0).sentence == "There is no component to be searched."

    def test_p_is_honest_about_what_few_crops_show(self) -> None:
        """Where two crops in a hundred show something, most sets show it not at all and some several times."""
        rng = np.random.default_rng(0)
        axes = np.eye(24)
        shown = rng.random((2000, 1)) < 0.02
        pool = scores.unit(4.0 * axes[1] + 0.3 * rng.normal(size=(2000, 24)) + np.where(shown, 3.0, 0.0) * axes[0])
        plan = world.plan(Path("nowhere"), world.audit(measurement={"reference_samples": 5, "null_sets": 2000}))
        null = random_sets.RandomSets(plan, "layer", pool).null(axes[0], 20, centred=False)
        assert null.skewness > 0.3
        drawn = pool[rng.integers(len(pool), size=(20000, 20))].mean(axis=1)
        similarity = drawn[:, 0] / np.linalg.norm(drawn, axis=1)
        for level in (0.01, 0.001):
            observed = float((null.p(similarity) <= level).mean())
            assert observed <= 2.0 * level, "about as many random sets come as near as p says"
            assert observed < 0.6 * float((normal_tail(null.z(similarity)) <= level).mean()), "the normal tail is far from that"

class TestRandomSets:
    def test_tail_is_that_of_pearson_type_three(self) -> None:
        from scipy.stats import pearson3

        z = np.array([-5.0, -1.0, 0.0, 1.0, 3.0, 8.0])
        wanted = np.maximum(pearson3.sf(z, 0.8), normal_tail(z))
        assert random_sets.tail(z, 0.8) == pytest.approx(wanted, rel=1e-9)
        assert np.array_equal(random_sets.tail(z, -0.8), normal_tail(z))

    def test_sizes_are_those_of_the_audit(self) -> None:
        counts = np.array([1.0, 2.0, 2.9, 3.0, 17.4, 29.999, 30.0, 31.0, 900.0])
        for usual in (2, 5, 30, 31):
            assert random_sets.set_sizes(counts, usual).tolist() == assignment._rounded(counts, usual).tolist()

    def test_adjustment_takes_the_others_as_certain(self) -> None:
        p = np.array([0.001, 0.02, 0.0001, 0.9])
        slow = benjamini_hochberg(np.concatenate([p, np.ones(46)]))[:4]
        assert random_sets.adjusted(p, 50) == pytest.approx(slow)

    def test_without_scatter_nothing_is_unusual(self) -> None:
        null = random_sets.Null(np.full(50, 0.25), centred=False)
        assert null.z(np.array([0.9])).tolist() == [0.0]
        assert null.p(np.array([0.9])).tolist() == [0.5]

    def test_too_few_crops(self) -> None:
        random = random_sets.RandomSets(world.plan(Path("nowhere")), "layer", np.eye(4, dtype=np.float32))
        with pytest.raises(ValueError, match="4 random crops are too few for sets of 5"):
            random.null(np.ones(4), 5, centred=False)


class TestEverywhere:
    def test_finds_other_indexes_and_says_whose_they_are(self, tmp_path: Path) -> None:
        folder = world.write_world(tmp_path)
        first = world.plan(folder, world.audit(layers=["layer3"]))
        measurement = world.audit()["measurement"] | {"reference_samples": 3}
        world.write_subject(folder / "retrained.safetensors", seed=5)
        subject = world.audit()["subject"]
        model = subject | {"name": "retrained", "model": subject["model"] | {"weights": "retrained.safetensors"}}
        other = world.plan(folder, world.audit(layers=["layer3"], measurement=measurement))
        third = world.plan(folder, world.audit(layers=["layer3"], subject=model))
        for one in (first, other, third):
            index.build(one)
        with Explorer(first) as explorer, Explorer(third) as whose:
            own = explorer.search(Query(text="a dot"), top=50)
            assert {row.index for row in own.rows} == {None}
            found = explorer.search(Query(text="a dot"), top=50, everywhere=True)
            assert [row.similarity for row in found.rows] == sorted((row.similarity for row in found.rows), reverse=True)
            assert found.layers == 3
            mine = [row for row in found.rows if row.index is None]
            of_all = {"adjusted_p": None, "significant": None, "words": None}
            assert [replace(row, **of_all) for row in mine] == [replace(row, **of_all) for row in own.rows]
            assert all((row.words or 0) >= (alone.words or 0) for row, alone in zip(mine, own.rows, strict=True))
            theirs = whose.search(Query(text="a dot"), top=50).rows
            weights = str(whose.evidence.subject["weights_sha256"])[:12]
            seen = [row for row in found.rows if row.model == f"timm resnet18, weights {weights}"]
            kept = ("layer", "component", "similarity", "references", "z", "p")
            assert [{name: getattr(row, name) for name in kept} for row in seen] == [
                {name: getattr(row, name) for name in kept} for row in theirs
            ]
            assert {row.model for row in found.rows} == {"small", "small, with other settings or data", seen[0].model}
            page = explorer.search_page(found)
            assert all(f"index {row.index}" in page for row in found.rows if row.index)
            shown = foreign_card(explorer, explorer._search.other(str(seen[0].index)), seen[0].component)
            assert shown.references == card(whose, "layer3", seen[0].component).references
            assert shown.clarity == card(whose, "layer3", seen[0].component).clarity
            like = explorer.search(Query(like="layer3:0"), top=50, everywhere=True)
            assert like.searched == found.searched - 1

    def test_an_index_from_before_headroom(self, plan: AuditPlan, tmp_path: Path) -> None:
        """Older stages say how many reference samples there are only in the stage of the reference samples."""
        from semlens_audit.foreign_layers import foreign_layers
        from semlens_audit.store import Store

        shutil.copytree(Path(plan.audit_file).parent, tmp_path / "copy")
        with Store.open(tmp_path / "copy" / "store.duckdb") as store:
            for key, inputs in store.rows("SELECT key, inputs FROM stage WHERE name LIKE 'null:%'"):
                older = {name: value for name, value in json.loads(inputs).items() if name != "references"}
                store.execute("UPDATE stage SET inputs = ? WHERE key = ?", (json.dumps(older), key))
            (pool,) = store.rows("SELECT key FROM stage WHERE name = 'foundation'")[0]
            made = [json.loads(text)["m"] for (text,) in store.rows("SELECT inputs FROM stage WHERE name LIKE 'selection:%'")]
            assert [one.declared for one in foreign_layers(store, pool, set())] == made


class TestCards:
    def test_hold_what_the_evidence_holds(self, atlas: Explorer) -> None:
        shown = card(atlas, "layer3", 2, label="dots", facts=(("z", "3"),), references=3)
        source = atlas.layers["layer3"]
        assert [one.sample for one in shown.references] == [atlas.evidence.paths[i] for i in source.reference_ids[2][:3]]
        assert shown.references[1].crop == atlas.thumbnail("layer3", 2, 1)[0]
        assert shown.references[1].overlay == atlas.thumbnail("layer3", 2, 1)[1]
        assert shown.share == {name: float(atlas.shares("layer3")[i, 2]) for i, name in enumerate(atlas.plan.spec.classes)}
        vectors = source.embeddings[2][source.reference_ids[2] >= 0].astype(np.float64)
        pairs = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        assert shown.clarity == pytest.approx(float(np.mean(pairs)), abs=1e-6)
        assert (shown.label, shown.facts, shown.anchor) == ("dots", (("z", "3"),), "component-layer3-2")
        assert shown.labelled(None).stating(("p", "1")).facts == (("z", "3"), ("p", "1"))

    def test_of_a_dead_component(self, atlas: Explorer) -> None:
        shown = card(atlas, "layer1", 1)
        assert shown.references == ()
        assert shown.clarity is None

    def test_names(self, atlas: Explorer) -> None:
        assert component_named(atlas, "layer3:2") == ("layer3", 2)


class TestOutput:
    def test_page(self, atlas: Explorer, image: Path) -> None:
        found = atlas.search(Query(text="<b>dot\u202e</b>", image=image, like="layer1:0", without="skin"), top=4)
        page = atlas.search_page(found)
        assert "<b>dot" not in page
        assert "&lt;b&gt;dot[U+202E]" in page
        assert "<script" not in page
        assert "http" not in page.replace("http-equiv", "")
        assert page.count('<article class="component"') == 4
        assert all(f'href="#component-{row.layer}-{row.component}"' in page for row in found.rows)
        assert page.count("<img ") == page.count('<img class="crop" src="data:image/jpeg;base64,')
        assert 'alt=""' not in page
        assert found.sentence in page
        assert atlas.search_page(found) == page, "the same bytes"

    def test_table_and_json(self, atlas: Explorer, image: Path) -> None:
        found = atlas.search(Query(text="a dot"), top=3)
        first = replace(found.rows[0], z=4.25, adjusted_p=0.0004, words=0.005, significant=True, similarity=0.25)
        found = replace(found, rows=(first, *found.rows[1:]))
        console = Console(file=io.StringIO(), width=120, highlight=False)
        screen.print_found(found, "melanoma", None, image, console)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert lines[0].split()[:7] == ["layer", "component", "similarity", "z", "adj.", "p", "words"]
        assert lines[1].split()[:7] == ["✓", first.layer, str(first.component), "0.250", "4.2", "<0.001", "0.5"]
        assert found.sentence.split(":")[0] in " ".join(lines)
        values = json.loads(json.dumps(screen.found_values(found, None, image), allow_nan=False))
        assert values["components"][0]["adjusted_p"] == 0.0004
        assert values["query"] == {**asdict(found.query), "image": None}
        assert values["files"] == [str(image)]
