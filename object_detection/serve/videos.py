"""Videos frame by frame, through imageio and ffmpeg where they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def is_video(path: str) -> bool:
    """Returns whether a path is that of a video, by its name."""
    return Path(path).suffix.lower() in _SUFFIXES


def read_frames(path: str) -> Iterator[np.ndarray]:
    """Yields the frames, uint8 [h, w, 3] RGB.

    Raises:
      FileNotFoundError: no such file.
      ImportError: what reads videos is not installed; names it.
      ValueError: the file is not a readable video.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video at {path}")
    library = _library()
    try:
        yield from library.imiter(path, plugin="FFMPEG")
    except OSError as error:
        raise ValueError(f"{path} is not a readable video: {error}") from error


def _library() -> Any:
    try:
        import imageio.v3 as library
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "videos are read with imageio and ffmpeg: pip install 'imageio[ffmpeg]', which the "
            "extra ringdet[video] names too; or give the frames as images"
        ) from error
    return library
