"""The fields of one record, how they are written and how they are parsed.

Field names and units are those of the NVIDIA EfficientDet reference and of google/automl, so that
records made by either train here unchanged and the other way round. `image/object/mask_112` is
ours. Boxes in a record are fractions of the image's width and height; labels are the data set's
own category ids, not contiguous class ids (the data card holds the map).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from object_detection.records.example_proto import FeatureValue, encode_example

ENCODED = "image/encoded"
FORMAT = "image/format"
HEIGHT = "image/height"
WIDTH = "image/width"
FILE_NAME = "image/filename"
SOURCE_ID = "image/source_id"
SHA256 = "image/key/sha256"
CAPTION = "image/caption"
XMIN = "image/object/bbox/xmin"
XMAX = "image/object/bbox/xmax"
YMIN = "image/object/bbox/ymin"
YMAX = "image/object/bbox/ymax"
CORNERS = (YMIN, XMIN, YMAX, XMAX)
LABEL = "image/object/class/label"
TEXT = "image/object/class/text"
IS_CROWD = "image/object/is_crowd"
AREA = "image/object/area"
MASK_PNG = "image/object/mask"
MASK_112 = "image/object/mask_112"

MASK_SIZE = 112
MASK_BYTES = MASK_SIZE * MASK_SIZE // 8
_KINDS = {
    **dict.fromkeys((ENCODED, SOURCE_ID, TEXT, MASK_PNG, MASK_112), "bytes"),
    **dict.fromkeys((LABEL, IS_CROWD), "int64"),
    **dict.fromkeys((*CORNERS, AREA), "float32"),
}
_CONVERT = (
    "Write the fields of docs/data.md, or convert the data set with dataset/create_coco_tfrecord.py"
)
_LARGEST_SHARE = 2.0  # sloppy boxes leave the image by less than its size
MASK_FIELDS = {"png": MASK_PNG, "bitpacked": MASK_112}
"""Mask format name to the field that holds it, one value for each box."""


def encode_record(
    encoded: bytes,
    *,
    image_format: str,
    height: int,
    width: int,
    source_id: str,
    file_name: str,
    boxes: np.ndarray | None = None,
    category_ids: Sequence[int] = (),
    category_names: Sequence[str] = (),
    is_crowd: Sequence[bool] = (),
    areas: Sequence[float] = (),
    masks: Sequence[bytes] | None = None,
    mask_format: str = "bitpacked",
    captions: Sequence[str] | None = None,
) -> bytes:
    """Serialises one image and its objects as a `tf.train.Example`.

    Args:
      height, width: of the decoded image, pixels.
      boxes: [num_boxes, 4], (y1, x1, y2, x2), pixels of this image; None writes no object field
        at all (a set without object annotations), an empty array writes empty lists.
      category_ids, category_names, is_crowd, areas: one for each box; the data set's ids, square
        pixels.
      masks: [num_boxes] bytes in `mask_format`, or None for no mask field.
      mask_format: "png" (whole image, values 0 and 1) or "bitpacked" (see `masks`).
      captions: sentences about the image, or None.
    """
    features: dict[str, FeatureValue] = {
        ENCODED: [encoded],
        FORMAT: [image_format.encode()],
        HEIGHT: np.array([height], np.int64),
        WIDTH: np.array([width], np.int64),
        FILE_NAME: [file_name.encode(errors="backslashreplace")],
        SOURCE_ID: [source_id.encode()],
        SHA256: [hashlib.sha256(encoded).hexdigest().encode()],
    }
    if captions is not None:
        features[CAPTION] = [caption.encode(errors="backslashreplace") for caption in captions]
    if boxes is not None:
        fractions = np.asarray(boxes, np.float64).reshape(-1, 4) / (height, width, height, width)
        features |= {
            name: fractions[:, column].astype(np.float32) for column, name in enumerate(CORNERS)
        }
        features[LABEL] = np.asarray(category_ids, np.int64)
        features[TEXT] = [name.encode() for name in category_names]
        features[IS_CROWD] = np.asarray(is_crowd, np.int64)
        features[AREA] = np.asarray(areas, np.float32)
        if masks is not None:
            features[MASK_FIELDS[mask_format]] = list(masks)
        _check_lengths(features, len(fractions), source_id)
    return encode_example(features)


def parse_spec(*, mask_format: str | None = None) -> dict[str, object]:
    """Returns the features of a record for `tf.io.parse_single_example`.

    Only fields that training needs are named, as each costs time; masks only with a mask_format.
    """
    import tensorflow as tf  # here, because conversion workers import this module without it

    def scalar(dtype, default):
        return tf.io.FixedLenFeature([], dtype, default)

    def column(dtype):
        return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)

    spec = {
        ENCODED: scalar(tf.string, None),
        SOURCE_ID: scalar(tf.string, ""),
        HEIGHT: scalar(tf.int64, -1),
        WIDTH: scalar(tf.int64, -1),
        LABEL: column(tf.int64),
        IS_CROWD: column(tf.int64),
        AREA: column(tf.float32),
    }
    spec |= {name: column(tf.float32) for name in CORNERS}
    if mask_format is not None:
        spec[MASK_FIELDS[mask_format]] = column(tf.string)
    return spec


def require_fields(kinds: Mapping[str, str]) -> None:
    """Raises ValueError if records of other programs lack what is read, or hold it otherwise.

    Args:
      kinds: of a record's fields, as of `example_proto.feature_kinds`.
    """
    if ENCODED not in kinds:
        raise ValueError(
            f"no {ENCODED}, the picture's file; its fields are {', '.join(sorted(kinds)) or 'none'}"
            f". {_CONVERT}"
        )
    for name, kind in kinds.items():
        expected = _KINDS.get(name, kind)
        if kind not in (expected, ""):
            raise ValueError(f"{name} holds {kind}, not {expected}. {_CONVERT}")


def are_no_shares(corners: np.ndarray) -> np.ndarray:
    """Returns bool [num_boxes]: which boxes, [num_boxes, 4] as in a record, are in other units."""
    return (np.isfinite(corners) & (np.abs(corners) > _LARGEST_SHARE)).any(axis=1)


def _check_lengths(features: dict[str, FeatureValue], num_boxes: int, source_id: str) -> None:
    for name, value in features.items():
        if name.startswith("image/object/") and len(value) != num_boxes:
            raise ValueError(
                f"image {source_id}: expected {num_boxes} values of {name}, one for each box, "
                f"got {len(value)}"
            )
