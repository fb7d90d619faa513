"""A mask of pixels as the fields of a COCO annotation; for the converters of other formats."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api


def mask_annotation(mask: np.ndarray) -> dict[str, Any]:
    """Returns bbox, area and segmentation of an object.

    Args:
      mask: bool [height, width]; True somewhere.

    Returns:
      bbox: [x, y, width, height] around the pixels; area: their number; segmentation: compressed
      run lengths, as text.
    """
    runs = mask_api.encode(np.asfortranarray(mask).astype(np.uint8))
    return {
        "bbox": [float(side) for side in mask_api.toBbox(runs)],
        "area": float(mask_api.area(runs)),
        "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
    }
