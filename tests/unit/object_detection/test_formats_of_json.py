"""What exporters of JSON make of their formats, after public reports: read right, or refused."""

import base64
import csv
import io
import json
import math
import zlib

import numpy as np
import pytest
from data_folder import BOXES, NAMES, SIZE, plain
from PIL import Image
from samples import encoded, instances, yolo_lines

from object_detection.coco.annotations import read_annotations


def test_shapes_of_labelme_as_others_write_them(folder):
    folder.write("a.jpg")
    corners = [[1, 2], [11, 2], [11, 10], [1, 10]]
    shapes = [
        {"label": "cat", "points": corners, "shape_type": "rotation", "group_id": [1]},
        {"label": "__ignore__", "points": corners[::2], "shape_type": "rectangle"},
        {"label": "cat", "points": corners, "shape_type": "spiral"},
        {"label": "dog", "points": [[20, 10], [25, 10]], "shape_type": "circle"},
    ]
    content = {"imageData": "A" * 100_000, "imagePath": "a.jpg", "shapes": shapes}
    folder.write("renamed.json", json.dumps(content))
    circle = ("dog", 15, 5, 10, 10)
    assert folder.read() == {"all": {"a.jpg": plain([circle, ("cat", 1, 2, 10, 8)])}}
    assert "1 x object called __ignore__ left out: renamed.json" in folder.said
    assert "1 x spiral left out" in folder.said
    mask = {"label": "cat", "points": [[1, 2]], "shape_type": "mask", "mask": "AAAA"}
    size = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    for wrong, said in (
        ({"shapes": None}, "expected LabelMe's"),
        ({"shapes": [5]}, "expected LabelMe's"),
        ({"shapes": [mask]}, r"\[0\]: a mask, but the file states no imageHeight and imageWidth"),
        ({"shapes": [mask], **size}, r"\[0\]: its 'mask' is no picture"),
    ):
        folder.write("renamed.json", json.dumps({**content, **wrong}))
        with pytest.raises(ValueError, match=rf"renamed.*{said}"):
            folder.read()


def label_studio_task(image, **changes):
    value = {"x": 2.5, "y": 10, "width": 25, "height": 40, "rectanglelabels": ["cat", "dog"]}
    shape = {"original_width": SIZE[0], "original_height": SIZE[1], "value": value, **changes}
    return {"data": {"image": image}, "annotations": [{"result": [shape]}]}


def test_tasks_of_label_studio_as_others_write_them(folder):
    folder.write("photos/a.jpg")
    uri = base64.b64encode(b"s3://bucket/x/a.jpg").decode()
    task = label_studio_task(f"/tasks/1/resolve/?fileuri={uri}", image_rotation=90)
    folder.write("tasks.json", json.dumps([task]))
    assert folder.read() == {"all": {"a.jpg": plain([("cat", 1, 2, 10, 8)])}}
    assert "1 x object with several labels: the first is taken" in folder.said
    assert "1 x object drawn on a turned image" in folder.said
    (annotation,) = task["annotations"]
    annotation["result"][0]["value"]["rectanglelabels"] = "cat"
    (other,) = label_studio_task("", value={**annotation["result"][0]["value"], "x": 50})[
        "annotations"
    ]
    task["annotations"] = [other, annotation, {**other, "was_cancelled": True}]
    folder.write("tasks.json", json.dumps([task]))
    assert folder.read() == {"all": {"a.jpg": plain([("cat", 1, 2, 10, 8)])}}
    assert "1 x task with several annotations: the last is taken" in folder.said
    empty = {"data": {"image": "b.jpg"}, "annotations": [{"result": None}]}
    folder.write("photos/b.jpg")
    folder.write("tasks.json", json.dumps([task, empty]))
    assert folder.read()["all"]["b.jpg"] == []
    folder.write("tasks.json", json.dumps([task, 5]))
    with pytest.raises(ValueError, match=r"tasks\.json: expected a list of Label Studio's tasks"):
        folder.read()


