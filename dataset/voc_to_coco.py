r"""Makes a COCO annotation file of a PASCAL VOC split, for create_coco_tfrecord.py and eval.py.

Example:
  python dataset/voc_to_coco.py --voc_dir=DATA/voc/VOC2007 --split=train
writes DATA/voc/VOC2007/Annotations/pascal_train2007.json, where the data-set catalog expects it.

Classes are VOC's twenty; where others occur, those of a classes.txt or labels.txt in the folder,
else all that occur, sorted. `dataset/convert.py` reads folders of any other layout.

Objects marked difficult become crowd regions: left out of training, and neither hits nor misses in
evaluation, as VOC has it. VOC counts pixels from 1 and includes the last one, so
a box (xmin, ymin, xmax, ymax) covers xmin - 1 to xmax.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctrl_c  # noqa: F401  (before what takes seconds to import)

import numpy as np
from absl import flags

from dataset import commands
from object_detection.formats import voc
from object_detection.formats.folder import DataFolder
from object_detection.formats.labelled import LabelledObject
from object_detection.formats.plain_xml import parse_xml
from outside_data.files import read_text
from outside_data.picture_file import stored_values

_VOC_DIR = flags.DEFINE_string(
    "voc_dir", None, "Folder with Annotations, ImageSets, JPEGImages.", required=True
)
_SPLIT = flags.DEFINE_string("split", "train", "train, val, trainval or test.")
_IMAGE_SET = flags.DEFINE_enum(
    "image_set",
    "Main",
    ["Main", "Segmentation"],
    "Which lists of images: all with boxes, or those with masks (SegmentationObject).",
)
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file", "", "JSON to write; default Annotations/pascal_SPLITYEAR.json in voc_dir."
)
# What a segmentation marks as the border between objects.
_BORDER = 255


def main(argv: Sequence[str]) -> int:
    """Writes the file that the flags describe; returns the exit status."""
    folder, split = Path(_VOC_DIR.value), _SPLIT.value
    # The place of the data-set catalog, by the year in the folder's name.
    year = re.sub(r"\D", "", folder.name)
    default = folder / "Annotations" / f"pascal_{split}{year}.json"
    content = convert(folder, split, image_set=_IMAGE_SET.value)
    commands.write_coco(content, Path(_OUTPUT_FILE.value or default))
    return 0


def convert(voc_dir: Path, split: str, *, image_set: str) -> dict[str, Any]:
    """Returns a split as a COCO data set; category ids are 1, 2, ... in the classes' order.

    Args:
      voc_dir: VOC2007 or VOC2012.
      split: name of a list in ImageSets.
      image_set: Main or Segmentation; the second adds masks.

    Raises:
      FileNotFoundError: no such list, or an image without its annotation file.
      ValueError: an annotation file that is no XML of VOC; names it.
    """
    listed = voc_dir / "ImageSets" / image_set / f"{split}.txt"
    if not listed.is_file():
        raise FileNotFoundError(f"no list of images at {listed}: is --voc_dir right?")
    folder = DataFolder(voc_dir)
    documents = {path: parse_xml(path) for path in voc.files(folder)}
    classes = voc.class_names(folder, documents)
    names = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem in (line.split()[0] for line in read_text(listed).splitlines() if line.strip()):
        path = folder.root / "Annotations" / f"{stem}.xml"
        root = documents[path] if path in documents else parse_xml(path)
        image, objects = _read_image(stem, path, root, names)
        if image_set == "Segmentation":
            _add_masks(objects, voc_dir / "SegmentationObject" / f"{stem}.png")
        images.append(image)
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **entry})
    categories = [{"id": number, "name": name} for name, number in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_image(
    stem: str, path: Path, root: Element, names: dict[str, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the COCO entries of an image and of its objects, in VOC's order.

    `root` is the content of the annotation file `path`.
    """
    read = voc.image_of(path, root, Path(f"{stem}.jpg"), shift=1.0)
    if read.size is None:
        raise ValueError(f"{path}: no <size> of the image")
    width, height = read.size
    image = {"id": stem, "file_name": read.file.name, "height": height, "width": width}
    return image, [_object(item, names) for item in read.objects]


def _object(item: LabelledObject, names: dict[str, int]) -> dict[str, Any]:
    x, y, width, height = item.box
    return {
        "category_id": names[item.name],
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(item.is_crowd),
        # The box, where there is no mask: only boxes are then scored.
        "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
    }


def _add_masks(objects: list[dict[str, Any]], path: Path) -> None:
    """Puts masks in the place of boxes; object k of the annotation file has value k + 1."""
    from dataset.instance_masks import mask_annotation  # boxes do without pycocotools

    values = stored_values(path)
    present = set(np.unique(values).tolist()) - {0, _BORDER}
    if max(present, default=0) > len(objects):
        raise ValueError(
            f"{path} has object {max(present)}, its annotation file only {len(objects)} objects"
        )
    for number, entry in enumerate(objects, start=1):
        if number in present:
            found = mask_annotation(values == number)
            entry |= {key: found[key] for key in ("area", "segmentation")}


if __name__ == "__main__":
    commands.run(main)
