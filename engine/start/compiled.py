"""Whether what is traced now becomes a program of XLA, for parts that are written twice.

A `tf.function` does not tell the functions inside it that it is compiled.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

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
