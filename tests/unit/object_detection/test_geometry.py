"""The mapping between original, canvas and network frames: hand-computed, inverted, everywhere."""

from fractions import Fraction

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.input import geometry as geometry_lib
from object_detection.input.geometry import Geometry

few = settings(max_examples=60, deadline=None)
side = st.integers(1, 6000)


def make_geometry(**changes):
    """An image of 60x100 scaled by 2 (y) and 1.5 (x), cropped at network pixel (10, 30)."""
    fields = {
        "original_size": [60.0, 100.0],
        "canvas_origin": [3.0, 4.0],
        "canvas_scale": [0.5, 0.25],
        "canvas_valid": [20.0, 22.0],
        "network_scale": [2.0, 1.5],
        "network_offset": [10.0, 30.0],
        "flip": 0.0,
    }
    values = {**fields, **changes}
    return Geometry(**{name: tf.constant(value, tf.float32) for name, value in values.items()})


def test_packing_is_undone_by_unpacking_and_keeps_examples_apart():
    examples = [make_geometry(), make_geometry(network_offset=[-1.0, -2.0], flip=1.0)]
    packed = tf.stack([geometry_lib.pack(example) for example in examples])
    assert packed.shape == [2, geometry_lib.GEOMETRY_SIZE]
    assert packed.dtype == tf.float32
    for name, values in geometry_lib.unpack(packed)._asdict().items():
        for value, example in zip(values, examples):
            np.testing.assert_array_equal(value, getattr(example, name), name)
    np.testing.assert_array_equal(geometry_lib.pack(geometry_lib.unpack(packed)), packed)


@pytest.mark.parametrize(("flip", "left", "right"), [(0.0, 30, 60), (1.0, 64 - 60, 64 - 30)])
def test_a_box_is_scaled_then_cropped_and_mirrored_in_the_networks_frame(flip, left, right):
    boxes = tf.constant([[20.0, 40.0, 30.0, 60.0]])
    moved = geometry_lib.original_to_network(boxes, make_geometry(flip=flip), network_width=64)
    np.testing.assert_allclose(moved, [[30.0, left, 50.0, right]])


@pytest.mark.parametrize(
    ("original", "network", "scaled"),
    [
        ((480, 640), (512, 512), (384, 512)),
        ((640, 480), (512, 512), (512, 384)),
        ((427, 640), (512, 512), (341, 512)),  # 341.6 is truncated
        ((512, 512), (512, 512), (512, 512)),
        ((100, 50), (200, 300), (200, 100)),
        ((10, 3000), (128, 128), (1, 128)),  # 0.43 would be nothing
    ],
)
def test_a_whole_image_fits_inside(original, network, scaled):
    height, width = network
    places = geometry_lib.fit_inside(tf.constant(original), height=height, width=width)
    np.testing.assert_allclose(
        places.network_scale, np.divide(scaled, original, dtype=np.float32), rtol=1e-6
    )
    whole = tf.constant([[0.0, 0.0, *original]], tf.float32)
    moved = geometry_lib.original_to_network(whole, places, network_width=width)
    np.testing.assert_allclose(moved, [[0, 0, *scaled]], rtol=1e-6)
    np.testing.assert_array_equal(places.canvas_valid, np.float32(original))
    np.testing.assert_array_equal(places.canvas_scale, [1.0, 1.0])


