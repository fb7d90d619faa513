r"""Makes a COCO annotation file of a Cityscapes split, for create_coco_tfrecord.py and eval.py.

Example:
  python dataset/cityscapes_to_coco.py --cityscapes_dir=DATA/cityscapes --split=train
reads gtFine/train/*/*_gtFine_instanceIds.png and leftImg8bit/train, and writes
DATA/cityscapes/annotations/instancesonly_filtered_gtFine_train.json, where the data-set catalog
expects it.

The eight classes that have instances become categories 1 to 8. Regions that hold several objects
(value below 1000) become crowd regions. File names are relative to leftImg8bit,
with split and city in them: that is the --image_dir of the conversion.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctrl_c  # noqa: F401  (before what takes seconds to import)

import numpy as np
from absl import flags

from dataset import commands
from dataset.instance_masks import mask_annotation
from outside_data.picture_file import read_picture_header, stored_values

_CITYSCAPES_DIR = flags.DEFINE_string(
    "cityscapes_dir", None, "Folder with gtFine and leftImg8bit.", required=True
)
_SPLIT = flags.DEFINE_enum("split", "train", ["train", "val", "test"], "Which split.")
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file",
    "",
    "JSON to write; default annotations/instancesonly_filtered_gtFine_SPLIT.json there.",
)
# Label ids of the classes with instances, in the order of the categories.
LABELS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_INSTANCES_FROM = 1000  # an instance is label id * 1000 + number
_IMAGE_END, _LABEL_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"


def main(argv: Sequence[str]) -> int:
    """Writes the file that the flags describe; returns the exit status."""
    folder, split = Path(_CITYSCAPES_DIR.value), _SPLIT.value
    default = folder / "annotations" / f"instancesonly_filtered_gtFine_{split}.json"
    commands.write_coco(convert(folder, split), Path(_OUTPUT_FILE.value or default))
    return 0


def convert(folder: Path, split: str) -> dict[str, Any]:
    """Returns a split as a COCO data set; the test split has images only.

    Args:
      folder: with gtFine and leftImg8bit.
      split: train, val or test.

    Raises:
      FileNotFoundError: no images, or one without its instance ids.
      ValueError: image and instance ids differ in size.
    """
    root = folder / "leftImg8bit"
    pictures = sorted((root / split).glob(f"*/*{_IMAGE_END}"))
    if not pictures:
        raise FileNotFoundError(f"no images *{_IMAGE_END} in {root / split}/CITY")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        header = read_picture_header(picture)
        width, height = header.width, header.height
        entry = {
            "id": picture.name[: -len(_IMAGE_END)],
            "file_name": picture.relative_to(root).as_posix(),
            "height": height,
            "width": width,
        }
        images.append(entry)
        if split == "test":
            continue
        labels = folder / "gtFine" / split / picture.parent.name / f"{entry['id']}{_LABEL_END}"
        for found in _objects(labels, (height, width)):
            annotations.append({"id": len(annotations) + 1, "image_id": entry["id"], **found})
    categories = [{"id": k, "name": name} for k, name in enumerate(LABELS.values(), start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _objects(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Returns the COCO entries of an instance-id image, whose image is (height, width)."""
    if not path.is_file():
        raise FileNotFoundError(f"no instance ids at {path}: unpack gtFine_trainvaltest.zip")
    values = stored_values(path).astype(np.int32)
    if values.shape != size:
        raise ValueError(f"{path} is of size {values.shape}, its image of size {size}")
    category_ids = {label: number for number, label in enumerate(LABELS, start=1)}
    found = []
    for value in np.unique(values).tolist():
        is_group = value < _INSTANCES_FROM
        label = value if is_group else value // _INSTANCES_FROM
        if label in category_ids:
            entry = mask_annotation(values == value)
            found.append({"category_id": category_ids[label], "iscrowd": int(is_group), **entry})
    return found


if __name__ == "__main__":
    commands.run(main)
