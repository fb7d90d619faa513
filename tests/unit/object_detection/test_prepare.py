"""Records made of a data folder: used again while it is the same, made anew when it is not."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from samples import read_back

import families
from dataset import data_flags
from engine.config import fields
from object_detection.convert import prepare as prepare_module
from object_detection.convert.prepare import coco_splits, prepare_records, training_split
from outside_data.picture_file import PictureRules


@pytest.fixture
def prepare(small_set, tmp_path):
    """Writes the small set and returns a function that prepares it: the result and its lines."""
    (tmp_path / "annotations").mkdir()
    for split, content in small_set.items():
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))

    def run(records="records", **options):
        lines = []
        made = prepare_records(tmp_path, tmp_path / records, report=lines.append, **options)
        return made, "\n".join(lines)

    return run


def state_of(folder):
    """Returns names of the files in a folder to their contents."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pictures_of(made, split):
    records = read_back(f"{made.folder}/{split}-*.tfrecord")
    return {record["image/source_id"][0]: record["image/encoded"][0] for record in records}


def test_records_are_used_again_while_nothing_changed(prepare, tmp_path, monkeypatch):
    made, _ = prepare()
    before = state_of(made.folder)
    (tmp_path / "train" / "notes.txt").write_text("a file that no record depends on")
    monkeypatch.chdir(tmp_path)
    again, lines = prepare()
    assert again == made and "records of" in lines and "anew" not in lines
    assert state_of(made.folder) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rewrite", "1 files are of another size or time: {}/train/2.png"),
        ("remove", "1 files are gone: {}/train/2.png"),
        ("settings", "exif was 'ignore', is 'apply'"),
        ("records", "not as they were written"),
    ],
)
def test_what_changed_since_is_said_and_learned(prepare, tmp_path, change, said):
    made, _ = prepare()
    before = pictures_of(made, "train")
    options, path = {}, tmp_path / "train" / "2.png"
    if change == "rewrite":
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    elif change == "remove":
        path.unlink()
    elif change == "settings":
        options["pictures"] = PictureRules(exif="apply")
    else:
        made.eval_json.unlink()
    _, lines = prepare(**options)
    assert "are made anew" in lines and said.format(tmp_path) in lines
    after = pictures_of(made, "train")
    if change == "rewrite":
        assert after.pop(b"2") == path.read_bytes() != before.pop(b"2")
    elif change == "remove":
        del before[b"2"]
    assert after == before
    _, lines = prepare(**options)
    assert "anew" not in lines


def test_of_several_splits_the_one_that_changed_is_named(prepare, tmp_path):
    prepare()
    _, lines = prepare(eval_split="train")
    (line,) = (line for line in lines.split("\n") if "made anew" in line)
    assert line.endswith(
        f"records are made anew: splits eval was ['{tmp_path}/annotations/instances_val.json', "
        f"'{tmp_path}/val'], is ['{tmp_path}/annotations/instances_train.json', '{tmp_path}/train']"
    )


def test_objects_beyond_the_limits_of_the_run_are_told(prepare, small_set):
    most = max(
        sum(entry["image_id"] == image["id"] for entry in small_set["train"]["annotations"])
        for image in small_set["train"]["images"]
    )
    _, lines = prepare("as-many", max_instances=most, max_detections=most)
    assert "too_many" not in lines and "--max_instances_per_image is raised" not in lines
    _, lines = prepare("fewer", max_instances=most - 1, max_detections=most - 1)
    assert "too_many_for_training [train]" in lines and "too_many_for_scoring [train]" in lines
    assert f"the smallest 1 of them unless --max_instances_per_image is raised from {most - 1}" in (
        lines
    )


def test_a_picture_that_was_missing_is_taken_once_it_is_there(prepare, tmp_path):
    path = tmp_path / "val" / "3.png"
    content = path.read_bytes()
    path.unlink()
    made, _ = prepare()
    assert len(pictures_of(made, "eval")) == 3
    path.write_bytes(content)
    _, lines = prepare()
    assert f"1 files are new: {path}" in lines
    assert len(pictures_of(made, "eval")) == 4


def test_the_same_bytes_under_another_time_give_the_same_records(prepare, tmp_path):
    made, _ = prepare()
    before = {name: data for name, data in state_of(made.folder).items() if "tfrecord" in name}
    os.utime(tmp_path / "train" / "1.png", (1, 1))
    _, lines = prepare()
    assert "are made anew" in lines
    assert before.items() <= state_of(made.folder).items()


def test_an_evaluation_leaves_the_records_of_a_training_as_they_are(prepare):
    made, _ = prepare(with_masks=False)
    before = state_of(made.folder)
    evaluated, _ = prepare(only_eval=True, pictures=PictureRules(exif="apply"))
    assert evaluated.folder == made.folder / "evaluation"
    assert len(pictures_of(evaluated, "eval")) == 4 and evaluated.eval_json.is_file()
    assert state_of(made.folder) == before
    again, lines = prepare(only_eval=True, pictures=PictureRules(exif="apply"))
    assert again == evaluated and "anew" not in lines
    elsewhere, _ = prepare("other", only_eval=True)
    assert elsewhere.folder.name == "other"


@pytest.mark.parametrize("annotations", [{}, {"annotations": []}, {"annotations": None}])
def test_a_split_without_annotations_is_not_evaluated(prepare, tmp_path, small_set, annotations):
    del small_set["val"]["annotations"]
    unlabelled = json.dumps({**small_set["val"], **annotations})
    (tmp_path / "annotations" / "instances_test.json").write_text(unlabelled)
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    made, lines = prepare(only_eval=True)
    assert made.eval_images == tmp_path / "val" and "test has no annotations" in lines
    (tmp_path / "annotations" / "instances_val.json").unlink()
    made, lines = prepare("others")
    assert "test has no annotations" in lines and "20% of the images are held out" in lines
    assert len(pictures_of(made, "train")) == 3 and len(pictures_of(made, "eval")) == 1
    with pytest.raises(ValueError, match=r"annotations|not one object"):
        prepare("asked", eval_split="test")


