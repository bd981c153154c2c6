"""The stages of an index and their keys: content digests of everything a stage depends on. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from semlens_audit import foundation
from semlens_audit.data import DataSet, class_names
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import DataError
from semlens_audit.headroom import indexed
from semlens_audit.paths import examples_root, resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import alternatives
from semlens_audit.sae_header import autoencoder_of, identity
from semlens_audit.subject import source_digest
from semlens_audit.virtual_header import identity as virtual_identity
from semlens_audit.virtual_header import virtual_of

__all__ = ["NULL_CROPS", "THUMBNAILS", "audited_classes", "stage_inputs", "stage_keys"]

NULL_CROPS = 2000
"""Random crops that stand for "no concept in particular", per layer."""

THUMBNAILS = 8
"""Reference samples of each component that get pictures."""

_MODEL = (
    "arithmetic.py", "subject.py", "networks.py", "weights.py", "images.py", "views.py", "clip_classifier.py", "exported.py",
    "open_clip_models.py",
)  # fmt: skip
_FORWARD = ("inference.py", "precision.py")
_MEANING = (
    "arithmetic.py", "foundation.py", "image_parts.py", "images.py", "inference.py", "networks.py", "open_clip_models.py", "regions.py",
    "subject.py", "weights.py",
)  # fmt: skip
_ATTRIBUTION = ("attribution*.py", "components.py", "cropping.py", "layouts.py", "lrp*.py")


@cache
def _code(*patterns: str) -> str:
    """Digest of the modules that compute a stage: a changed rule never reuses what an older one stored."""
    folder = Path(__file__).parent
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return digest({path.name: digest_file(path) for path in files})


def audited_classes(plan: AuditPlan) -> tuple[int, ...]:
    """Index among the model's outputs of each class of the spec, in the spec's order.

    Raises
    ------
    DataError
        ``class-not-in-model``: a class of the spec is none of the model's.
    """
    names = class_names(plan)
    wanted = [plan.audit.subject.class_map.get(name, name) for name in plan.spec.classes]
    for name in wanted:
        if name not in names:
            raise DataError(
                "class-not-in-model",
                f"The model has no class {name!r}.",
                "Say in `subject.class_map` what the class of the spec is called in the model.",
                file=plan.audit_file,
            )
    return tuple(names.index(name) for name in wanted)


def stage_inputs(plan: AuditPlan, data: DataSet, file_digest: Callable[[Path], str] = digest_file) -> dict[str, dict[str, Any]]:
    """Everything each stage depends on, by digest or value, as canonical JSON can hold it.

    Parameters
    ----------
    plan
        The audit.
    data
        Its test data.
    file_digest
        Gives the SHA-256 of a file, for the example images of concepts.

    Returns
    -------
    dict
        stage -> inputs. ``images`` (every image decodes), ``outputs``, ``pairs`` (outputs on
        counterfactual pairs, where there are any), ``references:LAYER``, ``crops:LAYER``,
        ``relevance:LAYER``, ``attribution:LAYER`` (the method that applies, where the audit leaves it open),
        ``selection:LAYER`` (reference samples by relevance, where the audit asks for them),
        ``foundation`` (facts about the foundation model on this data; its key names the pool of region embeddings), ``views``
        (embeddings of whole inputs), ``embeddings:LAYER`` (of the crops), ``null:LAYER`` (of random crops),
        ``contrast:LAYER`` (contrastive crops, where the audit asks for them), ``probes``.
    """
    audit = plan.audit
    view = audit.subject.preprocessing
    model = {
        "subject": source_digest(plan, audit.subject.model),
        "preprocessing": view.model_dump(mode="json"),
        "data": data.sha256,
        "code": _code(*_MODEL),
    }
    meaning = foundation.foundation_digest(plan)
    inputs: dict[str, dict[str, Any]] = {
        "images": {"stage": "images", "data": data.sha256, "code": _code("images.py")},
        "outputs": {
            "stage": "outputs",
            **model,
            "classes": list(class_names(plan)),
            "code": _code(*_MODEL, *_FORWARD, "layouts.py", "passes.py"),
        },
        "foundation": {
            "stage": "foundation",
            "foundation": meaning,
            "data": data.sha256,
            "geometry": view.model_dump(mode="json", include={"resize", "size", "interpolation"}),
            "code": _code(*_MEANING, "views.py"),
        },
    }
    if data.pairs is not None:
        images = [sha256 for sha256, _ in data.pairs.images]
        inputs["pairs"] = {
            **inputs["outputs"],
            "stage": "pairs",
            "data": digest(images),
            "code": _code(*_MODEL, *_FORWARD, "layouts.py", "pairs.py"),
        }
    pool = digest(inputs["foundation"])
    inputs["views"] = {"stage": "views", "pool": pool}
    for layer in indexed(plan).audit.layers:
        spliced = {**_autoencoder(plan, layer, file_digest), **_virtual(plan, layer, file_digest)}
        inputs.update(_layer_inputs(plan, {**model, **spliced}, layer, pool))
    inputs["probes"] = _probe_inputs(plan, meaning, file_digest)
    return inputs


def _autoencoder(plan: AuditPlan, layer: str, file_digest: Callable[[Path], str]) -> dict[str, Any]:
    """What the latents of an autoencoder depend on besides the network; nothing of another layer does, which it leaves as it is."""
    one = autoencoder_of(plan.audit, layer)
    if one is None:
        return {}
    return {"autoencoder": {**identity(one, resolve(plan, one.file), file_digest), "code": _code("sae/model.py", "sae/splice.py")}}


def _virtual(plan: AuditPlan, layer: str, file_digest: Callable[[Path], str]) -> dict[str, Any]:
    """What a layer with virtual neurons depends on besides the network."""
    one = virtual_of(plan.audit, layer)
    if one is None:
        return {}
    code = _code("virtual/circuits.py", "virtual/splice.py")
    return {"virtual": {**virtual_identity(one, resolve(plan, one.file), file_digest), "code": code}}


def _layer_inputs(plan: AuditPlan, model: dict[str, Any], layer: str, pool: str) -> dict[str, dict[str, Any]]:
    """The stages of one layer; `pool` is the key of the region embeddings."""
    inputs = _reference_inputs(indexed(plan), model, layer)
    crops, m = digest(inputs[f"crops:{layer}"]), plan.audit.measurement.reference_samples
    inputs[f"embeddings:{layer}"] = {"stage": "embeddings", "crops": crops, "pool": pool}
    inputs[f"null:{layer}"] = {
        "stage": "null",
        "crops": crops,
        "references": m,
        # The draw of random crops is that of an index without headroom.
        "draw": digest(_reference_inputs(plan, model, layer)[f"crops:{layer}"]),
        "pool": pool,
        "count": NULL_CROPS,
        "seed": plan.audit.seed,
        "code": _code("regions.py"),
    }
    if plan.audit.measurement.concept_embedding == "contrastive":
        inputs[f"contrast:{layer}"] = {
            "stage": "contrast",
            "references": digest(inputs[f"references:{layer}"]),
            "crops": crops,
            "null": digest(inputs[f"null:{layer}"]),
            "pool": pool,
            "seed": plan.audit.seed,
            "code": _code("contrast*.py"),
        }
    return inputs


def _reference_inputs(plan: AuditPlan, model: dict[str, Any], layer: str) -> dict[str, dict[str, Any]]:
    """The stages of one layer up to its crops."""
    settings = plan.audit.measurement
    inputs: dict[str, dict[str, Any]] = {}
    references = {
        "stage": "references",
        **model,
        "layer": layer,
        "pooling": settings.pooling,
        "m": settings.reference_samples,
        "code": _code(*_MODEL, *_FORWARD, "components.py", "layouts.py", "passes.py"),
    }
    relevance = {
        "stage": "relevance",
        **model,
        "layer": layer,
        "attribution": settings.attribution,
        "classes": list(audited_classes(plan)),
        "code": _code(*_MODEL, *_ATTRIBUTION, "passes.py"),
    }
    chosen = references
    if settings.selection == "relevance":
        chosen = {
            "stage": "selection",
            "relevance": digest(relevance),
            "m": settings.reference_samples,
            "code": _code("components.py", "selection.py"),
        }
        inputs[f"selection:{layer}"] = chosen
    crops = {
        "stage": "crops",
        "references": digest(chosen),
        "attribution": settings.attribution,
        "blur": settings.crop_blur,
        "threshold": settings.crop_threshold,
        "minimum": settings.crop_minimum,
        "thumbnails": THUMBNAILS,
        "code": _code(*_ATTRIBUTION, "crops.py", "thumbnails.py"),
    }
    if settings.attribution == "auto":
        # Which method it comes to depends on nothing that is not in the keys of relevance and crops as well.
        inputs[f"attribution:{layer}"] = {
            "stage": "attribution", **model, "layer": layer, "code": _code(*_MODEL, *_ATTRIBUTION)
        }  # fmt: skip
    inputs[f"references:{layer}"] = references
    inputs[f"crops:{layer}"] = crops
    inputs[f"relevance:{layer}"] = relevance
    return inputs


def _probe_inputs(plan: AuditPlan, meaning: str, file_digest: Callable[[Path], str]) -> dict[str, Any]:
    text = foundation.has_text_tower(plan)
    root = examples_root(plan)
    concepts = {}
    for concept in plan.spec.concepts:
        examples = []
        for example in concept.examples:
            path = root / example.image
            if not path.is_file():
                raise DataError(
                    "missing-example",
                    f"The example image of concept {concept.id!r} does not exist.",
                    "Mend its path in the spec, or `examples_root` in the audit.",
                    file=str(path),
                )
            examples.append([file_digest(path), list(example.box) if example.box else None])
        # An image-only model never sees the descriptions, so rewording one must not cost a new index.
        concepts[concept.id] = {"descriptions": list(concept.descriptions) if text else [], "examples": examples}
    return {
        "stage": "probes",
        "foundation": meaning,
        "templates": list(plan.spec.templates) if text else [],
        "alternatives": alternatives(plan.spec.templates) if text else [],
        "concepts": concepts,
        "code": _code(*_MEANING),
    }


def stage_keys(plan: AuditPlan, data: DataSet, file_digest: Callable[[Path], str] = digest_file) -> dict[str, str]:
    """Key of every stage of the plan: SHA-256 of its inputs; see `stage_inputs`."""
    return {name: digest(inputs) for name, inputs in stage_inputs(plan, data, file_digest).items()}
