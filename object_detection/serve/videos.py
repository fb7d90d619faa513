"""Videos frame by frame, read and written through imageio and ffmpeg where they are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_USUAL_RATE = 25.0
# Of ffmpeg's scale from 0 to 10; its own choice, 5, blurs thin lines.
_QUALITY = 7


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


def named_frames(path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the frames of `read_frames`, each after its name PATH#NUMBER, from 0."""
    yield from ((f"{path}#{i}", frame) for i, frame in enumerate(read_frames(path)))


def frame_rate(path: str) -> float:
    """Returns the frames of a second that a video states, 25 where it states none.

    Raises:
      ImportError, ValueError: as of `read_frames`.
    """
    try:
        return float(_library().immeta(path, plugin="FFMPEG").get("fps") or _USUAL_RATE)
    except OSError as error:
        raise ValueError(f"{path} is not a readable video: {error}") from error


@contextlib.contextmanager
def written(path: str | Path, *, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes an MP4 of H.264; it has its name only when it is complete.

    Args:
      path: of the file.
      rate: frames of a second.

    Yields:
      What takes one frame after another, uint8 [h, w, 3] RGB of one size. An odd side, which H.264
      does not know, gets its last row or column twice.

    Raises:
      ImportError: what writes videos is not installed; names it.
      ValueError: frames of several sizes.
    """
    _library()
    import imageio_ffmpeg

    path = Path(path)
    aside = path.with_name(f".writing-{path.name}")
    writer = size = None

    def take(frame: np.ndarray) -> None:
        nonlocal writer, size
        if size not in (None, frame.shape):
            raise ValueError(f"{path}: a frame of {frame.shape} follows one of {size}")
        size = frame.shape
        height, width = frame.shape[:2]
        frame = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        if writer is None:
            writer = imageio_ffmpeg.write_frames(
                str(aside), frame.shape[1::-1], fps=rate, quality=_QUALITY, macro_block_size=1
            )
            writer.send(None)
        writer.send(np.ascontiguousarray(frame))

    try:
        yield take
    except BaseException:
        if writer is not None:
            writer.close()
        aside.unlink(missing_ok=True)
        raise
    if writer is not None:
        writer.close()
        aside.replace(path)


def _library() -> Any:
    try:
        import imageio.v3 as library
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "videos are read and written with imageio and ffmpeg: pip install 'imageio[ffmpeg]', "
            "which the extra ringdet[video] names too; or give the frames as images"
        ) from error
    return library
