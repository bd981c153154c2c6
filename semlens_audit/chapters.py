"""The chapters of a report that list what the record says: purpose, identity, method, data, reproduction."""

from __future__ import annotations

from semlens_audit.lock_pages import lock_digests, lock_facts
from semlens_audit.pages import DataPage, Fact, Identities, Method, Reproduction, System, Table
from semlens_audit.plan import MeasurementSettings
from semlens_audit.records import AuditRecord
from semlens_audit.wording import (
    DASH,
    ROLES,
    capital,
    count,
    format_date,
    format_measured,
    format_number,
    format_value,
    join,
)

__all__ = ["glossary", "identities", "method", "reproduction", "system", "test_data"]

_CLASSES = 20
_HEATMAPS = {
    "lrp": "its conditional relevance heatmap (concept relevance propagation, Achtibat et al., arXiv 2206.03208)",
    "activation_x_gradient": (
        "its activation map, scaled up to the image (of tokens, the map of the patches: a class token has no place, so that where "
        "relevance sits in it, the crop still shows patches)"
    ),
}
_RELEVANCES = {
    "lrp": "layer-wise relevance propagation, Bach et al. 2015",
    "activation_x_gradient": "activation times gradient of the class logit",
}
_SELECTIONS = {
    "relevance": "on which its relevance for the class is largest (relevance maximisation)",
    "activation": "that activate it most (activation maximisation)",
}
_PROBES = {
    "template_difference": "the cosine with the mean over prompt templates of the filled minus the empty template",
    "cosine_difference": "the cosine with the filled template minus the cosine with the empty one",
}


def system(record: AuditRecord) -> System:
    """What the model is for, and the concepts that were declared."""
    rows = []
    for concept in record.concepts:
        role = "; ".join([ROLES[concept.role], *(f"for {name}: {ROLES[other]}" for name, other in concept.roles.items())])
        defined = list(concept.descriptions)
        if concept.examples:
            defined.append(count(concept.examples, "example image"))
        rows.append((capital(concept.label), role, "; ".join(defined) or DASH, concept.hazard or DASH, concept.source or DASH))
    table = Table("Concepts declared in the spec", ("Concept", "A decision", "Defined by", "Hazard", "Source"), tuple(rows))
    return System(record.subject.intended_purpose or "The audit file states no intended purpose.", record.purpose, table)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_CLASSES])
    return shown + (f" and {len(names) - _CLASSES:,} more" if len(names) > _CLASSES else "")


def identities(record: AuditRecord) -> Identities:
    """Names and digests of everything the audit rests on."""
    subject, data = record.subject, record.data
    preprocessing = ", ".join(f"{key} {value}" for key, value in subject.preprocessing.items() if value is not None)
    facts = (
        Fact("Model", subject.name),
        Fact("Version", subject.version or "not stated"),
        Fact("Architecture", subject.architecture),
        Fact("Source", subject.source),
        Fact("Parameters", f"{subject.parameters:,}"),
        *([Fact("Computed in", subject.arithmetic)] if subject.arithmetic else []),
        Fact("Input", preprocessing),
        Fact("Classes", _some(subject.classes)),
        *lock_facts(record),
    )
    rows = (
        ("Weights of the audited model", subject.name, subject.weights_sha256),
        ("Test data: paths, contents, labels", data.source, data.sha256),
        ("Foundation model", record.foundation_model.name, record.foundation_model.sha256),
        ("Spec", str(record.spec.detail.get("file", record.spec.name)), record.spec.sha256),
        ("Audit file", str(record.audit.detail.get("file", record.audit.name)), record.audit.sha256),
        *lock_digests(record),
    )
    caption = "Content digests (SHA-256) of everything the audit rests on"
    return Identities(facts, Table(caption, ("What", "Name", "SHA-256"), rows, mono=(2,)))


def _area(value: float | None) -> str:
    return "not known" if value is None else format_number(value, 2)


