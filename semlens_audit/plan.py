"""What is asked: the values of a spec and an audit file, validated and frozen.

The field names are the keys that people write; `semlens_audit.spec` reads them from YAML with line numbers, and
``semlens-audit schema`` exports them as JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Audit",
    "AuditPlan",
    "Autoencoder",
    "Catalogue",
    "Check",
    "CheckKind",
    "ClassSpec",
    "Clause",
    "Concept",
    "Criterion",
    "Data",
    "Example",
    "FoundationModel",
    "MeasurementSettings",
    "ModelSource",
    "Multiplicity",
    "Preprocessing",
    "Responsible",
    "Role",
    "Sensitivity",
    "Severity",
    "Spec",
    "Subject",
]

Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Name = Annotated[str, Field(min_length=1, max_length=500)]
"""Of a class, a layer or a column: what a model or a table calls it."""
PathText = Annotated[str, Field(max_length=2000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Role = Literal["valid", "spurious", "neutral"]
Severity = Literal["critical", "major", "minor"]
Multiplicity = Literal["holm", "bh", "none"]
CheckKind = Literal[
    "spurious_reliance",
    "valid_reliance",
    "unexplained_relevance",
    "concept_used",
    "concept_not_used",
    "behavioural_effect",
    "clarity",
    "polysemanticity",
    "redundancy",
    "subgroup_gap",
    "concept_presence",
    "pair_effect",
]


class _Asked(BaseModel):
    # Attribute docstrings become the descriptions of the JSON Schema that editors show while people write.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class Example(_Asked):
    """One example image of a concept."""

    image: Text
    """Path of the image, relative to the audit's ``examples_root`` (default: the spec's folder)."""
    box: tuple[int, int, int, int] | None = None
    """Region that shows the concept: x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive."""


class Concept(_Asked):
    """Something a model may look at, defined by descriptions, by example images, or by both."""

    id: Identifier
    title: str | None = Field(default=None, max_length=120)
    role: Role
    """Whether a decision may rest on it (valid), must not (spurious), or either (neutral), for every class."""
    roles: dict[Name, Role] = Field(default_factory=dict, max_length=1000)
    """Exceptions from `role`: class name of the spec -> role for that class."""
    descriptions: tuple[Text, ...] = Field(default=(), max_length=100)
    examples: tuple[Example, ...] = Field(default=(), max_length=500)
    attribute: Name | None = None
    """Column of the audit's attributes file that says whether a sample holds this concept (default: `id`)."""
    source: str | None = Field(default=None, max_length=1000)
    """Citation for the role given to it."""
    hazard: str | None = Field(default=None, max_length=1000)
    """What goes wrong when a decision rests on it."""

    def role_for(self, name: str) -> Role:
        """Role of the concept for class `name` of the spec."""
        return self.roles.get(name, self.role)

    @property
    def label(self) -> str:
        """Title to print."""
        return self.title or self.id.replace("_", " ").replace("-", " ")


class ClassSpec(_Asked):
    """A class whose decisions are audited."""

    title: str | None = Field(default=None, max_length=120)
    description: str | None = Field(default=None, max_length=1000)


