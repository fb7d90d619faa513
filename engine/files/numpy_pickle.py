"""Reads pickled dictionaries of NumPy arrays without running anything from the file.

Such files are Detectron's weights: written by Python 2, whose byte strings hold both names and
numbers. As in `restricted_pickle`, a name in the pickle resolves to a stand-in defined here or to
nothing; not even NumPy's own functions are called with what the file says. What is not read: arrays
of objects, records and other structured types.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from engine.files.bounded_unpickler import (
    ArrayStandIn,
    BoundedUnpickler,
    Maker,
    RefusedPickleError,
    StandIn,
    open_pickle,
    shape_of,
    shown,
    with_arrays,
)
from outside_data.expansion import Budget

# Booleans, integers, floating-point numbers and byte strings of fixed size.
_DTYPE = re.compile(r"^[biufS?]\d{0,4}$")
_BYTE_ORDERS = ("<", ">", "|", "=")
_ADVICE = (
    "Only arrays and plain containers are read; save the weights as a dictionary of NumPy arrays."
)


class _Dtype:
    """Stands for an element type."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.match(code):
            raise RefusedPickleError(f"the array type {shown(code)}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        """Takes (version, byte order, ...); the rest describes structured types."""
        if not isinstance(state, tuple) or len(state) < 2 or not _is_one_of(state[1], _BYTE_ORDERS):
            raise RefusedPickleError(f"an array type with state {shown(state)}")
        if any(part is not None for part in state[2:5]):
            raise RefusedPickleError("an array of a structured type")
        self.order = state[1]

    def decode(self, data: Any, count: int, budget: Budget) -> np.ndarray:
        """Turns bytes into `count` flat elements."""
        budget.take(2 * len(data) if isinstance(data, (str, bytes)) else 0)
        data = data.encode("latin1") if isinstance(data, str) else data
        dtype = np.dtype(self.order + self.code)
        if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
            raise RefusedPickleError(f"an array of {count} elements from other data")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


class _Array(ArrayStandIn):
    """Stands for an array; its content comes with `__setstate__`, once, and is decoded last."""

    __slots__ = ("_content",)

    def __init__(self) -> None:
        self._content: tuple[tuple[int, ...], _Dtype, Any, str] | None = None

    def __setstate__(self, state: Any) -> None:
        """Takes (version, shape, type, whether columns come first, data)."""
        if self._content is not None or not isinstance(state, tuple) or len(state) != 5:
            raise RefusedPickleError("a change of an array's state")
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise RefusedPickleError("an array without type and shape")
        self._content = shape_of(shape), dtype, data, "F" if is_fortran else "C"

    def to_array(self, budget: Budget) -> np.ndarray:
        """Decodes the content."""
        if self._content is None:
            raise RefusedPickleError("an array without content")
        shape, dtype, data, order = self._content
        return dtype.decode(data, math.prod(shape), budget).reshape(shape, order=order)


class _ArrayType(StandIn):
    """Stands for numpy.ndarray, which is named but never called."""

    __slots__ = ()


def _reconstruct(array_type: Any, *_: Any) -> _Array:
    if not isinstance(array_type, _ArrayType):
        raise RefusedPickleError(f"an array of the type {shown(array_type)}")
    return _Array()


def _scalar(budget: Budget, dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype):
        raise RefusedPickleError("a number without a type")
    return dtype.decode(data, 1, budget)[0]


def _encode(budget: Budget, text: Any, encoding: Any = "latin1") -> bytes:
    """As _codecs.encode, by which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str) or not _is_one_of(encoding, ("latin1", "utf-8")):
        raise RefusedPickleError(f"the encoding {shown(encoding)}")
    budget.take(len(text))
    return text.encode(encoding)


def _is_one_of(value: Any, words: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in words


def _allowed(budget: Budget) -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ArrayType(),
        ("numpy", "dtype"): Maker(_Dtype),
        ("_codecs", "encode"): Maker(functools.partial(_encode, budget)),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[(module, "_reconstruct")] = Maker(_reconstruct)
        names[(module, "scalar")] = Maker(functools.partial(_scalar, budget))
    return names


def read_numpy_pickle(path: str | Path) -> Any:
    """Reads a pickle of plain containers and arrays.

    Args:
      path: a file of one pickle, of any protocol; byte strings of Python 2 are read as Latin-1.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: the file is no pickle, is damaged, would become far larger than it is, or
        asks for anything but containers and arrays. Nothing of the file has been executed then.
    """
    with (
        open_pickle(path, what="pickle of arrays", advice=_ADVICE) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream,
    ):
        budget = Budget(len(stream))
        allowed = _allowed(budget)
        content = BoundedUnpickler(stream, budget, allowed=allowed, encoding="latin1").load()
        return with_arrays(content, budget)
