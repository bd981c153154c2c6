from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semlens_audit import explore, foundation, index
from semlens_audit.data import open_data
from semlens_audit.errors import StoreError, UsageError
from semlens_audit.evidence import Evidence
from semlens_audit.plan import AuditPlan
from semlens_audit.store import Store
from tests.unit import index_world as world


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    with world.indexed(tmp_path_factory.mktemp("explore")) as made:
        yield made


@pytest.fixture
def evidence(plan: AuditPlan) -> Iterator[Evidence]:
    with Store.open(Path(plan.audit_file).parent / "store.duckdb", read_only=True) as store:
        found = index.load_evidence(plan, open_data(plan), store)
        assert found is not None
        yield found


class TestComponents:
    def test_are_ordered_by_their_share_of_the_class(self, plan: AuditPlan, evidence: Evidence) -> None:
        rows = explore.components(plan, layer="layer3", class_name="nevus", top=4)
        layer = evidence.layers[1]
        magnitude = np.abs(layer.relevance[evidence.labels == 0, 1].astype(np.float64))
        share = np.mean([row / row.sum() for row in magnitude if row.sum() > 0], axis=0)
        assert [row.component for row in rows] == np.argsort(-share, kind="stable")[:4].tolist()
        assert [row.share["nevus"] for row in rows] == pytest.approx(np.sort(share)[::-1][:4].tolist())
        first = rows[0].references[0]
        assert first.sample == evidence.paths[layer.reference_ids[rows[0].component, 0]]
        assert first.box == tuple(layer.boxes[rows[0].component, 0].tolist())
        assert all(row.similarity is None for row in rows)

    def test_without_a_layer_lists_each(self, plan: AuditPlan) -> None:
        rows = explore.components(plan, top=2)
        assert [row.layer for row in rows] == ["layer1", "layer1", "layer3", "layer3"]
        every = explore.components(plan, layer="layer1", top=99)
        assert {row.component: row.dead for row in every} == {k: k == 1 for k in range(4)}
        assert next(row for row in every if row.dead).references == ()

    def test_unknown_names(self, plan: AuditPlan) -> None:
        with pytest.raises(UsageError) as caught:
            explore.components(plan, layer="layer9")
        assert caught.value.slug == "unknown-layer"
        with pytest.raises(UsageError) as caught:
            explore.components(plan, class_name="wart")
        assert caught.value.slug == "unknown-class"

    def test_without_an_index(self, plan: AuditPlan, tmp_path: Path) -> None:
        with pytest.raises(StoreError) as caught:
            explore.components(world.plan(world.write_world(tmp_path)))
        assert caught.value.slug == "store-missing"
        other = world.plan(Path(plan.audit_file).parent, world.audit(seed=77))
        with pytest.raises(StoreError) as caught:
            explore.components(other)
        assert caught.value.slug == "index-incomplete"


class TestShares:
    def test_shares_are_kept_beside_the_store_and_not_trusted_when_damaged(self, plan: AuditPlan) -> None:
        wanted = explore.components(plan, top=9)
        folder = Path(plan.audit_file).parent / "store.duckdb.cache"
        files = sorted(folder.glob("*.shares"))
        assert len(files) == 2
        for file in files:
            good = file.read_bytes()
            for content in (good[:-1] + bytes([good[-1] ^ 1]), good[:40], b""):
                file.write_bytes(content)
                assert explore.components(plan, top=9) == wanted
                assert file.read_bytes() == good

    def test_shares_of_relevance_that_was_computed_anew_are_computed_anew(self, plan: AuditPlan, tmp_path: Path) -> None:
        shutil.copytree(Path(plan.audit_file).parent, tmp_path / "copy")
        copy = world.plan(tmp_path / "copy")
        before = explore.components(copy, top=9)
        with Store.open(tmp_path / "copy" / "store.duckdb") as store:
            keys = index.evidence_stages(copy, open_data(copy, store.file_digest), store)
            stage = store.stage(keys["relevance:layer1"])
            assert stage is not None
            store.execute(
                "UPDATE relevance SET relevance = list_transform(relevance, lambda x, i: CAST(i AS FLOAT)) WHERE stage = ?",
                (stage.key,),
            )
            store.finish(stage.key, stage.facts)
        after = explore.components(copy, top=9)
        assert [row.share for row in after if row.layer == "layer1"] != [row.share for row in before if row.layer == "layer1"]
        assert [row for row in after if row.layer == "layer3"] == [row for row in before if row.layer == "layer3"]


class TestQuery:
    def test_a_query_has_the_same_bytes_whether_or_not_the_process_has_indexed(
        self, plan: AuditPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        def query() -> tuple[np.ndarray, np.ndarray]:
            with explore.Explorer(plan) as explorer:
                return explorer.text_probe("a green dot"), explorer.image_embedding(image)

        def in_a_new_process() -> None:
            torch.backends.mha.set_fastpath_enabled(True)  # what torch begins with

        image = Path(plan.audit_file).parent / "images" / "nevus" / "000.png"
        in_a_new_process()
        alone = query()
        in_a_new_process()
        index.build(world.plan(world.write_world(Path(plan.audit_file).parent / "another", dead=1)))
        after = query()
        in_a_new_process()
        monkeypatch.setattr(foundation, "fix_arithmetic", lambda: None)
        as_it_begins = query()
        for one, other, begun in zip(alone, after, as_it_begins, strict=True):
            assert one.tobytes() == other.tobytes()
            np.testing.assert_allclose(one, begun, atol=1e-5)
        assert any(one.tobytes() != begun.tobytes() for one, begun in zip(alone, as_it_begins, strict=True))  # or this tells nothing
