"""Rules of an audit file for what is spliced into the network: sparse autoencoders, virtual neurons, and the layers that these are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semlens_audit.confinement import confined, kind_of
from semlens_audit.errors import SpecError, SubjectError
from semlens_audit.sae_header import LATENTS, latents_of, read_dictionary
from semlens_audit.spec_rules import texts
from semlens_audit.virtual_header import UNITS, read_splitting, units_of
from semlens_audit.yaml_source import KeyPath

if TYPE_CHECKING:
    from semlens_audit.audit_rules import AuditSource

__all__ = ["check_autoencoders", "check_virtual_neurons"]


def check_autoencoders(audit: AuditSource) -> None:
    """Rules of sparse autoencoders and of the layers that are their latents; of their files, the headers are read."""
    given = audit.get("subject", "autoencoders")
    known: set[str] = set()
    for index, one in enumerate(given if isinstance(given, list) else []):
        layer = one.get("layer") if isinstance(one, Mapping) else None
        if not isinstance(layer, str):
            continue
        if latents_of(layer) in known:
            audit.add(
                "duplicate-autoencoder", ("subject", "autoencoders", index, "layer"), f"layer `{layer}` has an autoencoder already.",
                "Keep one: its latents are one layer.",
            )  # fmt: skip
        known.add(latents_of(layer))
        _dictionary(audit, one, index)
    words = ("is no autoencoder whose latents are", "is the latents of an autoencoder", "autoencoders")
    _spliced_layers(audit, LATENTS, known, *words)


def check_virtual_neurons(audit: AuditSource) -> None:
    """Rules of virtual neurons and of the layers that they are in; of their files, the headers are read."""
    given = audit.get("subject", "virtual_neurons")
    known: set[str] = set()
    for index, one in enumerate(given if isinstance(given, list) else []):
        layer = one.get("layer") if isinstance(one, Mapping) else None
        if not isinstance(layer, str):
            continue
        if units_of(layer) in known:
            audit.add(
                "duplicate-virtual-neurons", ("subject", "virtual_neurons", index, "layer"), f"layer `{layer}` is split already.",
                "Keep one: its components with virtual neurons are one layer.",
            )  # fmt: skip
        known.add(units_of(layer))
        _splitting(audit, one, index)
    words = ("are no virtual neurons for", "has virtual neurons", "virtual_neurons")
    _spliced_layers(audit, UNITS, known, *words)


def _spliced_layers(audit: AuditSource, ending: str, known: set[str], lacking: str, being: str, key: str) -> None:
    """Rules of the audited layers whose names end in `ending`, of which `known` are there."""
    attribution = audit.text("measurement", "attribution")
    for at in (("layers",), ("sensitivity", "layers")):
        for index, layer in texts(audit.get(*at[:-1]) if at[:-1] else audit.source.data, "layers"):
            if not layer.endswith(ending):
                continue
            if layer not in known:
                audit.add(
                    "unknown-layer", (*at, index), f"there {lacking} `{layer}`.",
                    f"Name it in `subject.{key}`: {{layer: {layer.removesuffix(ending)}, file: ...}}.",
                )  # fmt: skip
            elif attribution in (None, "lrp"):
                audit.add(
                    "lrp-not-applicable", ("measurement", "attribution") if attribution else (*at, index),
                    f"`{layer}` {being}, which have no rule of relevance propagation.",
                    "Write `measurement: {attribution: activation_x_gradient}`, or `auto` to decide layer by layer.",
                )  # fmt: skip


def _splitting(audit: AuditSource, one: Mapping[str, Any], index: int) -> None:
    """Rules of one file of virtual neurons."""
    at = ("subject", "virtual_neurons", index, "file")
    path = _spliced_file(audit, at, one.get("file"), "the file of virtual neurons", "Make it with `semlens-audit split`.")
    if path is None:
        return
    try:
        found = read_splitting(path).splitting
    except SubjectError as error:
        audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
        return
    if found.layer != one.get("layer"):
        audit.add(
            "other-layer", at, f"components of layer `{found.layer}` were split, not of `{one.get('layer')}`.",
            "Name the layer that was split.",
        )  # fmt: skip


def _spliced_file(audit: AuditSource, at: KeyPath, text: object, what: str, hint: str) -> Path | None:
    """The file that `text` names, where it may be read and is there."""
    if not isinstance(text, str) or not text:
        return None
    try:
        path = confined(audit.file, text)
    except SpecError as error:
        audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
        return None
    if not audit.check_files:
        return None
    if kind_of(path) != "file":
        audit.add("missing-file", at, f"{what} is not there: {path}.", hint)
        return None
    return path


def _dictionary(audit: AuditSource, one: Mapping[str, Any], index: int) -> None:
    """Rules of one autoencoder's file."""
    at = ("subject", "autoencoders", index, "file")
    path = _spliced_file(audit, at, one.get("file"), "the autoencoder", "Train it with `semlens-audit sae train`.")
    if path is None:
        return
    try:
        found = read_dictionary(path)
    except SubjectError as error:
        audit.add(error.slug, at, error.problems[0].message, error.problems[0].hint)
        return
    if found.training is None and one.get("k") is None:
        audit.add(
            "autoencoder-without-k", at, "the file does not say how many latents are active at most.",
            f"Write `k` beside it; {found.latents} for an autoencoder with ReLU.",
        )  # fmt: skip
    if found.training is not None and found.training.layer != one.get("layer"):
        audit.add(
            "other-layer", at, f"the autoencoder was trained on layer `{found.training.layer}`, not on `{one.get('layer')}`.",
            "Name the layer that it was trained on.",
        )  # fmt: skip
