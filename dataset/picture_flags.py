"""The flags that say how a conversion reads picture files, for every command that converts."""

from __future__ import annotations

from absl import flags

from object_detection.convert.picture_file import MAX_PIXELS, PictureRules


def define() -> None:
    """Defines --exif, --max_image_pixels and --follow_links."""
    flags.DEFINE_enum(
        "exif",
        "ignore",
        ["ignore", "apply"],
        "In a conversion: store pixels as they are in the file, or turned by their EXIF "
        "orientation, unless the annotations' size is that of the stored pixels. As in infer.py.",
    )
    flags.DEFINE_integer(
        "max_image_pixels",
        MAX_PIXELS,
        "In a conversion: height times width beyond which an image counts as bad, undecoded.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "follow_links", False, "In a conversion: read links that lead out of the image folder."
    )


def rules() -> PictureRules:
    """Returns what the flags say."""
    values = flags.FLAGS
    return PictureRules(values.exif, values.max_image_pixels, values.follow_links)