def test_older_and_smaller_exports_of_label_studio(folder):
    for name in ("a", "b", "c"):
        folder.write(f"photos/{name}.jpg")
    old = label_studio_task("")  # the size that a file states goes first: as the browser shows it
    old["completions"] = old.pop("annotations")
    old["completions"][0]["result"][0] |= {"original_width": 80, "original_height": 40}
    old["completions"][0]["result"].append({"type": "keypoint", "value": {"x": 1, "y": 2}})
    old["data"] = {"note": "seen", "picture": "/data/upload/1/0a1b2c3d-a.jpg"}
    small = {"id": 7, "image": "/data/local-files/?d=photos/b.jpg", "tags": ["blurred"]}
    value = label_studio_task("")["annotations"][0]["result"][0]
    small["label"] = [{**value.pop("value"), **value}]
    folder.write("old.json", json.dumps([old]))
    folder.write("small.json", json.dumps([small, {"image": "photos/c.jpg", "label": []}]))
    assert folder.read() == {
        "all": {
            "a.jpg": plain([("cat", 2, 4, 20, 16)]),
            "b.jpg": plain(BOXES[:1]),
            "c.jpg": [],
        }
    }
    left_out = "keypoint left out: neither box, ellipse nor polygon with a label"
    assert f"  1 x {left_out}" in folder.lines


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"radiusX": 20, "radiusY": 20, "ellipselabels": ["cat"]}, (12, 6, 16, 8)),
        ({"radiusX": 20, "radiusY": 20, "rotation": 90, "labels": ["cat"]}, (16, 2, 8, 16)),
    ],
)
def test_ellipses_of_label_studio(folder, shape, box):
    folder.write("a.jpg")
    task = label_studio_task("a.jpg", value={"x": 50, "y": 50, **shape})
    folder.write("tasks.json", json.dumps([task]))
    assert folder.read() == {"all": {"a.jpg": plain([("cat", *box)])}}


SQUARE = [[1, 2], [11, 2], [11, 10]]
WITH_A_NAME = {
    "labelme": (
        "a.json",
        lambda name: {"imagePath": "a.jpg", "shapes": [{"label": name, "points": SQUARE}]},
    ),
    "label_studio": (
        "tasks.json",
        lambda name: [
            label_studio_task("a.jpg", value={"points": SQUARE, "polygonlabels": [name]})
        ],
    ),
    "createml": (
        "all.json",
        lambda name: [
            {
                "image": "a.jpg",
                "annotations": [
                    {"label": name, "coordinates": {"x": 6, "y": 6, "width": 9, "height": 8}}
                ],
            }
        ],
    ),
    "supervisely": (
        "ann/a.jpg.json",
        lambda name: {
            "size": {"width": SIZE[0], "height": SIZE[1]},
            "objects": [
                {
                    "classTitle": name,
                    "geometryType": "polygon",
                    "points": {"exterior": SQUARE, "interior": []},
                }
            ],
        },
    ),
}


@pytest.mark.parametrize("tool", WITH_A_NAME)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, r"a\.jpg: an object without a class, at \["),
        ({"id": 1}, r"expected the name of a class, got \{'id': 1\}"),
        (True, r"expected the name of a class, got True"),
        (7, ""),
    ],
)
def test_names_of_classes_are_text_or_numbers(folder, tool, name, said):
    path, content = WITH_A_NAME[tool]
    folder.write("img/a.jpg" if tool == "supervisely" else "a.jpg")
    folder.write(path, json.dumps(content(name)))
    if not said:
        assert [item[0] for item in folder.read()["all"]["a.jpg"]] == ["7"]
        return
    with pytest.raises(ValueError, match=said) as raised:
        folder.read()
    assert str(folder.root) in str(raised.value)


def via(folder, *regions, picture=""):
    """Writes one image with regions of (shape attributes, region attributes)."""
    folder.write("a.jpg", picture)
    keys = ("shape_attributes", "region_attributes")
    entry = {"filename": "a.jpg", "size": 1, "file_attributes": {}}
    entry["regions"] = [dict(zip(keys, region)) for region in regions]
    folder.write("via_region_data.json", json.dumps({"a.jpg1": entry}))


