"""The data check: each fault is found and named, good sets raise no error."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from samples import instances

from engine.config.settings import DataConfig
from object_detection.check.anchor_fit import AnchorLayout, anchor_fit, best_overlaps
from object_detection.check.card_faults import card_faults
from object_detection.check.run import check_splits
from object_detection.check.split_table import read_table
from object_detection.coco import box_frame
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.prepare import prepare_records
from object_detection.convert.report import ROWS_BY_DEFAULT, describe_conversion

# [x, y, width, height] of an image of (width, height) -> what a wrong export writes.
WRONG = {
    "fraction": lambda x, y, w, h, W, H: [x / W, y / H, w / W, h / H],
    "fraction_centre": lambda x, y, w, h, W, H: [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H],
    "percent": lambda x, y, w, h, W, H: [100 * x / W, 100 * y / H, 100 * w / W, 100 * h / H],
    "percent_centre": lambda x, y, w, h, W, H: [
        *(100 * (x + w / 2) / W, 100 * (y + h / 2) / H, 100 * w / W, 100 * h / H)
    ],
    "corner": lambda x, y, w, h, W, H: [x, y, x + w, y + h],
    "exchanged_corner": lambda x, y, w, h, W, H: [y, x, y + h, x + w],
    "centre": lambda x, y, w, h, W, H: [x + w / 2, y + h / 2, w, h],
    "centred": lambda x, y, w, h, W, H: [x - w / 2, y - h / 2, w, h],
    "centred_corner": lambda x, y, w, h, W, H: [(x - w) / 2, (y - h) / 2, x + w, y + h],
    "exchanged": lambda x, y, w, h, W, H: [y, x, h, w],
}


def photographs(data):
    """Returns the instances of coco_cc and the folder of its images."""
    path = data / "coco_cc" / "annotations" / "instances_val2017.json"
    return json.loads(path.read_text()), data / "coco_cc" / "val2017"


def spoil(content, kind, *, every=1, masks=True):
    """Writes the boxes of a set in another way, those of every k-th annotation."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for index, entry in enumerate(content["annotations"]):
        if index % every == 0:
            entry["bbox"] = WRONG[kind](*entry["bbox"], *sizes[entry["image_id"]])
        if not masks:
            del entry["segmentation"]


def findings_of(content, images, tmp_path, *, layout=None):
    path = tmp_path / "instances_train.json"
    path.write_text(json.dumps(content))
    report, _ = check_splits({"train": (path, images)}, layout=layout)
    return report.findings


def errors_of(*args, **options):
    return {item.code: item for item in findings_of(*args, **options) if item.level == "error"}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("kind", WRONG)
def test_other_frames_are_told_and_refused(kind, masks, tmp_path, detection_test_data):
    content, images = photographs(detection_test_data)
    spoil(content, kind, masks=masks)
    code = kind.removesuffix("_centre") + "_boxes"
    found = errors_of(content, images, tmp_path)[code]
    assert found.count >= 0.95 * len(content["annotations"])
    assert found.examples[0].startswith("0000") and "annotation" in found.examples[0]
    assert "COCO wants x, y, width, height in pixels" in found.remedy
    if kind.endswith("_centre"):
        assert "Subtract half of the width" in found.remedy
    with pytest.raises(ValueError, match=r"for example \[.*\] of 0000.*COCO wants"):
        read_annotations(tmp_path / "instances_train.json")


@pytest.mark.parametrize(
    ("kind", "masks"),
    [("fraction", False), ("corner", False), ("corner", True), ("centre", True), ("percent", True)],
)
def test_a_mix_is_told(kind, masks, tmp_path, detection_test_data):
    content, images = photographs(detection_test_data)
    spoil(content, kind, every=3, masks=masks)
    found = errors_of(content, images, tmp_path)[f"{kind}_boxes"]
    assert 40 < found.count <= 90 and "mix" in found.what


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize(("name", "split", "images"), [
    ("coco_cc", "val2017", "val2017"), ("nuclei", "val", "val"),
])  # fmt: skip
def test_annotations_of_a_neighbour_are_told(
    shift, name, split, images, tmp_path, detection_test_data
):
    """By sizes where they differ, by pixels where they are all alike."""
    path = detection_test_data / name / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]]
    for entry in content["annotations"]:
        entry["image_id"] = ids[(ids.index(entry["image_id"]) + shift) % len(ids)]
    found = errors_of(content, detection_test_data / name / images, tmp_path)["shifted_ids"]
    assert ("the next image" if shift < 0 else "the image before") in found.what


