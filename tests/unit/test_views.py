"""Views decoded once: the pixels of a fresh decoding, whoever asks and however much is kept; inputs to the bit."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from semlens_audit import views as module
from semlens_audit.data import DataSet, open_data, read_image
from semlens_audit.errors import DataError
from semlens_audit.plan import Preprocessing
from semlens_audit.subject import make_view, normalise
from semlens_audit.views import Views, normalised
from tests.unit import index_world as world

SHAPE = Preprocessing(resize=36, size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BYTES = 3 * 32 * 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_data(world.plan(world.write_world(tmp_path_factory.mktemp("world"))))


def fresh(data: DataSet, sample: int) -> np.ndarray:
    return np.asarray(make_view(read_image(data.file(data.samples[sample])), SHAPE))


class TestViews:
    @pytest.mark.parametrize("limit", [None, 0, 5 * BYTES, -1])
    def test_are_those_of_a_fresh_decoding(self, data: DataSet, tmp_path: Path, limit: int | None) -> None:
        views = Views(data, SHAPE, tmp_path, limit=limit)
        for _ in range(2):
            for sample in range(len(data.samples)):
                np.testing.assert_array_equal(views[sample], fresh(data, sample))
        assert views.kept == (len(data.samples) if limit is None else max(0, limit) // BYTES)
        np.testing.assert_array_equal(np.asarray(views.picture(3)), fresh(data, 3))

    def test_are_decoded_once(self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        views, read = Views(data, SHAPE, tmp_path), []
        monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or read_image(path))
        for _ in range(3):
            views.inputs(range(4), 8)
        assert len(read) == 4
        views.keep(4, read_image(data.file(data.samples[4])))
        np.testing.assert_array_equal(views[4], fresh(data, 4))
        assert len(read) == 4

    def test_leave_nothing_behind(self, data: DataSet, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else None
        views = Views(data, SHAPE, tmp_path)
        _ = views[0]
        assert list(tmp_path.iterdir()) == []
        del views
        if before is not None:
            assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_of_a_folder_that_cannot_be_written_to_go_elsewhere(self, data: DataSet, tmp_path: Path) -> None:
        views = Views(data, SHAPE, tmp_path / "not there", limit=10 * BYTES)
        np.testing.assert_array_equal(views[2], fresh(data, 2))
        assert views.kept == 1

    def test_a_full_disk_costs_time_only(self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        views = Views(data, SHAPE, tmp_path)
        _ = views[0]
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            np.testing.assert_array_equal(views[1], fresh(data, 1))
        np.testing.assert_array_equal(views[0], fresh(data, 0))
        assert views.kept == 1

    def test_a_write_cut_short_is_not_read_back(self, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        views, write = Views(data, SHAPE, tmp_path), os.pwrite
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", lambda file, content, place: write(file, content[:100], place))
            _ = views[1]
        np.testing.assert_array_equal(views[1], fresh(data, 1))

    def test_many_threads_may_ask(self, data: DataSet, tmp_path: Path) -> None:
        views, asked = Views(data, SHAPE, tmp_path), [i % len(data.samples) for i in range(200)]
        with ThreadPoolExecutor(8) as pool:
            for sample, found in zip(asked, pool.map(views.__getitem__, asked), strict=True):
                np.testing.assert_array_equal(found, fresh(data, sample))

    def test_a_broken_image_is_named(self, tmp_path: Path) -> None:
        data = open_data(world.plan(world.write_world(tmp_path)))
        data.file(data.samples[3]).write_bytes(b"nothing")
        views = Views(data, SHAPE, tmp_path)
        with pytest.raises(DataError) as caught:
            _ = views[3]
        assert data.samples[3].path in str(caught.value)


class TestInputs:
    def test_are_those_of_the_subject_to_the_bit(self, data: DataSet, tmp_path: Path) -> None:
        views = Views(data, SHAPE, tmp_path)
        found = views.inputs([0, 5, 7], 5)
        assert found.shape == (5, 3, 32, 32)
        assert found.is_contiguous(memory_format=torch.channels_last)
        wanted = [normalise(views.picture(sample), SHAPE) for sample in (0, 5, 7, 7, 7)]
        assert torch.equal(found, torch.stack(wanted))

    def test_of_every_value(self) -> None:
        every = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 16, 16, 3))
        from PIL import Image

        shape = Preprocessing(size=16, mean=(0.5, 0.1, 0.9), std=(0.3, 0.25, 0.7))
        assert torch.equal(normalised(every, shape)[0], normalise(Image.fromarray(np.ascontiguousarray(every[0])), shape))
