"""Losses against NumPy, their normalisers, images that do not count, and the joining of batches."""

import numpy as np
import pytest
import tensorflow as tf

from maskrcnn.regions.losses import (
    ImageSums,
    box_head_losses,
    mask_loss,
    normalise,
    rpn_losses,
    select_class,
)
from maskrcnn.regions.targets import MaskTargets, RoiTargets, RpnTargets
from maskrcnn.settings import LossConfig

NUM_CLASSES = 3
BATCH, SAMPLES, MASKS, MASK_SIZE = 4, 10, 5, 6
SIZES = [(4, 6), (2, 3)]
NUM_ANCHORS = 3 * sum(height * width for height, width in SIZES)
OUTPUTS = ("rpn_logits", "rpn_deltas", "class_logits", "box_deltas", "mask_logits")


def numpy_bce(logits, labels):
    logits = logits.astype(np.float64)
    return np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))


def numpy_smooth_l1(errors, beta):
    absolute = np.abs(errors.astype(np.float64))
    return np.where(absolute < beta, absolute**2 / (2 * beta), absolute - beta / 2)


class Example:
    """Random outputs and targets of a batch whose images have different counts."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        self.rpn_logits = [normal(BATCH, *size, 3) for size in SIZES]
        self.rpn_deltas = [0.3 * normal(BATCH, *size, 12) for size in SIZES]
        indices = np.stack([rng.permutation(NUM_ANCHORS)[:SAMPLES] for _ in range(BATCH)])
        # 3, 0, 5 and 1 objects; 10, 10, 8 and 4 sampled.
        slots = np.arange(SAMPLES)
        positives, sampled = np.array([[3], [0], [5], [1]]), np.array([[10], [10], [8], [4]])
        labels = np.where(slots < positives, 1, np.where(slots < sampled, 0, -1)).astype(np.int32)
        targets = np.where(labels[..., None] == 1, 0.3 * normal(BATCH, SAMPLES, 4), 0)
        self.rpn_targets = RpnTargets(
            indices.astype(np.int32),
            labels,
            targets.astype(np.float32),
            rng.integers(0, 2, (BATCH, NUM_ANCHORS)).astype(bool),
            normal(BATCH, NUM_ANCHORS, 4),
        )
        self.class_logits = normal(BATCH, SAMPLES, NUM_CLASSES + 1)
        self.box_deltas = normal(BATCH, SAMPLES, NUM_CLASSES, 4)
        classes = np.where(labels == 1, rng.integers(0, NUM_CLASSES, labels.shape), NUM_CLASSES)
        self.roi_targets = RoiTargets(
            np.zeros((BATCH, SAMPLES, 4), np.float32),
            np.where(labels < 0, -1, classes).astype(np.int32),
            np.where(labels[..., None] == 1, normal(BATCH, SAMPLES, 4), 0).astype(np.float32),
            labels == 1,
            np.zeros((BATCH, SAMPLES), np.int32),
        )
        self.mask_logits = normal(BATCH, MASKS, MASK_SIZE, MASK_SIZE, NUM_CLASSES)
        self.mask_targets = MaskTargets(
            np.zeros((BATCH, MASKS, 4), np.float32),
            np.where(labels == 1, classes, -1)[:, :MASKS].astype(np.int32),
            rng.integers(0, 2, (BATCH, MASKS, MASK_SIZE, MASK_SIZE)).astype(np.float32),
        )

    def images(self, rows):
        """The same example with some of its images only."""
        part = Example.__new__(Example)
        for name, value in vars(self).items():
            part.__dict__[name] = tf.nest.map_structure(lambda array: array[rows], value)
        return part

    @property
    def num_images(self):
        return len(self.rpn_targets.labels)

    def counted(self, given):
        return tf.ones(self.num_images, bool) if given is None else given

    def rpn(self, is_counted=None, **changes):
        outputs, settings = (self.rpn_logits, self.rpn_deltas), LossConfig(**changes)
        counted = self.counted(is_counted)
        return rpn_losses(*outputs, self.rpn_targets, is_counted=counted, settings=settings)

    def box_head(self, is_counted=None, **changes):
        outputs, settings = (self.class_logits, self.box_deltas), LossConfig(**changes)
        counted = self.counted(is_counted)
        return box_head_losses(*outputs, self.roi_targets, is_counted=counted, settings=settings)

    def masks(self, is_counted=None, normalizer="image"):
        counted = self.counted(is_counted)
        return mask_loss(
            self.mask_logits, self.mask_targets, is_counted=counted, normalizer=normalizer
        )

    def all(self, is_counted=None):
        return [*self.rpn(is_counted), *self.box_head(is_counted), self.masks(is_counted)]


def flat_outputs(example, values_per_anchor):
    outputs = example.rpn_logits if values_per_anchor == 1 else example.rpn_deltas
    return np.concatenate(
        [level.reshape(BATCH, -1, values_per_anchor) for level in outputs], axis=1
    )


def numpy_rpn_sums(example):
    """Sums over all images: (score, box, sampled, objects)."""
    targets = example.rpn_targets
    rows = np.arange(BATCH)[:, None]
    logits = flat_outputs(example, 1)[rows, targets.indices, 0]
    deltas = flat_outputs(example, 4)[rows, targets.indices]
    score = numpy_bce(logits, targets.labels == 1)[targets.labels >= 0].sum()
    box = numpy_smooth_l1(deltas - targets.box_targets, 1 / 9)[targets.labels == 1].sum()
    return score, box, (targets.labels >= 0).sum(), (targets.labels == 1).sum()


def test_rpn_losses_equal_numpy_with_each_normalizer():
    example = Example()
    score, box, sampled, _ = numpy_rpn_sums(example)
    fixed = BATCH * SAMPLES
    np.testing.assert_allclose(example.rpn(), [score / fixed, box / fixed], rtol=1e-5)
    by_count = example.rpn(rpn_score_normalizer="batch", rpn_box_normalizer="batch")
    np.testing.assert_allclose(by_count, [score / sampled, box / sampled], rtol=1e-5)
    mixed = example.rpn(rpn_score_normalizer="fixed", rpn_box_normalizer="batch")
    np.testing.assert_allclose(mixed, [score / fixed, box / sampled], rtol=1e-5)


def test_rpn_box_loss_by_levels_equals_numpy():
    example = Example(1)
    is_matched, targets = example.rpn_targets[-2:]
    # Exact coordinates, which the reference leaves out.
    is_matched[0, 0], targets[0, 0, ::2] = True, 0.0
    expected, start = 0.0, 0
    for level in example.rpn_deltas:
        deltas = level.reshape(BATCH, -1, 4)
        part = slice(start, start + deltas.shape[1])
        counts = is_matched[:, part, None] & (targets[:, part] != 0)
        errors = numpy_smooth_l1(deltas - targets[:, part], 1 / 9) / 9  # Huber of delta 1/9
        expected += errors[counts].sum() / counts.sum()
        start += deltas.shape[1]
    loss = example.rpn(rpn_box_normalizer="levels")[1]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_a_sum_over_one_example_is_divided_by_one():
    sums = ImageSums(tf.constant([3.0, 0.0]), tf.constant([1.0, 0.0]))
    assert normalise(sums, tf.ones([2]), how="batch") == 3.0
    example = Example(1)
    is_matched, targets = example.rpn_targets[-2:]
    is_matched[:] = False
    is_matched[0, 0], targets[0, 0] = True, (0.5, 0, 0, 0)
    expected = numpy_smooth_l1(example.rpn_deltas[0][0, 0, 0, 0] - 0.5, 1 / 9) / 9
    np.testing.assert_allclose(example.rpn(rpn_box_normalizer="levels")[1], expected, rtol=1e-5)


def test_box_head_losses_equal_numpy_with_each_normalizer():
    example = Example()
    targets, logits = example.roi_targets, example.class_logits.astype(np.float64)
    log_sums = np.log(np.exp(logits).sum(-1))
    rows, columns = np.nonzero(targets.class_targets >= 0)
    own = targets.class_targets[rows, columns]
    class_sum = (log_sums[rows, columns] - logits[rows, columns, own]).sum()
    rows, columns = np.nonzero(targets.is_positive)
    deltas = example.box_deltas[rows, columns, targets.class_targets[rows, columns]]
    box_sum = numpy_smooth_l1(deltas - targets.box_targets[rows, columns], 1.0).sum()
    fixed, sampled, objects = BATCH * SAMPLES, 32, 9
    np.testing.assert_allclose(example.box_head(), [class_sum / fixed, box_sum / fixed], rtol=1e-5)
    by_count = example.box_head(class_normalizer="batch", box_normalizer="batch")
    np.testing.assert_allclose(by_count, [class_sum / sampled, box_sum / sampled], rtol=1e-5)
    mixed = example.box_head(class_normalizer="fixed", box_normalizer="batch")
    np.testing.assert_allclose(mixed, [class_sum / fixed, box_sum / sampled], rtol=1e-5)
    of_objects = example.box_head(box_normalizer="positives")[1]
    np.testing.assert_allclose(of_objects, box_sum / (4 * objects), rtol=1e-5)


def test_mask_loss_equals_numpy_with_each_normalizer():
    example = Example()
    classes = example.mask_targets.classes
    per_image = np.zeros(BATCH)
    for image, slot in zip(*np.nonzero(classes >= 0)):
        logits = example.mask_logits[image, slot, :, :, classes[image, slot]]
        per_image[image] += numpy_bce(logits, example.mask_targets.masks[image, slot]).mean()
    counts = (classes >= 0).sum(axis=1)
    np.testing.assert_array_equal(counts, [3, 0, 5, 1])
    expected = (per_image / np.maximum(counts, 1)).mean()
    np.testing.assert_allclose(example.masks(), expected, rtol=1e-5)
    expected = per_image.sum() / counts.sum()
    np.testing.assert_allclose(example.masks(normalizer="batch"), expected, rtol=1e-5)


def test_flat_outputs_of_the_heads_are_taken_too():
    example = Example()
    separate = [*example.box_head(), example.masks()]
    example.class_logits = example.class_logits.reshape(-1, NUM_CLASSES + 1)
    example.box_deltas = example.box_deltas.reshape(-1, NUM_CLASSES, 4)
    example.mask_logits = example.mask_logits.reshape(-1, MASK_SIZE, MASK_SIZE, NUM_CLASSES)
    np.testing.assert_allclose([*example.box_head(), example.masks()], separate)


def test_batches_joined_by_number_of_images_equal_one_large_batch():
    """The promise to the engine, for losses and hence gradients: exact although counts differ."""
    example = Example(2)
    for split in (1, 3):
        parts = [example.images(slice(0, split)), example.images(slice(split, BATCH))]
        joined = sum(part.num_images * np.array(part.all()) for part in parts) / BATCH
        np.testing.assert_allclose(joined, example.all(), rtol=1e-5)


def test_images_that_do_not_count_change_nothing():
    example = Example(3)
    counted = np.array([True, False, True, False])
    expected = example.images([0, 2])
    for array in tf.nest.flatten([getattr(example, name) for name in OUTPUTS]):
        array[~counted] = 1e4
    np.testing.assert_allclose(
        example.all(is_counted=tf.constant(counted)), expected.all(), rtol=1e-5
    )
    options = (
        {"rpn_score_normalizer": "batch", "rpn_box_normalizer": "batch"},
        {"rpn_box_normalizer": "levels"},
    )
    for changes in options:
        np.testing.assert_allclose(
            example.rpn(is_counted=tf.constant(counted), **changes),
            expected.rpn(**changes),
            rtol=1e-5,
        )
    np.testing.assert_array_equal(example.all(is_counted=tf.zeros([BATCH], bool)), np.zeros(5))


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_reach_only_what_was_sampled_and_are_finite(jit):
    example = Example(4)
    outputs = tf.nest.flatten([getattr(example, name) for name in OUTPUTS])

    @tf.function(jit_compile=jit or None)
    def gradients(outputs):
        part = Example.__new__(Example)
        part.__dict__.update(vars(example))
        part.rpn_logits, part.rpn_deltas = outputs[:2], outputs[2:4]
        part.class_logits, part.box_deltas, part.mask_logits = outputs[4:]
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total = tf.add_n(part.all())
        return tape.gradient(total, outputs)

    found = [gradient.numpy() for gradient in gradients([tf.constant(x) for x in outputs])]
    assert all(np.isfinite(gradient).all() for gradient in found)
    by_anchor = np.concatenate([g.reshape(BATCH, -1) for g in found[:2]], axis=1)
    used = np.zeros((BATCH, NUM_ANCHORS), bool)
    labels, indices = example.rpn_targets.labels, example.rpn_targets.indices
    for image in range(BATCH):
        used[image, indices[image][labels[image] >= 0]] = True
    np.testing.assert_array_equal(by_anchor != 0, used)
    # Softmax minus target over the number of samples asked for.
    targets = example.roi_targets.class_targets
    softmax = tf.nn.softmax(example.class_logits).numpy()
    expected = (softmax - np.eye(NUM_CLASSES + 1)[targets]) / (BATCH * SAMPLES)
    np.testing.assert_allclose(found[4], np.where(targets[..., None] >= 0, expected, 0), atol=1e-6)
    is_own = np.arange(NUM_CLASSES) == targets[..., None]
    assert not found[5][~(is_own & example.roi_targets.is_positive[..., None])].any()
    is_own = np.arange(NUM_CLASSES) == example.mask_targets.classes[..., None]
    np.testing.assert_array_equal((found[6] != 0).any(axis=(2, 3)), is_own)


def test_half_precision_outputs_are_compared_in_float32():
    example = Example()

    def losses_of(dtype):
        for name in OUTPUTS:
            outputs = tf.nest.map_structure(lambda x: x.astype(dtype), getattr(example, name))
            setattr(example, name, outputs)
        return [*example.all(), example.rpn(rpn_box_normalizer="levels")[1]]

    halves, singles = losses_of(np.float16), losses_of(np.float32)  # of the same numbers
    assert all(loss.dtype == tf.float32 for loss in halves)
    np.testing.assert_allclose(halves, singles, rtol=1e-6)


def test_selecting_a_class_ignores_what_is_not_a_number_elsewhere():
    logits = np.full((1, 2, 1, 1, 3), np.nan, np.float16)
    logits[0, 0, 0, 0, 2] = 7.0
    selected = select_class(tf.constant(logits), tf.constant([[2, -1]]))
    assert selected.dtype == tf.float32
    np.testing.assert_array_equal(selected[0, :, 0, 0], [7, 0])


@pytest.mark.parametrize("part", ["rpn_score", "rpn_box", "class", "box", "mask"])
def test_unknown_normalizers_are_refused(part):
    with pytest.raises(ValueError, match=r"'anchors'.*batch"):
        LossConfig(**{f"{part}_normalizer": "anchors"})
