from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semlens_audit.errors import DataError
from semlens_audit.image_parts import image_part


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_part_holds_the_pixels_inside_its_box(file: Path) -> None:
    whole = np.asarray(image_part(file, None))
    assert whole.shape == (20, 30, 3)
    assert np.array_equal(np.asarray(image_part(file, [3, 2, 30, 20])), whole[2:20, 3:30])


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 31, 5), (0, 0, 5, 21), (5, 0, 5, 5), (0, 6, 5, 5)])
def test_a_box_outside_names_where_it_is_written(file: Path, box: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError) as caught:
        image_part(file, box)
    (problem,) = caught.value.problems
    assert (problem.slug, problem.file) == ("box-outside-image", str(file))
    assert "30 x 20 pixels" in problem.message
    with pytest.raises(DataError) as caught:
        image_part(file, box, name="a.png", hint="Mend it.", file="words.csv", line=4)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.hint) == ("words.csv", 4, "Mend it.")
    assert "not inside a.png" in problem.message
