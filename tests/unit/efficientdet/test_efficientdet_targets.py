"""Targets: classes, codes, counts and the images that have nothing to match."""

import numpy as np
import tensorflow as tf

from efficientdet.targets import assign_targets
from object_detection.boxes.anchors import generate_anchors
from object_detection.boxes.box_coder import encode_boxes

ANCHORS = generate_anchors(
    (64, 64), min_level=3, max_level=5, num_scales=1, aspect_ratios=[(1, 1), (2, 1)], anchor_scale=2
)
NUM_CLASSES = 5


def batch():
    """Three images: two objects and a left-out one, none, one object of no overlap above 0.5."""
    boxes = np.zeros((3, 4, 4), np.float32)
    classes = np.full((3, 4), -1, np.int32)
    boxes[0, :3] = [ANCHORS[10] + [1, 0, 1, 0], ANCHORS[100], ANCHORS[50]]
    classes[0, :3] = [3, 0, -1]
    boxes[2, 1] = [30, 30, 33, 33]
    classes[2, 1] = 4
    return boxes, classes


def test_targets_of_matched_anchors():
    boxes, classes = batch()
    targets = assign_targets(ANCHORS, boxes, classes, num_classes=NUM_CLASSES)
    assert targets.class_targets.dtype == tf.int32
    assert targets.box_targets.dtype == targets.num_positives.dtype == tf.float32
    assert targets.positives.dtype == tf.bool
    positives = targets.positives.numpy()
    assert positives[0, 10] and positives[0, 100]
    assert targets.class_targets[0, 10] == 3 and targets.class_targets[0, 100] == 0
    np.testing.assert_allclose(
        targets.box_targets[0, 10], encode_boxes(boxes[0, 0], ANCHORS[10]), rtol=1e-6
    )
    np.testing.assert_array_equal(targets.box_targets[0, 100], np.zeros(4))
    np.testing.assert_array_equal(targets.num_positives, positives.sum(axis=1))


def test_background_everywhere_else():
    boxes, classes = batch()
    targets = assign_targets(ANCHORS, boxes, classes, num_classes=NUM_CLASSES)
    positives = targets.positives.numpy()
    assert (targets.class_targets.numpy()[~positives] == NUM_CLASSES).all()
    assert (targets.box_targets.numpy()[~positives] == 0).all()
    # A box of class -1 takes no part although it equals an anchor.
    assert not positives[0, 50]
    # An image without objects is all background.
    assert not positives[1].any() and targets.num_positives[1] == 0


def test_small_object_keeps_its_best_anchor():
    boxes, classes = batch()
    targets = assign_targets(ANCHORS, boxes, classes, num_classes=NUM_CLASSES)
    assert targets.num_positives[2] == 1
    assert targets.class_targets.numpy()[2][targets.positives.numpy()[2]] == [4]


def test_one_class():
    boxes, classes = batch()
    targets = assign_targets(ANCHORS, boxes, np.minimum(classes, 0), num_classes=1)
    assert set(np.unique(targets.class_targets)) == {0, 1}


def test_compiled_equals_eager():
    boxes, classes = batch()

    def run(boxes, classes):
        return assign_targets(ANCHORS, boxes, classes, num_classes=NUM_CLASSES)

    eager = run(boxes, classes)
    compiled = tf.function(run, jit_compile=True)(boxes, classes)
    np.testing.assert_array_equal(eager.class_targets, compiled.class_targets)
    np.testing.assert_array_equal(eager.positives, compiled.positives)
    np.testing.assert_array_equal(eager.num_positives, compiled.num_positives)
    np.testing.assert_allclose(eager.box_targets, compiled.box_targets, rtol=1e-5, atol=1e-6)
