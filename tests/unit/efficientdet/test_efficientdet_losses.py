"""Losses: hand-computed cases, extreme logits, masks, normaliser and precision."""

import math
import re

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from efficientdet.losses import detection_losses, huber_loss, sigmoid_focal_loss
from efficientdet.settings import LossConfig
from efficientdet.targets import Targets

FOCAL = {"alpha": 0.25, "gamma": 1.5, "label_smoothing": 0.0}
NUM_CLASSES = 3
LEVELS = [(4, 4), (2, 2)]
NUM_ANCHORS = sum(height * width * 2 for height, width in LEVELS)


def example(batch_size=2, dtype=np.float32):
    """Outputs with two anchors per position, targets with some positives, and anchors."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(-1, 2, (batch_size, h, w, 2 * NUM_CLASSES)) for h, w in LEVELS]
    deltas = [rng.normal(0, 0.3, (batch_size, h, w, 8)) for h, w in LEVELS]
    positives = rng.uniform(size=(batch_size, NUM_ANCHORS)) < 0.3
    classes = rng.integers(0, NUM_CLASSES, positives.shape)
    box_targets = rng.normal(0, 0.3, (*positives.shape, 4)) * positives[..., np.newaxis]
    targets = Targets(
        class_targets=tf.constant(np.where(positives, classes, NUM_CLASSES), tf.int32),
        box_targets=tf.constant(box_targets, tf.float32),
        positives=tf.constant(positives),
        num_positives=tf.constant(positives.sum(axis=1), tf.float32),
    )
    anchors = tf.constant(numpy_boxes.random(rng, NUM_ANCHORS, high=50, side=(20, 20)))
    logits, deltas = ([tf.constant(x, dtype) for x in level] for level in (logits, deltas))
    return logits, deltas, targets, anchors


def losses_and_gradients(logits, deltas, targets, anchors, **changes):
    options = {"num_classes": NUM_CLASSES, "settings": LossConfig(**changes)}
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        losses = detection_losses(logits, deltas, targets, anchors, **options)
    return losses, tape.gradient(losses.det_loss, [*logits, *deltas])


def focal_and_gradient(x, is_target, **changes):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = sigmoid_focal_loss(x, tf.constant(is_target), **{**FOCAL, **changes})
    return loss.numpy(), tape.gradient(loss, x).numpy()


def test_focal_loss_of_undecided_logits():
    # p = 1/2: loss alpha_t * 0.5^1.5 * ln 2 and slope of (1-p)^g * -ln p in closed form.
    loss, gradient = focal_and_gradient([0.0, 0.0], [True, False])
    modulated = 0.5**1.5 * math.log(2)
    np.testing.assert_allclose(loss, [0.25 * modulated, 0.75 * modulated], rtol=1e-6)
    slope = 0.5**1.5 * (1.5 * 0.5 * math.log(2) + 0.5)
    np.testing.assert_allclose(gradient, [-0.25 * slope, 0.75 * slope], rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_extreme_logits_are_finite_with_the_right_gradient(gamma):
    x = np.array([-200.0, 200.0, -200.0, 200.0], np.float32)
    loss, gradient = focal_and_gradient(x, [True, True, False, False], gamma=gamma)
    # A hopeless positive keeps modulator 1: slope -alpha. A hopeless negative likewise.
    np.testing.assert_allclose(loss, [0.25 * 200, 0.0, 0.0, 0.75 * 200], rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.25, 0.0, 0.0, 0.75], rtol=1e-6)


def test_huber_hand_case():
    errors = tf.constant([0.0, 0.05, -0.1, 0.3, -1e30])
    with tf.GradientTape() as tape:
        tape.watch(errors)
        loss = huber_loss(errors, delta=0.1)
    np.testing.assert_allclose(loss, [0, 0.00125, 0.005, 0.025, 1e29], rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, errors), [0, 0.05, -0.1, 0.1, -0.1], rtol=1e-5)


def test_ignored_anchors_carry_neither_loss_nor_gradient():
    logits, deltas, targets, anchors = example()
    ignored = targets._replace(class_targets=tf.fill(targets.class_targets.shape, -1))
    losses, gradients = losses_and_gradients(logits, deltas, ignored, anchors)
    assert losses.cls_loss == 0.0 and losses.box_loss > 0.0
    assert not any(np.any(gradient) for gradient in gradients[:2])


def test_zero_targets_of_matched_anchors_are_trained():
    logits, deltas, targets, anchors = example()
    centred = targets._replace(box_targets=tf.zeros_like(targets.box_targets))
    _, gradients = losses_and_gradients(logits, deltas, centred, anchors)
    by_anchor = np.concatenate([g.numpy().reshape(2, -1, 4) for g in gradients[2:]], axis=1)
    np.testing.assert_array_equal((by_anchor != 0).all(axis=-1), targets.positives)


@pytest.mark.parametrize("iou_loss_type", ["", "iou", "giou", "diou", "ciou"])
def test_unmatched_anchors_cannot_poison_the_gradient(iou_loss_type):
    logits, deltas, targets, anchors = example()
    sizes = [height * width * 2 for height, width in LEVELS]
    poisoned = []
    for level, positives in zip(deltas, np.split(targets.positives, [sizes[0]], 1)):
        values = level.numpy().reshape(2, -1, 4)
        values[~positives] = np.inf
        poisoned.append(tf.constant(values.reshape(level.shape)))
    losses, gradients = losses_and_gradients(
        logits, poisoned, targets, anchors, iou_loss_type=iou_loss_type
    )
    assert np.isfinite(losses.det_loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_batch_without_positives():
    logits, deltas, targets, anchors = example()
    empty = Targets(
        class_targets=tf.fill(targets.class_targets.shape, NUM_CLASSES),
        box_targets=tf.zeros_like(targets.box_targets),
        positives=tf.zeros_like(targets.positives),
        num_positives=tf.zeros_like(targets.num_positives),
    )
    losses, gradients = losses_and_gradients(logits, deltas, empty, anchors, iou_loss_type="ciou")
    assert losses.box_loss == losses.box_iou_loss == losses.num_positives == 0.0
    assert losses.cls_loss > 0.0
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_outputs_are_compared_in_float32():
    logits, deltas, targets, anchors = example(dtype=np.float16)
    half, half_gradients = losses_and_gradients(
        logits, deltas, targets, anchors, iou_loss_type="ciou"
    )
    single, single_gradients = losses_and_gradients(
        *([tf.cast(x, tf.float32) for x in outputs] for outputs in (logits, deltas)),
        targets,
        anchors,
        iou_loss_type="ciou",
    )
    for value, expected in zip(half, single):
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, expected)
    for value, expected in zip(half_gradients, single_gradients):
        assert value.dtype == tf.float16
        np.testing.assert_array_equal(value, tf.cast(expected, tf.float16))


def test_compiled_equals_eager():
    inputs = example()
    eager, eager_gradients = losses_and_gradients(*inputs, iou_loss_type="ciou")
    compiled, compiled_gradients = tf.function(
        lambda *args: losses_and_gradients(*args, iou_loss_type="ciou"), jit_compile=True
    )(*inputs)
    for plain, xla in zip(eager, compiled):
        np.testing.assert_allclose(plain, xla, rtol=1e-6)
    for plain, xla in zip(eager_gradients, compiled_gradients):
        np.testing.assert_allclose(plain, xla, rtol=1e-5, atol=1e-8)


def test_compiled_program_keeps_no_copies_of_the_logits():
    inputs = example(batch_size=3)
    step = tf.function(losses_and_gradients, jit_compile=True)
    program = step.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")
    entry = program[program.index("\nENTRY") :]
    elements = int(np.prod(inputs[0][0].shape))
    written = [
        line
        for line in entry.splitlines()[1:]
        if (shape := re.match(r"\s+%\S+ = f32\[([\d,]+)\]", line))
        and math.prod(map(int, shape.group(1).split(","))) == elements
        and " parameter(" not in line
    ]
    # The gradient and, on a CPU, the loss of each element before it is summed.
    assert 1 <= len(written) <= 2, "\n".join(written)


def test_sum_over_many_equal_small_terms_is_accurate():
    # Addends far below the rounding step of the total get lost in a naive running sum.
    logits = [tf.fill([1, 64, 64, 9 * 30], -4.595)]
    deltas = [tf.zeros([1, 64, 64, 36])]
    count = 64 * 64 * 9
    targets = Targets(
        class_targets=tf.fill([1, count], 30),
        box_targets=tf.zeros([1, count, 4]),
        positives=tf.zeros([1, count], tf.bool),
        num_positives=tf.zeros([1]),
    )
    run = tf.function(
        lambda *args: detection_losses(*args, num_classes=30, settings=LossConfig()),
        jit_compile=True,
    )
    p = 1 / (1 + math.exp(4.595))
    expected = count * 30 * 0.75 * p**1.5 * -math.log1p(-p)
    cls_loss = run(logits, deltas, targets, tf.zeros([count, 4])).cls_loss
    np.testing.assert_allclose(cls_loss, expected, rtol=1e-5)
