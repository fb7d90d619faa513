"""AutoAugment: grey levels against Pillow, places against cases worked out by hand, boxes."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from object_detection.augment import autoaugment, grey_levels
from object_detection.augment.policies import OPERATIONS, policy

BATCH, SIDE = 2, 64
UNIT = tf.fill([BATCH], 640.0)  # a pixel of the policy is one of the network
ENDS = tf.fill([BATCH, 2], float(SIDE))


def photograph(seed=0):
    """Smooth noise with a dark and a bright end, uint8 [SIDE, SIDE, 3]."""
    small = np.random.default_rng(seed).integers(20, 230, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def numbers(operation):
    return OPERATIONS.index(operation)


def run(monkeypatch, steps, pixels, boxes, *, seed=0, inside=None, unit=UNIT):
    """Applies (operation, probability, magnitude) steps; returns arrays."""
    table = np.array([[(numbers(name), p, m) for name, p, m in steps]], np.float32)
    monkeypatch.setattr(autoaugment, "policy", lambda name: table)
    boxes = np.tile(np.asarray(boxes, np.float32).reshape(1, -1, 4), (BATCH, 1, 1))
    if inside is None:
        inside = np.ones((BATCH, SIDE, SIDE, 1), bool)
    result = autoaugment.auto_augment(
        tf.constant(np.tile(pixels[None], (BATCH, 1, 1, 1)), tf.float32),
        tf.constant(inside),
        tf.constant(boxes),
        tf.zeros(boxes.shape[:2], tf.int32),
        name="patched",
        ends=ENDS,
        unit=unit,
        seed=tf.constant([seed, 3]),
    )
    return [value.numpy() for value in result]


# ------------------------------------------------------------------------------ grey levels


def pillow(operation, image, magnitude):
    factor = magnitude / 10 * 1.8 + 0.1
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, int(magnitude / 10 * 4)),
        "solarize": lambda: ImageOps.solarize(image, int(magnitude / 10 * 256)),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }[operation]()


@pytest.mark.parametrize(
    ("operation", "magnitude"),
    [
        *(("autocontrast", 5), ("equalize", 5), ("posterize", 8), ("solarize", 6)),
        *(("brightness", 2), ("brightness", 8), ("contrast", 3), ("contrast", 9)),
        *(("color", 2), ("color", 8), ("sharpness", 2), ("sharpness", 9)),
    ],
)
def test_grey_levels_are_those_of_pillow(monkeypatch, operation, magnitude):
    image = photograph()
    boxes = [[10, 10, 30, 30]]
    pixels, inside, moved, classes = run(monkeypatch, [(operation, 1.0, magnitude)], image, boxes)
    expected = np.asarray(pillow(operation, Image.fromarray(image), magnitude), np.float32)
    # Rounded differently, and Pillow's mean of a picture is that of rounded grey levels.
    assert np.abs(pixels - expected).max() <= 2.0
    assert inside.all() and (classes == 0).all()
    np.testing.assert_array_equal(moved[0], boxes)


def test_posterize_keeps_a_bit_and_solarize_adds_to_dark_pixels(monkeypatch):
    image = photograph()
    pixels, *_ = run(monkeypatch, [("posterize", 1.0, 2)], image, [[0, 0, 9, 9]])
    assert set(np.unique(pixels)) == {0.0, 128.0}
    pixels, *_ = run(monkeypatch, [("solarize_add", 1.0, 10)], image, [[0, 0, 9, 9]])
    expected = np.where(image < 128, np.minimum(image.astype(int) + 110, 255), image)
    np.testing.assert_array_equal(pixels[0], expected)


def test_padding_counts_for_no_histogram(monkeypatch):
    image = photograph()
    inside = np.zeros((BATCH, SIDE, SIDE, 1), bool)
    inside[:, :40] = True
    painted = image.copy()
    painted[40:] = 0
    pixels, *_ = run(monkeypatch, [("equalize", 1.0, 0)], painted, [[0, 0, 9, 9]], inside=inside)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image[:40])))
    np.testing.assert_array_equal(pixels[0, :40], expected)


def test_a_nearly_even_picture_is_not_equalized(monkeypatch):
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    image[:10, :10] = 50  # fewer pixels than there are grey levels to spread them over
    np.testing.assert_array_equal(ImageOps.equalize(Image.fromarray(image)), image)
    pixels, *_ = run(monkeypatch, [("equalize", 1.0, 0)], image, [[0, 0, 9, 9]])
    np.testing.assert_array_equal(pixels[0], image)


# ------------------------------------------------------------------------------ places


def with_object(box):
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    y1, x1, y2, x2 = box
    image[y1:y2, x1:x2] = 200
    return image


def bright(pixels):
    rows, columns = np.nonzero(pixels[..., 0] > 130)
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@pytest.mark.parametrize(
    ("operation", "magnitude", "slack"),
    [
        *(("rotate", 10, 1.6), ("shear_x", 10, 1.6), ("shear_y", 8, 1.6)),
        *(("translate_x", 0.4, 0.01), ("translate_y", 0.4, 0.01)),
    ],
)
def test_boxes_move_along_with_their_pixels(monkeypatch, operation, magnitude, slack):
    box = [22, 26, 34, 42]
    image = with_object(box)
    seen = set()
    for seed in range(4):
        pixels, _, boxes, classes = run(
            monkeypatch, [(operation, 1.0, magnitude)], image, [box], seed=seed
        )
        for i in range(BATCH):
            assert classes[i, 0] == 0
            np.testing.assert_allclose(bright(pixels[i]), boxes[i, 0], atol=slack)
            seen.add(tuple(np.round(boxes[i, 0], 2)))
    assert len(seen) == (1 if operation == "rotate" else 2) or len(seen) == 2
    if operation == "translate_x":  # 0.4 of 250 pixels at magnitude 10
        assert seen == {(22.0, 16.0, 34.0, 32.0), (22.0, 36.0, 34.0, 52.0)}


def test_a_quarter_turns_points_about_the_images_centre(monkeypatch):
    monkeypatch.setattr(autoaugment, "_ROTATE", 90.0)
    box = [10, 20, 16, 40]
    pixels, inside, boxes, _ = run(monkeypatch, [("rotate", 1.0, 10)], with_object(box), [box])
    # (y, x) -> (x, 64 - y) or the other way about.
    expected = {(20.0, 48.0, 40.0, 54.0), (24.0, 10.0, 44.0, 16.0)}
    for i in range(BATCH):
        assert tuple(np.round(boxes[i, 0], 3)) in expected
        np.testing.assert_allclose(bright(pixels[i]), boxes[i, 0], atol=1e-3)
    assert inside.all()


def test_what_leaves_the_frame_is_dropped_and_what_is_uncovered_is_padding(monkeypatch):
    boxes = [[20, 2, 40, 12], [20, 52, 40, 62], [20, 36, 40, 60], [0, 0, 0, 0]]
    for seed in range(3):
        _, inside, moved, classes = run(
            monkeypatch, [("translate_x", 1.0, 1.6)], photograph(), boxes, seed=seed
        )
        for i in range(BATCH):  # by 40 pixels
            is_right = inside[i, 0, -1, 0]
            assert inside[i].sum() == SIDE * (SIDE - 40)
            to_left = [[0] * 4, [20, 12, 40, 22], [20, 0, 40, 20]]
            expected = [[20, 42, 40, 52], [0] * 4, [0] * 4] if is_right else to_left
            np.testing.assert_allclose(moved[i, :3], expected, atol=1e-4)
            assert classes[i].tolist() == ([0, -1, -1, -1] if is_right else [-1, 0, 0, -1])


@pytest.mark.parametrize(
    ("operation", "probability", "magnitude", "sides", "middles", "limits"),
    [
        ("cutout", 1.0, 0.5, (10, 10), (0, 64), (0, 64)),  # half a side is 5 of 100 pixels
        ("box_cutout", 1.0, 4, (9, 10), (16, 48), (0, 64)),  # a side is 0.3 of 32 pixels
        ("only_cutout", 3.0, 1, (10, 10), (16, 48), (16, 48)),  # half a side is 5 of 50 pixels
    ],
)
def test_cut_outs_are_padding_of_the_size_asked_for(
    monkeypatch, operation, probability, magnitude, sides, middles, limits
):
    boxes, first, last = [[16, 16, 48, 48]], [], []
    for seed in range(4):
        _, inside, moved, _ = run(
            monkeypatch, [(operation, probability, magnitude)], photograph(), boxes, seed=seed
        )
        np.testing.assert_array_equal(moved[0], boxes)
        cut = ~inside[..., 0]
        for where in (cut.any(axis=axis)[i] for i in range(BATCH) for axis in (1, 2)):
            place = np.flatnonzero(where)
            assert len(place) == np.ptp(place) + 1
            first.append(place[0])
            last.append(place[-1] + 1)
            is_whole = limits[0] < first[-1] and last[-1] < limits[1]
            assert len(place) <= sides[1] and (not is_whole or len(place) >= sides[0])
    assert min(first) >= max(middles[0] - 5, limits[0])
    assert max(last) <= min(middles[1] + 5, limits[1])
    assert max(np.subtract(last, first)) >= sides[0]


@pytest.mark.parametrize(
    ("operation", "magnitude", "source"),
    [
        ("only_flip", 10, lambda y, x, sign: (y, 20 + 52 - x)),
        ("only_translate_y", 1, lambda y, x, sign: (y + sign * 12, x)),
        ("only_shear_x", 5, lambda y, x, sign: (y, x + sign * 0.15 * (y - 16))),
        ("only_shear_y", 5, lambda y, x, sign: (y + sign * 0.15 * (x - 20), x)),
    ],
)
def test_pixels_of_an_object_move_within_its_box(monkeypatch, operation, magnitude, source):
    image, (rows, columns) = photograph(), np.mgrid[16:40, 20:52]
    pixels, inside, *_ = run(monkeypatch, [(operation, 3.0, magnitude)], image, [16, 20, 40, 52])
    either = []
    for sign in (-1, 1):
        y, x = source(rows + 0.5, columns + 0.5, sign)
        is_there = (y >= 16) & (y < 40) & (x >= 20) & (x < 52)
        from_there = image[np.clip(y.astype(int), 0, 63), np.clip(x.astype(int), 0, 63)]
        either.append(np.dstack([np.where(is_there[..., np.newaxis], from_there, 0), is_there]))
    for found in np.concatenate([pixels, inside], axis=-1)[:, 16:40, 20:52]:
        assert any(np.array_equal(found, expected) for expected in either)


def test_probabilities_are_those_of_the_policy():
    """Operations on whole images have them whole, those on objects a third for each object."""
    lines = np.repeat([[numbers("rotate"), 0.6, 5], [numbers("only_flip"), 0.6, 5]], 400, axis=0)
    step = autoaugment._draw(
        tf.constant(lines, tf.float32),
        tf.fill([800, 6, 4], 1.0) * [3.0, 3.0, 9.0, 9.0],
        tf.constant([[0, 0, 0, 0, 0, -1]] * 800),
        ends=tf.zeros([800, 2]),
        unit=tf.ones([800]),
        seed=tf.constant([1, 2]),
    )
    share = (step.kinds[:400].numpy() == numbers("rotate")).mean()
    assert share == pytest.approx(0.6, abs=0.08)  # three standard deviations
    assert (step.kinds[400:].numpy() == numbers("only_flip")).all()
    objects = step.objects.numpy()
    assert not objects[:400].any() and set(map(tuple, objects[400:].reshape(-1, 4))) == {
        (0.0, 0.0, 0.0, 0.0),
        (3.0, 3.0, 9.0, 9.0),
    }
    assert objects[400:, :, 0].sum() / 3 / (400 * 5) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name.startswith("only_")])
def test_objects_are_changed_within_their_boxes_alone(monkeypatch, operation):
    box = [16, 20, 40, 52]
    image = photograph()
    pixels, inside, boxes, _ = run(monkeypatch, [(operation, 3.0, 1)], image, [box])
    changed = (np.abs(pixels[0] - image).max(axis=-1) > 0) | ~inside[0, ..., 0]
    outside = np.ones((SIDE, SIDE), bool)
    outside[16:40, 20:52] = False
    assert not changed[outside].any()
    assert changed[~outside].mean() > (0.02 if operation == "only_cutout" else 0.1)
    np.testing.assert_array_equal(boxes[0, 0], box)
    untouched, *_ = run(monkeypatch, [(operation, 0.0, 1)], image, [box])
    np.testing.assert_array_equal(untouched[0], image)


# ------------------------------------------------------------------------------ policies


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3"])
def test_a_policy_compiles_and_follows_the_seed(name):
    image, box = with_object([22, 26, 34, 42]), [22.0, 26.0, 34.0, 42.0]
    given = (
        tf.constant(np.tile(image[None], (BATCH, 1, 1, 1)), tf.float32),
        tf.ones([BATCH, SIDE, SIDE, 1], tf.bool),
        tf.constant([[box, [0.0] * 4]] * BATCH),
        tf.constant([[3, -1]] * BATCH),
    )
    # Of the size of the network: operations of 250 pixels would leave nothing.
    change = functools.partial(autoaugment.auto_augment, name=name, ends=ENDS, unit=UNIT / 10.0)
    compiled = tf.function(lambda seed: change(*given, seed=seed), autograph=False)
    drawn = [[value.numpy() for value in compiled(tf.constant([step, 1]))] for step in range(6)]
    again = [value.numpy() for value in compiled(tf.constant([5, 1]))]
    for ours, theirs in zip(drawn[5], again):
        np.testing.assert_array_equal(ours, theirs)
    assert len({pixels.tobytes() for pixels, *_ in drawn}) > 3
    for pixels, inside, boxes, classes in drawn:
        assert 0 <= pixels.min() and pixels.max() <= 255
        assert inside.mean() > 0.3
        assert (classes[:, 1] == -1).all() and not boxes[:, 1].any()


def test_the_policies_have_the_published_sizes():
    shapes = {name: policy(name).shape for name in ("v0", "v1", "v2", "v3")}
    assert shapes == {"v0": (5, 2, 3), "v1": (20, 2, 3), "v2": (15, 3, 3), "v3": (15, 2, 3)}
    np.testing.assert_allclose(policy("v1")[:5], policy("v0"))
    np.testing.assert_allclose(policy("v2")[1, 2], [numbers("rotate"), 0.8, 10])


def test_an_image_without_step_keeps_its_pixels():
    image = tf.constant(photograph()[None], tf.float32)
    changed = grey_levels.blend(image, tf.constant([numbers("none")]), tf.constant([9.0]))
    np.testing.assert_array_equal(changed, image)
