"""Files on which the HDF5 library never returns, or crashes, end in an error that names them."""

from __future__ import annotations

import base64
import zlib

import h5py
import numpy as np
import pytest

from outside_data import keras_hdf5
from outside_data.files import BadFileError

# As h5py 3.16 with HDF5 2.0 writes two arrays; kept, since what follows counts its bytes.
SEED = zlib.decompress(
    base64.b85decode(
        "c-rll&rZTX5XN^~&;}uv#012DeFHrjFJJ`aV8o~gZ;GZ7B4PqY@g&Fk1|B`~7#w*F-"
        "vrz43~W~eB5DlG55lmso83+Kn{Dzv=d-)9NGifS41<N3$z-}f(h9b*{~RKR=s;{~nAiQjB;-w)-"
        "_k|90r``oT+SQaRls#lXGAm@F^%MN+lRgmdO8wxwBWeQ+v>fn$NZS<#$hE@*HPFBcmFN8>aG+Y?b=zjcw^W7{2~{"
        "7G<$my%H^B~>IGv+5;q@EH<)m~SU1)Z)eY6n$GTxNzgsuQ2ZbzmXG7h+=s~@=q5T%7Ga3Z<KmB{4cOOBbl^SpUy`"
        "927mxK|xk0f2-"
        "H9IHe*DuP&`qqZuhT~*0x&PX(RqYCl03FQJnGys+5ClOG1VIqQUxR*v>c>P`3H*SV?{7ZX<*U+N-{2hPZ=zqI$-"
        "V%XK|1;fMt{sOAG5K-q*aJ%L-jE&h#kfMQY|O6sL<Ei9C2OM$9$b-P#1!q^5G^O&cfoEacn08_XYZm7<ISb>xo-y"
        "kh56AV2LN_54$Jg^=q2O#l0Zr(>Y4RRCeI}tLGtfrS*K>_UhpAsK3%OX=xN)sqdlh>&mn~e*-"
        "xa@D!VA_b20iGva?U{SG>_hiU"
    )
)
# (position, byte): what is wrong with the file then.
LOOPS = [(2072, 255)]
CRASHES = [(857, 255), (6201, 255)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the seed with one byte changed; returns the path. Reading may take a second."""
    monkeypatch.setenv(keras_hdf5.VARIABLE, "1")

    def write(position, byte):
        path = tmp_path / "w.h5"
        path.write_bytes(SEED[:position] + bytes([byte]) + SEED[position + 1 :])
        return path

    return write


def test_the_seed_is_read(write):
    arrays = keras_hdf5.read_keras_hdf5(write(0, SEED[0]))
    assert list(arrays) == ["conv/kernel", "conv/bias"]
    assert arrays["conv/kernel"].tolist() == [0, 1, 2, 3] and arrays["conv/bias"].sum() == 2


@pytest.mark.parametrize("change", [*LOOPS, *CRASHES])
def test_a_library_that_does_not_come_back(write, change):
    path = write(*change)
    with pytest.raises(BadFileError, match="/w.h5: .*[Cc]opy or download it again") as raised:
        keras_hdf5.read_keras_hdf5(path)
    what = r"not read it after 1 s of computing \(RINGDET_HDF5_SECONDS\)"
    raised.match(what if change in LOOPS else r"crashed on it \(SIG")


def test_arrays_of_every_kind_come_back_as_they_are(tmp_path):
    stored = {
        "half": np.ones((2, 0, 3), np.float16),
        "big": np.arange(6, dtype=">f4").reshape(2, 3).T,
        "step": np.int64(7),
        "flag": np.array([True, False]),
    }
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
        file.create_group("a").attrs["weight_names"] = [*stored, "text"]
        file["a"]["text"] = ["no number"]
        for name, values in stored.items():
            file["a"][name] = values
    arrays = keras_hdf5.read_keras_hdf5(tmp_path / "w.h5")
    assert list(arrays) == list(stored)
    for name, values in stored.items():
        assert arrays[name].dtype == values.dtype and arrays[name].shape == values.shape
        np.testing.assert_array_equal(arrays[name], values)


def test_a_chunk_that_unpacks_to_gigabytes_is_stopped(tmp_path):
    num_blocks, block_bytes = 48, 1 << 24
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = packer.compress(bytes(block_bytes)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = ((num_blocks * block_bytes) % 65521 << 16 | 1).to_bytes(4, "big")  # of zeros
    chunk = b"\x78\x01" + num_blocks * block + b"\x03\x00" + checksum
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
        file.create_group("a").attrs["weight_names"] = ["b"]
        values = file["a"].create_dataset(
            "b", (4,), "f4", chunks=(1 << 29,), maxshape=(None,), compression="gzip"
        )
        values.id.write_direct_chunk((0,), chunk)
    with pytest.raises(BadFileError, match="w.h5: expected weights as Keras saves them"):
        keras_hdf5.read_keras_hdf5(tmp_path / "w.h5")


@pytest.mark.parametrize("text", ["0", "soon", "-1"])
def test_a_limit_that_is_none(write, monkeypatch, text):
    monkeypatch.setenv(keras_hdf5.VARIABLE, text)
    with pytest.raises(ValueError, match=f"RINGDET_HDF5_SECONDS={text}: expected a number"):
        keras_hdf5.read_keras_hdf5(write(0, SEED[0]))
