"""The device's half of the input: resampling, mirror, colour, normalisation, moved boxes."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from object_detection.input import crop_decode, preprocess
from object_detection.input import geometry as geometry_lib
from object_detection.input.geometry import Frames, Geometry

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "dtype": tf.float32}


def noise(height, width, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole(height, width, *, scaled=None, offset=(0.0, 0.0), flip=0.0):
    """Geometry of an image held whole in its canvas, scaled to `scaled` (height, width)."""
    size = np.array([height, width], np.float32)
    return Geometry(
        original_size=size,
        canvas_origin=np.zeros(2),
        canvas_scale=np.ones(2),
        canvas_valid=size,
        network_scale=np.array(scaled or size) / size,
        network_offset=np.array(offset),
        flip=np.array(flip),
    )


def pack(*places):
    return tf.stack([geometry_lib.pack(place) for place in places])


def run(images, geometry, *, height, width, **changes):
    images = tf.constant(np.asarray(images))
    given_kwargs = {**PLAIN, **changes}
    return preprocess.to_network_input(
        images, geometry, height=height, width=width, **given_kwargs
    ).numpy()


@pytest.mark.parametrize("scaled", [(11, 17), (33, 20), (64, 96), (5, 50)])
def test_resampling_is_that_of_pillow(scaled):
    """Pillow's bilinear resize is an antialiased triangle about pixel centres, rounded to bytes."""
    image = noise(32, 48)
    out = run([image], pack(whole(32, 48, scaled=scaled)), height=64, width=96)
    expected = np.asarray(Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR))
    # Pillow rounds between its two passes and after them.
    np.testing.assert_allclose(out[0, : scaled[0], : scaled[1]], expected, atol=1.01)
    np.testing.assert_array_equal(out[0, scaled[0] :], 0.0)
    np.testing.assert_array_equal(out[0, :, scaled[1] :], 0.0)


