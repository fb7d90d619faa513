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


def largest_shape(batch: Mapping[str, tf.Tensor]) -> tuple[int, ...]:
    """Returns the shape of a batch's largest tensor, its images, by which steps are compiled."""
    return tuple(max((value.shape for value in batch.values()), key=lambda s: s.num_elements()))
