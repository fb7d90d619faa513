"""Reads pickles of strangers: how much they may do. What they may name is for each format to say.

Python's own reader in C takes the sizes that a pickle states for true, and a few hundred bytes of
nested tuples keep it busy for ever where they are hashed. This one, in Python, counts what it does:
operations, keys, what is called. The array data of a file of weights are single operations, so that
a real file is read at the speed of the disk.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar

import numpy as np

from outside_data.expansion import Budget
from outside_data.files import BadFileError, open_file
from outside_data.text import clean

MOST_OPERATIONS = 500_000
"""Of a pickle; Detectron's and PyTorch's take fewer than 100 for each array."""
MOST_DIMENSIONS = 32

_KEY_TYPES = (str, bytes, int, float, bool, type(None))
# Sets hash their members, and buffers are made as large as the pickle says.
_REFUSED = {
    pickle.EMPTY_SET: "a set",
    pickle.ADDITEMS: "a set",
    pickle.FROZENSET: "a set",
    pickle.BYTEARRAY8: "a buffer",
    pickle.NEXT_BUFFER: "a buffer",
    pickle.READONLY_BUFFER: "a buffer",
}


class RefusedPickleError(BadFileError):
    """The file asks for something that a table of weights does not need."""


class StandIn:
    """An object of the pickle that the pickle itself cannot change afterwards."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError("a change of an object's state")


class ArrayStandIn(StandIn):
    """Stands for an array, which is made when the whole pickle has been read."""

    __slots__ = ()

    def to_array(self, budget: Budget) -> np.ndarray:
        """Makes the array; RefusedPickleError if there is none in what the pickle says."""
        raise NotImplementedError


class Maker(StandIn):
    """Stands for a function or class that the pickle may call."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        """Calls what stands in its place."""
        return self._make(*arguments)


class _Metered(dict):
    """The operations of a reader, of which only so many may be done."""

    left = MOST_OPERATIONS

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise RefusedPickleError(f"more than {MOST_OPERATIONS:,} operations")
        return super().__getitem__(code)


class BoundedUnpickler(pickle._Unpickler):
    """Reads a pickle; subclasses say in `allowed` which names it may use.

    Args:
      stream: of the whole file, at the pickle; reading beyond its end gives what is there.
      budget: of bytes; shared by what is made of one file.
      allowed: (module, name) to what stands for it.
      encoding: of the byte strings of Python 2.
    """

    def __init__(
        self,
        stream: BinaryIO,
        budget: Budget,
        *,
        allowed: dict[tuple[str, str], Any],
        encoding: str,
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self.dispatch = _Metered(self.dispatch)
        make_dict = Maker(functools.partial(_ordered_dict, budget))
        self._allowed = {("collections", "OrderedDict"): make_dict, **allowed}

    def find_class(self, module: str, name: str) -> Any:
        """Looks a name up among the stand-ins; never imports."""
        try:
            return self._allowed[(module, name)]
        except KeyError:
            raise RefusedPickleError(f"the name {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuses, unless a subclass knows such objects."""
        raise RefusedPickleError(f"a persistent object {shown(pid)}")

    def _load_dict(self) -> None:
        require_plain_keys(self.stack[0::2])
        super().load_dict()

    def _load_setitem(self) -> None:
        require_plain_keys(self.stack[-2:-1])
        super().load_setitem()

    def _load_setitems(self) -> None:
        require_plain_keys(self.stack[0::2])
        super().load_setitems()

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
    }


def _refuse(what: str) -> Callable[[Any], None]:
    def refuse(_: Any) -> None:
        raise RefusedPickleError(what)

    return refuse


BoundedUnpickler.dispatch.update({code[0]: _refuse(what) for code, what in _REFUSED.items()})


def _ordered_dict(budget: Budget, items: Any = ()) -> collections.OrderedDict:
    """Makes a dictionary of a list of pairs."""
    if not isinstance(items, (list, tuple)):
        raise RefusedPickleError("a dictionary of other things than pairs")
    budget.take(100 * len(items))
    pairs = [tuple(item) for item in items if isinstance(item, (list, tuple))]
    if len(pairs) < len(items) or any(len(pair) != 2 for pair in pairs):
        raise RefusedPickleError("a dictionary of other things than pairs")
    require_plain_keys([key for key, _ in pairs])
    return collections.OrderedDict(pairs)


def require_plain_keys(keys: list[Any]) -> None:
    """Raises RefusedPickleError for keys other than text and numbers."""
    for key in keys:
        if type(key) not in _KEY_TYPES:
            raise RefusedPickleError(f"a dictionary with a {type(key).__name__} as key")


def shown(value: Any) -> str:
    """Returns a value for a message; of containers, which may be bombs themselves, the type."""
    return (
        repr(value)[:80] if isinstance(value, (str, bytes)) else f"of type {type(value).__name__}"
    )


def shape_of(value: Any) -> tuple[int, ...]:
    """Returns a tuple of sizes; RefusedPickleError if it is none."""
    if not isinstance(value, (list, tuple)) or len(value) > MOST_DIMENSIONS:
        raise RefusedPickleError(f"an array whose shape is {shown(value)}")
    if not all(type(n) is int and 0 <= n < 2**62 for n in value):
        raise RefusedPickleError("an array of a shape that is no list of sizes")
    return tuple(value)


def with_arrays(content: Any, budget: Budget) -> Any:
    """Returns plain containers with arrays in place of their stand-ins, at any depth.

    A container that occurs at many places is walked once and stays one.
    """
    done: dict[int, Any] = {}

    def walk(value: Any) -> Any:
        if id(value) not in done:
            if isinstance(value, dict):
                done[id(value)] = {key: walk(item) for key, item in dict.items(value)}
            elif isinstance(value, (list, tuple)):
                done[id(value)] = type(value)(walk(item) for item in value)
            else:
                is_array = isinstance(value, ArrayStandIn)
                done[id(value)] = value.to_array(budget) if is_array else value
        return done[id(value)]

    return walk(content)


@contextlib.contextmanager
def open_pickle(path: str | os.PathLike[str], *, what: str, advice: str) -> Iterator[BinaryIO]:
    """Opens a file to read its pickle within the block; an error there names file and way out.

    Args:
      path: the file.
      what: was expected in it.
      advice: on what to save in place of a refused file.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: the block failed, by RefusedPickleError or otherwise.
    """
    try:
        with open_file(path, most=None) as file:
            yield file
    except RefusedPickleError as error:
        raise RefusedPickleError(
            f"{path}: refused, because it asks for {error}. {advice}"
        ) from None
    except Exception as error:  # a pickle may fail in every operation that it names
        if isinstance(error, OSError) and os.fspath(path) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise BadFileError(
            f"{path}: not a readable {what}: {kind}{clean(error)}. If it was cut short, copy or "
            "download it again"
        ) from None