class Criterion(_Asked):
    """Acceptance criterion: exactly one of the two bounds."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [bound], "properties": {bound: {"type": "number"}}} for bound in ("at_most", "at_least")]
        }
    )

    at_most: float | None = None
    at_least: float | None = None

    @property
    def operator(self) -> Literal["at_most", "at_least"]:
        """The bound that is set."""
        return "at_most" if self.at_most is not None else "at_least"

    @property
    def threshold(self) -> float:
        """The value of the bound that is set."""
        value = self.at_most if self.at_most is not None else self.at_least
        if value is None:
            raise ValueError("criterion without a bound")
        return value


class Check(_Asked):
    """One requirement with its acceptance criterion and the reason for its threshold."""

    id: Identifier
    kind: CheckKind
    for_class: Name = Field(alias="class")
    concepts: tuple[Identifier, ...] = Field(default=(), max_length=500)
    """Concepts concerned; empty means every concept of the role that `kind` speaks of."""
    layers: tuple[Name, ...] = Field(default=(), max_length=100)
    """Layers concerned; empty means every layer of the audit. Not for kinds that look at outputs or data, which need none."""
    statement: Text
    criterion: Criterion
    rationale: Text
    severity: Severity = "major"
    supports: tuple[Text, ...] = Field(default=(), max_length=100)
    """Clauses this check supports evidence for, as ``catalogue:clause``, e.g. ``eu-ai-act:art-10-2-f``."""


class Spec(_Asked):
    """A declarative specification: classes, concepts and checks; no model, no data."""

    spec: Identifier
    version: Text
    title: Text
    purpose: Text
    classes: dict[Name, ClassSpec] = Field(min_length=1, max_length=1000)
    concepts: tuple[Concept, ...] = Field(min_length=1, max_length=500)
    checks: tuple[Check, ...] = Field(min_length=1, max_length=1000)
    multiplicity: Multiplicity = "holm"
    """How claims that a criterion is violated are controlled over all measured findings: `holm` bounds the probability of any false
    one, `bh` the expected share of false ones, `none` leaves each at its own level. That all criteria are met needs no control:
    every one of them has to be shown."""
    templates: tuple[Text, ...] = Field(
        default=("{}", "a photo of {}", "a close-up of {}", "an image showing {}"), max_length=100
    )
    """Prompt templates; ``{}`` is replaced by each description and by the empty prompt."""

    def concept(self, identifier: str) -> Concept:
        """The concept with that id."""
        return next(concept for concept in self.concepts if concept.id == identifier)


class Clause(_Asked):
    """One clause of a standard or regulation."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    title: Annotated[str, Field(min_length=1, max_length=200)]
    summary: Text
    """What it asks, in your own words."""
    sections: tuple[Identifier, ...] = ()
    """Anchors of the report's sections that are evidence for it, whatever the checks."""
    note: Text | None = None
    """What it asks beyond what such a report can show, or why there is no evidence."""


class Catalogue(_Asked):
    """A standard or regulation whose clauses checks can support evidence for."""

    catalogue: Identifier
    title: Annotated[str, Field(min_length=1, max_length=200)]
    edition: Annotated[str, Field(min_length=1, max_length=200)]
    source: Text
    """Where its text is published."""
    clauses: tuple[Clause, ...] = Field(min_length=1, max_length=1000)


class Responsible(_Asked):
    """A person who answers for the audit."""

    name: Text
    role: Text
    organisation: Name | None = None


class ModelSource(_Asked):
    """Where a network comes from."""

    source: Literal["timm", "torchvision", "open_clip", "export", "code"]
    """open_clip: an image tower, as zero-shot classifier or with a linear `head`. export: a file that torch.export has saved."""
    name: Text
    """timm / torchvision / open_clip architecture; open_clip also: a model directory; export: ``path.pt2``; own code:
    ``path.py:function``. The last two need ``--allow-code``."""
    weights: PathText | None = None
    """Local ``.safetensors`` or ``.pt`` / ``.pth`` state dict, relative to the audit file, or ``phantom:NAME`` or
    ``signs:NAME`` for one shipped with the tool. Left out: for an open_clip model directory, for an exported program, and for own
    code that returns a trained network."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the architecture."""
    head: PathText | None = None
    """open_clip: weights file of a linear head on the image tower: `weight` (classes, embedding), `bias` (classes). Left out: the
    model classifies zero-shot, by its text tower."""
    normalised: bool = False
    """open_clip with `head`: whether the head reads image embeddings of unit length."""
    prompts: dict[Name, tuple[Text, ...]] = Field(default_factory=dict, max_length=100_000)
    """open_clip, zero-shot: class name of the model -> prompts that stand for it (default: the name itself)."""
    templates: tuple[Text, ...] = Field(default=(), max_length=200)
    """open_clip, zero-shot: templates of the class prompts, ``{}`` is replaced by each prompt (default: ``a photo of a {}.``)."""


class Preprocessing(_Asked):
    """From a decoded RGB image to the network's input."""

    resize: int | None = Field(default=None, ge=8, le=4096)
    """Length of the short side after resizing (bicubic, antialiased); none: resize straight to `size`."""
    size: int = Field(default=224, ge=8, le=4096)
    """Side of the square input (centre crop after `resize`), pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Autoencoder(_Asked):
    """A sparse autoencoder whose latents are audited as components of the layer ``LAYER.sae.latents``."""

    layer: Name
    """Layer whose activations it reads."""
    file: PathText
    """``.safetensors`` that ``semlens-audit sae train`` wrote, or one with the tensors `W_enc`, `W_dec`, `b_enc` and `b_dec`, relative
    to the audit file."""
    k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Latents that are active at most in one place, for a file that does not say; the number of all latents for an autoencoder with
    ReLU."""


