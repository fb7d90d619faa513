"""Moves the objects of a COCO file to images of another size than the file states.

Exporters that shrink pictures for display write their sizes and boxes; the picture in the folder
is the large one. Both google/automl and the NVIDIA reference then divide boxes by the JSON's size,
which is the same as scaling them here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from object_detection.coco.annotations import CocoAnnotations
from object_detection.coco.objects import CocoObject, is_in_image
from object_detection.coco.segmentation import read_segmentation
from object_detection.masks.rle import decode_mask

Size = tuple[int, int]
"""(height, width), pixels."""


def is_same_shape(stated: Size, actual: Size) -> bool:
    """Whether one size is the other times one ratio, both sides rounded to whole pixels."""
    return _rounds_to(stated, actual) or _rounds_to(actual, stated)


def rescale_object(entry: CocoObject, stated: Size, actual: Size) -> CocoObject:
    """Returns an annotation with box, area and mask in the pixels of an image of another size.

    Args:
      entry: as the reader gives it.
      stated: size of the image that it was made for.
      actual: size of the image that it is wanted for.
    """
    sy, sx = actual[0] / stated[0], actual[1] / stated[1]
    segmentation: Any = entry["segmentation"]
    if isinstance(segmentation, Mapping):
        segmentation = _rescale_runs(segmentation, stated, actual)
    elif segmentation is not None:
        segmentation = [
            (np.reshape(polygon, (-1, 2)) * (sx, sy)).ravel().tolist() for polygon in segmentation
        ]
    return {
        **entry,
        "bbox": [value * factor for value, factor in zip(entry["bbox"], (sx, sy, sx, sy))],
        "area": entry["area"] * sy * sx,
        "segmentation": segmentation,
    }


def rescale_annotations(annotations: CocoAnnotations, sizes: Mapping[str, Size]) -> CocoAnnotations:
    """Returns annotations in which some images have another size, or have one at all.

    Where none was stated, boxes outside of the image are left out, and masks of another size are
    unknown, as in conversion.

    Args:
      annotations: as read.
      sizes: source_id -> (height, width); images that are not named stay as they are.
    """
    images, objects = [], dict(annotations.objects)
    for image in annotations.images:
        actual = sizes.get(image.source_id)
        if actual is not None:
            found = objects.pop(image.source_id, ())
            height, width = image.height, image.width
            image = dataclasses.replace(image, height=actual[0], width=actual[1])
            if height is None or width is None:
                found = [
                    {**e, "segmentation": read_segmentation(e["segmentation"], size=actual).value}
                    for e in found
                    if is_in_image(e["bbox"], image)
                ]
            else:
                found = [rescale_object(entry, (height, width), actual) for entry in found]
            if found:
                objects[image.source_id] = found
        images.append(image)
    return dataclasses.replace(annotations, images=tuple(images), objects=objects)


def _rounds_to(small: Size, large: Size) -> bool:
    """Whether some ratio takes each side of `large` to within a pixel of that of `small`."""
    (height, width), (h, w) = small, large
    return (height - 1) * w < (width + 1) * h and (width - 1) * h < (height + 1) * w


def _rescale_runs(rle: Mapping[str, Any], stated: Size, actual: Size) -> dict[str, Any]:
    from pycocotools import mask as mask_api  # here: conversions without masks do without it

    resized = Image.fromarray(decode_mask(rle, *stated)).resize(
        (actual[1], actual[0]), Image.Resampling.NEAREST
    )
    encoded = mask_api.encode(np.asfortranarray(np.asarray(resized)))
    return {"size": list(actual), "counts": encoded["counts"].decode()}
