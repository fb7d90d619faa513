"""The k largest values of long rows, without sorting the whole row."""

from __future__ import annotations

import math

import tensorflow as tf

# Rows shorter than this many times k are sorted as they are.
_MIN_GROUPING_RATIO = 16


def exact_top_k(values: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the k largest of long rows, exactly, by sorting groups of about sqrt(n / k) first.

    A group is looked at only if its largest value is among the k largest of all groups: those k
    values alone are at least as large as any value outside their groups. Two sorts of about
    sqrt(n * k) values replace one of n; on accelerators a sort of 200,000 values takes hundreds of
    passes.

    Args:
      values: [B, n] float, n known and at least k; no NaN.
      k: values wanted.

    Returns:
      (values, int32 indices), each [B, k], descending. Where minus infinity is among the k,
      its index may be that of another one.
    """
    num_values = values.shape[1]
    if not k or num_values < _MIN_GROUPING_RATIO * k:
        return tf.math.top_k(values, k)
    group_size = round(math.sqrt(num_values / k))
    num_groups = -(-num_values // group_size)
    missing = num_groups * group_size - num_values
    padded = tf.pad(values, [[0, 0], [0, missing]], constant_values=float("-inf"))
    groups = tf.reshape(padded, [-1, num_groups, group_size])
    _, group_index = tf.math.top_k(tf.reduce_max(groups, axis=-1), k)
    members = tf.reshape(tf.gather(groups, group_index, batch_dims=1), [-1, k * group_size])
    top_values, member_index = tf.math.top_k(members, k)
    group_of_member = tf.gather(group_index, member_index // group_size, batch_dims=1)
    indices = group_of_member * group_size + member_index % group_size
    return top_values, tf.minimum(indices, num_values - 1)
