"""Instance masks on their way into a record: COCO segmentations in, PNG or packed crops out.

A packed crop is the part of a mask inside its box, resampled to 112x112 cells and stored as bits,
row by row, most significant bit first (`numpy.packbits`), 1568 bytes. A cell is set if the mask
covers at least half of its area; cell (i, j) is the i-th of 112 equal slices of the box's height
and the j-th of its width. An all-zero crop means that the mask is unknown, never that it is empty.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from object_detection.coco.segmentation import Segmentation, read_segmentation
from object_detection.records.schema import MASK_BYTES, MASK_SIZE


class BadMaskError(ValueError):
    """A segmentation that gives no mask of this image; `str()` is a short reason."""


def decode_mask(
    segmentation: Segmentation, height: int, width: int, *, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Rasterises a COCO segmentation as pycocotools does: uint8 [height, width], 0 or 1.

    Polygons may have another `origin`, (y, x) whole pixels of the image at the upper left corner.

    Raises:
      BadMaskError: no segmentation, or one that does not fit.
    """
    from pycocotools import mask as mask_api  # here: conversions without masks do without it

    segmentation, problem, _ = read_segmentation(segmentation, size=(height, width))
    if problem:
        raise BadMaskError(problem)
    if not isinstance(segmentation, Mapping):
        offset = np.array([origin[1], origin[0]], np.float64)
        segmentation = [
            _shift_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), offset).ravel().tolist()
            for polygon in segmentation
        ]
    elif origin != (0, 0):
        raise ValueError("expected origin (0, 0) for a run-length mask: crop the result")
    return mask_api.decode(as_rle(segmentation, height, width))


def as_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Returns polygons or run lengths of any of COCO's forms as compressed run lengths."""
    from pycocotools import mask as mask_api

    if not isinstance(segmentation, Mapping):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return mask_api.frPyObjects(dict(segmentation), height, width)
    counts = counts.encode() if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": counts}


def crop_to_box(segmentation: Segmentation, box: np.ndarray, *, height: int, width: int) -> bytes:
    """Returns the packed 112x112 crop of one instance.

    Args:
      segmentation: as `decode_mask` takes it.
      box: [4], (y1, x1, y2, x2), pixels, inside the image and not empty.

    Raises:
      BadMaskError: there is no mask, or it does not meet the box.
    """
    top, left = int(np.floor(box[0])), int(np.floor(box[1]))
    bottom, right = int(np.ceil(box[2])), int(np.ceil(box[3]))
    if isinstance(segmentation, Mapping):
        mask = decode_mask(segmentation, height, width)[top:bottom, left:right]
    else:
        mask = decode_mask(segmentation, bottom - top, right - left, origin=(top, left))
    packed = _packed(mask, box - np.array([top, left, top, left]))
    if not any(packed):
        raise BadMaskError("mask does not meet its box")
    return packed


def crop_png(png: bytes, box: np.ndarray, *, height: int, width: int) -> bytes:
    """Returns the packed 112x112 crop of a mask stored as a PNG of the whole image.

    Args:
      png: 8-bit grey, 0 outside of the object; b'' for none.
      box: [4], (y1, x1, y2, x2), pixels; clipped to the image.

    Returns:
      1568 bytes; all zero ("unknown") where there is no mask or it does not meet the box.

    Raises:
      BadMaskError: no image, or one of another size than `height` and `width`.
    """
    box = np.clip(box, 0, [height, width, height, width])
    if not png or not (box[2:] > box[:2]).all():
        return bytes(MASK_BYTES)
    top, left, bottom, right = *np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise BadMaskError(
                    f"PNG mask of {image.size[0]}x{image.size[1]} pixels in an image of "
                    f"{width}x{height}"
                )
            mask = np.asarray(image.crop((left, top, right, bottom))) > 0
    except UnidentifiedImageError:  # its text is the address of the bytes
        raise BadMaskError("PNG mask is no PNG") from None
    except OSError as error:
        raise BadMaskError(f"PNG mask cannot be decoded: {error}") from error
    mask = mask.any(axis=-1) if mask.ndim == 3 else mask
    return _packed(mask, box - np.array([top, left, top, left]))


def _packed(mask: np.ndarray, box: np.ndarray) -> bytes:
    """Returns the packed cells of a box in a mask; all zero where they do not meet."""
    coverage = cell_coverage(mask, box)
    largest = coverage.max()
    if largest <= 0:
        return bytes(MASK_BYTES)
    # Where a thin object covers half of no cell, its best cells stand for it.
    threshold = min(0.5, largest / 2) - 1e-4
    return np.packbits(coverage >= threshold).tobytes()


def cell_coverage(mask: np.ndarray, box: np.ndarray, *, size: int = MASK_SIZE) -> np.ndarray:
    """Returns float32 [size, size], the exact share of each cell of a box that a mask covers.

    `mask` is [height, width], 0 or 1; `box` is [4], (y1, x1, y2, x2), pixels of the mask.
    """
    rows = _slice_means(mask.astype(np.float32), box[0], box[2], size)
    return _slice_means(np.ascontiguousarray(rows.T), box[1], box[3], size).T


def encode_png(mask: np.ndarray) -> bytes:
    """Returns an 8-bit grey PNG of a mask, values 0 and 1, as the reference stores them."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8), mode="L").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _shift_polygon(points: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Moves [n, 2] points by whole pixels so that the crop of a mask is the mask of the crop.

    pycocotools rounds to fifths of a pixel, `int(5 * x + 0.5)`, which rounds towards zero: so
    round before the shift, and put negative fifths where that expression gives them back.
    """
    fifths = np.trunc(5 * points + 0.5) - 5 * offset
    return np.where(fifths < 0, fifths - 0.9, fifths) / 5


def _slice_means(values: np.ndarray, start: float, stop: float, size: int) -> np.ndarray:
    """Averages rows of [length, n] over `size` equal slices of [start, stop): [size, n]."""
    sums = np.zeros((len(values) + 1, values.shape[1]), np.float32)
    np.cumsum(values, axis=0, out=sums[1:])
    edges = np.clip(np.linspace(start, stop, size + 1), 0, len(values))
    below = np.minimum(edges.astype(np.int64), len(values) - 1)
    share = (edges - below).astype(np.float32)[:, None]
    at_edges = sums[below] + share * values[below]
    return np.diff(at_edges, axis=0) * np.float32(size / (stop - start))
