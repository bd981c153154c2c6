"""A small record that agrees with itself: findings, verdict and gate as the tool decides them, with the spec and audit that ask for it."""

from __future__ import annotations

import functools
import textwrap
from datetime import date
from typing import Any

from semlens_audit import checks, gate, verdict
from semlens_audit.digest import digest_bytes
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord, Measurement
from semlens_audit.release_policy import Policy
from semlens_audit.release_records import DocumentRecord
from semlens_audit.verify_record import plan_of
from semlens_audit.waivers import parse
from tests.golden import sample_record

SPEC = """\
spec: small-melanoma
version: "1.0"
title: Melanoma in few checks
purpose: Decisions for melanoma must rest on the lesion.
classes: {nevus: {}, melanoma: {}}
concepts:
  - {id: asymmetry, role: valid, descriptions: [an asymmetric lesion]}
  - {id: ruler, role: spurious, descriptions: [a ruler], hazard: The clinician's suspicion is repeated.}
checks:
  - id: no-ruler
    kind: concept_not_used
    class: melanoma
    concepts: [ruler]
    statement: The ruler beside the lesion does not drive the decision for melanoma.
    criterion: {at_most: 0.15}
    rationale: Rulers are laid beside suspicious lesions.
    severity: critical
  - id: explained
    kind: unexplained_relevance
    class: melanoma
    statement: The declared concepts account for most of the relevance.
    criterion: {at_most: 0.9}
    rationale: What is unexplained was looked at.
"""
AUDIT = """\
audit: small-phantom
title: "Small audit of a phantom"
spec: small-melanoma.yaml
subject:
  name: resnet18-phantom
  version: "2025.11"
  model: {source: timm, name: resnet18, weights: "phantom:shortcut", arguments: {channels: [16, 32, 64, 128], num_classes: 2}}
  preprocessing: {size: 128, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  classes: [nevus, melanoma]
layers: [layer3]
data: {source: phantom, samples: 120, seed: 3}
seed: 7
responsible:
  - {name: Dr. Ada Example, role: Dermatologist, organisation: Example Hospital}
  - {name: Max Müster, role: Release engineer}
"""
WAIVERS = """\
waivers:
  - check: no-ruler
    scope: {versions: "==2025.11"}
    justification: The next training set crops the rulers away; until then the application warns where it sees one.
    owner: Max Müster
    approver: Dr. Ada Example
    created: 2025-11-01
    expires: 2026-03-01
    ticket: QA-7
    revalidate_on: A retrained model
    ceiling: 0.99
"""


def document(kind: Any, name: str, text: str) -> DocumentRecord:
    """A file of the record."""
    return DocumentRecord(kind=kind, name=name, media_type="application/yaml", sha256=digest_bytes(text.encode()), text=text)


@functools.cache
def consistent(*, persons: int = 2, waived: bool = False) -> AuditRecord:
    """The record.

    Parameters
    ----------
    persons
        How many of the responsible persons answer for it.
    waived
        Whether a waiver lets the release pass.
    """
    lines = AUDIT.splitlines(keepends=True)
    audit_text = "".join(lines[: len(lines) - 2 + persons])
    documents = (document("spec", "small-melanoma.yaml", SPEC), document("audit", "small-phantom.yaml", audit_text))
    record = _lighter(sample_record.small())
    record = record.model_copy(
        update={
            "documents": documents,
            "spec": record.spec.model_copy(update={"name": "small-melanoma", "sha256": documents[0].sha256, "detail": {}}),
            "audit": record.audit.model_copy(update={"name": "small-phantom", "sha256": documents[1].sha256, "detail": {}}),
        }
    )
    plan = plan_of(record)
    record = _asked(record, plan)
    place = record.class_layers[0]
    measured: dict[str, Measurement] = {}
    for quantity in checks.quantities(plan):
        measured[quantity.key] = place.concepts["ruler"] if quantity.concepts else place.unexplained
    findings = tuple(checks.findings(plan, measured, record.class_layers))
    record = record.model_copy(
        update={
            "findings": findings,
            "verdict": verdict.decide(findings, record.concepts, record.class_layers, record.subject.name),
        }
    )
    if waived:
        file = document("waivers", "small-phantom.waivers.yaml", textwrap.dedent(WAIVERS))
        declared = parse(file.text.encode(), file.name)
        record = record.model_copy(update={"documents": (*documents, file)})
        record = gate.apply(record, declared.waivers, Policy(), date(2025, 11, 20), lines=declared.lines)
    return AuditRecord.model_validate_json(record.model_dump_json(by_alias=True))


def _lighter(record: AuditRecord) -> AuditRecord:
    """The record with the few images that it shows, and no more components than it needs."""
    place = record.class_layers[0]
    components = place.components[:6]
    shown = {key for one in components for reference in one.references for key in (reference.crop, reference.overlay)}
    return record.model_copy(
        update={
            "class_layers": (place.model_copy(update={"components": components}),),
            "images": {key: image for key, image in sorted(record.images.items()) if key in shown},
        }
    )


def _asked(record: AuditRecord, plan: AuditPlan) -> AuditRecord:
    """The record of what the plan asks."""
    audit = plan.audit
    asked = {concept.id: concept for concept in plan.spec.concepts}
    place = record.class_layers[0]
    kept = {name: place.concepts[name] for name in asked}
    components = tuple(
        part.model_copy(
            update={
                "assigned": part.assigned if part.assigned in asked else None,
                "best": part.best if part.best in asked else None,
                "meaning": {name: share for name, share in part.meaning.items() if name in asked},
                "alignment": {name: value for name, value in part.alignment.items() if name in asked},
                "z": {name: value for name, value in part.z.items() if name in asked},
            }
        )
        for part in place.components
    )
    layer = record.layers[0]
    return record.model_copy(
        update={
            "title": audit.title,
            "purpose": plan.spec.purpose,
            "responsible": audit.responsible,
            "settings": audit.measurement,
            "seed": audit.seed,
            "subject": record.subject.model_copy(
                update={
                    "name": audit.subject.name,
                    "version": audit.subject.version,
                    "intended_purpose": audit.subject.intended_purpose,
                    "preprocessing": audit.subject.preprocessing.model_dump(mode="json"),
                }
            ),
            "data": record.data.model_copy(update={"source": "phantom", "description": None}),
            "foundation_model": record.foundation_model.model_copy(update={"source": audit.foundation_model.source}),
            "concepts": tuple(
                one.model_copy(
                    update={
                        "label": asked[one.id].label,
                        "descriptions": asked[one.id].descriptions,
                        "source": asked[one.id].source,
                        "hazard": asked[one.id].hazard,
                    }
                )
                for one in record.concepts
                if one.id in asked
            ),
            "layers": (
                layer.model_copy(update={"calibration": tuple(c for c in layer.calibration if c.concept in asked)}),
            ),
            "class_layers": (
                place.model_copy(
                    update={
                        "concepts": kept,
                        "valid": kept["asymmetry"],
                        "spurious": kept["ruler"],
                        "neutral": Measurement(quantity="reliance", unit="share", n=0, not_measured="no neutral concept"),
                        "components": components,
                    }
                ),
            ),
            "effects": (),
            "sensitivity": (),
        }
    )
