"""Reference samples that were not chosen by what they show: more samples tie at the highest value than are kept.

Pooled by its largest value, the output of a layer that ends in a bounded activation (ReLU6, hard sigmoid, a sigmoid in single precision) is
the bound itself on many samples. Of these the first in the order of the data become the reference samples, and a component then means
whatever stands first in the data.
"""

from __future__ import annotations

import numpy as np

from semlens_audit.atlas.opening import Atlas
from semlens_audit.wording import count, join

__all__ = ["remarks", "tied"]


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


def remarks(atlas: Atlas) -> tuple[str, ...]:
    """A sentence on the layers of an index whose components have tied reference samples; none where there are none."""
    settings = atlas.plan.audit.measurement
    found = {name: tied(layer.reference_ids, layer.activations) for name, layer in atlas.layers.items()}
    places = [f"{number:,} of {count(atlas.layers[name].components, 'component')} of {name}" for name, number in found.items() if number]
    if not places:
        return ()
    if settings.selection == "activation" and settings.pooling == "max":
        mend = " With `pooling: mean` or `selection: relevance` in `measurement` of the audit, they are told apart."
    else:
        mend = ""
    return (
        f"The reference samples of {join(places)} all have the same {settings.selection}, so that which of the samples that reach it are"
        f" shown goes by their order in the data.{mend}",
    )
