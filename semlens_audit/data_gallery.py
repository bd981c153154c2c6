"""Pictures of test images that hold a concept: what the network sees of them, small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from semlens_audit.data import DataSet
from semlens_audit.digest import digest_bytes
from semlens_audit.images import read_image
from semlens_audit.plan import AuditPlan
from semlens_audit.records import DataPresence
from semlens_audit.subject import make_view

__all__ = ["SIDE", "picture"]

SIDE = 88
"""Side of a picture, pixels."""

_QUALITY = 72


def picture(
    plan: AuditPlan, data: DataSet, presence: Sequence[DataPresence]
) -> tuple[tuple[DataPresence, ...], dict[str, str]]:
    """Make the pictures that `presence` asks for; decodes each image once.

    Returns
    -------
    presence
        The same records, their pictures with keys.
    images
        SHA-256 of each JPEG -> base64.

    Raises
    ------
    DataError
        If an image can no longer be read.
    """
    by_path = {sample.path: sample for sample in data.samples}
    made: dict[str, str] = {}
    images: dict[str, str] = {}
    for path in dict.fromkeys(shown.sample for record in presence for shown in record.pictures):
        view = make_view(read_image(data.file(by_path[path])), plan.audit.subject.preprocessing)
        stream = io.BytesIO()
        view.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=_QUALITY, subsampling=2)
        made[path] = digest_bytes(stream.getvalue())
        images[made[path]] = base64.b64encode(stream.getvalue()).decode("ascii")
    return tuple(
        record.model_copy(
            update={"pictures": tuple(shown.model_copy(update={"image": made[shown.sample]}) for shown in record.pictures)}
        )
        for record in presence
    ), images
