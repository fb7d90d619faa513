"""Crops and their decoding: bounds, geometry and canvas, image formats, tiny and huge images."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import encoded as encode

from object_detection.input import crop_decode
from object_detection.input import geometry as geometry_lib
from object_detection.input.crop_decode import Crop
from object_detection.input.geometry import Frames, Geometry
from object_detection.input.preprocess import to_network_input

NETWORK = (64, 96)
CANVAS = (80, 120)
JITTER = (0.1, 2.0)
few = settings(max_examples=60, deadline=None)
uniform = st.floats(0.0, 1.0, exclude_max=True, width=32)


def picture(height, width):
    """A smooth picture whose colours differ everywhere: red grows down, green to the right."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 30 + 190 * rows / max(height - 1, 1)
    green = 30 + 190 * columns / max(width - 1, 1)
    return np.stack([red, green, np.full_like(red, 120)], axis=-1).astype(np.uint8)


def sample(uniforms, size, *, jitter=JITTER, **changes):
    return crop_decode.sample_crop(
        tf.cast(uniforms, tf.float32),
        tf.cast(size, tf.float32),
        network_size=NETWORK,
        jitter=jitter,
        **{"flip_probability": 0.5, **changes},
    )


def decode(encoded, crop_of, *, canvas_size=CANVAS, resize_on_host=False):
    """Returns (pixels, geometry) as arrays; crop_of makes the crop from the image's size."""
    image = crop_decode.open_image(tf.constant(encoded))
    canvas_size = NETWORK if resize_on_host else canvas_size
    frames = Frames(NETWORK, canvas_size, resize_on_host)
    pixels, packed = crop_decode.decode_crop(image, crop_of(image.size), frames)
    return pixels.numpy(), Geometry(*map(np.asarray, geometry_lib.unpack(packed)))


def whole(size):
    return crop_decode.whole_image(size, network_size=NETWORK)


# ------------------------------------------------------------------------------ sampling


def test_the_smallest_scale_puts_the_image_at_the_top_left():
    crop = sample([0.0, 0.7, 0.7, 0.9], (480, 640), jitter=(0.5, 2.0))
    # Into 32 x 48: the height decides, 32 / 480.
    np.testing.assert_array_equal(crop.scaled_size, [32.0, 42.0])
    np.testing.assert_array_equal(crop.offset, [0.0, 0.0])
    assert float(crop.flip) == 0.0


def test_the_largest_scale_is_cropped_within_the_excess():
    largest = 1.0 - 2.0**-24
    crop = sample([largest, 0.5, largest, 0.9], (480, 720), jitter=(0.5, 2.0))
    # Nearly 128 x 192: size_factor times 64 and 96 are truncated first.
    np.testing.assert_array_equal(crop.scaled_size, [127.0, 190.0])
    np.testing.assert_array_equal(crop.offset, [31.0, 93.0])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_flip_probability_bounds(probability, expected):
    for last in (0.0, 0.999):
        crop = sample([0.5, 0.5, 0.5, last], (48, 64), flip_probability=probability)
        assert float(crop.flip) == expected


