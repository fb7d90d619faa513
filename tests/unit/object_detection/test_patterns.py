"""Patterns of records and images: names as they stand come first, commas in names are no marks."""

import pytest

from object_detection.records.tfrecord_file import record_files
from object_detection.serve.image_files import find_images
from path_names.patterns import match, split_patterns

ODD = 'cells [v2], final\'s "set" {1}'


@pytest.fixture
def folder(tmp_path):
    """A folder of an awkward name with records of two sets."""
    path = tmp_path / ODD
    path.mkdir()
    for name in ("train-1.tfrecord", "train-2.tfrecord", "val-1.tfrecord", "photo[1].jpg"):
        (path / name).touch()
    return path


def names(paths):
    return [path.rsplit("/", 1)[-1] for path in paths]


def test_folders_are_literal_and_the_rest_is_a_glob(folder):
    assert names(record_files(f"{folder}/train-*")) == ["train-1.tfrecord", "train-2.tfrecord"]
    assert names(match(f"{folder.parent}/cells*/val-?.tfrecord")) == ["val-1.tfrecord"]
    assert match(f"{folder}/photo[1].jpg") == find_images(f"{folder}/photo[1].jpg")
    assert match(f"{folder}/none-*") == match("") == []


def test_patterns_of_several_sets_have_commas_of_their_own(folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a-1").touch()
    parts = [f"{folder}/train-*", f"{plain}/a-*", f"{folder}/val-*"]
    assert split_patterns(", ".join(parts)) == parts
    assert names(record_files(",".join(parts))) == [
        *("train-1.tfrecord", "train-2.tfrecord", "val-1.tfrecord", "a-1")
    ]
    assert split_patterns("no-*,such-*,") == ["no-*", "such-*"]


def test_signs_still_mean_what_they_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a1", "a2", "b1"):
        (tmp_path / name).touch()
    assert match("a[12]") == ["a1", "a2"]
    assert match("[ab]1") == ["a1", "b1"]
    # The file hides what its name could stand for.
    (tmp_path / "a[12]").touch()
    assert match("a[12]") == ["a[12]"]
    # A folder of that name hides the other ones only if it has what is looked for.
    (tmp_path / "d[1]").mkdir()
    (tmp_path / "d1").mkdir()
    (tmp_path / "d1" / "x").touch()
    assert match("d[1]/x") == ["d1/x"]
