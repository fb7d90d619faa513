"""Masks on the device: unpacking, resampling into boxes, mirrored and clipped instances."""

import numpy as np
import tensorflow as tf
from samples import unpack_mask

from object_detection.masks.mask_ops import crop_masks, is_mask_known, mask_targets, unpack_masks
from object_detection.masks.rle import crop_to_box

HEIGHT, WIDTH = 80, 120


def ellipse(center, radii):
    """A filled ellipse in an image of HEIGHT x WIDTH, as RLE, and its box."""
    from pycocotools import mask as mask_api

    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64)
    return mask_api.encode(np.asfortranarray(inside.astype(np.uint8))), box


def packed_crop(rle, box):
    return np.frombuffer(crop_to_box(rle, box, height=HEIGHT, width=WIDTH), np.uint8)


def test_unpacking_equals_numpy():
    packed = np.random.default_rng(0).integers(0, 256, (2, 3, 1568), dtype=np.uint8)
    masks = unpack_masks(tf.constant(packed))
    assert masks.shape == (2, 3, 112, 112) and masks.dtype == tf.float32
    np.testing.assert_array_equal(masks[1, 2], unpack_mask(packed[1, 2].tobytes()))


def test_empty_crop_means_unknown():
    packed = np.zeros((2, 1568), np.uint8)
    packed[1, 77] = 4
    np.testing.assert_array_equal(is_mask_known(tf.constant(packed)), [False, True])


def test_the_whole_frame_at_its_own_size_is_the_mask():
    masks = np.random.default_rng(1).uniform(size=(1, 8, 8)).astype(np.float32)
    frames = np.array([[10, 20, 26, 60]], np.float32)
    np.testing.assert_allclose(crop_masks(masks, frames, frames, output_size=8), masks, atol=1e-5)


def test_quarter_and_outside_of_a_frame():
    masks = np.zeros((1, 4, 4), np.float32)
    masks[0, :2, 2:] = 1.0  # top right quarter
    frames = np.array([[0, 0, 40, 40]], np.float32)
    for box, expected in (
        ([0, 20, 20, 40], 1.0),  # that quarter
        ([20, 0, 40, 20], 0.0),
        ([0, 60, 20, 80], 0.0),  # beside the frame
    ):
        boxes = np.array([box], np.float32)
        targets = crop_masks(masks, frames, boxes, output_size=2) >= 0.5
        np.testing.assert_array_equal(targets[0], np.full((2, 2), bool(expected)))


def test_a_target_is_set_where_at_least_half_of_it_is():
    mask = np.zeros((112, 112), np.uint8)
    mask[:, :56] = 1
    frame = tf.constant([0.0, 0, 112, 112])
    # Between the middles of the last cell that is set, at 55.5, and the first that is not, at 56.5.
    for middle, expected in ((55.9, 1.0), (56.1, 0.0)):
        box = tf.constant([50, middle - 1, 60, middle + 1])
        target = mask_targets(np.packbits(mask), frame, box, output_size=1)
        np.testing.assert_array_equal(target, [[expected]])


def test_mirrored_image_has_mirrored_targets():
    rle, frame = ellipse((40, 50), (20, 30))
    packed = np.stack([packed_crop(rle, frame)] * 2)
    # Make the mask asymmetric: only the left part.
    bits = np.unpackbits(packed, axis=1).reshape(2, 112, 112)
    bits[:, :, 70:] = 0
    packed = np.packbits(bits.reshape(2, -1), axis=1)
    box = np.array([25, 15, 70, 60], np.float32)

    def mirror(boxes):
        return np.array([boxes[0], WIDTH - boxes[3], boxes[2], WIDTH - boxes[1]], np.float32)

    targets = mask_targets(
        tf.constant(packed),
        tf.constant(np.stack([frame, mirror(frame)]), tf.float32),
        tf.constant(np.stack([box, mirror(box)])),
        output_size=28,
        is_mirrored=tf.constant([False, True]),
    ).numpy()
    assert targets[0].sum() not in (0, 28 * 28)
    np.testing.assert_array_equal(targets[1], targets[0][:, ::-1])


def test_a_clipped_instance_keeps_the_frame_of_its_whole_box():
    """An instance of which the image shows the right half: the target is that half of the mask."""
    rle, frame = ellipse((40, 60), (20, 40))
    packed = tf.constant(packed_crop(rle, frame))
    moved = frame - np.array([0, 60, 0, 60])  # the middle is now at x = 0
    clipped = np.maximum(moved, 0)
    target = mask_targets(
        packed, tf.constant(moved, tf.float32), tf.constant(clipped, tf.float32), output_size=28
    ).numpy()
    assert target[14, 0] == 1 and target[0, 27] == 0 and target[27, 27] == 0
    assert target[:, 0].sum() == 28 and target[:, 27].sum() < 12


def test_compiled_equals_eager_and_degenerate_boxes_are_finite():
    rng = np.random.default_rng(3)
    packed = tf.constant(rng.integers(0, 256, (2, 4, 1568), dtype=np.uint8))
    frames = tf.constant(rng.uniform(0, 50, (2, 4, 2)).astype(np.float32))
    frames = tf.concat([frames, frames + 30.0], -1)
    boxes = tf.constant(np.array([[[0, 0, 0, 0], [9, 9, 3, 3], [5, 5, 50, 70], [1, 2, 3, 4]]] * 2))
    frames = tf.where(tf.constant([[[True]], [[False]]]), frames, 0.0)  # one image without frames

    def run(packed, frames, boxes):
        return crop_masks(unpack_masks(packed), frames, boxes, output_size=14)

    boxes = tf.cast(boxes, tf.float32)
    eager, compiled = (
        run(packed, frames, boxes),
        tf.function(run, jit_compile=True)(packed, frames, boxes),
    )
    assert np.isfinite(eager).all()
    np.testing.assert_allclose(eager, compiled, atol=1e-4)
