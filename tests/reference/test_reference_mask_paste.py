"""Pasting and encoding of masks against pycocotools and against pixel-by-pixel definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from object_detection.masks.mask_paste import (
    CONVENTIONS,
    MaskRule,
    encode_masks,
    paste_mask,
    run_lengths,
)

SIZE = 28
HEIGHT, WIDTH = 60, 90
IMAGE = {"height": HEIGHT, "width": WIDTH}


def smooth_mask(rng):
    """A blob of probabilities."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    center, radii = rng.uniform(8, 20, 2), rng.uniform(6, 14, 2)
    distance = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2
    return (1 / (1 + np.exp(4 * (distance - 1)))).astype(np.float32)


def random_box(rng):
    low = rng.uniform(-10, [HEIGHT - 8, WIDTH - 8])
    return np.concatenate([low, low + rng.uniform(2, 50, 2)])


def sample(square, y, x):
    """Bilinear with 0 outside, cell middles at whole numbers."""
    top, left = int(np.floor(y)), int(np.floor(x))
    total = 0.0
    for i, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
        for j, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= i < len(square) and 0 <= j < len(square):
                total += wy * wx * square[i, j]
    return total


def continuous_values(mask, box):
    """The definition, pixel by pixel over the whole image."""
    values = np.zeros((HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            v = (y + 0.5 - box[0]) / (box[2] - box[0]) * SIZE - 0.5
            u = (x + 0.5 - box[1]) / (box[3] - box[1]) * SIZE - 0.5
            if -1 < v < SIZE and -1 < u < SIZE:
                values[y, x] = sample(mask, v, u)
    return values


def detectron_values(mask, box):
    """Pad by one, grow the box, truncate, stretch with replicated borders, cut at the image."""
    padded = np.pad(mask, 1)
    scale = len(padded) / SIZE
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * scale
    y1, x1, y2, x2 = (int(value) for value in (*(middle - half), *(middle + half)))
    rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    values = np.zeros((HEIGHT, WIDTH))
    for i in range(rows):
        for j in range(columns):
            if 0 <= y1 + i < HEIGHT and 0 <= x1 + j < WIDTH:
                v = np.clip((i + 0.5) * len(padded) / rows - 0.5, 0, len(padded) - 1)
                u = np.clip((j + 0.5) * len(padded) / columns - 0.5, 0, len(padded) - 1)
                values[y1 + i, x1 + j] = sample(padded, v, u)
    return values


VALUES = {"continuous": continuous_values, "detectron": detectron_values}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_pasting_follows_its_definition(convention, seed):
    rng = np.random.default_rng(seed)
    mask, box = smooth_mask(rng), random_box(rng)
    pasted = paste_mask(mask, box, rule=MaskRule(convention=convention), **IMAGE)
    values = VALUES[convention](mask, box)
    assert pasted.dtype == np.uint8 and pasted.any()
    decided = np.abs(values - 0.5) > 1e-4
    np.testing.assert_array_equal(pasted[decided], (values > 0.5)[decided])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_encoding_equals_pycocotools_on_the_pasted_masks(convention):
    rng = np.random.default_rng(5)
    boxes = np.stack([random_box(rng) for _ in range(12)])
    # Image corners, the whole image, one pixel, outside, empty, not a number.
    special = [
        [0, 0, HEIGHT, WIDTH],
        [HEIGHT - 5, WIDTH - 5, HEIGHT, WIDTH],
        [10, 10, 11, 11],
        [-50, -50, -20, -20],
        [5, 5, 5, 5],
        [np.nan, 0, 5, 5],
    ]
    boxes = np.concatenate([boxes, special])
    masks = np.stack([smooth_mask(rng) for _ in boxes])
    masks[13] = 1.0  # fills its corner of the image
    encoded = encode_masks(masks, boxes, rule=MaskRule(convention=convention), **IMAGE)
    for mask, box, rle in zip(masks, boxes, encoded):
        pasted = paste_mask(mask, box, rule=MaskRule(convention=convention), **IMAGE)
        assert rle == mask_api.encode(np.asfortranarray(pasted))
        np.testing.assert_array_equal(mask_api.decode(rle), pasted)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_run_lengths_equal_pycocotools(seed, height, width, share):
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, height), rng.integers(0, width)
    region = rng.uniform(
        size=(rng.integers(0, height - top + 1), rng.integers(0, width - left + 1))
    )
    region = (region < share).astype(np.uint8)
    image = np.zeros((height, width), np.uint8)
    image[top : top + region.shape[0], left : left + region.shape[1]] = region
    runs = run_lengths(top, left, region, height=height, width=width)
    assert sum(runs) == height * width
    rle = mask_api.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    assert rle == mask_api.encode(np.asfortranarray(image))


def test_thresholds_and_errors():
    mask = np.full((1, SIZE, SIZE), 0.5, np.float32)
    box = np.array([[10.0, 10.0, 30.0, 30.0]])
    assert paste_mask(mask[0], box[0], **IMAGE)[15, 15] == 1
    assert paste_mask(mask[0], box[0], rule=MaskRule(convention="detectron"), **IMAGE)[15, 15] == 0
    assert not paste_mask(mask[0], box[0], rule=MaskRule(0.6), **IMAGE).any()
    assert encode_masks(mask[:0], box[:0], **IMAGE) == []
    with pytest.raises(ValueError, match=r"'exact'.*continuous"):
        encode_masks(mask, box, rule=MaskRule(convention="exact"), **IMAGE)
    with pytest.raises(ValueError, match="1 and 0"):
        encode_masks(mask, box[:0], **IMAGE)
