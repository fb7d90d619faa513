"""The flags that say how a conversion reads picture files, for every command that converts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from outside_data.picture_file import PictureRules


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
        None,
        "In a conversion: height times width beyond which an image counts as bad, undecoded; "
        "none: 64 million.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "follow_links", False, "In a conversion: read links that lead out of the image folder."
    )


def rules() -> PictureRules:
    """Returns what the flags say."""
    # With it NumPy and Pillow, which --help does not wait for.
    from outside_data.picture_file import MAX_PIXELS, PictureRules

    values = flags.FLAGS
    most = values.max_image_pixels or MAX_PIXELS
    return PictureRules(values.exif, most, values.follow_links)