@pytest.mark.parametrize(
    ("options", "split"),
    [
        ({}, "test"),
        ({"eval_names": prepare_module.FOR_CHOICES}, "val"),
        ({"eval_names": prepare_module.FOR_CHOICES, "eval_split": "test"}, "test"),
    ],
)
def test_a_training_chooses_by_val_and_leaves_test_unseen(prepare, tmp_path, options, split):
    annotations = tmp_path / "annotations"
    shutil.copy(annotations / "instances_val.json", annotations / "instances_test.json")
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    made, lines = prepare(**options)
    assert made.eval_images == tmp_path / split
    assert f"train of split train, eval of split {split}" in lines


@pytest.mark.parametrize(
    ("train", "val", "others"),
    [
        ("Train", "Val", ["Test"]),
        ("cells-train", "cells-val", ["cells-test"]),
        ("train", "val", ["train (1)", "train_old", "val_old"]),
        ("Training", "VALID", ["Testing"]),
    ],
)
def test_splits_are_told_by_the_words_of_their_names(prepare, tmp_path, train, val, others):
    annotations = tmp_path / "annotations"
    (annotations / "instances_train.json").rename(annotations / f"{train}.json")
    (annotations / "instances_val.json").rename(annotations / f"{val}.json")
    for other in others:
        shutil.copy(annotations / f"{train}.json", annotations / f"{other}.json")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    made, lines = prepare(eval_names=prepare_module.FOR_CHOICES)
    names = f"(train of split {train}, eval of split {val}; not used: {', '.join(sorted(others))})"
    assert names in lines
    assert made.eval_images == tmp_path / "val"


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["train_old", "val", "train"], "train"),
        (["my-train", "train2017"], "train2017"),
        (["test", "zebra", "val"], "zebra"),  # what is not for scores
        (["test"], "test"),
    ],
)
def test_the_split_to_train_on_is_told_by_its_name(names, train):
    splits = {name: (Path(name), Path()) for name in names}
    assert training_split(splits) == splits[train]
    assert training_split(splits, names[0]) == splits[names[0]]
    with pytest.raises(ValueError, match=f"no split 'x'; there are: {', '.join(names)}"):
        training_split(splits, "x")


def test_a_set_is_found_in_the_only_folder_that_has_one(prepare, tmp_path):
    root = tmp_path / "unpacked"
    inside = root / "set-1" / "data"
    inside.mkdir(parents=True)
    for name in ("annotations", "train", "val"):
        (tmp_path / name).rename(inside / name)
    assert coco_splits(root, tmp_path / "work") == {
        split: (inside / f"annotations/instances_{split}.json", inside / split)
        for split in ("train", "val")
    }
    shutil.copytree(root / "set-1", root / "set-2")
    with pytest.raises(FileNotFoundError, match="unpacked has no COCO annotations"):
        coco_splits(root, tmp_path / "work")


@pytest.mark.parametrize("other", ["train_old", "Training"])
def test_another_split_for_training_is_not_evaluated(prepare, tmp_path, other):
    annotations = tmp_path / "annotations"
    (annotations / "instances_val.json").rename(annotations / f"{other}.json")
    (annotations / "instances_train.json").rename(annotations / "train.json")
    made, lines = prepare()
    assert f"(train of split train; not used: {other})" in lines
    assert "no split for an evaluation: 20% of the images are held out" in lines
    assert len(pictures_of(made, "train")) == 3 and len(pictures_of(made, "eval")) == 1
    made, lines = prepare("asked", eval_split=other)
    assert f"(train of split train, eval of split {other})" in lines


def test_records_in_the_data_folder_are_no_data(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (9 * ord(name) % 255, 0, 0)).save(
            tmp_path / f"images/{name}.png"
        )
        (tmp_path / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").touch()
    Image.new("RGB", (40, 20)).save(tmp_path / "run" / "first_batch.png")
    first = prepare_records(tmp_path, tmp_path / "run-data", report=print)
    lines = []
    assert prepare_records(tmp_path, tmp_path / "run-data", report=lines.append) == first
    assert "records of" in lines[-1]
    assert len(pictures_of(first, "train")) == 2 and len(pictures_of(first, "eval")) == 1


@pytest.mark.parametrize(
    ("name", "with_masks"),
    [("maskrcnn-r50-fpn", True), ("fasterrcnn-r50-fpn", False), ("efficientdet-lite0", False)],
)
def test_masks_are_stored_for_models_that_learn_them(monkeypatch, name, with_masks):
    asked = mock.Mock()
    config = fields.override(
        families.base_config(name), {"data.max_instances_per_image": 7}, source="-"
    )
    flags = mock.MagicMock(config_file="", data="set", data_records="records")
    flags.__getitem__.return_value.present = False
    monkeypatch.setattr(data_flags, "FLAGS", flags)
    monkeypatch.setattr(data_flags.commands, "picture_rules", PictureRules)
    monkeypatch.setattr(prepare_module, "prepare_records", asked)
    data_flags.use_for_training(config)
    kwargs = asked.call_args.kwargs
    assert (kwargs["max_instances"], kwargs["max_detections"]) == (7, 100)
    assert asked.call_args.kwargs["with_masks"] is with_masks
    assert asked.call_args.kwargs["eval_names"] == ("val", "test")
