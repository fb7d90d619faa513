"""Reads safetensors files: the length of a JSON table, the table, and the bytes it points into.

Nothing in such a file can be executed; what is checked is that every tensor lies within the file
and has the bytes of its shape.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from outside_data.expansion import Budget
from outside_data.files import BadFileError, expecting, open_file, parse_json

# The format's own limit of the table.
_MOST_TABLE_BYTES = 100_000_000
_EXPECTED = "safetensors; if it was cut short, copy or download it again"
# bfloat16 has no NumPy type and is widened to float32.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def is_safetensors(head: bytes) -> bool:
    """Tells a file by its first 9 bytes: a length below 2^32 and the table's brace."""
    return len(head) == 9 and head[4:] == b"\0\0\0\0{"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file.

    Returns:
      {name: array}; bfloat16 as float32.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: the table is damaged, or a tensor has an unknown type, lies outside the file,
        or many are the same bytes.
    """
    with open_file(path, most=None) as file, expecting(path, _EXPECTED):
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if length > min(_MOST_TABLE_BYTES, size - 8):
            raise BadFileError(
                f"{path}: truncated, or no safetensors file: a table of {length:,} bytes. Copy or "
                "download it again"
            )
        table = parse_json(file.read(length), path)
        data, budget = np.memmap(file, np.uint8, mode="r")[8 + length :], Budget(size)
        return {
            name: _array(entry, data, budget)
            for name, entry in table.items()
            if name != "__metadata__"
        }


def _array(entry: dict, data: np.ndarray, budget: Budget) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']!r:.40} are not read")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    numbers = (*shape, start, end)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"a tensor of shape {shape!r:.80} at {start!r:.20}..{end!r:.20}")
    if end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} at {start}..{end} of {len(data)} bytes")
    budget.take(4 * math.prod(shape) if entry["dtype"] == "BF16" else end - start)
    array = np.frombuffer(data[start:end].tobytes(), dtype).reshape(shape)
    if entry["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
