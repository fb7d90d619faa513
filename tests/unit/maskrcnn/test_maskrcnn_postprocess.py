"""Detections: the whole procedure against NumPy, thresholds, padding, masks, original frame."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from engine.config.fields import override
from maskrcnn.regions import postprocess
from maskrcnn.regions.postprocess import NetworkDetections, detect_boxes, to_original
from maskrcnn.settings import MaskRcnnConfig, base_config
from object_detection.input import geometry as geometry_lib
from object_detection.serve.detections import Detections, MaskDetections

NUM_CLASSES, NUM_PROPOSALS = 4, 30
IMAGE_SIZES = np.array([[64, 96], [80, 60]], np.float32)


def example(seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(2, NUM_PROPOSALS, NUM_CLASSES + 1)).astype(np.float32)
    deltas = rng.normal(size=(2, NUM_PROPOSALS, NUM_CLASSES, 4)).astype(np.float32)
    proposals = numpy_boxes.random(rng, 2, NUM_PROPOSALS, high=50, side=(8, 30))
    valid = np.arange(NUM_PROPOSALS) < np.array([[30], [22]])
    return logits, deltas, proposals, valid


def config_with(count, *, floor=0.05, coding=0.0, iou=0.0, **others) -> MaskRcnnConfig:
    settings = {
        **others,
        "test_detections_per_image": count,
        "test_score_thresh": floor,
        "coding_offset": coding,
        "iou_offset": iou,
    }
    return override(base_config("maskrcnn-r50-fpn"), settings, source="test")


def detect(logits, deltas, proposals, valid, *settings, **changes):
    detections = detect_boxes(
        tf.constant(logits),
        tf.constant(deltas),
        tf.constant(proposals),
        tf.constant(valid),
        tf.constant(IMAGE_SIZES),
        config=config_with(*settings, **changes),
    )
    return [field.numpy() for field in detections]


def numpy_decode(deltas, boxes, offset):
    deltas = deltas.astype(np.float64) / [10, 10, 5, 5]
    deltas[:, 2:] = np.minimum(deltas[:, 2:], np.log(1000 / 16))
    return numpy_boxes.decode(deltas, boxes, offset)


def numpy_detect(logits, deltas, proposals, valid, image, *, floor, count, coding, iou):
    """Class by class, then the best of all."""
    exponents = np.exp(logits[image].astype(np.float64))
    scores = exponents / exponents.sum(-1, keepdims=True)
    rows = []
    for class_id in range(NUM_CLASSES):
        boxes = numpy_decode(deltas[image, :, class_id], proposals[image], coding)
        boxes = np.clip(boxes, 0, np.tile(IMAGE_SIZES[image] - coding, 2))
        kept = []
        for i in np.argsort(-scores[:, class_id]):
            has_area = (boxes[i, 2:] + coding > boxes[i, :2]).all()
            if not valid[image, i] or scores[i, class_id] < floor or not has_area:
                continue
            if not kept or numpy_boxes.overlaps(boxes[i], boxes[kept], iou).max() <= 0.5:
                kept.append(i)
        rows += [(scores[i, class_id], class_id, boxes[i]) for i in kept]
    return sorted(rows, key=lambda row: -row[0])[:count]


@pytest.mark.parametrize(
    ("floor", "coding", "iou"), [(0.05, 0.0, 0.0), (0.0, 0.0, 0.0), (0.05, 1.0, 1.0)]
)
def test_equals_numpy(floor, coding, iou):
    arrays = example()
    # Beside and below the image: of these nothing is left after clipping.
    arrays[2][:, :2] = [[0, 150, 40, 180], [150, 0, 180, 40]]
    conventions = {"floor": floor, "coding": coding, "iou": iou}
    boxes, scores, classes, num_valid = detect(*arrays, 40, **conventions)
    for image in range(2):
        rows = numpy_detect(*arrays, image, count=40, **conventions)
        count = len(rows)
        assert num_valid[image] == count > 15
        np.testing.assert_allclose(scores[image, :count], [row[0] for row in rows], rtol=1e-5)
        np.testing.assert_array_equal(classes[image, :count], [row[1] for row in rows])
        np.testing.assert_allclose(boxes[image, :count], [row[2] for row in rows], atol=1e-3)
        assert not boxes[image, count:].any() and not scores[image, count:].any()
        assert (classes[image, count:] == -1).all()


def test_flat_outputs_and_few_candidates(monkeypatch):
    logits, deltas, proposals, valid = example(1)
    separate = detect(logits, deltas, proposals, valid, 10)
    flat = detect(
        logits.reshape(-1, NUM_CLASSES + 1),
        deltas.reshape(-1, NUM_CLASSES, 4),
        proposals,
        valid,
        10,
    )
    for a, b in zip(separate, flat):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(postprocess, "_MOST_PAIRS", 3)
    few = detect(logits, deltas, proposals, valid, 10)
    assert few[3].max() <= 3
    np.testing.assert_allclose(few[1][:, 0], separate[1][:, 0])


def apart(count=NUM_PROPOSALS):
    """Outputs of proposals that do not touch one another, all alike, without corrections."""
    low = np.stack(np.divmod(np.arange(count), 6), axis=-1) * 8.0
    proposals = np.tile(np.concatenate([low, low + 6], axis=-1), (2, 1, 1)).astype(np.float32)
    logits = np.zeros((2, count, NUM_CLASSES + 1), np.float32)
    return (
        logits,
        np.zeros((2, count, NUM_CLASSES, 4), np.float32),
        proposals,
        np.ones((2, count), bool),
    )


def test_every_pair_is_found_where_none_overlaps():
    assert (detect(*apart(), 200)[3] == NUM_PROPOSALS * NUM_CLASSES).all()


def test_a_score_at_the_threshold_stays():
    logits, *others = apart(2)
    logits[...] = -200.0
    logits[..., :2] = 0.0  # two classes of 1/2
    assert (detect(logits, *others, 9, floor=0.5)[3] == 4).all()
    assert (detect(logits, *others, 9, floor=0.5001)[3] == 0).all()


def test_boxes_and_suppression_follow_their_settings():
    logits, deltas, proposals, valid = apart(2)
    logits[..., 0] = 9.0
    deltas[..., 0, :] = 1.0, 2.0, 3.0 * np.log(2), 4.0 * np.log(3)
    found = detect(logits, deltas, proposals, valid, 9, bbox_reg_weights=(2.0, 4.0, 3.0, 4.0))[0]
    # A half of 6 further down and to the right; twice as high and thrice as wide.
    np.testing.assert_allclose(found[0, 0], [0, 0, 12, 15], atol=1e-4)
    deltas[...] = 0.0
    proposals[:, 1] = proposals[:, 0] + [0, 0, 0, 4]  # IoU 6 / 10, with the offset 7 / 11
    for threshold, iou, count in ((0.55, 0.0, 1), (0.62, 0.0, 2), (0.62, 1.0, 1), (0.65, 1.0, 2)):
        found = detect(logits, deltas, proposals, valid, 9, test_nms=threshold, iou=iou)
        assert (found[3] == count).all()


def test_nothing_to_detect_and_values_that_are_not_numbers():
    logits, deltas, proposals, valid = example(2)
    logits[0, :, -1] = 50.0  # all background
    logits[1, :5] = np.nan
    boxes, scores, classes, num_valid = detect(logits, deltas, proposals, valid, 9)
    assert num_valid[0] == 0 and not boxes[0].any() and (classes[0] == -1).all()
    assert num_valid[1] == 9 and np.isfinite(scores).all() and np.isfinite(boxes).all()


def test_the_best_refused_score_is_of_a_proposal_and_a_number():
    logits, deltas, proposals, valid = example(2)
    logits[...] = [0.0] * NUM_CLASSES + [9.0]
    logits[0, 0, 0] = np.nan
    logits[1, ~valid[1], 0] = 50.0  # padding that looks like an object
    _, scores, _, num_valid = detect(logits, deltas, proposals, valid, 9)
    assert not num_valid.any()
    np.testing.assert_allclose(scores[:, 0], 1 / (NUM_CLASSES + np.exp(9)), rtol=1e-5)


def test_compiled_equals_eager_with_half_precision_outputs():
    logits, deltas, proposals, valid = example(3)
    halves = [tf.cast(outputs, tf.float16) for outputs in (logits, deltas)]
    singles = [tf.cast(outputs, tf.float32) for outputs in halves]

    def run(logits, deltas, proposals, valid):
        return detect_boxes(
            logits, deltas, proposals, valid, tf.constant(IMAGE_SIZES), config=config_with(20)
        )

    eager = run(*halves, proposals, valid)
    assert eager.boxes.dtype == eager.scores.dtype == tf.float32
    for half, single in zip(eager, run(*singles, proposals, valid)):
        np.testing.assert_array_equal(half, single)
    compiled = tf.function(run, jit_compile=True)(*halves, proposals, valid)
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-4, atol=1e-3)


def test_boxes_move_to_the_original_image():
    sizes = tf.constant([[128.0, 192.0], [160.0, 120.0]])
    geometry = geometry_lib.pack(geometry_lib.fit_inside(sizes, height=64, width=96))
    detections = detect_boxes(
        *example(5)[:3],
        tf.constant(example(5)[3]),
        tf.constant(IMAGE_SIZES),
        config=config_with(12, floor=0.7),
    )
    moved = to_original(detections, geometry, network_width=96)
    assert isinstance(moved, Detections) and moved.boxes.shape == (2, 12, 4)
    # The first image is halved; boxes of the second, 0.4 of the size, end at its border.
    np.testing.assert_allclose(moved.boxes[0], detections.boxes[0] * 2, rtol=1e-5)
    expected = np.minimum(detections.boxes[1] * 2.5, [160, 120, 160, 120])
    np.testing.assert_allclose(moved.boxes[1], expected, rtol=1e-5, atol=1e-4)
    with_last_pixel = to_original(detections, geometry, network_width=96, pixel_offset=1.0)
    grown = with_last_pixel.boxes[0, 0] - moved.boxes[0, 0]
    np.testing.assert_allclose(grown, [0, 0, 2, 2], atol=1e-4)
    is_padding = detections.classes.numpy() == -1
    assert 0 < is_padding.sum() < 24 and not with_last_pixel.boxes[is_padding].numpy().any()
    masks = tf.zeros([2, 12, 28, 28])
    with_masks = to_original(detections, geometry, network_width=96, masks=masks)
    assert isinstance(with_masks, MaskDetections)
    np.testing.assert_array_equal(with_masks.boxes, moved.boxes)
    assert with_masks.masks is masks


def test_boxes_end_where_the_original_image_ends():
    geometry = geometry_lib.fit_inside(tf.constant([[160.0, 120.0]]), height=64, width=96)
    found = NetworkDetections(  # the image is 64 x 48 pixels in the network
        boxes=tf.constant([[[-2.0, 4.0, 70.0, 48.0]]]),
        scores=tf.ones([1, 1]),
        classes=tf.zeros([1, 1], tf.int32),
        num_valid=tf.constant([1]),
    )
    moved = to_original(found, geometry_lib.pack(geometry), network_width=96, pixel_offset=1.0)
    np.testing.assert_allclose(moved.boxes, [[[0, 10, 160, 120]]], rtol=1e-6)
