"""What an audit stands on: which qualification of the instrument applies to it, and what differs from what was qualified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semlens_audit.certificate import ALL, Qualification, WorldRecord, read_qualification
from semlens_audit.digest import digest_file
from semlens_audit.measure import INTERVENTION_SETTINGS, MODULES
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan, MeasurementSettings
from semlens_audit.records import UNQUALIFIED, Finding, FoundationRecord, Identity, RateRecord, StandingRecord
from semlens_audit.sae_header import autoencoder_of
from semlens_audit.source_digest import essence
from semlens_audit.virtual_header import virtual_of
from semlens_audit.wording import count, format_date, format_number, join

__all__ = ["SHIPPED", "code_digests", "differences", "family", "qualification_file", "shared_settings", "shown", "standing"]

SHIPPED = Path(__file__).parent / "qualification" / "qualification.json"
"""The qualification that comes with the tool, where it does."""

_PRESENTED = {"gallery", "records"}
"""Modules that values are kept and shown with; they measure and decide nothing."""
_STAGES = (
    "arithmetic", "attribution", "attribution_choice", "attribution_maps", "attribution_pass", "clip_classifier",
    "components", "contrast", "contrast_pass",
    "cropping", "crops", "data", "exported", "foundation", "image_parts", "images", "index", "inference", "layouts", "lrp",
    "lrp_conditional", "lrp_modes", "lrp_pulls", "lrp_rules", "networks", "open_clip_models", "passes", "precision", "prefetch",
    "probe_texts", "reading", "regions", "selection", "stages", "subject", "vectors", "verdict", "views", "weights",
)  # fmt: skip
_UNLIKE = {"attribution", "batch_size", *INTERVENTION_SETTINGS}
"""Settings that no two qualified audits need to share: the attribution goes by the architecture, and the others change no finding."""
_FAMILIES = {
    "residual": ("resnet", "resnext", "wide_resnet", "seresnet"),
    "plain": ("vgg", "plain.py"),
    "transformer": ("vit_", "deit_"),
}
_HELD_BACK = "held_back"
_SHOWN = ("true_positive", "missed", "false_positive_small", "false_positive", "inconclusive", "coverage", "flips")


def code_digests() -> dict[str, str]:
    """Module -> digest of its code without comments and docstrings, of every module that measures or decides."""
    folder = Path(__file__).parent
    names = sorted({*MODULES, *_STAGES} - _PRESENTED)
    return {name: essence(folder / f"{name}.py") for name in names}


def shared_settings(settings: MeasurementSettings) -> dict[str, Any]:
    """Settings that a qualified audit has to share, as JSON has them."""
    return settings.model_dump(mode="json", exclude=_UNLIKE)


def family(architecture: str) -> str | None:
    """Family of the qualification that an architecture belongs to, as far as its name tells.

    Parameters
    ----------
    architecture
        Library and name, as `SubjectRecord.architecture` has it: ``timm resnet18``.
    """
    name = architecture.rpartition(" ")[2].partition(":")[0].lower()
    return next((kind for kind, prefixes in _FAMILIES.items() if name.startswith(prefixes)), None)


def shown(rate: RateRecord) -> str:
    """``97 % (93–99 %)`` for a proportion, ``0.98 (0.95–1.00)`` for an area or a correlation, or that it was not measured."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "not measured"
    if rate.name.startswith(("auroc", "rank_correlation")):
        between = " to " if rate.low < 0 else "–"
        low, value, high = (format_number(number, 2) for number in (rate.low, rate.value, rate.high))
        return f"{value} ({low}{between}{high})"
    # One decimal more than the interval earns, so that no rounding carries a value across what it is held against.
    low, high = (f"{100 * number:.{0 if rate.high - rate.low > 0.02 else 1}f}" for number in (rate.low, rate.high))
    value = f"{100 * rate.value:.1f}".removesuffix(".0")
    return f"{value}\u00a0% ({low}–{high}\u00a0%)"


