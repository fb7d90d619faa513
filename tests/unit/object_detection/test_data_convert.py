"""COCO -> records: what is kept, clipped, dropped and skipped; the report; the command."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from samples import encoded, read_back, unpack_mask

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.report import describe_conversion, format_seconds, progress_printer
from object_detection.convert.splits import find_splits
from object_detection.masks.rle import decode_mask
from object_detection.records import schema
from object_detection.records.card import find_card, load_card
from object_detection.records.card_builder import card_from_records
from object_detection.records.tfrecord_file import record_files

COMMAND = "dataset/create_coco_tfrecord.py"
SQUARE = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]


def picture(height=30, width=40, *, image_format="JPEG", mode="RGB", seed=0, **save):
    size = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return encoded(pixels, image_format, mode, **save)


def box(image_id, bbox, **more):
    return {"image_id": image_id, "category_id": 3, "bbox": bbox, "area": 25, **more}


def records(prefix):
    return sorted(read_back(f"{prefix}-*"), key=lambda fields: int(fields[schema.SOURCE_ID][0]))


def test_boxes_are_clipped_or_dropped_with_reasons(data, tmp_path):
    nan = float("nan")
    annotations, folder = data(
        {"a.jpg": picture(), "b.jpg": picture()},
        [
            box(0, [10, 10, 20, 15], area=123.5),
            # Clipped on two sides.
            box(0, [-5, 20, 20, 20], category_id=8, iscrowd=1, area=None),
            # A rounding error past the edge is no clipping.
            box(0, [30, 0, 10.0005, 30], area=None),
            box(0, [39.5, 0, 1, 1], area=0),
            box(0, [50, 10, 5, 5]),
            box(0, [10, 10, 0, 5]),
            box(0, [10, 10, 5, -5]),
            box(0, [nan, 10, 5, 5]),
            box(0, [1, 2, 3]),
            box(0, None),
        ],
    )
    conversion = convert(annotations, folder, tmp_path / "out" / "train", num_shards=1)
    first, empty = records(tmp_path / "out" / "train")
    columns = [first[name] for name in (schema.YMIN, schema.XMIN, schema.YMAX, schema.XMAX)]
    np.testing.assert_allclose(
        np.stack(columns, axis=1) * [30, 40, 30, 40],
        [[10, 10, 25, 30], [20, 0, 30, 15], [0, 30, 30, 40], [0, 39.5, 1, 40]],
        atol=1e-5,
    )
    assert first[schema.LABEL].tolist() == [3, 8, 3, 3]
    assert first[schema.TEXT] == [b"cat", b"dog", b"cat", b"cat"]
    assert first[schema.IS_CROWD].tolist() == [0, 1, 0, 0]
    # Stated areas are kept; missing ones are those of the boxes within the image.
    np.testing.assert_allclose(first[schema.AREA], [123.5, 150, 300, 0.5], rtol=1e-4)
    assert len(empty[schema.XMIN]) == 0
    assert schema.LABEL in empty

    card = conversion.card
    assert card.dropped == {
        "box: no width or no height": 2,
        "box: missing, and no mask to take it from": 1,
        "box: not four finite numbers": 2,
        "box: outside the image": 1,
    }
    assert card.examples["box: outside the image"] == ["a.jpg, annotation 5"]
    assert card.corrected == {
        "area: filled in from the box": 3,
        "box: clipped by more than 1 pixel": 1,
        "box: clipped to the image": 2,
    }
    assert (card.num_images, card.num_instances, card.num_crowd) == (2, 4, 1)
    assert (card.max_boxes_per_image, card.max_boxes_source_id) == (4, "0")
    assert find_card(f"{tmp_path}/out/train-*") == card == load_card(conversion.card_file)


def test_image_bytes_size_and_name_are_stored(data, tmp_path):
    encoded = picture()
    annotations, folder = data({"a.jpg": encoded})
    convert(annotations, folder, tmp_path / "val")
    (record,) = records(tmp_path / "val")
    assert record[schema.ENCODED] == [encoded]
    assert record[schema.FORMAT] == [b"jpeg"]
    assert (record[schema.HEIGHT].tolist(), record[schema.WIDTH].tolist()) == ([30], [40])
    assert record[schema.FILE_NAME] == [b"a.jpg"]


def test_records_go_round_robin_and_shards_are_no_more_than_images(data, tmp_path):
    annotations, folder = data({f"{i}.jpg": picture(seed=i) for i in range(5)})
    convert(annotations, folder, tmp_path / "train", num_shards=2)
    ids = [
        [fields[schema.SOURCE_ID][0] for fields in read_back(path)]
        for path in record_files(f"{tmp_path}/train-*")
    ]
    assert ids == [[b"0", b"2", b"4"], [b"1", b"3"]]
    card = convert(annotations, folder, tmp_path / "few", num_shards=32).card
    assert [shard.file for shard in card.shards] == [
        f"few-{i:05d}-of-00005.tfrecord" for i in range(5)
    ]


BAD_IMAGES = {
    "missing": (None, "no such file"),
    "empty": (b"", "empty file"),
    "text": (b"<html>404</html>", "not an image"),
    "cut jpeg": (picture()[:-40], "truncated or undecodable"),
    "cut png": (picture(image_format="PNG")[:-40], "truncated or undecodable"),
    "cut header": (picture()[:20], "not an image|truncated"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_skipped_and_counted_or_stop(data, tmp_path, kind):
    encoded, reason = BAD_IMAGES[kind]
    annotations, folder = data(
        {"good.jpg": picture(), "bad.jpg": encoded},
        [box(0, [1, 1, 5, 5]), box(1, [1, 1, 5, 5]), box(1, [2, 2, 5, 5])],
    )
    conversion = convert(annotations, folder, tmp_path / "train", max_bad_images=1)
    assert conversion.card.num_images == 1
    assert conversion.card.skipped_source_ids == ("1",)
    assert conversion.card.dropped["box: its image was dropped"] == 2
    assert sum(n for what, n in conversion.card.dropped.items() if what.startswith("image: ")) == 1
    assert "bad.jpg (image id 1)" in describe_conversion(conversion)
    for settings in ({"on_bad_image": "stop"}, {"max_bad_images": 0}):
        with pytest.raises(ValueError, match=rf"bad\.jpg.*({reason})"):
            convert(annotations, folder, tmp_path / "other" / "train", **settings)
        assert list((tmp_path / "other").iterdir()) == []


def test_bad_image_limit_holds_over_all_shards(data, tmp_path):
    files = {f"{i}.jpg": None if i % 2 else picture() for i in range(8)}
    annotations, folder = data(files)
    with pytest.raises(ValueError, match=r"more than max_bad_images=3.*check --image_dir"):
        convert(annotations, folder, tmp_path / "train", num_shards=8, max_bad_images=3)
    card = convert(annotations, folder, tmp_path / "train", num_shards=8, max_bad_images=4).card
    assert (card.num_images, len(card.shards)) == (4, 8)
    assert [shard.num_records for shard in card.shards] == [1, 0] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_format": "jpeg"}, "mask_format: expected png or bitpacked, got 'jpeg'"),
        ({"on_bad_image": "ignore"}, "on_bad_image: expected skip or stop"),
        ({"num_shards": 0}, "num_shards: expected at least 1"),
        ({"mask_format": "png"}, "masks were asked for, but none of the 1 annotations"),
    ],
)
def test_settings_that_make_no_sense(data, tmp_path, arguments, message):
    annotations, folder = data({"a.jpg": picture()}, [box(0, [1, 1, 5, 5])])
    with pytest.raises(ValueError, match=message):
        convert(annotations, folder, tmp_path / "out" / "train", **arguments)


def test_masks_in_both_formats(data, tmp_path):
    annotations, folder = data(
        {"a.jpg": picture()},
        [
            box(0, [2, 2, 10, 10], segmentation=SQUARE),
            box(0, [0, 0, 8, 8], segmentation={"size": [3, 3], "counts": [9]}),
        ],
    )
    card = convert(annotations, folder, tmp_path / "bits", mask_format="bitpacked").card
    assert card.has_masks
    assert card.corrected == {"mask unknown: run-length mask of another size than the image": 1}
    (record,) = records(tmp_path / "bits")
    known, unknown = (unpack_mask(packed) for packed in record[schema.MASK_112])
    assert known.mean() > 0.95
    assert unknown.sum() == 0
    convert(annotations, folder, tmp_path / "pngs", mask_format="png")
    (record,) = records(tmp_path / "pngs")
    known, unknown = (np.asarray(Image.open(io.BytesIO(p))) for p in record[schema.MASK_PNG])
    np.testing.assert_array_equal(known, decode_mask(SQUARE, 30, 40))
    assert unknown.shape == (30, 40)
    assert not unknown.any()


def file_contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tfrecord")}


def test_workers_do_not_change_the_records(data, tmp_path):
    files = {f"{i}.jpg": picture(seed=i) for i in range(320)}
    annotations, folder = data(files, [box(i, [1, 1, 1 + i % 20, 5]) for i in range(320)])
    seen = []
    cards = [
        convert(annotations, folder, tmp_path / name / "train", num_shards=3, num_workers=workers,
                progress=lambda done, total: seen.append((done, total))).card
        for name, workers in (("one", 1), ("two", 2))
    ]  # fmt: skip
    assert cards[0] == cards[1]
    assert file_contents(tmp_path / "one") == file_contents(tmp_path / "two")
    assert len(file_contents(tmp_path / "one")) == 3
    assert seen[-1] == (320, 320)


def test_error_in_a_worker_reaches_the_caller_and_leaves_nothing(data, tmp_path):
    files = {f"{i}.jpg": picture() for i in range(320)} | {"bad.jpg": b""}
    annotations, folder = data(files)
    with pytest.raises(ValueError, match=r"bad\.jpg.*empty file"):
        convert(annotations, folder, tmp_path / "out" / "train", num_workers=2, on_bad_image="stop")
    assert list((tmp_path / "out").iterdir()) == []


def test_report_lists_classes_losses_and_absent_classes(data, tmp_path):
    annotations, folder = data(
        {"a.jpg": picture(), "b.jpg": picture()},
        [box(0, [1, 1, 5, 5]), box(0, [1, 1, 6, 5]), box(0, [1, 1, 0, 5])],
    )
    text = describe_conversion(convert(annotations, folder, tmp_path / "train"))
    for part in (
        "train: 2 images, 1 without a box",
        "2 instances of 2 classes, 0 of them crowd regions; masks: none",
        "largest number of boxes in one image: 2 (image id 0)",
        "no instance of 1 classes: dog",
        "1 x box: no width or no height",
        "corrected: nothing",
        "train-card.json",
    ):
        assert part in text


def test_report_warns_of_a_set_without_boxes(data, tmp_path):
    annotations, folder = data({"a.jpg": picture()})
    conversion = convert(annotations, folder, tmp_path / "train")
    assert "WARNING: not one box" in describe_conversion(conversion)
    many = dataclasses.replace(
        conversion,
        skipped_images=[(f"{i}", f"{i}.jpg", "no such file") for i in range(13)],
        warnings=[f"{i}.jpg is odd" for i in range(12)],
        removed_files=["train-0", "train-1", "train-2"],
        seconds=0.25,
    )
    *_, tenth, more = (line for line in describe_conversion(many).split("\n") if "  " in line[:2])
    assert (tenth, more) == ("  9.jpg (image id 9): no such file", "  ... and 3 more")
    *_, tenth, more, removed, wrote = describe_conversion(many).split("\n")
    assert (tenth, more) == (
        "WARNING: 9.jpg is odd",
        "WARNING: ... and 2 more such images",
    )
    assert removed == "removed 3 files of an earlier conversion (train-0, ...)"
    assert wrote.endswith("train-card.json in 0.2 s (4 images/s)")


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        ([], {}, "no image to convert"),
        (None, {"num_shards": 0}, "num_shards: expected at least 1, got 0"),
        (None, {"mask_format": "rle"}, "mask_format: expected png or bitpacked, got 'rle'"),
        (None, {"on_bad_image": "keep"}, "on_bad_image: expected skip or stop, got 'keep'"),
    ],
)
def test_arguments_that_no_conversion_can_have(data, tmp_path, images, options, said):
    annotations, folder = data({"a.jpg": picture()})
    with pytest.raises(ValueError, match=said):
        convert(annotations, folder, tmp_path / "train", images=images, **options)
    with pytest.raises(FileNotFoundError, match=r"no image folder .*gone"):
        convert(annotations, tmp_path / "gone", tmp_path / "train")


def test_progress_in_a_log_is_a_line_every_ten_seconds():
    now = [0.0]
    stream = io.StringIO()
    show = progress_printer("converting", stream=stream, clock=lambda: now[0])
    for second in range(1, 31):
        now[0] = float(second)
        show(second * 10, 300)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "converting: 100/300 images (33%), 10/s, 20 s left",
        "converting: 200/300 images (67%), 10/s, 10 s left",
        "converting: 300/300 images (100%), 30 s",
    ]
    said = {
        9.94: "9.9 s",
        59.4: "59 s",
        185: "3 min 05 s",
        3599.4: "59 min 59 s",
        7800: "2 h 10 min",
    }
    assert {seconds: format_seconds(seconds) for seconds in said} == said


def test_command(commands, data, tmp_path):
    annotations, folder = data({"a.jpg": picture()}, [box(0, [2, 2, 9, 9], segmentation=SQUARE)])
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"annotations": [{"image_id": 0, "caption": "noise"}]}))
    done = commands.run(
        COMMAND,
        f"--image_dir={folder}",
        f"--object_annotations_file={annotations.path}",
        f"--caption_annotations_file={captions}",
        f"--output_file_prefix={tmp_path}/train",
        "--num_shards=1",
        "--include_masks",
        "--num_threads=1",
    )
    done.require_success()
    assert "1 instance of 2 classes" in done.output
    assert "converting train: 1/1 images (100%)" in done.errors
    (record,) = records(tmp_path / "train")
    assert record[schema.CAPTION] == [b"noise"]
    assert schema.MASK_112 in record


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --image_dir and one of --image_info_file"),
        (
            ["--image_dir=nowhere", "--object_annotations_file=no.json"],
            "no annotation file no.json",
        ),
        (["--image_dir=.", "--image_info_file=x.json", "--include_masks"], "--include_masks needs"),
    ],
)
def test_command_errors(commands, flags, message):
    done = commands.run(COMMAND, *flags)
    assert done.code == 1
    assert f"error: {message}" in done.errors
    assert "Traceback" not in done.errors


def test_image_list_alone_writes_no_object_fields(data, tmp_path):
    annotations, folder = data({"a.jpg": picture()})
    convert(None, folder, tmp_path / "test", images=annotations.images)
    (record,) = records(tmp_path / "test")
    assert not [name for name in record if name.startswith("image/object/")]


@pytest.mark.parametrize(
    ("folder", "with_masks"), [("coco_cc", True), ("bccd", False), ("nuclei", True)]
)
def test_real_sets(tmp_path, detection_test_data, folder, with_masks):
    splits = find_splits(detection_test_data / folder)
    split = next(name for name in splits if name.startswith("val"))
    annotation_file, image_dir = splits[split]
    annotations = read_annotations(annotation_file)
    mask_format = "bitpacked" if with_masks else None
    card = convert(
        annotations, image_dir, tmp_path / split, num_workers=1, mask_format=mask_format
    ).card
    assert card.num_images == len(annotations.images)
    assert card.num_instances == annotations.num_objects
    assert card.dropped == {}
    # A scan of the records alone comes to the same counts.
    scanned = card_from_records(record_files(f"{tmp_path}/{split}-*"))
    assert scanned.num_instances == card.num_instances
    assert scanned.shards == card.shards
    assert scanned.mask_format == mask_format
    assert set(scanned.categories) <= set(card.categories)
    largest = max(len(entries) for entries in annotations.objects.values())
    assert scanned.max_boxes_per_image == card.max_boxes_per_image == largest
