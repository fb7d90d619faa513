"""Looks at an image file before it goes into a record: is it whole, how large is it, what is it.

Records hold JPEG or PNG only, as the file is; any other format that Pillow reads is rewritten as
PNG. Pixels are never rotated: COCO boxes are drawn on the stored pixels, and TensorFlow's decoder
ignores the EXIF orientation as well.
"""

from __future__ import annotations

import dataclasses
import io

from PIL import Image, UnidentifiedImageError

_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_END_MARKERS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_EXIF_ORIENTATION = 0x0112


class BadImageError(ValueError):
    """An image file that cannot be used; `str()` is a short reason, the same for like cases."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A usable image.

    Attributes:
      encoded: JPEG or PNG bytes.
      image_format: "jpeg" or "png".
      height: pixels as stored.
      width: pixels as stored.
      is_turned: whether viewers that follow EXIF show it turned by 90 degrees.
      converted_from: Pillow's name of the original format if it was rewritten, else "".
    """

    encoded: bytes
    image_format: str
    height: int
    width: int
    is_turned: bool
    converted_from: str


def inspect_image(data: bytes) -> ImageFile:
    """Checks the bytes of an image file.

    The header is always parsed. All pixels are decoded only when the end marker is not where it
    should be: that tells a truncated file from one with something appended, at no cost for
    ordinary files.

    Raises:
      BadImageError: empty, no image, truncated, or of a kind that cannot be stored.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            is_turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            image_format = _STORED_FORMATS.get(image.format or "")
            if image_format is None:
                encoded = _as_png(image)
                return ImageFile(encoded, "png", height, width, is_turned, image.format or "?")
            if not data.endswith(_END_MARKERS[image_format]):
                image.load()
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImageError("more pixels than Pillow accepts") from error
    except BadImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadImageError("truncated or undecodable") from error
    return ImageFile(data, image_format, height, width, is_turned, "")


def _as_png(image: Image.Image) -> bytes:
    if image.mode not in _EIGHT_BIT_MODES:
        raise BadImageError(f"{image.format} of pixel type {image.mode}: not 8 bits per channel")
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
