"""Writes the embedded data set: a small detection data set made of what pip packages carry.

    python -m dataset.embedded.make_set --output_dir=data/embedded

Eight classes, cut out of scikit-image's photographs or drawn, are composed on photographs and
drawn surfaces, with shadows, occlusion, heaps and exact masks, and written as an ordinary COCO
directory:

    train/*.jpg  val/*.jpg
    annotations/instances_train.json  annotations/instances_val.json
    overview.jpg  ATTRIBUTION.txt

The same seed gives the same pictures. The annotation files are written last and renamed into
place, so an interrupted run leaves nothing that looks complete; a complete set is reused.

The category ids have gaps on purpose, as COCO's do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.embedded.annotations import annotation_of
from dataset.embedded.photos import ATTRIBUTION
from dataset.embedded.scene import THINGS, Scene, SpriteBox, compose_scene
from engine.config.arguments import ArgumentParser
from object_detection.draw.contours import mask_box
from object_detection.draw.visualize import contact_sheet, draw_boxes
from outside_data.files import MOST_JSON_BYTES, read_json
from outside_data.whole_file import write_whole

GENERATOR_VERSION = 2
"""To be raised whenever the same settings give other pictures."""

_SPLIT_SEEDS = {"train": 1, "val": 2}
_FIRST_IMAGE_ID = {"train": 1, "val": 500_001}
_SHAPES = ((0.75, 1.0), (0.8, 1.0), (1.0, 0.75), (1.0, 0.8), (0.9, 0.9))
"""Height and width as shares of the longest side: landscape, portrait, square."""
_SHAPE_WEIGHTS = (0.3, 0.2, 0.2, 0.15, 0.15)
_JPEG_QUALITY = 92
_VARIANTS = {"train": 20, "val": 10}
_OVERVIEW_IMAGES = 24


class EmbeddedSet(NamedTuple):
    """Where the set lies. reused: it was complete already and left as it was."""

    output_dir: Path
    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path
    reused: bool


def write_embedded_set(
    output_dir: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_eval: int = 80,
    image_size: int = 320,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> EmbeddedSet:
    """Writes the set, or finds it complete.

    Args:
      output_dir: a new or empty folder, or one that an earlier call wrote with these settings.
      num_train: pictures in `train`.
      num_eval: pictures in `val`.
      image_size: longest side in pixels.
      seed: another seed gives other pictures.
      report: is told of the progress, one line at a time.

    Raises:
      ValueError: sizes out of range, or the folder holds a set of other settings.
      FileNotFoundError: scikit-image is not installed or lacks a photograph.
    """
    if min(num_train, num_eval) < 1 or image_size < 64:
        raise ValueError(
            "expected at least one picture in each split and image_size of 64 or more, got "
            f"num_train={num_train}, num_eval={num_eval}, image_size={image_size}"
        )
    folder = Path(output_dir)
    settings = {
        "generator": GENERATOR_VERSION,
        "num_train": num_train,
        "num_eval": num_eval,
        "image_size": image_size,
        "seed": seed,
    }
    found = EmbeddedSet(
        folder,
        folder / "train",
        folder / "annotations" / "instances_train.json",
        folder / "val",
        folder / "annotations" / "instances_val.json",
        reused=True,
    )
    if _is_complete(found, settings):
        report(f"embedded set in {folder} is complete, reused")
        return found
    started = time.monotonic()
    for name in ("train", "val", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ATTRIBUTION.txt").write_text(ATTRIBUTION, encoding="utf-8")
    sheet: list[np.ndarray] = []
    documents = {
        split: _write_split(
            folder, split, count=count, settings=settings, sheet=sheet, report=report
        )
        for split, count in (("train", num_train), ("val", num_eval))
    }
    overview = contact_sheet(sheet, 6, cell=(300, 360), title="The embedded set, with its boxes")
    Image.fromarray(overview).save(folder / "overview.jpg", quality=90)
    for split, document in documents.items():
        _write_json(folder / "annotations" / f"instances_{split}.json", document)
    report(f"embedded set written to {folder} in {time.monotonic() - started:.0f} s")
    return found._replace(reused=False)


def draw_scene(split: str, index: int, *, seed: int, image_size: int, sprites: SpriteBox) -> Scene:
    """Returns picture `index` of a split; it depends on nothing but the arguments.

    Args:
      split: `train` or `val`.
      sprites: of the same seed and split.
    """
    rng = np.random.default_rng([seed, _SPLIT_SEEDS[split], index])
    tall, wide = _SHAPES[int(rng.choice(len(_SHAPES), p=_SHAPE_WEIGHTS))]
    return compose_scene(
        rng,
        sprites,
        height=round(tall * image_size),
        width=round(wide * image_size),
        split=split,
    )


def _write_split(
    folder: Path,
    split: str,
    *,
    count: int,
    settings: dict[str, int],
    sheet: list[np.ndarray],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the pictures of a split and returns its instances document."""
    seed, image_size = settings["seed"], settings["image_size"]
    sprites = SpriteBox(seed, split, variants=_VARIANTS[split])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    started = reported = time.monotonic()
    for index in range(count):
        scene = draw_scene(split, index, seed=seed, image_size=image_size, sprites=sprites)
        image_id = _FIRST_IMAGE_ID[split] + index
        height, width = scene.pixels.shape[:2]
        name = f"{image_id:012d}.jpg"
        Image.fromarray(scene.pixels).save(folder / split / name, quality=_JPEG_QUALITY)
        images.append(
            {"id": image_id, "file_name": name, "height": height, "width": width, "license": 1}
        )
        for thing in scene.objects:
            annotations.append(
                annotation_of(
                    thing.mask,
                    annotation_id=_FIRST_IMAGE_ID[split] + len(annotations),
                    image_id=image_id,
                    category_id=THINGS[thing.thing].category_id,
                    is_crowd=thing.is_crowd,
                )
            )
        if split == "train" and len(sheet) < _OVERVIEW_IMAGES:
            sheet.append(_with_boxes(scene))
        now = time.monotonic()
        if now - reported > 5 or index + 1 == count:
            left = (now - started) / (index + 1) * (count - index - 1)
            report(f"  {split}: {index + 1} of {count} pictures, {left:.0f} s left")
            reported = now
    return {
        "info": {
            "description": "Embedded set: composed pictures, see ATTRIBUTION.txt",
            "version": str(GENERATOR_VERSION),
            "settings": settings,
        },
        "licenses": [{"id": 1, "name": "see ATTRIBUTION.txt", "url": ""}],
        "categories": [
            {"id": thing.category_id, "name": thing.name, "supercategory": "thing"}
            for thing in THINGS
        ],
        "images": images,
        "annotations": annotations,
    }


