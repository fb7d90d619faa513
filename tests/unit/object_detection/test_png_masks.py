"""Masks as PNG images of the whole picture: packed like those of the annotations, or refused."""

import numpy as np
import pytest
from pycocotools import mask as mask_api
from samples import encoded

from object_detection.masks.rle import BadMaskError, crop_png, crop_to_box, encode_png
from object_detection.records.schema import MASK_BYTES

SIZE = {"height": 48, "width": 80}
BOX = np.array([5.25, 10.0, 30.0, 61.5])


@pytest.fixture
def mask():
    rows, columns = np.mgrid[: SIZE["height"], : SIZE["width"]]
    return (((rows - 18) / 12) ** 2 + ((columns - 35) / 25) ** 2 <= 1).astype(np.uint8)


def test_as_the_annotations_mask(mask):
    runs = mask_api.encode(np.asfortranarray(mask))
    assert crop_png(encode_png(mask), BOX, **SIZE) == crop_to_box(runs, BOX, **SIZE)


def test_other_values_and_channels_mean_the_same(mask):
    expected = crop_png(encode_png(mask), BOX, **SIZE)
    assert crop_png(encode_png(mask * 255), BOX, **SIZE) == expected
    coloured = encoded(np.stack([mask * 0, mask * 9, mask * 0], axis=-1))
    assert crop_png(coloured, BOX, **SIZE) == expected


def test_what_is_unknown_is_zero(mask):
    unknown = bytes(MASK_BYTES)
    assert crop_png(b"", BOX, **SIZE) == unknown
    assert crop_png(encode_png(mask), np.array([0.0, 70.0, 4.0, 80.0]), **SIZE) == unknown
    assert crop_png(encode_png(mask), np.array([9.0, 9.0, 9.0, 20.0]), **SIZE) == unknown


def test_what_does_not_fit_or_is_damaged_is_an_error(mask):
    with pytest.raises(BadMaskError, match="PNG mask of 80x48 pixels in an image of 48x80"):
        crop_png(encode_png(mask), BOX, height=80, width=48)
    with pytest.raises(BadMaskError, match="PNG mask is no PNG$"):
        crop_png(b"no image", BOX, **SIZE)
    with pytest.raises(BadMaskError, match="PNG mask cannot be decoded: .*truncated"):
        crop_png(encode_png(mask)[:60], BOX, **SIZE)
