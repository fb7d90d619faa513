"""Checkpoints: whole or not at all, found in order, refused with a reason."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.files import checkpoint
from engine.files.description import read_description, read_metadata
from engine.files.weight_files import read_weight_file
from outside_data.files import BadFileError

TENSORS = {"model/a": tf.constant([1.0, 2.0]), "state/step": tf.constant(7, tf.int64)}
META = {
    **{"step": 7, "epoch": 1, "seed": 3, "num_ranks": 1, "global_batch_size": 4},
    **{"task": {}, "config": {"train": {"batch_size": 4}}},
}


def files(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def values(prefix) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def description(prefix) -> dict:
    """What was given to be stored; without the checksums."""
    found = read_metadata(prefix)
    return {name: found[name] for name in found.keys() - {"files", "description_sha256"}}


def save(prefix, number: float = 1.0) -> str:
    return checkpoint.save(prefix, {"model/a": tf.constant([number])}, {"number": number})


class TestSave:
    def test_round_trip(self, tmp_path):
        prefix = checkpoint.save(tmp_path / "new" / "ckpt-00000007", TENSORS, META)
        assert files(tmp_path / "new") == {
            "ckpt-00000007.data-00000-of-00001",
            "ckpt-00000007.index",
            "ckpt-00000007.json",
        }
        loaded = checkpoint.load(prefix, TENSORS)
        for name, value in TENSORS.items():
            assert loaded[name].tobytes() == value.numpy().tobytes()
            assert loaded[name].dtype == value.dtype.as_numpy_dtype
        assert description(prefix) == META

    def test_disk_full_leaves_the_old_one_and_nothing_else(self, tmp_path, monkeypatch):
        save(tmp_path / "ckpt-best", 1.0)
        before = files(tmp_path)
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"ckpt-best: 0 MiB free, 1 MiB needed; free space"):
            save(tmp_path / "ckpt-best", 2.0)
        assert files(tmp_path) == before
        np.testing.assert_array_equal(values(tmp_path / "ckpt-best")["model/a"], [1.0])

    def test_a_failure_while_writing_leaves_the_old_one(self, tmp_path, monkeypatch):
        save(tmp_path / "ckpt-best", 1.0)
        before = files(tmp_path)

        def half(prefix, **kwargs):
            with open(f"{prefix}.data-00000-of-00001", "wb") as file:
                file.write(b"half")
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        monkeypatch.setattr(tf.raw_ops, "SaveV2", half)
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path / "ckpt-best", 2.0)
        assert files(tmp_path) == before
        np.testing.assert_array_equal(values(tmp_path / "ckpt-best")["model/a"], [1.0])

    @pytest.mark.parametrize("last", range(1, 7))
    def test_a_failing_rename_leaves_the_old_one(self, tmp_path, monkeypatch, last):
        save(tmp_path / "ckpt-best", 1.0)
        before, replace, calls = files(tmp_path), os.replace, []

        def failing(source, target):
            calls.append(source)
            if len(calls) == last:
                raise OSError("renaming failed")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="renaming failed"):
            save(tmp_path / "ckpt-best", 2.0)
        monkeypatch.undo()
        checkpoint.remove_unfinished(tmp_path)
        assert files(tmp_path) == before
        np.testing.assert_array_equal(values(tmp_path / "ckpt-best")["model/a"], [1.0])
        assert description(tmp_path / "ckpt-best") == {"number": 1.0}

    @pytest.mark.parametrize("last", range(1, 10))
    def test_a_kill_at_any_rename_is_made_good_at_the_next_start(self, tmp_path, monkeypatch, last):
        save(tmp_path / "ckpt-best", 1.0)
        before, done = files(tmp_path), []

        class Killed(BaseException):
            pass

        def dying(action):
            def act(*arguments):
                done.append(action)
                if len(done) >= last:
                    raise Killed
                return action(*arguments)

            return act

        monkeypatch.setattr(os, "replace", dying(os.replace))
        monkeypatch.setattr("pathlib.Path.unlink", dying(type(tmp_path).unlink))
        with pytest.raises(Killed):
            save(tmp_path / "ckpt-best", 2.0)
        monkeypatch.undo()
        checkpoint.remove_unfinished(tmp_path)
        assert files(tmp_path) == before
        (number,) = values(tmp_path / "ckpt-best")["model/a"].tolist()
        # Renames 1-3 take the old files away, 4-6 bring the new ones, 7-9 delete the old ones.
        assert number == (1.0 if last <= 6 else 2.0)
        assert description(tmp_path / "ckpt-best") == {"number": number}

    def test_replacing_works(self, tmp_path):
        save(tmp_path / "ckpt-best", 1.0)
        before = files(tmp_path)
        save(tmp_path / "ckpt-best", 2.0)
        assert files(tmp_path) == before
        np.testing.assert_array_equal(values(tmp_path / "ckpt-best")["model/a"], [2.0])

    def test_unwritable_folder(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OSError, match="cannot write checkpoint .*choose another --model_dir"):
            save(tmp_path / "file" / "ckpt-1")


def test_remains_of_an_interrupted_save_are_removed(tmp_path):
    save(tmp_path / "ckpt-00000001")
    before = files(tmp_path)
    (tmp_path / "ema_weights").mkdir()
    for name in (".writing-12-ckpt-2.index", "ema_weights/.writing-12-emackpt-01.json"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".last_checkpoint.12.part").write_text("half")
    (tmp_path / ".writing-emackpt-final" / "variables").mkdir(parents=True)
    checkpoint.remove_unfinished(tmp_path)
    assert files(tmp_path) == before
    assert not (tmp_path / ".writing-emackpt-final").exists()


class TestFind:
    def test_numbered_goes_by_number_and_skips_what_is_incomplete(self, tmp_path):
        for step in (10, 9, 100, "final", "copied-7000"):
            save(tmp_path / f"ckpt-{step}")
        (tmp_path / "ckpt-999.index").write_text("no data")
        found = [p.rsplit("/", 1)[1] for p in checkpoint.numbered(tmp_path, "ckpt-")]
        assert found == ["ckpt-9", "ckpt-10", "ckpt-100"]

    def test_order_in_a_run_folder(self, tmp_path):
        order = [
            "ckpt-best",
            "ema_weights/emackpt-best",
            "ckpt-final",
            "ckpt-00000100",
            "emackpt-02",
            "ema_weights/emackpt-01",
            "ema_weights/emackpt-10",
        ]
        for name in order:  # each is preferred to those before it
            save(tmp_path / name)
            assert checkpoint.find(tmp_path, which="last") == str(tmp_path / name)
        assert checkpoint.find(tmp_path) == str(tmp_path / "ema_weights/emackpt-best")

    def test_a_prefix_and_its_files(self, tmp_path):
        prefix = save(tmp_path / "ckpt-1")
        for ending in ("", ".index", ".json", ".data-00000-of-00001"):
            assert checkpoint.find(f"{prefix}{ending}") == prefix
        other = tmp_path / "config.json"
        other.touch()
        assert checkpoint.find(other) == str(other)

    def test_what_tensorflow_points_to(self, tmp_path):
        prefix = save(tmp_path / "theirs")
        checkpoint.write_pointer(tmp_path, prefix)
        assert checkpoint.find(tmp_path) == prefix
        assert tf.train.latest_checkpoint(str(tmp_path)) == prefix

    def test_last_checkpoint_names_the_newest_and_moves_with_its_folder(self, tmp_path):
        folder = tmp_path / "run"
        for step in (1, 2):
            checkpoint.write_pointer(folder, save(folder / f"ckpt-{step}"))
        assert (folder / "last_checkpoint").read_text() == "ckpt-2\n"
        moved = folder.rename(tmp_path / "moved")
        assert checkpoint.find(moved / "last_checkpoint") == str(moved / "ckpt-2")

    def test_the_first_of_several_places(self, tmp_path):
        prefix = save(tmp_path / "run" / "ckpt-1")
        weights = tmp_path / "model.pkl"
        weights.touch()
        run, none = str(tmp_path / "run"), str(tmp_path / "none")
        assert checkpoint.find_any([run, str(weights)], which="best") == prefix
        assert checkpoint.find(weights) == str(weights)
        assert checkpoint.find_any([none, str(weights)], which="best") == str(weights)
        with pytest.raises(FileNotFoundError, match="none.*nowhere"):
            checkpoint.find_any([none, str(tmp_path / "nowhere")], which="best")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no complete checkpoint in .*emackpt-N"):
            checkpoint.find(tmp_path)
        with pytest.raises(FileNotFoundError, match="expected .*none.index"):
            checkpoint.find(tmp_path / "none")
        assert checkpoint.recover(tmp_path) == (None, [])
        (tmp_path / "saved_model.pb").touch()
        with pytest.raises(FileNotFoundError, match="it is an exported model.*--saved_model_dir"):
            checkpoint.find(tmp_path)

    def test_prune_keeps_the_last(self, tmp_path):
        for step in range(1, 6):
            save(tmp_path / f"ckpt-{step}")
        save(tmp_path / "ckpt-best")
        checkpoint.prune(checkpoint.numbered(tmp_path, "ckpt-"), 0)
        assert len(checkpoint.numbered(tmp_path, "ckpt-")) == 5
        checkpoint.prune(checkpoint.numbered(tmp_path, "ckpt-"), 2)
        assert {name.split(".")[0] for name in files(tmp_path)} == {"ckpt-4", "ckpt-5", "ckpt-best"}


class TestLoad:
    def test_names_and_shapes_must_fit(self, tmp_path):
        prefix = checkpoint.save(tmp_path / "ckpt-1", TENSORS, META)
        expected = {"model/a": tf.zeros([3]), "model/b": tf.zeros([1])}
        with pytest.raises(ConfigError) as error:
            checkpoint.load(prefix, expected)
        message = str(error.value)
        assert "1 tensors missing ['model/b']" in message
        assert "1 unexpected ['state/step']" in message
        assert "model/a: [2] in the file, [3] in the run" in message
        assert "--pretrained_ckpt" in message

    @pytest.mark.parametrize("suffix", [".data-00000-of-00001", ".index"])
    def test_damaged_files(self, tmp_path, suffix):
        tensors = {"model/a": tf.random.normal([1000])}
        prefix = checkpoint.save(tmp_path / "ckpt-1", tensors, META)
        path = f"{prefix}{suffix}"
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        with pytest.raises(BadFileError, match=r"ckpt-1 is damaged: .*delete .*ckpt-1\.\*"):
            checkpoint.load(prefix, tensors)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"a": 1}', "expected 'config' to be there"),
            ('{"config": {"model": {}}}', "expected 'name' to be there"),
            ('{"config": {"model": 5}}', "expected 'config.model' to be dict, found int"),
            ('{"config": 5}', "expected 'config' to be dict, found int"),
            ("[]", "expected a JSON object"),
        ],
    )
    def test_a_description_of_another_shape(self, tmp_path, text, words):
        (tmp_path / "ckpt-1.json").write_text(text)
        with pytest.raises(BadFileError, match=rf"ckpt-1.json: {words}.*delete .*ckpt-1\.\*"):
            read_metadata(tmp_path / "ckpt-1")["config"]["model"]["name"]

    def test_missing_description(self, tmp_path):
        prefix = checkpoint.save(tmp_path / "ckpt-1", TENSORS, META)
        assert read_description(prefix).items() >= META.items()
        os.remove(tmp_path / "ckpt-1.json")
        assert read_metadata(prefix) == {}
        with pytest.raises(BadFileError, match="ckpt-1.json is missing"):
            read_description(prefix)

    def test_a_description_is_plain_json(self, tmp_path):
        checkpoint.save(tmp_path / "ckpt-1", TENSORS, META)
        found = json.loads((tmp_path / "ckpt-1.json").read_text())
        assert found.keys() - META.keys() == {"files", "description_sha256"}
        assert found.items() >= META.items()


def flip_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def other_number(path) -> None:
    text = path.read_text()
    assert '"seed": 3' in text
    path.write_text(text.replace('"seed": 3', '"seed": 4'))


class TestRecover:
    """The newest whole checkpoint of a run that saved at steps 1, 2 and 3."""

    @pytest.fixture
    def folder(self, tmp_path):
        for step in (1, 2, 3):
            number = tf.fill([500], float(step))
            prefix = checkpoint.save(
                tmp_path / f"ckpt-{step:08d}", {"model/a": number}, {**META, "step": step}
            )
            checkpoint.write_pointer(tmp_path, prefix)
        return tmp_path

    def test_the_newest_of_whole_ones(self, folder):
        before = files(folder)
        assert checkpoint.recover(folder) == (str(folder / "ckpt-00000003"), [])
        assert files(folder) == before

    @pytest.mark.parametrize(
        ("suffix", "damage", "words"),
        [
            (".data-00000-of-00001", os.remove, "data-00000-of-00001 is missing"),
            (".data-00000-of-00001", flip_bit, "its checksum differs"),
            (".index", os.remove, "index is missing"),
            (".index", flip_bit, "its checksum differs"),
            (".index", lambda path: os.truncate(path, 30), "bytes expected, 30 found"),
            (".json", os.remove, "json is missing"),
            (".json", other_number, "not what was written"),
            (".json", lambda path: path.write_text("[1, 2]"), "found list"),
            (".json", lambda path: path.write_text('{"step": "7"}'), "'step' to be int"),
            (".json", lambda path: path.write_text('{"step": 7}'), "'config' to be there"),
            (".json", lambda path: path.write_text("{"), "ckpt-00000003.json is no valid JSON"),
        ],
    )
    def test_a_damaged_one_is_passed_over_and_set_aside(self, folder, suffix, damage, words):
        damage(folder / f"ckpt-00000003{suffix}")
        found, (problem,) = checkpoint.recover(folder)
        assert found == str(folder / "ckpt-00000002")
        assert words in problem and str(folder / "ckpt-00000003") in problem
        assert not list(folder.glob("ckpt-00000003*")) and list(folder.glob("damaged-ckpt-*03.*"))
        assert checkpoint.recover(folder) == (found, [])
        assert checkpoint.find(folder) == found

    def test_one_that_cannot_be_read_is_not_taken_for_damaged(self, folder, monkeypatch):
        def refuse(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("engine.files.description.read_json", refuse)
        before = files(folder)
        with pytest.raises(PermissionError, match="ckpt-00000003.json"):
            checkpoint.recover(folder)
        assert files(folder) == before

    def test_the_final_one_where_no_other_is_whole(self, folder):
        final = checkpoint.save(folder / "ckpt-final", {"model/a": tf.zeros([5])}, META)
        assert checkpoint.recover(folder) == (str(folder / "ckpt-00000003"), [])
        for path in folder.glob("ckpt-0*.data*"):
            flip_bit(path)
        found, problems = checkpoint.recover(folder)
        assert found == checkpoint.newest_resumable(folder) == final and len(problems) == 3
        assert checkpoint.recover(folder) == (final, [])

    def test_with_none_left_nothing_begins_at_step_1(self, folder):
        for path in folder.glob("ckpt-*.data*"):
            flip_bit(path)
        before = files(folder)
        with pytest.raises(
            ConfigError, match="none of its checkpoints is whole: .*02.data.*delete"
        ):
            checkpoint.recover(folder)
        assert files(folder) == before
        for path in folder.glob("ckpt-*"):
            path.unlink()
        with pytest.raises(ConfigError, match="names ckpt-00000003, which is not there"):
            checkpoint.recover(folder)

    def test_a_first_save_that_was_cut_short_is_no_checkpoint(self, tmp_path):
        (tmp_path / "ckpt-00000001.data-00000-of-00001").write_bytes(b"x")
        found, (problem,) = checkpoint.recover(tmp_path)
        assert found is None and "index is missing" in problem

    def test_checkpoints_without_checksums_are_read_through(self, folder):
        for step in (2, 3):
            path = folder / f"ckpt-{step:08d}.json"
            path.write_text(json.dumps({**META, "step": step}))
        assert checkpoint.recover(folder) == (str(folder / "ckpt-00000003"), [])
        flip_bit(folder / "ckpt-00000003.data-00000-of-00001")
        assert checkpoint.recover(folder)[0] == str(folder / "ckpt-00000002")

    def test_weights_are_read_only_as_they_were_written(self, folder):
        prefix = folder / "ckpt-00000003"
        assert read_weight_file(str(prefix)).arrays["model/a"][0] == 3.0
        os.replace(folder / "ckpt-00000002.index", f"{prefix}.index")
        with pytest.raises(BadFileError, match="ckpt-00000003.index is damaged"):
            read_weight_file(str(prefix))
