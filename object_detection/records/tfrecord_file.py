"""Writes and steps through TFRecord files without TensorFlow.

A TFRecord file is a sequence of: length (uint64, little endian), masked CRC-32C of those eight
bytes, the data, masked CRC-32C of the data. `mask(c) = rotate_right(c, 15) + 0xa282ead8`.

Also here: which files a pattern means. A pattern such as `train-*` also matches the data card
`train-card.json`, so a plain glob is not enough: use `record_files`.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from outside_data.files import BadFileError, open_file
from path_names.patterns import match, split_patterns

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_GZIP = b"\x1f\x8b"
_LANE_BYTES = 64
_SHARD_NAME = re.compile(r"(?P<prefix>.+)-\d{5}-of-\d{5}(\.tfrecord)?$")


def write_records(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Writes serialised records to a new TFRecord file and returns how many there were."""
    num_records = 0
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(record)
            file.write(struct.pack("<I", masked_crc32c(record)))
            num_records += 1
        file.flush()
        os.fsync(file.fileno())  # a power cut after the file is renamed must not find it short
    return num_records


def iterate_records(path: str | os.PathLike[str]) -> Iterator[memoryview]:
    """Yields each record of a file as a view that is valid until the next one is asked for.

    The file is mapped, so bytes that nobody looks at are not read. Checksums of the data are not
    verified (TensorFlow does that when it reads); those of the lengths are.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: the file is truncated or not a TFRecord file; file, record and byte are named.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_file(path, most=None))
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        opened.callback(_close, mapped)
        position = index = 0
        while position < size:
            header = mapped[position : position + _HEADER_BYTES]
            if len(header) < _HEADER_BYTES:
                raise _broken(path, index, position, "ends inside a record header")
            length, crc = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != crc:
                if mapped[:2] == _GZIP:
                    raise BadFileError(
                        f"{os.fspath(path)}: compressed with gzip; records are read uncompressed: "
                        "unpack it, for instance with gunzip"
                    )
                raise _broken(path, index, position, "has a record header with a wrong checksum")
            start = position + _HEADER_BYTES
            position = start + length + _FOOTER_BYTES
            if position > size:
                raise _broken(path, index, start, f"lacks {position - size} bytes of a record")
            with memoryview(mapped) as view, view[start : start + length] as record:
                yield record
            index += 1


def _close(mapped: mmap.mmap) -> None:
    """Closes a mapped file; if an error still holds a view of it, it closes with that."""
    with contextlib.suppress(BufferError):
        mapped.close()


def count_records(path: str | os.PathLike[str]) -> int:
    """Returns the number of records of a file, reading their headers only."""
    return sum(1 for _ in iterate_records(path))


def record_files(file_pattern: str) -> list[str]:
    """Returns the record files that a pattern means, sorted.

    Args:
      file_pattern: a glob, or several separated by commas; see `patterns`. Matches that are no
        records (data cards and other .json, hidden and temporary files) are left out.

    Raises:
      FileNotFoundError: nothing matches; the pattern is named.
      ValueError: a conversion to this place was interrupted while its shards were renamed.
    """
    paths: set[str] = set()
    for pattern in split_patterns(file_pattern):
        paths |= {p for p in match(pattern) if os.path.isfile(p) and _is_record_name(p)}
    if not paths:
        raise FileNotFoundError(
            f"no record file matches {file_pattern!r} (looked from {os.getcwd()}): check the "
            "folder and quote the pattern so that the shell does not expand it"
        )
    for prefix in {shard_prefix(path) for path in paths}:
        if is_half_published(prefix):
            raise ValueError(
                f"the record set {prefix}-* is incomplete: its conversion was interrupted "
                f"({staging_folder(prefix)} is left over). Run the conversion again; it cleans up"
            )
    return sorted(paths)


def shard_prefix(path: str | os.PathLike[str]) -> str:
    """Returns `dir/train` for `dir/train-00003-of-00032.tfrecord`, else the path itself."""
    match = _SHARD_NAME.match(os.fspath(path))
    return match["prefix"] if match else os.fspath(path)


def shard_name(prefix: str, *, index: int, num_shards: int) -> str:
    """Returns the file name of a shard, `train-00003-of-00032.tfrecord`."""
    return f"{prefix}-{index:05d}-of-{num_shards:05d}.tfrecord"


def staging_folder(prefix: str | os.PathLike[str]) -> Path:
    """Returns the hidden folder in which the shards of `dir/train` grow until all are complete."""
    path = Path(prefix)
    return path.parent / f".{path.name}.converting"


def publishing_marker(prefix: str | os.PathLike[str]) -> Path:
    """Returns the file that exists while complete shards of `dir/train` move into place."""
    return staging_folder(prefix) / "publishing"


def is_half_published(prefix: str | os.PathLike[str]) -> bool:
    """Whether a conversion was interrupted while its shards moved into place."""
    has_card = Path(f"{os.fspath(prefix)}-card.json").exists()
    return publishing_marker(prefix).exists() and not has_card


def masked_crc32c(data: bytes) -> int:
    """Returns the masked CRC-32C (Castagnoli) that TFRecord files carry."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of some bytes, computed for many stretches of them side by side.

    The CRC is linear: the checksum of a concatenation is that of the left part pushed through as
    many zero bytes as the right part is long, xor that of the right part. So the data become
    lanes of equal length, all lanes advance together two bytes at a time in NumPy, and
    neighbouring lanes are then folded pairwise.
    """
    if len(data) < 4 * _LANE_BYTES:
        table, crc = _byte_table_list(), 0xFFFFFFFF
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    num_lanes = 1 << (-(-len(data) // _LANE_BYTES) - 1).bit_length()
    padded = np.zeros(num_lanes * _LANE_BYTES, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    # Leading zeros leave a zero state alone; the all-ones initial state is xored into the data.
    padded[start : start + 4] ^= 0xFF
    words = np.ascontiguousarray(padded.view("<u2").reshape(num_lanes, -1).T)
    state = np.zeros(num_lanes, np.uint32)
    table = _word_table()
    for word in words:
        state = table.take((state ^ word).astype(np.uint16)) ^ state >> 16
    level = 0
    while len(state) > 1:
        state = _advance(state[0::2], _shift_tables(level)) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> np.ndarray:
    """Returns the uint32 [256] remainders of single bytes (reflected polynomial 0x82f63b78)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


