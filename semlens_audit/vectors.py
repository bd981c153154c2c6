"""Embeddings as the store's region pool holds them, put together for the crops that refer to it."""

from __future__ import annotations

import numpy as np

from semlens_audit.store import Store

__all__ = ["crop_vectors", "null_vectors"]


def crop_vectors(
    store: Store, crops: str, pool: str, components: range | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of a layer's crops.

    Parameters
    ----------
    store
        Open store.
    crops, pool
        Keys of the crops' stage and of the pool.
    components
        Only of these, in steps of one; ``None``: of all.

    Returns
    -------
    component, rank
        (n,) integers, in ascending order of component, then rank.
    vector
        (n, d) float32; (0, 0) without crops.
    """
    some = "" if components is None else " AND component BETWEEN ? AND ?"
    rows = store.arrays(
        f"SELECT component, rank, vector FROM crop JOIN region USING (sample, x0, y0, x1, y1) WHERE stage = ? AND pool = ?{some}",
        (crops, pool, *(() if components is None else (components.start, components.stop - 1))),
    )
    # A join has no order of its own; sorting whole vectors in the database would be the slower way to give it one.
    order = np.lexsort((rows["rank"], rows["component"]))
    return rows["component"][order], rows["rank"][order], rows["vector"][order].reshape(len(order), -1 if len(order) else 0)


def null_vectors(store: Store, null: str, pool: str) -> np.ndarray:
    """(M, d) float32 embeddings of a layer's random crops in the order of drawing; (0, 0) without any."""
    rows = store.arrays(
        "SELECT position, vector FROM null_region JOIN region USING (sample, x0, y0, x1, y1) WHERE stage = ? AND pool = ?",
        (null, pool),
    )
    order = np.argsort(rows["position"], kind="stable")
    return np.asarray(rows["vector"][order]).reshape(len(order), -1 if len(order) else 0)
