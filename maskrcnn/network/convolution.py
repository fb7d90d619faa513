"""The convolution of body, neck and heads, with a weight gradient for CPU cores.

On maps of many positions TensorFlow's CPU kernel of that gradient takes two to four times as long
as the forward pass, which does the same arithmetic (docs/performance.md). As one matrix product for
each place of the kernel it takes about as long. What surprises a newcomer: the shifted maps are
never copied. Both maps are padded to rows of equal length, and a shift is then an offset.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from object_detection.input.accelerator import has_accelerator

LEAST_POSITIONS = 1024  # of a map; on smaller ones the padding costs what the products save


class Conv2D(tf.keras.layers.Conv2D):
    """Keras' layer; the same results, a faster weight gradient where there is no accelerator."""

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves [batch, h, w, channels]."""
        if not self._gains_by_products(inputs):
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, tf.convert_to_tensor(kernel))

    def _gains_by_products(self, inputs: tf.Tensor) -> bool:
        _, *size, channels = inputs.shape
        return (
            self.padding == "same"
            and self.strides == self.dilation_rate == (1, 1)
            and self.groups == 1
            and self.kernel_size[0] > 1
            and all(side % 2 for side in self.kernel_size)
            and None not in (*size, channels)
            and size[0] * size[1] >= LEAST_POSITIONS
            and inputs.dtype == tf.float32
            and not has_accelerator()
        )


@tf.custom_gradient
def _convolve(
    inputs: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """Convolves with stride 1 and equal padding."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_inputs = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
        of_inputs.set_shape(inputs.shape)
        return of_inputs, weight_gradient(inputs, upstream, kernel_size=kernel.shape[:2])

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradient


def weight_gradient(
    inputs: tf.Tensor, upstream: tf.Tensor, *, kernel_size: tuple[int, int]
) -> tf.Tensor:
    """Computes a convolution's gradient by its kernel, for stride 1 and equal padding.

    Args:
      inputs: [batch, h, w, channels], static but for the batch.
      upstream: [batch, h, w, filters], the gradient by the convolution's result.
      kernel_size: (height, width), both odd.

    Returns:
      [height, width, channels, filters]: at (i, j) the sum over images and positions (y, x) of
      inputs[y + i - height // 2, x + j - width // 2] times upstream[y, x], zero outside.
    """
    rows, columns = (int(side) for side in kernel_size)
    width, channels = inputs.shape[2:]
    filters = upstream.shape[-1]
    before = [[0, 0], [rows // 2, rows // 2], [columns // 2, columns // 2], [0, 0]]
    after = [[0, 0], [0, rows - 1], [0, columns - 1], [0, 0]]
    values = tf.reshape(tf.pad(inputs, before), [-1, channels])
    # Zeros stand where an offset leads into the next row or image.
    gradients = tf.reshape(tf.pad(upstream, after), [-1, filters])
    row_length = width + columns - 1
    num_products = tf.shape(values)[0] - ((rows - 1) * row_length + columns - 1)
    gradients = gradients[:num_products]
    products = []
    for i in range(rows):
        for j in range(columns):
            start = i * row_length + j
            shifted = values[start : start + num_products]
            products.append(tf.matmul(shifted, gradients, transpose_a=True))
    return tf.reshape(tf.stack(products), [rows, columns, channels, filters])
