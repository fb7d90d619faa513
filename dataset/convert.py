r"""Converts a data folder in any known format to TFRecord shards and data cards.

Example:
  python dataset/convert.py DIR --format=auto --output_dir=records
writes records/train-*, records/val-*, ... with their cards: one set for each split of DIR. Of a
format other than COCO's, records/annotations/instances_<split>.json are written too, which
evaluation takes. The data are not checked as by train.py --data: python -m dataset.check does that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

from dataset import commands
from engine.ranks import machine
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.prepare import coco_splits
from object_detection.convert.report import describe_conversion, progress_printer
from object_detection.formats.importers import FORMATS
from object_detection.formats.voc import CORNER_RULES
from outside_data.text import clean_lines

_FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", *FORMATS], "Of the annotations; auto looks at the files."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "", "Folder of the records; default NAME-records, NAME being the data folder's."
)
_NUM_SHARDS = flags.DEFINE_integer("num_shards", 8, "Shards of each split.", lower_bound=1)
_MAX_BAD_IMAGES = flags.DEFINE_integer(
    "max_bad_images", 10, "Image files that may be unusable, in each split.", lower_bound=0
)
commands.define_conversion_flags()
_VOC_CORNERS = flags.DEFINE_enum(
    "voc_corners",
    "auto",
    CORNER_RULES,
    "How VOC's corners count: inclusive (from 1, the far one inside: VOC's rule), plain, or auto.",
)


def main(argv: Sequence[str]) -> int:
    """Converts the folder that the command line names; returns the exit status."""
    data = Path(argv[1])
    output = Path(_OUTPUT_DIR.value or f"{data.resolve().name}-records")
    splits = coco_splits(data, output, format_name=_FORMAT.value, voc_corners=_VOC_CORNERS.value)
    for split, (annotation_file, image_dir) in splits.items():
        annotations = read_annotations(
            annotation_file,
            on_orphan=flags.FLAGS.on_orphan_annotation,
            require_objects=not split.startswith("test"),
        )
        conversion = convert(
            annotations,
            image_dir,
            output / split,
            num_shards=_NUM_SHARDS.value,
            num_workers=flags.FLAGS.num_threads or machine.available_cores(),
            mask_format="bitpacked" if flags.FLAGS.include_masks else None,
            max_bad_images=_MAX_BAD_IMAGES.value,
            pictures=commands.picture_rules(),
            progress=progress_printer(f"converting {split}"),
        )
        print(describe_conversion(conversion))
        where = f"annotations of {split}: {annotation_file}, images in {image_dir}"
        print(f"{clean_lines(where)}\n")
    return 0


if __name__ == "__main__":
    commands.run(
        main, argument="one data folder", interrupted="interrupted: run the same command again"
    )