class VirtualNeurons(_Asked):
    """Components of a layer that are split by what drives them, audited as the layer ``LAYER.virtual.units``."""

    layer: Name
    """Layer whose components were split."""
    file: PathText
    """``.safetensors`` that ``semlens-audit split`` wrote, relative to the audit file."""


class Subject(_Asked):
    """The audited model."""

    name: Text
    version: Name | None = None
    intended_purpose: str | None = Field(default=None, max_length=4000)
    model: ModelSource
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[str, ...] | str
    """Class names in the order of the model's outputs, or the path of a JSON list."""
    class_map: dict[Name, Name] = Field(default_factory=dict, max_length=1000)
    """Class name of the spec -> class name of the model, where they differ."""
    autoencoders: tuple[Autoencoder, ...] = Field(default=(), max_length=100)
    """Sparse autoencoders of its layers. `layers` may name their latents: ``LAYER.sae.latents``; attribution is then activation x
    gradient."""
    virtual_neurons: tuple[VirtualNeurons, ...] = Field(default=(), max_length=100)
    """Components that are split in two. `layers` may name a layer's components with them: ``LAYER.virtual.units``; attribution is then
    activation x gradient."""


class Data(_Asked):
    """The test data."""

    source: Literal["folder", "csv", "phantom", "signs"]
    """folder and csv: image files. phantom and signs: rendered dermoscopic images and rendered road signs, each with its
    attributes."""
    path: PathText | None = None
    """folder: root with one sub-folder per class, or with images only when `labels` is given. csv: folder of the images."""
    labels: PathText | None = None
    """CSV with one row per image."""
    image_column: Name = "path"
    label_column: Name = "label"
    image_suffix: Annotated[str, Field(max_length=50)] = ""
    """Appended to the value of `image_column`, e.g. ``.jpg``."""
    attributes: PathText | None = None
    """CSV with the image column and one 0/1 column per concept."""
    pairs: PathText | None = None
    """CSV of counterfactual pairs: columns ``without``, ``with`` (two images of `path`, alike but for the concept) and
    ``concept`` (its id). The images need not be samples."""
    rendered_pairs: int | None = Field(default=None, ge=2, le=20_000)
    """phantom, signs: how many scenes to render without and with each concept that a ``pair_effect`` check names."""
    pattern: str | None = None
    """folder: regular expression with a group ``class_index`` read from the file name instead of sub-folders."""
    groups: Name | None = None
    """Column that says which images belong together (photographs of one lesion, frames of one film): of the labels' table, else of the
    attributes' table. Images with the same value, and identical images in any case, count as one independent sample."""
    limit: int | None = Field(default=None, ge=1, le=10_000_000)
    """Use only that many samples, evenly spread over the sorted list."""
    samples: int = Field(default=400, ge=2, le=200_000)
    """phantom, signs: how many images to render."""
    seed: Seed = 0
    """phantom, signs: seed of the rendering."""
    description: str | None = Field(default=None, max_length=2000)

    @property
    def rendered(self) -> bool:
        """Whether the tool renders the images itself."""
        return self.source in ("phantom", "signs")


class FoundationModel(_Asked):
    """The model that gives crops and prompts a common meaning."""

    source: Literal["open_clip", "timm"]
    name: Text = "phantom:clip"
    """open_clip: ``phantom:clip``, a model directory, or an architecture name together with `weights`. timm: architecture."""
    weights: PathText | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    """timm only; open_clip brings its own."""
    statement: str | None = Field(default=None, max_length=2000)
    """What this model can and cannot tell in this domain; printed in the report."""


