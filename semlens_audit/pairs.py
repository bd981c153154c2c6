"""The model's outputs on counterfactual pairs: one row per different image, resumed after any interruption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from semlens_audit.counterfactuals import PairSet
from semlens_audit.devices import describe, on_device, require_same
from semlens_audit.digest import digest
from semlens_audit.errors import ExecutionError
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.precision import Arithmetic
from semlens_audit.prefetch import cores
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.subject import make_view
from semlens_audit.threads import Threaded, threads_of
from semlens_audit.views import normalised
from semlens_audit.work import Bench, Engine

__all__ = ["pair_pass"]


@dataclass(frozen=True)
class _Outputs:
    """Outputs on a batch of images, from the position that is the item."""

    pairs: PairSet
    batch: int
    arithmetic: Arithmetic
    threads: int
    ahead: int

    def prepare(self, bench: Bench, start: int) -> torch.Tensor:
        some, view = self.pairs.images[start : start + self.batch], bench.plan.audit.subject.preprocessing
        rows = [np.asarray(make_view(read_image(self.pairs.root / path), view)) for _, path in some]
        # A short batch is filled up with its last row, so that results do not depend on where a run was cut.
        rows += rows[-1:] * (self.batch - len(rows))
        return normalised(np.stack(rows), view)

    def compute(self, bench: Bench, start: int, images: torch.Tensor) -> np.ndarray:
        logits, _ = bench.networks.run(self.arithmetic, on_device(images, bench.device), (), "max")
        return logits[: len(self.pairs.images) - start]


def pair_pass(
    plan: AuditPlan, pairs: PairSet, store: Store, engine: Engine, inputs: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Run the model once over the images of all pairs, always in single precision: what is measured are differences of outputs.

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
    batch, bench = min(plan.audit.measurement.batch_size, total), engine.bench
    require_same(state, device := describe(bench.device))
    outputs = store.stage(digest(inputs["outputs"]))
    folded = Arithmetic.of(state.facts or (outputs.facts if outputs else {})).folded
    work = _Outputs(pairs, batch, Arithmetic("fp32", folded), cores(), bench.ahead(batch * 15 * plan.audit.subject.preprocessing.size**2))
    facts = {**work.arithmetic.facts(), "device": device, **threads_of(state, bench)}
    store.note(state.key, facts)

    with progress.stage("Outputs on pairs", total, state.done) as advance:
        for start, logits in engine.run(Threaded(work, facts.get("threads")), range(state.done, total, batch)):
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
        store.finish(state.key, facts)
