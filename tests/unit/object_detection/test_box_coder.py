"""Box coding: hand-computed cases, round trip, clamp and precision."""

import math

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.boxes.box_coder import MAX_LOG_RATIO, decode_boxes, encode_boxes

WEIGHTS = (10.0, 8.0, 5.0, 4.0)  # as of a head, and all different


@pytest.mark.parametrize(
    ("anchor", "box", "pixel_offset"),
    [
        # Anchor centre (15, 20), 10 high, 20 wide; box centre (20, 10), 20 high, 10 wide.
        ([[10.0, 10.0, 20.0, 30.0]], [[10.0, 5.0, 30.0, 15.0]], 0.0),
        # The same, far corners being pixels of the box.
        ([[10.0, 10.0, 19.0, 29.0]], [[10.0, 5.0, 29.0, 14.0]], 1.0),
    ],
)
def test_hand_case(anchor, box, pixel_offset):
    expected = np.array([[0.5, -0.5, math.log(2), -math.log(2)]])
    deltas = encode_boxes(box, anchor, pixel_offset=pixel_offset)
    np.testing.assert_allclose(deltas, expected, rtol=1e-6)
    weighted = encode_boxes(box, anchor, weights=WEIGHTS, pixel_offset=pixel_offset)
    np.testing.assert_allclose(weighted, expected * WEIGHTS, rtol=1e-6)
    decoded = decode_boxes(expected.astype(np.float32), anchor, pixel_offset=pixel_offset)
    np.testing.assert_allclose(decoded, box, rtol=1e-6)


def test_zero_deltas_are_the_anchor():
    anchors = np.array([[-12, -12, 20, 20], [0, 0, 1, 1000]], np.float32)
    np.testing.assert_array_equal(decode_boxes(np.zeros((2, 4), np.float32), anchors), anchors)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.floats(-100, 1500, width=32)] * 4),
    st.tuples(*[st.floats(8, 480, width=32)] * 4),
    st.sampled_from([(1.0, 1.0, 1.0, 1.0), WEIGHTS]),
)
def test_decoding_undoes_encoding(places, sizes, weights):
    box = np.array([[places[0], places[1], places[0] + sizes[0], places[1] + sizes[1]]], np.float32)
    anchor = np.array(
        [[places[2], places[3], places[2] + sizes[2], places[3] + sizes[3]]], np.float32
    )
    deltas = encode_boxes(box, anchor, weights=weights)
    decoded = decode_boxes(deltas, anchor, weights=weights)
    np.testing.assert_allclose(decoded, box, rtol=1e-4, atol=5e-3)


def test_sizes_are_clamped_before_exp():
    anchor = tf.constant([[0.0, 0.0, 16.0, 16.0]])
    deltas = tf.constant([[0.0, 0.0, 500.0, math.log(2.0)]])
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        decoded = decode_boxes(deltas, anchor)
        far_corner = decoded[:, 2:]
    np.testing.assert_allclose(decoded, [[8 - 500, 8 - 16, 8 + 500, 8 + 16]], rtol=1e-5)
    gradient = tape.gradient(far_corner, deltas)
    np.testing.assert_allclose(gradient, [[16.0, 16.0, 0.0, 16.0]], rtol=1e-5)
    # The clamp acts on the divided delta: 5 * log ratio is still inside with a weight of 5.
    inside = decode_boxes([[0.0, 0.0, 5 * math.log(3.0), 0.0]], anchor, weights=WEIGHTS)
    np.testing.assert_allclose(inside[0, 2] - inside[0, 0], 48.0, rtol=1e-5)
    assert math.isclose(math.exp(MAX_LOG_RATIO), 62.5)


def test_degenerate_boxes_encode_to_finite_values():
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    assert np.isfinite(encode_boxes([[5.0, 5.0, 5.0, 5.0]], anchors)).all()
    assert np.isfinite(encode_boxes([[9.0, 9.0, 2.0, 2.0]], anchors)).all()


def test_half_precision_input_is_computed_in_float32():
    rng = np.random.default_rng(0)
    deltas = tf.constant(rng.normal(0, 0.3, (100, 4)), tf.float16)
    anchors = numpy_boxes.random(rng, 100, high=480, side=(32, 32))
    decoded = decode_boxes(deltas, anchors)
    assert decoded.dtype == tf.float32
    np.testing.assert_array_equal(decoded, decode_boxes(tf.cast(deltas, tf.float32), anchors))
    assert encode_boxes(tf.cast(anchors, tf.float16), anchors).dtype == tf.float32


def test_compiled_equals_eager():
    rng = np.random.default_rng(0)
    boxes = numpy_boxes.random(rng, 2, 50, high=480, side=(5, 100))
    anchors = boxes[0, ::-1].copy()
    compiled_encode = tf.function(encode_boxes, jit_compile=True)
    compiled_decode = tf.function(decode_boxes, jit_compile=True)
    deltas = encode_boxes(boxes, anchors)
    np.testing.assert_allclose(compiled_encode(boxes, anchors), deltas, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        compiled_decode(deltas, anchors), decode_boxes(deltas, anchors), rtol=1e-5, atol=1e-4
    )
