"""One split as columns: its boxes as stated, and what the image files say of themselves."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from object_detection.check.findings import CheckFinding
from object_detection.coco.annotations import CocoAnnotations, read_stated
from object_detection.coco.image_paths import find_image_files
from object_detection.coco.objects import StatedBox, frame_columns
from outside_data.picture_file import BadImageError, read_picture_header

_THREADS = 8
Progress = Callable[[int, int], None]
"""Takes the number of files that are read and that of all."""


class ImageFacts(NamedTuple):
    """What the file of an image says, all 0 where it cannot be used; problem: why not."""

    path: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    num_bytes: int = 0
    problem: str = ""


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
      image_sizes: float64 [num_images, 2], (width, height): the JSON's, else the file's, else NaN.
      sizes: float64 [n, 2], that of each box's image.
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
    image_sizes: np.ndarray
    sizes: np.ndarray
    outlines: np.ndarray
    is_crowd: np.ndarray
    category: np.ndarray

    def places(self, where: np.ndarray) -> list[str]:
        """Names the boxes at the given indices or where a mask is true."""
        indices = np.flatnonzero(where) if where.dtype == bool else where
        return [
            f"{self.stated[i].place}: {[round(v, 3) for v in self.boxes[i].tolist()]}"
            for i in indices[:10]
        ]

    def boxes_finding(
        self, level: str, code: str, where: np.ndarray, what: str, remedy: str
    ) -> CheckFinding:
        """Returns a finding about the boxes at the given indices or where a mask is true."""
        count = np.count_nonzero(where) if where.dtype == bool else len(where)
        return CheckFinding(level, code, self.name, what, remedy, count, self.places(where))

    def image_name(self, index: int) -> str:
        """Names an image."""
        image = self.annotations.images[index]
        return f"{image.file_name} (image id {image.source_id})"


def read_table(
    name: str,
    annotation_file: Path,
    image_dir: Path,
    *,
    follow_links: bool,
    progress: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> SplitTable:
    """Reads annotations and the headers of the image files, found as conversion finds them.

    `progress` is asked for a function once the files are to be read.

    Raises:
      FileNotFoundError, ValueError: the annotations cannot be read.
    """
    annotations, stated = read_stated(annotation_file, require_objects=not name.startswith("test"))
    found = find_image_files(annotations.images, image_dir, follow_links=follow_links)
    ids = [image.source_id for image in annotations.images]
    show, facts = progress(name), []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for fact in pool.map(_look, map(found.paths.get, ids), map(found.problems.get, ids)):
            facts.append(fact)
            show(len(facts), len(ids))
    sides = [
        (image.width or fact.width or np.nan, image.height or fact.height or np.nan)
        for image, fact in zip(annotations.images, facts)
    ]
    image_sizes = np.array(sides, np.float64)
    boxes, _, outlines, _ = frame_columns(stated)
    index_of = {source_id: index for index, source_id in enumerate(ids)}
    image = np.array([index_of[entry.image.source_id] for entry in stated], np.int64)
    return SplitTable(
        name,
        annotations,
        stated,
        facts,
        image,
        boxes,
        image_sizes,
        image_sizes[image],
        outlines,
        np.array([entry.is_crowd for entry in stated], bool),
        np.array([entry.category_id for entry in stated], np.int64),
    )


def _look(path: str | None, problem: BadImageError | None) -> ImageFacts:
    if path is None:
        return ImageFacts("", problem=str(problem))
    try:
        picture = read_picture_header(path, whole=True)
        num_bytes = os.path.getsize(path)
    except (OSError, BadImageError) as error:
        return ImageFacts(path, problem=str(error))
    return ImageFacts(path, picture.width, picture.height, picture.orientation, num_bytes)