def test_shapes_and_classes_of_via(folder):
    square = {"name": "polygon", "all_points_x": [1, 11, 11, 1], "all_points_y": [2, 2, 10, 10]}
    circle = {"name": "circle", "cx": 20, "cy": 10, "r": 5}
    # Turned by a right angle: half as wide as high.
    ellipse = {"name": "ellipse", "cx": 20, "cy": 10, "rx": 8, "ry": 4, "theta": math.pi / 2}
    via(
        folder,
        (square, {"name": "cat", "categories": "cat"}),  # matterport/Mask_RCNN#700
        (circle, {"dog": "dog", "name": " "}),  # matterport/Mask_RCNN#1337
        (ellipse, {"colour": "red", "type": {"dog": True, "cat": False}}),
        ({"name": "point", "cx": 1, "cy": 2}, {"type": "cat"}),
    )
    found = folder.read()["all"]["a.jpg"]
    ovals = [("dog", 15, 5, 10, 10, False), ("dog", 16, 2, 8, 16, False)]
    assert found == [*plain(BOXES[:1]), *ovals]
    assert "1 x point left out: no shape with an area" in folder.said


@pytest.mark.parametrize("mark", ["", "#"])  # version 2, version 1
def test_via_as_a_table(folder, mark):
    heading = f"{mark}filename,file_size,file_attributes,region_count,region_id"
    heading += ",region_shape_attributes,region_attributes"
    square = {"name": "rect", "x": 3, "y": 4, "width": 10, "height": 6}
    found = [
        ("a.jpg", 0, square, {"type": "cat"}),
        ("a.jpg", 1, {**square, "x": 5}, {"type": "dog"}),
        ("b.jpg", 0, {}, {}),
    ]
    text = io.StringIO()
    for name, number, shape, attributes in found:
        folder.write(name)
        columns = [name, 9, "{}", 2, number, json.dumps(shape), json.dumps(attributes)]
        csv.writer(text).writerow(columns)
    folder.write("via_csv.csv", f"{heading}\n{text.getvalue()}")
    expected = {"a.jpg": plain([("cat", 3, 4, 10, 6), ("dog", 5, 4, 10, 6)]), "b.jpg": []}
    assert folder.read() == {"all": expected}


def test_via_without_classes_has_one(folder):  # the balloons of matterport/Mask_RCNN
    square = {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 8}
    via(folder, (square, {}), (square, {}))
    assert folder.read() == {"all": {"a.jpg": [("object", 1, 2, 10, 8, False)] * 2}}
    assert "file without classes: all its objects are called object" in folder.said
    via(folder, (square, {}), (square, {"type": "cat"}))
    with pytest.raises(ValueError, match=r"image a\.jpg region 0 has no attribute with its class"):
        folder.read()
    via(folder, (square, {"colour": "red", "make": "Ford"}))
    with pytest.raises(ValueError, match="region 0 has the attributes colour, make: which one"):
        folder.read()
    via(folder, ({"name": "rect", "x": 1, "y": 2}, {"type": "cat"}))
    with pytest.raises(ValueError, match="region 0: a rect whose numbers are not there: 'width'"):
        folder.read()


def test_holes_and_bitmaps_of_supervisely(folder):
    """The mask of a bitmap, and of a polygon with a hole: pixels counted by hand."""
    folder.write("d/img/a.jpg")
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1:, 2:5] = 1
    alpha = np.dstack([np.zeros((4, 6, 3), np.uint8), pixels * 255])
    bitmaps = [
        {"origin": [3, 5], "data": base64.b64encode(zlib.compress(encoded(image))).decode()}
        for image in (pixels * 255, alpha)
    ]
    hole = [[4, 4], [8, 4], [8, 8], [4, 8]]
    points = {"exterior": [[0, 2], [12, 2], [12, 12], [0, 12]], "interior": [hole]}
    objects = [{"classTitle": "cat", "geometryType": "bitmap", "bitmap": b} for b in bitmaps]
    objects += [
        {"classTitle": "cat", "geometryType": "polygon", "points": points},
        {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 1]]}},
        {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": hole[:2]}},
    ]
    content = {"size": {"width": SIZE[0], "height": SIZE[1]}, "tags": [], "objects": objects}
    folder.write("d/ann/a.jpg.json", json.dumps(content))
    ((path, _),) = folder.splits().values()
    (found,) = read_annotations(path).objects.values()
    assert [entry["bbox"] for entry in found] == [[3, 5, 6, 4]] * 2 + [[0, 2, 12, 10]]
    assert [entry["area"] for entry in found] == [9, 9, 120 - 16]
    assert "1 x point left out: no shape with an area that is known" in folder.said
    assert "1 x polygon of fewer than 3 points left out" in folder.said
    bitmaps[0]["data"] = "AAAA"
    folder.write("d/ann/a.jpg.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.jpg\.json object 0: a bitmap that cannot be read"):
        folder.read()