@few
@given(
    uniforms=st.tuples(uniform, uniform, uniform, uniform),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_a_crop_lies_within_the_scaled_image_and_its_padding_at_the_bottom_right(uniforms, size):
    crop = sample(uniforms, size)
    scaled, offset = crop.scaled_size.numpy(), crop.offset.numpy()
    assert (scaled >= 1).all() and (scaled == np.floor(scaled)).all()
    assert (scaled <= np.floor(np.multiply(NETWORK, JITTER[1]))).all()
    assert (offset == np.floor(offset)).all()
    # Where the image is in the network frame, after mirroring.
    start, end = -offset, scaled - offset
    if float(crop.flip) > 0:
        start[1], end[1] = NETWORK[1] - end[1], NETWORK[1] - start[1]
    for low, high, length, frame in zip(start, end, scaled, NETWORK):
        if length > frame:
            assert low <= 0 and high >= frame, "no padding where the image is larger"
        else:
            assert (low, high) == (0, length)


@few
@given(
    uniforms=st.tuples(*[uniform] * 6),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    translate=st.sampled_from([0.1, 0.5]),
)
def test_a_shifted_image_moves_by_a_share_of_the_frame_and_stays_in_sight(
    uniforms, size, translate
):
    crop, plain = sample(uniforms, size, translate=translate), sample(uniforms, size)
    sign = np.array([1.0, 1.0 - 2.0 * float(crop.flip)])
    shift = (plain.offset - crop.offset).numpy() * sign  # down and right, after mirroring
    scaled = crop.scaled_size.numpy()
    start = -crop.offset.numpy()
    if float(crop.flip) > 0:
        start[1] = NETWORK[1] - (start[1] + scaled[1])
    visible = np.minimum(start + scaled, NETWORK) - np.maximum(start, 0)
    assert (np.abs(shift) <= translate * np.array(NETWORK)).all()
    assert (visible >= (1 - translate) * np.minimum(scaled, NETWORK) - 1e-3).all()
    # The uniform number 0.5 stands for no shift, and the ends for the largest.
    middle = sample((*uniforms[:4], 0.5, 0.5), size, translate=translate)
    np.testing.assert_array_equal(middle.offset, plain.offset)


def test_boxes_and_pixels_of_a_shifted_image_move_together():
    pixels = np.full((64, 96, 3), 30, np.uint8)
    pixels[20:40, 30:60] = 220
    for flip, left in ((0.9, 30), (0.1, 96 - 60)):
        uniforms = tf.constant([0.5, 0.0, 0.0, flip, 0.75, 0.25])
        for resize_on_host in (False, True):
            out, places = decode(
                encode(pixels),
                lambda size: sample(uniforms, size, jitter=(0.5, 1.5), translate=0.5),  # noqa: B023
                resize_on_host=resize_on_host,
            )
            packed = geometry_lib.pack(places)[tf.newaxis]
            image = to_network_input(
                tf.image.pad_to_bounding_box(out, 0, 0, *CANVAS)[tf.newaxis]
                if not resize_on_host
                else tf.constant(out)[tf.newaxis],
                packed,
                height=NETWORK[0],
                width=NETWORK[1],
                mean=(0.0,) * 3,
                std=(1.0,) * 3,
                dtype=tf.float32,
                resized_on_host=resize_on_host,
            )
            # A quarter of the frame down and a quarter to the left.
            expected = [20 + 16, left - 24, 40 + 16, left + 30 - 24]
            rows, columns = np.nonzero(image.numpy()[0, :, :, 0] > 125)
            found = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert found == expected
            boxes = tf.constant([[[20.0, 30.0, 40.0, 60.0]]])
            moved = geometry_lib.original_to_network(
                boxes, geometry_lib.unpack(packed), network_width=NETWORK[1]
            )
            np.testing.assert_allclose(moved[0, 0], expected, atol=1e-4)


# ------------------------------------------------------------------------------ decoding

ANY_CROPS = [
    (0.0, 0.5, 0.5, 0.9),  # smallest
    (0.3, 0.9, 0.1, 0.2),  # padded, mirrored
    (0.62, 0.3, 0.8, 0.9),
    (1.0 - 2**-20, 0.1, 0.9, 0.1),  # largest, mirrored
]
SIZES = [(64, 96), (480, 640), (300, 77), (33, 700), (7, 5), (1, 1), (1, 300), (1700, 1100)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize_on_host", [False, True], ids=["device", "host"])
def test_geometry_tells_of_a_canvas_that_holds_the_crop(size, image_format, resize_on_host):
    encoded = encode(picture(*size), image_format)
    for uniforms in ANY_CROPS:
        crop = Crop(*map(np.asarray, sample(uniforms, size)))
        pixels, places = decode(encoded, lambda _: crop, resize_on_host=resize_on_host)  # noqa: B023
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        assert (np.array(pixels.shape[:2]) <= (NETWORK if resize_on_host else CANVAS)).all()
        np.testing.assert_array_equal(places.canvas_valid, pixels.shape[:2])
        np.testing.assert_array_equal(places.original_size, size)
        scale = crop.scaled_size / np.float32(size)
        np.testing.assert_allclose(places.network_scale, scale, rtol=1e-6)
        np.testing.assert_array_equal(places.network_offset, crop.offset)
        assert places.flip == crop.flip
        if resize_on_host:
            continue
        # The canvas holds all that the crop shows, and in no less detail.
        shown_first = np.maximum(crop.offset, 0) / scale
        shown_last = np.minimum(crop.offset + NETWORK, crop.scaled_size) / scale
        held_first = places.canvas_origin
        held_last = held_first + places.canvas_valid / places.canvas_scale
        assert (held_first <= shown_first + 1e-3).all()
        assert (held_last >= shown_last - 1e-3).all()
        assert (places.canvas_scale >= np.minimum(scale, 1.0) * (1 - 1e-5)).all()
        assert (places.canvas_scale <= 1.0 + 1e-6).all(), "nothing is enlarged on the host"


def test_a_shrunk_jpeg_is_reduced_by_the_decoder_and_others_are_not():
    size = (512, 768)  # eight times the network
    _, places = decode(encode(picture(*size), "JPEG"), whole)
    np.testing.assert_allclose(places.canvas_scale, [1 / 8, 1 / 8])
    _, places = decode(encode(picture(*size), "JPEG"), whole, canvas_size=(10, 10))
    assert (places.canvas_valid == [10, 10]).all(), "the canvas binds"
    _, places = decode(encode(picture(*size), "PNG"), whole)
    assert (places.canvas_valid == NETWORK).all(), "resampled to network scale"


def test_an_enlarged_image_is_sent_as_it_is():
    source = picture(20, 30)
    pixels, places = decode(encode(source), whole)
    np.testing.assert_array_equal(pixels, source)
    np.testing.assert_array_equal(places.canvas_scale, [1.0, 1.0])
    np.testing.assert_array_equal(places.canvas_origin, [0.0, 0.0])


# ------------------------------------------------------------------------------ formats

RED = np.full((40, 50, 3), (200, 30, 60), np.uint8)


FORMATS = {
    "JPEG": lambda: encode(RED, "JPEG", quality=95),
    "progressive JPEG": lambda: encode(RED, "JPEG", quality=95, progressive=True),
    "JPEG 4:4:4": lambda: encode(RED, "JPEG", quality=95, subsampling=0),
    "CMYK JPEG": lambda: encode(RED, "JPEG", mode="CMYK", quality=95),
    "PNG": lambda: encode(RED, "PNG"),
    "RGBA PNG": lambda: encode(np.dstack([RED, np.full(RED.shape[:2], 128, np.uint8)])),
    "palette PNG": lambda: encode(RED, "PNG", mode="P"),
    "GIF": lambda: encode(RED, "GIF", mode="P"),
    "BMP": lambda: encode(RED, "BMP"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("resize_on_host", [False, True], ids=["device", "host"])
def test_every_format_gives_three_channels_of_the_right_colour(name, resize_on_host):
    pixels, places = decode(FORMATS[name](), whole, resize_on_host=resize_on_host)
    np.testing.assert_array_equal(places.original_size, [40, 50])
    height, width = (64, 80) if resize_on_host else (40, 50)
    np.testing.assert_allclose(
        pixels[:height, :width], np.broadcast_to(RED[0, 0], (height, width, 3)), atol=6
    )
    assert (pixels[height:] == 0).all() and (pixels[:, width:] == 0).all()


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_has_the_pixels_that_other_programs_see(subsampling):
    noise = np.random.default_rng(4).integers(0, 256, (64, 96, 3))
    encoded = encode(noise, "JPEG", quality=97, subsampling=subsampling)
    pixels, _ = decode(encoded, whole)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_grey_image_gives_three_equal_channels(image_format):
    grey = picture(40, 50)[..., 0]
    pixels, _ = decode(encode(grey, image_format), whole)
    assert pixels.shape == (40, 50, 3)
    np.testing.assert_allclose(pixels, np.repeat(grey[..., np.newaxis], 3, -1), atol=3)


def test_orientation_is_not_applied():
    """Boxes refer to the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels, places = decode(encode(picture(40, 60), "JPEG", quality=95, exif=exif), whole)
    np.testing.assert_array_equal(places.original_size, [40, 60])
    np.testing.assert_allclose(pixels, picture(40, 60), atol=8)


@pytest.mark.parametrize("broken", [b"", b"not an image", b"\xff\xd8\xff\xe0 no more"])
def test_what_is_no_image_is_an_error(broken):
    with pytest.raises(tf.errors.OpError):
        decode(broken, whole)


def test_a_truncated_jpeg_is_an_error_not_grey_pixels():
    encoded = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), "JPEG")
    with pytest.raises(tf.errors.OpError):
        decode(encoded[: len(encoded) // 2], whole)


def test_decoding_is_the_same_eagerly_and_in_a_data_set():
    files = [encode(picture(120, 90), "JPEG"), encode(picture(30, 300)), FORMATS["CMYK JPEG"]()]
    uniforms = np.random.default_rng(1).uniform(size=(3, 4)).astype(np.float32)

    def one(encoded, row):
        image = crop_decode.open_image(encoded)
        crop = sample(row, image.size)
        return crop_decode.decode_crop(image, crop, Frames(NETWORK, CANVAS, False))

    mapped = tf.data.Dataset.from_tensor_slices((files, uniforms)).map(one)
    for encoded, row, (pixels, packed) in zip(files, uniforms, mapped.as_numpy_iterator()):
        expected_pixels, expected_geometry = one(tf.constant(encoded), tf.constant(row))
        np.testing.assert_array_equal(pixels, expected_pixels)
        np.testing.assert_array_equal(packed, expected_geometry)