@few
@given(original=st.tuples(side, side), target=st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_the_scaled_size_is_the_exact_one_truncated(original, target):
    size = geometry_lib.scaled_size_within(
        tf.constant(original, tf.float32), tf.constant(target, tf.float32)
    ).numpy()
    scale = min(Fraction(t, o) for t, o in zip(target, original))
    for got, pixels, limit in zip(size, original, target):
        exact = max(scale * pixels, Fraction(1))
        assert got == int(got) and 1 <= got <= limit
        # A thousandth below the next whole pixel counts as reaching it.
        assert got in (int(exact), int(exact + Fraction(11, 10000)))
    assert any(got == limit for got, limit in zip(size, target)), "one side decides the scale"


def random_geometry(rng, leading=()):
    def pair(low, high):
        return rng.uniform(low, high, (*leading, 2)).astype(np.float32)

    return Geometry(
        original_size=pair(10, 3000),
        canvas_origin=pair(0, 500),
        canvas_scale=pair(0.1, 1),
        canvas_valid=pair(1, 640),
        network_scale=pair(0.05, 4),
        network_offset=pair(-500, 900),
        flip=rng.integers(0, 2, leading).astype(np.float32),
    )


@few
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 1536))
def test_network_to_original_undoes_original_to_network(seed, width):
    rng = np.random.default_rng(seed)
    places = random_geometry(rng, (3,))
    boxes = numpy_boxes.random(rng, 3, 5, high=720, side=(0, 800))
    moved = geometry_lib.original_to_network(boxes, places, network_width=width)
    assert bool(tf.reduce_all(moved[..., 2:] >= moved[..., :2])), "corners stay in order"
    back = geometry_lib.network_to_original(moved, places, network_width=width)
    # Rounding in the network frame, of up to some 1e4 pixels, is divided by the scale on the way.
    rounding = 2e-3 / places.network_scale.min()
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=rounding)


def test_clipping_is_to_the_stored_image_of_each_example():
    places = make_geometry(original_size=[[60.0, 100.0], [30.0, 20.0]])
    boxes = tf.constant([[[-5.0, -1.0, 70.0, 99.0]], [[5.0, 10.0, 31.0, 25.0]]])
    clipped = geometry_lib.clip_to_original(boxes, places)
    np.testing.assert_array_equal(clipped, [[[0, 0, 60, 99]], [[5, 10, 30, 20]]])


def there_and_back(packed, boxes):
    places = geometry_lib.unpack(packed)
    moved = geometry_lib.original_to_network(boxes, places, network_width=96)
    back = geometry_lib.network_to_original(moved, places, network_width=96)
    return moved, geometry_lib.clip_to_original(back, places)


def test_eager_mapped_and_compiled_agree():
    rng = np.random.default_rng(3)
    packed = geometry_lib.pack(random_geometry(rng, (4,)))
    boxes = tf.constant(numpy_boxes.random(rng, 4, 6, high=270, side=(0, 300)))
    expected = there_and_back(packed, boxes)
    compiled = tf.function(there_and_back, jit_compile=True)(packed, boxes)
    mapped = tf.data.Dataset.from_tensor_slices((packed, boxes)).map(there_and_back)
    one_by_one = [np.stack(column) for column in zip(*mapped.as_numpy_iterator())]
    for want, jit, single in zip(expected, compiled, one_by_one):
        # XLA may turn a product and a sum into one operation with one rounding.
        np.testing.assert_allclose(jit, want, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(single, want, rtol=1e-6)


def test_images_end_where_they_were_scaled_and_shifted_to():
    originals = tf.constant([[50.0, 100.0], [200.0, 100.0], [50.0, 50.0], [50.0, 50.0]])
    fitted = geometry_lib.fit_inside(originals, height=64, width=96)
    places = fitted._replace(
        network_scale=tf.constant([[0.96, 0.96], [0.48, 0.48], [1.0, 1.0], [1.0, 1.0]]),
        # The third is shifted by 10 rows and -5 columns; so is the fourth, which is mirrored.
        network_offset=tf.constant([[0.0, 0.0], [0.0, 0.0], [-10.0, 5.0], [-10.0, -51.0]]),
        flip=tf.constant([0.0, 0.0, 0.0, 1.0]),
    )
    sizes = geometry_lib.ends_in_network(places, (64, 96))
    np.testing.assert_allclose(sizes, [[48, 96], [64, 48], [60, 45], [60, 45]])
