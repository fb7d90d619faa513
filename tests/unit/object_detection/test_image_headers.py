"""Picture files whose pixels are all there, or not, though their headers are sound."""

import io

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from samples import encoded

from object_detection.convert.image_headers import inspect_image
from object_detection.serve.image_files import read_image
from outside_data.picture_file import BadImageError, open_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
PNG = encoded(PIXELS)
DATA = PNG.index(b"IDAT") + 4  # the first byte of the compressed pixels
DATA_END = DATA + int.from_bytes(PNG[DATA - 8 : DATA - 4], "big")


def flipped(place, png=PNG):
    return png[:place] + bytes([png[place] ^ 0xFF]) + png[place + 1 :]


@pytest.mark.parametrize(
    "png",
    [PNG[:-12], PNG[:-2], flipped(DATA_END), flipped(len(PNG) - 1), PNG[:-12] + b"camera notes"],
    ids=["no end", "end cut", "checksum of the pixels", "checksum of the end", "no end but notes"],
)
def test_a_png_that_tensorflow_refuses_is_written_anew(png, tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_png(png)
    file = inspect_image(png)
    assert (file.image_format, file.converted_from) == ("png", "damaged PNG")
    np.testing.assert_array_equal(tf.io.decode_png(file.encoded), PIXELS)
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")).pixels, PIXELS)


def test_a_png_with_a_wrong_pixel_is_none():
    png = flipped((DATA + DATA_END) // 2)
    with pytest.raises(BadImageError, match="truncated or undecodable"):
        inspect_image(png)


def test_planes_of_16_bits_are_refused_where_pillow_takes_bytes_for_pixels(tmp_path):
    planes = np.random.default_rng(1).integers(0, 65536, (3, 30, 40)).astype(np.uint16)

    def tiff(pixels, **options):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="rgb", planarconfig="separate", **options)
        return file.getvalue()

    for whole in (True, False):  # as conversion and as the check read it
        with pytest.raises(BadImageError, match="TIFF with planes of 16 bits: save it compressed"):
            open_picture(tiff(planes), whole=whole)
    eight, deflated = (planes >> 8).astype(np.uint8), tiff(planes, compression="zlib")
    for file in (tiff(eight), deflated):
        shown = open_picture(file).rgb(upright=False)
        np.testing.assert_array_equal(np.moveaxis(np.asarray(shown), -1, 0), eight)
