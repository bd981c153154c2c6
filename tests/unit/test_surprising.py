from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from semlens_audit import index
from semlens_audit.assignment import assign_layer
from semlens_audit.atlas import surprising as module
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.surprising import surprise_values, surprising
from semlens_audit.atlas.surprising_pages import layer_sentences, surprising_page
from semlens_audit.cli import app
from semlens_audit.errors import UsageError
from semlens_audit.execution import Execution
from semlens_audit.flow import Flows
from tests.unit import index_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = index_world.write_world(tmp_path_factory.mktemp("world"))
    index.build(index_world.plan(folder), execution=Execution(device="cpu"))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def atlas(world: Path) -> Iterator[Atlas]:
    with Atlas(index_world.plan(world)) as opened:
        yield opened


@pytest.mark.parametrize("expected", ["declared", "valid"])
@pytest.mark.parametrize("carried", [0.5, 1.0])
def test_surprising_components_are_those_of_slow_loops(
    atlas: Atlas, expected: str, carried: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of random pictures no crops have more in common than chance: which are clear is said here
    clear = {"layer1": {0: 0.9, 2: 0.5, 3: 0.7}, "layer3": {0: 0.3, 1: 0.8, 4: 0.6, 5: 0.9}}

    def said(_atlas: Atlas, layer: str, components: np.ndarray) -> tuple[list[float | None], np.ndarray]:
        values = [clear[layer].get(int(one)) for one in components]
        return values, np.array([value is not None and int(one) != 5 for one, value in zip(components, values, strict=True)])

    monkeypatch.setattr(module, "clear_components", said)
    found = surprising(atlas, "nevus", expected=expected, carried=carried)  # type: ignore[arg-type]
    wanted: set[tuple[str, int]] = set()
    for layer, source in atlas.layers.items():
        share = Flows(atlas.plan, atlas.evidence).of(source, 1).mean
        weights = assign_layer(atlas.plan, atlas.evidence, source).weights
        order, running, relevant = np.argsort(-share, kind="stable"), 0.0, []
        for component in order:
            if running < carried * share.sum() - 1e-12 and share[component] > 0:
                relevant.append(int(component))
            running += float(share[component])
        for component in relevant:
            means = [c.id for c, weight in zip(atlas.plan.spec.concepts, weights[component], strict=True) if weight > 0]
            if expected == "valid":
                means = [one for one in means if atlas.plan.spec.concept(one).role_for("nevus") == "valid"]
            if clear[layer].get(component, 0.0) >= 0.4 and component != 5 and not means:
                wanted.add((layer, component))
        total, counted, _, number, together = found.layers[layer]
        assert (total, counted) == (source.components, len(relevant))
        own = [one for one in found.found if one.layer == layer]
        assert number == len(own)
        assert together == pytest.approx(sum(share[one.component] for one in own))
        for one in own:
            assert one.share == pytest.approx(share[one.component])
            assert one.interval.low <= one.share <= one.interval.high
            assert one.references
    assert {(one.layer, one.component) for one in found.found} == wanted
    assert wanted
    assert [one.share for one in found.found] == sorted((one.share for one in found.found), reverse=True)


def test_clarity_is_asked_of_chance_as_well(atlas: Atlas) -> None:
    everything = surprising(atlas, "melanoma", clarity=-1.0, carried=1.0)
    assert sum(row[2] for row in everything.layers.values()) < sum(row[1] for row in everything.layers.values())
    assert surprising(atlas, "melanoma", clarity=1.0).found == ()


def test_a_dead_component_or_layer_surprises_nobody() -> None:
    assert module._carriers(np.zeros(4), 0.8).tolist() == []
    assert module._carriers(np.array([0.1, 0.0, 0.6, 0.3]), 1.0).tolist() == [0, 2, 3]
    assert module._carriers(np.array([0.1, 0.0, 0.6, 0.3]), 0.6).tolist() == [2]
    assert module._carriers(np.array([0.1, 0.0, 0.6, 0.3]), 0.61).tolist() == [2, 3]


def test_the_verb_prints_a_table_or_json(world: Path, atlas: Atlas) -> None:
    run = CliRunner().invoke
    told = run(app, ["surprising", str(world / "audit.yaml"), "--json", "--clarity", "-1", "--carried", "1", "--class", "nevus"])
    assert told.exit_code == 0, told.output
    values = json.loads(told.stdout)
    assert values == json.loads(json.dumps(surprise_values(surprising(atlas, "nevus", clarity=-1.0, carried=1.0)))) | {"files": []}
    assert values["document"] == "surprising-components"
    shown = run(app, ["surprising", str(world / "audit.yaml"), "--class", "nevus", "--clarity", "-1", "--carried", "1"])
    assert shown.exit_code == 0
    assert "mean nothing expected" in " ".join(shown.output.split())


def test_the_page_shows_every_surprise_with_its_pictures(
    world: Path, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "clear_components", lambda _, __, chosen: ([0.5] * len(chosen), np.ones(len(chosen), dtype=bool)))
    page, run = tmp_path / "page.html", CliRunner().invoke
    asked = ["surprising", str(world / "audit.yaml"), "--class", "nevus", "--clarity", "-1", "--carried", "1", "--html", str(page)]
    told = run(app, [*asked, "--json"])
    assert told.exit_code == 0, told.output
    values = json.loads(told.stdout)
    assert values["files"] == [str(page)]
    text = page.read_text()
    assert len(values["found"]) > 1
    for one in values["found"]:
        assert f'id="component-{one["layer"]}-{one["component"]}"' in text
        assert one["references"][0]["sample"] in text
    for sentence in layer_sentences(surprising(atlas, "nevus", clarity=-1.0, carried=1.0)):
        assert sentence in text
    assert "<script" not in text
    assert str(page) in run(app, [*asked, "--top", "1"]).output.replace("\n", "")
    assert f"and {len(values['found']) - 1} more, each with less relevance" in page.read_text()


def test_a_page_without_surprises_says_so(atlas: Atlas) -> None:
    text = surprising_page(atlas, surprising(atlas, "melanoma", clarity=1.0, expected="valid"))
    assert "No component is surprising" in text
    assert "irregular border" not in text
    assert "The concepts that a decision for the class may rest on: border" in text


@pytest.mark.parametrize(
    ("options", "slug"), [({"carried": 0.0}, "bad-share"), ({"carried": 1.5}, "bad-share"), ({"clarity": 2.0}, "bad-clarity")]
)
def test_settings_without_sense_are_refused(atlas: Atlas, options: dict[str, float], slug: str) -> None:
    with pytest.raises(UsageError) as caught:
        surprising(atlas, "melanoma", **options)  # type: ignore[arg-type]
    assert caught.value.slug == slug
