"""`attribution: auto`: found once for each layer, kept, recorded, and the same as if it had been named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semlens_audit import attribution_pass, chapters, index, stages
from semlens_audit.attribution_choice import Choice
from semlens_audit.comparable import obstacle
from semlens_audit.data import open_data
from semlens_audit.evidence import Evidence
from semlens_audit.plan import AuditPlan, MeasurementSettings
from semlens_audit.records import AuditRecord
from semlens_audit.stages import stage_keys
from semlens_audit.store import Store
from tests.golden.sample_record import sample
from tests.unit import index_world as world

METHODS = ("lrp", "activation_x_gradient")
BOTH = {"layer1": Choice("activation_x_gradient", "made up", 0.1), "layer3": Choice("lrp", "made up too", 1.0)}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with world.quick(20):
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("choice"))


def plan(folder: Path, attribution: str, **measurement: Any) -> AuditPlan:
    audit = world.audit()
    audit["measurement"] |= {"attribution": attribution, "reference_samples": 2, **measurement}
    return world.plan(folder, audit)


def evidence(asked: AuditPlan, store: Store) -> Evidence:
    data = open_data(asked, store.file_digest)
    index.build(asked, data, store)
    found = index.load_evidence(asked, data, store)
    assert found is not None
    return found


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that differs from layer to layer."""
    monkeypatch.setattr(attribution_pass, "choose", lambda model, images, layers: {layer: BOTH[layer] for layer in layers})


@pytest.fixture(scope="module")
def named(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Evidence]]:
    """The evidence under each method by name; it is read while the stores are open."""
    stores = tmp_path_factory.mktemp("named")
    with ExitStack() as opened:
        yield {
            method: evidence(plan(origin, method), opened.enter_context(Store.open(stores / f"{method}.duckdb")))
            for method in METHODS
        }


def same(one: Any, other: Any) -> None:
    assert one.attribution == other.attribution
    assert np.array_equal(one.reference_ids, other.reference_ids)
    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.relevance[:], other.relevance[:])
    assert np.array_equal(one.embeddings, other.embeddings)


def test_each_layer_is_attributed_as_if_its_method_had_been_named(
    origin: Path, tmp_path: Path, forced: None, named: dict[str, Evidence]
) -> None:
    with Store.open(tmp_path / "store.duckdb") as store:
        found = evidence(plan(origin, "auto"), store)
        for position, layer in enumerate(found.layers):
            choice = BOTH[layer.layer]
            assert layer.chosen == (choice.method, choice.reason)
            same(layer, named[choice.method].layers[position])
            assert named[choice.method].layers[position].chosen is None


def test_a_choice_is_kept_to_when_an_interrupted_index_goes_on(
    origin: Path, tmp_path: Path, forced: None, named: dict[str, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store.duckdb") as store:
        with monkeypatch.context() as interrupted:
            interrupted.setattr("semlens_audit.passes.relevance_pass", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                evidence(plan(origin, "auto"), store)

        def never(*_: object) -> dict[str, Choice]:
            raise AssertionError("chosen a second time")

        monkeypatch.setattr(attribution_pass, "choose", never)
        for layer, method in zip(evidence(plan(origin, "auto"), store).layers, ("activation_x_gradient", "lrp"), strict=True):
            assert layer.chosen is not None
            assert layer.chosen[0] == method
            same(layer, named[method].layers[world.LAYERS.index(layer.layer)])


def test_a_layer_more_leaves_the_keys_of_the_others_alone(origin: Path) -> None:
    asked = plan(origin, "auto")
    fewer = asked.model_copy(update={"audit": asked.audit.model_copy(update={"layers": ("layer3",)})})
    data = open_data(asked)
    all_keys, some_keys = stage_keys(asked, data), stage_keys(fewer, data)
    assert {name for name in all_keys if name.startswith("attribution:")} == {"attribution:layer1", "attribution:layer3"}
    assert some_keys == {name: key for name, key in all_keys.items() if not name.endswith(":layer1")}
    assert not any(name.startswith("attribution:") for name in stage_keys(plan(origin, "lrp"), data))


def test_what_a_choice_rests_on_is_among_its_key(origin: Path) -> None:
    asked = plan(origin, "auto")
    parts = stages.stage_inputs(asked, open_data(asked))["attribution:layer1"]
    assert {"subject", "preprocessing", "data", "code", "layer"} <= set(parts)


def test_nothing_is_attributed_by_a_method_that_is_still_open() -> None:
    with pytest.raises(ValueError, match="has not been chosen"):
        _ = MeasurementSettings(attribution="auto").method
    assert MeasurementSettings(attribution="lrp").method == "lrp"


# ---- what a record says of it


def record(*choices: tuple[str, str], setting: str = "auto") -> AuditRecord:
    base = sample("shortcut")
    (layer, *_) = base.layers
    layers = [
        layer.model_copy(update={"layer": f"{layer.layer}{i or ''}", "method": method, "choice": reason or None})
        for i, (method, reason) in enumerate(choices)
    ]
    settings = base.settings.model_copy(update={"attribution": setting})
    concepts = tuple(concept.model_copy(update={"definition_sha256": "0" * 64}) for concept in base.concepts)
    return base.model_copy(update={"layers": tuple(layers), "settings": settings, "concepts": concepts})


def test_the_chapter_on_method_says_what_was_done_in_which_layer() -> None:
    same_everywhere = chapters.method(record(("lrp", "why"), ("lrp", "why")))
    assert same_everywhere.relevance == "layer-wise relevance propagation, Bach et al. 2015"
    mixed = chapters.method(record(("lrp", "one reason"), ("activation_x_gradient", "another")))
    layer = record(("lrp", "")).layers[0].layer
    assert f"in {layer}, layer-wise relevance propagation" in mixed.relevance
    assert f"in {layer}1, activation times gradient" in mixed.relevance
    assert "its activation map" in mixed.heatmap
    cells = [row[3] for row in mixed.layers.rows]
    assert cells[0].endswith("; one reason")
    assert cells[1].endswith("; another")


def test_older_records_that_do_not_tell_the_method_go_by_their_setting() -> None:
    old = record(("lrp", ""), setting="activation_x_gradient")
    old = old.model_copy(update={"layers": tuple(layer.model_copy(update={"method": None}) for layer in old.layers)})
    assert chapters.method(old).relevance == "activation times gradient of the class logit"


def test_naming_the_method_that_was_chosen_before_stays_comparable() -> None:
    auto, explicit = record(("lrp", "why")), record(("lrp", ""), setting="lrp")
    finding = next(one for one in auto.findings if one.line == "mechanistic")
    finding = finding.model_copy(update={"layer": auto.layers[0].layer})
    assert obstacle(auto, explicit, finding, finding) is None
    other = record(("activation_x_gradient", "why"))
    told = obstacle(explicit, other, finding, finding)
    assert told is not None
    assert "attribution lrp, and activation_x_gradient now" in told
