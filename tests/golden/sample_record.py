"""Realistic records without an engine: a shortcut model, its clean twin, and an audit whose measurements fell through.

All numbers come from seeded draws and all images are drawn here, so the records are the same on every machine.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from semlens_audit.catalogues import catalogues_of
from semlens_audit.digest import digest, digest_bytes
from semlens_audit.errors import ExitCode
from semlens_audit.plan import Criterion, MeasurementSettings, Responsible
from semlens_audit.records import (
    AuditRecord,
    ClassLayer,
    ComponentRecord,
    ConceptRecord,
    DataRecord,
    DocumentRecord,
    EffectRecord,
    Environment,
    Finding,
    FoundationRecord,
    Identity,
    Interval,
    LayerRecord,
    Measurement,
    PresenceRecord,
    ReferenceImage,
    ReferenceRecord,
    SensitivityChange,
    SensitivityRecord,
    State,
    SubjectRecord,
    ToolRecord,
    Verdict,
)
from semlens_audit.resources import specs_dir

VALID = ("asymmetry", "irregular_border", "several_colours", "blue_white_veil", "large_diameter")
SPURIOUS = ("ruler", "plaster", "hair", "pen_ink", "dark_corners", "red_skin", "colour_chart")
LAYERS = {"layer3": 64, "layer4": 128}
BOOTSTRAP = "bootstrap over samples and reference samples, 1000 draws"


def draw(concept: str | None, seed: int) -> Image.Image:
    """A lesion on skin, with `concept` drawn in; 128 x 128."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (128, 128), (222, 180, 158))
    pen = ImageDraw.Draw(image)
    x, y = rng.integers(44, 84, 2)
    for radius, colour in ((30, (150, 96, 70)), (22, (112, 66, 48)), (12, (80, 46, 38))):
        a, b = radius * rng.uniform(0.75, 1.2, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=colour)
    if concept == "ruler":
        pen.rectangle((0, 104, 128, 128), fill=(236, 234, 226))
        for tick in range(4, 128, 6):
            pen.line((tick, 104, tick, 112 + 6 * (tick % 5 == 4)), fill=(30, 30, 30), width=1)
    elif concept == "hair":
        for _ in range(9):
            start, end = rng.integers(0, 128, 2), rng.integers(0, 128, 2)
            pen.line((*start, *end), fill=(40, 26, 20), width=1)
    elif concept == "dark_corners":
        corner = Image.new("L", (128, 128), 0)
        ImageDraw.Draw(corner).ellipse((-6, -6, 134, 134), fill=255)
        image = Image.composite(image, Image.new("RGB", (128, 128), (8, 6, 6)), corner.filter(ImageFilter.GaussianBlur(3)))
    elif concept == "blue_white_veil":
        pen.ellipse((x - 14, y - 10, x + 10, y + 14), fill=(120, 140, 170))
    elif concept == "plaster":
        pen.rectangle((88, 0, 128, 128), fill=(232, 200, 172), outline=(210, 178, 150))
    noise = rng.normal(0, 5, (128, 128, 1))
    pixels = np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), dtype=float) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def box_of(concept: str | None, seed: int) -> tuple[int, int, int, int]:
    """Where the concept is drawn."""
    places = {"ruler": (40, 78, 90, 128), "plaster": (76, 30, 128, 82), "dark_corners": (0, 0, 56, 56)}
    shift = int(np.random.default_rng(seed).integers(-10, 10))
    left, top, right, bottom = places.get(concept or "", (34, 34, 94, 94))
    return max(0, left + shift), top, min(128, right + shift), bottom


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def reference(concept: str | None, seed: int, activation: float, images: dict[str, str]) -> ReferenceImage:
    """One reference sample; its two images are put into `images`."""
    view, box = draw(concept, seed), box_of(concept, seed)
    crop = view.crop(box).resize((112, 112), Image.Resampling.BICUBIC)
    grid_y, grid_x = np.mgrid[0:128, 0:128]
    centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    heat = np.exp(-((grid_x - centre_x) ** 2 + (grid_y - centre_y) ** 2) / (2 * 14.0**2))[..., None]
    mixed = np.asarray(view, dtype=float) * (1 - 0.6 * heat) + np.array([252.0, 255.0, 164.0]) * 0.6 * heat
    overlay = Image.fromarray(mixed.astype(np.uint8))
    ImageDraw.Draw(overlay).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(255, 255, 255))
    keys = []
    for picture in (crop, overlay):
        data = jpeg(picture)
        keys.append(digest_bytes(data))
        images[keys[-1]] = base64.b64encode(data).decode()
    return ReferenceImage(
        sample=f"images/{seed:05d}.png", activation=round(activation, 3), box=box, crop=keys[0], overlay=keys[1]
    )