def _validity(record: AuditRecord) -> Table:
    """How well each concept is recognised, and against what its alignment is held, layer by layer."""
    null = {(layer.layer, entry.concept): entry for layer in record.layers for entry in layer.calibration}
    rows = []
    for concept in record.concepts:
        cells = [capital(concept.label), _area(concept.presence_auroc), _area(concept.probe_auroc)]
        for layer in record.layers:
            entry = null.get((layer.layer, concept.id))
            cells.append(
                DASH if entry is None else f"{format_number(entry.null_mean, 3)} ± {format_number(entry.null_deviation, 3)}"
            )
        rows.append(tuple(cells))
    return Table(
        "How well the foundation model recognises each concept (area under the ROC curve: 0.5 is chance, 1 perfect), "
        "on whole images "
        "where the data says which hold it, and on held-out example crops; then, by layer, the alignment of random "
        "reference sets "
        "(mean ± standard deviation) against which z is taken",
        ("Concept", "On images", "On examples", *(layer.layer for layer in record.layers)),
        tuple(rows),
        numeric=tuple(range(1, 3 + len(record.layers))),
    )


def _intervals(record: AuditRecord) -> tuple[str, ...]:
    """Every way in which an interval of a finding was obtained, once."""
    intervals = [finding.measurement.interval for finding in record.findings]
    return tuple(dict.fromkeys(interval.method for interval in intervals if interval)) or ("none was measured",)


def _embedding(settings: MeasurementSettings) -> str:
    """What of the crops' embeddings stands for the component, as a noun phrase."""
    if settings.concept_embedding == "mean":
        return "their mean"
    part = "the part" if settings.gamma == 1 else f"{format_number(settings.gamma, 2)} of the part"
    return (
        f"from each, {part} that it shares with the most similar random crop of an image that drives the component less than the "
        "average image does is taken away (contrastive semantic projection, arXiv 2604.22477), from random crops likewise; the mean of "
        "what is left"
    )


def _by_layer(record: AuditRecord, words: dict[str, str]) -> str:
    """What was done for each layer's attribution; where the audit left it open, layers may differ."""
    layers: dict[str, list[str]] = {}
    for layer in record.layers:
        layers.setdefault(layer.method or record.settings.attribution, []).append(layer.layer)
    if len(layers) <= 1:
        return words[next(iter(layers), "lrp")]
    return "; ".join(f"in {join(names)}, {words[method]}" for method, names in layers.items())


def method(record: AuditRecord) -> Method:
    """Settings, foundation model, calibration."""
    settings, model = record.settings, record.foundation_model
    layers = tuple(
        (
            layer.layer,
            f"{layer.components:,}",
            f"{layer.dead:,}",
            f"{layer.attribution}; {layer.choice}" if layer.choice else layer.attribution,
            DASH if layer.conservation is None else format_number(layer.conservation, 2),
            format_measured(layer.clarity),
        )
        for layer in record.layers
    )
    return Method(
        reference_samples=str(settings.reference_samples),
        selection=_SELECTIONS[settings.selection],
        heatmap=_by_layer(record, _HEATMAPS),
        relevance=_by_layer(record, _RELEVANCES),
        embedding=_embedding(settings),
        probe=_PROBES[settings.probe],
        significance=f"{settings.significance:g}",
        false_discovery_rate=format_value("share", settings.false_discovery_rate),
        level=format_value("share", settings.confidence),
        intervals=_intervals(record),
        foundation=(
            Fact("Name", model.name),
            Fact("Source", model.source),
            Fact("Embedding", f"{model.dimension:,} dimensions"),
            Fact("Understands", "text and images" if model.text else "images only; concepts are defined by example images"),
            Fact("What it can and cannot tell", model.statement),
        ),
        validity=_validity(record),
        layers=Table(
            "Audited layers. Conservation: relevance in the layer over relevance at the output; 1 is conserved",
            ("Layer", "Components", "Never active", "Attribution", "Conservation", "Clarity"),
            layers,
            numeric=(1, 2, 4),
        ),
        settings=tuple(Fact(name.replace("_", " ").capitalize(), str(value)) for name, value in settings.model_dump().items()),
    )


