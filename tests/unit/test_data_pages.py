"""The report's section on the data: from made-up evidence to the page."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semlens_audit import checks, compose, data_pages, pages, report
from semlens_audit.digest import digest_bytes
from semlens_audit.figures import PAPER, SCREEN
from semlens_audit.measure import measure
from semlens_audit.records import AuditRecord, ConceptRecord
from tests.golden.sample_record import sample
from tests.unit import synthetic
from tests.unit.test_data_measure import CHECKS, pairs

SHARES: dict[str | None, float] = {"border": 0.1, "ruler": 0.3, "hair": 0.0, None: 0.6}


def made(correlation: float = 0.95, several: bool = False) -> AuditRecord:
    """The sample record with what data show that tie the ruler to melanoma."""
    plan = synthetic.plan(CHECKS)
    evidence = synthetic.evidence(SHARES, samples=300, correlation=correlation)
    evidence = dataclasses.replace(evidence, pairs=pairs(np.random.default_rng(0).normal(2, 1, 40)))
    if several:
        labels = evidence.labels.copy()
        labels[::5] = 2
        logits = np.concatenate([evidence.logits, np.full((300, 1), -5, dtype=np.float32)], axis=1)
        shown = evidence.pairs
        assert shown is not None
        wide = [np.concatenate([part, np.full((40, 1), -5.0)], axis=1) for part in (shown.without, shown.present)]
        evidence = dataclasses.replace(
            evidence,
            classes=("nevus", "mel", "other"),
            labels=labels,
            logits=logits,
            pairs=dataclasses.replace(shown, without=wide[0], present=wide[1]),
        )
    quantities = checks.quantities(plan)
    values = measure(plan, evidence, quantities)
    found = checks.findings(plan, values.quantities, values.class_layers, values.unrecognised, remarks=values.remarks)
    images: dict[str, str] = {}
    presence = []
    for entry in values.presence_in_data:
        shown_pictures = []
        for picture in entry.pictures:
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), (len(images), 0, 0)).save(stream, "JPEG")
            key = digest_bytes(stream.getvalue())
            images[key] = base64.b64encode(stream.getvalue()).decode()
            shown_pictures.append(picture.model_copy(update={"image": key}))
        presence.append(entry.model_copy(update={"pictures": tuple(shown_pictures)}))
    record = sample("clean")
    labels_of = [ConceptRecord(id=c.id, label=c.label, role=c.role) for c in plan.spec.concepts if c.id == "border"]
    return record.model_copy(
        update={
            "presence_in_data": tuple(presence),
            "pair_effects": values.pair_effects,
            "findings": record.findings + tuple(found),
            "concepts": record.concepts + tuple(labels_of),
            "images": record.images | images,
        }
    )


def section(record: AuditRecord) -> str:
    text = report.render_html(record)
    return text[text.index('<section id="presence"') : text.index('<section id="reproduction"')]


def test_the_section_says_what_was_counted() -> None:
    record = made()
    text, ruler = section(record), record.presence_in_data[0]
    part = ruler.subgroups[0]
    assert "Ruler goes with melanoma" in text
    for one in (part.inside, part.outside, part.recall_with, part.false_without):
        assert data_pages._share(one) in text
    assert "logits" in text
    assert "counterfactual pairs" in text.lower()
    assert text.count("<img") == sum(len(entry.pictures) for entry in record.presence_in_data)
    assert "taken for" in text or all(p.predicted == p.label for e in record.presence_in_data for p in e.pictures)


def test_every_number_has_its_table_in_the_results() -> None:
    text = report.render_html(made())
    results = text[text.index('<section id="results"') : text.index("</section>", text.index('<section id="results"'))]
    assert "differences between two shares of images, in percentage points (pp)" in results
    assert "(counterfactual pairs)" in results


def test_without_data_there_is_no_section() -> None:
    assert 'id="presence"' not in report.render_html(sample("shortcut"))


def test_what_is_not_tied_is_not_called_so() -> None:
    assert "Ruler goes with" not in section(made(correlation=0.5))


def test_more_classes_have_a_table_of_their_own() -> None:
    text = section(made(several=True))
    assert "Images that hold each concept, by class" in text
    assert "Ruler, other classes" in text
    assert "Images that hold each concept, by class" not in section(made())
    assert "Ruler, nevus" in section(made())


def test_unknown_presence_gives_reasons_not_numbers() -> None:
    record = made()
    reason = "the foundation model does not recognise hair"
    hair = record.presence_in_data[1]
    parts = tuple(
        part.model_copy(
            update={
                name: getattr(part, name).model_copy(update={"value": None, "interval": None, "not_measured": reason})
                for name in ("difference", "gap")
            }
        )
        for part in hair.subgroups
    )
    blind = hair.model_copy(update={"not_measured": reason, "pictures": (), "subgroups": parts})
    text = section(record.model_copy(update={"presence_in_data": (record.presence_in_data[0], blind)}))
    assert text.count(reason) == 2
    assert data_pages._share(hair.subgroups[0].inside) not in text


def test_the_paper_page_is_made_as_well() -> None:
    page = compose.make_page(made(), PAPER)
    assert any(one.anchor == "presence" for one in page.sections)


def test_every_field_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [c for c in vars(data_pages).values() if dataclasses.is_dataclass(c) and c.__module__ == data_pages.__name__]
    assert not {c.__name__ for c in classes} & {c.__name__ for c in vars(pages).values() if dataclasses.is_dataclass(c)}
    made_pages = [compose.make_page(made(several=several), SCREEN) for several in (False, True)]
    seen: set[tuple[str, str]] = set()

    def watch(cls: type) -> None:
        def read(self: object, name: str) -> Any:
            seen.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read)

    for cls in classes:
        watch(cls)
    for page in made_pages:
        report.environment().get_template("report.html.j2").render(page=page, style="")
    wanted = {(cls.__name__, field.name) for cls in classes for field in dataclasses.fields(cls)}
    assert wanted - seen == set()
