"""What the test data and outputs on them show: parts of `semlens_audit.records.AuditRecord`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from semlens_audit.frozen import Frozen
from semlens_audit.measured import Interval, Measurement

__all__ = [
    "DataPicture",
    "DataPresence",
    "EffectRecord",
    "PairEffectRecord",
    "PresenceRecord",
    "Proportion",
    "SubgroupRecord",
]


class PresenceRecord(Frozen):
    """How often a concept is present, by class: the cells that a behavioural effect rests on."""

    source: Literal["foundation model", "attributes"]
    present: dict[str, int]
    """class of the model -> samples that hold the concept."""
    absent: dict[str, int]
    separation: float | None = None
    """Distance of the scores of present and absent samples in their common standard deviation (Ashman's D); none for an
    attribute column."""


class EffectRecord(Frozen):
    """The behavioural line of evidence for one class and concept."""

    class_name: str
    concept: str
    effect: Measurement
    presence: PresenceRecord


class Proportion(Frozen):
    """How many of a group of samples have something in common."""

    hits: int = Field(ge=0)
    n: int = Field(ge=0)
    interval: Interval | None = None
    """Of the share; none where the group is empty."""


class SubgroupRecord(Frozen):
    """One concept against one audited class in the test data: where the concept occurs, and how the model fares with it."""

    class_name: str
    inside: Proportion
    """Samples of the class that hold the concept."""
    outside: Proportion
    """Samples of all other classes that hold it."""
    difference: Measurement
    """Share inside minus share outside."""
    recall_with: Proportion
    """Samples of the class that hold the concept and are recognised as of the class."""
    recall_without: Proportion
    gap: Measurement
    """Recall with the concept minus recall without."""
    false_with: Proportion
    """Samples of all other classes that hold the concept and are taken for the class."""
    false_without: Proportion


class DataPicture(Frozen):
    """A test image that holds a concept."""

    sample: str
    """Path, relative to the data's root."""
    group: str
    """Audited class of the spec whose sample it is; ``other classes`` for all that are not audited."""
    label: str
    """Class of the model."""
    predicted: str
    image: str | None = None
    """Key into `AuditRecord.images`: what the network sees (JPEG); none where no picture was made."""


class DataPresence(Frozen):
    """Where one concept occurs in the test data."""

    concept: str
    source: Literal["foundation model", "attributes"]
    unknown: int = 0
    """Samples of which the attributes do not say whether they hold it."""
    not_measured: str | None = None
    """Why its presence is not known, where it is not."""
    entangled: tuple[str, ...] = ()
    """Audited classes that the data tie it to."""
    by_class: dict[str, Proportion] = Field(default_factory=dict)
    """Class of the model -> samples that hold it; classes with samples only."""
    subgroups: tuple[SubgroupRecord, ...] = ()
    """One entry per audited class."""
    pictures: tuple[DataPicture, ...] = ()


class PairEffectRecord(Frozen):
    """Counterfactual pairs of one concept: how the margin of one class changes from the image without to the image with it."""

    class_name: str
    concept: str
    effect: Measurement
    """`Measurement.n` counts pairs that share no image."""
    pairs: int
    towards: int = 0
    """Pairs whose decision turns to the class."""
    away: int = 0
    """Pairs whose decision turns from the class."""
