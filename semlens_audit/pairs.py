"""The model's outputs on counterfactual pairs: one row per different image, resumed after any interruption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from semlens_audit.counterfactuals import PairSet
from semlens_audit.errors import ExecutionError
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.work import Bench, Engine

__all__ = ["pair_pass"]


@dataclass(frozen=True)
class _Outputs:
    """Outputs on a batch of images, from the position that is the item."""

    pairs: PairSet
    batch: int
    threads: int = 1
    ahead: int = 2

    def prepare(self, bench: Bench, start: int) -> torch.Tensor:
        some = self.pairs.images[start : start + self.batch]
        rows = [bench.subject.transform(read_image(self.pairs.root / path)) for _, path in some]
        # A short batch is filled up with its last row, so that results do not depend on where a run was cut.
        return torch.stack(rows + rows[-1:] * (self.batch - len(rows)))

    def compute(self, bench: Bench, start: int, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = bench.subject.model(images).float().numpy()
        return logits[: len(self.pairs.images) - start]


def pair_pass(
    plan: AuditPlan, pairs: PairSet, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
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
    engine
        Does the work.
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

    with progress.stage("Outputs on pairs", total, state.done) as advance:
        for start, logits in engine.run(_Outputs(pairs, batch), range(state.done, total, batch)):
            stop = start + len(logits)
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
