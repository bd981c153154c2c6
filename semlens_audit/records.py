"""What was found: the frozen values of ``results.json``, from which every page, screen and exit code derives.

No value is NaN or infinite; what could not be measured carries a reason instead of a number.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from semlens_audit.data_records import (
    DataPicture,
    DataPresence,
    EffectRecord,
    PairEffectRecord,
    PresenceRecord,
    Proportion,
    SubgroupRecord,
)
from semlens_audit.errors import ExitCode
from semlens_audit.frozen import Frozen
from semlens_audit.intervention_records import (
    AblationRecord,
    ConfirmationRecord,
    ConfirmationState,
    ControlRecord,
    InterventionRecord,
)
from semlens_audit.measured import Interval, Measurement, Share, State
from semlens_audit.plan import CheckKind, Criterion, MeasurementSettings, Responsible, Role, Severity
from semlens_audit.release_records import (
    CatalogueRecord,
    ChangeRecord,
    DocumentRecord,
    GateRecord,
    InfluenceRecord,
    LockRecord,
    WaiverRecord,
)
from semlens_audit.standing_records import UNQUALIFIED, Identity, RateRecord, StandingRecord

__all__ = [
    "SCHEMA_VERSION",
    "UNQUALIFIED",
    "AblationRecord",
    "AuditRecord",
    "ClassLayer",
    "ComponentRecord",
    "ConceptRecord",
    "ContrastiveImage",
    "ConfirmationRecord",
    "ConfirmationState",
    "ControlRecord",
    "DataPicture",
    "DataPresence",
    "DataRecord",
    "EffectRecord",
    "Environment",
    "Finding",
    "FoundationRecord",
    "Identity",
    "Interval",
    "InterventionRecord",
    "LayerRecord",
    "Measurement",
    "PairEffectRecord",
    "PresenceRecord",
    "Proportion",
    "RateRecord",
    "ReferenceRecord",
    "ReferenceImage",
    "SensitivityChange",
    "SensitivityRecord",
    "StandingRecord",
    "State",
    "SubgroupRecord",
    "SubjectRecord",
    "ToolRecord",
    "Verdict",
]

SCHEMA_VERSION = "1.1"


class Finding(Frozen):
    """One check held against one measurement."""

    check: str
    kind: CheckKind
    class_name: str
    """Class of the spec."""
    layer: str | None
    """None for the behavioural line of evidence, which looks at no layer."""
    concepts: tuple[str, ...]
    line: Literal["mechanistic", "behavioural", "counterfactual", "data"]
    """Line of evidence: relevance inside the model; outputs on the test data; outputs on counterfactual pairs; the test data
    themselves and accuracy on parts of them."""
    statement: str
    criterion: Criterion
    rationale: str
    severity: Severity
    supports: tuple[str, ...] = ()
    measurement: Measurement
    state: State
    explanation: str
    """For the reader: what the interval says about the criterion."""
    p_value: float | None = None
    """Smallest alpha at which the interval of level 1 - alpha leaves the criterion's threshold out, two-sided; none where nothing
    was measured."""
    adjusted_p: float | None = None
    """The same of a claim that the criterion is violated, adjusted for all measured findings as the spec's `multiplicity` asks;
    none where the estimate meets the criterion, or nothing is adjusted."""
    components: tuple[int, ...] = ()
    """Components of the layer that carry the finding, most relevant first; keys into `LayerRecord.components`."""
    spec_line: int | None = None
    confirmation: ConfirmationRecord | None = None
    """What switching components off says of it; none where it names no concept or nothing was switched off."""

    @property
    def id(self) -> str:
        """What names it within its record: the check, and its layer or concept where the check has several results."""
        return f"{self.check}/{self.layer or ','.join(self.concepts) or self.class_name}"


class Verdict(Frozen):
    """Over all findings, whatever is waived; `GateRecord` decides on the release."""

    state: State
    exit_code: ExitCode
    """What the findings alone ask for."""
    headline: str
    """One sentence: what was found, naming classes and concepts."""
    satisfied: int = 0
    not_satisfied: int = 0
    inconclusive: int = 0
    not_measured: int = 0
    agreement: tuple[str, ...] = ()
    """Per concept that either line of evidence speaks against: whether the two lines agree, and if not, why."""


class SubjectRecord(Frozen):
    """The audited model."""

    name: str
    version: str | None
    intended_purpose: str | None
    architecture: str
    source: str
    weights_sha256: str
    """Of the tensors by name, dtype, shape and bytes, whatever file they came from."""
    parameters: int
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]
    accuracy: float | None = None
    """Share of test samples whose predicted class is their label."""
    arithmetic: str | None = None
    """Precision and device of its outputs on the test data; ``None``: not recorded."""


class DataRecord(Frozen):
    """The test data."""

    source: str
    description: str | None
    sha256: str
    """Of the manifest: sorted (relative path, content digest, label)."""
    samples: int
    per_class: dict[str, int]
    """Class of the model -> samples."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read, with the reason."""
    attributes: tuple[str, ...] = ()
    """Columns that say which sample holds which concept."""
    pairs: int = 0
    """Counterfactual pairs."""
    pairs_sha256: str | None = None
    """Of the pairs: sorted (concept, content digests of both images)."""


