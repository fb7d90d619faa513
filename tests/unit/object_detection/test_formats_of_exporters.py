"""What exporters make of the formats, after public reports: read right, counted, or refused."""

import json
from urllib.parse import quote

import pytest
from data_folder import BOXES, NAMES, SIZE, Folder, plain
from PIL import Image
from samples import instances, yolo_lines

from object_detection.check.run import check_splits
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert


def yolo(folder, lines="", *, label="labels/a.txt", image="a.jpg"):
    folder.write(f"images/{image}")
    folder.write(label, lines or yolo_lines(BOXES, NAMES, SIZE))


# ------------------------------------------------------------------------------ YOLO


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("décran 1.jpg", f"labels/{quote('décran 1')}.txt"),  # HumanSignal/label-studio#1266
        ("cafe\u0301.jpg", "labels/café.txt"),
        ("a.jpg", "labels/1a2b3c4d-a.txt"),
        ("a.jpg", "labels/a.jpg.txt"),
        ("a.JPG", "labels/A.TXT"),
        ("a.jpg", "annotations/train/a.txt"),
    ],
)
def test_labels_of_yolo_under_another_name_or_elsewhere(folder, image, label):
    folder.write("classes.txt", "\n".join(NAMES))
    yolo(folder, image=image, label=label)
    assert folder.read() == {folder.splits().popitem()[0]: {image: plain()}}
    assert "1 x label file found under another name or elsewhere" in folder.said


def test_labels_of_yolo_without_an_image_are_counted(folder):
    folder.write("data.yaml", "names: [cat, dog]")
    yolo(folder)
    folder.write("labels/gone.txt", "0 0.5 0.5 0.1 0.1")
    folder.write("old/a.txt", "0 0.5 0.5 0.1 0.1")
    folder.write("README.txt", "0 is a cat")
    assert folder.read() == {"all": {"a.jpg": plain()}}
    assert "2 x label file of no image, or of one that has another, left out: " in folder.said
    assert "gone.txt" in folder.said


@pytest.mark.parametrize(
    ("lines", "boxes"),
    [
        ("0 0,5 0,5 0,5 0,2\n", [("cat", 10, 8, 20, 4)]),
        ("0, 0.5, 0.5, 0.5, 0.2\n", [("cat", 10, 8, 20, 4)]),
        ("0 0.1 0.1 0.5 0.1 0.5 0.6\n", [("cat", 4, 2, 16, 10)]),  # a triangle
        ("0 0.5 0.5 0.5 0.2 0.4 0.4 1 0.6 0.6 0\n" * 2, [("cat", 10, 8, 20, 4)] * 2),  # key points
    ],
)
def test_lines_of_yolo_as_others_write_them(folder, lines, boxes):
    folder.write("classes.txt", "\n".join(NAMES))
    yolo(folder, lines)
    assert folder.read() == {"all": {"a.jpg": plain(boxes)}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels/a.txt": "0 10 12 20 8"}, r"a\.txt line 1: '0 10 12 20 8': expected shares"),
        ({"labels/a.txt": "0 50.0 50.0 20 30"}, "are these pixels or percent"),
        ({"classes.txt": "cat\n\ndog\n"}, r"classes\.txt line 2 is empty"),
        ({"labels/classes.txt": "dog\ncat\n"}, "number the classes differently"),
        ({"labels/a.txt": "0.5 0.5 0.5 0.1 0.1"}, r"line 1: class 0\.5, but 2 classes"),
        ({"data.yaml": "{train: photos, val: images, names: [cat, dog]}"}, "at train: photos in"),
    ],
)
def test_what_yolo_cannot_mean_is_refused(folder, files, message):
    folder.write("classes.txt", "\n".join(NAMES))
    yolo(folder)
    for name, content in files.items():
        folder.write(name, content)
    with pytest.raises(ValueError, match=message):
        folder.read()


def test_polygons_of_zeros_and_ones_are_no_key_points(folder):
    folder.write("classes.txt", "cat")
    yolo(folder, "0 0 0 0.5 0 1 0 1 1 0 1")
    assert folder.read() == {"all": {"a.jpg": plain([("cat", 0, 0, *SIZE)])}}


