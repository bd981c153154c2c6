"""`attribution: auto`: the method that applies to each layer, found once on the data themselves and kept to ever after."""

from __future__ import annotations

from typing import Any

import torch

from semlens_audit.attribution_choice import choose
from semlens_audit.data import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.work import Engine

__all__ = ["settle_attribution"]

_CHECKED = 8
"""Images, evenly over the data, on which relevance is accounted for."""


def settle_attribution(
    plan: AuditPlan, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> list[AuditPlan]:
    """Choose the attribution of every layer where the audit leaves it open.

    Parameters
    ----------
    plan
        The audit, as it is indexed.
    store
        Open store, which the choice is kept in.
    engine
        Its bench has the model and the data.
    inputs
        Stages; see `semlens_audit.stages.stage_inputs`.
    progress
        Where the stage reports.

    Returns
    -------
    list of AuditPlan
        The plan once for each method, with the layers that it is chosen for; the plan itself where the audit names the method.
    """
    if plan.audit.measurement.attribution != "auto":
        return [plan]
    states = {layer: store.begin(f"attribution:{layer}", inputs[f"attribution:{layer}"], 1) for layer in plan.audit.layers}
    methods = {layer: state.facts["method"] for layer, state in states.items() if state.complete}
    if lacking := [layer for layer in states if layer not in methods]:
        bench, samples = engine.bench, engine.bench.data.samples
        checked = samples[:: max(1, len(samples) // _CHECKED)][:_CHECKED]
        images = torch.stack([bench.subject.transform(read_image(bench.data.file(sample))) for sample in checked])
        images = images.to(bench.device)
        with progress.stage("Attribution that applies", len(lacking)) as advance:
            for layer, choice in choose(bench.subject.model, images, lacking).items():
                methods[layer] = choice.method
                facts = {"method": choice.method, "reason": choice.reason, "conservation": choice.conservation}
                store.finish(states[layer].key, facts)
                advance(1)
    return [
        _only(plan, method, [layer for layer in plan.audit.layers if methods[layer] == method])
        for method in dict.fromkeys(methods[layer] for layer in plan.audit.layers)
    ]


def _only(plan: AuditPlan, method: str, layers: list[str]) -> AuditPlan:
    settings = plan.audit.measurement.model_copy(update={"attribution": method})
    return plan.model_copy(
        update={"audit": plan.audit.model_copy(update={"measurement": settings, "layers": tuple(layers)})}
    )