class FoundationRecord(Frozen):
    """The foundation model."""

    name: str
    source: str
    sha256: str
    dimension: int
    text: bool
    """Whether it embeds text; without, concepts are defined by example images only."""
    statement: str
    """What it can and cannot tell."""


class ConceptRecord(Frozen):
    """A concept as the record's pages name it."""

    id: str
    label: str
    role: Role
    roles: dict[str, Role] = Field(default_factory=dict)
    descriptions: tuple[str, ...] = ()
    examples: int = 0
    """How many example images define it."""
    source: str | None = None
    hazard: str | None = None
    probe_auroc: float | None = None
    """How well the probe made of its example crops tells a held-out example from other crops: area under the ROC curve."""
    presence_auroc: float | None = None
    """How well the foundation model tells samples with the concept from those without, where an attribute column says which
    they are: area under the ROC curve, 0 to 1."""
    definition_sha256: str | None = None
    """Of what defines it for the foundation model: descriptions, prompt templates, bytes and boxes of example images, and of the
    attribute column that says where it is; none in records of older versions."""


class ContrastiveImage(Frozen):
    """The contrastive crop of a reference sample: alike, of a sample that drives the component below average."""

    sample: str
    """Path of the sample, relative to the data's root."""
    box: tuple[int, int, int, int]
    """Crop x0, y0, x1, y1 in pixels of the network's input."""
    crop: str
    """Key into `AuditRecord.images`: the crop (JPEG)."""


class ReferenceImage(Frozen):
    """One reference sample of a component."""

    sample: str
    """Path of the sample, relative to the data's root."""
    activation: float
    """What ranks it among the component's reference samples: size of the relevance, or pooled activation, as `settings.selection`
    says."""
    box: tuple[int, int, int, int]
    """Crop x0, y0, x1, y1 in pixels of the network's input."""
    crop: str
    """Key into `AuditRecord.images`: the crop (JPEG)."""
    overlay: str
    """Key into `AuditRecord.images`: the whole input with heatmap and box (JPEG)."""
    contrastive: ContrastiveImage | None = None
    """What the concept embedding takes away from this crop; None where concept embeddings are means, and where no random
    crop is contrastive."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key into `AuditRecord.images`."""
        return (self.crop, self.overlay) if self.contrastive is None else (self.crop, self.overlay, self.contrastive.crop)


class ComponentRecord(Frozen):
    """A component of a layer, seen from one class."""

    component: int
    share: Share
    """Mean share of the class's relevance in the layer."""
    interval: Interval | None = None
    signed: float
    """Mean signed relevance over mean absolute relevance, -1 (against the class) to 1 (for it)."""
    assigned: str | None
    """Concept that it means most; none: unexplained."""
    meaning: dict[str, float] = Field(default_factory=dict)
    """concept -> part of its share that counts as relevance of the concept; adds up to 1, or is empty."""
    best: str | None
    """Concept of the largest z against random reference sets, significant or not."""
    alignment: dict[str, float]
    """concept -> cosine."""
    z: dict[str, float]
    """concept -> z against random reference sets."""
    clarity: float | None
    dead: bool = False
    """Never above zero on the data."""
    references: tuple[ReferenceImage, ...] = ()
    """Evidence; only for the components that pages show."""


class ReferenceRecord(Frozen):
    """Calibration of one concept in one layer: alignment of random reference sets."""

    concept: str
    null_mean: float
    null_deviation: float = Field(ge=0)


class LayerRecord(Frozen):
    """One audited layer."""

    layer: str
    components: int
    dead: int
    attribution: str
    """Method that gave the relevance, with the composite."""
    method: Literal["lrp", "activation_x_gradient"] | None = None
    """The same as a setting; None in records that are older."""
    choice: str | None = None
    """Why that method, where the audit left it open (``attribution: auto``)."""
    conservation: float | None = None
    """Median of (relevance in the layer) / (relevance at the output); 1 is conserved."""
    clarity: Measurement
    calibration: tuple[ReferenceRecord, ...] = ()


