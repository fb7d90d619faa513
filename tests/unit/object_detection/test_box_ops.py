"""Box geometry: hand-computed cases, bounds and symmetry."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.boxes import box_ops

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def box_arrays(draw, min_size=0.0):
    """[N, 4] float32 boxes of any place and size an image can hold, N from 1 to 6."""
    count = draw(st.integers(1, 6))
    corner = st.floats(-50.0, 2000.0, width=32)
    side = st.floats(min_size, 1000.0, width=32)
    rows = [
        (y, x, y + height, x + width)
        for y, x, height, width in (
            (draw(corner), draw(corner), draw(side), draw(side)) for _ in range(count)
        )
    ]
    return np.array(rows, np.float32)


def test_areas_of_hand_cases():
    boxes = [[0, 0, 10, 20], [5, 5, 5, 9], [9, 9, 3, 3], [-2, -2, 2, 2]]
    np.testing.assert_array_equal(
        box_ops.box_areas(tf.constant(boxes, tf.float32)), [200, 0, 0, 16]
    )
    with_border = box_ops.box_areas(tf.constant(boxes, tf.float32), pixel_offset=1.0)
    np.testing.assert_array_equal(with_border, [231, 5, 0, 25])


def test_pairwise_iou_of_hand_cases():
    a = tf.constant([[0, 0, 10, 10], [0, 0, 0, 0]], tf.float32)
    b = tf.constant([[0, 0, 10, 10], [0, 5, 10, 15], [10, 0, 20, 10], [2, 2, 4, 4]], tf.float32)
    expected = [[1.0, 50 / 150, 0.0, 4 / 100], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), expected, rtol=1e-6)


def test_pixel_offset_counts_both_border_pixels():
    a = tf.constant([[0, 0, 9, 9]], tf.float32)
    b = tf.constant([[0, 5, 9, 14]], tf.float32)
    np.testing.assert_allclose(
        box_ops.pairwise_iou(a, b, pixel_offset=1.0), [[50 / 150]], rtol=1e-6
    )


def test_pairwise_iou_broadcasts_leading_dimensions():
    rng = np.random.default_rng(0)
    b = tf.constant(numpy_boxes.random(rng, 3, 5, high=50, side=(20, 20)))
    a = b[0, :2]
    result = box_ops.pairwise_iou(a, b)
    assert result.shape == (3, 2, 5)
    np.testing.assert_array_equal(result[1], box_ops.pairwise_iou(a, b[1]))


def test_generalised_measures_of_hand_cases():
    # Two 10 x 10 boxes 10 apart in x: enclosing box 10 x 30, centre distance 20.
    a = tf.constant([0, 0, 10, 10], tf.float32)
    b = tf.constant([0, 20, 10, 30], tf.float32)
    assert box_ops.iou(a, b) == 0.0
    np.testing.assert_allclose(box_ops.giou(a, b), -100 / 300, rtol=1e-6)
    np.testing.assert_allclose(box_ops.diou(a, b), -400 / 1000, rtol=1e-6)
    np.testing.assert_allclose(box_ops.ciou(a, b), -400 / 1000, rtol=1e-6)
    # Same centre, 10 x 20 against 20 x 10: only the aspect term tells DIoU from CIoU.
    a = tf.constant([5, 0, 15, 20], tf.float32)
    b = tf.constant([0, 5, 20, 15], tf.float32)
    v = 4 / np.pi**2 * (np.arctan(2.0) - np.arctan(0.5)) ** 2
    np.testing.assert_allclose(box_ops.diou(a, b), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(box_ops.ciou(a, b), 1 / 3 - v * v / (1 - 1 / 3 + v), rtol=1e-6)


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_equal_boxes_measure_one_with_finite_gradient(name):
    box = tf.constant([[3.0, 4.0, 50.0, 20.0]])
    with tf.GradientTape() as tape:
        tape.watch(box)
        value = getattr(box_ops, name)(box, tf.constant([[3.0, 4.0, 50.0, 20.0]]))
    np.testing.assert_allclose(value, [1.0], rtol=1e-6)
    assert np.isfinite(tape.gradient(value, box)).all()


@PROPERTY
@given(box_arrays(), box_arrays())
def test_iou_is_bounded_and_symmetric(a, b):
    forward = box_ops.pairwise_iou(a, b).numpy()
    backward = box_ops.pairwise_iou(b, a).numpy()
    assert (forward >= 0.0).all() and (forward <= 1.0 + 1e-5).all()
    np.testing.assert_allclose(forward, backward.T, rtol=1e-6)


@PROPERTY
@given(box_arrays(min_size=1.0))
def test_measures_are_ordered_and_one_on_the_diagonal(boxes):
    other = boxes[::-1].copy()
    overlap, generalised, distance, complete = (
        measure(boxes, other).numpy()
        for measure in (box_ops.iou, box_ops.giou, box_ops.diou, box_ops.ciou)
    )
    tolerance = 1e-5
    assert (generalised <= overlap + tolerance).all() and (generalised >= -1.0 - tolerance).all()
    assert (distance <= overlap + tolerance).all() and (distance >= -1.0 - tolerance).all()
    assert (complete <= distance + tolerance).all()
    np.testing.assert_allclose(np.diag(box_ops.pairwise_iou(boxes, boxes)), 1.0, rtol=1e-3)


def test_clip_boxes_to_the_image():
    boxes = tf.constant(
        [[-5, -5, 20, 30], [2, 3, 4, 5], [-9, -9, -1, -1], [50, 60, 70, 80]], "float32"
    )
    expected = [[0, 0, 10, 15], [2, 3, 4, 5], [0, 0, 0, 0], [10, 15, 10, 15]]
    np.testing.assert_array_equal(box_ops.clip_boxes(boxes, height=10, width=15), expected)


def test_half_precision_input_is_computed_in_float32():
    # 300 * 300 overflows float16.
    boxes = tf.constant([[0, 0, 300, 300], [0, 150, 300, 450]], tf.float16)
    assert box_ops.box_areas(boxes).dtype == tf.float32
    np.testing.assert_array_equal(box_ops.box_areas(boxes), [90000, 90000])
    np.testing.assert_allclose(box_ops.pairwise_iou(boxes, boxes)[0, 1], 1 / 3, rtol=1e-6)


def test_compiled_equals_eager():
    rng = np.random.default_rng(1)
    boxes = tf.constant(numpy_boxes.random(rng, 40, high=100, side=(0, 60)))

    def everything(a, b):
        measures = [f(a, b) for f in (box_ops.iou, box_ops.giou, box_ops.diou, box_ops.ciou)]
        return [box_ops.pairwise_iou(a, b), box_ops.clip_boxes(a, height=50, width=60), *measures]

    eager = everything(boxes, boxes[::-1])
    compiled = tf.function(everything, jit_compile=True)(boxes, boxes[::-1])
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-6, atol=1e-6)
