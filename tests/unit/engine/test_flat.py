"""The flat buffer: round trips, norms, and what happens without any tensor."""

import numpy as np
import tensorflow as tf

from engine.optim.flat import CHUNK, FlatLayout

SHAPES = [(3, 4), (), (CHUNK,), (2, CHUNK + 1), (1,)]


def tensors() -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES]


def test_each_tensor_starts_a_chunk_and_padding_is_zero():
    layout = FlatLayout(SHAPES)
    buffer = layout.join(tensors()).numpy()
    assert buffer.shape == (1 + 1 + 1 + 3 + 1, CHUNK)
    np.testing.assert_array_equal(layout.segment_ids, [0, 1, 2, 3, 3, 3, 4])
    np.testing.assert_array_equal(buffer[0, :12], tensors()[0].numpy().reshape(-1))
    assert not buffer[0, 12:].any() and not buffer[5, 2:].any()


def test_split_undoes_join_bit_for_bit():
    layout = FlatLayout(SHAPES)
    pieces = layout.split(layout.join(tensors()))
    assert len(pieces) == len(SHAPES)
    for before, after in zip(tensors(), pieces):
        np.testing.assert_array_equal(before, after)
        assert before.shape == after.shape


def test_other_float_types_are_widened():
    halves = [tf.cast(t, tf.float16) for t in tensors()]
    joined = FlatLayout(SHAPES).join(halves)
    assert joined.dtype == tf.float32
    np.testing.assert_array_equal(joined[0, :12], tf.reshape(halves[0], [-1]))


def test_norms_and_spread():
    layout = FlatLayout(SHAPES)
    norms = layout.norms(layout.join(tensors())).numpy()
    expected = [np.linalg.norm(t.numpy()) for t in tensors()]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
    spread = layout.spread(tf.constant([10.0, 11.0, 12.0, 13.0, 14.0])).numpy()
    np.testing.assert_array_equal(spread[:, 0], [10, 11, 12, 13, 13, 13, 14])


def test_no_tensor_at_all():
    layout = FlatLayout([])
    assert layout.join([]).shape == (0, CHUNK)
    assert layout.split(tf.zeros([0, CHUNK])) == []
