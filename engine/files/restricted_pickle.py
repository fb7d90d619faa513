"""Reads PyTorch state dicts without PyTorch and without running anything from the file.

A pickle names the functions that rebuild its objects. Here the only names that resolve are those of
plain containers and of stand-ins, defined below; everything else is refused
before it is called. Both containers of PyTorch are read: the zip file (1.6 and later) and the
stream of pickles before it. What is not read: whole pickled modules, quantised and sparse tensors.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

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
from outside_data.text import clean

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ADVICE = (
    "Only tensors and plain containers are read; save a state dict with "
    "torch.save(model.state_dict(), ...)."
)

# Storage classes of PyTorch; bfloat16 has no NumPy type and is widened to float32.
_STORAGE_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _StorageType(StandIn):
    """Stands for a storage class; carries its element type and cannot be called."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    @property
    def item_size(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    def decode(self, data: bytes) -> np.ndarray:
        """Turns little-endian bytes into a flat array."""
        if self.dtype == "bfloat16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, self.dtype)


class _Storage(StandIn):
    """A flat array whose content becomes known only after the pickle has been read."""

    __slots__ = ("key", "size", "type", "values")

    def __init__(self, key: str, storage_type: _StorageType, size: int) -> None:
        self.key = key
        self.type = storage_type
        self.size = size
        self.values: np.ndarray | None = None


class _Tensor(ArrayStandIn):
    """A view of a storage, copied out of it once the storage has been filled."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> None:
        if not isinstance(storage, _Storage):
            raise RefusedPickleError("a tensor without a storage")
        (self.offset,) = shape_of((offset,))
        self.shape, self.strides = shape_of(shape), shape_of(strides)
        if len(self.shape) != len(self.strides):
            raise RefusedPickleError(f"a tensor of shape {self.shape} and strides {self.strides}")
        self.storage = storage

    def to_array(self, budget: Budget) -> np.ndarray:
        """Copies the view, after checking that it stays within its storage."""
        values = self.storage.values
        if values is None:
            raise ValueError(f"storage {self.storage.key} is missing")
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        reach = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        if self.offset + reach >= len(values) or math.prod(self.shape) > len(values):
            raise RefusedPickleError(
                f"a tensor of shape {self.shape} and strides {self.strides} from element "
                f"{self.offset} of a storage of {len(values)}"
            )
        byte_strides = [stride * values.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, byte_strides)
        budget.take(view.nbytes)
        return np.array(view)


class _Settings(StandIn):
    """The flags of a training program, which timm and torchvision save too; left unread."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Forgets them."""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): Maker(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Maker(lambda tensor, *_: tensor),
    ("argparse", "Namespace"): _Settings,
    ("torch", "Size"): Maker(lambda sizes=(): shape_of(sizes)),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
}


class _TorchUnpickler(BoundedUnpickler):
    """Unpickles containers, numbers, text and tensors; refuses every other name.

    Args:
      stream, budget: as of `BoundedUnpickler`.
      storages: takes those of the tensors, by key; None: none are expected.
    """

    def __init__(
        self, stream: BinaryIO, budget: Budget, storages: dict[str, _Storage] | None = None
    ) -> None:
        super().__init__(stream, budget, allowed=_ALLOWED, encoding="utf-8")
        self._storages = storages

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to; several may share it."""
        is_storage = (
            self._storages is not None
            and isinstance(pid, tuple)
            and len(pid) >= 5
            and pid[0] == "storage"
            and isinstance(pid[1], _StorageType)
        )
        if not is_storage or (len(pid) > 5 and pid[5] is not None):
            raise RefusedPickleError(f"a persistent object {shown(pid)}")
        (size,) = shape_of((pid[4],))
        key = clean(pid[2])
        return self._storages.setdefault(key, _Storage(key, pid[1], size))


def read_torch_file(path: str | Path) -> Any:
    """Reads a PyTorch checkpoint into plain containers of NumPy arrays.

    Args:
      path: a file written by `torch.save`, of either container format.

    Returns:
      What was saved, with every tensor a NumPy array.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: the file is not a PyTorch checkpoint, is damaged, or asks for anything but
        containers and tensors. Nothing of the file has been executed then.
    """
    with open_pickle(path, what="PyTorch state dict", advice=_ADVICE) as file:
        budget = Budget(os.fstat(file.fileno()).st_size)
        read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
        return with_arrays(read(file, budget), budget)


def _read_zip(file: BinaryIO, budget: Budget) -> Any:
    """Reads the zip container: one pickle, and one member per storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"expected one data.pkl in the zip file, found {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")

        def read(name: str) -> bytes:
            budget.take(archive.getinfo(name).file_size)
            return archive.read(name)

        if f"{root}byteorder" in names and read(f"{root}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        storages: dict[str, _Storage] = {}
        content = _TorchUnpickler(io.BytesIO(read(pickles[0])), budget, storages).load()
        for key, storage in storages.items():
            storage.values = storage.type.decode(read(f"{root}data/{key}"))
    return content


def _read_legacy(file: BinaryIO, budget: Budget) -> Any:
    """Reads the stream container: magic, protocol, system, content, keys, then raw storages."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:

        def load(storages: dict[str, _Storage] | None = None) -> Any:
            return _TorchUnpickler(stream, budget, storages).load()

        if load() != _LEGACY_MAGIC:
            raise ValueError("wrong magic number")
        if load() != _LEGACY_PROTOCOL:
            raise ValueError("unknown protocol")
        if not load().get("little_endian", True):
            raise ValueError("written on a big-endian machine")
        storages: dict[str, _Storage] = {}
        content = load(storages)
        for key in load():
            storage = storages[key]
            size = int.from_bytes(stream.read(8), "little")
            data = stream.read(min(size * storage.type.item_size, len(stream)))
            if size != storage.size or len(data) != size * storage.type.item_size:
                raise ValueError(f"truncated: storage {key} should hold {storage.size} elements")
            storage.values = storage.type.decode(data)
    return content
