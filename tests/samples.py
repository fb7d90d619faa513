"""Image files, records and annotations that tests of several rooms start from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from object_detection.records import schema
from object_detection.records.example_proto import decode_example
from object_detection.records.tfrecord_file import iterate_records, record_files


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def encoded(
    picture: np.ndarray | Image.Image, image_format: str = "PNG", mode: str = "", **options: Any
) -> bytes:
    """Returns an image file of a picture, or of uint8 [h, w, 3] or [h, w]; `mode` converts it."""
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.asarray(picture, np.uint8))
    if mode:
        picture = picture.convert(mode, palette=Image.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def record(
    source_id: str,
    size: tuple[int, int],
    boxes: Any = (),
    *,
    image: bytes | None = None,
    **changes: Any,
) -> bytes:
    """Returns a record of a black PNG picture, or of `image`, with objects of category 7.

    Args:
      source_id: of the image, which names its file too.
      size: (height, width) of the image, pixels.
      boxes: (y1, x1, y2, x2) each, pixels; None: the image has no annotation.
      image: the file.
      changes: arguments of `encode_record` that are to be others.
    """
    count = 0 if boxes is None else len(boxes)
    arguments = {
        "image_format": "png",
        "height": size[0],
        "width": size[1],
        "source_id": source_id,
        "file_name": f"{source_id}.png",
        "boxes": None if boxes is None else np.array(boxes, np.float64).reshape(-1, 4),
        "category_ids": [7] * count,
        "category_names": ["x"] * count,
        "is_crowd": [False] * count,
        "areas": [10.0] * count,
    }
    image = encoded(np.zeros((*size, 3))) if image is None else image
    return schema.encode_record(image, **{**arguments, **changes})


def unpack_mask(packed: bytes) -> np.ndarray:
    """Returns the uint8 [112, 112] cells of a packed crop."""
    return np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(112, 112)


def read_back(pattern: str) -> list[dict[str, Any]]:
    """Returns {field: its values} of every record of the files that match."""
    fields = [name for key, name in vars(schema).items() if key.isupper() and type(name) is str]
    files = record_files(pattern)
    return [decode_example(record, fields) for file in files for record in iterate_records(file)]


def instances(
    images: Iterable[Any],
    objects: Iterable[Sequence[Any]],
    categories: Iterable[tuple[int, str]] = ((3, "cat"), (7, "dog")),
    *,
    size: tuple[int, int] = (480, 640),
    ending: str = ".jpg",
) -> dict[str, list[dict[str, Any]]]:
    """Returns a COCO data set as a dictionary; annotation ids are from 1.

    Args:
      images: ids; a file is called as its image, with the ending.
      objects: (image id, category id, (x, y, w, h)) each, or with iscrowd as the fourth.
      categories: (id, name).
      size: (height, width) of all images.
    """
    height, width = size
    return {
        "images": [
            {"id": i, "width": width, "height": height, "file_name": f"{i}{ending}"} for i in images
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": crowd[0] if crowd else 0,
            }
            for number, (image, category, box, *crowd) in enumerate(objects, start=1)
        ],
    }


def changed_json(source: Path, target: Path, change: Callable[[Any], object]) -> Path:
    """Writes a copy of a JSON file that `change` has changed, and returns its path."""
    content = json.loads(source.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


def exchange_categories(content: dict[str, Any]) -> None:
    """Gives all categories of a COCO data set other ids and other names."""
    for category in content["categories"]:
        category |= {"id": category["id"] + 1000, "name": f"another {category['name']}"}
    for annotation in content["annotations"]:
        annotation["category_id"] += 1000


def voc_xml(objects: Iterable[Sequence[Any]], *, shift: int, more: str = "") -> str:
    """Returns VOC's annotation of an image.

    Args:
      objects: (class, x, y, w, h) each.
      shift: what near corners count too much: 1 as VOC counts pixels.
      more: other elements.
    """
    nodes = ""
    for name, x, y, w, h in objects:
        sides = (("xmin", x + shift), ("ymin", y + shift), ("xmax", x + w), ("ymax", y + h))
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        nodes += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation>{more}{nodes}</annotation>"


def yolo_lines(
    objects: Iterable[Sequence[Any]], names: Sequence[str], size: tuple[int, int]
) -> str:
    """Returns YOLO's labels of an image of (width, height); objects as of `voc_xml`."""
    width, height = size
    return "\n".join(
        f"{names.index(name)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} "
        f"{w / width:.6f} {h / height:.6f}"
        for name, x, y, w, h in objects
    )
