"""A layer with two units, and with one that is ever active: everything that looks it up answers, or says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semlens_audit import index
from semlens_audit.cli import app
from tests.unit import index_world as world

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = {
    "components": ("components",),
    "search": ("search", "ruler"),
    "like": ("search", "--like", "layer1:0"),
    "label": ("label", "--vocabulary", "dermoscopy"),
    "describe": ("describe", "melanoma"),
    "measures": ("measures",),
    "surprising": ("surprising",),
}


@pytest.fixture(scope="module", params=[None, 1], ids=["two", "one-of-two"])
def audit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("narrow")
    with pytest.MonkeyPatch.context() as patched, world.quick():
        patched.setattr(world, "CHANNELS", (2, *world.CHANNELS[1:]))
        world.write_world(folder, dead=request.param)
        values = world.audit(layers=["layer1"])
        (folder / "audit.yaml").write_text(json.dumps(values))
        index.build(world.plan(folder, values))
        yield folder / "audit.yaml"


def asked(audit: Path, verb: str, *words: str) -> str:
    told = CliRunner().invoke(app, [verb, str(audit), *words, "--json"])
    assert told.exit_code == 0, told.output
    return told.stdout


@pytest.mark.parametrize("name", ASKED)
def test_it_answers(audit: Path, name: str) -> None:
    verb, *words = ASKED[name]
    assert json.loads(asked(audit, verb, *words))


def test_it_is_audited_and_nothing_is_drafted_from_crops_that_have_nothing_in_common(audit: Path) -> None:
    told = CliRunner().invoke(app, ["run", str(audit), "--quiet"])
    assert told.exit_code in (0, 1, 3, 4), told.output
    told = CliRunner().invoke(app, ["draft", str(audit), "melanoma"])
    assert told.exit_code == 2
    assert "[nothing-to-draft]" in told.output


def test_redundancy_of_a_single_live_unit_is_not_measured(audit: Path) -> None:
    rows = json.loads(asked(audit, "measures"))["rows"]
    found = {row["quantity"]: row for row in rows if row["weighting"] is None}
    alone = found["redundancy"]["dead"] == 1
    assert (found["redundancy"]["measurement"]["value"] is None) is alone
    assert found["clarity"]["measurement"]["value"] is not None


def test_held_against_itself_it_is_matched(audit: Path) -> None:
    told = CliRunner().invoke(app, ["compare", str(audit), str(audit), "--json"])
    assert told.exit_code == 0, told.output
    (layer,) = json.loads(told.stdout)["layers"]
    assert layer["pairs"]
    assert all(pair["first"] == pair["second"] for pair in layer["pairs"])


def test_nothing_is_split_where_one_thing_is_meant(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "units.safetensors"
    words = ["--layer", "layer1", "--out", str(out), "--references", "10", "--smallest", "2", "--polysemanticity", "0.9"]
    told = CliRunner().invoke(app, ["split", str(audit), *words])
    assert told.exit_code == 0, told.output
    assert not out.exists()
