"""Iterating over an input pipeline, with its errors said plainly."""

import re
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf

# A Python error raised inside tf.data arrives as text within TensorFlow's.
_SAID = re.compile(r"\b(\w+Error): (.*)")


def iterate(dataset: Iterable[Mapping[str, tf.Tensor]]) -> Iterator[Mapping[str, tf.Tensor]]:
    """Yields the batches of a dataset.

    Raises:
      ValueError: the pipeline failed; with what its own code said, without TensorFlow's wrapping.
    """
    batches = iter(dataset)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            said = _SAID.search(error.message)
            reason = said[2] if said else error.message.splitlines()[0]
            raise ValueError(f"the input pipeline failed: {reason}") from error
        yield batch


def image_shape(batch: Mapping[str, tf.Tensor]) -> tuple[int, ...]:
    """Returns the shape of a batch's images, its tensor of most axes, by which steps are compiled.

    Where several have as many axes, the largest is taken.
    """
    shapes = [value.shape for value in batch.values()]
    return tuple(max(shapes, key=lambda shape: (shape.rank, shape.num_elements())))
