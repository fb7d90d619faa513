"""Random, balanced choice of training examples in fixed shapes (Fast R-CNN, section 2.3).

Each candidate draws a number; the largest of the positives and then of the negatives are taken.
That is a uniform choice without repetition, whose shape does not depend on how many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from object_detection.boxes.top_k import exact_top_k

_NOT_ASKED = -1.0


class Samples(NamedTuple):
    """Sampled candidates: positives first, then negatives, then padding.

    Attributes:
      indices: [B, S] int32 into the candidates; 0 in padding.
      is_positive: [B, S] bool.
      is_valid: [B, S] bool, False for padding.
    """

    indices: tf.Tensor
    is_positive: tf.Tensor
    is_valid: tf.Tensor


def sample_balanced(
    is_positive: tf.Tensor,
    is_negative: tf.Tensor,
    *,
    num_samples: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> Samples:
    """Samples positives up to their share, and negatives for the rest.

    Exactly `p = min(positives, floor(num_samples * positive_fraction))` positives and
    `min(negatives, num_samples - p)` negatives are taken; positives never stand in for missing
    negatives. The positives lie within the first `max_positives(...)` samples.

    Args:
      is_positive: [B, N] bool.
      is_negative: [B, N] bool, nowhere true where `is_positive` is; candidates that are neither
        are never sampled.
      num_samples: S.
      positive_fraction: largest share of positives, 0..1.
      seed: int32 [2]; equal seeds sample equally, but under XLA otherwise than without it.

    Returns:
      `Samples`, without gradient.
    """
    num_positives = max_positives(num_samples, positive_fraction)
    draws = tf.random.stateless_uniform(tf.shape(is_positive), seed)
    draws = tf.ensure_shape(draws, is_positive.shape)
    positives, are_positive = _draw(is_positive, draws, num_positives)
    negatives, are_negative = _draw(is_negative, draws, num_samples)
    slots = tf.range(num_samples)
    taken = tf.reduce_sum(tf.cast(are_positive, tf.int32), axis=-1, keepdims=True)
    available = tf.reduce_sum(tf.cast(are_negative, tf.int32), axis=-1, keepdims=True)
    in_positives = slots < taken
    in_negatives = ~in_positives & (slots < taken + available)
    positives = tf.pad(positives, [[0, 0], [0, num_samples - num_positives]])
    # Slot `taken` holds the first negative.
    negatives = tf.gather(negatives, tf.maximum(slots - taken, 0), batch_dims=1)
    indices = tf.where(in_positives, positives, tf.where(in_negatives, negatives, 0))
    return Samples(indices, is_positive=in_positives, is_valid=in_positives | in_negatives)


def max_positives(num_samples: int, positive_fraction: float) -> int:
    """Returns the number of samples that may be positive.

    Raises:
      ValueError: if the share is not one.
    """
    if not 0.0 <= positive_fraction <= 1.0:
        raise ValueError(f"expected a positive_fraction within 0..1, got {positive_fraction}")
    return int(num_samples * positive_fraction)


def _draw(is_asked: tf.Tensor, draws: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes the candidates with the largest draws.

    Returns:
      ([B, count] int32 indices, [B, count] bool whether there are that many).
    """
    missing = max(count - is_asked.shape[1], 0)
    keys = tf.where(is_asked, draws, _NOT_ASKED)
    keys = tf.pad(keys, [[0, 0], [0, missing]], constant_values=_NOT_ASKED)
    values, indices = exact_top_k(keys, count)
    return indices, values > _NOT_ASKED
