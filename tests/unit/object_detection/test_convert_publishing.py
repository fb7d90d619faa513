"""What a new conversion leaves of the old one, and what one leaves that fails or is interrupted."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from samples import encoded
from waiting import wait_until

from object_detection.convert.convert import convert
from object_detection.convert.staging import staged
from object_detection.records.card import find_card
from object_detection.records.tfrecord_file import record_files, staging_folder


def picture(height=30, width=40):
    return encoded(np.zeros((height, width, 3)), "JPEG")


def test_new_conversion_replaces_the_old_one(data, tmp_path):
    annotations, folder = data({f"{i}.jpg": picture() for i in range(6)})
    neighbour = tmp_path / "out" / "train2-00000-of-00001.tfrecord"
    convert(annotations, folder, tmp_path / "out" / "train2", num_shards=1)
    convert(annotations, folder, tmp_path / "out" / "train", num_shards=6)
    conversion = convert(annotations, folder, tmp_path / "out" / "train", num_shards=2)
    assert len(conversion.removed_files) == 6
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord", "train-card.json",
        neighbour.name, "train2-card.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", ".", "..", ".train"])
def test_a_set_has_a_name_that_can_be_seen(data, tmp_path, name):
    annotations, folder = data({"a.jpg": picture()})
    with pytest.raises(ValueError, match="expected FOLDER/NAME, such as records/train"):
        convert(annotations, folder, f"{tmp_path}/out/{name}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "instances.json"]


def test_failed_conversion_leaves_the_old_set_whole(data, tmp_path):
    annotations, folder = data({f"{i}.jpg": picture() for i in range(3)})
    card = convert(annotations, folder, tmp_path / "out" / "train", num_shards=3).card
    (folder / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="empty file"):
        convert(annotations, folder, tmp_path / "out" / "train", num_shards=1, on_bad_image="stop")
    assert find_card(f"{tmp_path}/out/train-*") == card
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_full_disk_is_explained_and_leaves_nothing(data, tmp_path, monkeypatch):
    annotations, folder = data({"a.jpg": picture()})

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="the disk is full.*out/train"):
        convert(annotations, folder, tmp_path / "out" / "train")
    assert list((tmp_path / "out").iterdir()) == []


def test_interruption_while_files_are_renamed(data, tmp_path, monkeypatch):
    annotations, folder = data({f"{i}.jpg": picture() for i in range(4)})
    prefix = tmp_path / "out" / "train"
    convert(annotations, folder, prefix, num_shards=2)
    real_replace, calls = os.replace, []

    def failing_replace(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", failing_replace)
    with pytest.raises(KeyboardInterrupt):
        convert(annotations, folder, prefix, num_shards=4)
    monkeypatch.undo()
    assert len(list(prefix.parent.glob("train-*-of-00004.tfrecord"))) == 2
    with pytest.raises(ValueError, match="incomplete: its conversion was interrupted"):
        find_card(f"{prefix}-*")
    # Also when the next attempt fails, nothing looks complete.
    bad = tmp_path / "bad"
    bad.mkdir()
    for image in annotations.images:
        (bad / image.file_name).touch()
    with pytest.raises(ValueError, match="more than max_bad_images"):
        convert(annotations, bad, prefix, num_shards=2, max_bad_images=0)
    with pytest.raises(FileNotFoundError):
        record_files(f"{prefix}-*")
    card = convert(annotations, folder, prefix, num_shards=3).card
    assert find_card(f"{prefix}-*") == card
    assert len(list(prefix.parent.iterdir())) == 4


def test_two_conversions_at_once(data, tmp_path):
    annotations, folder = data({"a.jpg": picture()})
    with staged(tmp_path / "train"), pytest.raises(ValueError, match="another process"):
        convert(annotations, folder, tmp_path / "train")


@pytest.mark.parametrize(
    ("how", "whom"),
    [(signal.SIGINT, "group"), (signal.SIGTERM, "parent"), (signal.SIGKILL, "parent")],
)
def test_interrupted_command_leaves_nothing_that_looks_complete(tmp_path, repository, how, whom):
    # Enough images for two workers to be caught in the act; all share one file.
    (tmp_path / "a.jpg").write_bytes(picture(300, 400))
    images = [{"id": i, "file_name": "a.jpg"} for i in range(700)]
    dataset = {"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(dataset))
    command = [
        *(sys.executable, repository / "dataset/create_coco_tfrecord.py"),
        f"--image_dir={tmp_path}",
        f"--object_annotations_file={tmp_path}/instances.json",
        f"--output_file_prefix={tmp_path}/out/train",
        "--num_shards=4",
        "--num_threads=2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    staging = staging_folder(tmp_path / "out" / "train")
    wait_until(lambda: list(staging.glob("*.tfrecord")), lambda: "no file began", seconds=60)
    if whom == "group":
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, messages = process.communicate(timeout=60)
    assert not list((tmp_path / "out").glob("train*"))
    if how != signal.SIGKILL:
        assert process.returncode == 130, messages
        assert "interrupted: nothing was written" in messages
        assert not staging.exists()
        return
    assert process.returncode == -how
    assert staging.exists()
    # The same command cleans up and succeeds.
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert find_card(f"{tmp_path}/out/train-*").num_images == 700
    assert not staging.exists()