class MeasurementSettings(_Asked):
    """How the quantities are measured; every value is recorded in the report."""

    reference_samples: int = Field(default=30, ge=2, le=1000)
    selection: Literal["relevance", "activation"] = "relevance"
    """What makes a sample one of a component's reference samples: the size of the component's relevance for an audited class
    (relevance maximisation), or its pooled activation (activation maximisation, as in SemanticLens)."""
    pooling: Literal["max", "mean"] = "max"
    attribution: Literal["lrp", "activation_x_gradient", "auto"] = "lrp"
    """auto: for each layer, relevance propagation where the model has a rule for every operation and relevance is conserved on its
    test data, else activation x gradient; the report says which, and why."""
    crop_blur: int = Field(default=51, ge=1, le=501)
    """Side of the Gaussian blur kernel at 224 px, scaled with the input size."""
    crop_threshold: float = Field(default=0.01, gt=0, lt=1)
    """Share of the heatmap's maximum that is kept."""
    crop_minimum: int = Field(default=32, ge=1, le=4096)
    """Smallest side of a crop, pixels of the network's input."""
    concept_embedding: Literal["mean", "contrastive"] = "mean"
    """mean: the mean embedding of a component's crops (SemanticLens); contrastive: of what is left of them when for each crop the most
    similar one of samples that do not drive the component is projected out (contrastive semantic projection)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """How much of the contrastive crop is projected out, 0 to 1; `contrastive` only."""
    probe: Literal["template_difference", "cosine_difference"] = "template_difference"
    significance: float = Field(default=3.0, gt=0, le=1000)
    """Least z of an alignment against random reference sets."""
    false_discovery_rate: float = Field(default=0.05, gt=0, lt=1)
    null_sets: int = Field(default=1000, ge=100, le=100_000)
    """Random reference sets that make up the null distribution."""
    bootstrap: int = Field(default=1000, ge=100, le=100_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    minimum_samples: int = Field(default=30, ge=2, le=10_000_000)
    """Fewer samples of a class than this: not measured."""
    minimum_counterexamples: int = Field(default=10, ge=1, le=10_000_000)
    """Fewer samples than this in a cell of class x presence: neither the behavioural effect nor the subgroup gap is measured."""
    minimum_spread: float = Field(default=0.1, ge=0, le=1_000_000)
    """Least standard deviation of a class's margin over the test data, logits; below it, as in a network that was never trained,
    there is no decision, and what its relevance rests on is not measured."""
    minimum_recognition: float = Field(default=0.8, ge=0.5, le=1)
    """Least area under the ROC curve with which the foundation model recognises a concept, where that can be told; below it,
    what rests on the concept is not measured."""
    intervention: Literal["mean", "resampling", "both", "none"] = "both"
    """How components are switched off to confirm what relevance says: replaced by their mean over the test data, by their output
    on another sample drawn at random, both, or not at all."""
    intervention_samples: int = Field(default=300, ge=20, le=1_000_000)
    """Test samples on which components are switched off, at most; samples that hold a rare concept are drawn with preference."""
    control_sets: int = Field(default=20, ge=5, le=1000)
    """Random sets of components, as relevant as those of the concept, that each concept is compared with."""
    smallest_effect: float = Field(default=0.1, gt=0, le=10)
    """Smallest effect of interest, logits: what is wholly below it counts as no use of the concept."""
    batch_size: int = Field(default=64, ge=1, le=65_536)

    @property
    def method(self) -> Literal["lrp", "activation_x_gradient"]:
        """`attribution`, once it is no longer open."""
        if self.attribution == "auto":
            raise ValueError("the attribution of this layer has not been chosen yet")
        return self.attribution


class Sensitivity(_Asked):
    """What else the findings are compared with, beyond the settings that every audit varies."""

    layers: tuple[Name, ...] = Field(default=(), max_length=100)
    """Layers that are indexed and measured like those of the audit, to see whether the verdict would be the same there."""


class Audit(_Asked):
    """Binds a spec to a model, its data and a foundation model."""

    audit: Identifier
    title: Text
    spec: Text
    subject: Subject
    layers: tuple[Name, ...] = Field(min_length=1, max_length=100)
    data: Data
    foundation_model: FoundationModel = FoundationModel(source="open_clip")
    examples_root: PathText | None = None
    measurement: MeasurementSettings = MeasurementSettings()
    sensitivity: Sensitivity = Sensitivity()
    """What the findings are compared with to see what the verdict hangs on."""
    seed: Seed = 0
    responsible: tuple[Responsible, ...] = Field(default=(), max_length=50)
    limitations: tuple[Text, ...] = Field(default=(), max_length=100)
    """What the authors of the audit know it does not show; printed in the report."""
    qualification: Text | None = None
    """The ``qualification.json`` that the audit stands on, relative to the audit file; default: the one that comes with the
    tool."""
    store: PathText = "../.semlens/{audit}.duckdb"
    """Path of the store, relative to the audit file."""
    reports: PathText = "../reports"
    """Folder of the reports, relative to the audit file."""


class AuditPlan(_Asked):
    """A spec and an audit, checked against each other; nothing is loaded yet."""

    spec: Spec
    audit: Audit
    spec_file: str
    audit_file: str
    spec_digest: str
    """SHA-256 of the spec file's bytes."""
    audit_digest: str
    """SHA-256 of the audit file's bytes."""
    spec_text: str = ""
    """Content of the spec file."""
    audit_text: str = ""
    """Content of the audit file."""
    check_lines: dict[str, int] = Field(default_factory=dict)
    """check id -> 1-based line of the spec file."""
