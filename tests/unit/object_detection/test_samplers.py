"""Balanced sampling: exact counts, uniform choice, seeds, compilation; and the top-k it uses."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.boxes.samplers import max_positives, sample_balanced

SEED = (3, 4)


def sample(is_positive, is_negative, *, num_samples=8, fraction=0.25, seed=SEED):
    samples = sample_balanced(
        tf.constant(is_positive),
        tf.constant(is_negative),
        num_samples=num_samples,
        positive_fraction=fraction,
        seed=tf.constant(seed),
    )
    return [field.numpy() for field in samples]


def labels_with(num_positives, num_negatives, num_candidates):
    places = np.random.default_rng(0).permutation(num_candidates)
    is_positive, is_negative = np.zeros((2, num_candidates), bool)
    is_positive[places[:num_positives]] = True
    is_negative[places[num_positives : num_positives + num_negatives]] = True
    return is_positive[np.newaxis], is_negative[np.newaxis]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (10, 30, (2, 6)),  # enough of both
        (1, 30, (1, 7)),  # negatives fill up
        (0, 30, (0, 8)),
        (10, 3, (2, 3)),  # positives do not
        (10, 0, (2, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts_are_exact(positives, negatives, expected):
    is_positive, is_negative = labels_with(positives, negatives, 50)
    indices, chosen, valid = sample(is_positive, is_negative)
    assert indices.dtype == np.int32
    assert (chosen.sum(), (valid & ~chosen).sum()) == expected
    # Positives, negatives, padding, in this order, none twice, each of its own kind.
    np.testing.assert_array_equal(chosen[0], np.arange(8) < expected[0])
    np.testing.assert_array_equal(valid[0], np.arange(8) < sum(expected))
    np.testing.assert_array_equal(indices[~valid], 0)
    assert is_positive[0, indices[chosen]].all()
    assert is_negative[0, indices[valid & ~chosen]].all()
    assert len(set(indices[valid])) == valid.sum()


def test_fewer_candidates_than_samples():
    indices, chosen, valid = sample([[True, False, False]], [[False, True, True]], num_samples=8)
    assert chosen.sum() == 1 and valid.sum() == 3
    assert set(indices[valid]) == {0, 1, 2}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_counts_for_any_data(positives, negatives, seed, fraction):
    is_positive, is_negative = labels_with(positives, negatives, 120)
    _, chosen, valid = sample(
        is_positive, is_negative, num_samples=16, fraction=fraction, seed=(seed, 0)
    )
    expected = min(positives, int(16 * fraction))
    assert chosen.sum() == expected
    assert valid.sum() == expected + min(negatives, 16 - expected)


def test_every_candidate_is_as_likely_as_any_other():
    """12 positives and 20 negatives in 4000 draws: each within 4.5 standard deviations."""
    is_positive, is_negative = labels_with(12, 20, 40)
    draws = 4000
    samples = sample_balanced(
        tf.tile(is_positive, [draws, 1]),
        tf.tile(is_negative, [draws, 1]),
        num_samples=8,
        positive_fraction=0.5,
        seed=tf.constant(SEED),
    )
    counts = np.bincount(samples.indices.numpy().ravel(), minlength=40)
    for is_kind, share in ((is_positive[0], 4 / 12), (is_negative[0], 4 / 20)):
        deviation = np.sqrt(draws * share * (1 - share))
        assert np.abs(counts[is_kind] - draws * share).max() < 4.5 * deviation
    assert counts[~(is_positive | is_negative)[0]].sum() == 0


def test_a_draw_of_0_is_a_draw(monkeypatch):
    monkeypatch.setattr(tf.random, "stateless_uniform", lambda shape, seed: tf.zeros(shape))
    _, chosen, valid = sample(*labels_with(10, 30, 50))
    assert (chosen.sum(), valid.sum()) == (2, 8)


def test_seeds_decide():
    is_positive, is_negative = labels_with(100, 300, 500)
    first = sample(is_positive, is_negative, num_samples=64)
    again = sample(is_positive, is_negative, num_samples=64)
    other = sample(is_positive, is_negative, num_samples=64, seed=(3, 5))
    np.testing.assert_array_equal(first[0], again[0])
    assert len(set(first[0][0]) & set(other[0][0])) < 40


def test_images_draw_on_their_own():
    is_positive, is_negative = labels_with(100, 300, 500)
    indices = sample(np.tile(is_positive, (2, 1)), np.tile(is_negative, (2, 1)))[0]
    assert set(indices[0]) != set(indices[1])


def test_compiled_equals_eager():
    is_positive, is_negative = (np.tile(mask, (2, 1)) for mask in labels_with(30, 3000, 4000))

    def run(is_positive, is_negative, seed):
        return sample_balanced(
            is_positive, is_negative, num_samples=32, positive_fraction=0.5, seed=seed
        )

    eager = run(is_positive, is_negative, tf.constant(SEED))
    compiled = tf.function(run, jit_compile=True)(is_positive, is_negative, tf.constant(SEED))
    # Compiled random numbers may be others; the counts and kinds are not.
    np.testing.assert_array_equal(eager.is_positive, compiled.is_positive)
    np.testing.assert_array_equal(eager.is_valid, compiled.is_valid)
    for image, places in enumerate(compiled.indices.numpy()):
        assert is_positive[image, places[:16]].all() and is_negative[image, places[16:]].all()


def test_share_outside_0_to_1_is_refused():
    assert [max_positives(8, share) for share in (0.0, 0.49, 0.5, 1.0)] == [0, 3, 4, 8]
    for share in (1.5, -0.25):
        with pytest.raises(ValueError, match=str(share)):
            max_positives(8, share)
