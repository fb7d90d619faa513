"""Losses against NumPy in float64, and their gradients against finite differences."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from efficientdet.losses import detection_losses, sigmoid_focal_loss
from efficientdet.settings import LossConfig
from efficientdet.targets import Targets
from object_detection.boxes import box_ops

NUM_CLASSES = 4
LEVELS = [(3, 5), (2, 2), (1, 1)]
PER_POSITION = 3
STEP = 1e-6


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def numpy_focal(x, z, *, alpha, gamma, smoothing):
    """The textbook form: -alpha_t (1 - p_t)^gamma times the smoothed cross entropy."""
    p = sigmoid(x)
    p_t = np.where(z == 1, p, 1 - p)
    alpha_t = np.where(z == 1, alpha, 1 - alpha)
    smoothed = z * (1 - smoothing) + smoothing / 2
    cross_entropy = -smoothed * np.log(p) - (1 - smoothed) * np.log(1 - p)
    return alpha_t * (1 - p_t) ** gamma * cross_entropy


def numpy_huber(errors, delta):
    size = np.abs(errors)
    return np.where(size <= delta, 0.5 * errors**2, delta * size - 0.5 * delta**2)


def numpy_measure(a, b, kind):
    """IoU, GIoU, DIoU or CIoU of two boxes, each step as the papers write it."""
    inter_h = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    inter_w = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = inter_h * inter_w
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    iou = inter / union
    hull_h, hull_w = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - (hull_h * hull_w - union) / (hull_h * hull_w)
    rho = (a[0] + a[2] - b[0] - b[2]) ** 2 / 4 + (a[1] + a[3] - b[1] - b[3]) ** 2 / 4
    diou = iou - rho / (hull_h**2 + hull_w**2)
    if kind == "diou":
        return diou
    angle_a = np.arctan((a[3] - a[1]) / (a[2] - a[0]))
    angle_b = np.arctan((b[3] - b[1]) / (b[2] - b[0]))
    v = 4 / np.pi**2 * (angle_b - angle_a) ** 2
    return diou - v / (1 - iou + v) * v


def example(seed=0):
    rng = np.random.default_rng(seed)
    logits = [rng.normal(-1, 2, (2, h, w, PER_POSITION * NUM_CLASSES)) for h, w in LEVELS]
    deltas = [rng.normal(0, 0.3, (2, h, w, PER_POSITION * 4)) for h, w in LEVELS]
    num_anchors = sum(h * w * PER_POSITION for h, w in LEVELS)
    positives = rng.uniform(size=(2, num_anchors)) < 0.4
    class_targets = np.where(positives, rng.integers(0, NUM_CLASSES, positives.shape), NUM_CLASSES)
    class_targets[0, :3] = -1
    positives[0, :3] = False
    box_targets = rng.normal(0, 0.3, (2, num_anchors, 4)) * positives[..., np.newaxis]
    anchors = numpy_boxes.random(rng, num_anchors, high=50, side=(5, 40))
    return logits, deltas, positives, class_targets, box_targets, anchors


def flat(levels, depth):
    return np.concatenate([level.reshape(2, -1, depth) for level in levels], axis=1)


def as_targets(positives, class_targets, box_targets):
    return Targets(
        class_targets=tf.constant(class_targets, tf.int32),
        box_targets=tf.constant(box_targets),
        positives=tf.constant(positives),
        num_positives=tf.constant(positives.sum(axis=1), tf.float32),
    )


@pytest.mark.parametrize("kind", ["", "iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_terms_equal_numpy(kind, dtype):
    logits, deltas, positives, class_targets, box_targets, anchors = example()
    losses = detection_losses(
        [tf.constant(x, dtype) for x in logits],
        [tf.constant(x, dtype) for x in deltas],
        as_targets(positives, class_targets, box_targets),
        tf.constant(anchors, dtype),
        num_classes=NUM_CLASSES,
        settings=LossConfig(
            alpha=0.3,
            gamma=1.3,
            label_smoothing=0.1,
            delta=0.2,
            box_loss_weight=30.0,
            iou_loss_type=kind,
            iou_loss_weight=2.0,
        ),
    )
    normalizer = positives.sum() + 1.0
    one_hot = (class_targets[..., np.newaxis] == np.arange(NUM_CLASSES)).astype(np.float64)
    focal = numpy_focal(flat(logits, NUM_CLASSES), one_hot, alpha=0.3, gamma=1.3, smoothing=0.1)
    cls_loss = focal[class_targets >= 0].sum() / normalizer
    errors = flat(deltas, 4) - box_targets
    box_loss = numpy_huber(errors, 0.2)[positives].sum() / (4 * normalizer)
    iou_loss = 0.0
    if kind:
        for image in range(2):
            predicted = numpy_boxes.decode(flat(deltas, 4)[image], anchors)
            expected = numpy_boxes.decode(box_targets[image], anchors)
            for a in np.flatnonzero(positives[image]):
                iou_loss += 1 - numpy_measure(predicted[a], expected[a], kind)
        iou_loss /= 4 * normalizer

    tolerance = 2e-5 if dtype == np.float32 else 1e-6
    np.testing.assert_allclose(losses.cls_loss, cls_loss, rtol=tolerance)
    np.testing.assert_allclose(losses.box_loss, box_loss, rtol=tolerance)
    np.testing.assert_allclose(losses.box_iou_loss, iou_loss, rtol=tolerance)
    total = cls_loss + 30.0 * box_loss + 2.0 * iou_loss
    np.testing.assert_allclose(losses.det_loss, total, rtol=tolerance)
    assert losses.num_positives == positives.sum()
    assert all(value.shape == () for value in losses)
    assert {value.dtype for value in losses[:4]} == {tf.as_dtype(dtype)}


@pytest.mark.parametrize(("gamma", "smoothing"), [(1.5, 0.0), (1.5, 0.1), (2.0, 0.0), (0.0, 0.05)])
def test_focal_gradient_equals_finite_differences(gamma, smoothing):
    x = np.concatenate([np.linspace(-30, 30, 41), [-0.3, 0.0, 0.3]])
    settings = {"alpha": 0.25, "gamma": gamma, "label_smoothing": smoothing}
    for is_target in (True, False):
        right = np.full(x.shape, is_target)
        variable = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            loss = sigmoid_focal_loss(variable, right, **settings)
        above = sigmoid_focal_loss(x + STEP, right, **settings).numpy()
        below = sigmoid_focal_loss(x - STEP, right, **settings).numpy()
        assert loss.dtype == tf.float64
        np.testing.assert_allclose(
            tape.gradient(loss, variable), (above - below) / (2 * STEP), rtol=1e-5, atol=1e-8
        )


def test_focal_gradient_keeps_its_relative_precision_in_float32():
    # -alpha_t m (gamma p_right CE + p_wrong) from float64 against the float32 gradient.
    x = np.linspace(-60, 60, 49)
    for is_target in (True, False):
        u = x if is_target else -x
        p_right, p_wrong = sigmoid(u), sigmoid(-u)
        slope = -(p_wrong**1.5) * (1.5 * p_right * np.log1p(np.exp(-u)) + p_wrong)
        expected = 0.25 * slope if is_target else -0.75 * slope
        variable = tf.constant(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            loss = sigmoid_focal_loss(
                variable, np.full(x.shape, is_target), alpha=0.25, gamma=1.5, label_smoothing=0.0
            )
        gradient = tape.gradient(loss, variable)
        np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_measure_gradients_equal_finite_differences(kind):
    a = np.array([[2.0, 3.0, 30.0, 20.0], [0.0, 0.0, 5.0, 9.0], [10.0, 10.0, 14.0, 40.0]])
    b = np.array([[5.0, 1.0, 25.0, 26.0], [20.0, 30.0, 28.0, 33.0], [8.0, 12.0, 20.0, 30.0]])
    variable = tf.constant(a)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        values = getattr(box_ops, kind)(variable, b)
    np.testing.assert_allclose(
        values, [numpy_measure(*pair, kind) for pair in zip(a, b)], rtol=1e-10
    )
    gradient = tape.gradient(values, variable)
    for row in range(len(a)):
        for corner in range(4):
            above, below = a[row].copy(), a[row].copy()
            above[corner] += STEP
            below[corner] -= STEP
            if kind == "ciou":
                difference = _ciou_at_fixed_alpha(above, b[row], a[row]) - _ciou_at_fixed_alpha(
                    below, b[row], a[row]
                )
            else:
                difference = numpy_measure(above, b[row], kind) - numpy_measure(below, b[row], kind)
            np.testing.assert_allclose(
                gradient[row, corner], difference / (2 * STEP), rtol=1e-5, atol=1e-8
            )


def _ciou_at_fixed_alpha(box, other, place):
    """CIoU of a moved box with the trade-off factor of where it stood: the paper's gradient."""

    def terms(moved):
        diou, iou = numpy_measure(moved, other, "diou"), numpy_measure(moved, other, "iou")
        angles = [np.arctan((x[3] - x[1]) / (x[2] - x[0])) for x in (moved, other)]
        v = 4 / np.pi**2 * (angles[1] - angles[0]) ** 2
        return diou, v, v / (1 - iou + v)

    diou, v, _ = terms(box)
    return diou - terms(place)[2] * v
