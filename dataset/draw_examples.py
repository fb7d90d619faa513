r"""Draws what training sees: examples after the host's and the device's processing.

With the masks where the records hold packed ones, else with boxes.

Examples:
  python dataset/draw_examples.py --records='data/train-*' --output_dir=examples
  python dataset/draw_examples.py --model_dir=RUN --output_dir=examples

Writes a sheet of training examples as they come (`train.png`), one of evaluation input
(`eval.png`), and one for each augmentation alone (`flip.png`, `scale.png`, `crop.png`,
`translate.png`, `color.png`, `mosaic.png`, `mixup.png`,
`autoaugment.png`), in which only the named thing changes from column to column.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if __name__ == "__main__":
    print("drawing what training sees; starting TensorFlow", flush=True)

import ctrl_c  # noqa: F401  (before what takes seconds to import)

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

import families
from dataset import commands
from engine.batches import iterate
from engine.config.fields import override
from engine.config.recipe_yaml import read_yaml
from object_detection.augment.scenes import DeviceAugmentation
from object_detection.draw.batches import draw_batch
from object_detection.draw.visualize import contact_sheet
from object_detection.input.canvases import frames_of_networks
from object_detection.input.datasets import evaluation_batches, training_batches
from object_detection.input.geometry import Frames
from object_detection.input.loader import Augmentation, Reading, collect_batches
from object_detection.input.problems import InputProblems
from object_detection.records.card import DataCard
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.reader import RecordSet, Shard, ordered_records, record_set
from object_detection.records.tfrecord_file import record_files

_RECORDS = flags.DEFINE_string("records", "", "Glob of the record files; '': those of the run.")
_MODEL_DIR = flags.DEFINE_string("model_dir", "", "Run whose records and settings are drawn.")
_RECIPE = flags.DEFINE_string("recipe", "", "Recipe whose settings are drawn, as train.py's.")
_MODEL_NAME = flags.DEFINE_string("model_name", "efficientdet-d0", "Model of the recipe.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "examples", "Folder for the sheets.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 512, "Side of the network input, pixels.", lower_bound=1
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 24, "Examples in train.png and eval.png.", lower_bound=1
)
_NUM_ROWS = flags.DEFINE_integer(
    "num_rows", 4, "Images in the sheets of one augmentation.", lower_bound=1
)
_COLUMNS = flags.DEFINE_integer("columns", 6, "Columns of train.png and eval.png.", lower_bound=1)
_JITTER_MIN = flags.DEFINE_float("jitter_min", 0.1, "Least scale.")
_JITTER_MAX = flags.DEFINE_float("jitter_max", 2.0, "Largest scale.")
_COLOR_JITTER = flags.DEFINE_float("color_jitter", 0.4, "Strength of colour changes in color.png.")
_TRANSLATE = flags.DEFINE_float(
    "translate", 0.0, "Largest shift; 0: none in train.png, 0.2 in translate.png."
)
_MOSAIC = flags.DEFINE_float("mosaic", 0.0, "Share of mosaics in train.png.")
_MIXUP = flags.DEFINE_float("mixup", 0.0, "Share of blended images in train.png.")
_AUTOAUGMENT = flags.DEFINE_enum(
    "autoaugment",
    "",
    ["", "v0", "v1", "v2", "v3"],
    "Policy; '': none in train.png, v1 in autoaugment.png.",
)
_RESIZE_ON = flags.DEFINE_enum("resize_on", "device", ["device", "host"], "Where to resample.")
_SEED = flags.DEFINE_integer("seed", 0, "Of order and augmentation.")

_MAX_INSTANCES = 200


def main(argv: Sequence[str]) -> int:
    """Writes the sheets; returns the exit status."""
    network_size = take_settings()
    if not _RECORDS.value:
        print(
            "error: expected --records='DATA/train-*' or --model_dir=RUN; see --help",
            file=sys.stderr,
        )
        return 2
    pattern, card = _RECORDS.value, find_or_scan_card(_RECORDS.value)
    records = record_set(record_files(pattern))
    folder = Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    (frames,) = frames_of_networks(
        [network_size],
        resize_on_host=_RESIZE_ON.value == "host",
        largest_image=(card.max_height, card.max_width),
    )
    for name, sheet in draw_sheets(records, card, frames):
        path = folder / f"{name}.png"
        Image.fromarray(sheet).save(path)
        print(path)
    return 0


def take_settings() -> tuple[int, int]:
    """Takes settings of a run or recipe for flags that are not given; returns the network's size.

    Raises:
      FileNotFoundError, ValueError: no such run or recipe, or a setting that does not exist.
    """
    side = _IMAGE_SIZE.value
    source = _RECIPE.value or (_MODEL_DIR.value and os.path.join(_MODEL_DIR.value, "config.yaml"))
    if not source:
        return side, side
    values = read_yaml(source)
    name = values["model"]["name"] if _MODEL_DIR.value else _MODEL_NAME.value
    config = override(families.base_config(name), values, source=source)
    defaults = {"records": config.data.training_file_pattern}
    names = ("jitter_min", "jitter_max", "color_jitter", "translate", "mosaic", "mixup")
    names += ("autoaugment",)
    defaults |= {name: getattr(config.data, name) for name in names}
    for flag, value in defaults.items():
        flags.FLAGS.set_default(flag, value)
    if flags.FLAGS["image_size"].present:
        return side, side
    # Mask R-CNN has a canvas for wide images and one for high ones: the first is drawn.
    sizes = getattr(config.model, "canvas_sizes", [config.model.image_size])
    return tuple(sizes[0])


def draw_sheets(records: RecordSet, card: DataCard, frames: Frames):
    """Yields (name, uint8 [h, w, 3]) of each sheet, as the flags ask."""
    reading = Reading(
        batch_size=min(_NUM_EXAMPLES.value, records.num_records),
        frames=(frames,),
        class_of_category={c.category_id: c.class_id for c in card.categories},
        problems=InputProblems(records, max_bad_records=100, max_instances=_MAX_INSTANCES),
        with_masks=card.mask_format == "bitpacked",
    )
    jitter = (_JITTER_MIN.value, _JITTER_MAX.value)
    augmentation = Augmentation(jitter, 0.5, _SEED.value, translate=_TRANSLATE.value)
    changes = DeviceAugmentation(
        mosaic=_MOSAIC.value, mixup=_MIXUP.value, autoaugment=_AUTOAUGMENT.value
    )
    for name, batches, change in (
        ("train", training_batches(records, reading, augmentation=augmentation), changes),
        ("eval", evaluation_batches(records, reading), DeviceAugmentation()),
    ):
        batch = next(iterate(batches))
        pictures = draw_batch(batch, card.class_names, frames, augmentation=change)
        captions = [
            f"image {source_id.decode()}, {_describe(geometry)}"
            for source_id, geometry in zip(batch["source_id"].numpy(), batch["geometry"].numpy())
        ]
        title = {"train": "training input", "eval": "evaluation input"}[name]
        yield name, _sheet(pictures, _COLUMNS.value, captions, title)
    chosen = readable_records(records, reading)
    # Mosaics take four.
    reading = reading._replace(batch_size=max(len(chosen), 4))
    stream = ordered_records(records, shard=Shard())
    stream = stream.filter(lambda epoch, index, record: tf.reduce_any(index == chosen))
    stream = stream.take(len(chosen)).repeat()

    def draw(augmentation: Augmentation, changes: DeviceAugmentation, seed: int):
        batches = collect_batches(stream, reading, augmentation=augmentation, drop_crowd=False)
        batch = next(iterate(batches))
        if changes.mixes or changes.autoaugment:
            batch.pop("masks", None)  # they would stay where they were
        drawn = draw_batch(batch, card.class_names, frames, augmentation=changes, seed=seed)
        return drawn[: len(chosen)]

    for name, variants in variants_of_sheets(jitter).items():
        columns = [draw(*variant, i) for i, variant in enumerate(variants.values())]
        pictures = [picture for row in zip(*columns) for picture in row]
        yield name, _sheet(pictures, len(columns), [*variants] * len(chosen), f"{name} alone")


def readable_records(records: RecordSet, reading: Reading) -> list[int]:
    """Returns the indices of the first --num_rows records whose image can be decoded.

    Raises:
      ValueError: more than half of them cannot.
    """
    found: list[int] = []
    for batch in iterate(evaluation_batches(records, reading)):
        found += batch["record_index"].numpy()[batch["valid"].numpy()].tolist()
        if len(found) >= _NUM_ROWS.value:
            break
    return found[: _NUM_ROWS.value]


def variants_of_sheets(
    jitter: tuple[float, float],
) -> dict[str, dict[str, tuple[Augmentation, DeviceAugmentation]]]:
    """Returns sheet -> caption -> what the host and the device do; jitter: least, largest scale."""

    def at(scale: float, *, flip: float = 0.0, seed: int = 0, translate: float = 0.0):
        scale = float(np.clip(scale, *jitter))
        return Augmentation((scale, scale), flip, seed, translate), DeviceAugmentation()

    seeds = {f"seed {i}": i for i in range(1, 5)}
    shift = _TRANSLATE.value or 0.2
    stored = {"as stored": at(1.0)}
    sheets = {
        "flip": {**stored, "mirrored": at(1.0, flip=1.0)},
        "scale": {f"scale {s:.2f}": at(s) for s in np.linspace(*jitter, 6)},
        "crop": {name: at(2.0, seed=i) for name, i in seeds.items()},
        "translate": stored | {k: at(1.0, seed=i, translate=shift) for k, i in seeds.items()},
    }
    for name, changes in {
        "color": DeviceAugmentation(color_jitter=_COLOR_JITTER.value),
        "mosaic": DeviceAugmentation(mosaic=1.0),
        "mixup": DeviceAugmentation(mixup=1.0),
        "autoaugment": DeviceAugmentation(autoaugment=_AUTOAUGMENT.value or "v1"),
    }.items():
        sheets[name] = stored | {name: (at(1.0)[0], changes) for name in seeds}
    return sheets


def _describe(geometry: np.ndarray) -> str:
    """One line about a packed geometry: scale of the image, and whether it is mirrored."""
    return f"x{geometry[8]:.2f}" + (", mirrored" if geometry[12] else "")


def _sheet(
    pictures: Sequence[np.ndarray], columns: int, captions: Sequence[str], title: str
) -> np.ndarray:
    cell = (320, 320)
    return contact_sheet(pictures, columns, captions, cell=cell, title=title)


if __name__ == "__main__":
    commands.run(main)
