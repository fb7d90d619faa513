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

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from engine.config.fields import override
from engine.config.recipe_yaml import read_yaml
from object_detection.augment.scenes import DeviceAugmentation
from object_detection.draw.batches import draw_batch
from object_detection.draw.visualize import contact_sheet
from object_detection.input import crop_decode
from object_detection.input.canvases import frames_of_networks
from object_detection.input.datasets import evaluation_batches, training_batches
from object_detection.input.geometry import Frames
from object_detection.input.loader import Augmentation, Reading
from object_detection.input.problems import InputProblems
from object_detection.records import schema
from object_detection.records.card import DataCard
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.reader import RecordSet, record_set
from object_detection.records.tfrecord_file import record_files
from outside_data.text import clean

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
    yield "train", draw_stream(records, card, frames, training=True)
    yield "eval", draw_stream(records, card, frames, training=False)
    jitter = (_JITTER_MIN.value, _JITTER_MAX.value)
    fitting = _uniform_for(1.0, jitter)
    most = _uniform_for(min(2.0, jitter[1]), jitter)
    scales = np.linspace(*jitter, 6)
    shifts = [(0.5, 0.5), (0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0)]
    translate = _TRANSLATE.value or 0.2
    corners = [(0.0, 0.0), (0.0, 0.999), (0.5, 0.5), (0.999, 0.0), (0.999, 0.999)]
    variants = {
        "flip": {"as stored": (fitting, 0, 0, 1), "mirrored": (fitting, 0, 0, 0)},
        "scale": {f"scale {s:.2f}": (_uniform_for(s, jitter), 0.5, 0.5, 1) for s in scales},
        "crop": {f"offset {y:.1f}, {x:.1f}": (most, y, x, 1) for y, x in corners},
        "translate": {
            f"shift {translate * (2 * y - 1):.1f}, {translate * (2 * x - 1):.1f}": (
                *(fitting, 0, 0, 1, y, x),
            )
            for y, x in shifts
        },
        "color": {f"seed {i}" if i else "as stored": (fitting, 0, 0, 1) for i in range(5)},
    }
    chosen = list(readable_records(records, card, frames))
    for name, columns in variants.items():
        strength = _COLOR_JITTER.value if name == "color" else 0.0
        pictures = draw_variants(chosen, card, frames, columns, jitter=jitter, strength=strength)
        captions = list(columns) * (len(pictures) // len(columns))
        yield name, _sheet(pictures, len(columns), captions, f"{name} alone")
    policy = _AUTOAUGMENT.value or "v1"
    for name, value in (("mosaic", 1.0), ("mixup", 1.0), ("autoaugment", policy)):
        changes = DeviceAugmentation(**{name: value})
        captions = ["as stored", *(f"seed {i}" for i in range(1, 5))]
        pictures = draw_device_variants(
            *(chosen, card, frames, changes),
            columns=len(captions),
            scale=fitting,
            jitter=jitter,
        )
        yield name, _sheet(pictures, len(captions), captions * len(chosen), f"{name} alone")


def draw_stream(
    records: RecordSet, card: DataCard, frames: Frames, *, training: bool
) -> np.ndarray:
    """Draws the first examples of the training or of the evaluation input."""
    reading = Reading(
        batch_size=min(_NUM_EXAMPLES.value, records.num_records),
        frames=(frames,),
        class_of_category={c.category_id: c.class_id for c in card.categories},
        problems=InputProblems(records, max_bad_records=100, max_instances=_MAX_INSTANCES),
        with_masks=_reads_masks(card),
    )
    if training:
        jitter = (_JITTER_MIN.value, _JITTER_MAX.value)
        augmentation = Augmentation(
            jitter=jitter,
            flip_probability=0.5,
            seed=_SEED.value,
            translate=_TRANSLATE.value,
        )
        batches = training_batches(records, reading, augmentation=augmentation)
    else:
        batches = evaluation_batches(records, reading)
    batch = next(iter(batches))
    changes = DeviceAugmentation()
    if training:
        changes = DeviceAugmentation(
            mosaic=_MOSAIC.value, mixup=_MIXUP.value, autoaugment=_AUTOAUGMENT.value
        )
    pictures = draw_batch(batch, card.class_names, frames, augmentation=changes)
    captions = [
        f"image {source_id.decode()}, {_describe(geometry)}"
        for source_id, geometry in zip(batch["source_id"].numpy(), batch["geometry"].numpy())
    ]
    title = "training input" if training else "evaluation input"
    return _sheet(pictures, _COLUMNS.value, captions, title)


def readable_records(records: RecordSet, card: DataCard, frames: Frames) -> Iterator[tf.Tensor]:
    """Yields the first --num_rows records whose image can be decoded; names those before them.

    Raises:
      ValueError: there is none.
    """
    found = 0
    for index, record in enumerate(tf.data.TFRecordDataset(list(records.files))):
        try:
            read_example(record, card, frames, uniforms=(0.5, 0, 0, 1), jitter=(1.0, 1.0))
        except tf.errors.InvalidArgumentError as error:
            print(f"WARNING: left out record {index}: {clean(error.message)}", file=sys.stderr)
            continue
        yield record
        found += 1
        if found == _NUM_ROWS.value:
            return
    if not found:
        raise ValueError(f"{_RECORDS.value}: no image can be decoded")


def draw_variants(
    records: Sequence[tf.Tensor],
    card: DataCard,
    frames: Frames,
    columns: Mapping[str, Sequence[float]],
    *,
    jitter: tuple[float, float],
    strength: float,
) -> list[np.ndarray]:
    """Draws the first images once for each choice of uniform numbers.

    Args:
      records: of the images, serialized.
      card: of their set.
      frames: sizes and where to resample.
      columns: caption -> the four or six numbers that `crop_decode.sample_crop` takes.
      jitter: least and largest scale.
      strength: of colour changes in all columns but the first.

    Returns:
      uint8 [height, width, 3] of the first image in all columns, then of the second, and so on.
    """
    pictures = []
    for serialized in records:
        for i, uniforms in enumerate(columns.values()):
            batch = read_example(serialized, card, frames, uniforms=uniforms, jitter=jitter)
            changes = DeviceAugmentation(color_jitter=strength if i else 0.0)
            pictures += draw_batch(batch, card.class_names, frames, augmentation=changes, seed=i)
    return pictures


def draw_device_variants(
    records: Sequence[tf.Tensor],
    card: DataCard,
    frames: Frames,
    changes: DeviceAugmentation,
    *,
    columns: int,
    scale: float,
    jitter: tuple[float, float],
) -> list[np.ndarray]:
    """Draws the first images as stored, then changed in `columns` - 1 ways, with their boxes.

    Args:
      records, card, frames: as of `draw_variants`.
      changes: what the device shall do.
      columns: pictures of each image.
      scale: uniform number that draws the scale of the images.
      jitter: least and largest scale.

    Returns:
      uint8 [height, width, 3] of the first image in all columns, then of the second, and so on.
    """
    examples = []
    for serialized in itertools.islice(itertools.cycle(records), max(len(records), 4)):
        uniforms = (scale, 0, 0, 1)
        example = read_example(serialized, card, frames, uniforms=uniforms, jitter=jitter)
        example.pop("masks", None)  # the drawn ones would stay where they were
        missing = [[0, 0], [0, _MAX_INSTANCES - example["classes"].shape[1]]]
        example["classes"] = tf.pad(example["classes"], missing, constant_values=-1)
        example["is_crowd"] = tf.pad(example["is_crowd"], missing)
        example["boxes"] = tf.pad(example["boxes"], [*missing, [0, 0]])
        examples.append(example)
    batch = {name: tf.concat([e[name] for e in examples], axis=0) for name in examples[0]}
    drawn = [
        draw_batch(
            batch,
            card.class_names,
            frames,
            augmentation=changes if column else DeviceAugmentation(),
            seed=column,
        )
        for column in range(columns)
    ]
    return [pictures[row] for row in range(len(records)) for pictures in drawn]


def read_example(
    serialized: tf.Tensor,
    card: DataCard,
    frames: Frames,
    *,
    uniforms: Sequence[float],
    jitter: tuple[float, float],
) -> dict[str, tf.Tensor]:
    """Reads one record with chosen instead of random numbers; a batch of one."""
    mask_format = card.mask_format if _reads_masks(card) else None
    parsed = schema.parse_record(serialized, mask_format=mask_format)
    image = crop_decode.open_image(parsed["encoded"])
    crop = crop_decode.sample_crop(
        tf.constant(uniforms, tf.float32),
        image.size,
        network_size=frames.network_size,
        jitter=jitter,
        flip_probability=0.5,
        translate=(_TRANSLATE.value or 0.2) if len(uniforms) > 4 else 0.0,
    )
    pixels, geometry = crop_decode.decode_crop(image, crop, frames)
    canvas = tf.image.pad_to_bounding_box(pixels, 0, 0, *frames.canvas_size)
    class_of_category = {c.category_id: c.class_id for c in card.categories}
    classes = [class_of_category[category] for category in parsed["category_ids"].numpy()]
    example = {
        "image": canvas,
        "geometry": geometry,
        "boxes": parsed["boxes_norm"] * tf.tile(image.size, [2]),
        "classes": tf.constant(classes, tf.int32),
        "is_crowd": parsed["is_crowd"],
    }
    if mask_format:
        example["masks"] = tf.io.decode_raw(parsed["masks"], tf.uint8)
    return {name: value[tf.newaxis] for name, value in example.items()}


def _reads_masks(card: DataCard) -> bool:
    """Whether the records hold masks in the form that training reads."""
    return card.mask_format == "bitpacked"


def _uniform_for(scale: float, jitter: tuple[float, float]) -> float:
    """Returns the uniform number that draws a scale."""
    return float((min(max(scale, jitter[0]), jitter[1]) - jitter[0]) / max(np.ptp(jitter), 1e-9))


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