def test_data(record: AuditRecord) -> DataPage:
    """Where the samples come from and how they divide."""
    data = record.data
    facts = [Fact("Source", data.source), Fact("Images", f"{data.samples:,}")]
    if data.description:
        facts.append(Fact("Description", data.description))
    told = ", ".join(data.attributes) or "none; the foundation model says which image holds which concept"
    facts.append(Fact("Known attributes", told))
    rows = tuple(
        (name, f"{number:,}", format_value("share", number / max(data.samples, 1), 1))
        for name, number in data.per_class.items()
        if number
    )
    empty = len(data.per_class) - len(rows)
    caption = "Images per class" + (f"; {count(empty, 'class', 'classes')} without any" if empty else "")
    return DataPage(tuple(facts), Table(caption, ("Class", "Images", "Share"), rows, numeric=(1, 2)), data.skipped)


def reproduction(record: AuditRecord) -> Reproduction:
    """Where it ran and how to run it again."""
    environment, tool = record.environment, record.tool
    revision = f", revision {tool.revision}" if tool.revision else ""
    facts = (
        Fact("Tool", f"{tool.name} {tool.version}{revision}"),
        Fact("Python", environment.python),
        Fact("Platform", environment.platform),
        Fact("Threads", str(environment.threads)),
        Fact("Seed", str(record.seed)),
        Fact("Record written", format_date(record.created)),
    )
    return Reproduction(
        record.command,
        facts,
        Table("Packages", ("Package", "Version"), tuple(sorted(environment.packages.items()))),
        Table("Content keys of what was read from the store", ("Stage", "Key"), tuple(record.stages.items()), mono=(1,)),
    )


def glossary(record: AuditRecord) -> tuple[Fact, ...]:
    """Terms of the report in plain words."""
    asked = {capital(finding.kind) for finding in record.findings}
    return tuple(Fact(term, text) for term, text in _GLOSSARY.items() if term not in _ASKED or term in asked)


_ASKED = ("Polysemanticity", "Redundancy")
"""Terms that only a report with such checks speaks of."""
_GLOSSARY = {
    "Acceptance criterion": "The bound that a measured quantity must keep, set in the spec together with its reason.",
    "Activation": "How strongly an image drives a component. Its unit is the component's own; only order and ratio "
    "within one component mean something.",
    "Alignment": "Likeness (cosine similarity, −1 to 1) between a component's reference crops and a concept. It "
    "means something only against its calibration, as z.",
    "Behavioural effect": "How far the class margin moves, in logits, between images with and without a concept, the "
    "class held fixed.",
    "Clarity": "How alike a component's reference crops are: their mean pairwise cosine similarity. Low clarity: a "
    "component of several meanings.",
    "Class margin": "The model's score for a class against its score for all others. A margin of 0 is a probability "
    "of 50 %; a shift by 1 logit makes 73 % of it, "
    "a shift by 3 logits 95 %.",
    "Component": "A unit of a layer: a channel of a convolutional network, or a neuron.",
    "Confidence interval": "The range of values that agree with the data: made in the same way again and again, such "
    "ranges hold the true value in the stated "
    "share of cases.",
    "Foundation model": "A model trained on many images (and texts), which makes image regions and concepts comparable.",
    "Inconclusive": "The interval reaches over the criterion: the data do not decide. This is not a pass.",
    "Layer": "A stage of the network; later layers hold more abstract components.",
    "Not measured": "The quantity could not be determined; the reason is stated. This is not a pass.",
    "Polysemanticity": "How far apart the two groups lie into which a component's reference crops fall best: 1 minus the cosine of "
    "their centres, 0 to 1. 0: one meaning; 1: two that have nothing in common. Crops without any meaning fall apart, too.",
    "Redundancy": "How alike a component is to the one most similar to it in its layer: a cosine, −1 to 1. 1: another says the same.",
    "Reference samples": "The images of the test data that drive a component most, cropped to what drives it.",
    "Relevance": "The part of a decision that flows through a component.",
    "Reliance": "The share of a class's relevance in a layer that flows through components that mean a concept; one that means several "
    "counts in parts.",
    "Smallest effect of interest": "Changes of the margin below it count as none when components are switched off.",
    "Spurious concept": "Something in the picture that a decision must not rest on.",
    "Switching off (ablation)": "Replacing a component's output by its mean over the test data, or by its output on another "
    "image, while an image passes through the network.",
    "Unexplained relevance": "The share that flows through components that mean no declared concept.",
    "Valid concept": "Something in the picture that a decision may rest on.",
    "z": "By how many standard deviations an alignment exceeds that of random reference sets.",
}
