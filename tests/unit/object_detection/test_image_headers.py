"""Picture files whose pixels are all there, or not, though their headers are sound."""

import io

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image
from samples import encoded

from object_detection.convert.image_headers import inspect_image
from object_detection.serve.image_files import read_image
from outside_data.picture_file import BadImageError, open_picture, read_picture_header

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


def jpeg(**options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("behind", [b"", bytes(900), b"camera notes" * 500])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(behind, options, tmp_path):
    whole = jpeg(**options)
    (tmp_path / "a.jpg").write_bytes(whole[:-2] + behind)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_jpeg(whole[:-2] + behind)
    file = inspect_image(whole[:-2] + behind)
    assert not file.picture.is_damaged
    shown = np.asarray(Image.open(io.BytesIO(whole)))
    np.testing.assert_array_equal(tf.io.decode_jpeg(file.encoded), tf.io.decode_jpeg(whole))
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.jpg")).pixels, shown)
    assert read_picture_header(tmp_path / "a.jpg", whole=True).width == 40


def test_a_download_whose_room_was_kept_is_cut_short():
    whole = jpeg(quality=100)  # more bytes a block than one of zeros has
    kept = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    Image.open(io.BytesIO(kept)).load()
    with pytest.raises(BadImageError, match="truncated or undecodable"):
        inspect_image(kept)


@pytest.mark.parametrize("notes", [b"", b"camera notes" * 9000])
@pytest.mark.parametrize("side", [40, 400])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_check_finds_what_is_cut_short_and_nothing_else(kind, side, notes, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a", kind, quality=90)
    whole, path = (tmp_path / "a").read_bytes(), tmp_path / "b"
    assert (len(whole) > 1 << 16) == (side == 400)  # beyond what a header takes
    path.write_bytes(whole + notes)
    assert read_picture_header(path, whole=True).width == side
    path.write_bytes(whole[: len(whole) * 97 // 100])
    assert read_picture_header(path).width == side
    with pytest.raises(BadImageError, match="truncated or undecodable"):
        read_picture_header(path, whole=True)


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


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_called_so(brand):
    with pytest.raises(BadImageError, match="HEIC picture: .* save it as JPEG"):
        open_picture(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(100))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_32_bits_are_refused(mode):
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, "TIFF")
    with pytest.raises(BadImageError, match="not 8 or 16 bits per channel"):
        open_picture(file.getvalue()).rgb(upright=False)


def test_a_broken_exif_block_leaves_the_picture_as_it_is():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=b"Exif\0\0neither II nor MM")
    picture = open_picture(file.getvalue())
    assert picture.orientation == 1
    np.testing.assert_array_equal(picture.rgb(upright=True), PIXELS)
