"""The model's outputs on counterfactual pairs: one row per different image, resumed after any interruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from semlens_audit.counterfactuals import PairSet
from semlens_audit.errors import ExecutionError
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.prefetch import prefetched
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.subject import LoadedSubject

__all__ = ["pair_pass"]


def pair_pass(
    plan: AuditPlan, pairs: PairSet, store: Store, subject: LoadedSubject, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Run the model once over the images of all pairs.

    The rows go to the table ``output`` under the stage's key; the sample id is the position in `PairSet.images`.

    Parameters
    ----------
    plan
        The audit.
    pairs
        What to run on.
    store
        Open store.
    subject
        The audited model.
    inputs
        Stage -> inputs, see `semlens_audit.stages.stage_inputs`; ``pairs`` is done here.
    progress
        Where the pass reports.

    Raises
    ------
    ExecutionError
        If an output is NaN or infinite.
    """
    total = len(pairs.images)
    state = store.begin("pairs", inputs["pairs"], total)
    if state.complete:
        return
    batch = min(plan.audit.measurement.batch_size, total)

    def prepare(start: int) -> torch.Tensor:
        rows = [subject.transform(read_image(pairs.root / path)) for _, path in pairs.images[start : start + batch]]
        # A short batch is filled up with its last row, so that results do not depend on where a run was cut.
        return torch.stack(rows + rows[-1:] * (batch - len(rows)))

    with progress.stage("Outputs on pairs", total, state.done) as advance:
        for start, images in prefetched(prepare, range(state.done, total, batch), workers=1, ahead=2):
            stop = min(start + batch, total)
            with torch.inference_mode():
                logits = subject.model(images).float().numpy()[: stop - start]
            bad = ~np.isfinite(logits).all(axis=1)
            if bad.any():
                raise ExecutionError(
                    "not-finite",
                    f"The model outputs NaN or infinities on {int(bad.sum())} images of pairs, first on "
                    f"{pairs.images[start + int(bad.argmax())][1]}.",
                    "Mend the model, or look at that image.",
                )
            with store.transaction():
                store.append("output", stage=state.key, sample=np.arange(start, stop), logits=logits)
                store.advance(state.key, stop)
            advance(stop - start)
        store.finish(state.key)
