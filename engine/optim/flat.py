"""One flat buffer for many variables: [chunks, 128] float32, each variable starting a new chunk.

The optimizer, the averages and the allreduce work on one tensor instead of hundreds: D0's update
has 493 variables, which cost minutes of compilation and thousands of kernel launches one by one.
Padding is zero and stays zero under SGD, AdamW and averaging. Per-variable numbers (norms, decay)
go through `segment_ids`, which name the variable of every chunk.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

CHUNK = 128


class FlatLayout:
    """Where each of a list of tensors lies in the flat buffer.

    Args:
      shapes: static shapes, in the order used everywhere.
    """

    def __init__(self, shapes: Sequence[tf.TensorShape]):
        self._shapes = [tf.TensorShape(s) for s in shapes]
        self._sizes = [int(s.num_elements()) for s in self._shapes]
        chunks = [-(-size // CHUNK) for size in self._sizes]
        self._starts = np.concatenate([[0], np.cumsum(chunks)]).astype(int)
        self.num_tensors = len(self._shapes)
        self.num_chunks = int(self._starts[-1])
        self.segment_ids = np.repeat(np.arange(self.num_tensors), chunks).astype(np.int32)

    def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the buffer, float32 [num_chunks, 128], of tensors in the layout's order."""
        rows = [tf.zeros([0])]  # there may be no tensor at all
        for tensor, size in zip(tensors, self._sizes):
            flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
            rows.append(tf.pad(flat, [[0, -size % CHUNK]]))
        return tf.reshape(tf.concat(rows, axis=0), [self.num_chunks, CHUNK])

    def split(self, buffer: tf.Tensor) -> list[tf.Tensor]:
        """Undoes `join`."""
        pieces = []
        for i, (shape, size) in enumerate(zip(self._shapes, self._sizes)):
            rows = buffer[self._starts[i] : self._starts[i + 1]]
            pieces.append(tf.reshape(tf.reshape(rows, [-1])[:size], shape))
        return pieces

    def norms(self, buffer: tf.Tensor) -> tf.Tensor:
        """Returns the Euclidean norm of each tensor, float32 [num_tensors]."""
        squares = tf.reduce_sum(tf.square(buffer), axis=1)
        return tf.sqrt(tf.math.unsorted_segment_sum(squares, self.segment_ids, self.num_tensors))

    def spread(self, values: tf.Tensor) -> tf.Tensor:
        """Gives every chunk its tensor's value: [num_tensors] -> [num_chunks, 1]."""
        return tf.gather(values, self.segment_ids)[:, tf.newaxis]
