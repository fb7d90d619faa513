"""Weight files of every kind, made here; and pickles that try to do more than hold weights."""

import argparse
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from samples import Call
from weight_pickles import Tensor, write_torch_legacy, write_torch_zip
from weight_samples import save_tensors, values_of

from engine.files import checkpoint, weight_files
from engine.files.restricted_pickle import RefusedPickleError, read_torch_file
from engine.files.weight_files import read_weight_file


def assert_arrays(content, expected):
    assert set(content.arrays) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(content.arrays[name], value)


class TestTensorFlow:
    def test_name_based_checkpoint(self, tmp_path):
        arrays = {"model/a/kernel": np.arange(6.0).reshape(2, 3), "state/step": np.int64(7)}
        prefix = save_tensors(tmp_path / "ckpt-1", {**arrays, "state/text": "not an array"})
        for path in (prefix, prefix + ".index", prefix + ".data-00000-of-00001"):
            content = read_weight_file(path)
            assert content.kind == weight_files.TF_NAME_BASED
            assert_arrays(content, arrays)

    def test_a_pointer_to_the_folder_of_another_machine(self, tmp_path):
        """TensorFlow writes whole paths; the checkpoint itself was copied along."""
        save_tensors(tmp_path / "model.ckpt-5", {"w": np.ones(2)})
        for named in ("/old/runs/d0/model.ckpt-5", r"C:\\runs\\d0\\model.ckpt-5"):
            (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
            assert_arrays(read_weight_file(tmp_path), {"w": np.ones(2)})
        (tmp_path / "model.ckpt-5.index").unlink()
        with pytest.raises(
            FileNotFoundError, match="checkpoint names it, and it is not in that fo"
        ):
            read_weight_file(tmp_path)

    def make_model(self):
        layers = [tf.keras.layers.Dense(2, name="first"), tf.keras.layers.Dense(1, name="second")]
        model = tf.keras.Sequential([tf.keras.Input([3]), *layers])
        for index, variable in enumerate(model.variables):
            variable.assign(tf.fill(variable.shape, float(index)))
        return model

    def test_object_based_checkpoint_with_slots(self, tmp_path):
        model = self.make_model()
        optimizer = tf.keras.optimizers.legacy.SGD(momentum=0.9)
        slot = optimizer.add_slot(model.variables[0], "average")
        slot.assign(tf.fill(slot.shape, 9.0))
        prefix = tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "ckpt"))
        content = read_weight_file(prefix)
        assert content.kind == weight_files.TF_OBJECT_BASED
        np.testing.assert_array_equal(content.arrays["second/kernel"], np.full([2, 1], 2.0))
        np.testing.assert_array_equal(content.arrays["first/kernel/average"], np.full([3, 2], 9.0))

    def test_folder_means_the_latest_checkpoint(self, tmp_path):
        variable = tf.Variable(1.0, name="x")
        manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(x=variable), str(tmp_path), max_to_keep=3
        )
        manager.save()
        variable.assign(2.0)
        manager.save()
        assert read_weight_file(tmp_path).arrays["x"] == 2.0

    def test_saved_model(self, tmp_path):
        module = tf.Module()
        module.kernel = tf.Variable([1.0, 2.0], name="stem_conv2d/kernel")
        tf.saved_model.save(module, str(tmp_path / "export"))
        content = read_weight_file(tmp_path / "export")
        assert content.kind == weight_files.SAVED_MODEL
        np.testing.assert_array_equal(content.arrays["stem_conv2d/kernel"], [1.0, 2.0])

    def test_equal_names_do_not_hide_one_another(self, tmp_path):
        first, second = tf.Variable(1.0, name="x"), tf.Variable(2.0, name="x")
        prefix = tf.train.Checkpoint(a=first, b=second).write(str(tmp_path / "ckpt"))
        assert sorted(float(v) for v in read_weight_file(prefix).arrays.values())[-2:] == [1.0, 2.0]

    def test_damaged_checkpoint(self, tmp_path):
        prefix = tf.train.Checkpoint(x=tf.Variable(tf.ones([1000]))).write(str(tmp_path / "ckpt"))
        data = tmp_path / "ckpt.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(ValueError, match="damaged TensorFlow checkpoint"):
            read_weight_file(prefix)

    def test_checkpoint_that_is_not_what_was_written(self, tmp_path):
        prefix = checkpoint.save(tmp_path / "ckpt", {"x": tf.ones([3])}, {"step": 1, "config": {}})
        data = tmp_path / "ckpt.data-00000-of-00001"
        data.write_bytes(bytes(len(data.read_bytes())))
        with pytest.raises(
            ValueError, match=r"00001 is damaged: its checksum .*Copy the checkpoint"
        ):
            read_weight_file(prefix)


