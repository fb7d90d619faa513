"""Assignment against a brute force in NumPy that follows the rules one box at a time."""

import numpy as np
import pytest

from efficientdet.targets import assign_targets
from object_detection.boxes.anchors import generate_anchors
from object_detection.boxes.matcher import match_anchors

NUM_CLASSES = 7


def overlap(box, anchor):
    """IoU of two boxes (y1, x1, y2, x2) in Python floats."""
    height = min(box[2], anchor[2]) - max(box[0], anchor[0])
    width = min(box[3], anchor[3]) - max(box[1], anchor[1])
    if height <= 0 or width <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1])
    anchor_area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
    return height * width / (area + anchor_area - height * width)


def brute_force_matches(anchors, boxes, *, positive, negative, force):
    """Index of the box of each anchor (-1 for none) and its label, for one image's real boxes."""
    table = [[overlap(box, anchor) for anchor in anchors] for box in boxes]
    index, labels = [], []
    for a in range(len(anchors)):
        best_box, best = -1, 0.0
        for b in range(len(boxes)):
            if table[b][a] > best:
                best_box, best = b, table[b][a]
        index.append(best_box)
        labels.append(1 if best >= positive else 0 if best < negative else -1)
    if force:
        taken = set()
        for b, row in enumerate(table):
            a = row.index(max(row))
            if row[a] > 0 and a not in taken:
                taken.add(a)
                index[a], labels[a] = b, 1
    return np.array(index), np.array(labels)


def brute_force_code(box, anchor):
    height, width = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / height,
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / width,
        np.log((box[2] - box[0]) / height),
        np.log((box[3] - box[1]) / width),
    ]


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
        low = rng.uniform(-4, 60, (count, 2))
        boxes[image, :count] = np.concatenate([low, low + rng.uniform(2, 40, (count, 2))], -1)
        classes[image, :count] = rng.integers(0, NUM_CLASSES, count)
    # On the grid of the anchors: many exactly equal overlaps; two boxes twice; one off the image.
    boxes[3, :12] = np.round(boxes[3, :12] / 8) * 8 + [0, 0, 8, 8]
    boxes[3, 5], boxes[3, 7] = boxes[3, 0], boxes[3, 2]
    boxes[3, 9] = [-90, -90, -80, -80]
    # Padding in the middle.
    classes[4, [0, 4, 5]] = -1
    return boxes, classes


@pytest.mark.parametrize(
    ("positive", "negative", "force"), [(0.5, 0.5, True), (0.7, 0.3, True), (0.5, 0.4, False)]
)
def test_matches_equal_brute_force(positive, negative, force):
    anchors = pyramid()
    boxes, classes = images()
    matches = match_anchors(
        anchors,
        boxes,
        classes >= 0,
        positive_threshold=positive,
        negative_threshold=negative,
        force_match=force,
    )
    found_labels = set()
    for image in range(len(boxes)):
        real = np.flatnonzero(classes[image] >= 0)
        index, labels = brute_force_matches(
            anchors.tolist(),
            boxes[image, real].tolist(),
            positive=positive,
            negative=negative,
            force=force,
        )
        np.testing.assert_array_equal(matches.labels[image], labels, err_msg=f"image {image}")
        is_positive = labels == 1
        np.testing.assert_array_equal(
            matches.gt_index.numpy()[image][is_positive], real[index[is_positive]]
        )
        found_labels |= set(labels.tolist())
    assert found_labels == ({1, 0} if positive == negative else {1, 0, -1})


def test_targets_equal_brute_force():
    anchors = pyramid()
    boxes, classes = images()
    targets = assign_targets(anchors, boxes, classes, num_classes=NUM_CLASSES)
    for image in range(len(boxes)):
        real = np.flatnonzero(classes[image] >= 0)
        index, labels = brute_force_matches(
            anchors.tolist(),
            boxes[image, real].tolist(),
            positive=0.5,
            negative=0.5,
            force=True,
        )
        expected_classes = np.full(len(anchors), NUM_CLASSES)
        expected_codes = np.zeros((len(anchors), 4))
        for a in np.flatnonzero(labels == 1):
            box = real[index[a]]
            expected_classes[a] = classes[image, box]
            expected_codes[a] = brute_force_code(boxes[image, box].tolist(), anchors[a].tolist())
        np.testing.assert_array_equal(targets.class_targets[image], expected_classes)
        np.testing.assert_array_equal(targets.positives[image], labels == 1)
        np.testing.assert_allclose(targets.box_targets[image], expected_codes, rtol=1e-5, atol=1e-5)
        assert targets.num_positives[image] == (labels == 1).sum()
