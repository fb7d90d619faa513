"""One split as columns: its boxes as stated, and what the image files say of themselves."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from object_detection.coco.annotations import CocoAnnotations, read_stated
from object_detection.coco.listed import CocoImage
from object_detection.coco.objects import StatedBox, frame_columns
from outside_data.picture_file import read_picture_header

Locate = Callable[[Sequence[CocoImage], Path], Sequence[str]]

_EXIF_ORIENTATION = 0x0112
_THREADS = 8


class ImageFacts(NamedTuple):
    """What the file of an image says: size 0 where there is none or it is no image."""

    path: str
    width: int
    height: int
    orientation: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class SplitTable:
    """A split, read.

    Attributes:
      name: of the split.
      annotations: as conversion reads them.
      stated: the boxes before any was dropped.
      facts: of each image, in the file's order.
      image: int [n], index of each box's image.
      boxes: float64 [n, 4], `x, y, width, height` as stated.
      sizes: float64 [n, 2], (width, height) of its image: the JSON's, else the file's, else NaN.
      outlines: float64 [n, 4], (x1, y1, x2, y2) around its mask, NaN without one.
      is_crowd: bool [n].
      category: int [n], category id.
    """

    name: str
    annotations: CocoAnnotations
    stated: list[StatedBox]
    facts: list[ImageFacts]
    image: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray
    outlines: np.ndarray
    is_crowd: np.ndarray
    category: np.ndarray

    @functools.cached_property
    def image_sizes(self) -> np.ndarray:
        """float64 [num_images, 2], (width, height): the JSON's, else the file's, else NaN."""
        sizes = [
            (image.width or fact.width or np.nan, image.height or fact.height or np.nan)
            for image, fact in zip(self.annotations.images, self.facts)
        ]
        return np.array(sizes, np.float64).reshape(-1, 2)

    def places(self, where: np.ndarray) -> list[str]:
        """Names the boxes at the given indices or where a mask is true."""
        indices = np.flatnonzero(where) if where.dtype == bool else where
        return [
            f"{self.stated[i].place}: {[round(v, 3) for v in self.boxes[i].tolist()]}"
            for i in indices[:10]
        ]

    def image_name(self, index: int) -> str:
        """Names an image."""
        image = self.annotations.images[index]
        return f"{image.file_name} (image id {image.source_id})"


def read_table(
    name: str, annotation_file: Path, image_dir: Path, *, locate: Locate | None = None
) -> SplitTable:
    """Reads annotations and the headers of the image files.

    Args:
      name: of the split.
      annotation_file: COCO instances.
      image_dir: folder of the images.
      locate: finds the files of images in a folder, in their order; default: as they are named.

    Raises:
      FileNotFoundError, ValueError: the annotations cannot be read.
    """
    annotations, stated = read_stated(annotation_file)
    paths = (locate or _as_named)(annotations.images, image_dir)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        facts = list(pool.map(_look, paths))
    boxes, sizes, outlines, _ = frame_columns(stated)
    index_of = {image.source_id: index for index, image in enumerate(annotations.images)}
    image = np.array([index_of[entry.image.source_id] for entry in stated], np.int64)
    table = SplitTable(
        name,
        annotations,
        stated,
        facts,
        image,
        boxes,
        sizes,
        outlines,
        np.array([entry.is_crowd for entry in stated], bool),
        np.array([entry.category_id for entry in stated], np.int64),
    )
    return dataclasses.replace(table, sizes=table.image_sizes[image].reshape(-1, 2))


def _as_named(images: Sequence[CocoImage], image_dir: Path) -> list[str]:
    return [os.path.join(image_dir, image.file_name) for image in images]


def _look(path: str) -> ImageFacts:
    try:
        num_bytes = os.path.getsize(path)
        picture = read_picture_header(path)
        return ImageFacts(path, picture.width, picture.height, picture.orientation, num_bytes)
    except FileNotFoundError:
        return ImageFacts(path, 0, 0, 1, -1)
    except (OSError, ValueError):
        return ImageFacts(path, 0, 0, 1, 0)
