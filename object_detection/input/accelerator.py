"""Whether programs are made for an accelerator or for CPU cores, where these want different ones.

A program may be traced on a machine without a GPU for one that has it
(`benchmarks/export_step.py`), so ask here instead of TensorFlow.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

_assumed: contextvars.ContextVar[bool] = contextvars.ContextVar("assume_accelerator", default=False)


def has_accelerator() -> bool:
    """Tells whether what is traced now will run on an accelerator."""
    return _assumed.get() or bool(tf.config.get_visible_devices("GPU"))


@contextlib.contextmanager
def assume_accelerator() -> Iterator[None]:
    """Makes programs traced inside those of a machine with an accelerator."""
    token = _assumed.set(True)
    try:
        yield
    finally:
        _assumed.reset(token)
