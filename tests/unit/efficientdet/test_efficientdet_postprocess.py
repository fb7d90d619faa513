"""Post-processing: exact selection, frames, clipping and padding."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.postprocess import postprocess, select_candidates
from efficientdet.settings import NmsConfig
from object_detection.boxes.anchors import generate_anchors
from object_detection.input import geometry as geometry_lib

SIZE = (64, 96)
NUM_CLASSES = 3
ANCHORS = generate_anchors(
    SIZE, min_level=3, max_level=4, num_scales=1, aspect_ratios=[(1, 1), (2, 1)], anchor_scale=2
)
LEVELS = [(8, 12), (4, 6)]
NMS = NmsConfig(method="hard", score_thresh=0.01, max_output_size=10, max_nms_inputs=50)


def quiet_outputs(batch_size=1):
    """Outputs of two anchors per position that detect nothing: logits -20, deltas 0."""
    logits = [np.full((batch_size, h, w, 2 * NUM_CLASSES), -20.0, np.float32) for h, w in LEVELS]
    deltas = [np.zeros((batch_size, h, w, 8), np.float32) for h, w in LEVELS]
    return logits, deltas


def random_outputs():
    rng = np.random.default_rng(0)
    logits = [rng.normal(-3, 2, (2, h, w, 2 * NUM_CLASSES)) for h, w in LEVELS]
    deltas = [rng.normal(0, 0.3, (2, h, w, 8)) for h, w in LEVELS]
    return [x.astype(np.float32) for x in logits], [x.astype(np.float32) for x in deltas]


def whole_image(batch_size=1, original=SIZE):
    sizes = tf.constant([original] * batch_size)
    return geometry_lib.pack(geometry_lib.fit_inside(sizes, height=SIZE[0], width=SIZE[1]))


def detect(logits, deltas, geometry, **changes):
    options = {"num_classes": NUM_CLASSES, "network_size": SIZE}
    nms = dataclasses.replace(NMS, **changes)
    return postprocess(logits, deltas, ANCHORS, geometry, nms=nms, **options)


def run(*inputs, **changes):
    detections = detect(*inputs, **changes)
    return type(detections)(*(field.numpy() for field in detections))


def test_one_object_comes_out_where_its_anchor_is():
    logits, deltas = quiet_outputs()
    # Position (5, 7) of P3, second anchor, class 1.
    logits[0][0, 5, 7, NUM_CLASSES + 1] = 2.0
    index = (5 * 12 + 7) * 2 + 1
    detections = run(logits, deltas, whole_image())
    np.testing.assert_array_equal(detections.num_valid, [1])
    np.testing.assert_allclose(detections.scores[0, 0], 1 / (1 + np.exp(-2.0)), rtol=1e-6)
    assert detections.classes[0, 0] == 1
    np.testing.assert_allclose(detections.boxes[0, 0], ANCHORS[index], rtol=1e-6)
    assert not detections.boxes[0, 1:].any() and (detections.classes[0, 1:] == -1).all()
    assert not detections.scores[0, 1:].any()


def test_clipping_can_be_turned_off():
    logits, deltas = quiet_outputs()
    # First anchor of P4: centre (8, 8), 32 px.
    logits[1][0, 0, 0, 0] = 1.0
    np.testing.assert_array_equal(run(logits, deltas, whole_image()).boxes[0, 0], [0, 0, 24, 24])
    unclipped = run(logits, deltas, whole_image(), clip_boxes=False)
    np.testing.assert_array_equal(unclipped.boxes[0, 0], [-8, -8, 24, 24])
    assert not unclipped.boxes[0, 1:].any()


def test_image_without_detections():
    detections = run(*quiet_outputs(), whole_image())
    assert detections.num_valid == [0]
    assert not detections.boxes.any() and (detections.classes == -1).all()
    assert detections.boxes.shape == (1, 10, 4) and detections.classes.dtype == np.int32


def test_same_anchor_may_hold_two_classes_unless_class_agnostic():
    logits, deltas = quiet_outputs()
    logits[0][0, 4, 4, :2] = [2.0, 1.0]
    assert run(logits, deltas, whole_image()).num_valid == [2]
    assert run(logits, deltas, whole_image(), class_agnostic=True).num_valid == [1]
    # Best class per anchor: the second class does not enter.
    assert run(logits, deltas, whole_image(), max_nms_inputs=0).num_valid == [1]


def test_every_anchor_with_its_best_class():
    logits, deltas = random_outputs()
    every = run(logits, deltas, whole_image(2), max_nms_inputs=0, class_agnostic=True)
    # Class-agnostic hard suppression removes an anchor's other classes anyway.
    all_pairs = run(logits, deltas, whole_image(2), max_nms_inputs=10_000, class_agnostic=True)
    for one, other in zip(every, all_pairs):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("max_candidates", [4, 60, 100_000])
def test_selected_pairs_are_the_best_of_all(max_candidates):
    logits, _ = random_outputs()
    levels = [tf.constant(x.reshape(2, -1, NUM_CLASSES), tf.float16) for x in logits]
    values, classes, anchor_index = select_candidates(levels, max_candidates=max_candidates)
    rows = np.concatenate([level.numpy() for level in levels], axis=1).astype(np.float32)
    pairs = rows.reshape(2, -1)
    count = min(max_candidates, pairs.shape[1])
    assert values.dtype == tf.float32 and values.shape == (2, count)
    np.testing.assert_array_equal(values, -np.sort(-pairs, axis=1)[:, :count])
    for image in range(2):
        found = rows[image, anchor_index[image], classes[image]]
        np.testing.assert_array_equal(found, values[image])


def test_half_precision_outputs_are_decoded_in_float32():
    logits, deltas = random_outputs()
    logits, deltas = ([tf.constant(x, tf.float16) for x in level] for level in (logits, deltas))
    half = run(logits, deltas, whole_image(2))
    single = run(
        *([tf.cast(x, tf.float32) for x in level] for level in (logits, deltas)), whole_image(2)
    )
    assert half.boxes.dtype == half.scores.dtype == np.float32
    for one, other in zip(half, single):
        np.testing.assert_array_equal(one, other)


def test_compiled_equals_eager():
    logits, deltas = random_outputs()
    geometry = whole_image(2, original=(480, 640))
    eager = run(logits, deltas, geometry, method="gaussian")
    compiled = tf.function(lambda *inputs: detect(*inputs, method="gaussian"), jit_compile=True)(
        logits, deltas, geometry
    )
    assert (eager.num_valid == 10).all()
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-5, atol=1e-4)
