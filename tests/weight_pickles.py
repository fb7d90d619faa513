"""Pickles of weights as PyTorch and Python 2 write them, made without either."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}
_OTHER_STORAGE = "BFloat16Storage"


# --- PyTorch --------------------------------------------------------------------------------------


class Tensor:
    """Pickles as a PyTorch tensor over a storage of its own."""

    def __init__(
        self,
        array: Any,
        *,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        offset: int = 0,
    ):
        self.storage = _Storage(np.asarray(array))
        array = self.storage.array
        self.shape = array.shape if shape is None else shape
        default = [stride // array.itemsize for stride in array.strides]
        self.place = (offset, self.shape, tuple(default if strides is None else strides))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (
            self.storage,
            *self.place,
            False,
            {},
        )


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array


class _Pickler(pickle.Pickler):
    """Replaces storages by persistent ids and keeps their bytes."""

    def __init__(self, stream: BinaryIO):
        super().__init__(stream, protocol=2)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        name = _STORAGES.get(str(obj.array.dtype), _OTHER_STORAGE)
        self.storages.append(obj.array)
        kind = getattr(sys.modules["torch"], name)
        return ("storage", kind, str(len(self.storages) - 1), "cpu", obj.array.size)


def _pickled(content: Any) -> tuple[bytes, list[bytes], list[int]]:
    """Returns the pickle, and bytes and length of each storage."""
    torch, tools = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in (*_STORAGES.values(), _OTHER_STORAGE):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    rebuild = types.FunctionType((lambda: None).__code__, {}, "_rebuild_tensor_v2")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", rebuild.__name__
    vars(tools)[rebuild.__name__] = rebuild
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": tools}):
        pickler.dump(content)
    arrays = [np.ascontiguousarray(array) for array in pickler.storages]
    return stream.getvalue(), [a.tobytes() for a in arrays], [a.size for a in arrays]


def write_torch_zip(path: Path | BinaryIO, content: Any, *, data: bytes | None = None) -> None:
    """Writes what `torch.save` writes; `data` is a pickle in place of the content's."""
    pickled, storages, _ = _pickled(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled if data is None else data)
        archive.writestr("weights/byteorder", "little")
        for key, storage in enumerate(storages):
            archive.writestr(f"weights/data/{key}", storage)


def write_torch_legacy(path: Path, content: Any) -> None:
    """Writes what `torch.save` wrote before its version 1.6."""
    pickled, storages, sizes = _pickled(content)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    with open(path, "wb") as stream:
        for value in (_LEGACY_MAGIC, 1001, system):
            pickle.dump(value, stream, protocol=2)
        stream.write(pickled)
        pickle.dump([str(key) for key in range(len(storages))], stream, protocol=2)
        for storage, size in zip(storages, sizes):
            stream.write(struct.pack("<q", size) + storage)


def state_dict(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns arrays as tensors."""
    return {name: Tensor(value) for name, value in values.items()}


# --- Python 2 -------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    """A byte string as Python 2 pickles it."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"T" + struct.pack("<i", len(data)) + data


def array(
    values: Any,
    *,
    dtype: str | None = None,
    shape: Sequence[int] | None = None,
    data: bytes | None = None,
    order: bytes = b"<",
    structured: bytes = b"NNN",
) -> bytes:
    """An array as Python 2's NumPy pickles it; the arguments make it a wrong one."""
    values = np.asarray(values)
    dims = values.shape if shape is None else shape
    state = b"(K\x01(" + b"".join(b"J" + struct.pack("<i", n) for n in dims) + b"t"
    state += b"cnumpy\ndtype\n" + text(dtype or values.dtype.str[1:]) + b"K\x00K\x01\x87R"
    minus_one = b"J\xff\xff\xff\xff"
    state += b"(K\x03" + text(order) + structured + minus_one * 2 + b"K\x00tb\x89"
    state += text(values.tobytes() if data is None else data) + b"t"
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return head + b"K\x00\x85" + text(b"b") + b"\x87R" + state + b"b"


def dictionary(items: Mapping[str, bytes]) -> bytes:
    """A dictionary of what is pickled already."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def whole(items: Mapping[str, bytes]) -> bytes:
    """A file of a dictionary."""
    return b"\x80\x02" + dictionary(items) + b"."