@functools.cache
def _byte_table_list() -> list[int]:
    return _byte_table().tolist()


@functools.cache
def _word_table() -> np.ndarray:
    """Returns the uint32 [65536] remainders of two bytes, the first in the low half."""
    state = np.arange(65536, dtype=np.uint32)
    for _ in range(2):
        state = _byte_table()[state & 0xFF] ^ state >> 8
    return state


@functools.cache
def _shift_tables(level: int) -> np.ndarray:
    """Returns uint32 [4, 256]: each byte of a state after `_LANE_BYTES * 2**level` zero bytes."""
    state = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
    if level > 0:
        half = _shift_tables(level - 1)
        return _advance(_advance(state, half), half)
    for _ in range(_LANE_BYTES):
        state = _byte_table()[state & 0xFF] ^ state >> 8
    return state


def _advance(state: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Pushes states through as many zero bytes as the tables [4, 256] stand for."""
    parts = (shift[byte][state >> (8 * byte) & 0xFF] for byte in range(4))
    return functools.reduce(np.bitwise_xor, parts)


def _is_record_name(path: str) -> bool:
    name = os.path.basename(path)
    return not (name.startswith(".") or name.endswith((".json", ".tmp", ".partial")))


def _broken(path: str | os.PathLike[str], index: int, position: int, what: str) -> BadFileError:
    return BadFileError(
        f"{os.fspath(path)}: record {index} at byte {position}: the file {what}; it is truncated "
        "or no TFRecord file. Convert or copy it again"
    )
