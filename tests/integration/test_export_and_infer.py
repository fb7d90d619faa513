"""A trained run put to use: detections drawn on files, and exports that need TensorFlow only."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_from_scratch
from PIL import Image

LEAST_SCORE = 0.05
# Runs without the repository: reads an export and writes what it finds on the given images.
PLAIN_TENSORFLOW = """
import importlib.util, json, sys
import numpy as np, tensorflow as tf
from PIL import Image
assert importlib.util.find_spec("efficientdet") is None
assert importlib.util.find_spec("engine") is None
folder, output, *paths = sys.argv[1:]
model = tf.saved_model.load(folder)
names = {c["category_id"]: c["name"] for c in json.load(open(f"{folder}/assets/labels.json"))}
found = {}
for path in paths:
    # As infer.py decodes: JPEG decoders differ in the last bits.
    image = np.asarray(Image.open(path).convert("RGB"))
    boxes, scores, classes, count = (t.numpy() for t in model(np.stack([image, image])))
    for one in (boxes, scores, classes, count):
        np.testing.assert_allclose(one[0], one[1], atol=1e-4)
    n = int(count[0])
    assert (classes[0, n:] == -1).all()
    assert {names[c] for c in classes[0, :n].tolist()}
    found[path] = np.column_stack([classes[0, :n], scores[0, :n], boxes[0, :n]]).tolist()
json.dump(found, open(output, "w"))
"""


def detections_of(folder):
    """Returns path -> entries of a detections.json of infer.py."""
    found = {}
    for entry in json.loads((folder / "detections.json").read_text()):
        found.setdefault(entry["file_name"], []).append(entry)
    return found


def as_rows(detections):
    """Returns [n, 6] (category id, score, y1, x1, y2, x2) of one image of detections.json."""
    rows = [
        (d["category_id"], d["score"], y, x, y + height, x + width)
        for d in detections
        for x, y, width, height in [d["bbox"]]
    ]
    return np.reshape(rows, [-1, 6])


def assert_same_detections(ours, theirs):
    """Compares rows whatever their order: near ties are sorted by the last digit of the score."""
    for some, others in ((ours, theirs), (theirs, ours)):
        for row in some[some[:, 1] > LEAST_SCORE + 1e-3]:
            differences = np.abs(others - row)
            same = (differences <= (0, 1e-4, 0.01, 0.01, 0.01, 0.01)).all(axis=1)
            assert same.any(), f"{row} is missing in\n{others}"


@pytest.fixture(scope="module")
def pictures(tiny_set):
    """The first four pictures."""
    return sorted(tiny_set.images.glob("*.jpg"))[:4]


def test_videos_are_drawn_and_written(commands, trained_run, pictures, tmp_path):
    """Three frames of odd sides, at another rate than the usual."""
    pytest.importorskip("imageio_ffmpeg", reason="videos need the extra ringdet[video]")
    from object_detection.serve import videos

    film, output = tmp_path / "film.mp4", tmp_path / "drawn"
    frames = [np.asarray(Image.open(path).resize((191, 127))) for path in pictures[:3]]
    with videos.written(film, rate=10.0) as take:
        for frame in frames:
            take(frame)
    (tmp_path / "broken.avi").write_text("<html>")
    result = commands.run(
        *("infer.py", f"--model_dir={trained_run.folder}", f"--image_path={tmp_path}/*.*"),
        *(f"--output_dir={output}", f"--min_score_thresh={LEAST_SCORE}"),
    )
    assert result.code == 3 and "broken.avi is not a readable video" in result.output
    drawn = output / "film-detections.mp4"
    assert {path.name for path in output.iterdir()} == {
        *(drawn.name, "detections.json", "contact-sheet.png")
    }
    assert videos.frame_rate(str(drawn)) == pytest.approx(10.0)
    shown = list(videos.read_frames(str(drawn)))
    assert [frame.shape for frame in shown] == [(128, 192, 3)] * 3
    differences = np.abs(np.array(shown)[:, :127, :191].astype(int) - np.array(frames)).mean(axis=3)
    assert np.quantile(differences, 0.2) < 12, "the pictures"
    assert differences.max() > 30, "and boxes"
    named = set(detections_of(output))
    assert named and named <= {f"{film}#{number}" for number in range(3)}


@pytest.fixture(scope="module")
def drawn(commands, tiny_set, trained_run, pictures, tmp_path_factory):
    """The folder that infer.py writes for a list of pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    chosen = folder / "list.txt"
    chosen.write_text("\n".join(map(str, pictures)) + "\n")
    commands.run(
        "infer.py",
        f"--image_list={chosen}",
        f"--model_dir={trained_run.folder}",
        f"--output_dir={folder / 'out'}",
        f"--annotations={tiny_set.annotations}",
        f"--min_score_thresh={LEAST_SCORE}",
        "--which=last",
    ).require_success()
    return folder / "out"


