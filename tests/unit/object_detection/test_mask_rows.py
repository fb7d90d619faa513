"""Masks as bytes beside detection rows, and their scores."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from object_detection.masks.rows import pack_mask, unpack_mask, with_masks


def square(top, left, size):
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[top : top + size, left : left + size] = 1
    return mask_api.encode(mask)


@pytest.mark.parametrize("rle", [square(3, 4, 20), square(0, 0, 0)], ids=["square", "empty"])
def test_a_mask_survives_packing(rle):
    found = unpack_mask(pack_mask(rle))
    assert found == rle
    np.testing.assert_array_equal(mask_api.decode(found), mask_api.decode(rle))


def test_masks_are_added_to_entries():
    entries = [{"image_id": 1, "category_id": 2, "bbox": [0, 1, 2, 3], "score": 0.5}]
    rle = square(3, 4, 20)
    (both,) = with_masks(entries, [pack_mask(rle)])
    assert both == {**entries[0], "segmentation": rle}
    (alone,) = with_masks(entries, [pack_mask(rle)], keep_boxes=False)
    assert "bbox" not in alone and alone["segmentation"] == rle
    assert "segmentation" not in entries[0]


def test_a_mask_for_each_row_is_required():
    with pytest.raises(ValueError, match="one mask for each of 1 rows, got 0"):
        with_masks([{"image_id": 1}], [])
