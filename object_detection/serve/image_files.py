"""Image files as commands take them: a file, a folder, a glob or a list; and their pixels."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}


def read_image_list(path: str) -> list[str]:
    """Returns the paths that a text file holds, one a line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it names no image.
    """
    paths = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(paths):
        raise ValueError(f"{path}: expected one image path per line, found none")
    return [p for p in paths if p]


def find_images(path: str) -> list[str]:
    """Returns the image files that a file name, a folder or a glob means, sorted.

    Raises:
      FileNotFoundError: there is none.
    """
    if os.path.isdir(path):
        found = [str(p) for p in Path(path).iterdir() if p.suffix.lower() in _SUFFIXES]
    else:
        found = glob.glob(path)
    if not found:
        raise FileNotFoundError(f"no image at {path}: expected an image file, a folder or a glob")
    return sorted(found)


def read_image(path: str) -> np.ndarray:
    """Returns uint8 [h, w, 3] RGB as stored (no EXIF rotation, as in training).

    Raises:
      ValueError: the file is not a readable image; names it.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
