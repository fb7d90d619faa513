"""Reads pickles of strangers: how much they may do. What they may name is for each format to say.

Python's own reader in C takes the sizes that a pickle states for true, and a few hundred bytes of
nested tuples keep it busy for ever where they are hashed. This one, in Python, counts what it does:
operations, keys, what is called. The array data of a file of weights are single operations, so that
a real file is read at the speed of the disk.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from outside_data.expansion import Budget
from outside_data.files import BadFileError

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
        self._allowed = {("collections", "OrderedDict"): MakeDict(budget), **allowed}

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


class MakeDict(StandIn):
    """Stands for collections.OrderedDict."""

    __slots__ = ("_budget",)

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, items: Any = ()) -> collections.OrderedDict:
        """Makes a dictionary of a list of pairs."""
        if not isinstance(items, (list, tuple)):
            raise RefusedPickleError("a dictionary of other things than pairs")
        self._budget.take(100 * len(items))
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


def replace_stand_ins(content: Any, replace: Callable[[Any], Any]) -> Any:
    """Returns plain containers with stand-ins replaced, at any depth.

    A container that occurs at many places is walked once and stays one.

    Args:
      content: what was unpickled.
      replace: gives for a stand-in what it stands for, anything else back.
    """
    done: dict[int, Any] = {}

    def walk(value: Any) -> Any:
        if id(value) not in done:
            if isinstance(value, dict):
                done[id(value)] = {key: walk(item) for key, item in dict.items(value)}
            elif isinstance(value, (list, tuple)):
                done[id(value)] = type(value)(walk(item) for item in value)
            else:
                done[id(value)] = replace(value)
        return done[id(value)]

    return walk(content)
