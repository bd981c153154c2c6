"""What is spliced into a network has to have been made from that network, layer and preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from semlens_audit.errors import SubjectError
from semlens_audit.plan import Preprocessing

__all__ = ["Origin", "require_origin"]


class Origin(Protocol):
    """What a file of autoencoders or virtual neurons says it was made from."""

    @property
    def layer(self) -> str:
        """Name of the layer."""

    @property
    def subject(self) -> str:
        """SHA-256 of the network's tensors, see `semlens_audit.weights.state_digest`."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From image to input."""


def require_origin(made: Origin, layer: str, sha256: str, preprocessing: Preprocessing, path: Path, *, was: str, hint: str) -> None:
    """Refuse what was made from something else.

    Parameters
    ----------
    made
        What the file says.
    layer, sha256, preprocessing
        Of the audit.
    path
        The file.
    was
        What was done, as "The autoencoder was trained".
    hint
        What to do.

    Raises
    ------
    SubjectError
        ``other-layer``, ``other-subject``, ``other-preprocessing``.
    """
    if made.layer != layer:
        raise SubjectError("other-layer", f"{was} on layer {made.layer!r}, not on {layer!r}.", hint, file=str(path))
    if made.subject != sha256:
        raise SubjectError(
            "other-subject",
            f"{was} on another network: SHA-256 of its tensors {made.subject[:16]}…, of the audited one {sha256[:16]}….",
            hint, file=str(path),
        )  # fmt: skip
    if made.preprocessing != preprocessing:
        then, now = made.preprocessing.model_dump(), preprocessing.model_dump()
        differs = ", ".join(f"{name} {then[name]} instead of {now[name]}" for name in then if then[name] != now[name])
        raise SubjectError("other-preprocessing", f"{was} under another preprocessing: {differs}.", hint, file=str(path))