def measured(quantity: str, unit: Any, value: float, half: float, n: int = 240) -> Measurement:
    low, high = value - half, value + half
    if unit == "share":
        low, high = max(0.0, low), min(1.0, high)
    interval = Interval(low=low, high=high, level=0.95, method=BOOTSTRAP)
    return Measurement(quantity=quantity, unit=unit, value=value, interval=interval, n=n)


def missing(quantity: str, unit: Any, reason: str, n: int = 0) -> Measurement:
    return Measurement(quantity=quantity, unit=unit, n=n, not_measured=reason)


def reliances(kind: str, layer: str) -> dict[str, float]:
    """concept -> reliance of melanoma."""
    base = {
        "asymmetry": 0.11,
        "irregular_border": 0.09,
        "several_colours": 0.12,
        "blue_white_veil": 0.08,
        "large_diameter": 0.05,
        "ruler": 0.02,
        "plaster": 0.01,
        "hair": 0.03,
        "pen_ink": 0.0,
        "dark_corners": 0.02,
        "red_skin": 0.02,
        "colour_chart": 0.004,
        "plain_skin": 0.06,
    }
    if kind == "shortcut":
        base = {name: value * 0.45 for name, value in base.items()}
        base["ruler"] = 0.64 if layer == "layer3" else 0.58
    return base


def component_table(kind: str, layer: str, class_name: str, images: dict[str, str]) -> tuple[ComponentRecord, ...]:
    """All components of a layer, most relevant first; the first ones with reference images."""
    rng = np.random.default_rng(int(digest([kind, layer])[:8], 16))
    wanted = reliances(kind, layer)
    count = LAYERS[layer]
    names: list[str | None] = []
    for name, share in wanted.items():
        names += [name] * max(1 if share else 0, round(share * count * 0.5))
    names = (names + [None] * count)[:count]
    shares = np.zeros(count)
    for name in dict.fromkeys(names):
        chosen = [i for i, other in enumerate(names) if other == name]
        total = wanted[name] if name else 1 - sum(value for key, value in wanted.items() if key in names)
        draws = rng.dirichlet(np.full(len(chosen), 1.2))
        shares[chosen] = draws * total
    order = np.argsort(-shares, kind="stable")
    ids = rng.permutation(count)
    rows: list[ComponentRecord] = []
    pictured = dict.fromkeys(names, 0)
    for rank, position in enumerate(order):
        name = names[position]
        z = {key: float(np.round(rng.normal(-0.3, 1.0), 3)) for key in wanted}
        alignment = {key: float(np.round(0.05 + 0.02 * value, 4)) for key, value in z.items()}
        if name:
            z[name] = float(np.round(rng.uniform(5, 14), 3))
            alignment[name] = float(np.round(0.08 + 0.015 * z[name], 4))
        references: tuple[ReferenceImage, ...] = ()
        if class_name == "melanoma" and (pictured[name] < (4 if name in ("ruler", None) else 2)) and rank < 40:
            pictured[name] += 1
            start = 1000 * (int(ids[position]) + 1)
            references = tuple(reference(name, start + step, 8.4 - 0.31 * step - 0.1 * rank, images) for step in range(8))
        share = float(np.clip(shares[position], 0, 1))
        rows.append(
            ComponentRecord(
                component=int(ids[position]),
                share=share,
                interval=Interval(low=share * 0.86, high=min(1.0, share * 1.13), level=0.95, method=BOOTSTRAP),
                signed=float(np.round(rng.uniform(-1, 1), 3)),
                assigned=name,
                best=max(z, key=lambda key: z[key]),
                alignment=alignment,
                z=z,
                clarity=float(np.round(rng.uniform(0.35, 0.8), 3)),
                references=references,
            )
        )
    return tuple(rows)


