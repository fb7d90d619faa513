"""The pictures of a report: which images are the worst, what is drawn on them, where pixels are."""

import numpy as np
import pytest
from report_example import CASES, OBJECTS, dataset_of, found
from samples import encoded

from object_detection.coco.annotations import read_scored
from object_detection.convert.convert import convert
from object_detection.report import pictures
from object_detection.report.matches import match

CROWD = (1, 1, (60, 60, 40, 40), 1)


def test_errors_among_much_that_is_right_are_less_bad():
    # 3 errors, of 5 pairs that are right, 2 wrong boxes and a missed one: 3 x 3 / (2 x 5 + 3).
    assert pictures.ImageResult(0, 5, 2, 1).badness == pytest.approx(9 / 13)
    assert pictures.ImageResult(0, 0, 1, 0).badness == 1
    assert pictures.ImageResult(0, 5, 0, 0).badness == 0


@pytest.mark.parametrize(("side", "zoom"), [(100, 3), (320, 2), (1280, 0.5)])
@pytest.mark.parametrize("with_masks", [False, True])
def test_objects_and_detections_are_drawn_with_what_became_of_them(
    monkeypatch, side, zoom, with_masks
):
    drawn = []
    monkeypatch.setattr(
        pictures,
        "draw_entries",
        lambda image, entries, classes, **options: (
            drawn.append((entries, classes, options)) or image
        ),
    )
    dataset = dataset_of([(2, 4, (0, 0, 9, 9), 0), *OBJECTS, CROWD], num_images=2)
    entries = [found(2, 4, (0, 0, 9, 9), 0.99), *(entry for entry, _ in CASES)]
    mask = {"segmentation": [[0, 0, 9, 0, 9, 9]]} if with_masks else {}
    dataset["annotations"] = [entry | mask for entry in dataset["annotations"]]
    matches = match(read_scored(dataset), entries)  # by their boxes
    entries = [entry | mask for entry in entries]
    (result,) = (r for r in pictures.worst_images(matches, 0.65, 9) if r.image == 0)
    pixels = {"1": np.zeros((side // 2, side, 3), np.uint8)}
    other = pictures.ImageResult(1, 1, 0, 0)  # without pixels
    (picture,) = pictures.draw_results(
        [other, result], matches, entries, least_score=0.65, pixels=pixels
    )
    assert picture.name == "1.png" and picture.result == result
    truth, detections = drawn
    right, wrong, missed = pictures.RIGHT_COLOR, pictures.WRONG_COLOR, pictures.MISSED_COLOR
    boxes = [tuple(entry["bbox"]) for entry in truth[0]]
    assert boxes == [box for _, _, box, _ in (*OBJECTS, CROWD)]
    assert truth[2]["names"] == ["red", "red", "blue", "red"]
    assert truth[2]["colors"] == [right, missed, missed, pictures.CROWD_COLOR]
    assert [entry["score"] for entry in detections[0]] == [0.9, 0.8, 0.7]
    assert detections[2]["names"] == ["red", "red: duplicate", "blue: class"]
    assert detections[2]["colors"] == [right, wrong, wrong]
    for _, classes, options in drawn:
        assert classes.tolist() == [*range(len(options["names"]))]
        assert (options["zoom"], options["with_masks"]) == (zoom, with_masks)


def test_pixels_are_those_of_the_records_or_of_the_files(data, tmp_path):
    images = [np.full((30, 40, 3), grey, np.uint8) for grey in (20, 90, 160)]
    files = {f"{i}.png": encoded(image) for i, image in enumerate(images)}
    annotations, folder = data(files)
    convert(annotations, folder, tmp_path / "records/all", num_shards=2, num_workers=1)
    for read in (
        pictures.pixels_of_records(f"{tmp_path}/records/all-*.tfrecord", annotations.images[1:]),
        pictures.pixels_of_files(folder, annotations.images[1:]),
    ):
        assert {*read} == {"1", "2"}
        for name, pixels in read.items():
            np.testing.assert_array_equal(pixels, images[int(name)])
    (folder / "0.png").write_bytes(b"no picture")
    (folder / "1.png").unlink()
    assert {*pictures.pixels_of_files(folder, annotations.images)} == {"2"}
    assert pictures.pixels_of_records("/nowhere/*", []) == {}
