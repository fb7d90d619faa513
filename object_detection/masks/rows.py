"""Masks of detections as bytes, so that they can be gathered over ranks beside the rows.

A packed mask is `<height> <width> <counts>`: the size in decimal and the compressed run lengths of
COCO, which are printable ASCII without spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pack_mask(rle: Mapping[str, Any]) -> bytes:
    """Packs a compressed run-length mask, {"size": [height, width], "counts": bytes}."""
    height, width = rle["size"]
    return b"%d %d %b" % (height, width, rle["counts"])


def unpack_mask(packed: bytes) -> dict[str, Any]:
    """Undoes `pack_mask`."""
    height, width, counts = packed.split(b" ", 2)
    return {"size": [int(height), int(width)], "counts": counts}


def with_masks(
    detections: Sequence[Mapping[str, Any]], masks: Sequence[bytes], *, keep_boxes: bool = True
) -> list[dict[str, Any]]:
    """Adds masks to COCO result entries.

    Args:
      detections: result entries.
      masks: packed, one for each entry.
      keep_boxes: False leaves `bbox` out, so that scorers take areas from the masks.

    Raises:
      ValueError: they differ in number.
    """
    if len(detections) != len(masks):
        raise ValueError(f"expected one mask for each of {len(detections)} rows, got {len(masks)}")
    return [
        {
            **{k: v for k, v in entry.items() if keep_boxes or k != "bbox"},
            "segmentation": unpack_mask(mask),
        }
        for entry, mask in zip(detections, masks)
    ]
