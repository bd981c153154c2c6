"""Reference samples that were not chosen by what they show: more samples tie at the highest value than are kept.

Pooled by its largest value, the output of a layer that ends in a bounded activation (ReLU6, hard sigmoid, a sigmoid in single precision) is
the bound itself on many samples. Of these the first in the order of the data become the reference samples, and a component then means
whatever stands first in the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from semlens_audit.evidence import LayerEvidence
from semlens_audit.plan import MeasurementSettings
from semlens_audit.wording import count, join

__all__ = ["remark", "tied", "tied_of"]


def tied(reference_ids: np.ndarray, values: np.ndarray) -> int:
    """How many components have reference samples that all have the same value.

    Parameters
    ----------
    reference_ids
        (K, m) sample ids, -1 where there is none.
    values
        (K, m) what they were chosen by, highest first.

    Returns
    -------
    int
        Components with two reference samples or more, none missing, and the same value other than zero throughout. Where samples are
        missing, all that the component is active on are among its reference samples, and nothing was chosen.
    """
    if values.shape[1] < 2:
        return 0
    return int(((reference_ids >= 0).all(axis=1) & (values[:, 0] == values[:, -1]) & (values[:, 0] != 0)).sum())


def tied_of(layers: Iterable[LayerEvidence]) -> dict[str, tuple[int, int]]:
    """Layer -> components with tied reference samples, see `tied`, and all components; layers without any are left out."""
    found = {layer.layer: (tied(layer.reference_ids, layer.activations), layer.components) for layer in layers}
    return {name: numbers for name, numbers in found.items() if numbers[0]}


def remark(tied: Mapping[str, tuple[int, int]], settings: MeasurementSettings) -> str:
    """A sentence on layers whose components have tied reference samples; empty where there are none.

    Parameters
    ----------
    tied
        See `tied_of`.
    settings
        What the reference samples were chosen by.
    """
    places = [f"{number:,} of {count(of, 'component')} of {layer}" for layer, (number, of) in tied.items()]
    if not places:
        return ""
    mend = (
        " With `pooling: mean` or `selection: relevance` in `measurement` of the audit, they are told apart."
        if settings.selection == "activation" and settings.pooling == "max"
        else ""
    )
    return (
        f"The reference samples of {join(places)} all have the same {settings.selection}, so that which of the samples that reach it are"
        f" shown goes by their order in the data.{mend}"
    )
