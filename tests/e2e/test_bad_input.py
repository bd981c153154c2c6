"""Bad models and bad images through the real command line: what is wrong, where, what to do, and the exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semlens_audit.yaml_source import load
from tests.conftest import noise_image
from tests.e2e.conftest import Run, SmallAudit, small_audit

NETWORK = """\
import torchvision  # as most code of users does; must not depend on what was imported before
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.first, self.relu, self.head, self.fault = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Linear(8, 2), fault

    def forward(self, x):
        y = self.head(self.relu(self.first(x)).mean((2, 3)))
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.9, y * float("nan"), y) if self.fault == "nan" else y


def make(fault=""):
    torch.manual_seed(0)
    network = Network(fault)
    if fault == "dead":
        with torch.no_grad():
            network.first.weight.zero_()
            network.first.bias.fill_(-1)
    return network
"""


def own_network(folder: Path, fault: str = "") -> SmallAudit:
    """An audit of own code on 12 pictures of noise a class."""
    audit = small_audit(folder)
    (audit.folder / "net.py").write_text(NETWORK)
    for place, name in enumerate(("nevus", "melanoma")):
        (audit.folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            noise_image(100 * place + i).save(audit.folder / "images" / name / f"{i:02d}.png")
    Image.new("RGB", (32, 32), "white").save(audit.folder / "images" / "melanoma" / "11.png")
    audit.audit["subject"]["model"] = {"source": "code", "name": "net.py:make", "arguments": {"fault": fault}}
    audit.audit["subject"]["preprocessing"]["size"] = 32
    audit.audit["layers"] = ["relu"]
    audit.audit["data"] = {"source": "folder", "path": "images"}
    audit.audit["measurement"] |= {"reference_samples": 3, "minimum_spread": 0.0}
    return audit.ask({"id": "c", "kind": "concept_not_used", "concepts": ["ruler"], "criterion": {"at_most": 0.999}})


def test_own_code_may_import_torchvision_itself(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path)
    done = command("index", audit.file, code=2)
    line, column = load(audit.file).places.value(("subject", "model", "name"))
    assert f"audit.yaml:{line}:{column}: " in done.stderr
    assert "--allow-code" in done.stderr
    assert "Index complete" in command("index", audit.file, "--allow-code").stdout


def test_a_model_that_outputs_nan_names_the_sample(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path, "nan")
    done = command("run", audit.file, "--allow-code", code=4)
    assert "[not-finite]" in done.stderr
    assert "melanoma/11.png" in done.stderr
    assert not audit.results.exists()


def test_a_dead_layer_is_not_measured_and_never_a_pass(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path, "dead")
    done = command("run", audit.file, "--allow-code", code=4)
    assert "every component of layer relu is dead" in " ".join(done.stdout.split())
    (finding,) = audit.record()["findings"]
    assert finding["state"] == "not_measured"
    assert finding["measurement"]["value"] is None
    assert audit.record()["layers"][0]["dead"] == 8


def test_an_unknown_layer_stands_at_its_place_in_the_audit(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path)
    audit.audit["layers"] = ["relu", "reluu"]
    done = command("index", audit.write().file, "--allow-code", code=4)
    line, column = load(audit.file).places.value(("layers", 1))
    assert f"audit.yaml:{line}:{column}: The model has no layer 'reluu'. [unknown-layer]" in done.stderr
    assert "Did you mean 'relu'" in done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_image(path: Path) -> None:
    path.write_bytes(b"no image at all")


def huge(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def misnamed(path: Path) -> None:
    path.parent.rename(path.parent.with_name("melanomas"))


def alone(path: Path) -> None:
    shutil.rmtree(path.parent.with_name("nevus"))


@pytest.mark.parametrize(
    ("spoil", "place", "slug"),
    [
        (cut, "images/melanoma/03.png", "truncated-image"),
        (empty, "images/melanoma/03.png", "empty-image"),
        (no_image, "images/melanoma/03.png", "unreadable-image"),
        (huge, "images/melanoma/03.png", "image-too-large"),
        (misnamed, "images/melanomas", "label-mismatch"),
        (alone, "images", "one-class"),
    ],
)
def test_bad_images_and_labels_are_named(
    spoil: Callable[[Path], None], place: str, slug: str, tmp_path: Path, command: Run
) -> None:
    audit = own_network(tmp_path)
    spoil(audit.folder / "images" / "melanoma" / "03.png")
    done = command("index", audit.file, "--allow-code", code=4)
    assert f"{audit.folder / place}: " in done.stderr
    assert f"[{slug}]" in done.stderr


def test_greyscale_rgba_cmyk_turned_and_large_images_are_welcome(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path)
    folder = audit.folder / "images" / "nevus"
    noise_image(1).convert("L").save(folder / "00.png")
    noise_image(2).convert("RGBA").save(folder / "01.png")
    noise_image(3).convert("P").save(folder / "02.png")
    noise_image(4).convert("CMYK").save(folder / "03.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_image(5).save(folder / "04.jpg", exif=exif)
    noise_image(6).resize((4000, 3000)).save(folder / "05.jpg")
    done = command("run", audit.file, "--allow-code", "--json", code=None)
    assert done.returncode in (0, 3), done.stderr
    assert audit.record()["data"]["samples"] == 27
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert outcome["exit_code"] == done.returncode


def test_fewer_samples_than_needed_is_not_measured(tmp_path: Path, command: Run) -> None:
    audit = own_network(tmp_path)
    for path in sorted((audit.folder / "images" / "melanoma").iterdir())[4:]:
        path.unlink()
    done = command("run", audit.file, "--allow-code", code=4)
    assert "4 samples of class melanoma, 10 needed" in " ".join(done.stdout.split())
