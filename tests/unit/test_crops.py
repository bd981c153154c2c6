from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semlens_audit import crops, index, stages
from semlens_audit.attribution_maps import EXACT, Way
from semlens_audit.data import open_data
from semlens_audit.store import Store
from tests.unit import index_world as world


class StopError(Exception):
    """Ends a run in the middle of a layer's crops."""


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(stages, "NULL_CROPS", 40)
    yield
    torch.set_num_threads(before)


def stored(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Digest of the content, and layer -> facts of its crops."""
    with Store.open(folder / "store.duckdb") as store:
        keys = stages.stage_keys(world.plan(folder), open_data(world.plan(folder)))
        return store.content_digest(), {layer: store.stage(keys[f"crops:{layer}"]).facts for layer in world.LAYERS}


def test_a_layer_with_few_references_is_cropped_exactly_and_says_so(tmp_path):
    world.write_world(tmp_path)
    index.build(world.plan(tmp_path))
    _, facts = stored(tmp_path)
    for layer in world.LAYERS:
        assert Way.of(facts[layer]) == EXACT
        assert facts[layer]["heatmap_precision"] == "fp32"
        assert facts[layer]["device"] == "cpu"


def test_the_way_is_settled_once_recorded_and_kept_over_an_interruption(tmp_path, monkeypatch):
    world.write_world(tmp_path / "whole")
    world.write_world(tmp_path / "cut")
    monkeypatch.setattr(crops, "_FEWEST", 1)
    monkeypatch.setattr(crops, "_WIDTH", 4)
    settled: list[tuple[str, np.ndarray]] = []
    way = Way("fp32", 8, -0.75)

    def settle(subject: Any, images: torch.Tensor, layer: str, components: np.ndarray, crop: Any, *, bfloat16: bool) -> Any:
        settled.append((layer, components))
        assert images.shape[1:] == (3, world.SIDE, world.SIDE)
        assert crop == (15, 0.5, 8)
        return way, {"heatmap_cosine": 0.995, "heatmap_iou": 0.97}

    monkeypatch.setattr(crops, "settle", settle)
    index.build(world.plan(tmp_path / "whole"))
    assert [layer for layer, _ in settled] == list(world.LAYERS)
    whole, facts = stored(tmp_path / "whole")
    for layer in world.LAYERS:
        assert Way.of(facts[layer]) == way
        assert facts[layer]["heatmap_iou"] == 0.97

    write, calls = crops._write, 0

    def stopping(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopError
        write(*given)

    with monkeypatch.context() as patched:
        patched.setattr(crops, "_write", stopping)
        with pytest.raises(StopError):
            index.build(world.plan(tmp_path / "cut"))
    settled.clear()
    index.build(world.plan(tmp_path / "cut"))
    assert [layer for layer, _ in settled] == list(world.LAYERS[1:])
    assert stored(tmp_path / "cut")[0] == whole


def test_another_way_gives_other_maps(tmp_path, monkeypatch):
    """The way reaches the pass: a map of a quarter of the side has other boxes somewhere, at a threshold of one half."""
    world.write_world(tmp_path / "one")
    world.write_world(tmp_path / "other")
    index.build(world.plan(tmp_path / "one"))
    monkeypatch.setattr(crops, "_FEWEST", 1)
    monkeypatch.setattr(crops, "settle", lambda *_given, **_named: (Way("fp32", 8, 3.0), {}))
    index.build(world.plan(tmp_path / "other"))
    found = []
    for name in ("one", "other"):
        with Store.open(tmp_path / name / "store.duckdb") as store:
            found.append(store.rows("SELECT component, rank, x0, y0, x1, y1 FROM crop ORDER BY ALL"))
    assert len(found[0]) == len(found[1])
    assert found[0] != found[1]
