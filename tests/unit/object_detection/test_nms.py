"""Suppression: hand-computed cases, padding and properties of each method."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.boxes.nms import batched_nms, with_best_refused

METHODS = ["hard", "linear", "gaussian", "diou"]
SETTINGS = {"max_output_size": 4, "iou_threshold": None, "sigma": 0.5, "score_threshold": 0.001}

# Two boxes of IoU 0.6 (15 and 20 wide), one apart from both.
BOXES = np.array([[[0, 0, 10, 20], [0, 0, 10, 12], [50, 50, 60, 60]]], np.float32)
SCORES = np.array([[0.9, 0.8, 0.5]], np.float32)
ONE_CLASS = np.zeros((1, 3), np.int32)


def run(boxes, scores, classes, **changes):
    outputs = batched_nms(boxes, scores, classes, **{"method": "hard", **SETTINGS, **changes})
    return [output.numpy() for output in outputs]


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])  # 0.5 is the last box's score
def test_hard_removes_overlapping_boxes(score_threshold):
    boxes, scores, classes, num_valid = run(
        BOXES, SCORES, ONE_CLASS, score_threshold=score_threshold
    )
    np.testing.assert_array_equal(num_valid, [2])
    np.testing.assert_array_equal(boxes[0], [BOXES[0, 0], BOXES[0, 2], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(scores[0], np.float32([0.9, 0.5, 0, 0]))
    np.testing.assert_array_equal(classes[0], [0, 0, -1, -1])
    assert boxes.dtype == scores.dtype == np.float32
    assert classes.dtype == num_valid.dtype == np.int32


def test_hard_keeps_an_overlap_equal_to_the_threshold():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 5, 10]]], np.float32)
    classes = np.zeros((1, 2), np.int32)
    assert run(boxes, SCORES[:, :2], classes, iou_threshold=0.5)[3] == [2]
    assert run(boxes, SCORES[:, :2], classes, iou_threshold=0.49)[3] == [1]


def test_linear_lowers_scores_above_its_threshold():
    _, scores, _, _ = run(BOXES, SCORES, ONE_CLASS, method="linear")
    np.testing.assert_allclose(scores[0, :3], [0.9, 0.5, 0.8 * 0.4], rtol=1e-6)
    _, scores, _, _ = run(BOXES, SCORES, ONE_CLASS, method="linear", iou_threshold=0.7)
    np.testing.assert_allclose(scores[0, :3], [0.9, 0.8, 0.5], rtol=1e-6)
    half = np.array([[[0, 0, 10, 10], [0, 0, 5, 10]]], np.float32)  # IoU 0.5 is not above 0.5
    options = {"method": "linear", "iou_threshold": 0.5}
    scores = run(half, SCORES[:, :2], ONE_CLASS[:, :2], **options)[1]
    np.testing.assert_array_equal(scores[0, :2], SCORES[0, :2])


@pytest.mark.parametrize("method", METHODS)
def test_scores_have_no_gradient(method):
    boxes, scores = tf.constant(BOXES), tf.constant(SCORES)
    with tf.GradientTape() as tape:
        tape.watch([boxes, scores])
        picked = batched_nms(boxes, scores, ONE_CLASS, **SETTINGS, method=method)[1]
    assert tape.gradient(picked, [boxes, scores]) == [None, None]


def test_diou_spares_boxes_with_distant_centres():
    # IoU 0.6, centres 4 apart, diagonal of the union sqrt(500): DIoU 0.568.
    assert run(BOXES, SCORES, ONE_CLASS, method="hard", iou_threshold=0.58)[3] == [2]
    assert run(BOXES, SCORES, ONE_CLASS, method="diou", iou_threshold=0.58)[3] == [3]
    assert run(BOXES, SCORES, ONE_CLASS, method="diou", iou_threshold=0.56)[3] == [2]


def test_classes_do_not_touch_unless_asked():
    classes = np.array([[0, 1, 1]], np.int32)
    assert run(BOXES, SCORES, classes)[3] == [3]
    assert run(BOXES, SCORES, classes, class_agnostic=True)[3] == [2]


@pytest.mark.parametrize("method", METHODS)
def test_padding_low_scores_and_nan_are_never_picked(method):
    boxes = np.tile(BOXES[:, 2:], (1, 4, 1))
    boxes += np.arange(4, dtype=np.float32)[:, np.newaxis] * 20
    scores = np.array([[0.9, 0.0005, np.nan, 0.7]], np.float32)
    classes = np.array([[-1, 0, 0, 0]], np.int32)
    boxes_out, scores_out, classes_out, num_valid = run(boxes, scores, classes, method=method)
    np.testing.assert_array_equal(num_valid, [1])
    np.testing.assert_array_equal(boxes_out[0, 0], boxes[0, 3])
    np.testing.assert_array_equal(scores_out, np.float32([[0.7, 0, 0, 0]]))
    np.testing.assert_array_equal(classes_out, [[0, -1, -1, -1]])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_pick(method):
    boxes, scores, classes, num_valid = run(BOXES, SCORES, ONE_CLASS - 1, method=method)
    np.testing.assert_array_equal(num_valid, [0])
    assert not boxes.any() and not scores.any() and (classes == -1).all()


def test_soft_scores_that_fall_below_the_floor_are_dropped():
    boxes = np.zeros((1, 3, 4), np.float32) + np.float32([0, 0, 10, 10])
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    # Equal boxes: each round multiplies by exp(-2) = 0.135.
    _, scores_out, _, num_valid = run(boxes, scores, ONE_CLASS, method="gaussian")
    np.testing.assert_allclose(
        scores_out[0, :3], [0.9, 0.8 * np.exp(-2), 0.7 * np.exp(-4)], rtol=1e-5
    )
    assert num_valid == [3]
    assert run(boxes, scores, ONE_CLASS, method="gaussian", score_threshold=0.05)[3] == [2]


def test_equal_scores_are_picked_in_order():
    boxes = np.tile(BOXES[:, 2:], (1, 3, 1)) + 20 * np.arange(3, dtype=np.float32)[:, np.newaxis]
    scores = np.full((1, 3), 0.5, np.float32)
    np.testing.assert_array_equal(run(boxes, scores, ONE_CLASS)[0][:, :3], boxes)


def test_an_image_without_detection_shows_its_best_refused_score():
    refused = [[0.3, 0.2, 0.1], [0.1, 0.4, np.nan], [np.nan, -0.5, -0.1]]
    scores = np.array([[0.9, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    found = with_best_refused(scores, np.array([1, 0, 0]), np.float16(refused))
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, np.float32([[0.9, 0], [np.float16(0.4), 0], [0, 0]]))


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'soft'.*gaussian"):
        run(BOXES, SCORES, ONE_CLASS, method="soft")


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.2, 0.8), st.sampled_from(["hard", "diou"]))
def test_hard_suppression_is_idempotent(seed, iou_threshold, method):
    rng = np.random.default_rng(seed)
    boxes = numpy_boxes.random(rng, 1, 12, high=60, side=(5, 40))
    scores = rng.uniform(0.01, 1, (1, 12)).astype(np.float32)
    classes = rng.integers(0, 2, (1, 12), dtype=np.int32)
    changes = {"method": method, "iou_threshold": iou_threshold, "max_output_size": 12}
    first = run(boxes, scores, classes, **changes)
    second = run(*first[:3], **changes)
    for once, twice in zip(first, second):
        np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_equals_eager(method):
    rng = np.random.default_rng(5)
    boxes = numpy_boxes.random(rng, 2, 40, high=60, side=(5, 40))
    scores = rng.uniform(0, 1, (2, 40)).astype(np.float32)
    classes = rng.integers(0, 3, (2, 40), dtype=np.int32)
    changes = {"method": method, "max_output_size": 20}
    eager = run(boxes, scores, classes, **changes)
    compiled = tf.function(
        lambda *candidates: batched_nms(*candidates, **{**SETTINGS, **changes}), jit_compile=True
    )(boxes, scores, classes)
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-6, atol=1e-6)


def test_half_precision_input_is_computed_in_float32():
    boxes, scores = tf.constant(BOXES, tf.float16), tf.constant(SCORES, tf.float16)
    halves = run(boxes, scores, ONE_CLASS, method="gaussian")
    singles = run(
        tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32), ONE_CLASS, method="gaussian"
    )
    assert halves[0].dtype == halves[1].dtype == np.float32
    for half, single in zip(halves, singles):
        np.testing.assert_array_equal(half, single)
