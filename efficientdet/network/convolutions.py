"""Keras' convolutions with gradients for CPU cores: the same results, less time in training.

Two of TensorFlow's CPU kernels for the gradient by the weights are slow (docs/performance.md). That
of a depthwise convolution takes several times as long as the forward pass, which does the same
arithmetic, once the kernel has more than three columns: here the columns are taken in parts. That
of a 1 x 1 convolution is beaten by the matrix product that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from object_detection.input.accelerator import has_accelerator

_FAST_COLUMNS = 3


def _is_for_cpu(inputs: tf.Tensor, training: bool | None) -> bool:
    """Tells whether a layer's gradient will be computed, and by a CPU."""
    is_static = None not in inputs.shape[1:]
    return bool(training) and is_static and inputs.dtype == tf.float32 and not has_accelerator()


def _pointwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves [batch, height, width, channels] with [1, 1, channels, filters]."""
    return tf.tensordot(inputs, kernel[0, 0], axes=1)


class Conv2D(tf.keras.layers.Conv2D):
    """A convolution; one of 1 x 1 is a matrix product."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [batch, height, width, channels]."""
        is_pointwise = self.kernel_size == self.strides == (1, 1)
        if not (is_pointwise and _is_for_cpu(inputs, training)):
            return super().call(inputs)
        outputs = _pointwise(inputs, tf.convert_to_tensor(self.kernel))
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


class SeparableConv2D(tf.keras.layers.SeparableConv2D):
    """A depthwise convolution and one of 1 x 1, which is a matrix product."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [batch, height, width, channels]."""
        if not _is_for_cpu(inputs, training):
            return super().call(inputs)
        strides = [1, *self.strides, 1]
        x = tf.nn.depthwise_conv2d(inputs, self.depthwise_kernel, strides, self.padding.upper())
        x = _pointwise(x, tf.convert_to_tensor(self.pointwise_kernel))
        return tf.nn.bias_add(x, self.bias) if self.use_bias else x


class DepthwiseConv2D(tf.keras.layers.DepthwiseConv2D):
    """A depthwise convolution without bias; the gradient of a wide kernel is taken in parts."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [batch, height, width, channels]."""
        if not (self.kernel_size[1] > _FAST_COLUMNS and _is_for_cpu(inputs, training)):
            return super().call(inputs)
        strides = [1, *self.strides, 1]
        padding = self.padding.upper()

        @tf.custom_gradient
        def convolve(
            inputs: tf.Tensor, kernel: tf.Tensor
        ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                of_inputs = tf.nn.depthwise_conv2d_backprop_input(
                    tf.shape(inputs), kernel, upstream, strides, padding
                )
                of_kernel = depthwise_weight_gradient(
                    inputs, upstream, kernel_size=self.kernel_size, strides=strides, padding=padding
                )
                return of_inputs, of_kernel

            return tf.nn.depthwise_conv2d(inputs, kernel, strides, padding), gradient

        return convolve(inputs, tf.convert_to_tensor(self.depthwise_kernel))


def depthwise_weight_gradient(
    inputs: tf.Tensor,
    upstream: tf.Tensor,
    *,
    kernel_size: tuple[int, int],
    strides: Sequence[int],
    padding: str,
) -> tf.Tensor:
    """Computes a depthwise convolution's gradient by its kernel, three columns at a time.

    Args:
      inputs: [batch, height, width, channels], static but for the batch.
      upstream: [batch, out_height, out_width, channels], the gradient by the convolution's result.
      kernel_size: (rows, columns).
      strides: [1, stride, stride, 1].
      padding: "SAME" or "VALID".

    Returns:
      [rows, columns, channels, 1]: at (i, j) the sum over images and positions (y, x) of
      inputs[y * stride + i - top, x * stride + j - left] times upstream[y, x], zero outside, where
      top and left are the rows and columns that the padding puts before the first.
    """
    rows, columns = kernel_size
    channels = inputs.shape[-1]
    borders = [[0, 0]]
    for axis in (1, 2):
        reach = (upstream.shape[axis] - 1) * strides[axis] + kernel_size[axis - 1]
        missing = max(reach - inputs.shape[axis], 0) if padding == "SAME" else 0
        borders.append([missing // 2, missing - missing // 2])
    padded = tf.pad(inputs, [*borders, [0, 0]])
    last_place = (upstream.shape[2] - 1) * strides[2]
    parts = []
    for start in range(0, columns, _FAST_COLUMNS):
        count = min(_FAST_COLUMNS, columns - start)
        part = padded[:, :, start : start + last_place + count]
        size = [rows, count, channels, 1]
        parts.append(tf.nn.depthwise_conv2d_backprop_filter(part, size, upstream, strides, "VALID"))
    return tf.concat(parts, axis=1)
