"""Opens picture files of every format, with the same care in conversion and in inference.

Only regular files are read, only formats of pictures are tried, and nothing is decoded before the
number of pixels is known to be within a limit. Pixels come out as 8-bit RGB as TensorFlow's
decoders would give them: the high bytes of 16 bits, no alpha, the first frame.

*Stored* pixels are those in the file. The EXIF orientation says how viewers turn them; Pillow
turns TIFF files by itself, which is undone here unless it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from outside_data.files import BadFileError, open_file

MAX_PIXELS = 64_000_000
"""Default of --max_image_pixels: 8000 x 8000."""
MOST_SIDE = 65_535
"""Pixels of a side, which JPEG cannot exceed: resampling makes rows of it as high as the network's
input, so that a line of few pixels would become gigabytes."""

_FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA"),
    *("PCX", "SGI", "AVIF"),
)
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_BYTES_PER_PIXEL = 16  # of the largest uncompressed file that is read at all
_HEADER_BYTES = 1 << 20
_FIRST_BYTES = 1 << 16  # enough for most headers
_NO_FILE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = {**_TRANSPOSE, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_LAST_BYTES = 4096  # with what cameras write behind the end
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_ENDS = {"PNG": _PNG_END, "JPEG": _JPEG_END, "MPO": _JPEG_END}
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# Stands for the end marker: no code word of any Huffman table, and too short for a missing block.
_NO_CODE = b"\xff\x00" * 8

Image.MAX_IMAGE_PIXELS = None  # the limit here is a setting and comes before


class PictureRules(NamedTuple):
    """How a conversion reads picture files.

    exif: "ignore" takes pixels as stored; "apply" turns them by their EXIF orientation, unless the
      JSON's size says that the boxes were drawn on the stored pixels.
    max_pixels: height times width beyond which an image is not decoded.
    follow_links: read links in the image folder that lead out of it.
    """

    exif: str = "ignore"
    max_pixels: int = MAX_PIXELS
    follow_links: bool = False


DEFAULT_RULES = PictureRules()


class BadImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
      reason: short, the same for like cases, so that cases can be counted.
      detail: what is particular to this one; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture whose header was read.

    Attributes:
      image: not decoded yet.
      image_format: Pillow's name of the format.
      height: stored pixels.
      width: stored pixels.
      orientation: EXIF tag, 1 (upright) to 8.
      is_damaged: a JPEG whose pixels are not all there; what is missing decodes to grey.
      jpeg: of a JPEG that was looked at whole, what TensorFlow decodes: it has an end marker.
      num_frames: of which the first is taken; 1 for JPEG.
    """

    image: Image.Image
    image_format: str
    height: int
    width: int
    orientation: int
    is_damaged: bool = False
    jpeg: bytes = b""
    num_frames: int = 1

    @property
    def swaps_sides(self) -> bool:
        """Whether the orientation turns by 90 degrees."""
        return self.orientation >= 5

    def rgb(self, *, upright: bool) -> Image.Image:
        """Decodes to 8-bit RGB, as stored or turned by the orientation.

        Raises:
          BadImageError: pixels are missing or of a type without 8-bit meaning.
        """
        with _reading_errors():
            self.image.load()
            pixels = _eight_bit_rgb(self.image)
        by_pillow = self.image_format == "TIFF"
        if self.orientation == 1 or by_pillow == upright:
            return pixels
        return pixels.transpose((_TRANSPOSE if upright else _UNDO)[self.orientation])


def read_picture_header(path: str | os.PathLike[str], *, whole: bool = False) -> Picture:
    """Returns a picture of which no more is read than its size and orientation take.

    Args:
      path: of the file.
      whole: look at its last bytes too, and decode it if they hold no end of a JPEG or PNG: most
        files cut short are found at the price of a read.

    Raises:
      BadImageError: it is none, must not be read, or was seen to be cut short.
    """
    head = read_regular_file(path, first=_FIRST_BYTES)
    is_all = len(head) < _FIRST_BYTES
    try:
        picture = open_picture(head, whole=False)
    except BadImageError:
        if is_all:
            raise
        return open_picture(read_regular_file(path), whole=whole)
    end = _ENDS.get(picture.image_format)
    if whole and end and end not in _last_bytes(path):
        open_picture(read_regular_file(path)).rgb(upright=False)
    if picture.image_format == "PNG" and not is_all:
        with open_file(path, most=None) as file:
            return dataclasses.replace(picture, orientation=_orientation(picture.image, file))
    return picture


def _last_bytes(path: str | os.PathLike[str]) -> bytes:
    with open_file(path, most=None) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        return file.read()


