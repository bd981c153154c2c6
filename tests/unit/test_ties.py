"""Reference samples that tie, components that are parts of others, and what the pages about them let a reader do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semlens_audit import ties
from semlens_audit.atlas import origins
from semlens_audit.wording import format_share
from tests import documentation, pictures


def test_tied_reference_samples_are_counted() -> None:
    ids = np.array([[0, 1, 2], [0, 1, 2], [4, 7, -1], [-1, -1, -1], [3, 5, 9], [0, 1, 2]])
    values = np.array([[6.0, 6.0, 6.0], [6.0, 6.0, 5.9], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    assert ties.tied(ids, values) == 2
    assert ties.tied(ids[:, :1], values[:, :1]) == 0


@pytest.mark.parametrize(
    ("selection", "pooling", "mended"), [("activation", "max", True), ("activation", "mean", False), ("relevance", "max", False)]
)
def test_a_remark_says_which_layers_and_what_to_do(selection: str, pooling: str, mended: bool) -> None:
    ids, values = np.array([[0, 1], [2, 3]]), np.array([[6.0, 6.0], [6.0, 5.0]])
    last: Any = SimpleNamespace(layer="last", reference_ids=ids, activations=values, components=2)
    first: Any = SimpleNamespace(layer="first", reference_ids=ids[:1], activations=np.array([[2.0, 1.0]]), components=1)
    settings: Any = SimpleNamespace(selection=selection, pooling=pooling)
    assert ties.tied_of([last, first]) == {"last": (1, 2)}
    said = ties.remark(ties.tied_of([last, first]), settings)
    assert "1 of 2\u00a0components of last" in said
    assert f"the same {selection}" in said
    assert ("`pooling: mean`" in said) is mended
    assert "first" not in said
    assert ties.remark(ties.tied_of([first]), settings) == ""


def test_a_virtual_neuron_names_its_component(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Any = SimpleNamespace(audit=SimpleNamespace(subject=SimpleNamespace(virtual_neurons=[])))
    assert origins.origin(plan, "layer3", 70) is None
    plan.audit.subject.virtual_neurons = [SimpleNamespace(layer="layer3", file="layer3.safetensors")]
    said = SimpleNamespace(layer="layer3", width=64, splits=(SimpleNamespace(component=2), SimpleNamespace(component=49)))
    monkeypatch.setattr(origins, "resolve", lambda _, file: Path(file))
    monkeypatch.setattr(origins, "read_splitting", lambda _: SimpleNamespace(splitting=said))
    units = "layer3.virtual.units"
    assert [origins.origin(plan, units, place) for place in (0, 63, 64, 67, 68)] == [
        None,
        None,
        "first of two virtual neurons of component 2 of layer3",
        "second of two virtual neurons of component 49 of layer3",
        None,
    ]


def test_small_shares_keep_a_digit() -> None:
    assert [format_share(share).replace("\u00a0", " ") for share in (0.0, 0.0004, 0.0012, 0.123)] == ["0.0 %", "0.04 %", "0.1 %", "12.3 %"]


def test_a_page_says_what_to_write_and_to_run(tmp_path: Path) -> None:
    text = (
        "```yaml\n# a/one.yaml\nlayers: [x]\nsubject: {name: n, version: 1}\n```\n\n```yaml\nloose: [1]\n```\n"
        "```yaml\n# a/two.yaml: as a/one.yaml, but\nsubject: {version: 2}\nlayers: [y, z]\n```\n"
        "```console\n$ tool run 'a b'\nprinted\n```\n"
    )
    found = documentation.steps(text)
    assert [step.file for step in found] == ["a/one.yaml", "a/two.yaml", ""]
    assert documentation.console(text) == [("tool", "run", "a b")]
    for step in found[:2]:
        step.write(tmp_path)
    two = documentation.yaml.safe_load((tmp_path / "a/two.yaml").read_text())
    assert two == {"layers": ["y", "z"], "subject": {"name": "n", "version": 2}}


def test_every_picture_is_there_is_small_and_shows_a_command_of_the_pages() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in documentation.PAGES}
    shown = {name for text in texts.values() for name in documentation.re.findall(r"!\[[^\]]{20,}\]\(([\w-]+)\.webp\)", text)}
    assert shown == {picture.name for picture in pictures.PICTURES}
    files = list(documentation.FOLDER.glob("*.webp"))
    assert {file.stem for file in files} == shown
    assert all(file.stat().st_size <= pictures.LARGEST for file in files)
    assert sum(file.stat().st_size for file in files) <= 1_500_000
    commands = [step.command for text in texts.values() for step in documentation.steps(text) if step.words]
    for picture in pictures.PICTURES:
        begin = f"semlens-audit {documentation.shlex.join(documentation.shlex.split(picture.command))}"
        assert any(command.startswith(begin) for command in commands), picture.name
        assert not picture.page or any(f"--html {picture.page}" in command for command in commands if command.startswith(begin))


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in (*documentation.PAGES, documentation.ROOT / "README.md"):
        for target in documentation.re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
