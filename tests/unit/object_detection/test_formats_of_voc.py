"""What exporters make of Pascal VOC, after public reports: read right, counted, or refused."""

import pytest
from data_folder import BOXES, NAMES, plain
from samples import voc_xml

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert


def voc(folder, stem="a", more="", change=lambda xml: xml):
    folder.write(f"JPEGImages/{stem}.jpg")
    xml = f"<source><database>Unknown</database></source>{more}"
    folder.write(f"Annotations/{stem}.xml", change(voc_xml(BOXES, shift=0, more=xml)))


@pytest.mark.parametrize(
    ("change", "crowds"),
    [
        (lambda xml: xml.replace("<object>", "<object><difficult>true</difficult>", 1), [True]),
        (lambda xml: xml.replace("<object>", "<object><difficult>Unspecified</difficult>"), []),
        (lambda xml: f'<?xml version="1.0" encoding="GBK"?>{xml}'.encode("gbk"), []),
    ],
)
def test_documents_of_voc_as_others_write_them(folder, change, crowds):
    voc(folder, more="<size><width>40</width><height/></size>", change=change)
    (objects,) = folder.read()["all"].values()
    assert [entry[:5] for entry in objects] == BOXES
    assert [entry[5] for entry in objects if entry[5]] == crowds


@pytest.mark.parametrize("place", ["ImageSets/Main/", "ImageSets/", ""])
def test_lists_of_voc_with_endings_spaces_and_strangers(folder, place):
    for stem in ("a", "my b", "c"):
        voc(folder, stem)
    folder.write(f"{place}train.txt", "a.jpg\nJPEGImages/my b.jpg\ngone 1\n")
    folder.write(f"{place}val.txt", "JPEGImages/c.jpg Annotations/c.xml -1\n")
    voc(folder, "unlisted")
    folder.write("Annotations/empty.xml", "")
    read = folder.read()
    assert {split: list(images) for split, images in read.items()} == {
        "train": ["a.jpg", "my b.jpg"],
        "val": ["c.jpg"],
    }
    assert "1 x image of ImageSets without an annotation file left out: gone 1" in folder.said
    assert "1 x .xml file without annotations of this format left out" in folder.said
    assert "  1 x image left out: in none of the lists of ImageSets: unlisted" in folder.lines


@pytest.mark.parametrize(
    ("box", "corners", "read"),
    [
        ((1, 2, 10, 8), "inclusive", (0, 1, 11, 9)),  # VOC counts pixels from 1
        ((0, 2, 10, 8), "plain", (0, 2, 10, 8)),
        ((1, 0, 10, 8), "plain", (1, 0, 10, 8)),
        ((1, 2, 9.5, 8), "plain", (1, 2, 9.5, 8)),
    ],
)
def test_corners_of_voc_are_told_by_zeros_and_fractions(folder, box, corners, read):
    folder.write("a.jpg")
    folder.write("a.xml", voc_xml([("cat", *box)], shift=0))
    assert folder.read() == {"all": {"a.jpg": plain([("cat", *read)])}}
    assert f"  1 x VOC corners taken as {corners}" in folder.lines


@pytest.mark.parametrize(
    ("mark", "others", "count"),
    [
        ("<folder>VOC2012</folder>", [], 20),
        ("<source><database>The VOC2007 Database</database></source>", [], 20),
        ("<folder>images</folder>", [], 2),
        ("<folder>VOC2012</folder>", [("robot", 1, 1, 5, 5)], 3),
    ],
)
def test_vocs_twenty_classes_are_those_of_voc_itself(folder, mark, others, count):
    """A set of one's own may have cats and dogs alone."""
    folder.write("a.jpg")
    folder.write("a.xml", voc_xml([*BOXES, *others], shift=1, more=mark))
    ((path, _),) = folder.splits().values()
    names = read_annotations(path).class_names
    assert len(names) == count and {*NAMES} <= {*names}


def test_an_annotated_image_that_is_not_there_is_left_out_by_name(folder):
    for stem in ("a", "b", "c"):
        voc(folder, stem)
    (folder.root / "JPEGImages/b.jpg").unlink()
    ((path, images),) = folder.splits().values()
    assert "1 x annotated image that is not there: b.xml: b" in folder.said
    made = convert(read_annotations(path), images, f"{folder.root}-records/all", num_workers=1)
    assert made.card.num_images == 2 and made.card.num_instances == 4
    assert [(name, reason[:12]) for _, name, reason in made.skipped_images] == [
        ("b", "no such file")
    ]
