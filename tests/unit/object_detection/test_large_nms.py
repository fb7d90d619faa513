"""Suppression of thousands of boxes: equal to the greedy loop, box for box."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.boxes.large_nms import suppress_sorted
from object_detection.boxes.nms import batched_nms


def random_boxes(rng, batch, count, *, clusters=8):
    """Boxes in heaps, so that many overlap; corners on a grid, so that some are equal."""
    centers = rng.uniform(0, 200, (batch, clusters, 2))
    chosen = rng.integers(0, clusters, (batch, count, 1))
    low = np.take_along_axis(centers, chosen, axis=1) + rng.normal(0, 10, (batch, count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 60, (batch, count, 2))], -1)
    return np.round(boxes).astype(np.float32)


def numpy_greedy(boxes, is_candidate, threshold, offset=0.0):
    """Brute force in score order, in float32 like the code under test."""
    kept = np.zeros(len(boxes), bool)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2] + offset, 0), axis=1)
    for i in np.flatnonzero(is_candidate):
        others = np.flatnonzero(kept)
        low = np.maximum(boxes[others, :2], boxes[i, :2])
        high = np.minimum(boxes[others, 2:], boxes[i, 2:])
        inter = np.prod(np.maximum(high - low + np.float32(offset), 0), axis=1)
        union = areas[others] + areas[i] - inter
        kept[i] = not (inter / np.maximum(union, np.float32(1e-12)) > np.float32(threshold)).any()
    return kept


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 70),
    st.floats(0.05, 0.95),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([1, 7, 16, 256]),
)
def test_equals_brute_force(seed, count, threshold, offset, tile_size):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 2, count, clusters=3)
    is_candidate = rng.uniform(size=(2, count)) < 0.9
    kept = suppress_sorted(
        tf.constant(boxes),
        tf.constant(is_candidate),
        iou_threshold=threshold,
        pixel_offset=offset,
        tile_size=tile_size,
    ).numpy()
    for image in range(2):
        expected = numpy_greedy(boxes[image], is_candidate[image], threshold, offset)
        np.testing.assert_array_equal(kept[image], expected)


def test_equals_the_greedy_loop_on_many_boxes():
    rng = np.random.default_rng(1)
    boxes = tf.constant(random_boxes(rng, 2, 700, clusters=40))
    # Scores with ties, unsorted, and candidates that are none.
    scores = tf.constant(rng.integers(1, 300, (2, 700)).astype(np.float32) / 300)
    is_candidate = tf.constant(rng.uniform(size=(2, 700)) < 0.95)

    @tf.function(jit_compile=True)
    def both(boxes, scores, is_candidate):
        _, order = tf.math.top_k(tf.where(is_candidate, scores, -1.0), 700)
        kept = suppress_sorted(
            tf.gather(boxes, order, batch_dims=1),
            tf.gather(is_candidate, order, batch_dims=1),
            iou_threshold=0.6,
            max_kept=150,
            tile_size=128,
        )
        greedy, _, _, num_valid = batched_nms(
            boxes,
            scores,
            tf.where(is_candidate, 0, -1),
            max_output_size=150,
            method="hard",
            iou_threshold=0.6,
            sigma=0.5,
            score_threshold=0.0,
        )
        return order, kept, greedy, num_valid

    order, kept, greedy, num_valid = both(boxes, scores, is_candidate)
    assert num_valid.numpy().min() == 150
    for image in range(2):
        found = order[image].numpy()[kept[image].numpy()][:150]
        np.testing.assert_array_equal(boxes.numpy()[image, found], greedy[image])


def test_a_chain_of_suppression_longer_than_any_round():
    """Box i touches only its neighbours: every second one stays, whatever the tiles."""
    count = 300
    low = np.arange(count, dtype=np.float32) * 4
    zeros, ones = np.zeros_like(low), np.full_like(low, 10)
    boxes = np.stack([low, zeros, low + 7, ones], axis=-1)[np.newaxis]
    for tile_size in (64, 512):
        kept = suppress_sorted(
            tf.constant(boxes), tf.ones([1, count], bool), iou_threshold=0.2, tile_size=tile_size
        )
        np.testing.assert_array_equal(kept[0], np.arange(count) % 2 == 0)


def test_leaves_out_later_tiles_once_every_image_has_enough():
    low = np.arange(64, dtype=np.float32) * 20
    apart = np.stack([low, low, low + 10, low + 10], axis=-1)
    boxes = tf.constant(np.stack([apart, apart]))
    is_candidate = tf.constant(np.stack([np.ones(64, bool), np.arange(64) >= 20]))
    kept = suppress_sorted(boxes, is_candidate, iou_threshold=0.5, max_kept=10, tile_size=8).numpy()
    # The second image has its tenth box in the fourth tile; both stop after it.
    np.testing.assert_array_equal(kept[0], np.arange(64) < 32)
    np.testing.assert_array_equal(kept[1], (np.arange(64) >= 20) & (np.arange(64) < 32))


def test_the_overlap_that_suppresses_is_above_the_threshold():
    boxes = tf.constant([[[0.0, 0, 10, 10], [0, 0, 5, 10]]])
    candidates = tf.ones([1, 2], bool)
    np.testing.assert_array_equal(
        suppress_sorted(boxes, candidates, iou_threshold=0.5), [[True, True]]
    )
    np.testing.assert_array_equal(
        suppress_sorted(boxes, candidates, iou_threshold=0.49), [[True, False]]
    )
