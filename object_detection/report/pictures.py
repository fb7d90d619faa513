"""The images on which a detector did worst: truth and detections, coloured by what became of them.

Pixels come from the records of the evaluation, or from a folder of images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from object_detection.coco.listed import CocoImage
from object_detection.draw.entries import draw_entries
from object_detection.draw.palette import Color
from object_detection.records import schema
from object_detection.records.example_proto import decode_example
from object_detection.records.tfrecord_file import iterate_records, record_files
from object_detection.report.matches import IGNORED, KIND_NAMES, RIGHT, Matches
from outside_data.picture_file import BadImageError, open_picture, read_regular_file

RIGHT_COLOR: Color = (46, 204, 128)
WRONG_COLOR: Color = (255, 92, 92)
MISSED_COLOR: Color = (255, 190, 40)
CROWD_COLOR: Color = (150, 158, 172)

# Longer side of a picture, pixels: larger images are reduced to it, small ones enlarged.
_SIDE, _MOST_ZOOM = 640, 3
_JPEG_QUALITY = 85


class ImageResult(NamedTuple):
    """What became of one image: index in `Matches.images`, and counts."""

    image: int
    right: int
    wrong: int
    missed: int

    @property
    def badness(self) -> float:
        """The number of errors, times the share of what is not right."""
        errors = self.wrong + self.missed
        return errors * (1.0 - 2.0 * self.right / max(2 * self.right + errors, 1))


class Picture(NamedTuple):
    """An image drawn twice, as JPEG bytes: its objects, and its detections."""

    result: ImageResult
    name: str
    truth: bytes
    found: bytes

    def side_by_side(self) -> bytes:
        """Returns both as one picture, JPEG bytes."""
        both = [np.asarray(Image.open(io.BytesIO(half))) for half in (self.truth, self.found)]
        return _jpeg(np.concatenate(both, axis=1))


def worst_images(matches: Matches, least_score: float, count: int) -> list[ImageResult]:
    """Returns the images with most to complain about, the worst first; none without an error."""
    size = len(matches.images)
    shown = matches.score >= least_score
    right = np.bincount(matches.found_image[shown & (matches.kind == RIGHT)], minlength=size)
    wrong = ~np.isin(matches.kind, (RIGHT, IGNORED))
    wrong = np.bincount(matches.found_image[shown & wrong], minlength=size)
    lost = (matches.found_by(least_score) < 0) & ~matches.is_crowd
    missed = np.bincount(matches.object_image[lost], minlength=size)
    results = [
        ImageResult(i, *numbers)
        for i, numbers in enumerate(zip(right.tolist(), wrong.tolist(), missed.tolist()))
    ]
    bad = [result for result in results if result.wrong + result.missed]
    return sorted(bad, key=lambda result: (-result.badness, result.image))[:count]


def draw_results(
    results: Sequence[ImageResult],
    matches: Matches,
    detections: Sequence[Mapping[str, Any]],
    *,
    least_score: float,
    pixels: Mapping[str, np.ndarray],
) -> Iterator[Picture]:
    """Draws images; those without pixels are left out.

    Args:
      results: which images.
      matches: of the evaluation.
      detections: the list that was matched.
      least_score: of the detections drawn.
      pixels: source_id -> uint8 [h, w, 3].
    """
    finder = matches.found_by(least_score)
    for result in results:
        listed = matches.images[result.image]
        if listed.source_id not in pixels:
            continue
        image = pixels[listed.source_id]
        objects = np.flatnonzero(matches.object_image == result.image)
        found = np.flatnonzero(
            (matches.found_image == result.image) & (matches.score >= least_score)
        )
        truth = _draw(
            image,
            [matches.objects[i] for i in objects],
            [matches.names[matches.object_class[i]] for i in objects],
            [_color_of(matches.is_crowd[i], finder[i]) for i in objects],
        )
        drawn = _draw(
            image,
            [detections[matches.entry[i]] for i in found],
            [_said_of(matches, i) for i in found],
            [_COLORS.get(int(matches.kind[i]), WRONG_COLOR) for i in found],
        )
        yield Picture(result, listed.file_name, _jpeg(truth), _jpeg(drawn))


_COLORS = {RIGHT: RIGHT_COLOR, IGNORED: CROWD_COLOR}


def _said_of(matches: Matches, detection: int) -> str:
    """Returns the class, and the kind of error behind a colon."""
    name, kind = matches.names[matches.found_class[detection]], int(matches.kind[detection])
    return name if kind in _COLORS else f"{name}: {KIND_NAMES[kind]}"


def _color_of(is_crowd: bool, finder: int) -> Color:
    """Returns the colour of an object that a detection found, or none (-1)."""
    if is_crowd:
        return CROWD_COLOR
    return RIGHT_COLOR if finder >= 0 else MISSED_COLOR


def _draw(
    image: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    colors: Sequence[Color],
) -> np.ndarray:
    """Draws masks where the first entry has one, else boxes; each with its own text."""
    return draw_entries(
        image,
        entries,
        np.arange(len(entries)),
        names=list(texts),
        with_masks=bool(entries and entries[0].get("segmentation")),
        max_objects=300,
        zoom=min(_SIDE / max(image.shape[:2]), _MOST_ZOOM),
        colors=colors,
    )


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def pixels_of_records(file_pattern: str, images: Sequence[CocoImage]) -> dict[str, np.ndarray]:
    """Returns source_id -> uint8 [h, w, 3] of those images that are in records and readable."""
    wanted, pixels = {image.source_id for image in images}, {}
    for file in record_files(file_pattern) if wanted else ():
        for record in iterate_records(file):
            # The image's bytes are stepped over unless they are wanted.
            source = decode_example(record, (schema.SOURCE_ID,)).get(schema.SOURCE_ID) or [b""]
            text = source[0].decode("utf-8", "replace")
            if text in wanted:
                wanted.remove(text)
                encoded = decode_example(record, (schema.ENCODED,))[schema.ENCODED][0]
                pixels[text] = _decoded(encoded)
        if not wanted:
            break
    return {text: image for text, image in pixels.items() if image is not None}


def pixels_of_files(folder: Path, images: Sequence[CocoImage]) -> dict[str, np.ndarray]:
    """Returns source_id -> uint8 [h, w, 3] of those images that are in a folder and readable."""
    pixels = {image.source_id: _pixels_of_file(folder / image.file_name) for image in images}
    return {text: image for text, image in pixels.items() if image is not None}


def _pixels_of_file(path: Path) -> np.ndarray | None:
    try:
        return _decoded(read_regular_file(path))
    except BadImageError:
        return None


def _decoded(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(open_picture(data).rgb(upright=False))
    except BadImageError:
        return None
