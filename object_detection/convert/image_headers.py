"""Looks at an image file before it goes into a record: is it whole, how large is it, what is it.

Records hold JPEG or PNG only, as the file is; every other format is rewritten as PNG. Pixels are
never turned here: `upright` does it, where it was asked for.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any, NamedTuple

from PIL import Image

from outside_data.picture_file import MAX_PIXELS, Picture, is_sound_png, open_picture

_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_TURNED_JPEG = {"quality": 95, "subsampling": 0}


class ImageFile(NamedTuple):
    """A usable image.

    encoded: JPEG or PNG bytes.
    image_format: "jpeg" or "png".
    picture: the file's; sides and orientation are those of `encoded`.
    converted_from: Pillow's name of the original format if it was rewritten, else "".
    """

    encoded: bytes
    image_format: str
    picture: Picture
    converted_from: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), stored pixels."""
        return self.picture.height, self.picture.width


def inspect_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Checks the bytes of an image file.

    A PNG is decoded only where a checksum or its end is wrong: TensorFlow reads none of those, so
    one whose pixels are all there is written anew.

    Raises:
      BadImageError: empty, no image, truncated, too large, or of a kind that cannot be stored.
    """
    picture = open_picture(data, max_pixels=max_pixels)
    image_format = _STORED_FORMATS.get(picture.image_format)
    is_damaged = image_format == "png" and not is_sound_png(data)
    if image_format and not is_damaged:
        return ImageFile(picture.jpeg or data, image_format, picture)
    encoded = _encoded(picture.rgb(upright=False), "PNG")
    source = "damaged PNG" if is_damaged else picture.image_format
    return ImageFile(encoded, "png", picture, converted_from=source)


def upright(file: ImageFile) -> ImageFile:
    """Returns the image turned as its EXIF orientation says; a JPEG is encoded anew.

    Raises:
      BadImageError: it cannot be decoded.
    """
    pixels = file.picture.rgb(upright=True)
    is_jpeg = file.image_format == "jpeg"
    encoded = _encoded(pixels, "JPEG", **_TURNED_JPEG) if is_jpeg else _encoded(pixels, "PNG")
    width, height = pixels.size
    picture = dataclasses.replace(file.picture, height=height, width=width, orientation=1)
    return file._replace(encoded=encoded, picture=picture)


def _encoded(pixels: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, image_format, **options)
    return buffer.getvalue()