@pytest.mark.parametrize(
    ("name", "image_dirs"),
    [
        ("bccd", {"train": "images", "val": "images", "test": "images"}),
        ("coco_cc", {"train2017": "train2017", "val2017": "val2017"}),
        ("nuclei", {"train": "train", "val": "val"}),
    ],
)
def test_good_sets_have_no_error(name, image_dirs, detection_test_data):
    root = detection_test_data / name
    splits = {
        split: (root / "annotations" / f"instances_{split}.json", root / folder)
        for split, folder in image_dirs.items()
    }
    report, _ = check_splits(splits, layout=None)
    assert report.errors == []


@pytest.mark.parametrize("side", [12, 60, 300])
def test_boxes_drawn_past_the_left_border_are_pixels(side):
    """One in five of 300, by some pixels; all others anywhere in the image."""
    random = np.random.default_rng(side)
    low = random.uniform(0, 640 - side, (300, 2))
    low[:60, 0] = -random.uniform(2, 10, 60)
    objects = [(1 + i % 4, 1, [*place, side, side]) for i, place in enumerate(low.tolist())]
    content = instances(range(1, 5), objects, ((1, "cat"),), size=(640, 640))
    assert read_annotations(content).num_objects == 300


@pytest.mark.parametrize(
    ("num_pixels", "num_shares", "is_fatal"),
    [(297, 3, True), (298, 2, False), (8, 1, False), (1, 1, True)],
)
def test_a_hundredth_of_fractions_is_too_much(num_pixels, num_shares, is_fatal):
    """Not one alone, which a slip may be, unless there are hardly any others."""
    low = np.random.default_rng(1).uniform(100, 400, (num_pixels, 2))
    boxes = np.concatenate([low, np.full((num_pixels, 2), 50.5)], axis=1)
    boxes = np.concatenate([boxes, np.tile([0.2, 0.3, 0.5, 0.25], (num_shares, 1))])
    n = len(boxes)
    known = np.tile([640.0, 480.0], (n, 1)), np.full((n, 4), np.nan), np.arange(n)
    (found,) = box_frame.frame_problems(boxes, *known)
    assert (found.kind, found.is_fatal, found.where.sum()) == ("fraction", is_fatal, num_shares)
    assert f"{num_shares} of {n} boxes lie within 0 and 1 (the others do not" in found.what


@pytest.mark.parametrize(
    "most", [100, 96]
)  # shares end at the border of their image, pixels do not
def test_percent_in_a_part_of_a_set_are_told_by_their_ends(most):
    """30 of 120 boxes lie in the first 100 pixels of 1000 x 800, a share of 1 in 80: 1.5 would."""
    random = np.random.default_rng(3)
    low = random.uniform((0, 0), (800, 600), (120, 2))
    boxes = np.concatenate([np.maximum(low, 100), np.full((120, 2), 150.5)], axis=1)
    low = random.uniform(0, 60, (30, 2))
    boxes[::4] = np.concatenate([low, np.where(random.random((30, 2)) < 0.2, most - low, 30)], 1)
    known = np.tile([1000.0, 800.0], (120, 1)), np.full((120, 4), np.nan), np.arange(120)
    found = box_frame.frame_problems(boxes, *known)
    assert [(item.kind, item.is_fatal) for item in found] == [("percent", False)] * (most == 100)
    for item in found:
        assert item.where.tolist() == [i % 4 == 0 for i in range(120)]
        assert "30 of 120 boxes lie in the first 100 pixels" in item.what
        assert "2 would by chance" in item.what


@pytest.mark.parametrize(
    "boxes",
    [
        [[10, 10, 30, 30], [50, 50, 100, 100], [5, 5, 10, 10]],  # one whose middle is at 100
        [[10, 10, 80, 80], [0, 0, 100, 100], [20, 30, 40, 50]],
        [[10, 20, 85, 75]] * 12,
        # As corners or as middles all would end at 100; most are neither.
        [[100, 20 + k, 100, 100] for k in range(9)] + [[20, 100, 50, 50 + k] for k in range(9)],
        [[x, x, 40 + x % 11, 38 + x % 7] for x in range(5, 55, 3)],  # none ends at 100
    ],
)
def test_small_sets_of_round_numbers_are_pixels(boxes, tmp_path):
    objects = [(1 + number % 4, 1, box) for number, box in enumerate(boxes)]
    content = instances(range(1, 5), objects, ((1, "cat"),), size=(480, 640))
    assert read_annotations(content).num_objects == len(boxes)


