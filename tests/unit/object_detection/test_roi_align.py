"""RoIAlign: the half-pixel rule, levels, compilation, precision and bad boxes."""

import numpy as np
import pytest
import tensorflow as tf

from object_detection.boxes.roi_align import assign_levels, roi_align

SETTINGS = {"output_size": 2, "sampling_ratio": 2}


def pyramid(batch=2, channels=4, dtype=np.float32):
    """Maps of levels 2 to 5 of a 64 x 96 network input."""
    rng = np.random.default_rng(0)
    return {
        level: tf.constant(
            rng.normal(size=(batch, -(-64 >> level), -(-96 >> level), channels)), dtype
        )
        for level in (2, 3, 4, 5)
    }


def test_a_box_of_one_cell_is_that_cell_when_aligned():
    values = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    box = np.array([[[8.0, 12.0, 12.0, 16.0]]], np.float32)  # cell (2, 3) of stride 4
    run = {"output_size": 1, "sampling_ratio": 1}
    assert roi_align({2: values}, box, **run).numpy().item() == values[0, 2, 3, 0]
    # Without the half pixel the sample is half a cell down and right of it.
    unaligned = values[0, 2:4, 3:5, 0].mean()
    for convention in ("legacy", "crop"):
        result = roi_align({2: values}, box, convention=convention, **run)
        np.testing.assert_allclose(result.numpy().item(), unaligned)


def test_corners_are_those_of_crop_and_resize():
    """Of the levels that are nearest by their side; boxes in units of the image less one pixel."""
    sides = np.array([20.0, 100, 155, 165, 300, 330, 500, 620], np.float32)
    start = np.random.default_rng(1).uniform(0, 20, [2, 8])
    boxes = np.stack([start[0], start[1], start[0] + 0.8 * sides, start[1] + sides / 0.8], axis=-1)
    size = np.array([640, 896])
    features = {
        level: np.random.default_rng(level).normal(size=(1, *(size >> level), 3)).astype(np.float32)
        for level in (2, 3, 4, 5)
    }
    result = roi_align(
        *(features, boxes[np.newaxis].astype(np.float32)),
        **{"output_size": 3, "sampling_ratio": 1, "convention": "corners", "pixel_offset": -1.0},
    )
    unit = (boxes - [0, 0, 1, 1]) / (np.tile(size, 2) - 1)
    side = np.sqrt(np.prod(unit[:, 2:] - unit[:, :2], axis=1) * np.prod(size))
    levels = np.clip(4 + np.round(np.log2(side / 224)), 2, 5).astype(int)
    assert set(levels) == {2, 3, 4, 5}
    for i, level in enumerate(levels):
        expected = tf.image.crop_and_resize(
            features[level], unit[i : i + 1].astype(np.float32), [0], [3, 3]
        )
        np.testing.assert_allclose(result[0, i], expected[0], atol=1e-4)
    with pytest.raises(ValueError, match="roi_sampling_ratio=1, not 2"):
        roi_align(features, boxes[np.newaxis], convention="corners", **SETTINGS)


