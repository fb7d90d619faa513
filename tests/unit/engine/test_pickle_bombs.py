"""Pickles and archives that are small and want much: time, memory, or what they do not hold."""

import pickle
import struct
import time
import zipfile

import numpy as np
import pytest

from engine.files.bounded_unpickler import MOST_OPERATIONS, RefusedPickleError
from engine.files.numpy_pickle import read_numpy_pickle
from engine.files.restricted_pickle import read_torch_file

TORCH_STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
)


def nested(make: bytes, levels: int) -> bytes:
    """A container of two times itself, and so on; `make` turns two equal values into one."""
    return b"".join((b"2" + make) for _ in range(levels))


LAUGHS = b"\x80\x02]" + b"q\x00" + nested(b"\x86q\x00", 200)
BOMBS = {
    "billion laughs": LAUGHS + b".",
    "laughs as key": b"\x80\x02}N" + LAUGHS[2:] + b"Ns.",
    "laughs as key in a list": b"\x80\x02}(" + b")" + nested(b"\x86", 200) + b"Nu.",
    "laughs as key of a pair": b"\x80\x02ccollections\nOrderedDict\n](("
    + b")"
    + nested(b"\x86", 200)
    + b"Ntat\x85R.",
    "laughs in a message": b"\x80\x02cnumpy\ndtype\n(" + b")" + nested(b"\x86", 200) + b"tR.",
    "a set": b"\x80\x04\x8f(" + b")" + nested(b"\x86", 200) + b"\x90.",
    "a deep list": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "many operations": b"\x80\x02" + b"]0" * MOST_OPERATIONS + b"].",
    "a stated size of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "a stated size of a buffer": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
    "a stated place": b"\x80\x02]r\xff\xff\xff\x7f0N.",
    "megabytes of digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a dictionary copied often": b"\x80\x02ccollections\nOrderedDict\nq\x00("
    + b"(K\x01K\x02t" * 50_000
    + b"tq\x01"
    + b"h\x00h\x01\x85R" * 2000
    + b".",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("read", [read_numpy_pickle, read_torch_file])
def test_bombs_do_not_go_off(tmp_path, name, read):
    path = tmp_path / "weights"
    data = BOMBS[name]
    if read is read_torch_file:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", data)
    else:
        path.write_bytes(data)
    started = time.process_time()
    try:
        read(path)  # what is a plain container in the end may be read
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
    assert time.process_time() - started < 5


def test_a_zip_that_expands(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        pickled = b"\x80\x02" + TORCH_STORAGE + b"J\x00\x00\x00\x10tQ."
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/data/0", bytes(80 << 20))
    with pytest.raises(ValueError, match=r"more than .* bytes in memory"):
        read_torch_file(path)


def test_many_views_of_one_storage(tmp_path):
    path = tmp_path / "w.pth"
    size = 1 << 20
    storage = TORCH_STORAGE + b"J" + struct.pack("<i", size) + b"tQq\x01"
    one = (
        b"ctorch._utils\n_rebuild_tensor\n(h\x01K\x00J"
        + struct.pack("<i", size)
        + b"\x85K\x01\x85tR"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + storage + b"0(" + one * 1000 + b"l.")
        archive.writestr("w/data/0", np.zeros(size, np.float32).tobytes())
    with pytest.raises(ValueError, match=r"more than .* bytes in memory"):
        read_torch_file(path)


def test_a_container_at_many_places_is_read_once(tmp_path):
    path = tmp_path / "w.pkl"
    shared = [np.arange(3)]
    path.write_bytes(pickle.dumps({"a": shared, "b": shared}))
    content = read_numpy_pickle(path)
    assert content["a"] is content["b"]
    np.testing.assert_array_equal(content["a"][0], [0, 1, 2])


def test_keys_are_plain(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({(1, 2): 3}))
    with pytest.raises(RefusedPickleError, match="a dictionary with a tuple as key"):
        read_numpy_pickle(path)
