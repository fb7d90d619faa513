r"""Says what is wrong with a data set before anything is trained on it.

Example:
  python -m dataset.check DIR --model_name=efficientdet-lite0 --image_size=320 --output_dir=check
prints one page and writes check.json; with --pictures=20 the worst images as sheet.png too.
Any format that dataset/convert.py reads. Exit status 1 if there is an error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctrl_c  # noqa: F401  (before what takes seconds to import)

import numpy as np
from absl import flags
from PIL import Image

import families
from dataset import commands
from object_detection.check.findings import Report
from object_detection.check.run import check_splits
from object_detection.check.split_table import SplitTable
from object_detection.convert.prepare import coco_splits, training_split
from object_detection.convert.report import progress_printer
from object_detection.formats.importers import FORMATS
from outside_data.picture_file import BadImageError, open_picture, read_regular_file
from outside_data.whole_file import write_whole

_FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", *FORMATS], "Of the annotations; auto looks at the files."
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", "efficientdet-d0", "Model whose anchors the boxes are compared with."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side of the network's input, pixels; default the model's.", lower_bound=32
)
_MAX_INSTANCES = flags.DEFINE_integer(
    "max_instances_per_image", 100, "As in training: rows for boxes.", lower_bound=1
)
_MAX_DETECTIONS = flags.DEFINE_integer(
    "max_detections", 100, "Detections of an image that are scored.", lower_bound=1
)
_TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "Split to train on; default train*.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "", "Folder of check.json and sheet.png; '': only the page is printed."
)
_PICTURES = flags.DEFINE_integer(
    "pictures",
    0,
    "Images to draw into sheet.png, those of the worst findings first.",
    lower_bound=0,
)


def main(argv: Sequence[str]) -> int:
    """Checks the folder that the command line names; returns the exit status."""
    if _PICTURES.value and not _OUTPUT_DIR.value:
        print("error: --pictures needs --output_dir", file=sys.stderr)
        return 2
    started = time.monotonic()
    model = families.base_config(_MODEL_NAME.value).model
    layout = families.anchor_layout(model)
    if layout and _IMAGE_SIZE.value:
        layout = layout.at(_IMAGE_SIZE.value)
    with tempfile.TemporaryDirectory() as scratch:
        splits = coco_splits(argv[1], scratch, format_name=_FORMAT.value)
        train = training_split(splits, _TRAIN_SPLIT.value)
        ordered = dict(sorted(splits.items(), key=lambda item: item[1] != train))
        report, tables = check_splits(
            ordered,
            layout=layout,
            max_instances=_MAX_INSTANCES.value,
            max_detections=_MAX_DETECTIONS.value,
            follow_links=True,
            progress=lambda name: progress_printer(f"checking {name}"),
        )
        print(report.describe())
        if _OUTPUT_DIR.value:
            folder = Path(_OUTPUT_DIR.value)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "check.json", json.dumps(report.to_json(), indent=1) + "\n")
            print(f"{folder / 'check.json'} in {time.monotonic() - started:.1f} s")
            if _PICTURES.value:
                print(_draw(report, tables, folder / "sheet.png"))
    return int(bool(report.errors))


def _draw(report: Report, tables: Mapping[str, SplitTable], path: Path) -> str:
    """Writes a sheet of images with their boxes as stated, those of the worst findings first.

    Returns its path, or why there is none.
    """
    from object_detection.draw.entries import corners
    from object_detection.draw.visualize import contact_sheet, draw_boxes

    places = {
        name: {image.file_name: i for i, image in enumerate(table.annotations.images)}
        for name, table in tables.items()
    }
    shown: dict[tuple[str, int], str] = {}
    for item in report.findings:
        concerned = item.split.split(", ")
        for name, example in itertools.product(
            filter(concerned.__contains__, tables), item.examples
        ):
            # The file's name comes first, then what is said of it.
            starts = (example[:i] for i, letter in enumerate(example) if letter in ", ")
            file = next((start for start in starts if start in places[name]), None)
            if file is not None:
                shown.setdefault((name, places[name][file]), f"{item.code}: {file}")
    for name, table in tables.items():
        for index, image in enumerate(table.annotations.images):
            shown.setdefault((name, index), f"{name}: {image.file_name}")
    pictures, captions = [], []
    for (name, index), caption in shown.items():
        table = tables[name]
        try:
            data = read_regular_file(table.facts[index].path)
            pixels = np.asarray(open_picture(data).rgb(upright=False))
        except BadImageError:
            continue
        own = table.image == index
        boxes, names = corners(table.boxes[own]), table.annotations.category_names
        pictures.append(draw_boxes(pixels, boxes, table.category[own], names=names))
        captions.append(caption)
        if len(pictures) == _PICTURES.value:
            break
    if not pictures:
        return "no picture to draw: not one image file can be used"
    Image.fromarray(contact_sheet(pictures, min(4, len(pictures)), captions)).save(path)
    return str(path)


if __name__ == "__main__":
    commands.run(main, argument="one data folder")