def differences(
    qualified: Qualification,
    plan: AuditPlan,
    *,
    foundation: FoundationRecord,
    data_source: str,
    samples: int,
    architecture: str,
    findings: Sequence[Finding],
    attributions: Sequence[str] = (),
) -> tuple[tuple[str, ...], WorldRecord | None]:
    """What differs between an audit and what was qualified.

    Parameters
    ----------
    foundation
        Its foundation model.
    data_source, samples
        Kind and number of its test samples.
    architecture
        Of its subject, as `SubjectRecord.architecture` has it.
    findings
        For their criteria.
    attributions
        Methods that its layers were attributed by, where the audit leaves them open.

    Returns
    -------
    clauses : tuple of str
        Empty where nothing differs.
    world : WorldRecord or None
        The qualified world whose foundation model the audit uses.
    """
    settings, layers = plan.audit.measurement, plan.audit.layers
    found: list[str] = []
    worlds = [world for world in qualified.worlds if world.foundation_model.sha256 == foundation.sha256]
    world = next((world for world in worlds if world.data_source == data_source), worlds[0] if worlds else None)
    if world is None:
        found.append(f"the foundation model {foundation.name} is none of those qualified")
    if world is None or world.data_source != data_source:
        known = join([f"“{other.name}”" for other in qualified.worlds])
        found.append(f"the test data are not of a rendered world that was qualified ({known})")
    elif samples < world.samples:
        found.append(f"{count(samples, 'test sample')} instead of {world.samples:,}")
    kind = family(architecture)
    if kind is None or kind not in qualified.attributions:
        found.append(f"the architecture {architecture} is of no qualified family ({join(list(qualified.attributions))})")
    else:
        methods = set(attributions) or {settings.attribution}
        if methods != {qualified.attributions[kind]}:
            found.append(f"attribution {join(sorted(methods))} instead of {qualified.attributions[kind]}")
    if kind in qualified.layers and len(layers) != len(qualified.layers[kind]):
        found.append(f"{count(len(layers), 'audited layer')} instead of {len(qualified.layers[kind])}")
    found += [f"latents of a sparse autoencoder in {layer}" for layer in layers if autoencoder_of(plan.audit, layer)]
    found += [f"virtual neurons in {layer}" for layer in layers if virtual_of(plan.audit, layer)]
    own, default = shared_settings(settings), shared_settings(MeasurementSettings())
    for name, value in own.items():
        # A setting that is younger than the qualification was at its default then.
        other = qualified.settings.get(name, default[name])
        if value != other:
            found.append(f"{name} {value} instead of {other}")
    if world is not None:
        found += _criteria(world, findings)
        if plan.spec.multiplicity != world.multiplicity:
            found.append(f"correction for multiplicity {plan.spec.multiplicity} instead of {world.multiplicity}")
    changed = sorted(name for name, value in code_digests().items() if qualified.code.get(name) != value)
    changed += sorted(set(qualified.code) - set(code_digests()))
    if changed:
        named = join(changed[:4]) if len(changed) <= 4 else f"{', '.join(changed[:3])} and {len(changed) - 3} more"
        found.append(f"the code that measures has changed since ({named})")
    return tuple(found), world


def _criteria(world: WorldRecord, findings: Sequence[Finding]) -> list[str]:
    """Criteria of checks on single concepts that are not the qualified ones."""
    found: dict[str, None] = {}
    for finding in findings:
        wanted = world.criteria.get(finding.kind)
        if wanted is None or len(finding.concepts) != 1 or finding.criterion.operator != "at_most":
            continue
        if finding.criterion.threshold != wanted:
            found[f"criterion of {finding.check}: at most {finding.criterion.threshold:g} instead of {wanted:g}"] = None
    return list(found)


def qualification_file(plan: AuditPlan) -> Path | None:
    """The ``qualification.json`` that the audit names, else the one that comes with the tool, or ``None`` where neither is."""
    if plan.audit.qualification is not None:
        return resolve(plan, plan.audit.qualification)
    return SHIPPED if SHIPPED.is_file() else None


def standing(
    plan: AuditPlan,
    *,
    foundation: FoundationRecord,
    data_source: str,
    samples: int,
    architecture: str,
    findings: Sequence[Finding],
    attributions: Sequence[str] = (),
) -> StandingRecord:
    """What an audit stands on: the ``qualification.json`` that it names, else the one that comes with the tool, if it does.

    Parameters
    ----------
    foundation, data_source, samples, architecture, findings, attributions
        See `differences`.

    Raises
    ------
    AuditError
        The qualification cannot be read, see `semlens_audit.certificate.read_qualification`.
    """
    path = qualification_file(plan)
    if path is None:
        return StandingRecord(statement=UNQUALIFIED)
    qualified = read_qualification(path)
    found, world = differences(
        qualified,
        plan,
        foundation=foundation,
        data_source=data_source,
        samples=samples,
        architecture=architecture,
        findings=findings,
        attributions=attributions,
    )
    identity = Identity(
        name=path.name,
        sha256=digest_file(path),
        detail={
            "created": qualified.created,
            "tool": f"{qualified.tool.name} {qualified.tool.version}",
            "models": len(qualified.members),
            "pairs": len(qualified.pairs),
            "worlds": [world.name for world in qualified.worlds],
            "quick": qualified.quick,
        },
    )
    rates = () if found or world is None else _rates(qualified, world.name)
    return StandingRecord(qualification=identity, rates=rates, differences=found, statement=_statement(qualified, found, rates))


def _rates(qualified: Qualification, world: str) -> tuple[RateRecord, ...]:
    """Of the models held back in that world; of all its models where none was."""
    group = qualified.group(_HELD_BACK, world) or qualified.group(ALL, world)
    return tuple(rate for rate in group.rates if rate.name in _SHOWN) if group else ()


def _statement(qualified: Qualification, found: Sequence[str], rates: Sequence[RateRecord]) -> str:
    tested = f"{count(len(qualified.members), 'model')} whose true reliance is known ({format_date(qualified.created)})"
    if found:
        return (
            f"The instrument was qualified on {tested}, but this audit differs from what was qualified: {'; '.join(found)}. "
            "No error rates are claimed for it; the verdict rests on the intervals alone."
        )
    by_name = {rate.name: rate for rate in rates}
    hit, alarm = by_name.get("true_positive"), by_name.get("false_positive_small")
    if hit is None or alarm is None or hit.value is None or alarm.value is None:
        return f"The instrument was qualified on {tested}, too few of them to state error rates; the verdict rests on the intervals alone."
    return (
        f"The instrument was qualified on {tested}. In the world of this audit it flagged {shown(hit)} of the artefacts that move "
        f"the margin by 1 logit or more, and, falsely, {shown(alarm)} of those that move it by less than 0.5."
    )
