"""Reads pickled dictionaries of NumPy arrays without running anything from the file.

Such files are Detectron's weights: written by Python 2, whose byte strings hold both names and
numbers. As in `restricted_pickle`, a name in the pickle resolves to a stand-in defined here or to
nothing; not even NumPy's own functions are called with what the file says. What is not read: arrays
of objects, records and other structured types.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.files.restricted_pickle import RefusedPickleError

# Booleans, integers, floating-point numbers and byte strings of fixed size.
_DTYPE = re.compile(r"^[biufS?]\d*$")
_BYTE_ORDERS = ("<", ">", "|", "=")


class _Dtype:
    """Stands for an element type."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, order: str = "=") -> None:
        if not isinstance(code, str) or not _DTYPE.match(code):
            raise RefusedPickleError(f"the array type {code!r:.40}")
        self.code = code
        self.order = order

    def __setstate__(self, state: Any) -> None:
        """Takes (version, byte order, ...); the rest describes structured types."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in _BYTE_ORDERS:
            raise RefusedPickleError(f"an array type with state {state!r:.40}")
        if any(part is not None for part in state[2:5]):
            raise RefusedPickleError("an array of a structured type")
        self.order = state[1]

    def decode(self, data: Any, count: int) -> np.ndarray:
        """Turns bytes into `count` flat elements."""
        data = data.encode("latin1") if isinstance(data, str) else data
        dtype = np.dtype(self.order + self.code)
        if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
            raise RefusedPickleError(f"an array of {count} elements from other data")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


class _Array:
    """Stands for an array; its content comes with `__setstate__`, once."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """Takes (version, shape, type, whether columns come first, data)."""
        if self.values is not None or not isinstance(state, tuple) or len(state) != 5:
            raise RefusedPickleError("a change of an array's state")
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise RefusedPickleError("an array without type and shape")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise RefusedPickleError(f"an array of shape {shape!r:.40}")
        flat = dtype.decode(data, math.prod(shape))
        self.values = flat.reshape(shape, order="F" if is_fortran else "C")


class _Callable:
    """A function of the pickle that cannot be changed by it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError("a change of a function's state")


class _ArrayType(_Callable):
    """Stands for numpy.ndarray, which is named but never called."""

    __slots__ = ()


class _Reconstruct(_Callable):
    __slots__ = ()

    def __call__(self, array_type: Any, *_: Any) -> _Array:
        if not isinstance(array_type, _ArrayType):
            raise RefusedPickleError(f"an array of the type {array_type!r:.40}")
        return _Array()


class _MakeDtype(_Callable):
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _Dtype:
        return _Dtype(code)


class _MakeScalar(_Callable):
    __slots__ = ()

    def __call__(self, dtype: Any, data: Any = b"") -> Any:
        if not isinstance(dtype, _Dtype):
            raise RefusedPickleError("a number without a type")
        return dtype.decode(data, 1)[0]


class _Encode(_Callable):
    """Stands for _codecs.encode, by which Python 3 writes bytes into old pickles."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "utf-8"):
            raise RefusedPickleError(f"the encoding {encoding!r:.40}")
        return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[(_module, "_reconstruct")] = _Reconstruct()
    _ALLOWED[(_module, "scalar")] = _MakeScalar()


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and arrays; refuses every other name."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up among the stand-ins; never imports."""
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise RefusedPickleError(f"the name {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuses; arrays hold their data themselves."""
        raise RefusedPickleError(f"a persistent object {pid!r:.80}")


def read_numpy_pickle(path: str | Path) -> Any:
    """Reads a pickle of plain containers and arrays.

    Args:
      path: a file of one pickle, of any protocol; byte strings of Python 2 are read as Latin-1.

    Returns:
      What was pickled.

    Raises:
      ValueError: the file is no pickle, is damaged, or asks for anything but containers and arrays.
        Nothing of the file has been executed then.
    """
    try:
        with open(path, "rb") as stream:
            return _resolve(_Unpickler(stream).load())
    except RefusedPickleError as error:
        raise RefusedPickleError(
            f"{path}: refused, because it asks for {error}. Only arrays and plain containers are "
            "read; save the weights as a dictionary of NumPy arrays."
        ) from None
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{path}: not a readable pickle of arrays: {error!r}.") from None


def _resolve(content: Any) -> Any:
    """Replaces stand-ins by arrays, at any depth of plain containers."""
    if isinstance(content, _Array):
        if content.values is None:
            raise RefusedPickleError("an array without content")
        return content.values
    if isinstance(content, dict):
        return {key: _resolve(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_resolve(value) for value in content)
    return content
