"""Matching: thresholds, forced matches, ties, padding and the promise about memory."""

import math
import re

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from object_detection.boxes.matcher import match_anchors

# Four 10 x 10 anchors side by side and one far away.
ANCHORS = np.array(
    [[0, 0, 10, 10], [0, 10, 10, 20], [0, 20, 10, 30], [0, 30, 10, 40], [90, 90, 100, 100]],
    np.float32,
)


def match(gt_boxes, gt_valid=None, *, positive=0.5, negative=0.5, **options):
    """Matches the boxes of one image; returns (gt_index, labels) of its anchors."""
    gt_boxes = np.asarray(gt_boxes, np.float32).reshape(1, -1, 4)
    if gt_valid is None:
        gt_valid = np.ones(gt_boxes.shape[1], bool)
    matches = options.pop("function", match_anchors)(
        ANCHORS,
        gt_boxes,
        np.asarray(gt_valid)[np.newaxis],
        positive_threshold=positive,
        negative_threshold=negative,
        **options,
    )
    assert matches.gt_index.dtype == tf.int32 and matches.labels.dtype == tf.int32
    return matches.gt_index.numpy()[0], matches.labels.numpy()[0]


def test_threshold_is_inclusive():
    # IoU 100 / 200 with the first two anchors: the box forces one, the threshold decides the other.
    gt_index, labels = match([[0, 0, 10, 20]])
    np.testing.assert_array_equal(labels, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(gt_index[:2], 0)
    _, labels = match([[0, 0, 10, 20.1]])
    np.testing.assert_array_equal(labels, [1, 0, 0, 0, 0])


def test_a_threshold_of_1_leaves_each_box_its_best_anchor():
    boxes = [[0, 0, 10, 20], [0, 20, 10, 30]]
    _, labels = match(boxes, positive=1.0, negative=1.0)
    np.testing.assert_array_equal(labels, [1, 0, 1, 0, 0])


def test_between_the_thresholds_is_ignored():
    # IoU 0.5 with the second anchor, and 40 / 140 with the fourth.
    boxes = [[0, 0, 10, 20], [0, 20, 10, 34]]
    _, labels = match(boxes, positive=0.7, negative=0.3)
    np.testing.assert_array_equal(labels, [1, -1, 1, 0, 0])
    # IoU equal to the lower threshold is not below it.
    _, labels = match(boxes, positive=0.7, negative=0.5)
    np.testing.assert_array_equal(labels, [1, -1, 1, 0, 0])


def test_forced_match_overrides_a_low_overlap():
    gt_index, labels = match([[0, 2, 2, 8]])
    np.testing.assert_array_equal(labels, [1, 0, 0, 0, 0])
    assert gt_index[0] == 0


def test_forced_match_takes_the_anchor_from_a_better_box():
    # Anchor 0 overlaps box 0 by 0.8; box 1 (IoU 0.2) has no better anchor and is forced onto it.
    gt_index, labels = match([[0, 0, 10, 8], [0, 0, 2, 10]])
    assert labels[0] == 1
    # Both boxes want anchor 0: the first keeps it.
    assert gt_index[0] == 0
    # Box 1 alone wants anchor 0 (box 0 prefers anchor 1), although box 0 overlaps it more.
    gt_index, labels = match([[0, 3, 10, 20], [0, 0, 2, 10]])
    np.testing.assert_array_equal(gt_index[:2], [1, 0])
    np.testing.assert_array_equal(labels[:2], [1, 1])


def test_tied_boxes_give_the_first():
    gt_index, labels = match([[0, 0, 10, 10], [0, 0, 10, 10]])
    assert labels[0] == 1 and gt_index[0] == 0


def test_tied_anchors_give_the_first():
    # Straddles anchors 1 and 2 evenly: IoU 1/3 each, forced onto anchor 1 alone.
    _, labels = match([[0, 15, 10, 25]])
    np.testing.assert_array_equal(labels, [0, 1, 0, 0, 0])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_forced_ties_make_all_best_anchors_positive(jit_compile):
    function = tf.function(match_anchors, jit_compile=True) if jit_compile else match_anchors
    options = {"positive": 0.7, "negative": 0.3, "force_ties": True, "function": function}
    # Straddles anchors 1 and 2 evenly.
    _, labels = match([[0, 15, 10, 25], [50, 50, 60, 60]], **options)
    np.testing.assert_array_equal(labels, [0, 1, 1, 0, 0])
    # 7 of 12 shares of anchor 1 and 2 of 17 of anchor 2, which is no tie.
    _, labels = match([[0, 13, 10, 22]], **options)
    np.testing.assert_array_equal(labels, [0, 1, 0, 0, 0])
    # Anchor 0 is the best of box 1 but keeps box 0, which it overlaps more.
    gt_index, labels = match([[0, 0, 10, 8], [0, 0, 2, 10]], **options)
    np.testing.assert_array_equal(labels, [1, 0, 0, 0, 0])
    assert gt_index[0] == 0
    gt_index, labels = match([[0, 0, 2, 10], [0, 0, 10, 8]], **options)
    assert labels[0] == 1 and gt_index[0] == 1
    _, labels = match([[0, 15, 10, 25], [0, 0, 0, 0]], [False, True], **options)
    np.testing.assert_array_equal(labels, 0)


def test_box_that_overlaps_nothing_forces_nothing():
    _, labels = match([[50, 50, 60, 60]])
    np.testing.assert_array_equal(labels, 0)


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [8, 8, 2, 2], [np.nan, 0, 10, 10], [0, 0, 0, 0]])
def test_degenerate_boxes_are_padding(box):
    gt_index, labels = match([box, [0, 10, 10, 20]])
    np.testing.assert_array_equal(labels, [0, 1, 0, 0, 0])
    assert gt_index[1] == 1


@pytest.mark.parametrize(("positive", "negative"), [(0.0, 0.0), (0.4, 0.6), (1.2, 0.5), (0.5, -1)])
def test_thresholds_out_of_order_are_refused(positive, negative):
    with pytest.raises(ValueError, match="positive_threshold"):
        match([[0, 0, 5, 10]], positive=positive, negative=negative)


def random_batch(num_anchors=500, max_boxes=20):
    rng = np.random.default_rng(3)
    anchors = numpy_boxes.random(rng, num_anchors, high=200, side=(10, 80))
    boxes = numpy_boxes.random(rng, 3, max_boxes, high=200, side=(10, 80))
    valid = np.arange(max_boxes) < np.array([[0], [7], [max_boxes]])
    return anchors, boxes, valid


def test_compiled_equals_eager_and_never_holds_the_overlap_matrix():
    anchors, boxes, valid = random_batch()

    def run(anchors, boxes, valid):
        thresholds = {"positive_threshold": 0.7, "negative_threshold": 0.3}
        return match_anchors(anchors, boxes, valid, **thresholds)

    inputs = [tf.constant(value) for value in (anchors, boxes, valid)]
    eager = run(*inputs)
    compiled_run = tf.function(run, jit_compile=True)
    compiled = compiled_run(*inputs)
    np.testing.assert_array_equal(eager.gt_index, compiled.gt_index)
    np.testing.assert_array_equal(eager.labels, compiled.labels)
    assert set(np.unique(eager.labels)) == {-1, 0, 1}
    np.testing.assert_array_equal(eager.labels[0], 0)

    program = compiled_run.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")
    sizes = [
        math.prod(int(side) for side in shape.split(","))
        for shape in re.findall(r"\b(?:f32|f64|s32|s64|pred)\[([\d,]+)\]", program)
    ]
    assert len(anchors) < max(sizes) < boxes.shape[0] * boxes.shape[1] * len(anchors)
