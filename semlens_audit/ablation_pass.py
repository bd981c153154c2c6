"""The pass over test samples with components switched off: runs the model, writes its outputs into the store, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from semlens_audit.devices import describe, require_same
from semlens_audit.intervention import Ablation, donors, record_outputs, replacement
from semlens_audit.memory import Limit
from semlens_audit.prefetch import cores, prefetched
from semlens_audit.progress import Progress
from semlens_audit.store import Store
from semlens_audit.work import Bench

__all__ = ["ablation_pass"]

_BATCH = 32


def ablation_pass(
    bench: Bench,
    store: Store,
    stages: Sequence[dict[str, Any]],
    weights: np.ndarray,
    progress: Progress,
) -> None:
    """Compute what the store lacks of some ablations of one layer on the same samples.

    Interrupted or killed, the next call goes on with the batch it had come to; only the layer's unchanged outputs are computed
    again.

    Parameters
    ----------
    bench
        The model, the data and the device.
    stages
        Inputs of each stage: ``layer``, ``method``, ``samples`` (ids), ``sets`` (component indices), ``seed``; see
        `semlens_audit.interventions.ablation_stages`.
    weights
        Parallel to ``samples``: what each sample counts in the mean.
    """
    states = [
        store.begin(f"ablation:{inputs['layer']}:{inputs['method']}", inputs, len(inputs["samples"])) for inputs in stages
    ]
    lacking = [(inputs, state) for inputs, state in zip(stages, states, strict=True) if not state.complete]
    if not lacking:
        return
    subject, device, limit = bench.subject, describe(bench.device), Limit(bench.execution.max_memory)
    for _, state in lacking:
        require_same(state, device)
        store.note(state.key, {"device": device})
    layer, samples = lacking[0][0]["layer"], list(lacking[0][0]["samples"])
    rows = [slice(start, min(start + _BATCH, len(samples))) for start in range(0, len(samples), _BATCH)]

    def images(part: slice) -> torch.Tensor:
        return bench.images(samples[part])

    with progress.stage(f"Outputs of {layer}", len(samples)) as advance:
        batches = (batch for _, batch in prefetched(images, rows, workers=cores(), ahead=2))
        recorded = record_outputs(subject, layer, batches, len(samples), weights, advance)
    for inputs, state in lacking:
        given, ablation = donors(samples, inputs["seed"]), Ablation(subject, layer, inputs["sets"])
        title = f"Components of {layer} switched off, by their {'mean' if inputs['method'] == 'mean' else 'output on another image'}"
        with progress.stage(title, len(samples), state.done) as advance:
            for part in rows:
                if part.stop <= state.done:
                    continue
                outputs = torch.from_numpy(np.ascontiguousarray(recorded.outputs[part]))
                values = replacement(recorded, inputs["method"], part, given)
                answers = ablation(lambda part=part: images(part), outputs, values)  # type: ignore[misc]
                limit.require("Switching components off")
                with store.transaction():
                    store.append(
                        "ablation",
                        stage=state.key,
                        sample=np.array(samples[part]),
                        outputs=answers.transpose(1, 0, 2).reshape(part.stop - part.start, -1),
                    )
                    store.advance(state.key, part.stop)
                advance(part.stop - part.start)
        store.finish(state.key, {"together": bool(ablation.expanded), "device": device})
