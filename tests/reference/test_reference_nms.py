"""Suppression and post-processing against a NumPy version that works class by class."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from efficientdet.postprocess import postprocess
from efficientdet.settings import NmsConfig
from object_detection.boxes.anchors import generate_anchors
from object_detection.boxes.nms import batched_nms
from object_detection.input import geometry as geometry_lib

METHODS = ["hard", "linear", "gaussian", "diou"]
SIGMA = 0.5
FLOOR = 0.001


def numpy_centre_distance(box, boxes):
    rho = ((box[:2] + box[2:] - boxes[:, :2] - boxes[:, 2:]) ** 2).sum(axis=1) / 4
    hull = np.maximum(box[2:], boxes[:, 2:]) - np.minimum(box[:2], boxes[:, :2])
    return rho / (hull**2).sum(axis=1)


def numpy_nms_of_one_class(boxes, scores, *, method, offset):
    """Indices of the boxes kept, in the order in which they are picked, and their scores."""
    kept, kept_scores = [], []
    left = np.flatnonzero(scores >= FLOOR)
    scores = scores[left]
    while len(left):
        best = int(np.argmax(scores))
        box = boxes[left[best]]
        kept.append(left[best])
        kept_scores.append(scores[best])
        left, scores = np.delete(left, best), np.delete(scores, best)
        overlaps = numpy_boxes.overlaps(box, boxes[left], offset)
        if method == "gaussian":
            scores = scores * np.exp(-(overlaps**2) / SIGMA)
        elif method == "linear":
            scores = np.where(overlaps > 0.3, scores * (1 - overlaps), scores)
        else:
            if method == "diou":
                overlaps = overlaps - numpy_centre_distance(box, boxes[left])
            scores = np.where(overlaps > 0.5, 0.0, scores)
        alive = scores >= FLOOR
        left, scores = left[alive], scores[alive]
    return np.array(kept), np.array(kept_scores)


def numpy_nms(boxes, scores, classes, *, method, offset, class_agnostic, count):
    """Suppresses each class alone, puts the classes together, keeps the best of all."""
    groups = np.zeros_like(classes) if class_agnostic else classes
    all_kept, all_scores = [], []
    for group in np.unique(groups[classes >= 0]):
        chosen = np.flatnonzero((groups == group) & (classes >= 0))
        kept, kept_scores = numpy_nms_of_one_class(
            boxes[chosen], scores[chosen], method=method, offset=offset
        )
        all_kept.append(chosen[kept])
        all_scores.append(kept_scores)
    kept, kept_scores = np.concatenate(all_kept), np.concatenate(all_scores)
    best = np.argsort(-kept_scores, kind="stable")[:count]
    return boxes[kept[best]], kept_scores[best], classes[kept[best]]


def candidates():
    """Clusters of boxes, as a detector gives: much overlap within, little between."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(20, 180, (3, 8, 2))
    picked = rng.integers(0, 8, (3, 150))
    center = np.take_along_axis(centers, picked[..., np.newaxis], axis=1)
    center = center + rng.normal(0, 4, center.shape)
    half = rng.uniform(8, 20, center.shape)
    boxes = np.concatenate([center - half, center + half], axis=-1).astype(np.float32)
    scores = (rng.uniform(0, 1, picked.shape) ** 3).astype(np.float32)
    classes = rng.integers(0, 4, picked.shape, dtype=np.int32)
    classes[0, 100:] = -1
    return boxes, scores, classes


def assert_same_detections(found, expected, *, box_tolerance):
    boxes, scores, classes, num_valid = found
    expected_boxes, expected_scores, expected_classes = expected
    assert num_valid == len(expected_scores)
    np.testing.assert_allclose(scores[:num_valid], expected_scores, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(classes[:num_valid], expected_classes)
    np.testing.assert_allclose(boxes[:num_valid], expected_boxes, atol=box_tolerance)
    assert not scores[num_valid:].any() and (classes[num_valid:] == -1).all()


@pytest.mark.parametrize(("class_agnostic", "offset"), [(False, 0.0), (False, 1.0), (True, 0.0)])
@pytest.mark.parametrize("method", METHODS)
def test_one_pass_equals_suppression_per_class(method, class_agnostic, offset):
    boxes, scores, classes = candidates()
    outputs = batched_nms(
        boxes,
        scores,
        classes,
        max_output_size=100,
        method=method,
        iou_threshold=None,
        sigma=SIGMA,
        score_threshold=FLOOR,
        class_agnostic=class_agnostic,
        pixel_offset=offset,
    )
    for image in range(len(boxes)):
        expected = numpy_nms(
            boxes[image].astype(np.float64),
            scores[image].astype(np.float64),
            classes[image],
            method=method,
            offset=offset,
            class_agnostic=class_agnostic,
            count=100,
        )
        found = [output.numpy()[image] for output in outputs]
        assert_same_detections(found, expected, box_tolerance=0.0)
        # The clusters overlap: the plain best hundred is another answer.
        best = -np.sort(-scores[image][classes[image] >= 0])[:100]
        assert not np.allclose(found[1][: len(best)], best)


def test_postprocessing_equals_a_numpy_pipeline():
    rng = np.random.default_rng(4)
    num_classes, size, levels = 6, (64, 96), [(8, 12), (4, 6)]
    anchors = generate_anchors(
        size, min_level=3, max_level=4, num_scales=1, aspect_ratios=[(1, 1), (2, 1)], anchor_scale=3
    )
    logits = [rng.normal(-2, 2, (2, h, w, 2 * num_classes)).astype(np.float32) for h, w in levels]
    deltas = [rng.normal(0, 0.2, (2, h, w, 8)).astype(np.float32) for h, w in levels]
    original, scale, offset = (100.0, 130.0), (0.8, 0.75), (3.0, 5.0)
    geometry = geometry_lib.pack(
        geometry_lib.Geometry(
            original_size=tf.constant([original] * 2),
            canvas_origin=tf.zeros([2, 2]),
            canvas_scale=tf.ones([2, 2]),
            canvas_valid=tf.constant([original] * 2),
            network_scale=tf.constant([scale] * 2),
            network_offset=tf.constant([offset] * 2),
            flip=tf.constant([0.0, 1.0]),
        )
    )
    detections = postprocess(
        logits,
        deltas,
        anchors,
        geometry,
        num_classes=num_classes,
        network_size=size,
        nms=NmsConfig(max_nms_inputs=300, pixel_offset=1.0),
    )

    all_logits = np.concatenate([x.reshape(2, -1, num_classes) for x in logits], axis=1)
    all_deltas = np.concatenate([x.reshape(2, -1, 4) for x in deltas], axis=1).astype(np.float64)
    for image in range(2):
        pairs = all_logits[image].reshape(-1).astype(np.float64)
        order = np.argsort(-pairs)[:300]
        anchor, classes = order // num_classes, order % num_classes
        boxes = numpy_boxes.decode(all_deltas[image, anchor], anchors[anchor].astype(np.float64))
        kept, scores, classes = numpy_nms(
            boxes,
            1 / (1 + np.exp(-pairs[order])),
            classes,
            method="gaussian",
            offset=1.0,
            class_agnostic=False,
            count=100,
        )
        if image == 1:
            kept = np.stack([kept[:, 0], 96 - kept[:, 3], kept[:, 2], 96 - kept[:, 1]], axis=1)
        kept = (kept + np.tile(offset, 2)) / np.tile(scale, 2)
        kept = np.clip(kept, 0, np.tile(original, 2))
        found = [field.numpy()[image] for field in detections]
        assert_same_detections(found, (kept, scores, classes), box_tolerance=1e-3)
        assert len(scores) == 100
