"""Proposals: the whole procedure against NumPy, clipping, sizes, padding and conventions."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from engine.config.fields import override
from maskrcnn.regions.proposals import propose_regions
from maskrcnn.settings import base_config

SIZES = [(8, 12), (4, 6)]
IMAGE_SIZES = np.array([[64, 96], [50, 70]], np.float32)
BEFORE, AFTER = 60, 30


def random_anchors():
    """Returns boxes around places in the image, some of which reach out of it."""
    rng = np.random.default_rng(7)
    count = 3 * sum(height * width for height, width in SIZES)
    centers, halves = rng.uniform(0, (64, 96), (count, 2)), rng.uniform(8, 40, (count, 2))
    return np.concatenate([centers - halves, centers + halves], axis=1).astype(np.float32)


ANCHORS = random_anchors()


def outputs(seed=0):
    rng = np.random.default_rng(seed)
    logits = [rng.normal(size=(2, *size, 3)).astype(np.float32) for size in SIZES]
    deltas = [0.3 * rng.normal(size=(2, *size, 12)).astype(np.float32) for size in SIZES]
    return logits, deltas


THRESHOLDS = {"train": "train_rpn_nms_threshold", "test": "test_rpn_nms_thresh"}


def propose(
    *outputs,
    anchors=ANCHORS,
    before=BEFORE,
    after=AFTER,
    of_level=0,
    min_size=0.0,
    coding=0.0,
    iou=0.0,
    training=True,
):
    phase, other = ("train", "test") if training else ("test", "train")
    settings = {
        # Those of the other phase would leave one proposal.
        **{f"{other}_rpn_{name}_topn": 1 for name in ("pre_nms", "post_nms", "level")},
        THRESHOLDS[other]: 0.0,
        THRESHOLDS[phase]: 0.7,
        f"{phase}_rpn_pre_nms_topn": before,
        f"{phase}_rpn_post_nms_topn": after,
        f"{phase}_rpn_level_topn": of_level,
        "rpn_min_size": min_size,
        "coding_offset": coding,
        "iou_offset": iou,
    }
    config = override(base_config("maskrcnn-r50-fpn"), settings, source="test")
    return propose_regions(
        *outputs, anchors, tf.constant(IMAGE_SIZES), config=config, training=training
    )


def numpy_proposals(logits, deltas, image, *, of_level, min_size, coding, iou):
    boxes, scores, start = [], [], 0
    for level_logits, level_deltas in zip(logits, deltas):
        flat = level_logits[image].ravel().astype(np.float64)
        end = start + len(flat)
        order = np.argsort(-flat, kind="stable")[:BEFORE]
        decoded = numpy_boxes.decode(
            level_deltas[image].reshape(-1, 4)[order].astype(np.float64),
            ANCHORS[start:end][order].astype(np.float64),
            coding,
        )
        limits = np.tile(IMAGE_SIZES[image] - coding, 2)
        decoded = np.clip(decoded, 0, limits)
        sides = (decoded[:, 2:] - decoded[:, :2] + coding).min(axis=1)
        alive = (sides >= min_size) & (sides > 0)
        kept = []
        for i in np.flatnonzero(alive):
            if not kept or numpy_boxes.overlaps(decoded[i], decoded[kept], iou).max() <= 0.7:
                kept.append(i)
        kept = kept[: of_level or AFTER]
        boxes.append(decoded[kept])
        scores.append(flat[order][kept])
        start = end
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    order = np.argsort(-scores, kind="stable")[:AFTER]
    return boxes[order], 1 / (1 + np.exp(-scores[order]))


@pytest.mark.parametrize(
    ("of_level", "min_size", "coding", "iou", "training"),
    [
        (0, 0.0, 0.0, 0.0, True),
        (3, 0.0, 0.0, 0.0, False),
        (0, 9.0, 1.0, 0.0, False),
        (0, 0.0, 1.0, 1.0, True),
    ],
)
def test_equals_numpy(of_level, min_size, coding, iou, training):
    logits, deltas = outputs()
    conventions = {"of_level": of_level, "min_size": min_size, "coding": coding, "iou": iou}
    proposals = propose(logits, deltas, **conventions, training=training)
    for image in range(2):
        boxes, scores = numpy_proposals(logits, deltas, image, **conventions)
        count = len(boxes)
        np.testing.assert_array_equal(proposals.is_valid[image], np.arange(AFTER) < count)
        np.testing.assert_allclose(proposals.scores[image, :count], scores, rtol=1e-5)
        np.testing.assert_allclose(proposals.boxes[image, :count], boxes, atol=1e-3)
        assert not proposals.boxes[image, count:].numpy().any()


def test_a_box_of_the_least_size_stays():
    def shortest_side(min_size):
        found = propose(*outputs(), after=1000, min_size=min_size)
        boxes = found.boxes.numpy()[found.is_valid.numpy()]
        return float((boxes[:, 2:] - boxes[:, :2]).min())

    least = shortest_side(0.0)
    assert shortest_side(least) == least < shortest_side(least * 1.001)


def test_compiled_equals_eager_and_float16_is_decoded_in_float32():
    logits, deltas = outputs(seed=1)
    logits, deltas = ([tf.cast(x, tf.float16) for x in part] for part in (logits, deltas))
    eager = propose(logits, deltas)
    assert eager.boxes.dtype == eager.scores.dtype == tf.float32
    compiled = tf.function(propose, jit_compile=True)(logits, deltas)
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("coding", [0.0, 1.0])
def test_outputs_that_are_not_numbers_give_no_proposals(coding):
    logits, deltas = outputs()
    logits[0][0, 0, 0, 0], deltas[1][0, 1, 1, :4] = np.nan, np.nan
    logits[1][0, 1, 1, 0], logits[0][0, 1, 1, 1] = 50.0, np.inf
    logits[0][1] = np.nan
    logits[1][1] = np.nan
    proposals = propose(logits, deltas, coding=coding)
    assert np.isfinite(proposals.boxes).all() and np.isfinite(proposals.scores).all()
    assert proposals.is_valid[0].numpy().any() and not proposals.is_valid[1].numpy().any()
    assert proposals.scores.numpy().max() < 1.0 - 1e-6


def test_more_wanted_than_there_are():
    logits, deltas = outputs()
    proposals = propose(logits, deltas, before=10_000, after=1000)
    assert proposals.boxes.shape == (2, 1000, 4)
    valid = proposals.is_valid.numpy()
    assert 20 < valid[0].sum() < 360
    boxes = proposals.boxes.numpy()[0][valid[0]]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 64 and boxes[:, 3].max() <= 96


def test_a_level_is_searched_until_it_has_its_share():
    """The third of its boxes comes after more copies of the others than are compared at once."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32)
    anchors = boxes[[*[0] * 128, *[1] * 128, *[2] * 32, *[0, 1] * 36]]
    falling = [-np.arange(3.0 * height * width, dtype="f") for height, width in SIZES]
    logits = [np.tile(x.reshape(1, *size, 3), [2, 1, 1, 1]) for x, size in zip(falling, SIZES)]
    found = propose(logits, [0 * x for x in outputs()[1]], anchors=anchors, before=999, of_level=3)
    np.testing.assert_array_equal(found.is_valid.numpy().sum(axis=1), [5, 5])


def test_no_gradient_leaves_the_proposals():
    logits, deltas = ([tf.constant(x) for x in part] for part in outputs())
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        proposals = propose(logits, deltas)
        total = tf.reduce_sum(proposals.boxes) + tf.reduce_sum(proposals.scores)
    gradients = tape.gradient(total, [*logits, *deltas])
    assert all(gradient is None for gradient in gradients)
