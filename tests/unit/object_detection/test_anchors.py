"""Anchors: counts, first and last boxes, formula per anchor."""

import math

import numpy as np
import pytest

from object_detection.boxes.anchors import (
    anchor_shapes,
    detectron_anchor_shapes,
    generate_anchors,
    generate_grid_anchors,
    level_sizes,
)

ASPECTS = [(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)]
D0 = {
    "min_level": 3,
    "max_level": 7,
    "num_scales": 3,
    "aspect_ratios": ASPECTS,
    "anchor_scale": 4.0,
}


def test_level_sizes_halve_upwards():
    assert level_sizes((512, 512), min_level=3, max_level=7) == [
        (64, 64),
        (32, 32),
        (16, 16),
        (8, 8),
        (4, 4),
    ]
    # 300 -> 150 -> 75 -> 38 -> 19 -> 10 -> 5 -> 3; 100 -> 50 -> 25 -> 13 -> 7 -> 4 -> 2 -> 1.
    odd = level_sizes((300, 100), min_level=3, max_level=7)
    assert odd == [(38, 13), (19, 7), (10, 4), (5, 2), (3, 1)]
    assert level_sizes((7, 9), min_level=0, max_level=0) == [(7, 9)]
    assert level_sizes((1, 1), min_level=0, max_level=1) == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("size", "levels"), [((0, 64), (3, 7)), ((64, 64), (5, 4)), ((64, 64), (-1, 4))]
)
def test_impossible_pyramids_are_refused(size, levels):
    with pytest.raises(ValueError, match="got"):
        level_sizes(size, min_level=levels[0], max_level=levels[1])


def test_d0_count_and_first_anchors():
    anchors = generate_anchors((512, 512), **D0)
    assert anchors.shape == (49_104, 4)
    assert anchors.dtype == np.float32
    np.testing.assert_array_equal(anchors[0], [-12, -12, 20, 20])
    # Aspect (1.4, 0.7) of the same octave: 32 * 0.7 = 22.4 high, 44.8 wide.
    np.testing.assert_allclose(anchors[1], [4 - 11.2, 4 - 22.4, 4 + 11.2, 4 + 22.4], rtol=1e-6)
    np.testing.assert_allclose(anchors[2], [4 - 22.4, 4 - 11.2, 4 + 22.4, 4 + 11.2], rtol=1e-6)
    half = 16 * 2 ** (1 / 3)
    np.testing.assert_allclose(anchors[3], [4 - half, 4 - half, 4 + half, 4 + half], rtol=1e-6)
    # Second position of the first row, then the first of P4.
    np.testing.assert_array_equal(anchors[9], [-12, -4, 20, 28])
    np.testing.assert_array_equal(anchors[64 * 64 * 9], [-24, -24, 40, 40])


@pytest.mark.parametrize("image_size", [(128, 256), (150, 100)])
def test_every_anchor_follows_the_formula(image_size):
    anchors = generate_anchors(image_size, **{**D0, "max_level": 5})
    expected = []
    for height, width in level_sizes(image_size, min_level=3, max_level=5):
        stride_y, stride_x = image_size[0] / height, image_size[1] / width
        for row in range(height):
            for column in range(width):
                for octave in range(3):
                    for aspect_w, aspect_h in ASPECTS:
                        size = 4.0 * math.pow(2.0, octave / 3)
                        half_h = size * stride_y * aspect_h / 2
                        half_w = size * stride_x * aspect_w / 2
                        yc, xc = (row + 0.5) * stride_y, (column + 0.5) * stride_x
                        expected.append((yc - half_h, xc - half_w, yc + half_h, xc + half_w))
    np.testing.assert_allclose(anchors, np.array(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_detectron_anchors_of_one_level_are_rounded_before_they_are_scaled(factor):
    shapes = detectron_anchor_shapes(16, size=32 * factor, ratios=[0.5, 1.0])
    np.testing.assert_array_equal(shapes, np.array([[24, 46], [32, 32]]) * factor)


def test_grid_anchors_of_mask_rcnn_on_its_canvas():
    strides = (4, 8, 16, 32, 64)
    sizes = [(832 // stride, 1344 // stride) for stride in strides]
    shapes = [anchor_shapes(8.0 * stride, aspect_ratios=ASPECTS) for stride in strides]
    anchors = generate_grid_anchors(sizes, strides=strides, shapes=shapes)
    assert anchors.shape == (279_279, 4)
    # Divisible by all strides, so that both generators agree.
    same = generate_anchors(
        (832, 1344), min_level=2, max_level=6, num_scales=1, aspect_ratios=ASPECTS, anchor_scale=8.0
    )
    np.testing.assert_allclose(anchors, same, atol=1e-4)
    np.testing.assert_allclose(anchors[1], [2 - 11.2, 2 - 22.4, 2 + 11.2, 2 + 22.4], rtol=1e-6)


def test_grid_anchors_keep_their_stride_on_maps_larger_than_the_image():
    # 800 pixels: 25 cells of 32, 13 of 64, which reach to 832.
    shapes = [anchor_shapes(512.0, aspect_ratios=[(1.0, 1.0)])]
    anchors = generate_grid_anchors([(13, 13)], strides=[64], shapes=shapes)
    centers = (anchors[:13, 1] + anchors[:13, 3]) / 2
    np.testing.assert_array_equal(centers, 32 + 64 * np.arange(13))


def test_grid_anchors_refuse_levels_that_do_not_match():
    with pytest.raises(ValueError, match="2 maps, 1 strides"):
        generate_grid_anchors([(2, 2), (1, 1)], strides=[4], shapes=[np.ones((1, 2))] * 2)
