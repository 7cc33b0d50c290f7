"""Import open_clip, also where torchvision's compiled operators are missing.

torchvision is published with CUDA operators only; beside a CPU build of torch its extension does not load, and
`import torchvision` (hence `import open_clip`) stops at "operator torchvision::nms does not exist". open_clip uses
none of these operators, so declaring the two schemas that torchvision looks for is enough. They are declared only
after the plain import has failed for this very reason; calling them remains an error.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    # The library object must stay alive: its declarations go when it is collected.
    _TORCHVISION_SCHEMAS = torch.library.Library("torchvision", "DEF")
    _TORCHVISION_SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _TORCHVISION_SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip

__all__ = ["open_clip"]