def test_class_numbers_of_yolo_are_lines_and_names_are_text(folder):
    yolo(folder, "2 0.5 0.5 0.5 0.2")
    folder.write("classes.txt", "background\ncat\ndog\n\n")
    assert folder.read() == {"all": {"a.jpg": plain([("dog", 10, 8, 20, 4)])}}
    folder.write("data.yaml", "names: [on, off, 1.10]\ntrain: images\nval: gone\ntest:\n")
    folder.write("a.yaml", "{{ a template }}: [")
    folder.write("hyp.yaml", "nc: 80")
    folder.write("photos/b.jpg")
    assert folder.read() == {"train": {"a.jpg": plain([("1.10", 10, 8, 20, 4)])}}
    assert "1 x split of data.yaml without images left out: val: gone" in folder.said
    assert "1 x image in no split of data.yaml left out" in folder.said


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "[cat, dog, hen, cow]"])
def test_a_number_of_classes_other_than_the_names_is_refused(folder, names):
    yolo(folder)
    folder.write("data.yaml", f"nc: 3\nnames: {names}")
    with pytest.raises(ValueError, match=r"data\.yaml: nc is 3, but [24] names are .*shifts"):
        folder.read()


def test_an_image_twice_in_a_list_and_a_name_twice_among_the_classes(folder):
    yolo(folder)
    folder.write("data.yaml", "names: [cat, cat]\ntrain: train.txt")
    folder.write("train.txt", "images/a.jpg\nimages/a.jpg\n")
    assert folder.read() == {"train": {"a.jpg": plain([("cat", *box[1:]) for box in BOXES])}}
    assert "1 x class of the same name as another: taken as one: 1 cat" in folder.said


def test_shares_of_a_picture_that_cannot_be_read_are_left_out(folder):
    folder.write("classes.txt", "\n".join(NAMES))
    yolo(folder)
    yolo(folder, image="b.jpg", label="labels/b.txt")
    (folder.root / "images/b.jpg").write_bytes(b"")
    assert folder.read() == {"all": {"a.jpg": plain(), "b.jpg": []}}
    assert "1 x objects of an image without a size left out: b.jpg" in folder.said


# ------------------------------------------------------------------------------ others


@pytest.mark.parametrize("last", [3, 5])
def test_a_track_of_key_frames_alone_is_interpolated(folder, last):
    for frame in range(last + 1):
        folder.write(f"frame_{frame:06d}.jpg")
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}" xtl="{x}" ytl="2" xbr="{x + 10}" ybr="8"/>'
        for frame, x, outside in ((0, 0, 0), (2, 8, 0), (4, 8, 1))
    )
    folder.write("a.xml", f'<annotations><track label="cat">{boxes}</track></annotations>')
    xs = [[entry[1] for entry in objects] for objects in folder.read()["all"].values()]
    assert xs == [[0], [4], [8], [8], [], []][: last + 1]
    assert "2 x box between key frames interpolated" in folder.said


def test_labels_of_cvat_are_classes_once_and_parts_of_skeletons_none(folder):
    folder.write("a.jpg")
    names = ("cat</name>", "cat</name>", "</name>", "paw</name><parent>cat</parent>", "dog</name>")
    labels = "".join(f"<label><name>{name}</label>" for name in names)
    shapes = "".join(
        f'<polygon label="cat" points="{points}"/>' for points in ("4,2;20,2;20,12", "4,2;20,2")
    )
    folder.write(
        "a.xml",
        f"<annotations><meta>{labels}</meta>"
        f'<image name="a.jpg" width="40" height="20">{shapes}</image></annotations>',
    )
    assert folder.read() == {"all": {"a.jpg": plain([("cat", 4, 2, 16, 10)])}}
    assert "1 x polygon of fewer than 3 points left out" in folder.said
    ((path, _),) = folder.splits().values()
    assert list(read_annotations(path).class_names) == ["cat", "dog"]


