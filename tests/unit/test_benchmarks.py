"""The benchmarks against peers: what they compare by is right, and the whole of them still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks import agreement, growth, peer_world, published, scaling, versus
from tests.benchmarks.contenders import CONTENDERS, Clock, Cost, Remote

pytestmark = pytest.mark.usefixtures("one_thread")


def test_intersection_over_union():
    a = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [2, 2, 4, 4]]
    b = [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 8, 8]]
    assert agreement.intersection_over_union(np.array(a), np.array(b)).tolist() == pytest.approx([1, 50 / 150, 0, 4 / 64])


def test_cosines():
    a, b = np.array([[1.0, 0], [3, 4], [1, 1], [0, 0]]), np.array([[0.0, 2], [6, 8], [-1, -1], [1, 0]])
    assert agreement.cosines(a, b).tolist() == pytest.approx([0, 1, -1, 0])


def test_overlaps_ignore_order_and_places_without_a_sample():
    a, b = np.array([[1, 2, 3, 4], [1, 2, -1, -1]]), np.array([[4, 3, 9, 8], [2, 5, -1, -1]])
    assert agreement.overlaps(a, b).tolist() == [0.5, 0.25]


def test_ratios_are_of_runs_that_follow_each_other():
    assert agreement.ratios([10, 30, 80], [1, 10, 10]) == (8, 3, 10)


def test_slope_is_the_exponent():
    sizes = [10.0, 100.0, 1000.0]
    assert agreement.slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert agreement.slope(sizes, [7, 7, 7]) == pytest.approx(0)


def test_published_box_is_that_of_semanticlens():
    heat = torch.zeros(64, 64)
    heat[20:30, 40:42] = 1.0
    box = published.published_box(heat, blur=3, threshold=0.5)
    # rows 20 to 29 are above half of the maximum, columns 40 and 41; the shorter side grows to the longer one's length, less rounding
    assert box == (36, 20, 45, 29)
    render = pytest.importorskip("semanticlens.utils.render", reason="semanticlens is not installed")
    smooth = published.gaussian_blur(heat[None], kernel_size=3)[0].abs()
    rows = render._get_square_crop_box(smooth / smooth.max(), 0.5)
    assert [int(v) for v in rows] == [box[1], box[3], box[0], box[2]]


def test_exact_reference_samples_break_ties_by_the_smaller_id():
    ids, values = peer_world._top(np.array([[1.0, 0.0], [3.0, 5.0], [3.0, 4.0], [2.0, 5.0]], dtype=np.float32), 3)
    assert ids.tolist() == [[1, 2, 3], [1, 3, 2]]
    assert values.tolist() == [[3, 3, 2], [5, 5, 4]]


def test_a_row_says_what_falls_short():
    row = versus.Row("crop + embed, a crop", 0.02, 0.18, (9.0, 8.0, 12.0), None, (0.015, 0.004), "said", (10**9, None))
    assert "| ≥ 10: **falls short**; ≤ 1.5 × the networks alone: fp32 met, bf16 **falls short** |" in row.markdown()
    assert "| 20.0 | 180.0 | 9.0 (8.0–12.0) | – |" in row.markdown()
    assert "| 15.0, 4.00 | 1.3, 5.0 | said | 1.00, – |" in row.markdown()
    slow = versus.Row("activation path, an image", 0.02, None, None, None, (0.01, 0.009), "", (None, None))
    assert "| ≥ 3; ≤ 1.5 × the networks alone: fp32 **falls short**, bf16 **falls short** |" in slow.markdown()


def test_costs_are_by_item():
    assert Cost({"crop": 3.0}, 1.0, {"crop": 6}).each("crop") == 0.5


def test_a_clock_adds_up_a_stage_that_comes_twice_and_keeps_settling_apart():
    clock = Clock()
    for title in ("Arithmetic", "Crops, wide", "Crops, wide"):
        with clock.stage(title, 4) as advance:
            advance(2)
    cost = clock.cost({"crop": ["Crops, wide"]}, {"crop": 8})
    assert clock.items == {"Arithmetic": 2, "Crops, wide": 4}
    assert cost.seconds == {"crop": clock.seconds["Crops, wide"], "settle": clock.seconds["Arithmetic"]}
    assert cost.processor == clock.processor["Crops, wide"]
    assert cost.items == {"crop": 8, "settle": 1}


def test_sections_are_replaced_between_their_marks(tmp_path: Path):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- warm -->\nold\n<!-- end of warm -->\nafter\n")
    versus.write_section("warm", ["| a \\1 |", ""], document)
    versus.write_section("warm", ["| a \\1 |", ""], document)
    assert document.read_text() == "before\n<!-- warm -->\n\n| a \\1 |\n\n<!-- end of warm -->\nafter\n"
    with pytest.raises(ValueError, match="no marks of growth"):
        versus.write_section("growth", [], document)
    for name in versus.PARTS:
        assert f"<!-- {name} -->\n" in versus.README.read_text()


def test_a_contender_of_its_own_process_tells_its_memory(tmp_path: Path):
    peer_world.write(peer_world.QUICK, tmp_path)
    decoding = Remote("decoding", tmp_path)
    cost = decoding.run(0)
    peak, found = decoding.end()
    assert cost.items == {"decode": 2 * peer_world.QUICK.batch}
    assert cost.seconds["decode"] > 0
    assert peak is not None
    assert 10**7 < peak < 4 * 10**8  # without torch
    assert found == {}


def test_all_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = tmp_path / "figures.json"
    versus.main(["--quick", "--repeats", "1", "--json", str(figures)])
    said = capsys.readouterr().out
    found = json.loads(figures.read_text())
    rows = {row["stage"].partition(",")[0]: row for row in found["peers"]}
    assert set(rows) == {"activation path", "crop", "embed", "crop + embed"}
    assert all(row["ours"] > 0 for row in rows.values())
    assert rows["crop + embed"]["ours"] == pytest.approx(rows["crop"]["ours"] + rows["embed"]["ours"])
    assert rows["crop"]["theirs"] > 0
    assert "the same reference samples as all values sorted in single precision: 100.0 %" in rows["activation path"]["said"]
    assert float(rows["crop"]["said"].split("median ")[1].split(",")[0]) >= 0.9
    assert "choosing the arithmetic, once for a store" in rows["activation path"]["said"]
    assert float(rows["embed"]["said"].split("least ")[1].split(";")[0]) >= 0.99
    assert len(found["growth"]) == 4
    assert [row["most"] for row in found["warm"]] == [0.3, 1.0, 0.4]
    assert "| images | 12, 24 |" in said
    assert set(CONTENDERS) == set(versus.NAMES)


def test_curves_are_drawn_small_and_the_same_twice():
    curves = {
        axis: [
            growth.Point(growth.Size(*(value if axis == name else 1 for name in growth.AXES)), value, 2.0, value * 10**6, 10**9)
            for value in values
        ]
        for axis, values in growth.AXES.items()
    }
    drawn = growth.draw(curves)
    assert drawn == growth.draw(curves)
    assert len(drawn) < 100_000
    assert drawn.count("index: exponent 1.00") == 6
    assert drawn.count("measure: exponent 0.00") == 6
    said = growth._table(curves)
    assert said[-1].startswith("Peak memory of the index of 10,000 pictures against 1,000: +900.0 %")


def test_scaling_is_told_by_pass_and_other_bytes_are_told():
    one = scaling.Row(1, 2000, {"Outputs": 10.0, "Crops, layer3": 4.04}, 20.0, 7.5, "a")
    two = scaling.Row(2, 2000, {"Outputs": 5.0, "Crops, layer3": 2.0}, 16.0, 7.7, "a")
    assert scaling.table(one, two)[2:] == [
        "| Outputs | 10.0 | 5.0 | 2.00 |",
        "| Crops, layer3 | 4.0 | 2.0 | 2.02 |",
        "| all passes | 14.0 | 7.0 | 2.01 |",
        "| whole command, 2,000 images | 20.0 | 16.0 | 1.25 |",
        "",
        "Both stores hold the same bytes. Processor time of the process that writes: 7.5 s and 7.7 s.",
    ]
    assert "**other bytes**" in scaling.table(one, replace(two, content="b"))[-1]


def test_without_ray_scaling_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert scaling.compare() == (["Not measured: Ray is not installed."], [])


def test_the_command_line_names_its_parts():
    command = [sys.executable, "-m", "tests.benchmarks.versus", "--help"]
    root = Path(__file__).resolve().parents[2]
    assert "--quick" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
