"""Looks at an image file before it goes into a record: is it whole, how large is it, what is it.

Records hold JPEG or PNG only, as the file is; every other format is rewritten as PNG. Pixels are
never turned here: `upright` does it, where it was asked for.
"""

from __future__ import annotations

import dataclasses
import io

from outside_data.picture_file import (
    MAX_PIXELS,
    BadImageError,
    Picture,
    open_picture,
)

_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_PNG_END = b"IEND\xaeB`\x82"
_TURNED_JPEG = {"quality": 95, "subsampling": 0}


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A usable image.

    Attributes:
      encoded: JPEG or PNG bytes.
      image_format: "jpeg" or "png".
      height: stored pixels.
      width: stored pixels.
      orientation: EXIF tag of the file, 1 to 8.
      converted_from: Pillow's name of the original format if it was rewritten, else "".
      is_damaged: see `Picture`.
      num_frames: of which the first is taken.
    """

    encoded: bytes
    image_format: str
    height: int
    width: int
    orientation: int = 1
    converted_from: str = ""
    is_damaged: bool = False
    num_frames: int = 1

    @property
    def swaps_sides(self) -> bool:
        """Whether viewers that follow EXIF show it turned by 90 degrees."""
        return self.orientation >= 5


def inspect_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Checks the bytes of an image file.

    A PNG is decoded only when its end is not where it should be: that tells a truncated file from
    one with something appended.

    Raises:
      BadImageError: empty, no image, truncated, too large, or of a kind that cannot be stored.
    """
    picture = open_picture(data, max_pixels=max_pixels)
    image_format = _STORED_FORMATS.get(picture.image_format)
    if image_format is None:
        encoded, image_format, converted_from = _as_png(picture), "png", picture.image_format
    else:
        encoded, converted_from = data, ""
        if image_format == "png" and not data.endswith(_PNG_END):
            picture.rgb(upright=False)
    return ImageFile(
        encoded,
        image_format,
        picture.height,
        picture.width,
        picture.orientation,
        converted_from,
        picture.is_damaged,
        picture.num_frames,
    )


def upright(file: ImageFile) -> ImageFile:
    """Returns the image turned as its EXIF orientation says; a JPEG is encoded anew.

    Raises:
      BadImageError: it cannot be decoded.
    """
    # What was rewritten as PNG has lost the tag.
    picture = dataclasses.replace(
        open_picture(file.encoded, max_pixels=file.height * file.width),
        orientation=file.orientation,
    )
    pixels, buffer = picture.rgb(upright=True), io.BytesIO()
    if file.image_format == "jpeg":
        pixels.save(buffer, "JPEG", **_TURNED_JPEG)
    else:
        pixels.save(buffer, "PNG")
    width, height = pixels.size
    return dataclasses.replace(
        file, encoded=buffer.getvalue(), height=height, width=width, orientation=1
    )


def _as_png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.rgb(upright=False).save(buffer, "PNG")
    return buffer.getvalue()


__all__ = ["BadImageError", "ImageFile", "inspect_image", "upright"]