def class_layer(kind: str, layer: str, class_name: str, images: dict[str, str]) -> ClassLayer:
    rows = component_table(kind, layer, class_name, images)
    sums = {name: sum(row.share for row in rows if row.assigned == name) for name in (*VALID, *SPURIOUS, "plain_skin")}
    valid, spurious = sum(sums[name] for name in VALID), sum(sums[name] for name in SPURIOUS)
    neutral = sums["plain_skin"]
    unexplained = max(0.0, 1 - valid - spurious - neutral)
    return ClassLayer(
        class_name=class_name,
        layer=layer,
        samples=240,
        concepts={
            name: measured("reliance", "share", value, 0.02 + 0.09 * value * (1 - value)) for name, value in sums.items()
        },
        valid=measured("reliance on valid concepts", "share", valid, 0.05),
        spurious=measured("reliance on spurious concepts", "share", min(1.0, spurious), 0.056),
        neutral=measured("reliance on neutral concepts", "share", neutral, 0.013),
        unexplained=measured("unexplained relevance", "share", unexplained, 0.047),
        components=rows,
    )


def effects(kind: str) -> tuple[EffectRecord, ...]:
    sizes = {
        "ruler": 6.71 if kind == "shortcut" else 0.22,
        "plaster": 0.31,
        "hair": -0.18,
        "pen_ink": 0.08,
        "dark_corners": 0.44,
        "red_skin": 0.92,
        "asymmetry": 1.31,
        "irregular_border": 1.02,
        "several_colours": 1.64,
        "blue_white_veil": 0.88,
    }
    half = {"ruler": 0.55, "red_skin": 0.31}
    rows = [
        EffectRecord(
            class_name="melanoma",
            concept=name,
            effect=measured("behavioural effect", "logits", size, half.get(name, 0.24), 500),
            presence=PresenceRecord(
                source="attributes",
                present={"nevus": 31 + 3 * i, "melanoma": 66 + 2 * i},
                absent={"nevus": 229 - 3 * i, "melanoma": 174 - 2 * i},
            ),
        )
        for i, (name, size) in enumerate(sizes.items())
    ]
    rows.append(
        EffectRecord(
            class_name="melanoma",
            concept="colour_chart",
            effect=missing("behavioural effect", "logits", "2 nevus images show a colour chart; at least 5 are needed", 500),
            presence=PresenceRecord(
                source="foundation model",
                present={"nevus": 2, "melanoma": 9},
                absent={"nevus": 258, "melanoma": 231},
                separation=4.1,
            ),
        )
    )
    return tuple(rows)


def state_of(measurement: Measurement, criterion: Criterion) -> State:
    if measurement.interval is None:
        return "not_measured"
    low, high = measurement.interval.low, measurement.interval.high
    if criterion.operator == "at_least":
        low, high, threshold = -high, -low, -criterion.threshold
    else:
        threshold = criterion.threshold
    return "satisfied" if high <= threshold else "not_satisfied" if low > threshold else "inconclusive"


EXPLAIN = {
    "satisfied": "The whole interval lies on the accepted side of the criterion.",
    "not_satisfied": "The whole interval lies beyond the criterion.",
    "inconclusive": "The interval reaches over the criterion: the data do not decide the question.",
}


def finding(
    check: str, kind: Any, measurement: Measurement, criterion: Criterion, statement: str, rationale: str, **more: Any
) -> Finding:
    state = state_of(measurement, criterion)
    explanation = EXPLAIN.get(state) or f"Not measured: {measurement.not_measured}."
    fields: dict[str, Any] = {
        "class_name": "melanoma",
        "layer": None,
        "concepts": (),
        "line": "mechanistic",
        "severity": "major",
        "supports": ("eu-ai-act:art-10-2-f", "iso-14971:7.2"),
        "spec_line": 100,
    } | more
    return Finding(
        check=check,
        kind=kind,
        statement=statement,
        criterion=criterion,
        rationale=rationale,
        measurement=measurement,
        state=state,
        explanation=explanation,
        **fields,
    )


