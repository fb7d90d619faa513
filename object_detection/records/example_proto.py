"""Writes and reads serialised `tf.train.Example` messages without TensorFlow.

An Example is a map from field name to one list of bytes, float32 or int64 values. Doing the few
wire types it needs by hand keeps TensorFlow (seconds to import) out of every conversion worker,
and lets a scan of a record file step over the image bytes instead of copying them.

Wire format: Example{1: Features}, Features{1: repeated map entry{1: key, 2: Feature}},
Feature{oneof 1: BytesList, 2: FloatList, 3: Int64List}, each list{1: values}, numbers packed
(protocol buffers, "Encoding"). Newcomers trip over negative integers: int64 is written as the
64-bit two's complement, always ten bytes long, never zigzag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Union

import numpy as np

FeatureValue = Union[Sequence[bytes], np.ndarray]
"""A list of bytes, a float32 array or an int64 array."""

_LENGTH_DELIMITED = 2
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
KINDS = {_BYTES_LIST: "bytes", _FLOAT_LIST: "float32", _INT64_LIST: "int64"}
"""What the lists of a field hold, by their number in the message."""


def encode_example(features: Mapping[str, FeatureValue]) -> bytes:
    """Serialises an Example, byte for byte as TensorFlow's deterministic serialisation does."""
    entries = []
    for name in sorted(features):
        feature = _encode_feature(features[name])
        entry = _delimited(1, name.encode()) + _delimited(2, feature)
        entries.append(_delimited(1, entry))
    return _delimited(1, b"".join(entries))


def decode_example(message: memoryview | bytes, fields: Collection[str]) -> dict[str, FeatureValue]:
    """Reads the named fields of a serialised Example, as far as they are there.

    Raises:
      ValueError: the bytes are not an Example.
    """
    view = memoryview(message)
    with _expecting_example(view):
        return {
            name: _decode_feature(feature) for name, feature in _entries(view) if name in fields
        }


def feature_kinds(message: memoryview | bytes) -> dict[str, str]:
    """Returns the names of all fields, in order, and what each holds: of KINDS, "" if nothing.

    Raises:
      ValueError: the bytes are not an Example.
    """
    view = memoryview(message)
    with _expecting_example(view):
        return {
            name: next((KINDS.get(kind, "") for kind, _ in _walk(feature)), "")
            for name, feature in _entries(view)
        }


@contextlib.contextmanager
def _expecting_example(view: memoryview) -> Iterator[None]:
    try:
        yield
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"expected a serialised tf.train.Example, got {len(view)} bytes that are not one"
        ) from error


def _entries(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yields the name and the Feature of each field."""
    for _, features in _walk(view):
        for _, entry in _walk(features):
            parts = dict(_walk(entry))
            yield bytes(parts.get(1, b"")).decode(), parts.get(2, memoryview(b""))


def _encode_feature(value: FeatureValue) -> bytes:
    if not isinstance(value, np.ndarray):
        return _delimited(_BYTES_LIST, b"".join(_delimited(1, item) for item in value))
    if value.dtype.kind == "f":
        packed, kind = value.astype("<f4").tobytes(), _FLOAT_LIST
    else:
        packed, kind = b"".join(_varint(int(item) & (2**64 - 1)) for item in value), _INT64_LIST
    return _delimited(kind, _delimited(1, packed) if packed else b"")


def _decode_feature(feature: memoryview) -> FeatureValue:
    for kind, values in _walk(feature):
        if kind == _BYTES_LIST:
            return [bytes(item) for _, item in _walk(values)]
        packed = b"".join(bytes(item) for _, item in _walk(values))
        if kind == _FLOAT_LIST:
            return np.frombuffer(packed, "<f4")
        return _unpack_varints(packed)
    return []


def _delimited(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview | bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _unpack_varints(packed: bytes) -> np.ndarray:
    values, position = [], 0
    while position < len(packed):
        value, position = _read_varint(packed, position)
        value &= 2**64 - 1
        values.append(value - 2**64 if value >= 2**63 else value)
    return np.array(values, np.int64)


def _walk(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (field number, payload) of a message; unpacked numbers come as their raw bytes."""
    position = 0
    while position < len(view):
        tag, position = _read_varint(view, position)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(view, position)
        elif wire_type == 0:
            length = _read_varint(view, position)[1] - position
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise IndexError(f"wire type {wire_type}")
        if position + length > len(view):
            raise IndexError("field runs past the end")
        yield tag >> 3, view[position : position + length]
        position += length