@pytest.mark.parametrize("count", [2, 3])
def test_pictures_of_a_video_numbered_from_1(folder, count):
    for number in range(1, count + 1):
        folder.write(f"frame{number:04d}.jpg")
    boxes = "".join(
        f'<box frame="{frame}" outside="0" xtl="{frame}" ytl="2" xbr="20" ybr="8"/>'
        for frame in range(3)
    )
    folder.write("a.xml", f'<annotations><track label="cat">{boxes}</track></annotations>')
    xs = [[entry[1] for entry in objects] for objects in folder.read()["all"].values()]
    # With a picture too few the numbers are those of the frames, and the first is not there.
    assert xs == ([[0], [1], [2]] if count == 3 else [[1], [2]])
    assert ("picture 1 is frame 0" in folder.said) == (count == 3)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_others_write_them(folder, separator):
    folder.write("a.jpg")
    folder.write("b.jpg")
    rows = [
        ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"),
        ("a.jpg", 80, 40, "cat", 2, 4, 22, 20),  # of a picture twice as large
        ("b.jpg", 40, 20, "", "", "", "", ""),
    ]
    folder.write("boxes.csv", "\n".join(separator.join(map(str, row)) for row in rows))
    ((path, images),) = folder.splits().values()
    listed = read_annotations(path)
    assert [(image.width, image.height) for image in listed.images] == [(80, 40), (40, 20)]
    made = convert(listed, images, f"{folder.root}-records/all", num_workers=1)
    assert made.card.num_images == 2 and made.card.resized_images == {"1": (20, 40)}
    line = ("a.jpg", "40", "20", "", "1", "1", "9", "9")
    folder.write("boxes.csv", "\n".join(map(separator.join, (rows[0], line))))
    with pytest.raises(ValueError, match=r"boxes\.csv line 2: a box without a class"):
        folder.read()


@pytest.mark.parametrize(
    "line",
    [
        "{image},{x},{y},{x2},{y2},{name}",  # keras-retinanet
        "{image},{x},{y},{x2},{y2},{name},40,20",  # eg4000/SKU110K_CVPR19#54
        "{name},{x},{y},{w},{h},{image},40,20",  # SkalskiP/make-sense#253
    ],
)
def test_tables_without_a_heading(folder, line):
    folder.write("a.jpg")
    lines = [
        line.format(image="a.jpg", name=n, x=x, y=y, x2=x + w, y2=y + h, w=w, h=h)
        for n, x, y, w, h in BOXES
    ]
    folder.write("train.csv", "\n".join(lines))
    assert folder.read() == {"train": {"a.jpg": plain()}}


def test_shares_and_sets_of_automl(folder):  # SkalskiP/make-sense#201
    lines = []
    for image, split in (("a", "TRAIN"), ("b", "VALIDATION"), ("c", "UNASSIGNED")):
        folder.write(f"photos/{image}.jpg")
        for name, x, y, w, h in BOXES:
            low, high = f"{x / 40},{y / 20}", f"{(x + w) / 40},{(y + h) / 20}"
            lines.append(f"{split},gs://bucket/{image}.jpg,{name},{low},,,{high},,")
    folder.write("export.csv", "\n".join(lines))
    assert folder.read() == {
        "train": {"a.jpg": plain()},
        "val": {"b.jpg": plain()},
        "all": {"c.jpg": plain()},
    }


@pytest.mark.parametrize(
    "heading",
    [
        '"image","xmin","ymin","xmax","ymax","label"',  # VoTT
        "location , x1, y1, x2, y2, class_name",  # fizyr/keras-retinanet#1495
        "image_path,x_min,y_min,x_max,y_max,category",
    ],
)
def test_tables_whose_columns_have_other_names(folder, heading):
    folder.write("a.jpg")
    lines = [f"a.jpg,{x}.0,{y},{x + w},{y + h},{name}" for name, x, y, w, h in BOXES]
    folder.write("train.csv", "\n".join([heading, *lines]))
    assert folder.read() == {"train": {"a.jpg": plain()}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.jpg 1,2,11,10,0 20,4,30,12,1", "has boxes behind the names of images, which is not re"),
        ("a.jpg,1,2,11,10,cat", r"is a table of boxes: name it _annotations\.csv"),
    ],
    ids=["YOLO for Keras", "keras-frcnn"],
)
def test_text_files_of_boxes_are_named(folder, line, says):
    folder.write("a.jpg")
    folder.write("_annotations.txt", f"{line}\n")
    folder.write("_classes.txt", "cat\ndog\n")
    with pytest.raises(ValueError, match=rf"no annotations in a known .*_annotations\.txt {says}"):
        folder.read()