class TestKerasH5:
    def test_weights(self, tmp_path):
        model = TestTensorFlow().make_model()
        path = tmp_path / "weights.h5"
        model.save_weights(str(path))
        content = read_weight_file(path)
        assert content.kind == weight_files.KERAS_H5
        assert_arrays(content, values_of(model))

    def test_whole_model_and_split_attributes(self, tmp_path):
        path = tmp_path / "model.h5"
        with h5py.File(path, "w") as file:
            root = file.create_group("model_weights")
            root.attrs["layer_names0"] = [b"a"]
            root.attrs["layer_names1"] = ["b"]
            for layer in ("a", "b"):
                root.create_group(layer).attrs["weight_names"] = [f"{layer}/kernel:0"]
                root[layer][f"{layer}/kernel:0"] = np.ones([2])
        assert_arrays(read_weight_file(path), {"a/kernel": [1, 1], "b/kernel": [1, 1]})

    def test_other_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["values"] = [1.0]
        with pytest.raises(ValueError, match="layer_names"):
            read_weight_file(tmp_path / "x.h5")


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """Reading must not need it."""
    monkeypatch.setitem(sys.modules, "torch", None)


WRITERS = pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])


class TestTorch:
    @WRITERS
    def test_state_dict(self, tmp_path, write):
        arrays = {
            "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "bn.count": np.int64(5).reshape(()),
            "half": np.array([0.5, 2.0], np.float16),
        }
        # Of DataParallel, torch.compile in Lightning; a name of our own.
        prefixes = ("module.", "model._orig_mod.", "")
        tensors = {p + name: Tensor(a) for p, (name, a) in zip(prefixes, arrays.items())}
        write(tmp_path / "w.pth", {"epoch": 3, "state_dict": tensors})
        content = read_weight_file(tmp_path / "w.pth")
        assert content.kind == weight_files.TORCH
        assert_arrays(content, arrays)
        assert content.arrays["half"].dtype == np.float16

    @WRITERS
    @pytest.mark.parametrize("keys", ["state_dict state_dict_ema", "model model_ema"])
    def test_a_checkpoint_of_training(self, tmp_path, write, keys):
        """As timm and torchvision save it: with the flags, and the optimizer's state."""
        plain, average = keys.split()
        values = {name: {"w": Tensor(np.float32([n]))} for n, name in enumerate((plain, average))}
        flags = argparse.Namespace(lr=0.1, opt="sgd", mean=(0.5, 0.5))
        slots = {"state": {0: {"momentum_buffer": Tensor(np.zeros(1, np.float32))}}}
        write(tmp_path / "w.pth.tar", {"args": flags, "optimizer": slots, "epoch": 3, **values})
        content = read_weight_file(tmp_path / "w.pth.tar")
        assert_arrays(content, {"w": [1.0]})
        assert content.note == f"of the checkpoint the averaged weights are taken, its {average!r}"

    @WRITERS
    def test_views_of_a_storage(self, tmp_path, write):
        base = np.arange(12, dtype=np.float32)
        transposed = Tensor(base, shape=(3, 2), strides=(1, 3), offset=4)
        write(
            tmp_path / "w.pth",
            {"x": transposed, "empty": Tensor(base, shape=(0, 2), strides=(2, 1))},
        )
        content = read_weight_file(tmp_path / "w.pth")
        np.testing.assert_array_equal(content.arrays["x"], base[4:10].reshape(2, 3).T)
        assert content.arrays["empty"].shape == (0, 2)

    def test_bfloat16_becomes_float32(self, tmp_path):
        words = (np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16)
        write_torch_zip(tmp_path / "w.pth", {"x": Tensor(words)})
        np.testing.assert_array_equal(
            read_weight_file(tmp_path / "w.pth").arrays["x"], np.array([1.0, -2.5], np.float32)
        )

    @WRITERS
    @pytest.mark.parametrize(
        ("shape", "strides", "offset"),
        [((4,), (4,), 0), ((12,), (1,), 1), ((2,), (-1,), 3), ((10**9,), (0,), 0)],
    )
    def test_tensors_stay_within_their_storage(self, tmp_path, write, shape, strides, offset):
        tensor = Tensor(np.zeros(12, np.float32), shape=shape, strides=strides, offset=offset)
        write(tmp_path / "w.pth", {"x": tensor})
        with pytest.raises(RefusedPickleError, match=r"w\.pth: refused"):
            read_torch_file(tmp_path / "w.pth")

    def test_truncated_file(self, tmp_path):
        path = tmp_path / "w.pth"
        write_torch_legacy(path, {"x": Tensor(np.zeros(100, np.float32))})
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match=r"w\.pth.*truncated"):
            read_weight_file(path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_weight_file(path)


class TestMaliciousPickles:
    @WRITERS
    @pytest.mark.parametrize("kind", ["system", "eval", "import", "numpy", "partial", "getattr"])
    def test_calls_are_refused_and_not_made(self, tmp_path, write, kind):
        import functools

        victim = tmp_path / "touched"
        command = f"touch {victim}"
        code = f"__import__('os').system({command!r})"
        attack = {
            "system": Call(os.system, command),
            "eval": Call(eval, code),
            "import": Call(__import__, "os"),
            "numpy": Call(np.load, "x"),
            "partial": Call(functools.partial, os.system, command),
            "getattr": Call(getattr, "text", "upper"),
        }[kind]
        write(tmp_path / "w.pth", {"x": Tensor(np.zeros(1, np.float32)), "y": attack})
        with pytest.raises(RefusedPickleError, match="refused, because it asks for the name"):
            read_weight_file(tmp_path / "w.pth")
        assert not victim.exists()

    def test_the_attack_would_work_on_an_ordinary_reader(self, tmp_path):
        victim = tmp_path / "touched"
        pickle.loads(pickle.dumps(Call(os.system, f"touch {victim}")))
        assert victim.exists()

    @pytest.mark.parametrize(
        "pickled",
        [
            b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x01\x00\x00\x00Osb.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        ],
        ids=["storage type", "rebuild function"],
    )
    def test_stand_ins_cannot_be_changed(self, tmp_path, pickled):
        write_torch_zip(tmp_path / "w.pth", {}, data=pickled)
        with pytest.raises(RefusedPickleError, match="a change of"):
            read_torch_file(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        "pickled",
        [
            b"\x80\x02ccollections\nOrderedDict.fromkeys.__globals__\n.",
            b"\x80\x02\x82\x01.",  # copyreg extension 1
            b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00passq\x00\x85R.",
            b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.",
            b"\x80\x02X\x01\x00\x00\x00xQ.",  # persistent id that is no storage
            b"\x80\x02ctorch\nFloatStorage\n)R.",  # a storage type is not callable
            b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",  # a class is not changed
            b"\x80\x02",
            b"",
        ],
    )
    def test_odd_pickles_end_in_a_value_error(self, tmp_path, pickled):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("w/data.pkl", pickled)
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_torch_file(tmp_path / "w.pth")


def zip_of(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, b"")
    return stream.getvalue()


def tar_of(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


class TestWrongFiles:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"ckpt-5\.index"):
            read_weight_file(tmp_path / "ckpt-5")

    def test_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"saved_model\.pb"):
            read_weight_file(tmp_path)

    @pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
    def test_pipe_in_place_of_a_file_of_a_checkpoint(self, tmp_path, suffix):
        prefix = tf.train.Checkpoint(x=tf.Variable([1.0])).write(str(tmp_path / "ckpt"))
        (tmp_path / f"ckpt{suffix}").unlink()
        os.mkfifo(tmp_path / f"ckpt{suffix}")
        with pytest.raises((OSError, ValueError), match=rf"{prefix}\{suffix} is missing"):
            read_weight_file(prefix)

    @pytest.mark.parametrize("content", [b"\xff\x00", None])
    def test_pointer_that_is_none(self, tmp_path, content):
        if content is None:
            os.mkfifo(tmp_path / "checkpoint")
        else:
            (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises((OSError, ValueError), match=f"{tmp_path}.*ame .*checkpoint"):
            read_weight_file(tmp_path)

    def test_byte_strings_are_no_weights(self, tmp_path):
        arrays = {"w": np.ones(2), "s": np.array([b"a", b"bc"])}
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays))
        assert list(read_weight_file(tmp_path / "w.pkl").arrays) == ["w"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x", b"hello weights", "not a weight file"),
            ("x.h5", b"", r"x\.h5: the file is empty"),
            ("x.keras", zip_of("model.weights.h5"), "save_weights"),
            ("x.npz", zip_of("w.npy"), r"\.npz is not read; save .* safetensors"),
            ("x.zip", zip_of("readme"), r"data\.pkl"),
            ("x.pth", zip_of("archive/data.pkl")[:40], r"PyTorch file that was cut short: copy"),
            ("x.pth", b"<!DOCTYPE html><html>", "A web page: the download did not"),
            ("x.pth", b"version https://git-lfs.github.com/spec/v1", "Git LFS: .* git lfs pull"),
            ("x.tar.gz", tar_of("model.ckpt.index"), "An archive: unpack it"),
        ],
    )
    def test_other_files(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_weight_file(tmp_path / name)

    @WRITERS
    def test_no_arrays(self, tmp_path, write):
        write(tmp_path / "w.pth", {"epoch": 1})
        with pytest.raises(ValueError, match="without a single array"):
            read_weight_file(tmp_path / "w.pth")

    def test_a_list_is_no_state_dict(self, tmp_path):
        write_torch_zip(tmp_path / "w.pth", [1, 2])
        with pytest.raises(ValueError, match="expected a PyTorch state dict, got a list"):
            read_weight_file(tmp_path / "w.pth")


class TestSafetensors:
    @staticmethod
    def write(path, table, data=b""):
        head = json.dumps(table).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + data)
        return path

    def test_types_and_shapes(self, tmp_path):
        data = struct.pack("<2f", 1.5, -2.0) + struct.pack("<H", 0x3FC0) + struct.pack("<q", 7)
        table = {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [1], "data_offsets": [8, 10]},
            "steps": {"dtype": "I64", "shape": [], "data_offsets": [10, 18]},
        }
        content = read_weight_file(self.write(tmp_path / "m.safetensors", table, data))
        assert content.kind == weight_files.SAFETENSORS
        assert_arrays(content, {"a.weight": [[1.5], [-2.0]], "b": [1.5], "steps": 7})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data_offsets": [0, 16]}, "0..16 of 8 bytes"),
            ({"shape": [3]}, "0..8 of 8 bytes"),
            ({"shape": [-2]}, "shape .-2."),
            ({"dtype": "F8_E4M3"}, "not read"),
            ({"dtype": None}, "not read"),
        ],
    )
    def test_tensors_stay_within_the_file(self, tmp_path, change, message):
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change
        path = self.write(tmp_path / "m.safetensors", {"a": entry}, bytes(8))
        with pytest.raises(ValueError, match=message):
            read_weight_file(path)

    def test_a_truncated_table(self, tmp_path):
        path = tmp_path / "m.safetensors"
        path.write_bytes((1000).to_bytes(8, "little") + b'{"a": ')
        with pytest.raises(ValueError, match="table of 1,000 bytes"):
            read_weight_file(path)
