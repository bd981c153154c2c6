"""What a class rests on, against slow loops; groups of what looks alike; tables, JSON and page; the picture of the graph."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from semlens_audit import cli, scores
from semlens_audit.atlas.description import Description, describe, description_values
from semlens_audit.atlas.description_pages import description_page
from semlens_audit.atlas.description_words import direction, sentences
from semlens_audit.atlas.graph import AttributionGraph, Edge, Node
from semlens_audit.atlas.graph_figure import draw_graph, graph_sentence
from semlens_audit.atlas.likeness import alike, clear_components, likeness
from semlens_audit.atlas.opening import Atlas
from semlens_audit.errors import UsageError
from semlens_audit.figures import PAPER
from semlens_audit.plan import AuditPlan
from semlens_audit.spec import read_plan
from tests.unit import index_world as world

runner = CliRunner()


# -- likeness


def slow_groups(vectors: np.ndarray, least: float) -> set[frozenset[int]]:
    """Average linkage, one pair of groups at a time."""
    groups = [[place] for place in range(len(vectors))]
    cosine = vectors @ vectors.T
    while len(groups) > 1:
        nearest = max(combinations(range(len(groups)), 2), key=lambda pair: np.mean(cosine[np.ix_(groups[pair[0]], groups[pair[1]])]))
        if np.mean(cosine[np.ix_(groups[nearest[0]], groups[nearest[1]])]) < least:
            break
        groups[nearest[0]] += groups.pop(nearest[1])
    return {frozenset(group) for group in groups}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 9), least=st.floats(0.05, 1.0))
def test_groups_equal_those_of_a_slow_loop(seed: int, count: int, least: float) -> None:
    vectors = scores.unit(np.random.default_rng(seed).normal(size=(count, 3)))
    found = alike(vectors, least)
    assert {frozenset(group.tolist()) for group in found} == slow_groups(vectors, least) - {frozenset()}
    assert [group[0] for group in found] == sorted(group[0] for group in found)


def test_likeness_weighs_pairs_by_their_shares() -> None:
    vectors, share = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0.5, 0.3, 0.2])
    pairs = [(0, 1, 0.0), (0, 2, 1.0), (1, 2, 0.0)]
    weights = [share[a] * share[b] for a, b, _ in pairs]
    assert likeness(vectors, share) == pytest.approx(np.average([cosine for *_, cosine in pairs], weights=weights))
    assert likeness(vectors[:1], share[:1]) is None


@pytest.mark.parametrize(("signed", "said"), [(1.0, "for x"), (-0.9, "against x"), (0.5, "mostly for x"), (-0.1, "both for and against x")])
def test_direction(signed: float, said: str) -> None:
    assert direction(signed, "x") == said


# -- an audit


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    with world.indexed(tmp_path_factory.mktemp("description"), 60) as made:
        yield made


@pytest.fixture(scope="module")
def atlas(plan: AuditPlan) -> Iterator[Atlas]:
    with Atlas(plan) as opened:
        yield opened


def run_that_assigned(atlas: Atlas, layer: str, assigned: dict[int, str]) -> Any:
    """What a description reads of a record."""
    components = [SimpleNamespace(component=k, assigned=assigned.get(k)) for k in range(atlas.layers[layer].components)]
    place = SimpleNamespace(layer=layer, class_name="melanoma", components=components, unexplained=None)
    return SimpleNamespace(created="2026-01-01T00:00:00+00:00", class_layers=[place])


def test_components_equal_a_slow_loop(atlas: Atlas) -> None:
    (layer,) = describe(atlas, "nevus", layers=["layer3"]).layers
    source, evidence = atlas.layers["layer3"], atlas.evidence
    relevance = source.relevance[evidence.labels == 0, 1].astype(np.float64)
    share = np.mean([np.abs(row) / np.abs(row).sum() for row in relevance], axis=0)
    order = np.argsort(-share, kind="stable")
    assert [one.component for one in layer.described] == order[: layer.grouped].tolist()
    assert [one.share for one in layer.described] == pytest.approx(share[order][: layer.grouped])
    assert [one.cumulative for one in layer.described] == pytest.approx(np.cumsum(share[order])[: layer.grouped])
    signed = relevance.mean(axis=0) / np.abs(relevance).mean(axis=0)
    assert [one.signed for one in layer.described] == pytest.approx(signed[order][: layer.grouped], abs=1e-6)
    for part, number in layer.carriers:
        assert np.sort(share)[::-1][:number].sum() >= part > np.sort(share)[::-1][: number - 1].sum()
    assert layer.samples == (evidence.labels == 0).sum()


def test_every_grouped_component_is_in_exactly_one_group(atlas: Atlas) -> None:
    record = run_that_assigned(atlas, "layer3", {0: "ruler", 2: "ruler", 3: "border"})
    for words in (None, ["a ruler", "a border", "a lesion", "hair"]):
        found = describe(atlas, "melanoma", layers=["layer3"], record=record, words=words, vocabulary="mine", likeness=0.3)
        (layer,) = found.layers
        members = sorted(number for group in layer.groups for number in group.components)
        assert members == sorted(one.component for one in layer.described)
        assert sum(group.share for group in layer.groups) == pytest.approx(layer.grouped_share)
        roles = {group.concept: group.role for group in layer.groups if group.kind == "concept"}
        assert set(roles) <= {"ruler", "border"}
        assert roles.get("ruler", "spurious") == "spurious"
        assert sum(layer.roles.values()) == pytest.approx(1.0)
        assert [group.kind for group in layer.groups].count("unclear") <= 1
        nameless = [number for group in layer.groups if group.kind in ("alike", "unclear") for number in group.components]
        assert all(layer.component(number).concept is None and layer.component(number).label is None for number in nameless)


def test_clear_means_clearer_than_random_sets(atlas: Atlas) -> None:
    source = atlas.layers["layer3"]
    clarity, clear = clear_components(atlas, "layer3", np.arange(source.components))
    for component in range(source.components):
        vectors = source.embeddings[component].astype(np.float64)
        pairs = [float(a @ b) for a, b in combinations(vectors, 2)]
        assert clarity[component] == pytest.approx(np.mean(pairs), abs=1e-5)
    pool, rng = source.null_embeddings.astype(np.float64), np.random.default_rng(0)
    drawn = [np.mean([float(a @ b) for a, b in combinations(pool[rng.integers(len(pool), size=5)], 2)]) for _ in range(400)]
    limit = np.quantile(drawn, 0.95)
    sure = [component for component in range(source.components) if abs((clarity[component] or 0.0) - limit) > 0.02]
    assert [bool(clear[component]) for component in sure] == [(clarity[component] or 0.0) > limit for component in sure]
    dead, whether = clear_components(atlas, "layer1", np.array([1]))
    assert (dead, whether.tolist()) == ([None], [False])


def test_what_is_wrong_is_said(atlas: Atlas) -> None:
    for value in (0.0, 1.1, -0.5, float("nan")):
        with pytest.raises(UsageError) as caught:
            describe(atlas, "melanoma", likeness=value)
        assert caught.value.slug == "bad-likeness"


def test_without_a_run_nothing_is_called_explained(atlas: Atlas) -> None:
    found = describe(atlas, "melanoma")
    assert found.run is None
    assert all(not layer.roles and layer.unexplained is None for layer in found.layers)
    assert any("No run" in sentence for sentence in sentences(found.layers[0], "melanoma", run=False))
    assert {group.kind for layer in found.layers for group in layer.groups} <= {"alike", "unclear"}


# -- what is shown


def test_values_are_json_with_a_version(atlas: Atlas) -> None:
    values = json.loads(json.dumps(description_values(describe(atlas, "melanoma"))))
    assert (values["document"], values["version"], values["class_name"]) == ("class-description", 1, "melanoma")
    assert [layer["layer"] for layer in values["layers"]] == ["layer1", "layer3"]
    first = values["layers"][0]["described"][0]
    assert set(first) == {"component", "share", "cumulative", "signed", "clarity", "clear", "concept", "label", "references"}


def graph_of_two_layers() -> AttributionGraph:
    return AttributionGraph(
        "melanoma",
        ("layer1", "layer3"),
        {
            "layer1": (Node("layer1", 0, 0.5), Node("layer1", 2, 0.2)),
            "layer3": (Node("layer3", 4, 0.4, 0.8, 5, 0.9), Node("layer3", 5, 0.3, None, 0, 0.0)),
        },
        {"layer3": (Edge(2, 4, 0.6, 0.5, 0.7), Edge(0, 4, -0.3, -0.4, -0.2))},
        {"layer3": "lrp"},
        0.95,
        2,
        4,
        "cpu",
    )


def test_the_page_shows_groups_pictures_and_graph_and_asks_for_nothing(atlas: Atlas) -> None:
    record = run_that_assigned(atlas, "layer3", {0: "ruler", 2: "ruler"})
    found = describe(atlas, "melanoma", record=record, words=["<b>a & b</b>"], vocabulary="<i>mine</i>")
    page = description_page(atlas, found, graph_of_two_layers())
    assert page.count("<h1>") == 1
    assert "What feeds what" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;mine&lt;/i&gt;" in page
    assert "picture:" not in page
    assert page.count('class="crop"') > 10
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    images = re.findall(r"<img [^>]*>", page)
    assert all('alt="' in image and 'alt=""' not in image for image in images)
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert description_page(atlas, found, graph_of_two_layers()) == page


def test_the_picture_of_a_graph_says_what_it_shows() -> None:
    graph, names = graph_of_two_layers(), {("layer3", 4): 'a "ruler" & <more>', ("layer1", 2): "marks"}
    figure = draw_graph(graph, PAPER, names, {("layer3", 4): b"jpeg"})
    root = ElementTree.fromstring(figure.svg)
    paths = [one for one in root.iter() if one.tag.endswith("path")]
    assert len(paths) == 2
    widths = [float(re.search(r"stroke-width:([\d.]+)", one.attrib["style"])[1]) for one in paths]  # type: ignore[index]
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=0.05)
    assert ["stroke-dasharray" in one.attrib["style"] for one in paths] == [True, False]
    assert [one.attrib["href"] for one in root.iter() if one.tag.endswith("image")] == ["data:image/jpeg;base64,anBlZw=="]
    assert figure.alt == graph_sentence(graph, names)
    assert "component 4 of layer3" in figure.alt
    assert "component 2 of layer1 (marks) (60" in figure.alt
    for one in root.iter():
        if one.tag.endswith("rect"):
            assert 0 <= float(one.attrib["x"]) <= float(one.attrib["x"]) + float(one.attrib["width"]) <= figure.width


def test_the_command_prints_tables_json_and_a_page(plan: AuditPlan, tmp_path: Path) -> None:
    audit, page = plan.audit_file, tmp_path / "page.html"
    read_plan(Path(audit))
    done = runner.invoke(cli.app, ["describe", audit, "melanoma", "--quiet", "--top", "3", "--layer", "layer3", "--graph"])
    assert done.exit_code == 0, done.output
    assert "carry 80" in done.stdout
    assert "is fed by" in done.stdout
    done = runner.invoke(cli.app, ["describe", audit, "melanoma", "--quiet", "--json", "--graph", "--html", str(page)])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["graph"]["document"] == "attribution-graph"
    assert values["graph"]["layers"] == ["layer1", "layer3"]
    assert values["files"] == [str(page)]
    assert "What the decision for melanoma rests on" in page.read_text()
    for wrong, slug in ((["nonesuch"], "unknown-class"), (["melanoma", "--layer", "layer9"], "unknown-layer")):
        done = runner.invoke(cli.app, ["describe", audit, *wrong])
        assert done.exit_code == 2
        assert slug in done.output


def test_a_description_has_no_state(atlas: Atlas) -> None:
    first, again = (describe(atlas, "melanoma", words=["a ruler"], vocabulary="one") for _ in range(2))
    assert isinstance(first, Description)
    assert first == again
