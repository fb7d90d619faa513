"""get_coco.sh against a small mirror: download, resume, checksums, conversion, doing nothing."""

import functools
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from coco_mirror import fetch, instances, needs_curl
from commands import ROOT
from file_server import FileServer
from samples import encoded

from object_detection.coco.annotations import read_annotations
from object_detection.records.card import find_card

SCRIPT = ROOT / "dataset" / "get_coco.sh"
ARCHIVES = {
    "MD5_ANNOTATIONS": "annotations/annotations_trainval2017.zip",
    "MD5_VAL": "zips/val2017.zip",
    "MD5_TRAIN": "zips/train2017.zip",
}

pytestmark = needs_curl


def jpeg(seed):
    return encoded(np.random.default_rng(seed).integers(0, 256, (24, 32, 3)), "JPEG")


@pytest.fixture
def mirror(tmp_path):
    """A folder laid out as COCO's server; one object with a mask in every image."""
    root = tmp_path / "mirror"
    files = {name: {} for name in ARCHIVES.values()}
    for split, count in (("train2017", 5), ("val2017", 2)):
        for i in range(count):
            files[f"zips/{split}.zip"][f"{split}/{i:012d}.jpg"] = jpeg(i)
        text = instances(range(count), "{:012d}.jpg")
        files[ARCHIVES["MD5_ANNOTATIONS"]][f"annotations/instances_{split}.json"] = text
    for name, members in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    return root


@pytest.fixture
def run(tmp_path, mirror):
    place = {"mirror": mirror, "archives": ARCHIVES, "DATA_DIR": str(tmp_path / "coco")}
    return functools.partial(fetch, "get_coco.sh", **place)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_everything_then_nothing(run, tmp_path):
    done = run()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "coco"
    train = find_card(f"{folder}/train-*")
    assert (train.num_images, train.num_instances, train.has_masks) == (5, 5, False)
    assert find_card(f"{folder}/val-*").num_images == 2
    assert (folder / "train-00000-of-00005.tfrecord").exists()
    assert len(read_annotations(folder / "annotations" / "instances_val2017.json").images) == 2
    # Archives, images and temporary files are gone.
    rest = [name for name in names_in(folder) if not name.startswith(("train-", "val-"))]
    assert rest == ["annotations"]

    before = stamps(folder)
    again = run(COCO_URL="http://127.0.0.1:9")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert stamps(folder) == before


def test_settings(run, tmp_path):
    folder = tmp_path / "elsewhere"
    done = run(
        str(folder),
        "--max_bad_images=0",
        INCLUDE_MASKS="1",
        KEEP_IMAGES="1",
        KEEP_ZIPS="1",
        TRAIN_SHARDS="2",
        NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    train = find_card(f"{folder}/train-*")
    assert train.mask_format == "bitpacked"
    assert len(train.shards) == 2
    assert len(list((folder / "train2017").glob("*.jpg"))) == 5
    assert {"train2017.zip", "val2017.zip", "annotations_trainval2017.zip"} <= set(names_in(folder))
    # Without masks wanted, records with masks are complete as well; a lost shard is not.
    assert "nothing to do" in run(str(folder)).stderr
    (folder / "train-00001-of-00002.tfrecord").unlink()
    redone = run(str(folder), TRAIN_SHARDS="2", COCO_URL="file:///nowhere")
    assert redone.returncode == 0, redone.stderr
    assert "downloading" not in redone.stderr
    assert find_card(f"{folder}/train-*").num_images == 5


def test_masks_wanted_later(run, tmp_path):
    assert run(KEEP_IMAGES="1").returncode == 0
    done = run(INCLUDE_MASKS="1", COCO_URL="file:///nowhere")
    assert done.returncode == 0, done.stderr
    assert find_card(f"{tmp_path}/coco/val-*").has_masks


def test_folder_of_the_user_is_used_and_kept(run, tmp_path, mirror):
    folder = tmp_path / "coco"
    with zipfile.ZipFile(mirror / "zips/val2017.zip") as archive:
        archive.extractall(folder)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "mine.json").write_text("{}")
    done = run()
    assert done.returncode == 0, done.stderr
    assert len(names_in(folder / "val2017")) == 2
    assert not (folder / "train2017").exists()
    assert {"mine.json", "instances_val2017.json"} <= set(names_in(folder / "annotations"))


def test_wrong_checksum_is_refused_and_the_file_removed(run, tmp_path):
    done = run(MD5_VAL="0" * 32)
    assert done.returncode == 1
    assert "zips/val2017.zip arrived with a wrong checksum" in done.stderr
    assert names_in(tmp_path / "coco") == ["annotations"]


def test_archive_of_another_kind_is_not_deleted(run, tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "val2017.zip").write_text("precious")
    done = run()
    assert done.returncode == 1
    assert "val2017.zip is not the file expected" in done.stderr
    assert (tmp_path / "coco" / "val2017.zip").read_text() == "precious"


def test_archives_that_are_there_are_not_fetched(run, tmp_path, mirror):
    (tmp_path / "coco").mkdir()
    for name in ARCHIVES.values():
        shutil.copy(mirror / name, tmp_path / "coco")
    assert run(COCO_URL="file:///nowhere").returncode == 0


def test_unreachable_server(run):
    done = run(COCO_URL="file:///nowhere")
    assert done.returncode == 1
    assert "download of file:///nowhere/annotations/" in done.stderr
    assert "check COCO_URL" in done.stderr


def test_full_disk_is_noticed_before_anything_is_fetched(run, tmp_path):
    done = run(MIN_FREE_GB="999999999")
    assert done.returncode == 1
    assert "999999999 GB are needed" in done.stderr
    assert names_in(tmp_path / "coco") == []


def test_failed_conversion_keeps_the_images_and_the_next_run_goes_on(run, tmp_path):
    done = run("--num_threads=0")
    assert done.returncode != 0
    assert (tmp_path / "coco" / "val2017").is_dir()
    assert run(COCO_URL=f"file://{tmp_path}/mirror").returncode == 0
    assert not (tmp_path / "coco" / "val2017").exists()


@pytest.mark.parametrize("with_ranges", [True, False], ids=["resumable", "not resumable"])
def test_interrupted_download_resumes(run, tmp_path, mirror, with_ranges):
    broken_once = {"breaks": 1, "break_at": "/zips/val2017.zip", "with_ranges": with_ranges}
    with FileServer(mirror, **broken_once) as server:
        broken = run(COCO_URL=server.url)
        assert broken.returncode == 1
        assert "run again to resume" in broken.stderr
        half = (mirror / "zips/val2017.zip").stat().st_size // 2
        assert (tmp_path / "coco" / "val2017.zip.partial").stat().st_size == half
        server.seen.clear()
        done = run(COCO_URL=server.url)
        assert done.returncode == 0, done.stderr
        expected = [("/zips/val2017.zip", f"bytes={half}-")]
        if not with_ranges:
            expected.append(("/zips/val2017.zip", None))
            assert "cannot resume" in done.stderr
        assert server.seen == [*expected, ("/zips/train2017.zip", None)]
    assert find_card(f"{tmp_path}/coco/val-*").num_images == 2


def test_download_that_was_whole_but_not_checked(run, tmp_path, mirror):
    (tmp_path / "coco").mkdir()
    shutil.copy(mirror / "zips/val2017.zip", tmp_path / "coco" / "val2017.zip.partial")
    with FileServer(mirror) as server:
        done = run(COCO_URL=server.url)
    assert done.returncode == 0, done.stderr


def test_help():
    done = subprocess.run(
        ["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: dataset/get_coco.sh" in done.stdout
    assert "set -euo" not in done.stdout