@pytest.mark.parametrize("resize_on_host", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("scaled", [(40, 56), (300, 400)], ids=["smaller", "larger"])
def test_a_decoded_crop_is_that_part_of_the_whole_image_scaled(scaled, resize_on_host):
    """Its edges too: pixels outside of the crop that the filter reaches have their share."""
    image, network, canvas = noise(240, 320), (20, 24), (180, 180)
    pixels, packed = crop_decode.decode_crop(
        crop_decode.open_image(tf.io.encode_png(image)),
        crop_decode.Crop(tf.constant(scaled, tf.float32), tf.constant([10.0, 12.0]), tf.zeros([])),
        Frames(network, network if resize_on_host else canvas, resize_on_host),
    )
    if not resize_on_host:
        assert max(pixels.shape[:2]) < 180, "a region, as it is stored"
        pixels = tf.image.pad_to_bounding_box(pixels, 0, 0, *canvas)
    size = {"height": 20, "width": 24, "resized_on_host": resize_on_host}
    out = run([pixels], packed[tf.newaxis], **size)
    whole_scaled = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
    expected = np.asarray(whole_scaled)[10:30, 12:36]
    np.testing.assert_allclose(out[0], expected, atol=1.6)  # Pillow and the host both round


def bilinear(image, size, *, legacy):
    """Resizes between the two nearest pixels of each axis; legacy: without half-pixel centres."""
    result = image.astype(np.float64)
    for axis, count in enumerate(size):
        step = image.shape[axis] / count
        places = np.arange(count) * step if legacy else (np.arange(count) + 0.5) * step - 0.5
        low = np.floor(places).astype(int)
        shares = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        below, above = (np.clip(i, 0, image.shape[axis] - 1) for i in (low, low + 1))
        first, second = np.take(result, below, axis), np.take(result, above, axis)
        result = first + (second - first) * shares
    return result


@pytest.mark.parametrize("legacy", [False, True], ids=["bilinear", "bilinear_legacy"])
@pytest.mark.parametrize("scaled", [(11, 17), (64, 96), (130, 201)])
def test_plain_bilinear_equals_numpy_on_device_and_host(scaled, legacy):
    image, how = noise(32, 48), "bilinear_legacy" if legacy else "bilinear"
    expected = bilinear(image, scaled, legacy=legacy)
    place = pack(whole(32, 48, scaled=scaled))
    out = run([image], place, height=scaled[0], width=scaled[1] + 5, resampling=how)
    np.testing.assert_allclose(out[0, :, : scaled[1]], expected, atol=0.02)
    np.testing.assert_array_equal(out[0, :, scaled[1] :], 0.0)
    for offset in ((0, 0), (3, 5)):
        size = (scaled[0] - offset[0], scaled[1] - offset[1])
        pixels, _ = crop_decode.decode_crop(
            crop_decode.open_image(tf.io.encode_png(image)),
            crop_decode.Crop(
                tf.constant(scaled, tf.float32), tf.constant(offset, tf.float32), tf.zeros([])
            ),
            Frames(size, size, True, resampling=how),
        )
        np.testing.assert_allclose(pixels, expected[offset[0] :, offset[1] :], atol=0.52)


def test_pixels_beyond_the_valid_part_of_the_canvas_do_not_count():
    canvas = np.full((1, 20, 20, 3), 255, np.uint8)
    canvas[0, :10, :12] = 40
    out = run(canvas, pack(whole(10, 12, scaled=(15, 18))), height=20, width=20)
    np.testing.assert_allclose(out[0, :15, :18], 40.0, atol=1e-3)


@pytest.mark.parametrize("resized_on_host", [False, True])
def test_normalised_padding_is_zero(resized_on_host):
    canvas = np.zeros((1, 20, 20, 3), np.uint8)
    canvas[0, :12, :16] = noise(12, 16)
    changes = {"mean": MEAN, "std": STD, "resized_on_host": resized_on_host}
    out = run(canvas, pack(whole(12, 16)), height=20, width=20, **changes)
    np.testing.assert_allclose(out[0, :12, :16], (canvas[0, :12, :16] - MEAN) / STD, atol=1e-4)
    np.testing.assert_array_equal(out[0, 12:], 0.0)
    np.testing.assert_array_equal(out[0, :, 16:], 0.0)


@pytest.mark.parametrize(("dtype", "atol"), [(tf.float16, 0.01), (tf.bfloat16, 0.02)])
def test_half_precision_is_close(dtype, atol):
    """Values up to 3 are apart by 2e-3 in float16 and 1.6e-2 in bfloat16."""
    geometry = pack(whole(32, 48, scaled=(40, 60)))
    changes = {"height": 40, "width": 60, "mean": MEAN, "std": STD}
    single = run([noise(32, 48)], geometry, **changes)
    half = run([noise(32, 48)], geometry, **{**changes, "dtype": dtype})
    assert half.dtype == dtype.as_numpy_dtype
    np.testing.assert_allclose(half.astype(np.float32), single, atol=atol)


@pytest.mark.parametrize("resized_on_host", [False, True])
def test_compiled_equals_eager(resized_on_host):
    images = tf.constant(np.stack([noise(24, 24, seed=i) for i in range(2)]))
    geometry = pack(whole(24, 24, scaled=(20, 20)), whole(24, 24, offset=(3.0, 2.0), flip=1.0))

    def network_input(images, geometry):
        return preprocess.to_network_input(
            images,
            geometry,
            height=24,
            width=24,
            mean=MEAN,
            std=STD,
            dtype=tf.float32,
            resized_on_host=resized_on_host,
        )

    compiled = tf.function(network_input, jit_compile=True)(images, geometry)
    assert compiled.shape == [2, 24, 24, 3]
    np.testing.assert_allclose(compiled, network_input(images, geometry), atol=1e-3)


def test_sizes_may_be_unknown_when_traced():
    """An exported model takes images of any size."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def network_input(images):
        shape = tf.shape(images)
        size = tf.tile(tf.cast(shape[tf.newaxis, 1:3], tf.float32), [shape[0], 1])
        geometry = geometry_lib.pack(geometry_lib.fit_inside(size, height=32, width=32))
        return preprocess.to_network_input(images, geometry, height=32, width=32, **PLAIN)

    image = noise(20, 40)
    expected = run([image], pack(whole(20, 40, scaled=(16, 32))), height=32, width=32)
    np.testing.assert_allclose(network_input(image[np.newaxis]), expected, atol=1e-3)


# ------------------------------------------------------------------------------ colour


def jittered(pixels, *, seed=(1, 2), strength=0.5, inside=None):
    pixels = tf.constant(np.asarray(pixels, np.float32))
    inside = tf.ones_like(pixels[..., :1], tf.bool) if inside is None else tf.constant(inside)
    return preprocess.jitter_colors(
        pixels, strength=strength, seed=tf.constant(seed), inside=inside
    ).numpy()


def test_the_colours_follow_the_seed_and_differ_between_images():
    image = 60.0 + noise(8, 8) / 4.0
    first, again, other = (jittered([image, image], seed=s) for s in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1.0
    assert np.abs(first[0] - first[1]).mean() > 1.0


def test_compiled_colours_follow_the_seed():
    image = tf.constant(60.0 + noise(8, 8)[np.newaxis] / 4.0, tf.float32)
    inside = tf.ones_like(image[..., :1], tf.bool)

    @tf.function(jit_compile=True)
    def compiled(seed):
        return preprocess.jitter_colors(image, strength=0.5, seed=seed, inside=inside)

    first, again, other = (compiled(tf.constant(s)).numpy() for s in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1.0


def test_strength_zero_changes_nothing():
    image = noise(8, 8)
    np.testing.assert_allclose(jittered([image], strength=0.0)[0], image, atol=1e-3)


def test_one_grey_takes_only_brightness():
    """Of an even grey there is nothing for contrast and saturation to change."""
    out = jittered(np.full((32, 4, 4, 3), 100.0), strength=0.3)
    assert np.ptp(out, axis=(1, 2, 3)).max() < 1e-3
    assert 70.0 - 1e-3 <= out.min() < 90.0 < 110.0 < out.max() <= 130.0 + 1e-3


def test_padding_does_not_change_the_colours():
    image = 60.0 + noise(8, 8) / 4.0
    padded = np.zeros((1, 16, 16, 3))
    padded[0, :8, :8] = image
    inside = np.zeros((1, 16, 16, 1), bool)
    inside[0, :8, :8] = True
    out = jittered(padded, inside=inside)
    np.testing.assert_allclose(out[0, :8, :8], jittered([image])[0], atol=1e-3)


def test_colours_stay_in_range():
    out = jittered([noise(8, 8, seed=i) for i in range(16)], strength=1.0)
    assert out.min() >= 0.0
    assert out.max() <= 255.0


# ------------------------------------------------------------------------------ boxes


def ground_truth(boxes, classes, geometry, *, is_crowd=None, drop_crowd=True):
    batch = {
        "boxes": tf.constant([boxes], tf.float32),
        "classes": tf.constant([classes], tf.int32),
        "is_crowd": tf.constant([is_crowd or [False] * len(classes)]),
        "geometry": geometry,
    }
    moved = preprocess.ground_truth_in_network_frame(batch, (40, 50), drop_crowd=drop_crowd)
    return [value.numpy()[0] for value in moved]


def test_boxes_move_clip_and_vanish():
    """An image of 40x60, doubled, cropped at network pixel (10, 20) to 40x50."""
    geometry = pack(whole(40, 60, scaled=(80, 120), offset=(10.0, 20.0)))
    boxes = [(8, 12, 20, 30), (0, 0, 10, 15), (0, 0, 5, 60), (30, 20, 40, 30), (0, 0, 0, 0)]
    gt_boxes, gt_classes = ground_truth(boxes, [4, 0, 1, 2, -1], geometry)
    np.testing.assert_allclose(gt_boxes[:2], [[6, 4, 30, 40], [0, 0, 10, 10]], atol=1e-4)
    # The third touches the crop's edge and the fourth lies below it.
    np.testing.assert_array_equal(gt_boxes[2:], 0.0)
    np.testing.assert_array_equal(gt_classes, [4, 0, -1, -1, -1])


def test_padding_stays_padding_where_its_corner_is_in_sight():
    geometry = pack(whole(40, 50, offset=(-3.0, -4.0)))
    gt_boxes, gt_classes = ground_truth([(0, 0, 0, 0)], [-1], geometry)
    np.testing.assert_array_equal(gt_boxes, 0.0)
    np.testing.assert_array_equal(gt_classes, [-1])


@pytest.mark.parametrize("drop_crowd", [True, False])
def test_crowds_are_dropped_on_request(drop_crowd):
    boxes = [(0, 0, 10, 10), (5, 5, 20, 20)]
    _, gt_classes = ground_truth(
        boxes, [1, 2], pack(whole(40, 50)), is_crowd=[False, True], drop_crowd=drop_crowd
    )
    np.testing.assert_array_equal(gt_classes, [1, -1 if drop_crowd else 2])


coordinate = st.floats(-50.0, 120.0, width=32)


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(coordinate, coordinate, coordinate, coordinate),
    flip=st.sampled_from([0.0, 1.0]),
    scale=st.floats(0.125, 2.0, width=32),
    offset=st.tuples(st.integers(-20, 60), st.integers(-20, 60)),
)
def test_boxes_are_inside_the_frame_or_gone(box, flip, scale, offset):
    place = whole(70, 90, offset=offset, flip=flip)._replace(network_scale=np.full(2, scale))
    (moved,), (class_id,) = ground_truth([box], [3], pack(place))
    if class_id == -1:
        np.testing.assert_array_equal(moved, 0.0)
    else:
        y1, x1, y2, x2 = moved
        assert 0.0 <= y1 < y2 <= 40.0
        assert 0.0 <= x1 < x2 <= 50.0
