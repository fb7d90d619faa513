"""Instance masks: decoding against pycocotools, packed crops against their definition."""

import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api
from samples import unpack_mask

from object_detection.coco.segmentation import read_segmentation
from object_detection.masks.rle import (
    BadMaskError,
    cell_coverage,
    crop_to_box,
    decode_mask,
    encode_png,
)

TRIANGLE = [10.5, 5.2, 40.1, 30.7, 8.3, 33.9]
SQUARE = [50.0, 10.0, 70.0, 10.0, 70.0, 30.0, 50.0, 30.0]


def uncompressed(mask):
    """Run lengths down the columns, starting with zeros, as in COCO's crowd regions."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat != 0))
    lengths = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(mask.shape), "counts": lengths.tolist()}


def test_polygons_are_united():
    mask = decode_mask([TRIANGLE, SQUARE], 48, 80)
    runs = mask_api.merge(mask_api.frPyObjects([TRIANGLE, SQUARE], 48, 80))
    np.testing.assert_array_equal(mask, mask_api.decode(runs))
    assert mask[20, 60] == 1
    assert mask[45, 75] == 0


def test_run_lengths_in_all_three_forms():
    expected = decode_mask([TRIANGLE], 48, 80)
    compressed = mask_api.encode(np.asfortranarray(expected))
    as_text = {"size": [48, 80], "counts": compressed["counts"].decode()}
    for rle in (uncompressed(expected), compressed, as_text):
        np.testing.assert_array_equal(decode_mask(rle, 48, 80), expected)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 2, 3, 4]], "no polygon"),  # pycocotools would take it for a box
        ([[1, 2, 3, 4, 5]], "no polygon"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no polygon"),
        ([["a"] * 6], "no polygon"),
        ({"size": [4, 5], "counts": [20]}, "another size"),
        ({"size": [48, 80], "counts": [1, 2]}, "do not add up"),
        ({"size": [48, 80]}, "without counts"),
    ],
)
def test_segmentations_that_give_no_mask(segmentation, reason):
    with pytest.raises(BadMaskError, match=reason):
        decode_mask(segmentation, 48, 80)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-500, 10000).map(lambda value: value / 100), min_size=6, max_size=16),
    st.integers(0, 20),
    st.integers(0, 30),
)
def test_crop_of_polygon_is_the_crop_of_its_mask(polygon, top, left):
    polygon = polygon[: len(polygon) // 2 * 2]
    assume(read_segmentation([polygon], size=(48, 80)).value)  # it has an area
    whole = mask_api.decode(mask_api.merge(mask_api.frPyObjects([polygon], 48, 80)))
    np.testing.assert_array_equal(decode_mask([polygon], 48, 80), whole)
    part = decode_mask([polygon], 25, 20, origin=(top, left))
    np.testing.assert_array_equal(part, whole[top : top + 25, left : left + 20])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 20),
    st.floats(0, 20),
    st.floats(0.5, 40),
    st.floats(0.5, 40),
)
def test_coverage_is_exact(seed, top, left, height, width):
    mask = np.random.default_rng(seed).integers(0, 2, (24, 32)).astype(np.uint8)
    box = np.array([top, left, min(top + height, 24), min(left + width, 32)])
    size = 5
    coverage = cell_coverage(mask, box, size=size)

    def overlaps(start, stop, length):
        edges = np.linspace(start, stop, size + 1)[:, None]
        pixels = np.arange(length)
        shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        return np.maximum(shared, 0) * size / (stop - start)

    expected = overlaps(box[0], box[2], 24) @ mask @ overlaps(box[1], box[3], 32).T
    np.testing.assert_allclose(coverage, expected, atol=2e-4)


def test_packed_crop_by_hand():
    # The left half of a 10x20 box of an image is object.
    rle = uncompressed(np.pad(np.ones((10, 10), np.uint8), ((5, 5), (3, 17))))
    cells = unpack_mask(crop_to_box(rle, np.array([5.0, 3.0, 15.0, 23.0]), height=20, width=30))
    assert cells.shape == (112, 112)
    np.testing.assert_array_equal(cells[:, :56], 1)
    np.testing.assert_array_equal(cells[:, 56:], 0)


def test_packed_bytes_are_row_major_most_significant_bit_first():
    mask = np.zeros((112, 112), np.uint8)
    mask[0, 9] = mask[1, 0] = 1
    packed = crop_to_box(uncompressed(mask), np.array([0.0, 0, 112, 112]), height=112, width=112)
    assert len(packed) == 1568
    assert {i: byte for i, byte in enumerate(packed) if byte} == {1: 0b01000000, 14: 0b10000000}


@pytest.mark.parametrize("box", [[4.2, 6.1, 33.9, 42.5], [0, 0, 48, 80], [20.5, 10.5, 21.5, 25]])
def test_polygon_and_run_length_crops_agree(box):
    rle = uncompressed(decode_mask([TRIANGLE], 48, 80))
    arguments = {"box": np.array(box, float), "height": 48, "width": 80}
    assert crop_to_box([TRIANGLE], **arguments) == crop_to_box(rle, **arguments)


def test_thin_object_is_not_lost():
    # One pixel wide in a box of 400: it covers a quarter of each cell it touches.
    mask = np.eye(400, dtype=np.uint8)
    packed = crop_to_box(uncompressed(mask), np.array([0.0, 0, 400, 400]), height=400, width=400)
    assert unpack_mask(packed).sum() >= 112


def test_mask_outside_its_box():
    with pytest.raises(BadMaskError, match="does not meet its box"):
        crop_to_box([TRIANGLE], np.array([0.0, 70, 10, 80]), height=48, width=80)


def test_png_as_the_reference_stores_it():
    mask = decode_mask([TRIANGLE], 48, 80)
    image = Image.open(io.BytesIO(encode_png(mask)))
    assert (image.mode, image.format) == ("L", "PNG")
    np.testing.assert_array_equal(np.asarray(image), mask)