def stored_values(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns what a picture file holds, [h, w] or [h, w, channels]: of a palette the numbers.

    Raises:
      BadImageError: it is no picture or must not be read; names the file.
    """
    try:
        picture = open_picture(read_regular_file(path), whole=False)
        with _reading_errors():
            return np.asarray(picture.image)
    except BadImageError as error:
        raise BadImageError(f"{os.fspath(path)}: {error.reason}", error.detail) from error


def read_regular_file(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, first: int = -1
) -> bytes:
    """Returns the bytes of a file, or so many first, unless it is a pipe, a device or too large.

    Raises:
      BadImageError: there is nothing to read, or it must not be read.
    """
    try:
        with open_file(path, most=max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES) as file:
            return file.read(first)
    except BadFileError as error:
        raise BadImageError("file too large", f"{error} (--max_image_pixels)") from error
    except PermissionError as error:
        raise BadImageError("no permission to read") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in _NO_FILE:
            raise BadImageError("no such file") from error
        if os.path.isdir(path):
            raise BadImageError("no such file", "it is a folder") from error
        if error.errno is None:
            raise BadImageError("not a regular file") from error
        raise BadImageError("cannot be read", error.strerror or str(error)) from error


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, whole: bool = True) -> Picture:
    """Reads the header of a picture.

    The pixels are decoded only of a JPEG, at an eighth of its size, to see whether it is whole.

    Args:
      data: the bytes of the file.
      max_pixels: height times width beyond which it is refused.
      whole: see whether it is; False decodes nothing.

    Raises:
      BadImageError: empty, no picture, too many pixels, too long, truncated.
    """
    if not data:
        raise BadImageError("empty file")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC and b"avif" not in data[12:64]:
        raise BadImageError("HEIC picture", "none of the formats that are read: save it as JPEG")
    with _reading_errors():
        image = Image.open(io.BytesIO(data), formats=_known_formats())
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(
                "too many pixels",
                f"{width}x{height}, more than --max_image_pixels={max_pixels}",
            )
        if max(width, height) > MOST_SIDE:
            raise BadImageError("side too long", f"{width}x{height}, more than {MOST_SIDE}: cut it")
        image_format = image.format or "?"
        if image_format == "TIFF" and _is_misread(image):
            raise BadImageError("TIFF with planes of 16 bits", "save it compressed, or as PNG")
        orientation = _orientation(image, io.BytesIO(data))
        if image_format == "TIFF" and orientation >= 5:
            width, height = height, width
        is_jpeg = image_format in ("JPEG", "MPO")
        jpeg, is_damaged = _complete_jpeg(data) if whole and is_jpeg else (b"", False)
        if jpeg and jpeg is not data:
            image = Image.open(io.BytesIO(jpeg), formats=[image_format])
        num_frames = 1 if is_jpeg or not whole else getattr(image, "n_frames", 1)
    return Picture(image, image_format, height, width, orientation, is_damaged, jpeg, num_frames)


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Turns what Pillow raises on bad files into `BadImageError`."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except MemoryError as error:
        raise BadImageError("not enough memory") from error
    # Pillow's readers of damaged files raise more kinds than its documentation names.
    except Exception as error:
        raise BadImageError("truncated or undecodable", str(error)[:100]) from error


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def suffixes() -> frozenset[str]:
    """Returns the suffixes, in lower case with the dot, of the formats that are read."""
    known = set(_known_formats())
    extensions = Image.registered_extensions()
    return frozenset(s for s, image_format in extensions.items() if image_format in known)


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    try:
        if image.format == "PNG":  # Pillow would decode all pixels to look behind them
            tags = Image.Exif()
            tags.load(image.info.get("exif") or _exif_of_png(file))
        else:
            tags = image.getexif()
        tag = tags.get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing and is no reason to lose the picture
        return 1
    return tag if tag in _TRANSPOSE else 1


def _exif_of_png(file: BinaryIO) -> bytes:
    """Goes from chunk to chunk; b'' if none is of EXIF."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(size)
        file.seek(size + 4, os.SEEK_CUR)
    return b""


def _is_misread(image: Image.Image) -> bool:
    """Whether Pillow would take the bytes of a TIFF for pixels: uncompressed planes of 16 bits."""
    tags = image.tag_v2
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    return is_planar and max(tags[TiffImagePlugin.BITSPERSAMPLE]) > 8 and image.tile[0][0] == "raw"


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImageError("not 8 or 16 bits per channel", f"{image.format} of 32 bits")
    return image.convert("RGB")


def _complete_jpeg(data: bytes) -> tuple[bytes, bool]:
    """Returns a JPEG with an end marker, and whether it ends before all of its blocks.

    libjpeg fills up what is missing and says so to nobody through Pillow. Of files in several scans
    the list of scans must be complete. Some writers leave out the marker, which TensorFlow needs;
    where zeros stand in its place, a download kept the room for what never came.

    Raises:
      OSError: there is no end marker and pixels are missing.
    """
    kind, scans, end = _jpeg_structure(data)
    is_one_scan = kind in (0xC0, 0xC1) and len(scans) == 1
    if end is None:
        pixels = data.rstrip(b"\0")
        _decode_small(pixels + _NO_CODE if is_one_scan else data)
        return pixels + _JPEG_END, False
    if is_one_scan:
        try:
            _decode_small(data[:end] + _NO_CODE)
        except OSError:
            return data, True
        return data, False
    return data, kind == 0xC2 and _lacks_scans(scans)


def is_sound_png(data: bytes) -> bool:
    """Whether all checksums of a PNG are right, and its end is there."""
    try:
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()
    except Exception:  # as in `_reading_errors`
        return False
    return _PNG_END in data  # `verify` leaves out its checksum


def _decode_small(data: bytes) -> None:
    image = Image.open(io.BytesIO(data), formats=["JPEG", "MPO"])
    image.draft("L", (1, 1))
    image.load()


def _jpeg_structure(data: bytes) -> tuple[int, list[bytes], int | None]:
    """Returns kind of frame (0xC0: baseline), headers of the scans, position of the end."""
    kind, scans, position = 0, [], 2
    while (found := _JPEG_MARKER.search(data, position)) and (marker := found[1][0]) != 0xD9:
        position = found.end()
        if marker == 0x01 or position + 2 > len(data):
            continue
        (size,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind = marker
        if marker == 0xDA:
            scans.append(data[position + 2 : position + size])
        position += size
    return kind, scans, found.start() if found else None


def _lacks_scans(scans: list[bytes]) -> bool:
    """Whether some coefficient of a progressive JPEG was not sent to its last bit."""
    left: dict[int, set[int]] = {}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            return True
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        for component in scan[1 : 1 + 2 * count : 2]:
            missing = left.setdefault(component, set(range(64)))
            if bits & 0x0F == 0:
                missing.difference_update(range(first, last + 1))
    return any(left.values())