def test_levels_change_at_the_areas_of_the_rule():
    sides = np.array([1, 111.9, 112, 223.9, 224, 447.9, 448, 2000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    levels = assign_levels(boxes, min_level=2, max_level=5)
    np.testing.assert_array_equal(levels, [2, 2, 3, 3, 4, 4, 5, 5])
    levels = assign_levels(boxes, min_level=2, max_level=6)
    np.testing.assert_array_equal(levels, [2, 2, 3, 3, 4, 4, 5, 6])
    # A wide and a high box go by the root of their area; one pixel more counts with the offset.
    wide = np.array([[0, 0, 56, 896], [0, 0, 223, 223]], np.float32)
    np.testing.assert_array_equal(assign_levels(wide, min_level=2, max_level=5), [4, 3])
    with_offset = assign_levels(wide, min_level=2, max_level=5, pixel_offset=1.0)
    np.testing.assert_array_equal(with_offset, [4, 4])


def test_boxes_read_only_their_own_image_and_level():
    shapes = {2: (64, 96), 3: (32, 48)}
    features = {
        level: tf.constant(
            np.stack([np.full((*shape, 1), 10.0 * level + image) for image in range(2)]), tf.float32
        )
        for level, shape in shapes.items()
    }
    boxes = np.array([[[0, 0, 20, 20], [0, 0, 120, 180]]] * 2, np.float32)
    result = roi_align(features, boxes, **SETTINGS)
    np.testing.assert_allclose(result[:, :, 0, 0, 0], [[20, 30], [21, 31]], rtol=1e-6)


@pytest.mark.parametrize("ratio", [1, 2, 0])
def test_compiled_equals_eager_with_gradients(ratio):
    features = {level: values for level, values in pyramid().items() if level > 3}
    boxes = tf.constant([[[3.0, 5, 30, 40], [10, 50, 60, 95], [0, 0, 0, 0]]] * 2)

    def run(features, boxes):
        with tf.GradientTape() as tape:
            tape.watch([features, boxes])
            result = roi_align(features, boxes, output_size=2, sampling_ratio=ratio)
            total = tf.reduce_sum(tf.sin(result))
        gradients = tape.gradient(total, [features, boxes])
        assert gradients[1] is None
        return result, gradients[0]

    eager, compiled = run(features, boxes), tf.function(run, jit_compile=True)(features, boxes)
    assert np.isfinite(eager[0]).all()  # of the padding too
    np.testing.assert_allclose(eager[0], compiled[0], atol=1e-5)
    for level in features:
        np.testing.assert_allclose(eager[1][level], compiled[1][level], atol=1e-5)


def test_half_precision_adds_up_gradients_in_float32():
    features = {3: tf.zeros([1, 2, 2, 1], tf.float16)}
    # 3000 boxes each give 1/1000 to one cell: in float16, adding stops at 2.
    boxes = tf.tile(tf.constant([[[0.0, 0.0, 8.0, 8.0]]]), [1, 3000, 1])
    with tf.GradientTape() as tape:
        tape.watch(features)
        result = roi_align(features, boxes, output_size=1, sampling_ratio=1)
    assert result.dtype == tf.float16
    upstream = tf.fill(result.shape, tf.constant(1e-3, tf.float16))
    gradient = tape.gradient(result, features, output_gradients=upstream)[3]
    assert gradient.dtype == tf.float16
    np.testing.assert_allclose(gradient[0, 0, 0, 0], 3.0, rtol=2e-3)


def test_bad_boxes_read_inside_the_maps():
    boxes = np.array(
        [[[np.nan, 0, 10, 10], [0, 0, np.inf, 10], [1e9, 1e9, 2e9, 2e9], [9, 9, 3, 3]]], np.float32
    )
    for run in (roi_align, tf.function(roi_align, jit_compile=True)):
        result = run(pyramid(batch=1), boxes, **SETTINGS)
        assert result.shape == (1, 4, 2, 2, 4)
        assert np.isfinite(result[0, 3]).all()


def test_a_box_larger_than_the_map_has_the_mean_of_its_samples():
    """As many samples of a bin as the map itself would ask for."""
    box = np.array([[[-64.0, -96, 128, 192]]], np.float32)
    ones = {3: tf.ones([1, 8, 12, 1])}
    result = roi_align(ones, box, output_size=2, sampling_ratio=0, convention="crop")
    np.testing.assert_allclose(result, np.ones([1, 1, 2, 2, 1]), rtol=1e-5)


def test_shapes_are_static_with_an_unknown_batch():
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3]), tf.TensorSpec([None, 5, 4])])
    def run(values, boxes):
        result = roi_align({3: values}, boxes, output_size=7, sampling_ratio=2)
        assert result.shape.as_list() == [None, 5, 7, 7, 3]
        return result

    assert run(tf.zeros([2, 8, 8, 3]), tf.zeros([2, 5, 4])).shape == (2, 5, 7, 7, 3)


def test_unknown_convention_and_missing_levels_are_refused():
    with pytest.raises(ValueError, match=r"'half'.*aligned"):
        roi_align(pyramid(), np.zeros((2, 1, 4), np.float32), convention="half", **SETTINGS)
    for features in ({}, {2: pyramid()[2], 4: pyramid()[4]}):
        with pytest.raises(ValueError, match="in a row"):
            roi_align(features, np.zeros((2, 1, 4), np.float32), **SETTINGS)
