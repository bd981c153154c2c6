"""`semlens-audit layers`: the layers of an audit's model, or of an architecture by its name, with what to audit and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from semlens_audit import networks
from semlens_audit.attribution_choice import Choice, choose
from semlens_audit.clip_classifier import load_classifier
from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.exported import load_exported
from semlens_audit.layer_survey import LayerCost, Survey, default_layers, survey
from semlens_audit.model_rules import PLAIN_ARGUMENTS, wrong_argument
from semlens_audit.places import placed_in_audit
from semlens_audit.plan import AuditPlan, MeasurementSettings, ModelSource
from semlens_audit.subject import load_subject

__all__ = ["Listing", "list_architecture", "list_audit"]

_SOURCES = ("timm", "torchvision", "open_clip", "export")
_NOISE = 2
_SIZE = 224


@dataclass(frozen=True)
class Listing:
    """The layers of a model, with a choice of them.

    Parameters
    ----------
    model
        What was looked at, in words.
    trained
        Whether it has its weights; without them, what is said of attribution holds for random ones.
    found
        Its layers.
    chosen
        Layers that an audit does well to begin with.
    asked
        Layers that the audit file names; empty for an architecture.
    references
        Reference samples of each component.
    attribution
        Layer -> the attribution that applies, judged on noise, for those chosen and asked.
    """

    model: str
    trained: bool
    found: Survey
    chosen: tuple[str, ...]
    asked: tuple[str, ...]
    references: int
    attribution: Mapping[str, Choice]

    def crops(self, row: LayerCost) -> int | None:
        """Crops that auditing the layer embeds: one for each component and reference sample; ``None`` where it cannot be audited."""
        return None if row.components is None else row.components * self.references

    @property
    def principal(self) -> tuple[LayerCost, ...]:
        """Stages, blocks and what else stands at the top of the network, and the layers that are chosen or asked for."""
        rows = {row.name: row for row in self.found.layers}
        named = {*self.chosen, *self.asked}
        shown = []
        for row in self.found.layers:
            depth, at = 0, row.parent
            while at in rows:
                depth += self.found.share(rows[at].flops) < 0.9  # the trunk of the network is no level of its own
                at = rows[at].parent
            block = row.name.rpartition(".")[2].isdigit() and row.flops > row.own
            if row.name in named or depth == 0 or (depth == 1 and block):
                shown.append(row)
        return tuple(shown)

    def values(self) -> dict[str, Any]:
        """Everything as plain values, for scripts."""
        return {
            "model": self.model,
            "trained": self.trained,
            "size": self.found.size,
            "flops": self.found.flops,
            "default": list(self.chosen),
            "audited": list(self.asked),
            "unused": list(self.found.unused),
            "layers": [
                {
                    "name": row.name,
                    "type": row.kind,
                    "semantics": None if row.layout is None else _semantics(row),
                    "layout": None if row.layout is None else row.layout.value,
                    "shape": list(row.shape),
                    "components": row.components,
                    "grid": row.side,
                    "prefix_tokens": row.prefix,
                    "flops": row.flops,
                    "flops_share": self.found.share(row.flops),
                    "flops_until_here_share": self.found.share(row.before),
                    "crops": self.crops(row),
                    "default": row.name in self.chosen,
                    "refused": row.refusal or None,
                    "attribution": asdict(self.attribution[row.name]) if row.name in self.attribution else None,
                }
                for row in self.found.layers
            ],
        }


def _semantics(row: LayerCost) -> str:
    return {1: "units", 2: "token features", 3: "channels"}[len(row.shape)]


def list_audit(plan: AuditPlan, *, allow_code: bool = False) -> Listing:
    """List the layers of an audit's model, loaded with its weights; the layers that the audit names need not exist."""
    # Names that are wrong are what one may want to mend by this list.
    bare = plan.model_copy(update={"audit": plan.audit.model_copy(update={"layers": ()})})
    with placed_in_audit(plan):
        subject = load_subject(bare, allow_code=allow_code)
    settings = plan.audit.measurement
    return _listing(
        subject.model, subject.architecture, subject.preprocessing.size, True, plan.audit.layers, settings.reference_samples
    )


def list_architecture(name: str, size: int | None, arguments: Mapping[str, Any], *, allow_code: bool = False) -> Listing:
    """List the layers of an architecture.

    Parameters
    ----------
    name
        ``timm:NAME`` or ``torchvision:NAME``, with random weights; ``open_clip:DIRECTORY`` or ``export:FILE.pt2``.
    size
        Side of the square input, pixels; default: what the model says, else 224.
    arguments
        Keyword arguments of the architecture.
    allow_code
        Whether an exported program may be read.

    Raises
    ------
    UsageError
        ``unknown-model``: no such source. ``bad-arguments``: one names other files or weights, or is gigantic; audits refuse it too.
    """
    source, colon, rest = name.partition(":")
    if not colon or source not in _SOURCES or not rest:
        raise UsageError(
            "unknown-model",
            f"`{name}` is neither an audit file that exists nor a model.",
            "Write e.g. audits/mine.yaml, timm:resnet18, torchvision:vgg16, open_clip:path/to/model or export:path/to/model.pt2.",
        )
    if (wrong := wrong_argument(arguments)) is not None:
        raise UsageError("bad-arguments", wrong[1], PLAIN_ARGUMENTS)
    asked = ModelSource(source=source, name=rest, arguments=dict(arguments))  # type: ignore[arg-type]
    if source == "open_clip":
        from semlens_audit.paths import resolve

        folder = resolve(Path("audit.yaml"), rest)
        model = load_classifier(asked, folder, None, None, ("this", "that"), None)
    elif source == "export":
        model = load_exported(Path(rest), size or _SIZE, _NOISE, allow_code=allow_code).float().eval().requires_grad_(False)
    else:
        model = networks.build(asked)
    return _listing(model, f"{source} {Path(rest).name}", size or _native_size(model), source in ("open_clip", "export"), (), None)


def _native_size(model: torch.nn.Module) -> int:
    """Side of the input that the model was made for, as far as it says."""
    visual = getattr(model, "visual", None)
    for place, key in ((visual, "image_size"), (getattr(model, "patch_embed", None), "img_size"), (model, "image_size")):
        said = getattr(place, key, None)
        said = said[-1] if isinstance(said, tuple | list) and said else said
        if isinstance(said, int):
            return said
    settings = getattr(model, "pretrained_cfg", None)
    said = settings.get("input_size") if isinstance(settings, Mapping) else None
    return int(said[-1]) if said else _SIZE


def _listing(
    model: torch.nn.Module, words: str, size: int, trained: bool, asked: tuple[str, ...], references: int | None
) -> Listing:
    try:
        found = survey(model, size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SubjectError(
            "model-fails",
            f"The model does not run on a {size} x {size} RGB input: {type(error).__name__}: {error}.",
            "Say which size it takes: --size, or `preprocessing.size` in the audit.",
        ) from error
    chosen = default_layers(found)
    auditable = {row.name for row in found.layers if row.layout is not None}
    noise = torch.randn((_NOISE, 3, size, size), generator=torch.Generator().manual_seed(0))
    judged = [row.name for row in found.layers if row.name in auditable & {*chosen, *asked}]
    return Listing(
        model=words,
        trained=trained,
        found=found,
        chosen=chosen,
        asked=asked,
        references=references or int(MeasurementSettings().reference_samples),
        attribution=choose(model, noise, judged) if judged else {},
    )