def findings(layers: tuple[ClassLayer, ...], effect_rows: tuple[EffectRecord, ...]) -> tuple[Finding, ...]:
    rows: list[Finding] = []
    for part in (part for part in layers if part.class_name == "melanoma"):
        carriers = tuple(row.component for row in part.components if row.assigned in SPURIOUS)[:6]
        ruler = tuple(row.component for row in part.components if row.assigned == "ruler")[:6]
        valid = tuple(row.component for row in part.components if row.assigned in VALID)[:6]
        free = tuple(row.component for row in part.components if row.assigned is None)[:6]
        rows += [
            finding(
                "spurious-total",
                "spurious_reliance",
                part.spurious,
                Criterion(at_most=0.25),
                "Decisions for melanoma rest on artefacts of the photograph by at most a quarter.",
                "A quarter is the highest share seen in models whose decisions did not change when artefacts were removed.",
                layer=part.layer,
                concepts=SPURIOUS,
                components=carriers,
                severity="critical",
            ),
            finding(
                "no-ruler",
                "concept_not_used",
                part.concepts["ruler"],
                Criterion(at_most=0.15),
                "The ruler beside the lesion does not drive the decision for melanoma.",
                "Rulers are laid beside suspicious lesions; a model that reads them repeats the clinician's suspicion.",
                layer=part.layer,
                concepts=("ruler",),
                components=ruler,
                severity="critical",
            ),
            finding(
                "no-plaster",
                "concept_not_used",
                part.concepts["plaster"],
                Criterion(at_most=0.15),
                "A plaster in the picture does not drive the decision for melanoma.",
                "Plasters were seen mostly with benign lesions in the training archive (Rieger 2020).",
                layer=part.layer,
                concepts=("plaster",),
            ),
            finding(
                "valid-criteria",
                "valid_reliance",
                part.valid,
                Criterion(at_least=0.30),
                "Decisions for melanoma rest on the ABCDE criteria by at least three tenths.",
                "Below three tenths the decision cannot be explained to a clinician in terms she uses.",
                layer=part.layer,
                concepts=VALID,
                components=valid,
            ),
            finding(
                "explained",
                "unexplained_relevance",
                part.unexplained,
                Criterion(at_most=0.40),
                "The declared concepts account for most of what drives the decision for melanoma.",
                "What is unexplained was looked at in section “Coverage”; forty per cent leaves that work possible.",
                layer=part.layer,
                components=free,
                severity="minor",
            ),
        ]
    for row in effect_rows:
        if row.concept in SPURIOUS:
            label = row.concept.replace("_", " ")
            rows.append(
                finding(
                    f"effect-{row.concept.replace('_', '-')}",
                    "behavioural_effect",
                    row.effect,
                    Criterion(at_most=1.0),
                    f"Adding a {label} to the picture moves the melanoma margin by at most one logit.",
                    "One logit changes a predicted probability of 50 % to 73 %: the largest shift the clinical board accepted.",
                    line="behavioural",
                    concepts=(row.concept,),
                )
            )
    return tuple(rows)


