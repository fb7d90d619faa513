"""Reads safetensors files: the length of a JSON table, the table, and the bytes it points into.

Nothing in such a file can be executed; what is checked is that every tensor lies within the file
and has the bytes of its shape.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

# The format's own limit of the table.
_MOST_TABLE_BYTES = 100_000_000
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
      ValueError: the table is damaged, or a tensor has an unknown type or lies outside the file.
    """
    content = np.memmap(path, np.uint8, mode="r")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(_MOST_TABLE_BYTES, len(content) - 8):
        raise ValueError(f"{path}: truncated, or no safetensors file: a table of {length} bytes")
    try:
        table = json.loads(content[8 : 8 + length].tobytes())
        data = content[8 + length :]
        return {
            name: _array(entry, data) for name, entry in table.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged safetensors file ({error})") from None


def _array(entry: dict, data: np.ndarray) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']!r:.40} are not read")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    numbers = (*shape, start, end)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"a tensor of shape {shape!r:.80} at {start!r:.20}..{end!r:.20}")
    if end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} at {start}..{end} of {len(data)} bytes")
    array = np.frombuffer(data[start:end].tobytes(), dtype).reshape(shape)
    if entry["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