def test_labels_that_are_not_quite_those_of_yolo_are_shown(folder):
    folder.write("train/a.jpg")
    folder.write("labels/a.txt", "cat 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"a\.txt begins with 'cat 0\.5 0\.5 0\.2 0\.2': YOLO's"):
        folder.read()


def test_texts_of_windows_shell(folder):
    """They are UTF-16, mostly with a byte order mark."""
    yolo(folder, yolo_lines(BOXES, NAMES, SIZE).encode("utf-16"))
    folder.write("classes.txt", "\r\n".join(NAMES).encode("utf-16"))
    folder.write("train.txt", "images/a.jpg\r\n".encode("utf-16"))
    assert folder.read() == {"train": {"a.jpg": plain()}}
    other = Folder(folder.root.parent / "other")
    other.write("a.jpg")
    for encoding in ("utf-16", "utf-16-le"):
        other.write("train.csv", "a.jpg,1,2,11,10,cat\r\n".encode(encoding))
        assert other.read() == {"train": {"a.jpg": plain(BOXES[:1])}}


# ------------------------------------------------------------------------------ COCO


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y, w, h: {"x": x, "y": y, "width": w, "height": h, "cx": 0},
        lambda *box: [list(box)],
    ],
)
def test_boxes_of_coco_in_another_form(form):
    content = instances(["1"], [("1", 3, [1, 2, 10, 8])])
    content["annotations"][0]["bbox"] = form(1, 2, 10, 8)
    read = read_annotations(content)
    (entry,) = read.objects["1"]
    assert entry["bbox"] == [1, 2, 10, 8]
    assert "box: in another form" in "\n".join(read.describe_findings(with_masks=False))


@pytest.mark.parametrize("name", ["photo", "/data/upload/3/8a7b6c5d-photo.jpg"])
def test_images_of_coco_without_ending_and_with_the_prefix_of_an_upload(folder, name):
    folder.write("pictures/photo.jpg")
    content = instances(["1"], [("1", 3, [1, 2, 10, 8])], size=SIZE[::-1])
    content["images"][0]["file_name"] = name
    folder.write("instances_all.json", json.dumps(content))
    ((path, images),) = folder.splits().values()
    made = convert(read_annotations(path), images, f"{folder.root}-records/all", num_workers=1)
    assert made.card.num_images == 1 and "under another name" in " ".join(made.card.corrected)


def test_folders_with_other_pictures_of_the_same_names_are_not_guessed_among(folder):
    for place in ("one", "two"):
        folder.write(f"{place}/1.jpg")
    content = json.dumps(instances(["1"], [("1", 3, [1, 2, 10, 8])]))
    folder.write("instances_all.json", content)
    Image.new("RGB", SIZE, (1, 2, 3)).save(folder.root / "two/1.jpg")
    with pytest.raises(ValueError, match=r"'1\.jpg' may be .*one/1\.jpg or .*two/1\.jpg"):
        folder.splits()
    (folder.root / "two").rename(folder.root / "images")
    assert folder.splits()["all"][1] == folder.root / "images"


@pytest.mark.parametrize(
    ("place", "splits"),
    [
        ("{}/{}.json", {"train", "val"}),
        ("{}/annotations.json", {"train_annotations", "val_annotations"}),
        ("archive/v1/coco/annotations/instances_{}.json", {"train", "val"}),
    ],
)
def test_annotations_of_coco_beside_images_or_deep_in_an_archive(folder, place, splits):
    root = place.split("{")[0].partition("annotations")[0]
    for split in ("train", "val"):
        folder.write(f"{root}{split}/{split}.jpg")
        content = instances([split], [(split, 3, [1, 2, 10, 8])])
        folder.write(place.format(split, split), json.dumps(content))
    folder.write("config.json", '{"lr": 0.1}')
    folder.write("results.json", "[]")
    read = folder.read()
    assert set(read) == splits and sum(map(len, read.values())) == 2


def test_a_broken_file_of_annotations_beside_a_good_one_is_named(folder):
    folder.write("images/1.jpg")
    content = json.dumps(instances(["1"], [("1", 3, [1, 2, 10, 8])]))
    folder.write("train.json", content)
    folder.write("val.json", '{"images": [')
    with pytest.raises(ValueError, match=r"val\.json is no valid JSON"):
        folder.splits()


def test_classes_that_are_called_alike_are_told(folder):
    for split in ("train", "val"):
        folder.write(f"{split}/1.jpg")
        names = [(1, "cat"), (2, "Cat"), (3, "dog")]
        content = instances(["1"], [("1", 1, [1, 2, 10, 8])], names, size=SIZE[::-1])
        folder.write(f"instances_{split}.json", json.dumps(content))
    report, _ = check_splits(folder.splits(), layout=None)
    codes = {item.code: item for item in report.findings}
    assert codes["alike_classes"].examples == ("'cat' (id 1), 'Cat' (id 2)",)
    assert "class_ids" not in codes