def test_boxes_of_createml_that_are_none(folder):
    folder.write("a.jpg")
    entry = {"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 2}}]}
    folder.write("a.json", json.dumps([entry]))
    with pytest.raises(ValueError, match=r"a\.json image a\.jpg: expected 'coordinates' with numb"):
        folder.read()
    entry["annotations"][0]["coordinates"] |= {"width": 2, "height": 2}
    folder.write("a.json", json.dumps([entry, entry]))
    with pytest.raises(ValueError, match=r"a\.jpg is annotated twice in one split: keep one"):
        folder.read()
    for place in ("x", "y"):
        folder.write(f"{place}/b.jpg")
    folder.write("a.json", json.dumps([{**entry, "image": "b.jpg"}]))
    with pytest.raises(ValueError, match=r"'b\.jpg' may be .*x/b\.jpg or .*y/b\.jpg: give the ima"):
        folder.read()
    folder.write("a.json", json.dumps([{"annotations": [], "image": ""}]))
    with pytest.raises(ValueError, match=r"a\.json: entry 0 names no 'image'"):
        folder.read()


@pytest.mark.parametrize("tool", ["createml", "via", "yolo"])
def test_pictures_are_as_large_as_viewers_show_them(folder, tool):
    exif, picture = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", SIZE[::-1]).save(picture, "JPEG", exif=exif)
    folder.write("a.jpg", picture.getvalue())
    if tool == "createml":
        boxes = [
            {"label": name, "coordinates": dict(x=x + w / 2, y=y + h / 2, width=w, height=h)}
            for name, x, y, w, h in BOXES
        ]
        folder.write("a.json", json.dumps([{"image": "a.jpg", "annotations": boxes}]))
    elif tool == "via":
        keys = ("x", "y", "width", "height")
        regions = [
            ({"name": "rect", **dict(zip(keys, box))}, {"type": name}) for name, *box in BOXES
        ]
        via(folder, *regions, picture=picture.getvalue())
    else:
        folder.write("classes.txt", "\n".join(NAMES))
        folder.write("a.txt", yolo_lines(BOXES, NAMES, SIZE))
    assert folder.read() == {"all": {"a.jpg": plain()}}
    ((path, _),) = folder.splits().values()
    assert [(image.width, image.height) for image in read_annotations(path).images] == [SIZE]


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("BDD100K", [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]),
        ("Labelbox", [{"Labeled Data": "a.jpg", "Label": {"objects": [{"title": "car"}]}}]),
        ("VoTT", {"assets": {"1": {"asset": {"name": "a.jpg"}, "regions": []}}}),
        ("FiftyOne", {"classes": ["car"], "labels": {"a": [{"bounding_box": [0, 0, 1, 1]}]}}),
        ("VGG Image Annotator 3", {"metadata": {"1": {"vid": "1", "xy": [2, 1, 1, 3, 4]}}}),
    ],
)
def test_json_of_tools_that_is_not_read_is_named(folder, tool, content):
    folder.write("a.jpg")
    folder.write("a.json", json.dumps(content))
    message = rf"no annotations in a known format .*a\.json .*; like {tool}'s, which is not read"
    with pytest.raises(ValueError, match=message):
        folder.read()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_json_in_utf_16_and_32(folder, encoding):
    folder.write("1.jpg")
    coco = instances((1,), [(1, 3, [1, 2, 10, 8])], size=SIZE[::-1])
    folder.write("a.json", json.dumps(coco).encode(encoding))
    assert folder.read() == {"a": {"1.jpg": plain(BOXES[:1])}}
    entry = {"label": "cat", "coordinates": {"x": 6, "y": 6, "width": 10, "height": 8}}
    createml = [{"image": "1.jpg", "annotations": [entry]}]
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    folder.write("a.json", mark + json.dumps(createml).encode(encoding))
    assert folder.read() == {"all": {"1.jpg": plain(BOXES[:1])}}
