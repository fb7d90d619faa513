"""Pickles of arrays: as Python 2 and as Python 3 write them, damaged ones, and attacks."""

import os
import pickle

import numpy as np
import pytest
from samples import Call
from weight_pickles import array, dictionary, text, whole

from engine.files import weight_files
from engine.files.numpy_pickle import read_numpy_pickle
from engine.files.restricted_pickle import RefusedPickleError
from engine.files.weight_files import read_weight_file


def pickled(**items):
    return whole(items)


def write(tmp_path, data):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(data)
    return path


VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 200.5


def test_python_2_file_with_blobs(tmp_path):
    blobs = dictionary({"conv1_w": array(VALUES), "count": array(np.int64(7))})
    path = write(tmp_path, pickled(blobs=blobs, cfg=text("MODEL: é")))
    content = read_weight_file(path)
    assert content.kind == weight_files.NUMPY_PICKLE
    assert set(content.arrays) == {"conv1_w", "count"}
    np.testing.assert_array_equal(content.arrays["conv1_w"], VALUES)
    assert content.arrays["conv1_w"].dtype == np.float32
    assert content.arrays["count"] == 7 and content.arrays["count"].shape == ()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_python_3_file(tmp_path, protocol):
    items = {"conv1_w": VALUES, "f": np.asfortranarray(VALUES[0]), "n": np.float32(2.5), "x": None}
    path = write(tmp_path, pickle.dumps(items, protocol=protocol))
    content = read_weight_file(path)
    assert set(content.arrays) == {"conv1_w", "f"}
    np.testing.assert_array_equal(content.arrays["f"], VALUES[0])
    assert read_numpy_pickle(path)["n"] == 2.5


def test_big_endian_numbers(tmp_path):
    data = VALUES.astype(">f4").tobytes()
    path = write(tmp_path, pickled(x=array(VALUES, data=data, order=b">")))
    np.testing.assert_array_equal(read_weight_file(path).arrays["x"], VALUES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (array(VALUES, data=b"1234"), "24 elements from other data"),
        (array(VALUES, shape=(2**30, 2**30)), "elements from other data"),
        (array(VALUES, shape=(-2, -12)), "shape"),
        (array(VALUES, dtype="O8"), "array type 'O8'"),
        (array(VALUES, dtype="f4, os.system"), "array type"),
        (array(VALUES, structured=b"}NN"), "structured type"),
        (array(VALUES, order=b"!"), "state"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, wrong, message):
    with pytest.raises(RefusedPickleError, match=rf"R-50\.pkl: refused.*{message}"):
        read_weight_file(write(tmp_path, pickled(x=wrong)))


@pytest.mark.parametrize("kind", ["system", "eval", "load", "getattr", "object array"])
def test_calls_are_refused_and_not_made(tmp_path, kind):
    victim = tmp_path / "touched"
    attack = {
        "system": Call(os.system, f"touch {victim}"),
        "eval": Call(eval, f"open({str(victim)!r}, 'w')"),
        "load": Call(np.load, str(victim)),
        "getattr": Call(getattr, "text", "upper"),
        "object array": np.array([Call(os.system, f"touch {victim}")], dtype=object),
    }[kind]
    path = write(tmp_path, pickle.dumps({"x": VALUES, "y": attack}, protocol=2))
    with pytest.raises(RefusedPickleError, match=r"refused, because it asks for"):
        read_weight_file(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02",
        b"\x80\x02cnumpy\nndarray\n)R.",  # the array type is not callable
        b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",  # nor can it be changed
        b"\x80\x02ccopy_reg\n_reconstructor\n.",
        b"\x80\x02X\x01\x00\x00\x00xQ.",  # a persistent object
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
        pickled(x=array(VALUES))[:-60],
    ],
)
def test_odd_pickles_end_in_a_value_error(tmp_path, data):
    with pytest.raises(ValueError, match=r"R-50\.pkl"):
        read_weight_file(write(tmp_path, data))


def test_content_is_given_once(tmp_path):
    twice = array(VALUES) + array(VALUES)[array(VALUES).index(b"R(") + 1 :]
    with pytest.raises(RefusedPickleError, match="change of an array"):
        read_weight_file(write(tmp_path, pickled(x=twice)))


def test_other_content(tmp_path):
    with pytest.raises(ValueError, match="expected a dict of arrays, got a list"):
        read_weight_file(write(tmp_path, pickle.dumps([VALUES], protocol=2)))
    with pytest.raises(ValueError, match="without a single array"):
        read_weight_file(write(tmp_path, pickle.dumps({"x": 1}, protocol=2)))