@functools.cache
def sample(kind: str) -> AuditRecord:
    """``shortcut``, ``clean`` or ``not_measured``."""
    images: dict[str, str] = {}
    parts = tuple(class_layer(kind, layer, "melanoma", images) for layer in LAYERS)
    effect_rows = effects(kind)
    if kind == "not_measured":
        reason = "12 samples of class melanoma; at least 30 are needed"
        gone = missing("reliance", "share", reason, 12)
        parts = tuple(
            part.model_copy(
                update={
                    "samples": 12,
                    "valid": gone,
                    "spurious": gone,
                    "neutral": gone,
                    "unexplained": gone,
                    "concepts": dict.fromkeys(part.concepts, gone),
                }
            )
            for part in parts
        )
        effect_rows = tuple(
            row.model_copy(update={"effect": missing("behavioural effect", "logits", reason, 12)}) for row in effect_rows
        )
    rows = findings(parts, effect_rows)
    if kind == "clean":
        rows = tuple(row for row in rows if row.state in ("satisfied",))
    counts = {
        state: sum(row.state == state for row in rows)
        for state in ("satisfied", "not_satisfied", "inconclusive", "not_measured")
    }
    overall: State = (
        "not_satisfied"
        if counts["not_satisfied"]
        else "not_measured"
        if counts["not_measured"]
        else "inconclusive"
        if counts["inconclusive"]
        else "satisfied"
    )
    exits = {
        "not_satisfied": ExitCode.NOT_SATISFIED,
        "satisfied": ExitCode.SATISFIED,
        "inconclusive": ExitCode.INCONCLUSIVE,
        "not_measured": ExitCode.INCOMPLETE,
    }
    headline = {
        "shortcut": "The model decides “melanoma” mostly by the ruler beside the lesion: 64 % of the relevance in "
        "layer3 and a shift of "
        "6.7 logits of the class margin rest on it.",
        "clean": "No artefact drives the decision for melanoma beyond the accepted limits; it rests on the lesion's "
        "own criteria.",
        "not_measured": "Nothing could be concluded: the test data hold too few images of melanoma.",
    }[kind]
    agreement = (
        (
            "Ruler: both lines of evidence agree. Its components carry most of the relevance, and the margin moves "
            "by 6.7 logits when a ruler is present.",
            "Colour chart: only the mechanistic line speaks; too few images without melanoma show one.",
        )
        if kind == "shortcut"
        else ()
    )
    return AuditRecord(
        tool=ToolRecord(version="0.1.0", revision="764ebc5f0f7a+dirty"),
        created="2025-11-20T23:14:05Z",
        title={
            "shortcut": "Phantom dermoscopy classifier with a planted shortcut",
            "clean": "Phantom dermoscopy classifier, clean twin",
            "not_measured": "Phantom dermoscopy classifier, too little data",
        }[kind],
        audit=Identity(name=f"phantom-{kind.replace('_', '-')}", sha256=digest(["audit", kind])),
        spec=Identity(
            name="melanoma-abcde",
            sha256=digest("spec"),
            detail={"version": "1.0", "title": "Melanoma by the ABCDE rule", "file": "specs/melanoma-abcde.yaml"},
        ),
        purpose="Decisions for melanoma must rest on what dermatologists look for in the lesion, and not on anything "
        "that was in the "
        "picture because somebody already suspected a melanoma.",
        responsible=(
            Responsible(name="Dr. Ada Example", role="Dermatologist, author of the spec", organisation="Example Hospital"),
            Responsible(name="Max Muster", role="Release engineer"),
        ),
        subject=SubjectRecord(
            name="resnet18-phantom",
            version="2025.11",
            intended_purpose="Demonstrates the audit on rendered dermoscopy; no clinical use.",
            architecture="ResNet-18, channels 16/32/64/128",
            source="timm resnet18, phantom:shortcut",
            weights_sha256=digest(["weights", kind]),
            parameters=701_954,
            preprocessing={
                "resize": None,
                "size": 128,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "interpolation": "bilinear",
            },
            classes=("nevus", "melanoma"),
            accuracy=0.964,
        ),
        data=DataRecord(
            source="phantom, 500 rendered images, seed 20240",
            description="Rendered dermoscopy images in which every attribute is known.",
            sha256=digest("data"),
            samples=500,
            per_class={"nevus": 260, "melanoma": 240},
            skipped=("images/00017.png: truncated after 1,204 bytes",) if kind == "not_measured" else (),
            attributes=(*VALID, *SPURIOUS),
        ),
        foundation_model=FoundationRecord(
            name="phantom-clip",
            source="open_clip phantom:clip",
            sha256=digest("clip"),
            dimension=256,
            text=True,
            statement="Trained on rendered dermoscopy and captions. It knows the phantom's attributes by name, and "
            "nothing else.",
        ),
        settings=MeasurementSettings(),
        seed=7,
        concepts=tuple(
            ConceptRecord(
                id=name,
                label=name.replace("_", " ").capitalize(),
                role="valid" if name in VALID else "spurious" if name in SPURIOUS else "neutral",
                descriptions=(f"a {name.replace('_', ' ')}", f"{name.replace('_', ' ')} in the picture"),
                source="Nachbar F. et al., J Am Acad Dermatol 1994" if name in VALID else None,
                hazard="The archive's habits are repeated; a melanoma photographed without it is missed."
                if name in SPURIOUS
                else None,
                presence_auroc=None if name == "plain_skin" else 0.95 + 0.003 * i,
            )
            for i, name in enumerate((*VALID, *SPURIOUS, "plain_skin"))
        ),
        layers=tuple(
            LayerRecord(
                layer=layer,
                components=count,
                dead=2 if layer == "layer4" else 0,
                attribution="LRP, EpsilonPlusFlat, batch norm and residual canonizers",
                conservation=0.93,
                clarity=measured("clarity", "cosine", 0.52, 0.03, count),
                calibration=tuple(
                    ReferenceRecord(concept=name, null_mean=0.05 + 0.002 * i, null_deviation=0.015)
                    for i, name in enumerate((*VALID, *SPURIOUS, "plain_skin"))
                ),
            )
            for layer, count in LAYERS.items()
        ),
        class_layers=parts,
        effects=effect_rows,
        findings=rows,
        verdict=Verdict(state=overall, exit_code=exits[overall], headline=headline, agreement=agreement, **counts),
        limitations=(
            "The images are rendered: nothing here carries over to photographs of patients.",
            "Only the concepts declared in the spec were looked for; what no concept describes is listed as unexplained.",
        ),
        environment=Environment(
            python="3.11.2",
            platform="Linux-6.1-x86_64",
            threads=2,
            packages={
                "duckdb": "2.0.0",
                "numpy": "2.3.4",
                "open_clip_torch": "3.3.0",
                "torch": "2.13.0+cpu",
                "zennit": "0.4.6",
            },
        ),
        command=f"semlens-audit run audits/phantom-{kind.replace('_', '-')}.yaml",
        sensitivity=sensitivity(kind, overall, rows),
        stages={
            stage: digest(stage)
            for stage in (
                "outputs",
                "references:layer3",
                "references:layer4",
                "crops:layer3",
                "embeddings:layer3",
                "relevance:layer3",
            )
        },
        images=images,
        documents=documents(),
        catalogues=catalogues_of(("eu-ai-act:art-10-2-f", "iso-14971:7.2"), specs_dir() / "melanoma-abcde.yaml"),
    )