def codes_of(small_set, tmp_path, **options):
    splits = {}
    for split, content in small_set.items():
        path = tmp_path / f"instances_{split}.json"
        path.write_text(json.dumps(content))
        splits[split] = (path, tmp_path / split)
    report, _ = check_splits(splits, layout=None, **options)
    return {item.code: item for item in report.findings}


def test_the_small_set_is_good(small_set, tmp_path):
    assert codes_of(small_set, tmp_path) == {}


def test_faults_of_single_boxes(small_set, tmp_path):
    entries = small_set["train"]["annotations"]
    entries[0]["bbox"] = [70, 6, 20, 20]
    entries[2]["bbox"] = [5, 5, 0.4, 20]
    entries[5]["bbox"] = list(entries[4]["bbox"])
    entries.append({**entries[6], "id": 99})
    entries[3]["iscrowd"] = 1
    codes = codes_of(small_set, tmp_path)
    assert codes["clipped_boxes"].examples[0].startswith("1.png, annotation 1:")
    assert codes["tiny_boxes"].examples[0].startswith("2.png, annotation 3:")
    assert codes["two_classes"].examples[0].startswith("3.png, annotation 6:")
    assert codes["duplicate_boxes"].examples[0].startswith("4.png, annotation 99:")
    assert codes["crowds"].count == 1


def test_why_there_is_no_object_is_said(small_set, tmp_path):
    train, test = small_set["train"], small_set["val"]
    for entry in train["annotations"]:
        entry["bbox"] = [*entry["bbox"], 0.9]
    found = codes_of({"train": train}, tmp_path)["no_objects"]
    assert found.what == "4 images and not one object: 8 x box: not four finite numbers"
    assert (found.level, found.examples[0]) == ("error", "1.png, annotation 1")
    (tmp_path / "val").rename(tmp_path / "test")
    del test["annotations"]
    found = codes_of({"test": test}, tmp_path)
    assert found["no_objects"].level == "note"
    assert not [item for item in found.values() if item.level == "error"]


def test_faults_of_images(small_set, tmp_path):
    images = small_set["train"]["images"]
    images[0] |= {"width": 21, "height": 15}  # a quarter, one side rounded up
    images[1]["height"] = 70
    (tmp_path / "train" / "3.png").unlink()
    tagged = Image.new("RGB", (80, 60))
    exif = tagged.getexif()
    exif[0x0112] = 6
    tagged.save(tmp_path / "train" / "4.png", exif=exif)
    images.append({"id": 9, "file_name": "9.png", "width": 80, "height": 60})
    (tmp_path / "train" / "9.png").write_bytes(b"")
    images.append({"id": 11, "file_name": "11.png", "width": 80, "height": 60})
    (tmp_path / "train" / "11.png").write_bytes((tmp_path / "train" / "2.png").read_bytes()[:-30])
    images.append({"id": 10, "file_name": "../val/1.png", "width": 80, "height": 60})
    codes = codes_of(small_set, tmp_path, max_instances=1)
    assert codes["scaled_images"].examples[0].startswith("1.png") and "21 x 15" in str(codes)
    assert codes["other_sizes"].level == "error" and "2.png" in codes["other_sizes"].examples[0]
    assert "3.png" in codes["missing_images"].examples[0]
    assert "EXIF orientation 6" in codes["exif_tag"].examples[0]
    assert "--exif=apply" in codes["exif_tag"].remedy
    empty, cut, outside = codes["unreadable_images"].examples
    assert empty == "9.png (image id 9): empty file"
    assert cut.startswith("11.png (image id 11): truncated or undecodable")
    assert outside.startswith("../val/1.png (image id 10): outside of the image folder")
    assert "9.png" in codes["empty_images"].examples[0]
    assert "1.png (image id 1): 2 objects" in codes["too_many_for_training"].examples