@pytest.fixture(scope="module")
def exported(commands, trained_run, tmp_path_factory):
    """The folder that export.py writes, by a link, where there is an export with more in it."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    link = tmp_path_factory.mktemp("links") / "model"
    link.symlink_to(folder)
    shutil.copytree(trained_run.folder / "emackpt-final", folder)
    (folder / "left-over").write_text("of another export")
    (folder / "saved_model.pb").write_text("cut short")
    result = commands.run(
        "export.py",
        f"--model_dir={trained_run.folder}",
        f"--saved_model_dir={link}",
        "--which=last",
    ).require_success()
    assert link.is_symlink()
    assert f"taking {trained_run.folder}/ema_weights/emackpt-12 (epoch 12, AP 0." in result.output
    assert "on 2 photographs it differs from the checkpoint in scores by " in result.output
    return folder


def test_infer_writes_pictures_and_detections(tiny_set, pictures, drawn):
    names = {f"{p.stem}-detections.png" for p in pictures}
    assert {p.name for p in drawn.iterdir()} == names | {"detections.json", "contact-sheet.png"}
    found = detections_of(drawn)
    assert set(found) <= {str(p) for p in pictures}  # those on which something was found
    categories = json.loads(tiny_set.annotations.read_text())["categories"]
    categories = {category["id"]: category["name"] for category in categories}
    assert sum(map(len, found.values())) > 4
    listed = json.loads(tiny_set.annotations.read_text())["images"]
    images = {image["id"]: image["file_name"] for image in listed}
    for path, detections in found.items():
        with Image.open(path) as image:
            width, height = image.size
        for detection in detections:
            assert images[detection["image_id"]] == Path(path).name
            assert detection["name"] == categories[detection["category_id"]]
            assert LEAST_SCORE <= detection["score"] < 1
            x, y, w, h = detection["bbox"]
            assert 0 <= x and x + w <= width + 1e-3 and 0 <= y and y + h <= height + 1e-3


def test_ground_truth_stands_beside_the_detections(pictures, drawn):
    for path in pictures:
        with Image.open(path) as image, Image.open(drawn / f"{path.stem}-detections.png") as pair:
            assert pair.size[0] >= 2 * image.size[0]


def test_infer_on_a_glob_with_an_export_finds_the_same(
    commands, trained_run, pictures, drawn, tmp_path
):
    pattern = pictures[0].parent / f"*{pictures[0].name[-7:]}"
    commands.run(
        "infer.py",
        f"--image_path={pattern}",
        f"--saved_model_dir={trained_run.folder / 'emackpt-final'}",
        f"--output_dir={tmp_path}",
        f"--min_score_thresh={LEAST_SCORE}",
    ).require_success()
    ours, theirs = detections_of(tmp_path), detections_of(drawn)
    path = str(pictures[0])
    assert list(ours) == [path]
    assert_same_detections(as_rows(ours[path]), as_rows(theirs[path]))
    assert len(ours[path]) > 0
    with (
        Image.open(path) as image,
        Image.open(tmp_path / f"{pictures[0].stem}-detections.png") as p,
    ):
        assert p.size == image.size


def test_infer_on_a_folder_takes_all_its_pictures(commands, trained_run, pictures, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "notes.txt").write_text("not a picture")
    with Image.open(pictures[0]) as image:
        image.convert("L").save(photos / "gray.png")
        image.resize((300, 80)).save(photos / "wide.jpg")
        image.save(photos / "gray-detections.png")  # what an earlier run wrote there is none
    done = commands.run(
        "infer.py",
        f"--image_path={photos}",
        f"--model_dir={trained_run.folder}/ema_weights/emackpt-best",
        f"--output_dir={photos}",
    ).require_success()
    assert f"earlier run wrote them: {photos / 'gray-detections.png'}" in done.output
    assert "2 images; detections.json" in done.output
    found = detections_of(photos)
    assert set(found) <= {str(photos / "gray.png"), str(photos / "wide.jpg")}
    assert all(d["score"] >= 0.4 for detections in found.values() for d in detections)


def test_infer_goes_on_past_what_it_cannot_read(commands, trained_run, pictures, tmp_path):
    folder = tmp_path / "cells [v2], final"
    photos = folder / "photos[1]"
    photos.mkdir(parents=True)
    shutil.copytree(trained_run.folder / "emackpt-final", folder / "model")
    lying = Image.Exif()
    lying[0x0112] = 6
    with Image.open(pictures[0]) as image:
        for name in ("a.webp", "b.TIF"):
            image.save(photos / name, exif=lying)
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
            photos / "c.png"
        )
        Image.new("1", (9000, 9000)).save(photos / "huge.png")
        Image.new("1", (70000, 1)).save(photos / "line.png")
        Image.new("RGB", (1, 9000)).save(photos / f"{'n' * 251}.png")
    (photos / "page.jpg").write_text("<html>")
    (photos / "empty.jpg").touch()
    os.mkfifo(photos / "pipe.jpg")
    result = commands.run(
        "infer.py",
        f"--image_path={photos}",
        f"--saved_model_dir={folder / 'model'}",
        f"--output_dir={folder / 'out'}",
        "--exif=apply",
        "--min_score_thresh=0.01",
    )
    assert result.code == 3
    found = detections_of(folder / "out")
    assert set(found) - {str(photos / f"{'n' * 251}.png")} == {
        str(photos / name) for name in ("a.webp", "b.TIF", "c.png")
    }
    assert (folder / f"out/{'n' * 200}-detections.png").is_file()
    with Image.open(pictures[0]) as image, Image.open(folder / "out/a-detections.png") as drawn:
        assert drawn.size == image.size[::-1]
    assert "5 of 9 images were left out" in result.output
    for name, reason in {
        "huge.png": "too many pixels: 9000x9000",
        "line.png": "side too long: 70000x1",
        "page.jpg": "not an image",
        "empty.jpg": "empty file",
        "pipe.jpg": "not a regular file",
    }.items():
        assert f"{photos / name} is not a readable image: {reason}" in result.output


def test_infer_that_is_ended_leaves_what_it_found(commands, trained_run, pictures, tmp_path):
    (tmp_path / "list.txt").write_text(f"{pictures[0]}\n" * 2000)
    running = commands.start(
        "infer.py",
        f"--image_list={tmp_path / 'list.txt'}",
        f"--saved_model_dir={trained_run.folder / 'emackpt-final'}",
        f"--output_dir={tmp_path / 'out'}",
        "--min_score_thresh=0",
        "--max_boxes_to_draw=1",
    )
    running.wait_until_said("-2-detections.png")  # of the second
    running.send(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 130 and "interrupted" in ended.errors
    assert not (tmp_path / "out" / "detections.json").exists()
    found = json.loads((tmp_path / "out" / "detections.partial.json").read_text())
    assert f"{tmp_path}/out/detections.partial.json has the {len(found):,} obj" in ended.output
    each = [int(n) for n in re.findall(r"(\d+) objects -> ", ended.output)]
    assert 2 <= len(each) < 2000 and len(found) == sum(each) > 0


@pytest.mark.both_stacks
@pytest.mark.parametrize("made_by", ["export.py", "train.py"])
def test_export_runs_in_plain_tensorflow(made_by, exported, trained_run, pictures, drawn, tmp_path):
    folder = exported if made_by == "export.py" else trained_run.folder / "emackpt-final"
    output = tmp_path / "found.json"
    # -I: neither this folder nor PYTHONPATH.
    command = [sys.executable, "-I", "-c", PLAIN_TENSORFLOW, folder, output, *pictures]
    run_from_scratch(command, cwd=tmp_path).require_success()
    found = json.loads(output.read_text())
    for path, detections in detections_of(drawn).items():
        exported_rows = np.reshape(found[path], [-1, 6])
        kept = exported_rows[:, 1] >= LEAST_SCORE
        assert_same_detections(exported_rows[kept], as_rows(detections))


def test_export_replaces_an_earlier_one_as_a_whole(exported):
    assert (exported / "saved_model.pb").stat().st_size > 1000
    assert not (exported / "left-over").exists()
    assert [p.name for p in exported.parent.iterdir()] == ["model"]
