"""Every annotation format gives the boxes, classes and splits of the same set in COCO's form."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from format_writers import (
    NAMES,
    SIZE,
    TRUTH,
    write_createml,
    write_createml_of_apple,
    write_cvat,
    write_images,
    write_label_studio,
    write_label_studio_by_task,
    write_labelme,
    write_labelme_with_pictures_inside,
    write_open_images,
    write_plain_voc,
    write_retinanet,
    write_supervisely,
    write_via,
    write_via_project,
    write_voc,
    write_yolo,
    write_yolo_without_yaml,
)
from PIL import Image
from samples import encoded, voc_xml

from object_detection.coco.annotations import read_annotations
from object_detection.convert.prepare import coco_splits
from object_detection.formats.folder import DataFolder
from object_detection.formats.importers import detect_format, import_folder
from object_detection.formats.plain_xml import parse_xml
from object_detection.masks.rle import decode_mask
from outside_data.files import BadFileError


def found(folder: Path, tmp_path: Path) -> dict:
    """Returns the set as TRUTH has it."""
    splits = coco_splits(folder, tmp_path / "work", report=lambda line: None)
    result = {}
    for split, (path, image_dir) in splits.items():
        annotations = read_annotations(path)
        names = {c.category_id: c.name for c in annotations.categories}
        result[split] = {
            Path(image.file_name).stem: [
                (names[o["category_id"]], *np.round(o["bbox"], 3).tolist())
                for o in annotations.objects.get(image.source_id, ())
            ]
            for image in annotations.images
        }
        assert all((image_dir / image.file_name).is_file() for image in annotations.images)
        assert {(image.width, image.height) for image in annotations.images} == {SIZE}
    return result


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_voc, "voc"),
        (write_plain_voc, "voc"),
        (write_yolo, "yolo"),
        (write_yolo_without_yaml, "yolo"),
        (write_cvat, "cvat"),
        (write_labelme, "labelme"),
        (write_labelme_with_pictures_inside, "labelme"),
        (write_label_studio, "label_studio"),
        (write_label_studio_by_task, "label_studio"),
        (write_createml, "createml"),
        (write_createml_of_apple, "createml"),
        (write_via, "via"),
        (write_via_project, "via"),
        (write_supervisely, "supervisely"),
        (write_retinanet, "open_images"),
        (write_open_images, "open_images"),
    ],
)
def test_each_format_is_told_and_read(write, expected, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    assert detect_format(DataFolder(folder)) == expected
    truth = {split: dict(images) for split, images in TRUTH.items()}
    if write == write_open_images:  # lists no image without a box
        del truth["train"]["b"]
    assert found(folder, tmp_path) == truth


def test_classes_of_a_table_without_a_heading_have_their_numbers(tmp_path):
    write_retinanet(tmp_path / "set")
    ((_, (path, _)), _) = coco_splits(tmp_path / "set", tmp_path / "work").items()
    assert [c.name for c in read_annotations(path).categories] == NAMES


def test_a_table_of_boxes_with_other_names_or_of_something_else(tmp_path):
    write_retinanet(tmp_path / "set")
    for split in TRUTH:
        path = tmp_path / "set" / f"{split}.csv"
        path.write_text("path,x1,y1,x2,y2,class_name\n" + path.read_text())
    assert found(tmp_path / "set", tmp_path) == TRUTH
    for path in (tmp_path / "set").glob("*.csv"):
        path.write_text("image,x,y,w,h\n" + path.read_text())
    with pytest.raises(ValueError, match=r"classes\.csv begins with .*no heading and path"):
        import_folder(tmp_path / "set", tmp_path / "out")


def test_pictures_inside_of_annotations_lie_beside_what_is_made(tmp_path):
    folder, out = tmp_path / "set", tmp_path / "out"
    write_labelme_with_pictures_inside(folder)
    before = sorted(folder.rglob("*"))
    made = import_folder(folder, out)
    assert {images for _, images in made.splits.values()} == {
        out / "pictures/train",
        out / "pictures/val",
    }
    assert any("picture taken out of an annotation file" in what for what in made.counts)
    shutil.rmtree(out / "pictures")
    assert import_folder(folder, out) == made and (out / "pictures/train/b.jpg").is_file()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("inside", ["A" * 100, "!", 5, [1]])
def test_what_is_no_picture_inside_of_annotations_is_named(tmp_path, inside):
    write_labelme(tmp_path / "set")
    path = tmp_path / "set/train/a.json"
    path.with_suffix(".jpg").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageData": inside}))
    with pytest.raises(ValueError, match=r"a\.json: its 'imageData' is no picture"):
        import_folder(tmp_path / "set", tmp_path / "out")


def test_any_picture_any_file_name_and_a_path_that_leads_up(tmp_path):
    write_yolo(tmp_path / "set", suffix=".tga")
    (tmp_path / "set" / os.fsdecode(b"caf\xe9.txt")).touch()
    assert found(tmp_path / "set" / "labels" / "..", tmp_path) == TRUTH


def test_an_import_is_used_again_until_the_folder_changes(tmp_path):
    folder = tmp_path / "set"
    write_yolo(folder)
    first = import_folder(folder, tmp_path / "out")
    written = first.splits["train"][0]
    written.write_text(written.read_text() + " ")
    assert import_folder(folder, tmp_path / "out") == first
    assert written.read_text().endswith(" ")
    (folder / "labels" / "train" / "b.txt").write_text("2 0.5 0.5 0.1 0.1")
    import_folder(folder, tmp_path / "out")
    assert not written.read_text().endswith(" ")
    written.unlink()
    import_folder(folder, tmp_path / "out")
    assert written.is_file()


@pytest.mark.parametrize(
    ("root", "content"),
    [
        ("annotation", "<size><width>inf</width><height>20</height></size>"),
        ("annotations", '<image name="a.png" width="nan" height="20"/>'),
        ("annotations", '<image name="a.png" width="30" height="20">{box}</image>'),
        ("annotations", '<image name="a.png" width="30" height="20">{mask}</image>'),
    ],
)
def test_values_that_no_tool_writes_are_refused_by_file(tmp_path, root, content):
    box = '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" rotation="left"/>'
    mask = '<mask label="cat" rle="a,b" left="1" top="1" width="2" height="2"/>'
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    path = tmp_path / "a.xml"
    path.write_text(f"<{root}>{content.format(box=box, mask=mask)}</{root}>")
    with pytest.raises(BadFileError, match=f"^{path}: expected (VOC|CVAT)'s annotations"):
        import_folder(tmp_path, tmp_path / "out")


def test_a_subset_of_cvat_leads_to_no_other_folder(tmp_path):
    write_cvat(tmp_path / "set")
    path = tmp_path / "set" / "annotations.xml"
    path.write_text(path.read_text().replace('subset="val"', 'subset="/../../../val"'))
    splits = import_folder(tmp_path / "set", tmp_path / "a" / "b").splits
    assert {p.parent for p, _ in splits.values()} == {tmp_path / "a" / "b" / "annotations"}


def objects_of(folder, tmp_path, split="all"):
    path, _ = coco_splits(folder, tmp_path / "work", report=lambda line: None)[split]
    annotations = read_annotations(path)
    return [entry for objects in annotations.objects.values() for entry in objects]


def test_masks_of_labelme_and_cvat(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1:, 2:5] = 1
    shape = {"label": "cat", "shape_type": "mask", "points": [[3, 5], [8, 8]]}
    shape["mask"] = base64.b64encode(encoded(pixels * 255)).decode()
    outside = {**shape, "points": [[-3, -2], [2, 1]]}
    points = {"label": "cat", "shape_type": "circle", "points": [[1, 1]]}
    parts = [
        {"label": "dog", "group_id": 1, "points": [[x, 0], [x + 2, 0], [x, 3]]} for x in (1, 9)
    ]
    labelme = tmp_path / "labelme"
    labelme.mkdir()
    Image.new("RGB", SIZE).save(labelme / "a.png")
    content = {"shapes": [shape, outside, points, *parts], "imagePath": "a.png"}
    content |= {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    (labelme / "a.json").write_text(json.dumps(content))
    mask, cut, dog = objects_of(labelme, tmp_path)
    assert mask["bbox"] == [3, 5, 6, 4] and mask["area"] == pixels.sum()
    assert cut["bbox"] == [-3, -2, 6, 4] and cut["area"] == pixels[2:, 3:].sum()
    assert dog["bbox"] == [1, 0, 10, 3] and len(dog["segmentation"]) == 2 and dog["area"] == 6

    cvat = tmp_path / "cvat"
    cvat.mkdir()
    Image.new("RGB", SIZE).save(cvat / "a.png")
    runs = ",".join(str(len(run)) for run in runs_along_rows(pixels))
    (cvat / "annotations.xml").write_text(
        f'<annotations><image name="a.png" width="{SIZE[0]}" height="{SIZE[1]}"><mask label="cat" '
        f'rle="{runs}" left="3" top="5" width="6" height="4"/></image></annotations>'
    )
    (again,) = objects_of(cvat, tmp_path / "2")
    assert again["segmentation"] == mask["segmentation"]
    drawn = decode_mask(mask["segmentation"], SIZE[1], SIZE[0])
    np.testing.assert_array_equal(drawn[5:9, 3:9] > 0, pixels > 0)
    assert (drawn > 0).sum() == pixels.sum()


def runs_along_rows(pixels):
    values = pixels.ravel()
    return np.split(values, np.flatnonzero(np.diff(values)) + 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0.5 0.5 0.1 0.1", "a.txt line 1: class 3, but 3 classes are listed"),
        ("0 0.5 0.5 0.1", "a.txt line 1: 3 numbers behind the class"),
        ("0 0.5 0.5 0.1 0.1 0.9", "5 numbers .* a detection with its confidence"),
        ("cat 0.5 0.5 0.1 0.1", "a.txt line 1: expected numbers, got 'cat"),
    ],
)
def test_a_wrong_yolo_line_is_named(line, message, tmp_path):
    write_yolo(tmp_path / "set")
    (tmp_path / "set/labels/train/a.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        import_folder(tmp_path / "set", tmp_path / "out")


def test_names_of_yolo_are_no_text(tmp_path):
    write_yolo(tmp_path / "set")
    (tmp_path / "set/data.yaml").write_text("names: cat")
    with pytest.raises(ValueError, match="data.yaml: expected names: a list of classes.*'cat'"):
        import_folder(tmp_path / "set", tmp_path / "out")


def test_entities_are_refused(tmp_path):
    bomb = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))
    for name, inside in (
        ("bomb.xml", f'<!ENTITY a0 "lol">{bomb}'),
        ("outside.xml", '<!ENTITY a8 SYSTEM "file:///etc/hostname">'),
    ):
        path = tmp_path / name
        path.write_text(f"<!DOCTYPE x [{inside}]><annotation><name>&a8;</name></annotation>")
        with pytest.raises(ValueError, match=f"{name}: line 1 defines an entity"):
            parse_xml(path)


def test_what_is_no_data_set_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder"):
        import_folder(tmp_path / "none", tmp_path / "out")
    write_images(tmp_path / "set")
    with pytest.raises(ValueError, match="3 images, but no annotations in a known format"):
        import_folder(tmp_path / "set", tmp_path / "out")
    path = tmp_path / "set" / "instances_train.json"
    for content, why in (
        ('{"images": [], "annotations": [', "instances_train.json is no valid JSON"),
        ('{"images": [], "annotations": []}', r"has the keys .*'images'.*'categories'"),
        ('[{"bbox": [1, 2, 3, 4]}]', "instances_train.json holds no object, { }: COCO's"),
        ("", "instances_train.json is no valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=why):
            import_folder(tmp_path / "set", tmp_path / "out")
    path.unlink()
    write_voc(tmp_path / "set")
    for picture in (tmp_path / "set").glob("*/[b-z].jpg"):
        picture.unlink()
    (tmp_path / "set/train/a.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.xml: no image 'b or old-name\.png'"):
        import_folder(tmp_path / "set", tmp_path / "out")


def test_the_command_converts_every_split(commands, tmp_path):
    write_labelme(tmp_path / "set")
    out = tmp_path / "out"
    command = ("dataset/convert.py", tmp_path / "set", f"--output_dir={out}")
    done = commands.run(*command).require_success()
    assert "annotations: labelme, splits train, val" in done.output
    assert {f"{split}-card.json" for split in TRUTH} <= {path.name for path in out.iterdir()}
    wrong = commands.run(*command, "--format=yolo")
    assert wrong.code == 1 and "no annotations in the format yolo" in wrong.errors


def test_shapes_of_yolo_tables_and_cvat_video(tmp_path):
    yolo = tmp_path / "yolo"
    write_images(yolo, "images/{split}/{stem}.jpg")
    (yolo / "labels/train").mkdir(parents=True)
    (yolo / "labels/train/a.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n")
    (polygon,) = objects_of(yolo, tmp_path / "1", "train")
    assert np.round(polygon["bbox"], 6).tolist() == [4, 2, 16, 10] and polygon["category_id"] == 2
    assert len(polygon["segmentation"][0]) == 8 and polygon["area"] == pytest.approx(160)

    table = tmp_path / "table"
    write_images(table)
    (table / "train" / "_annotations.csv").write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,20,dog,3,4,9,12\n"
    )
    (row,) = objects_of(table, tmp_path / "2", "train")
    assert row["bbox"] == [3, 4, 6, 8]

    video = tmp_path / "video"
    video.mkdir()
    for frame in (0, 1):
        Image.new("RGB", SIZE).save(video / f"frame_{frame:06d}.png")
    box = '<box frame="{}" outside="{}" xtl="8" ytl="5" xbr="12" ybr="15" rotation="90"/>'
    (video / "annotations.xml").write_text(
        f"<annotations><track label='cat'>{box.format(0, 0)}{box.format(1, 1)}</track>"
        "<track label='dog'><ellipse frame='1' outside='0' cx='9' cy='8' rx='4' ry='2'/></track>"
        "</annotations>"
    )
    turned, ellipse = objects_of(video, tmp_path / "3")
    assert np.round(turned["bbox"], 6).tolist() == [5, 8, 10, 4] and turned["image_id"] == 1
    assert np.round(ellipse["bbox"], 1).tolist() == [5, 6, 8, 4] and ellipse["image_id"] == 2
    Image.new("RGB", SIZE).save(video / "other_1.png")
    with pytest.raises(ValueError, match="frame 1 may be .*frame_000001.png or .*other_1.png"):
        objects_of(video, tmp_path / "4")


def test_label_studio_without_data_and_turned(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", SIZE).save(folder / "my photo.jpg")
    value = {"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 90}
    entry = {**value, "rectanglelabels": ["cat"], "original_width": 40, "original_height": 20}
    task = {"image": "https://host/data/upload/abcdef12-my%20photo.jpg?x=1", "label": [entry]}
    (folder / "export.json").write_text(json.dumps([{"id": 1, "annotation_id": 3, **task}]))
    (turned,) = objects_of(folder, tmp_path)
    # About its upper left corner, clockwise on the screen: 4 x 4 pixels to the left of x = 20.
    assert np.round(turned["bbox"], 6).tolist() == [16, 10, 4, 4]


def test_train_takes_a_folder_in_the_place_of_records(tmp_path, commands):
    write_yolo(tmp_path / "set")
    run, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(
        "import sys, train; from absl import flags\n"
        "F = flags.FLAGS; F(sys.argv); notes = train.resolve_request([]).notes\n"
        "print(F.training_file_pattern, F.val_json_file, F['val_file_pattern'].present)\n"
        "print('\\n'.join(notes))"
    )
    flags = ["--model_name=efficientdet-lite0", f"--data={tmp_path / 'set'}", f"--model_dir={run}"]

    def start(*more):
        return commands.run(str(program), *flags, *more)

    records = f"{run}-data"
    for hparams in ("image_sise=128", "image_size=100"):  # no name, and no size of this network
        assert "image_size" in start(f"--hparams={hparams}").errors
        assert not Path(records).exists()
    done = start("--hparams=image_size=128").require_success()
    assert "anchors at 128 x 128" in done.output
    first = f"{records}/train-*.tfrecord {records}/instances_eval.json 1"
    assert done.output.splitlines()[0] == first
    assert "annotations: yolo, splits train, val" in done.output and "CHECK 0 errors" in done.output
    assert f"records of {tmp_path / 'set'} are in {records}" in start().output
    assert "--val_json_file names some: drop one" in start("--val_json_file=x.json").errors
    assert "is the data folder itself" in start(f"--model_dir={tmp_path}/set/.").errors


@pytest.mark.parametrize("name", ["../secret/s.png", "images/../../secret/s.png", "SECRET/s.png"])
def test_annotations_name_no_image_outside_of_their_folder(tmp_path, name):
    for path in ("secret/s.png", "set/images/a.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"")
    folder = DataFolder(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="no image"):
        folder.find_image(name.replace("SECRET", str(tmp_path / "secret")), near=folder.root / "a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (voc_xml([("cat", 1, 2, 3, 4)], shift=0).replace("bndbox", "box"), "has no <bndbox>: exp"),
        (voc_xml([(" ", 1, 2, 3, 4)], shift=0), "an <object> has no <name>"),
        (
            b'<?xml version="1.0" encoding="ascii"?>'
            + voc_xml([("\N{CAT FACE}", 1, 2, 3, 4)], shift=0).encode(),
            "is not in the encoding that it states",
        ),
        (
            '<annotations><image id="0" name="a.jpg" width="40" height="20"><mask label="cat" '
            'rle="3,4" left="0" top="0" width="3" height="3"/></image></annotations>',
            "a mask of 'cat' has runs of 7 pixels, but is 3 x 3",
        ),
        (
            '<annotations><image id="0" name="a.jpg" width="40" height="20"><polygon label="cat" '
            'points="1,2;3;5,6"/></image></annotations>',
            "<polygon> has the point '3': not x,y",
        ),
        (
            '<annotations><track label="cat"><box frame="7" outside="0" xtl="0" ytl="2" xbr="5" '
            'ybr="8"/></track></annotations>',
            "no picture in .* has the number of one of its frames",
        ),
    ],
)
def test_what_xml_does_not_say_is_named(folder, content, said):
    folder.write("a.jpg")
    folder.write("a.xml", content)
    with pytest.raises(ValueError, match=rf"a\.xml.*{said}"):
        folder.read()


def test_a_list_of_classes_of_cvat_is_read_to_its_first_colon(folder):
    folder.write("a.jpg")
    folder.write("a.xml", voc_xml([("cat", 1, 2, 3, 4)], shift=0))
    lines = ("# label:color_rgb:parts:actions", "background:0,0,0::", "dog:0,9,0::", "cat:9,0,0::")
    folder.write("labelmap.txt", "\n".join(lines))
    ((path, _),) = folder.splits().values()
    assert read_annotations(path).class_names == ("dog", "cat")