def test_faults_between_splits(small_set, tmp_path):
    small_set["val"]["categories"] = [{"id": 1, "name": "CAT"}, {"id": 2, "name": "cow"}]
    small_set["train"]["annotations"] = [
        entry for entry in small_set["train"]["annotations"] if entry["category_id"] == 2
    ]
    shutil.copy(tmp_path / "train" / "2.png", tmp_path / "val" / "3.png")
    codes = codes_of(small_set, tmp_path)
    assert codes["class_names"].examples == ("id 2: 'dog' in train, 'cow' in val",)
    assert codes["class_names"].level == "error"
    assert "'CAT': 4 objects" in codes["untaught_classes"].examples
    assert codes["shared_images"].examples == ("train/2.png (image id 2) = val/3.png (image id 3)",)
    assert codes["unused_classes"].split == "train"


def test_splits_are_not_compared_where_the_one_trained_on_cannot_be_read(small_set, tmp_path):
    other = {**small_set["val"], "categories": [{"id": 1, "name": "cow"}, {"id": 2, "name": "ox"}]}
    (tmp_path / "test").mkdir()
    codes = codes_of({"train": {}, "val": small_set["val"], "test": other}, tmp_path)
    assert codes["unreadable"].split == "train" and "class_names" not in codes


def layout_of_squares(*sides):
    shapes = [np.array([(s, s) for s in sides], np.float64)]
    return AnchorLayout([8.0], shapes, (160, 160), ("anchor_sizes", sides))


def test_anchor_overlaps_by_hand():
    boxes = np.array([[0.0, 0, 8, 8], [4, 0, 8, 8], [0, 0, 16, 16]])
    # The cell's middle is (4, 4); a box in the next half cell is 4 pixels off.
    expected = [1.0, 1 / 3, 64 / 256]
    np.testing.assert_allclose(best_overlaps(boxes, layout_of_squares(8)), expected)


@pytest.fixture
def small_table(small_set, tmp_path):
    path = tmp_path / "instances_train.json"
    path.write_text(json.dumps(small_set["train"]))
    return read_table("train", path, tmp_path / "train", follow_links=False)


def test_progress_begins_once_the_annotations_are_read(small_set, tmp_path):
    path, asked, counts = tmp_path / "instances_train.json", [], []

    def progress(name):
        asked.append(name)
        return lambda done, total: counts.append((done, total))

    def read(text):
        path.write_text(text)
        read_table("train", path, tmp_path / "train", follow_links=False, progress=progress)

    with pytest.raises(ValueError, match="instances_train.json"):
        read("{")
    assert asked == []
    read(json.dumps(small_set["train"]))
    assert asked == ["train"] and counts == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_boxes_below_the_anchors_are_told_with_what_helps(small_table):
    facts, found = anchor_fit(small_table, layout_of_squares(120))
    assert facts["recall"] == 0 and facts["smallest_anchor_px"] == 120
    codes = {item.code: item for item in found}
    assert "As --hparams, " in codes["anchor_recall"].remedy
    assert "anchor_sizes=60 gives" in codes["anchor_recall"].remedy
    assert codes["below_smallest_anchor"].examples[0].startswith("1.png, annotation 1:")
    facts, found = anchor_fit(small_table, layout_of_squares(40, 60))
    assert facts["recall"] == 1 and found == []
    assert facts["common_shapes_px"][0] == [40.0, 40.0]
    oblong = dataclasses.replace(layout_of_squares(40), limits=(60, 160))
    facts, _ = anchor_fit(small_table, oblong)
    # At 256 x 256 pixels boxes are 3.2 times as large: 64 and 96 pixels.
    assert facts["recall"] == 0.5 and facts["changes"]["image_size=256"] == 0


def test_counts_of_a_large_set_are_of_the_set_and_not_of_its_sample(small_table, monkeypatch):
    monkeypatch.setattr("object_detection.check.anchor_fit._MOST_BOXES", 4)
    facts, found = anchor_fit(small_table, layout_of_squares(120))
    assert sum(count for _, count in facts["recall_by_size"].values()) == 8
    assert [item.count for item in found] == [8, 8]


@pytest.fixture
def run_check(commands):
    """Runs the command on a folder, with flags."""
    return lambda *words: commands.run("dataset.check", *words)


