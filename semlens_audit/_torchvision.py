"""Import torchvision, also where its compiled operators are missing.

A CPU-only torch beside a torchvision wheel built for CUDA leaves torchvision's extension unloadable; importing it
then fails while it registers a shape function for ``torchvision::nms``, an operator of object detection that is
never called here. Declaring the schemas of the operators first lets the import succeed. Where the extension
loads, nothing is declared. Import this module before torchvision, open_clip or timm.
"""

from __future__ import annotations

import torch

# A library's declarations vanish when it is collected, so it is kept for the life of the process.
_library: torch.library.Library | None = None

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    import sys

    for _name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[_name]
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
    import torchvision

__all__ = ["torchvision"]
