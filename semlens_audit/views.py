"""What the network sees of each sample, decoded once for all passes: kept as 8-bit RGB in a file that vanishes with the process.

Torch is imported only once network inputs are asked for.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from semlens_audit.data import DataSet
from semlens_audit.images import read_image
from semlens_audit.plan import Preprocessing
from semlens_audit.subject import make_view

if TYPE_CHECKING:
    import torch

__all__ = ["Views", "normalised"]

_MOST = 16 << 30
_PART_OF_DISK = 0.25


class Views:
    """The view of every sample, see `semlens_audit.subject.make_view`; any thread may ask.

    A view that was made once is read back from a file without a name: nothing is left behind, whatever ends the process, and what the
    file holds is no memory of the process. JPEG's own scaling is not used: it gives other pixels than decoding and resizing.

    Parameters
    ----------
    data
        The samples.
    preprocessing
        Geometry of the view.
    folder
        Where the file is made; the system's folder for temporary files where this one cannot be written to.
    limit
        Bytes of the file; default: a quarter of what is free there, at most 16 GiB. Views beyond it are made whenever they are asked for.
    """

    def __init__(self, data: DataSet, preprocessing: Preprocessing, folder: Path, *, limit: int | None = None) -> None:
        self._data, self._preprocessing = data, preprocessing
        self._bytes = 3 * preprocessing.size**2
        self._file = _unnamed(folder)
        self._closing = weakref.finalize(self, os.close, self._file)
        if limit is None:
            limit = min(_MOST, int(_PART_OF_DISK * _free(folder)))
        self._kept = np.zeros(min(len(data.samples), max(0, limit) // self._bytes), dtype=bool)
        self._full = threading.Event()

    @property
    def kept(self) -> int:
        """Views in the file."""
        return int(self._kept.sum())

    def __getitem__(self, sample: int) -> np.ndarray:
        """(S, S, 3) uint8 of the sample with that id; not to be written to.

        Raises
        ------
        DataError
            The image cannot be read.
        """
        side = self._preprocessing.size
        keeps = sample < len(self._kept)
        if keeps and self._kept[sample]:
            found = os.pread(self._file, self._bytes, sample * self._bytes)
            if len(found) == self._bytes:
                return np.frombuffer(found, dtype=np.uint8).reshape(side, side, 3)
        return self.keep(sample, read_image(self._data.file(self._data.samples[sample])))

    def keep(self, sample: int, image: Image.Image) -> np.ndarray:
        """The view of a sample that was decoded for another purpose: made, kept, and given."""
        pixels = np.asarray(make_view(image, self._preprocessing))
        if sample < len(self._kept) and not self._full.is_set():
            try:
                written = os.pwrite(self._file, pixels.tobytes(), sample * self._bytes)
            except OSError:  # a full disk: the file saves time, and nothing depends on it
                self._full.set()
            else:
                self._kept[sample] = written == self._bytes
        return pixels

    def picture(self, sample: int) -> Image.Image:
        """The same as an RGB image."""
        return Image.fromarray(self[sample])

    def inputs(self, samples: Sequence[int], rows: int | None = None) -> torch.Tensor:
        """(rows, 3, S, S) float32 network inputs, see `normalised`; more rows than samples repeat the last one."""
        views = [self[sample] for sample in samples]
        return normalised(np.stack(views + views[-1:] * ((rows or len(views)) - len(views))), self._preprocessing)


def normalised(views: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Network inputs, channels last in memory: pixel values in 0 to 1, minus mean, over standard deviation.

    The same numbers to the bit as `semlens_audit.subject.normalise` gives, in the order in which convolutions are quickest.

    Parameters
    ----------
    views
        (n, S, S, 3) uint8.
    preprocessing
        Mean and standard deviation per channel.

    Returns
    -------
    torch.Tensor
        (n, 3, S, S) float32.
    """
    import torch

    count, height, width, _ = views.shape
    # In memory as PyTorch aligns it: of some kernels the last bits depend on that.
    result = torch.empty(views.shape)
    pixels = result.numpy().reshape(count * height, width * 3)
    pixels[:] = views.reshape(pixels.shape)
    pixels /= np.float32(255.0)
    pixels -= np.tile(np.asarray(preprocessing.mean, dtype=np.float32), width)
    pixels /= np.tile(np.asarray(preprocessing.std, dtype=np.float32), width)
    return result.permute(0, 3, 1, 2)


def _unnamed(folder: Path) -> int:
    """Descriptor of a file without a name."""
    try:
        return _made(folder)
    except OSError:
        return _made(None)


def _made(folder: Path | None) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return shutil.disk_usage(tempfile.gettempdir()).free
