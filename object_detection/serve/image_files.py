"""Image files as commands take them: a file, a folder, a glob or a list; and their pixels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from outside_data.files import read_text
from outside_data.picture_file import (
    MAX_PIXELS,
    BadImageError,
    open_picture,
    read_regular_file,
    suffixes,
)
from outside_data.text import clean
from path_names.patterns import match

# That every installation of scikit-image has.
_PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


class ReadImage(NamedTuple):
    """pixels: uint8 [h, w, 3] RGB; notes: what is to be known of the file, [] mostly."""

    pixels: np.ndarray
    notes: list[str]


def read_image_list(path: str) -> list[str]:
    """Returns the paths that a text file holds, one a line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it names no image.
    """
    paths = [line.strip() for line in read_text(path).splitlines()]
    if not any(paths):
        raise ValueError(f"{path}: expected one image path per line, found none")
    return [p for p in paths if p]


def find_images(path: str) -> list[str]:
    """Returns the image files that a file name, a folder or a glob means, sorted.

    Hidden files of a folder are none: macOS puts a `._NAME.jpg` beside each picture of an archive.

    Raises:
      FileNotFoundError: there is none.
    """
    # Those of phones are not read, and named for it.
    known, below = suffixes() | {".heic", ".heif"}, ""
    if os.path.isdir(path):
        files = (p for p in Path(path).iterdir() if not p.name.startswith("."))
        found = [str(p) for p in files if p.suffix.lower() in known]
        if not found:
            inner = (p.parent for p in Path(path).glob("*/*") if p.suffix.lower() in known)
            below = next((f"; {clean(folder)} has some" for folder in inner), "")
    else:
        found = match(path)
    if not found:
        raise FileNotFoundError(
            f"no image at {path}: expected an image file, a folder of images or a glob{below}"
        )
    return sorted(found)


def known_photographs() -> list[str]:
    """Returns the paths of photographs that are there wherever scikit-image is."""
    folder = importlib.util.find_spec("skimage").submodule_search_locations[0]
    return [os.path.join(folder, "data", name) for name in _PHOTOGRAPHS]


def read_image(
    file: str | bytes, *, exif: str = "ignore", max_pixels: int = MAX_PIXELS
) -> ReadImage:
    """Reads an image of any format that conversion takes, as training sees it.

    Args:
      file: its path, or its content.
      exif: "ignore" gives the stored pixels, "apply" turns them by the EXIF orientation.
      max_pixels: height times width beyond which it is refused undecoded.

    Raises:
      ValueError: the file is not a readable image; names it.
    """
    path = file if isinstance(file, str) else f"content of {len(file):,} bytes"
    try:
        data = read_regular_file(file, max_pixels=max_pixels) if isinstance(file, str) else file
        picture = open_picture(data, max_pixels=max_pixels)
        pixels = np.asarray(picture.rgb(upright=exif == "apply"))
    except BadImageError as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    notes = []
    if picture.is_damaged:
        notes.append(f"{path}: damaged JPEG; what could not be decoded is grey")
    if picture.orientation != 1 and exif == "ignore":
        notes.append(
            f"{path}: EXIF orientation {picture.orientation} ignored, as in training without "
            "--exif=apply"
        )
    if picture.num_frames > 1:
        notes.append(f"{path}: first of {picture.num_frames} frames")
    return ReadImage(pixels, notes)
