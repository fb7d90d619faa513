import numpy as np
import pytest
import tensorflow as tf

from object_detection.boxes.top_k import exact_top_k


@pytest.mark.parametrize(
    ("length", "k"), [(1000, 5), (997, 3), (100, 30), (64, 4), (40, 40), (40, 0)]
)
def test_exact_top_k_equals_sorting(length, k):
    rng = np.random.default_rng(length)
    values = rng.normal(size=(3, length)).astype(np.float32)
    top, index = exact_top_k(tf.constant(values), k)
    np.testing.assert_array_equal(top, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, index.numpy(), axis=1), top)


def test_exact_top_k_with_many_ties_and_minus_infinity():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (3, 999)).astype(np.float32)
    values[1] = -np.inf
    values[1, 500:502] = 1.0
    top, index = exact_top_k(tf.constant(values), 7)
    np.testing.assert_array_equal(top, -np.sort(-values, axis=1)[:, :7])
    np.testing.assert_array_equal(np.take_along_axis(values, index.numpy(), axis=1), top)
    assert all(len(set(row)) == 7 for row in index.numpy())


def test_exact_top_k_stays_inside_with_ties_and_minus_infinity():
    values = np.full((2, 1001), -np.inf, np.float32)
    values[0, 1000], values[1, ::100] = 1.0, 2.0
    top, index = exact_top_k(tf.constant(values), 7)
    np.testing.assert_array_equal(top[0], [1, *[-np.inf] * 6])
    np.testing.assert_array_equal(top[1], [2] * 7)
    assert index.numpy().max() <= 1000
    assert (index.numpy()[1] % 100 == 0).all()
