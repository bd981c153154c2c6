"""Files of virtual neurons as far as their header tells: what was split, by what, and how well. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from semlens_audit.digest import digest_file
from semlens_audit.errors import SubjectError
from semlens_audit.plan import Audit, Preprocessing, VirtualNeurons
from semlens_audit.safetensors_header import read_header, shapes

__all__ = ["TENSORS", "UNITS", "SplitComponent", "Splitting", "identity", "read_splitting", "units_of", "virtual_of"]

UNITS = ".virtual.units"
"""What the name of a layer is followed by in the name of its components with their virtual neurons."""

TENSORS = ("centroids", "components")
"""Of every file: mean circuits (n, 2, inputs), float32, and the split components (n,), int64, ascending."""
_METADATA = "semlens_audit_virtual"
_MOST_WEIGHTS = 2**28


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SplitComponent(_Said):
    """What was measured of a component that was split.

    Parameters
    ----------
    component
        Index in its layer.
    polysemanticity
        Of its reference samples, 0 to 1.
    sizes
        Samples in either cluster of circuits.
    clarity, clarity_split
        Of its reference samples together, and the mean over the two clusters weighted by their samples.
    silhouette
        Mean silhouette width of the clusters of circuits, -1 to 1.
    separation
        How far apart the clusters are in the eyes of the foundation model, see `semlens_audit.splitting.division.separation`.
    p
        Of the permutation test of clarity, adjusted over all components that were looked at.
    dip, p_dip
        How deep the valley between the clusters of circuits is, and its p, adjusted likewise; see `semlens_audit.splitting.modes.valley`.
    """

    component: int
    polysemanticity: float
    sizes: tuple[int, int]
    clarity: float
    clarity_split: float
    silhouette: float
    separation: float
    p: float
    dip: float
    p_dip: float


class Splitting(_Said):
    """How the components of a layer were split; the metadata of its file.

    Parameters
    ----------
    version
        Of the format.
    layer
        Whose components.
    width, inputs
        Components of the layer, and components of what it is given.
    subject
        SHA-256 of the network's tensors, see `semlens_audit.weights.state_digest`.
    preprocessing
        From image to input.
    data
        SHA-256 of the manifest of the images.
    foundation
        SHA-256 of the foundation model that polysemanticity and clarity were measured with.
    polysemanticity, references, smallest, level, separation, at_most, seed
        Settings, see `semlens_audit.splitting.fit.Settings`.
    looked_at
        Components whose circuits were computed.
    splits
        What became of those that were split, in the order of the tensors.
    device
        Where circuits were computed.
    tool
        Version of semlens_audit.
    """

    version: Literal[1] = 1
    layer: str
    width: int
    inputs: int
    subject: str
    preprocessing: Preprocessing
    data: str
    foundation: str
    polysemanticity: float
    references: int
    smallest: int
    level: float
    separation: float
    at_most: int
    seed: int
    looked_at: int
    splits: tuple[SplitComponent, ...]
    device: str
    tool: str

    def metadata(self) -> dict[str, str]:
        """As the file keeps it."""
        return {_METADATA: json.dumps(self.model_dump(mode="json"), sort_keys=True)}


@dataclass(frozen=True)
class SplittingFile:
    """A file of virtual neurons.

    Parameters
    ----------
    path
        The file.
    splitting
        What it says of itself.
    """

    path: Path
    splitting: Splitting


def units_of(layer: str) -> str:
    """Name under which a layer's components with their virtual neurons are a layer themselves."""
    return layer + UNITS


def virtual_of(audit: Audit, layer: str) -> VirtualNeurons | None:
    """The virtual neurons that `layer` is the units of; ``None`` where it is a layer of the network itself."""
    return next((one for one in audit.subject.virtual_neurons if units_of(one.layer) == layer), None)


def identity(one: VirtualNeurons, path: Path, file_digest: Callable[[Path], str] = digest_file) -> dict[str, Any]:
    """What cache keys know virtual neurons by: their layer and the bytes of their file.

    Raises
    ------
    SubjectError
        ``missing-virtual-neurons``.
    """
    if not path.is_file():
        raise SubjectError(
            "missing-virtual-neurons", f"The file of the virtual neurons of layer {one.layer!r} does not exist.",
            "Make it with `semlens-audit split`, or mend `subject.virtual_neurons` in the audit.", file=str(path),
        )  # fmt: skip
    return {"layer": one.layer, "file": file_digest(path)}


def read_splitting(path: Path) -> SplittingFile:
    """Read the header of a file that ``semlens-audit split`` wrote, and nothing of its tensors.

    Raises
    ------
    SubjectError
        ``bad-virtual-neurons``: not such a file.
    """
    try:
        tensors, metadata = read_header(path)
    except ValueError as error:
        raise _bad(path, f"It is no safetensors file: {error}.") from error
    said = metadata.get(_METADATA) if isinstance(metadata, Mapping) else None
    if said is None:
        raise _bad(path, "It says nothing of virtual neurons.")
    try:
        splitting = Splitting.model_validate_json(said)
    except (ValidationError, TypeError) as error:
        raise _bad(path, "What it says of itself cannot be read.") from error
    count, found = len(splitting.splits), shapes(tensors)
    wanted = {"centroids": (count, 2, splitting.inputs), "components": (count,)}
    if found != wanted:
        raise _bad(path, f"Its tensors have the shapes {found} instead of {wanted}.")
    chosen = [one.component for one in splitting.splits]
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < splitting.width:
        raise _bad(path, f"It splits the components {chosen[:4]} of {splitting.width}.")
    if count * 2 * splitting.inputs > _MOST_WEIGHTS:
        raise _bad(path, f"It says that it has {count:,} times two circuits of {splitting.inputs:,} values.")
    return SplittingFile(path, splitting)


def _bad(path: Path, what: str) -> SubjectError:
    return SubjectError(
        "bad-virtual-neurons", f"{path.name} holds no virtual neurons that can be loaded. {what}", "Make it with `semlens-audit split`.",
        file=str(path),
    )  # fmt: skip