def _with_boxes(scene: Scene) -> np.ndarray:
    return draw_boxes(
        scene.pixels,
        np.array([mask_box(thing.mask) for thing in scene.objects]).reshape(-1, 4),
        np.array([thing.thing for thing in scene.objects], np.int64),
        names=[thing.name for thing in THINGS],
        crowd=np.array([thing.is_crowd for thing in scene.objects], bool),
        zoom=2,
    )


def _is_complete(place: EmbeddedSet, settings: dict[str, int]) -> bool:
    """Whether the folder holds the set of these settings.

    Raises:
      ValueError: it holds another one, whose pictures would mix with the new ones.
    """
    paths = (place.train_annotations, place.val_annotations)
    if not all(path.is_file() for path in paths):
        return False
    for path in paths:
        document = read_json(path, most=MOST_JSON_BYTES)
        info = document.get("info", {})
        if info.get("settings") != settings:
            raise ValueError(
                f"{path} belongs to another set ({info.get('settings', 'not an embedded one')}); "
                f"asked for {settings}: choose another output_dir or delete the old set"
            )
    return True


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_whole(path, json.dumps(document, separators=(",", ":")))


def main() -> None:
    """Reads the command line and writes the set."""
    parser = ArgumentParser(
        prog="python -m dataset.embedded.make_set",
        description="Writes the embedded data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--num_train", type=int, default=400, help="pictures in train")
    parser.add_argument("--num_eval", type=int, default=80, help="pictures in val")
    parser.add_argument("--image_size", type=int, default=320, help="longest side, pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures")
    write_embedded_set(**vars(parser.parse_args()), report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
