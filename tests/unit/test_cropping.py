from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import semlens_audit._torchvision  # noqa: F401
from semlens_audit.cropping import box, boxes

# isort: split
from torchvision.transforms.functional import gaussian_blur


def slow_box(heat: np.ndarray, blur: int, threshold: float, minimum: int) -> tuple[int, int, int, int]:
    """Slower and simpler: torchvision's blur, then a loop over pixels."""
    size = len(heat)
    kernel = 2 * min(round(blur * size / 224) // 2, size - 1) + 1
    if not heat.any():
        return 0, 0, size, size
    blurred = (
        gaussian_blur(torch.from_numpy(heat.astype(np.float64))[None], kernel)[0].abs().numpy() if kernel > 1 else np.abs(heat)
    )
    kept = [(x, y) for y in range(size) for x in range(size) if blurred[y, x] > threshold * blurred.max()]
    left, right = min(x for x, _ in kept), max(x for x, _ in kept) + 1
    top, bottom = min(y for _, y in kept), max(y for _, y in kept) + 1
    side = min(max(right - left, bottom - top, minimum), size)
    x0 = min(max((left + right - side) // 2, 0), size - side)
    y0 = min(max((top + bottom - side) // 2, 0), size - side)
    return x0, y0, x0 + side, y0 + side


@pytest.mark.parametrize("size", [24, 64, 97])
@pytest.mark.parametrize("blur", [1, 21, 51])
def test_equals_the_slow_oracle(size, blur):
    rng = np.random.default_rng(size + blur)
    heat = np.zeros((6, size, size), dtype=np.float32)
    for one in heat:
        for _ in range(3):
            one[rng.integers(size), rng.integers(size)] = rng.normal()
    for threshold in (0.05, 0.4):
        found = boxes(heat, blur, threshold, 8)
        assert found.dtype == np.int32
        assert found.tolist() == [list(slow_box(one, blur, threshold, 8)) for one in heat]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 20, 20), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(1, 501),
    st.floats(0.001, 0.999),
    st.integers(1, 40),
)
def test_boxes_are_inside_square_not_empty_and_independent_of_the_batch(heat, blur, threshold, minimum):
    found = boxes(heat, blur, threshold, minimum)
    for one, (x0, y0, x1, y1) in zip(heat, found.tolist(), strict=True):
        assert 0 <= x0 < x1 <= 20
        assert 0 <= y0 < y1 <= 20
        assert x1 - x0 == y1 - y0 >= min(minimum, 20)
        assert box(one, blur, threshold, minimum) == (x0, y0, x1, y1)


def test_empty_heatmap_gives_the_whole_image_not_a_negative_crop():
    assert boxes(np.zeros((2, 30, 30))).tolist() == [[0, 0, 30, 30]] * 2


def test_only_the_relative_height_counts():
    heat = np.zeros((40, 40), dtype=np.float32)
    heat[10:14, 20:30] = 1.0
    found = box(heat, 9, 0.1, 4)
    assert box(heat * 1e-30, 9, 0.1, 4) == found
    assert box(heat * 1e30, 9, 0.1, 4) == found
    assert box(-heat, 9, 0.1, 4) == found


def test_box_holds_the_place_of_the_relevance():
    heat = np.zeros((224, 224), dtype=np.float32)
    heat[30:50, 150:200] = 1.0
    x0, y0, x1, y1 = box(heat)
    assert x0 <= 150
    assert x1 >= 200
    assert y0 <= 30
    assert y1 >= 50
    assert x1 - x0 < 120