@pytest.mark.parametrize(
    ("case", "code", "level"),
    [
        ("normalised_boxes", "fraction_boxes", "error"),
        ("corner_boxes", "corner_boxes", "error"),
        ("crowded_image", "too_many_for_training", "warning"),
    ],
)
def test_the_command_tells_reported_cases(case, code, level, tmp_path, run_check, reported_cases):
    folder, out = reported_cases / case, tmp_path / "out"
    done = run_check(folder, f"--output_dir={out}", "--pictures=4")
    assert done.code == int(level == "error"), done.errors
    assert f"{level.upper()} {code} [train]" in done.output
    assert "train_01.jpg" in done.output
    written = json.loads((out / "check.json").read_text())
    assert code in {item["code"] for item in written["findings"]}
    with Image.open(out / "sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_the_command_draws_nothing_where_no_picture_can_be_read(small_set, tmp_path, run_check):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(small_set["train"]))
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"<html>")
    options = (f"--output_dir={tmp_path / 'out'}", "--pictures=1")
    done = run_check(tmp_path, *options)
    assert "ERROR unreadable_images [train]: 4 of 4 image files cannot be used" in done.output
    assert "checking train: 4/4 images (100%)" in done.errors
    assert done.output.endswith("no picture to draw: not one image file can be used\n")


def test_the_command_takes_a_folder_and_nothing_else(tmp_path, run_check):
    done = run_check(tmp_path / "none")
    assert done.code == 1 and "no data folder" in done.errors
    done = run_check()
    assert done.code == 2 and "expected one data folder, got nothing; see --help" in done.errors
    done = run_check(tmp_path, "--pictures=1")
    assert done.code == 2 and "--pictures needs --output_dir" in done.errors


def test_records_are_not_made_of_hopeless_boxes(small_set, tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, content in small_set.items():
        for entry in content["annotations"]:
            entry["bbox"] = [300 + entry["id"], 5, 20, 20] if entry["id"] < 3 else entry["bbox"]
            entry["bbox"] = [65, 5, 30, 20] if entry["id"] > 2 else [60, 5, 20, 20]
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    lines = []
    with pytest.raises(ValueError, match=r"annotation 3.*--on_data_error=report"):
        prepare_records(tmp_path, tmp_path / "out", with_masks=False, report=lines.append)
    assert "ERROR far_clipped_boxes [train]" in "\n".join(lines)
    assert not list((tmp_path / "out").glob("*.tfrecord"))
    made = prepare_records(
        *(tmp_path, tmp_path / "out"),
        with_masks=False, on_data_error="report", report=lines.append,
    )  # fmt: skip
    assert (made.folder / "check.json").is_file() and list(made.folder.glob("train-*.tfrecord"))


def test_cards_alone_tell_some_faults(small_set, tmp_path):
    cards = {}
    small_set["train"]["annotations"] = [
        entry for entry in small_set["train"]["annotations"] if entry["category_id"] == 2
    ]
    small_set["val"]["categories"][1]["name"] = "Dog"
    for entry in small_set["train"]["annotations"]:
        entry["bbox"] = [70, 5, 20, 20]
    for split, content in small_set.items():
        annotations = read_annotations(content)
        cards[split] = convert(annotations, tmp_path / split, tmp_path / "records" / split).card
    lines = card_faults(cards["train"], cards["val"], layout_of_squares(200), max_instances=0)
    many, small, clipped, untaught = lines
    assert "image 1 has 1 boxes: beyond max_instances_per_image=0" in many
    assert "half of the boxes are smaller than" in small
    assert "train: 4 of 4 boxes: box: clipped by more than 1 pixel" in clipped
    assert "1 of 2 classes of val have no object to learn from" in untaught and "cat" in untaught
    assert not list(
        card_faults(cards["val"], cards["train"], layout_of_squares(40), max_instances=9)
    )[1:]


def test_a_conversion_says_what_training_leaves_out(small_set, tmp_path):
    assert DataConfig().max_instances_per_image == ROWS_BY_DEFAULT
    entry = small_set["train"]["annotations"][0]
    small_set["train"]["annotations"] += [{**entry, "id": 100 + k} for k in range(120)]
    annotations = read_annotations(small_set["train"])
    made = convert(annotations, tmp_path / "train", tmp_path / "records" / "train")
    text = describe_conversion(made)
    assert "largest number of boxes in one image: 122 (image id 1)" in text
    assert "training leaves out the smallest 22 of them" in text
