"""Assignment against a brute force in NumPy that follows the rules one box at a time."""

import functools

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from efficientdet.targets import assign_targets
from object_detection.boxes.anchors import generate_anchors
from object_detection.boxes.matcher import match_anchors

NUM_CLASSES = 7


def brute_force_matches(anchors, boxes, *, positive, negative):
    """Index of the box of each anchor (-1 for none) and its label, for one image's real boxes."""
    table = numpy_boxes.overlaps(np.float64(boxes), np.float64(anchors)).tolist()
    index, labels = [], []
    for a in range(len(anchors)):
        best_box, best = -1, 0.0
        for b in range(len(boxes)):
            if table[b][a] > best:
                best_box, best = b, table[b][a]
        index.append(best_box)
        labels.append(1 if best >= positive else 0 if best < negative else -1)
    taken = set()
    for b, row in enumerate(table):
        a = row.index(max(row))
        if row[a] > 0 and a not in taken:
            taken.add(a)
            index[a], labels[a] = b, 1
    return np.array(index), np.array(labels)


def pyramid():
    """Anchors on whole pixels, so that equal overlaps are equal in any precision."""
    return generate_anchors(
        (64, 96),
        min_level=3,
        max_level=5,
        num_scales=1,
        aspect_ratios=[(1.0, 1.0), (2.0, 1.0), (1.0, 2.0)],
        anchor_scale=2.0,
    )


def images(max_boxes=20):
    """Boxes and classes of: none, a few, a full set, whole-pixel ones with ties, and gaps."""
    rng = np.random.default_rng(11)
    boxes = np.zeros((5, max_boxes, 4), np.float32)
    classes = np.full((5, max_boxes), -1, np.int32)
    for image, count in enumerate((0, 3, max_boxes, 12, 9)):
        boxes[image, :count] = numpy_boxes.random(rng, count, low=-4, high=60, side=(2, 40))
        classes[image, :count] = rng.integers(0, NUM_CLASSES, count)
    # On the grid of the anchors: many exactly equal overlaps; two boxes twice; one off the image.
    boxes[3, :12] = np.round(boxes[3, :12] / 8) * 8 + [0, 0, 8, 8]
    boxes[3, 5], boxes[3, 7] = boxes[3, 0], boxes[3, 2]
    boxes[3, 9] = [-90, -90, -80, -80]
    # Padding in the middle.
    classes[4, [0, 4, 5]] = -1
    return boxes, classes


@pytest.mark.parametrize(("positive", "negative"), [(0.5, 0.5), (0.7, 0.3), (0.5, 0.4)])
def test_matches_equal_brute_force(positive, negative):
    anchors = pyramid()
    boxes, classes = images()
    matches = match_anchors(
        anchors,
        boxes,
        classes >= 0,
        positive_threshold=positive,
        negative_threshold=negative,
    )
    found_labels = set()
    for image in range(len(boxes)):
        real = np.flatnonzero(classes[image] >= 0)
        index, labels = brute_force_matches(
            anchors, boxes[image, real], positive=positive, negative=negative
        )
        np.testing.assert_array_equal(matches.labels[image], labels, err_msg=f"image {image}")
        is_positive = labels == 1
        np.testing.assert_array_equal(
            matches.gt_index.numpy()[image][is_positive], real[index[is_positive]]
        )
        found_labels |= set(labels.tolist())
    assert found_labels == ({1, 0} if positive == negative else {1, 0, -1})


@pytest.mark.parametrize("jit_compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 1])
def test_targets_equal_brute_force(num_classes, jit_compile):
    anchors = pyramid()
    boxes, classes = images()
    classes = np.minimum(classes, num_classes - 1)
    assign = functools.partial(assign_targets, anchors, num_classes=num_classes)
    if jit_compile:
        assign = tf.function(assign, jit_compile=True)
    targets = assign(boxes, classes)
    assert [value.dtype for value in targets] == [tf.int32, tf.float32, tf.bool, tf.float32]
    num_forced = 0
    for image in range(len(boxes)):
        real = np.flatnonzero(classes[image] >= 0)
        index, labels = brute_force_matches(anchors, boxes[image, real], positive=0.5, negative=0.5)
        positives = labels == 1
        matched = real[index[positives]]
        expected_classes = np.full(len(anchors), num_classes)
        expected_classes[positives] = classes[image, matched]
        np.testing.assert_array_equal(targets.class_targets[image], expected_classes)
        np.testing.assert_array_equal(targets.positives[image], positives)
        assert targets.num_positives[image] == positives.sum()
        codes = targets.box_targets[image].numpy()
        assert not codes[~positives].any()
        np.testing.assert_allclose(
            numpy_boxes.decode(codes[positives], anchors[positives]),
            boxes[image, matched],
            rtol=1e-5,
            atol=1e-4,
        )
        overlaps = numpy_boxes.overlaps(boxes[image, real], anchors)
        num_forced += (overlaps.max(axis=1, initial=0) < 0.5).sum()
    assert num_forced, "some objects have their best anchor only"
