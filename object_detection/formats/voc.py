"""Pascal VOC XML, one file for each image, with any classes.

VOC counts pixels from 1 and its far corner is the last pixel inside; most tools that write "VOC"
mean plain corners instead. Which of the two holds is told by the set: fractions, a corner at 0 or
the mark of such a tool say plain corners; else VOC's own rule holds.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from xml.etree.ElementTree import Element

from object_detection.coco.values import crowd_flag
from object_detection.formats.folder import DataFolder, read_class_list
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
)
from object_detection.formats.plain_xml import number, parse_xml, root_tag
from object_detection.records.class_map import LABEL_MAPS
from outside_data.files import expecting, read_text

_VOCS = re.compile(r"(the )?voc(devkit|20\d\d)", re.IGNORECASE)
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SIZE = ("width", "height")
_PLAIN_CORNER_TOOLS = ("unknown", "roboflow", "cvat", "labelme")
_WHOLE_SETS = ("train", "val", "valid", "test")
_FLAG = re.compile(r"\s+-?[01]$")
CORNER_RULES = ("auto", "inclusive", "plain")


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".xml") if root_tag(path) == "annotation"]


def read(folder: DataFolder, *, corners: str = "auto") -> LabelledSet:
    """Reads all annotation files of a folder.

    Splits are ImageSets/Main's lists train, val and test where there are any, else folders' names.
    Objects marked difficult become crowd regions, as VOC scores them.

    `corners` are "inclusive", VOC's own pixels; "plain", as they are; or "auto", which finds out.
    """
    documents = {path: parse_xml(path) for path in files(folder)}
    if corners == "auto":
        corners = "plain" if _has_plain_corners(documents) else "inclusive"
    shift = 1.0 if corners == "inclusive" else 0.0
    result = LabelledSet(class_names=class_names(folder, documents))
    listed = _listed_splits(folder, {path.stem for path in documents}, result)
    result.counts[f"VOC corners taken as {corners}"] += len(documents)
    for path, root in documents.items():
        splits = listed.get(path.stem, ()) if listed else (folder.split_of(path),)
        if not splits:
            result.note("image left out: in none of the lists of ImageSets", path.stem)
            continue
        # The name of the file itself first: renamed images keep an old <filename> in many sets.
        names = (path.stem, root.findtext("filename", "").strip())
        with expecting(path, "VOC's annotations of an image"):
            image = image_of(path, root, result.find_image(folder, *names, near=path), shift=shift)
        for split in splits:
            result.splits[split].append(image)
    return result


def image_of(path: Path, root: Element, file: Path, *, shift: float) -> LabelledImage:
    """Returns what an annotation file, whose content is `root`, says of an image.

    `shift` is what near corners count too much: 1.0 where pixels are counted from 1.

    Raises:
      ValueError: names the annotation file and what is wrong in it.
    """
    objects = []
    for node in root.iterfind("object"):
        box = node.find("bndbox")
        if box is None:
            raise ValueError(
                f"{path}: an <object> has no <bndbox>: export boxes as well, or remove the object"
            )
        x1, y1, x2, y2 = (number(box, side, path) for side in _SIDES)
        objects.append(
            LabelledObject(
                _name(node, path),
                box_of_corners(x1 - shift, y1 - shift, x2, y2),
                is_crowd=crowd_flag(node.findtext("difficult")) or False,
            )
        )
    size = root.find("size")
    if size is None or not all((size.findtext(side) or "").strip() for side in _SIZE):
        return LabelledImage(file, objects)
    width, height = (int(number(size, side, path)) for side in _SIZE)
    return LabelledImage(file, objects, (width, height) if min(width, height) > 0 else None)


def _name(node: Element, path: Path) -> str:
    name = node.findtext("name", "").strip()
    if not name:
        raise ValueError(f"{path}: an <object> has no <name>")
    return name


def _has_plain_corners(documents: dict[Path, Element]) -> bool:
    for path, root in documents.items():
        tool = root.findtext("source/database", "").strip().casefold()
        if any(tool.startswith(name) for name in _PLAIN_CORNER_TOOLS):
            return True
        for box in root.iterfind("object/bndbox"):
            values = [number(box, side, path) for side in _SIDES]
            if not all(value.is_integer() for value in values) or min(values[:2]) <= 0:
                return True
    return False


def class_names(folder: DataFolder, documents: dict[Path, Element]) -> list[str]:
    """Returns a list that lies in the folder; else VOC's twenty of VOC itself; else sorted."""
    listed = read_class_list(folder)
    if listed:
        return listed
    found = {
        _name(node, path) for path, root in documents.items() for node in root.iterfind("object")
    }
    ours = list(LABEL_MAPS["voc"].values())
    return ours if found <= set(ours) and _is_vocs(folder, documents) else sorted(found)


def _is_vocs(folder: DataFolder, documents: dict[Path, Element]) -> bool:
    """Whether a set says that it is of VOC, or a part of it: others have persons and cars too."""
    said = [
        root.findtext(place, "")
        for root in documents.values()
        for place in ("folder", "source/database")
    ]
    return any(map(_VOCS.match, [*folder.root.resolve().parts[-2:], *said]))


def _listed_splits(
    folder: DataFolder, stems: Container[str], result: LabelledSet
) -> dict[str, list[str]]:
    """Returns stem -> splits by the lists in ImageSets/Main; without train and val: trainval.

    Without such lists those in ImageSets, or in the folder itself, if they name annotation files.

    Lines are stems, or names with spaces, a folder or an ending; behind them may stand a flag.
    """
    places: dict[str, dict[str, list[Path]]] = {"Main": {}, "ImageSets": {}, "": {}}
    for path in folder.files(".txt"):
        is_main = path.parent.name == "Main" and path.parent.parent.name == "ImageSets"
        place = "" if path.parent == folder.root else path.parent.name
        if path.stem in (*_WHOLE_SETS, "trainval") and (is_main or place in ("ImageSets", "")):
            places[place].setdefault(path.stem, []).append(path)
    lists = next((found for found in places.values() if found), {})
    if lists is places[""] and not any(
        _listed_stem(line, stems) for paths in lists.values() for p in paths for line in _lines(p)
    ):
        return {}
    names = [name for name in _WHOLE_SETS if name in lists]
    if "train" not in names and "trainval" in lists:
        names.insert(0, "trainval")
    splits: dict[str, list[str]] = {}
    for name in names:
        for path in lists[name]:
            for line in _lines(path):
                stem = _listed_stem(line, stems)
                if stem is None:
                    result.note("image of ImageSets without an annotation file left out", line)
                elif name not in splits.setdefault(stem, []):
                    splits[stem].append(name)
    return splits


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _listed_stem(line: str, stems: Container[str]) -> str | None:
    """Returns the stem that a line of a list means, None if it is not among those known."""
    whole = line.replace("\\", "/").rsplit("/", 1)[-1]
    texts = (whole, _FLAG.sub("", whole))
    return next((t for t in (*texts, *(Path(text).stem for text in texts)) if t in stems), None)