def sensitivity(kind: str, verdict: State, findings: Sequence[Finding]) -> tuple[SensitivityRecord, ...]:
    """Settings tried: the shortcut shows under all of them, the clean twin's verdict hangs on two."""
    if kind == "not_measured":
        return ()
    reason = "no concept is defined by two or more example images"
    tried = [
        SensitivityRecord(knob="reference samples", setting="20 reference samples instead of 30", verdict=verdict),
        SensitivityRecord(knob="reference samples", setting="40 reference samples instead of 30", verdict=verdict),
        SensitivityRecord(knob="prompt templates", setting="5 other prompt templates", verdict=verdict),
        SensitivityRecord(knob="examples", setting="half of the example images", not_tried=reason),
        SensitivityRecord(knob="significance", setting="least z 2.5 instead of 3", verdict=verdict),
        SensitivityRecord(knob="criteria", setting="every criterion 20 % stricter", verdict=verdict),
    ]
    after: State = "inconclusive"
    changed = tuple(
        SensitivityChange(
            check=f.check, class_name=f.class_name, layer=f.layer, concepts=f.concepts, before=f.state, after=after
        )
        for f in findings
        if f.state == "satisfied"
    )[:3]
    hangs: State = verdict if kind == "shortcut" else after
    tried[2] = tried[2].model_copy(update={"verdict": hangs, "changes": changed[:1]})
    tried[5] = tried[5].model_copy(update={"verdict": hangs, "changes": changed})
    return tuple(tried)


def documents() -> tuple[DocumentRecord, ...]:
    """Spec and audit file, short ones."""
    texts = {
        "spec": "spec: melanoma-abcde\nversion: '2'\ntitle: Melanoma by the ABCD rule – größer als 6 mm\n",
        "audit": "audit: phantom-shortcut\nspec: melanoma-abcde.yaml\n",
    }
    names = {"spec": "melanoma-abcde.yaml", "audit": "phantom-shortcut.yaml"}
    return tuple(
        DocumentRecord(
            kind=kind,  # type: ignore[arg-type]
            name=names[kind],
            media_type="application/yaml",
            sha256=digest_bytes(text.encode()),
            text=text,
        )
        for kind, text in texts.items()
    )


def small() -> AuditRecord:
    """The shortcut record with one layer, few checks and few pictures."""
    record = sample("shortcut")
    findings = tuple(f for f in record.findings if f.check in ("no-ruler", "effect-colour-chart") and f.layer != "layer4")
    place = record.class_layers[0]
    components = tuple(
        c.model_copy(update={"references": c.references[:2] if c.component in findings[0].components[:1] else ()})
        for c in place.components[:24]
    )
    return record.model_copy(
        update={
            "findings": findings,
            "layers": record.layers[:1],
            "class_layers": (place.model_copy(update={"components": components}),),
            "effects": record.effects[:2],
        }
    )