class ClassLayer(Frozen):
    """How one class's relevance in one layer divides over concepts."""

    class_name: str
    layer: str
    samples: int
    concepts: dict[str, Measurement]
    """concept -> reliance."""
    valid: Measurement
    spurious: Measurement
    neutral: Measurement
    unexplained: Measurement
    components: tuple[ComponentRecord, ...]
    """All components, most relevant first."""


class SensitivityChange(Frozen):
    """A finding whose state is another one under another setting."""

    check: str
    class_name: str
    layer: str | None
    """Layer looked into under the other setting; none where no layer is."""
    concepts: tuple[str, ...]
    before: State
    """Under the declared settings; of several layers, the gravest."""
    after: State


class SensitivityRecord(Frozen):
    """What would be found under one setting other than the declared one, everything else being equal."""

    knob: str
    """Which setting: ``reference samples``, ``prompt templates``, ``examples``, ``layer``, ``significance``, ``criteria``."""
    setting: str
    """Its other value, in words."""
    verdict: State | None = None
    """The verdict under it."""
    changes: tuple[SensitivityChange, ...] = ()
    """Findings of another state, in the order of the spec."""
    not_tried: str | None = None
    """Why it was not tried, as a clause, where there is no verdict."""

    @model_validator(mode="after")
    def _tried_or_reason(self) -> SensitivityRecord:
        if (self.verdict is None) == (self.not_tried is None):
            raise ValueError("a setting is either tried or has a reason why not")
        return self


class ToolRecord(Frozen):
    """The tool that made the record."""

    name: str = "semlens-audit"
    version: str
    revision: str | None = None
    """Git commit of a source checkout, with ``+dirty`` where files differ."""


class Environment(Frozen):
    """Where the run took place."""

    python: str
    platform: str
    packages: dict[str, str]
    threads: int


class AuditRecord(Frozen):
    """Everything a reader of a report sees."""

    schema_version: str = SCHEMA_VERSION
    tool: ToolRecord
    created: str
    """UTC, ISO 8601."""
    title: str
    audit: Identity
    spec: Identity
    purpose: str
    responsible: tuple[Responsible, ...] = ()
    subject: SubjectRecord
    data: DataRecord
    foundation_model: FoundationRecord
    settings: MeasurementSettings
    seed: int
    concepts: tuple[ConceptRecord, ...]
    layers: tuple[LayerRecord, ...]
    class_layers: tuple[ClassLayer, ...]
    effects: tuple[EffectRecord, ...]
    presence_in_data: tuple[DataPresence, ...] = ()
    """Concepts most strongly tied to an audited class first."""
    pair_effects: tuple[PairEffectRecord, ...] = ()
    interventions: tuple[InterventionRecord, ...] = ()
    """Components switched off, by class, layer and concept; empty where that was not asked."""
    findings: tuple[Finding, ...]
    verdict: Verdict
    limitations: tuple[str, ...]
    environment: Environment
    command: str
    """Command that reproduces the run, from the repository's root."""
    qualification: StandingRecord | None = None
    """How often the instrument is wrong, as far as that is known; none in records of older versions."""
    sensitivity: tuple[SensitivityRecord, ...] = ()
    """What the verdict would be under other settings; empty in records of older versions."""
    stages: dict[str, str] = Field(default_factory=dict)
    """stage -> key (content digest) of what was read from the store."""
    images: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the file -> JPEG, base64."""
    documents: tuple[DocumentRecord, ...] = ()
    """Spec, audit, and lock and waivers where there are any, as they stood."""
    catalogues: tuple[CatalogueRecord, ...] = ()
    """Standards and regulations that the crosswalk lists."""
    lock: LockRecord | None = None
    """None: the audit was not locked before it ran."""
    waivers: tuple[WaiverRecord, ...] = ()
    gate: GateRecord | None = None
    """None: nothing but the verdict was decided."""
    change: ChangeRecord | None = None
    """None: there is no baseline."""
    influences: tuple[InfluenceRecord, ...] = ()
    """What makes this record comparable in pairs with another on the same samples, see `semlens_audit.influence`."""

    def concept(self, identifier: str) -> ConceptRecord:
        """The concept with that id."""
        return next(concept for concept in self.concepts if concept.id == identifier)

    @property
    def exit_code(self) -> ExitCode:
        """What the process ends with: the gate's decision, or the verdict's where there is none."""
        return self.gate.exit_code if self.gate is not None else self.verdict.exit_code
