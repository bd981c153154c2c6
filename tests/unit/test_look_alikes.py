"""Contrastive crops beside the reference samples: of cards, of JSON, and of a report's component gallery."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from semlens_audit import cli, index, stages
from semlens_audit.atlas.cards import card
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.rows import own_row
from semlens_audit.digest import digest_bytes
from semlens_audit.gallery import illustrate, prune
from semlens_audit.images import read_image
from semlens_audit.picture_budget import within_budget
from semlens_audit.plan import AuditPlan
from semlens_audit.records import ClassLayer, ComponentRecord, ReferenceImage
from semlens_audit.subject import make_view
from semlens_audit.thumbnails import crop_thumbnail
from tests.unit import index_world as world

HEADING = "Contrastive crops, below each: alike, but not what drives it"


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AuditPlan, AuditPlan]]:
    """The same audit with mean and with contrastive concept embeddings, indexed into one store."""
    folder = world.write_world(tmp_path_factory.mktemp("look-alikes"))
    mean = world.audit(layers=["layer3"])
    contrastive = mean | {"measurement": mean["measurement"] | {"concept_embedding": "contrastive", "gamma": 0.5}}
    (folder / "audit.yaml").write_text(json.dumps(contrastive))
    threads, before = torch.get_num_threads(), stages.NULL_CROPS
    torch.set_num_threads(1)
    stages.NULL_CROPS = 40
    both = world.plan(folder, mean), world.plan(folder, contrastive)
    for plan in both:
        index.build(plan)
    yield both
    stages.NULL_CROPS = before
    torch.set_num_threads(threads)


def stored(atlas: Atlas, component: int) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Rank -> sample and box of the contrastive crop, read row by row."""
    out = {}
    for rank, position in atlas.store.rows(
        "SELECT rank, contrast FROM contrast WHERE stage = ? AND component = ?", (atlas.keys["contrast:layer3"], component)
    ):
        for sample, *box in atlas.store.rows(
            "SELECT sample, x0, y0, x1, y1 FROM null_region WHERE stage = ? AND position = ?", (atlas.keys["null:layer3"], position)
        ):
            out[int(rank)] = (atlas.data.samples[sample].path, tuple(int(edge) for edge in box))
    return out


def test_every_reference_sample_has_the_crop_that_its_embedding_lacks(plans: tuple[AuditPlan, AuditPlan]) -> None:
    with Atlas(plans[1]) as atlas:
        assert atlas.look_alikes is not None
        seen = 0
        for component in range(atlas.layers["layer3"].components):
            wanted = stored(atlas, component)
            found = atlas.look_alikes.of("layer3", component)
            assert {rank: (one.sample, one.box) for rank, one in found.items()} == wanted
            references = own_row(atlas, "layer3", component).references
            assert [(one.contrastive.sample, one.contrastive.box) if one.contrastive else None for one in references] == [
                wanted.get(rank) for rank in range(len(references))
            ]
            shown = card(atlas, "layer3", component).references
            for rank, one in enumerate(shown):
                assert (one.contrastive is not None) == (rank in wanted)
                if one.contrastive is not None:
                    sample, box = wanted[rank]
                    view = make_view(read_image(atlas.data.root / sample), atlas.plan.audit.subject.preprocessing)
                    assert one.contrastive.crop == crop_thumbnail(view, box)  # type: ignore[arg-type]
                    seen += 1
        assert seen > 10


def test_means_have_none(plans: tuple[AuditPlan, AuditPlan]) -> None:
    with Atlas(plans[0]) as atlas:
        assert atlas.look_alikes is None
        assert atlas.evidence.look_alikes is None
        assert all(one.contrastive is None for one in own_row(atlas, "layer3", 0).references)
        assert all(one.contrastive is None for one in card(atlas, "layer3", 0).references)


def place(components: int) -> ClassLayer:
    """Components as they are before pictures are attached."""
    made = tuple(
        ComponentRecord.model_construct(component=k, share=1 / components, signed=0.0, assigned=None, references=())
        for k in range(components)
    )
    return ClassLayer.model_construct(class_name="melanoma", layer="layer3", components=made)


def test_a_report_carries_them(plans: tuple[AuditPlan, AuditPlan]) -> None:
    with Atlas(plans[1]) as atlas:
        places, images = illustrate(atlas.evidence, [place(atlas.layers["layer3"].components)])
        places, images = prune(places, [], images)
        compressed, _, lighter = within_budget(places, (), images, budget=1)
        for shown, pictures in ((places, images), (compressed, lighter)):
            references: list[ReferenceImage] = [r for component in shown[0].components for r in component.references]
            found = [one.contrastive for one in references if one.contrastive is not None]
            assert len(found) > 10
            assert {key for one in references for key in one.keys} == set(pictures)
            assert all(digest_bytes(base64.b64decode(text)) == key for key, text in pictures.items())
        wanted = stored(atlas, places[0].components[0].component)
        first = places[0].components[0].references[0].contrastive
        assert first is not None
        assert (first.sample, first.box) == wanted[0]
    with Atlas(plans[0]) as atlas:
        places, _ = illustrate(atlas.evidence, [place(atlas.layers["layer3"].components)])
        assert all(r.contrastive is None for component in places[0].components for r in component.references)


@pytest.mark.parametrize(
    "command",
    [
        ["label", "{audit}", "--vocabulary", "{words}"],
        ["search", "{audit}", "a ruler"],
        ["describe", "{audit}", "melanoma"],
    ],
)
def test_pages_and_json_show_them(plans: tuple[AuditPlan, AuditPlan], tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "words.txt").write_text("a ruler\nhair\nskin\n")
    folder = Path(plans[1].audit_file).parent
    names = {"audit": str(folder / "audit.yaml"), "words": str(tmp_path / "words.txt")}
    arguments = [part.format(**names) for part in command]
    page = tmp_path / "page.html"
    found = CliRunner().invoke(cli.app, [*arguments, "--html", str(page), "--json"])
    assert found.exit_code == 0, found.output
    text = page.read_text()
    assert HEADING in text
    assert "contrastive, gamma 0.5" in text
    assert "looks like the one of" in text
    with Atlas(plans[1]) as atlas:
        listed = [one for one in _references(json.loads(found.stdout)) if one["contrastive"] is not None]
        known = {crop for k in range(atlas.layers["layer3"].components) for crop in stored(atlas, k).values()}
        assert listed
        assert {(one["contrastive"]["sample"], tuple(one["contrastive"]["box"])) for one in listed} <= known


def _references(value: object) -> Iterator[dict[str, dict[str, object] | None]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from part if name == "references" else _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def test_pages_of_means_say_so(plans: tuple[AuditPlan, AuditPlan], tmp_path: Path) -> None:
    folder = Path(plans[0].audit_file).parent
    (folder / "mean.yaml").write_text(json.dumps(world.audit(layers=["layer3"])))
    page = tmp_path / "page.html"
    found = CliRunner().invoke(cli.app, ["search", str(folder / "mean.yaml"), "a ruler", "--html", str(page)])
    assert found.exit_code == 0, found.output
    assert HEADING not in page.read_text()
    assert "mean of the embeddings of a component" in page.read_text()


def test_a_component_that_every_sample_drives_as_much_has_none(plans: tuple[AuditPlan, AuditPlan]) -> None:
    with Atlas(plans[1]) as atlas:
        assert atlas.look_alikes is not None
        assert atlas.look_alikes.of("layer3", 10_000) == {}
        assert np.isfinite(atlas.concept_embeddings("layer3")).all()
