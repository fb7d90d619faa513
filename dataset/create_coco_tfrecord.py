r"""Converts a COCO annotation file and its images to TFRecord shards and a data card.

Example:
  python dataset/create_coco_tfrecord.py --image_dir=coco/train2017 \
    --object_annotations_file=coco/annotations/instances_train2017.json \
    --output_file_prefix=coco/train --num_shards=256

Boxes come from --object_annotations_file and from nowhere else: with captions alone the records
hold none and nothing can be learned from them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

from dataset import commands
from engine.ranks import machine
from object_detection.coco.annotations import read_annotations, read_captions, read_images
from object_detection.convert.convert import Conversion, convert
from object_detection.convert.report import describe_conversion, progress_printer

_MASK_FORMAT = flags.DEFINE_enum(
    "mask_format",
    "bitpacked",
    ["png", "bitpacked"],
    "How masks are stored: bitpacked 112x112 crops (image/object/mask_112), which training here "
    "reads without decoding; or one PNG of the whole image each (image/object/mask), as the "
    "references store them.",
)
_IMAGE_DIR = flags.DEFINE_string("image_dir", "", "Folder of the images.")
_IMAGE_INFO_FILE = flags.DEFINE_string(
    "image_info_file",
    "",
    "COCO file whose image list is converted, for example image_info_test-dev2017.json; default "
    "the object annotations file, else the captions file.",
)
_OBJECT_ANNOTATIONS_FILE = flags.DEFINE_string(
    "object_annotations_file", "", "COCO instances file: boxes, classes, masks."
)
_CAPTION_ANNOTATIONS_FILE = flags.DEFINE_string(
    "caption_annotations_file", "", "COCO captions file; captions are stored, nothing reads them."
)
_OUTPUT_FILE_PREFIX = flags.DEFINE_string(
    "output_file_prefix", "/tmp/train", "Shards are PREFIX-00000-of-00032.tfrecord, and so on."
)
_NUM_SHARDS = flags.DEFINE_integer("num_shards", 32, "Number of shards.", lower_bound=1)
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image",
    "skip",
    ["skip", "stop"],
    "What to do about an image file that is missing, empty or undecodable.",
)
_MAX_BAD_IMAGES = flags.DEFINE_integer(
    "max_bad_images", 10, "With --on_bad_image=skip: give up when there are more.", lower_bound=0
)
commands.define_conversion_flags()


def main(argv: Sequence[str]) -> int:
    """Runs the conversion that the flags describe; returns the exit status."""
    print(describe_conversion(_convert_from_flags()))
    return 0


def _convert_from_flags() -> Conversion:
    prefix = _OUTPUT_FILE_PREFIX.value
    files = [_IMAGE_INFO_FILE, _OBJECT_ANNOTATIONS_FILE, _CAPTION_ANNOTATIONS_FILE]
    if not _IMAGE_DIR.value or not any(flag.value for flag in files):
        raise ValueError(
            "expected --image_dir and one of "
            + ", ".join(f"--{flag.name}" for flag in files)
            + "; see --help"
        )
    if flags.FLAGS.include_masks and not _OBJECT_ANNOTATIONS_FILE.value:
        raise ValueError("--include_masks needs --object_annotations_file: masks come from there")
    print(f"reading annotations for {prefix}", file=sys.stderr)
    annotations = captions = None
    if _OBJECT_ANNOTATIONS_FILE.value:
        annotations = read_annotations(
            _OBJECT_ANNOTATIONS_FILE.value, on_orphan=flags.FLAGS.on_orphan_annotation
        )
    if _CAPTION_ANNOTATIONS_FILE.value:
        captions = read_captions(_CAPTION_ANNOTATIONS_FILE.value)
    images = None
    if _IMAGE_INFO_FILE.value or annotations is None:
        images = read_images(_IMAGE_INFO_FILE.value or _CAPTION_ANNOTATIONS_FILE.value)
    return convert(
        annotations,
        _IMAGE_DIR.value,
        prefix,
        images=images,
        captions=captions,
        num_shards=_NUM_SHARDS.value,
        num_workers=flags.FLAGS.num_threads or machine.available_cores(),
        mask_format=_MASK_FORMAT.value if flags.FLAGS.include_masks else None,
        on_bad_image=_ON_BAD_IMAGE.value,
        max_bad_images=_MAX_BAD_IMAGES.value,
        pictures=commands.picture_rules(),
        progress=progress_printer(f"converting {os.path.basename(prefix)}"),
    )


if __name__ == "__main__":
    commands.run(main, interrupted="interrupted: nothing was written; run the same command again")
