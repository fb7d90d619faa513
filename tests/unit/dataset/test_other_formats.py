"""VOC and Cityscapes as COCO data sets, from tiny ones made here, through their commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from object_detection.coco.annotations import read_annotations
from object_detection.records.catalog import stock_catalog

ROOT = Path(__file__).resolve().parents[3]


def pixels(segmentation):
    return mask_api.decode(segmentation)


# ---------------------------------------------------------------- VOC

XML = (
    """<annotation><size><width>8</width><height>6</height><depth>3</depth></size>{}</annotation>"""
)
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "voc" / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationObject"):
        (folder / name).mkdir(parents=True)
    objects = OBJECT.format("dog", 0, 1, 2, 4, 3) + OBJECT.format("person", 1, 5, 1, 8, 6)
    (folder / "Annotations" / "000005.xml").write_text(XML.format(objects))
    (folder / "Annotations" / "000007.xml").write_text(XML.format(""))
    (folder / "ImageSets/Main/train.txt").write_text("000005\n000007\n")
    (folder / "ImageSets/Segmentation/train.txt").write_text("000005\n")
    values = np.zeros((6, 8), np.uint8)
    values[1:3, :3], values[1:3, 3] = 1, 255
    Image.fromarray(values).save(folder / "SegmentationObject" / "000005.png")
    return folder


def test_voc(commands, voc):
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}", "--split=train")
    assert "2 images, 2 annotations" in done.require_success().output
    path = stock_catalog(str(voc.parents[1]))["voc_2007_train"].annotations
    dataset = read_annotations(path)
    assert [image.file_name for image in dataset.images] == ["000005.jpg", "000007.jpg"]
    assert dataset.class_names[:2] == ("aeroplane", "bicycle") and len(dataset.categories) == 20
    dog, person = dataset.objects["000005"]
    assert (dog["category_id"], dog["bbox"], dog["iscrowd"]) == (12, [0, 1, 4, 2], 0)
    assert (person["category_id"], person["bbox"], person["iscrowd"]) == (15, [4, 0, 4, 6], 1)


# In a process of its own, as the program defines its flags when it is imported.
COUNT_READS = """
import sys
from pathlib import Path
from dataset import voc_to_coco
from object_detection.formats import plain_xml
read = plain_xml.read_file
plain_xml.read_file = lambda path: print(path.name) or read(path)
assert len(voc_to_coco.convert(Path(sys.argv[1]), "train", image_set="Main")["images"]) == 2
"""


def test_an_annotation_file_of_voc_is_read_once(voc):
    command = [sys.executable, "-c", COUNT_READS, str(voc)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert sorted(output.split()) == ["000005.xml", "000007.xml"]


def test_voc_with_masks(commands, voc, tmp_path):
    out = tmp_path / "masks.json"
    flags = ("--split=train", "--image_set=Segmentation", f"--output_file={out}")
    commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}", *flags).require_success()
    dog, person = read_annotations(out).objects["000005"]
    expected = np.zeros((6, 8), np.uint8)
    expected[1:3, :3] = 1
    np.testing.assert_array_equal(pixels(dog["segmentation"]), expected)
    assert dog["area"] == 6 and dog["bbox"] == [0, 1, 4, 2]
    assert isinstance(person["segmentation"], list)


def test_voc_that_is_not_there_or_damaged(commands, voc):
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}", "--split=val")
    assert done.code == 1 and "no list of images at" in done.errors
    with (voc / "SegmentationObject" / "000005.png").open("r+b") as file:
        file.truncate(40)
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}", "--image_set=Segmentation")
    assert done.code == 1 and "SegmentationObject/000005.png: " in done.errors
    shutil.copy(voc / "Annotations" / "000007.xml", voc / "Annotations" / "000005.xml")
    values = np.full((6, 8), 1, np.uint8)
    Image.fromarray(values).save(voc / "SegmentationObject" / "000005.png")
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}", "--image_set=Segmentation")
    assert done.code == 1 and "000005.png has object 1, its annotation file only 0" in done.errors
    (voc / "Annotations" / "000007.xml").write_text("<annotation><size/></annotation>")
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}")
    assert done.code == 1 and "000007.xml: no <size> of the image" in done.errors
    (voc / "Annotations" / "000007.xml").write_text("<annotation>")
    done = commands.run("dataset/voc_to_coco.py", f"--voc_dir={voc}")
    assert done.code == 1 and "000007.xml is no well-formed XML" in done.errors


# ---------------------------------------------------------------- Cityscapes


@pytest.fixture
def cityscapes(tmp_path):
    folder = tmp_path / "cityscapes"
    for split in ("train", "test"):
        image = folder / "leftImg8bit" / split / "aachen" / "aachen_000000_000019_leftImg8bit.png"
        image.parent.mkdir(parents=True)
        Image.new("RGB", (10, 6)).save(image)
    values = np.full((6, 10), 7, np.uint16)  # road
    values[0:2, 0:3] = 26001  # a car
    values[4:6, 2:4] = 33000  # a bicycle
    values[5, 9] = 24  # people
    path = folder / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_instanceIds.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(values).save(path)
    return folder


def test_cityscapes(commands, cityscapes):
    done = commands.run(
        "dataset/cityscapes_to_coco.py", f"--cityscapes_dir={cityscapes}", "--split=train"
    )
    done.require_success()
    name = "cityscapes_fine_instanceonly_seg_train_cocostyle"
    entry = stock_catalog(str(cityscapes.parent))[name]
    dataset = read_annotations(entry.annotations)
    assert (Path(entry.images) / dataset.images[0].file_name).is_file()
    assert dataset.class_names == (
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    )
    people, car, bicycle = dataset.objects["aachen_000000_000019"]
    assert (people["category_id"], people["iscrowd"], people["bbox"]) == (1, 1, [9, 5, 1, 1])
    assert (car["category_id"], car["iscrowd"], car["bbox"]) == (3, 0, [0, 0, 3, 2])
    assert (bicycle["category_id"], bicycle["area"]) == (8, 4)
    assert pixels(car["segmentation"])[0:2, 0:3].sum() == 6


def test_the_test_split_has_images_only(commands, cityscapes):
    flags = (f"--cityscapes_dir={cityscapes}", "--split=test")
    commands.run("dataset/cityscapes_to_coco.py", *flags).require_success()
    path = cityscapes / "annotations" / "instancesonly_filtered_gtFine_test.json"
    dataset = json.loads(path.read_text())
    assert len(dataset["images"]) == 1 and dataset["annotations"] == []


def test_cityscapes_without_instance_ids(commands, cityscapes):
    labels = next(cityscapes.glob("gtFine/train/*/*.png"))
    Image.new("I;16", (12, 6)).save(labels)
    flags = (f"--cityscapes_dir={cityscapes}", "--split=train")
    done = commands.run("dataset/cityscapes_to_coco.py", *flags)
    assert done.code == 1 and "is of size (6, 12), its image of size (6, 10)" in done.errors
    labels.unlink()
    done = commands.run("dataset/cityscapes_to_coco.py", *flags)
    assert done.code == 1 and "unpack gtFine_trainvaltest.zip" in done.errors
    next(cityscapes.glob("leftImg8bit/train/*/*.png")).unlink()
    done = commands.run("dataset/cityscapes_to_coco.py", *flags)
    assert done.code == 1 and "no images *_leftImg8bit.png in" in done.errors
