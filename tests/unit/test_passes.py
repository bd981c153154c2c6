"""The passes over all samples: what they hold meanwhile, and the threads that their stages keep to."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semlens_audit import index, passes, stages
from semlens_audit.crops import _Crop
from semlens_audit.passes import _References
from semlens_audit.store import Store
from semlens_audit.threads import shared_among
from tests.unit import index_world as world

pytestmark = pytest.mark.usefixtures("one_thread")


class TestReferences:
    def test_merging_takes_no_more_for_many_batches_than_for_few(self) -> None:
        rng = np.random.default_rng(0)

        def batches(count: int) -> list[dict[str, Any]]:
            return [{"pooled": {"layer": rng.normal(size=(64, 300)).astype(np.float32)}} for _ in range(count)]

        def peak(computed: list[dict[str, Any]]) -> int:
            stream = _References("key", 0, "layer", 4, "max", None, {})
            tracemalloc.start()
            stream.write(None, np.arange(64 * len(computed)), computed)  # type: ignore[arg-type]
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        few, many = peak(batches(2)), peak(batches(60))
        assert many < 1.2 * few

    def test_are_the_same_however_many_wait_together(self) -> None:
        rng = np.random.default_rng(1)
        computed = [{"pooled": {"layer": rng.integers(0, 9, (size, 5)).astype(np.float32)}} for size in (7, 7, 7, 2)]
        together, apart = (_References("key", 0, "layer", 6, "max", None, {}) for _ in range(2))
        together.write(None, np.arange(23), computed)  # type: ignore[arg-type]
        first = 0
        for one in computed:
            count = len(one["pooled"]["layer"])
            apart.write(None, np.arange(first, first + count), [one])  # type: ignore[arg-type]
            first += count
        assert together.top is not None
        assert apart.top is not None
        np.testing.assert_array_equal(together.top.ids, apart.top.ids)
        np.testing.assert_array_equal(together.top.values, apart.top.values)


class TestThreads:
    def test_are_those_asked_for_and_then_as_before(self) -> None:
        with shared_among(3):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
        with shared_among(None):
            assert torch.get_num_threads() == 1
        with pytest.raises(KeyError), shared_among(2):
            raise KeyError
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize("work", [passes._Forward, passes._Attribute, _Crop], ids=["forward", "relevance", "crops"])
    def test_a_stage_that_was_begun_goes_on_with_as_many(
        self, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cut once begun and gone on with by a process of three threads: begun stages keep to one, later ones take three."""
        monkeypatch.setattr(stages, "NULL_CROPS", 40)
        monkeypatch.setattr(passes, "_SECONDS", 0.0)
        plan = world.plan(world.write_world(tmp_path), world.audit(layers=["layer3"]))
        whole, seen = work.compute, list[int]()

        def watched(self: Any, *arguments: Any) -> Any:
            seen.append(torch.get_num_threads())
            if len(seen) == (1 if work is _Crop else 2):  # all crops of this world are one item
                raise KeyboardInterrupt
            return whole(self, *arguments)

        monkeypatch.setattr(work, "compute", watched)
        with pytest.raises(KeyboardInterrupt):
            index.build(plan)
        torch.set_num_threads(3)
        try:
            index.build(plan)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(1)
        assert len(seen) >= 2
        assert set(seen) == {1}
        with Store.open(tmp_path / "store.duckdb") as store:
            begun = {name: store.stage(key).facts.get("threads") for name, key in store.rows("SELECT name, key FROM stage")}  # type: ignore[union-attr]
        order = ("outputs", "references:layer3", "relevance:layer3", "crops:layer3")
        expected = {passes._Forward: (1, 1, 3, 3), passes._Attribute: (1, 1, 1, 3), _Crop: (1, 1, 1, 1)}[work]
        assert tuple(begun[name] for name in order) == expected
