"""Pictures of a record within what a report may weigh."""

from __future__ import annotations

import base64
import functools
import io

import numpy as np
import pytest
from PIL import Image

from semlens_audit import report
from semlens_audit.data_records import DataPicture
from semlens_audit.digest import digest_bytes
from semlens_audit.picture_budget import BUDGET, QUALITIES, compressed, within_budget
from semlens_audit.records import AuditRecord, ClassLayer, DataPresence, ReferenceImage
from semlens_audit.thumbnails import crop_thumbnail, overlay_thumbnail
from tests.golden.sample_record import draw, sample

MEGABYTES = 5_000_000


def photograph(seed: int) -> Image.Image:
    """A drawing with the grain of a photograph, 224 x 224."""
    rng = np.random.default_rng(seed)
    image = draw("ruler" if seed % 2 else "hair", seed).resize((224, 224), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 5, (224, 224, 3))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float64) + grain, 0, 255).astype(np.uint8))


def reference(seed: int, images: dict[str, str]) -> ReferenceImage:
    view = photograph(seed)
    rng = np.random.default_rng(seed)
    heatmap = np.zeros((224, 224), dtype=np.float32)
    x, y = rng.integers(40, 180, 2)
    heatmap[y - 20 : y + 20, x - 20 : x + 20] = 1
    box = (int(x) - 32, int(y) - 32, int(x) + 32, int(y) + 32)
    keys = []
    for data in (crop_thumbnail(view, box), overlay_thumbnail(view, heatmap, box)):
        keys.append(digest_bytes(data))
        images[keys[-1]] = base64.b64encode(data).decode("ascii")
    return ReferenceImage(sample=f"images/{seed:05}.jpg", activation=1.0, box=box, crop=keys[0], overlay=keys[1])


@functools.cache
def crowded() -> AuditRecord:
    """The shortcut record with more layers, and 500 reference samples with a crop and an overlay that its report all shows."""
    record = sample("shortcut")
    images: dict[str, str] = {}
    seeds = iter(range(10_000))
    wanted, places, findings = 500, [], list(record.findings)
    for number in range(40):
        for place in record.class_layers:
            named = sorted({c for f in record.findings if f.layer == place.layer for c in f.components})[:3]
            free = [c.component for c in place.components if c.assigned is None][:3]
            components = []
            for component in place.components:
                take = min(6, wanted) if component.component in {*named, *free} else 0
                references = tuple(reference(next(seeds), images) for _ in range(take))
                wanted -= take
                components.append(component.model_copy(update={"references": references}))
            layer = f"{place.layer}.{number}"
            places.append(place.model_copy(update={"layer": layer, "components": tuple(components)}))
            base = next(f for f in record.findings if f.layer == place.layer and f.state == "not_satisfied")
            findings.append(base.model_copy(update={"check": f"{base.check}-{number}", "layer": layer, "components": tuple(named)}))
        if wanted == 0:
            break
    return record.model_copy(update={"class_layers": tuple(places), "findings": tuple(findings), "images": images})


def weight(images: dict[str, str]) -> int:
    return sum(len(base64.b64decode(text)) for text in images.values())


class TestBudget:
    def test_few_pictures_stay_as_they_are(self) -> None:
        record = sample("clean")
        places, presence, images = within_budget(record.class_layers, record.presence_in_data, record.images)
        assert (places, presence, images) == (record.class_layers, record.presence_in_data, record.images)

    def test_many_are_compressed_just_enough_and_all_alike(self) -> None:
        record = sample("shortcut")
        budget = weight(record.images) * 3 // 4
        keys, lighter = compressed(record.images, budget)
        assert weight(lighter) <= budget
        assert set(keys) == set(record.images)
        assert set(keys.values()) == set(lighter)
        for key, text in lighter.items():
            assert digest_bytes(base64.b64decode(text)) == key

    def test_pictures_keep_their_pixels(self) -> None:
        record = sample("shortcut")
        keys, lighter = compressed(record.images, 1)
        for old, new in list(keys.items())[:20]:
            before, after = (Image.open(io.BytesIO(base64.b64decode(t))) for t in (record.images[old], lighter[new]))
            assert before.size == after.size
            difference = np.asarray(before.convert("L"), dtype=float) - np.asarray(after.convert("L"), dtype=float)
            assert np.sqrt(np.mean(difference**2)) < 12

    def test_what_cannot_be_kept_is_as_light_as_the_least_quality_makes_it(self) -> None:
        images = dict(list(sample("shortcut").images.items())[:10])
        lightest = weight(compressed(images, 1)[1])
        assert lightest <= min(weight(compressed(images, lightest + extra)[1]) for extra in (1, 500))
        assert sorted(QUALITIES, reverse=True) == list(QUALITIES)

    def test_every_reference_follows(self) -> None:
        record = sample("shortcut")
        shown = DataPresence.model_construct(pictures=(DataPicture.model_construct(image=next(iter(record.images))),))
        places, presence, images = within_budget(record.class_layers, (shown,), record.images, 1)
        used = {key for place in places for c in place.components for r in c.references for key in (r.crop, r.overlay)}
        assert used | {picture.image for entry in presence for picture in entry.pictures} <= set(images)
        assert not used & set(record.images)


@pytest.mark.slow
class TestFiveHundredCrops:
    def test_the_report_stays_below_five_megabytes(self) -> None:
        record = crowded()
        assert sum(len(c.references) for place in record.class_layers for c in place.components) == 500
        assert weight(record.images) > 1.5 * BUDGET  # as they are, they would make it heavier than that
        places, presence, images = within_budget(record.class_layers, record.presence_in_data, record.images)
        record = record.model_copy(update={"class_layers": places, "presence_in_data": presence, "images": images})
        html = report.render_html(record)
        assert html.count('class="crop"') == 1000
        assert len(html) <= MEGABYTES
        assert len(report.render_pdf(record)) <= MEGABYTES


def test_a_layer_without_pictures_is_left_alone() -> None:
    place = sample("clean").class_layers[0]
    bare = place.model_copy(update={"components": tuple(c.model_copy(update={"references": ()}) for c in place.components)})
    images = dict(sample("clean").images)
    places: tuple[ClassLayer, ...] = within_budget((bare,), (), images, 1)[0]
    assert places == (bare,)
