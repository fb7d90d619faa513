"""Whether what is traced now becomes a program of XLA, and what only such a program can do.

A `tf.function` does not tell the functions inside it that it is compiled.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

_compiled: contextvars.ContextVar[bool] = contextvars.ContextVar("compiled_by_xla", default=False)


def is_compiled() -> bool:
    """Tells whether XLA compiles what is traced now."""
    return _compiled.get()


@contextlib.contextmanager
def compiled(use_xla: bool = True) -> Iterator[None]:
    """Says so to what is traced inside."""
    token = _compiled.set(use_xla)
    try:
        yield
    finally:
        _compiled.reset(token)


def separate(place: int, *tensors: tf.Tensor) -> Sequence[tf.Tensor]:
    """Returns the same values, of which XLA does not know that they are the same.

    Args:
      place: makes the barriers of one function different; equal ones would become one.
      *tensors: the values.
    """
    return xla.optimization_barrier(*tensors, tf.constant(place))[:-1]
