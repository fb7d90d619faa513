"""Detections on files: entries of the JSON, pictures, heat maps, ground truth beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as mask_api
from samples import instances

from object_detection.masks.mask_paste import MaskRule
from object_detection.records.class_map import ClassMap
from object_detection.serve import inference, videos
from object_detection.serve.detections import Detections, MaskDetections
from object_detection.serve.image_files import find_images, read_image_list

CLASSES = ClassMap(3, {0: (7, "cat"), 2: (9, "dog")})
BOXES = np.array([[10, 20, 50, 60], [5, 5, 25, 25], [0, 0, 9, 9], [0, 0, 0, 0]], np.float32)
SCORES = np.array([0.9, 0.6, 0.5, 0.0], np.float32)
# The third is of a channel that means nothing, the fourth is padding.
KINDS = np.array([0, 2, 1, -1], np.int32)


def detector(*, with_masks):
    """Answers the same on every image: full masks, the first only in its upper half."""
    masks = np.ones((4, 8, 8), np.float32)
    masks[0, 4:] = 0.2

    def detect(images):
        fields = (BOXES[None], SCORES[None], KINDS[None], np.array([3], np.int32))
        fields = tuple(map(tf.constant, fields))
        if with_masks:
            return MaskDetections(*fields, tf.constant(masks[None]))
        return Detections(*fields)

    return inference.detector_of(detect)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((80, 100, 3), 128, np.uint8)).save(path)
    return str(path)


def annotated(path, images, objects, *polygons, size=(80, 100)):
    """The annotations of pictures of 100x80 pixels, given as {id: file name}."""
    content = instances(images, objects, CLASSES.categories.values(), size=size)
    for image in content["images"]:
        image["file_name"] = images[image["id"]]
    for entry, polygon in zip(content["annotations"], polygons):
        entry["segmentation"] = polygon
    path.write_text(json.dumps(content))
    return inference.AnnotatedImages(str(path))


def test_the_worst_files_and_their_entries(tmp_path):
    paths = [str(tmp_path / f"{name}.png") for name in "Abc"]
    boxes = [[20, 10, 40, 40], [5, 5, 20, 20]]
    truth = annotated(
        tmp_path / "truth.json",
        {"iA": "A.png", "ib": "b.png"},
        [("iA", 7, boxes[0]), ("ib", 7, boxes[0]), ("ib", 7, boxes[1])],
    )
    objects = [{"bbox": boxes[0], "score": 0.9, "category_id": 7, "name": "cat", "class_id": 0}]
    found = [inference.Prediction(path, np.zeros((80, 100, 3)), objects, None) for path in paths]
    entries = [entry for each in found for entry in each.entries(truth)]
    assert [(e["image_id"], e["file_name"]) for e in entries] == [
        ("iA", paths[0]),
        ("ib", paths[1]),
        (paths[2], paths[2]),
    ]
    entries.append({**entries[0], "name": "bird"})  # a class of the model's alone
    # Of a nothing is wrong, of b an object is missed, of c nothing is known.
    assert truth.worst_files(entries, paths, count=5) == [paths[1]]


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    names = {1: "cats/01.png", 2: "dogs/01.png", 3: "02.png"}
    truth = annotated(tmp_path / "truth.json", names, [(1, 7, [5, 5, 20, 20])])
    assert [truth.image_id(f"/photos/{name}") for name in names.values()] == [1, 2, 3]
    assert truth.image_id("/photos/hats/01.png") is None
    assert truth.image_id("/elsewhere/02.png") == 3


def predict(path, *, with_masks, **options):
    return list(
        inference.predict_files(
            detector(with_masks=with_masks),
            CLASSES,
            [path],
            min_score=0.3,
            unreadable=[],
            **options,
        )
    )[0]


def test_an_image_for_which_memory_does_not_suffice_is_left_out(photo):
    def small(image):
        if image.shape[1] > 50:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return detector(with_masks=False)(image)

    unreadable = []
    options = {"min_score": 0.3, "unreadable": unreadable}
    assert list(inference.predict_files(small, CLASSES, [photo, photo], **options)) == []
    said = f"{photo}: no memory to detect on 100x80 pixels: reduce it"
    assert unreadable == [said] * 2
    with pytest.raises(ValueError, match=said):  # of a video's frame, too
        inference.predict_pixels(small, CLASSES, photo, np.zeros((80, 100, 3)), min_score=0.3)


def test_entries_carry_category_ids_boxes_and_names(photo):
    found = predict(photo, with_masks=False)
    assert found.masks is None
    assert [(d["category_id"], d["name"], d["class_id"]) for d in found.objects] == [
        (7, "cat", 0),
        (9, "dog", 2),
    ]
    assert found.objects[0]["bbox"] == [20, 10, 40, 40]
    assert found.objects[0]["score"] == pytest.approx(0.9)
    assert "segmentation" not in found.objects[0]


def test_masks_are_run_lengths_that_json_takes(photo):
    found = predict(photo, with_masks=True)
    entries = json.loads(json.dumps(found.objects))
    assert found.masks.shape == (2, 8, 8)
    mask = mask_api.decode(entries[0]["segmentation"])
    assert mask.shape == (80, 100)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), columns.min(), columns.max() + 1) == (10, 20, 60)
    assert abs(rows.max() + 1 - 30) <= 1
    # Less the corners, where the square of probabilities fades.
    assert mask_api.area(entries[1]["segmentation"]) == pytest.approx(400, abs=8)


def test_the_rule_of_the_model_decides_the_mask(photo):
    rule = MaskRule(threshold=0.1)
    found = predict(photo, with_masks=True, mask_rule=rule)
    assert found.mask_rule == rule
    assert mask_api.area(found.objects[0]["segmentation"]) > 1500


def test_masks_are_drawn_boxes_without_them(photo):
    masked = predict(photo, with_masks=True)
    options = {"with_masks": True, "with_boxes": False}
    picture = inference.draw(masked.image, masked.objects, CLASSES, **options)
    assert picture.shape == (320, 400, 3), "enlarged"
    assert (picture[80, 160] != 128).any()
    assert (picture[190, 160] == 128).all(), "below the mask"
    boxed = inference.draw(masked.image, masked.objects, CLASSES, with_masks=True)
    assert (boxed[190, 79] != 128).any()
    plain = inference.draw(masked.image, masked.objects, CLASSES, with_masks=False)
    assert (plain[20, 40] == 128).all()


def test_heat_map(photo):
    found = predict(photo, with_masks=True)
    for weigh_by in ("probability", "score"):
        picture = inference.draw_heat(found, weigh_by=weigh_by).astype(int)
        assert picture[80, 160].sum() > picture[280, 360].sum() + 200
        assert np.ptp(picture[280, 360]) == 0
    with pytest.raises(ValueError, match="needs masks"):
        inference.draw_heat(predict(photo, with_masks=False))


def test_ground_truth_is_drawn_as_the_model_draws(photo, tmp_path):
    truth = annotated(
        tmp_path / "truth.json",
        {1: "photo.png"},
        [(1, 9, [30, 20, 40, 40])],
        [[30, 20, 70, 20, 70, 40, 30, 40]],
    )
    sheets = []
    for with_masks in (True, False):
        found = predict(photo, with_masks=with_masks)
        drawn = inference.draw(found.image, found.objects, CLASSES, with_masks=with_masks)
        sheets.append(truth.beside(found, drawn, CLASSES, with_boxes=True))
    # Left half of the sheet: inside the polygon.
    assert not np.array_equal(*(sheet[150:190, 220:280] for sheet in sheets))
    assert (sheets[1][150:190, 220:280] == 128).all()


@pytest.mark.parametrize(("size", "scale"), [((40, 50), 2), ((None, None), 1), ((80, 90), 1)])
def test_ground_truth_of_another_size_is_drawn_in_the_pixels_of_the_file(
    photo, tmp_path, size, scale
):
    found = predict(photo, with_masks=False)
    sheets = []
    for stated, factor in (((80, 100), 1), (size, scale)):
        box = [side / factor for side in (30, 20, 40, 40)]
        path = tmp_path / f"{factor} {stated}.json"
        truth = annotated(path, {1: "photo.png"}, [(1, 9, box)], size=stated)
        sheets.append(truth.beside(found, found.image, CLASSES, with_boxes=True))
    assert (sheets[0] != 128).any()
    np.testing.assert_array_equal(*sheets)


def test_unreadable_files_are_named_and_left_out(photo, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    unreadable = []
    found = list(
        inference.predict_files(
            detector(with_masks=True),
            CLASSES,
            [str(bad), photo],
            min_score=0.95,
            unreadable=unreadable,
        )
    )
    assert [f.path for f in found] == [photo]
    assert found[0].objects == [] and found[0].masks.shape == (0, 8, 8)
    assert str(bad) in unreadable[0]
    for with_masks, shape in ((True, (320, 400, 3)), (False, (80, 100, 3))):
        drawn = inference.draw(found[0].image, [], CLASSES, with_masks=with_masks)
        assert drawn.shape == shape
    assert inference.draw_heat(found[0]).shape == (320, 400, 3)


def test_image_arguments(photo, tmp_path):
    assert find_images(str(tmp_path)) == find_images(f"{tmp_path}/*.png") == [photo]
    with pytest.raises(FileNotFoundError, match="no image at"):
        find_images(f"{tmp_path}/*.bmp")
    phone = tmp_path / "of a phone.HEIC"  # which the command then names as left out
    phone.touch()
    (tmp_path / "._photo.png").write_bytes(b"\0\5\x16\7 of a Mac's archive")
    assert find_images(str(tmp_path)) == sorted([photo, str(phone)])
    phone.unlink()
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.png").touch()
    with pytest.raises(FileNotFoundError, match=f"no image at .*; {inner} has some"):
        find_images(str(inner.parent))
    chosen = tmp_path / "list.txt"
    chosen.write_text("a.png\n\nb.png\n")
    assert read_image_list(str(chosen)) == ["a.png", "b.png"]
    chosen.write_text("\n")
    with pytest.raises(ValueError, match="found none"):
        read_image_list(str(chosen))


def test_a_folder_without_an_export_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no SavedModel"):
        inference.saved_model_detector(str(tmp_path))
    (tmp_path / "interface.json").touch()
    with pytest.raises(FileNotFoundError, match="it is for another runtime: run its run.py"):
        inference.saved_model_detector(str(tmp_path))


def test_videos_are_written_whole_or_not_at_all(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="videos need the extra ringdet[video]")
    film = tmp_path / "film.mp4"
    with videos.written(film, rate=4.0) as take:
        for level in (0, 100, 200):
            take(np.full([81, 97, 3], level, np.uint8))
    frames = list(videos.read_frames(str(film)))
    assert [frame.shape for frame in frames] == [(82, 98, 3)] * 3
    assert [round(frame.mean(), -1) for frame in frames] == [0, 100, 200]
    assert videos.frame_rate(str(film)) == pytest.approx(4.0)
    other = tmp_path / "other.mp4"
    with pytest.raises(ValueError, match="a frame of .* follows one of"):
        with videos.written(other, rate=4.0) as take:
            take(np.zeros([80, 96, 3], np.uint8))
            take(np.zeros([80, 98, 3], np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
