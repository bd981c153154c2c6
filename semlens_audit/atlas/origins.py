"""Where a component comes from that the network itself does not have: of which component a virtual neuron is a part."""

from __future__ import annotations

from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.virtual_header import read_splitting, virtual_of

__all__ = ["origin"]


def origin(plan: AuditPlan, layer: str, component: int) -> str | None:
    """What a component is a part of, in words.

    Parameters
    ----------
    plan
        The audit.
    layer, component
        Which.

    Returns
    -------
    str or None
        ``first of two virtual neurons of component 49 of layer3``; ``None`` for a component that is whole.
    """
    declared = virtual_of(plan.audit, layer)
    if declared is None:
        return None
    said = read_splitting(resolve(plan, declared.file)).splitting
    place = component - said.width
    if not 0 <= place < 2 * len(said.splits):
        return None
    which = ("first", "second")[place % 2]
    return f"{which} of two virtual neurons of component {said.splits[place // 2].component} of {said.layer}"
