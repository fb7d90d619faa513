"""Mosaic and mixup against NumPy and cases worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from object_detection.augment import mixing
from object_detection.augment.mixing import Scenes
from object_detection.augment.scenes import DeviceAugmentation, make_scenes
from object_detection.input import geometry as geometry_lib

BATCH, HEIGHT, WIDTH, ROWS = 5, 16, 24, 3
SEED = tf.constant([7, 11])


def scenes(*, batch=BATCH, rows=ROWS):
    """Noise; image i has one object of class i over all of its frame but a border of 2 pixels."""
    images = np.random.default_rng(0).uniform(1, 2, (batch, HEIGHT, WIDTH, 3)).astype(np.float32)
    boxes = np.zeros((batch, rows, 4), np.float32)
    boxes[:, 1] = [2, 2, HEIGHT - 2, WIDTH - 2]
    classes = np.full((batch, rows), -1, np.int32)
    classes[:, 1] = np.arange(batch)
    ends = np.full((batch, 2), [HEIGHT, WIDTH], np.float32)
    return Scenes(*map(tf.constant, (images, boxes, classes, ends)))


def numpy_scenes(result):
    return Scenes(*(value.numpy() for value in result))


def objects(result, i):
    """Returns {class: box} of an image; each class occurs once."""
    kept = result.classes[i] >= 0
    assert not result.boxes[i][~kept].any()
    return dict(zip(result.classes[i][kept].tolist(), result.boxes[i][kept].tolist()))


def test_a_mosaic_shows_four_images_at_half_their_size_around_its_centre(monkeypatch):
    monkeypatch.setattr(mixing, "_partners", lambda *_, batch, count: tf.constant([[1, 2, 3]] * 4))
    images = np.ones((4, HEIGHT, WIDTH, 3)) * np.arange(1, 5)[:, None, None, None]
    given = scenes(batch=4, rows=4)._replace(images=tf.constant(images, tf.float32))
    result = numpy_scenes(mixing.mosaic(given, tf.constant([True, False, True, False]), SEED))
    image = result.images[0]
    y = int(np.argmax(np.isin(image, (3, 4)).any(axis=(1, 2))))
    x = int(np.argmax(np.isin(image, (2, 4)).any(axis=(0, 2))))
    assert HEIGHT / 4 <= y < 3 * HEIGHT / 4 and WIDTH / 4 <= x < 3 * WIDTH / 4
    half_y, half_x = HEIGHT // 2, WIDTH // 2
    expected = np.zeros((HEIGHT, WIDTH))
    corners = {1: (y - half_y, x - half_x), 2: (y - half_y, x), 3: (y, x - half_x), 4: (y, x)}
    limits = {1: (0, 0, y, x), 2: (0, x, y, WIDTH), 3: (y, 0, HEIGHT, x), 4: (y, x, HEIGHT, WIDTH)}
    boxes = {}
    for value, (top, left) in corners.items():
        first_y, first_x, last_y, last_x = limits[value]
        rows = slice(max(top, first_y), min(top + half_y, last_y))
        columns = slice(max(left, first_x), min(left + half_x, last_x))
        expected[rows, columns] = value
        box = np.array([top + 1, left + 1, top + half_y - 1, left + half_x - 1])
        boxes[value - 1] = np.clip(box, [first_y, first_x] * 2, [last_y, last_x] * 2).tolist()
    np.testing.assert_array_equal(image[..., 0], expected)
    assert objects(result, 0) == boxes
    # Images that are not chosen stay.
    for i in (1, 3):
        np.testing.assert_array_equal(result.images[i], images[i])
        assert objects(result, i) == {i: [2, 2, HEIGHT - 2, WIDTH - 2]}


def test_images_that_do_not_fill_their_frame_touch_at_the_centre():
    images = np.zeros((4, HEIGHT, WIDTH, 3), np.float32)
    images[:, :10, :12] = 1.0
    ends = tf.constant([[10.0, 12.0]] * 4)
    given = scenes(batch=4)._replace(images=tf.constant(images), ends=ends)
    for seed in range(5):
        mixed = mixing.mosaic(given, tf.fill([4], True), tf.constant([seed, 0]))
        for image in mixed.images.numpy()[..., 0]:
            rows, columns = np.nonzero(image)
            box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
            assert image[box].all()
            height, width = image[box].shape
            assert (
                (height, width) == (9, 12)
                or height < 9
                or width < 12
                or (height, width) == (10, 12)
            )


def test_halves_of_a_mosaic_are_means_of_four_pixels():
    given = scenes()
    result = numpy_scenes(mixing.mosaic(given, tf.fill([BATCH], True), SEED))
    source = given.images.numpy()
    halved = source.reshape(BATCH, HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(2, 4))
    # The image itself lies up left: its last pixel, at the centre, is that of its half.
    for i in range(BATCH):
        is_last = np.isclose(result.images[i], halved[i, -1, -1], atol=1e-6).all(axis=-1)
        assert is_last.sum() == 1


def test_objects_cut_off_by_their_quadrant_are_dropped():
    given = scenes()
    boxes = np.zeros((BATCH, ROWS, 4), np.float32)
    boxes[:, 0] = [0, 0, 1, 1]  # shown only where the centre leaves half of the frame or more
    classes = np.full((BATCH, ROWS), -1, np.int32)
    classes[:, 0] = np.arange(BATCH)
    given = given._replace(boxes=tf.constant(boxes), classes=tf.constant(classes))
    corner_shown = []
    for seed in range(20):
        result = numpy_scenes(mixing.mosaic(given, tf.fill([BATCH], True), tf.constant([seed, 0])))
        for i in range(BATCH):
            corner_shown.append(i in objects(result, i))
            sides = result.boxes[i, :, 2:] - result.boxes[i, :, :2]
            assert ((sides > 0).all(axis=-1) == (result.classes[i] >= 0)).all()
    assert 0 < sum(corner_shown) < len(corner_shown) / 2


def test_where_more_objects_come_together_the_smallest_are_left_out():
    boxes = [[[0.0, 0.0, 2.0 + i, 2.0 + i]] for i in range(BATCH)]  # one row each
    classes = tf.range(BATCH)[:, tf.newaxis]
    given = scenes()._replace(boxes=tf.constant(boxes), classes=classes)
    result = numpy_scenes(mixing.mixup(given, tf.fill([BATCH], True), SEED))
    kept = result.classes[:, 0]
    assert (kept >= np.arange(BATCH)).all() and (kept > np.arange(BATCH)).any()
    np.testing.assert_array_equal(result.boxes[:, 0, 2], 2.0 + kept)


def test_mixup_blends_two_images_and_gives_the_objects_of_both():
    given = scenes()
    chosen = np.array([True, False, True, True, True])
    result = numpy_scenes(mixing.mixup(given, tf.constant(chosen), SEED))
    source = given.images.numpy()
    for i in range(BATCH):
        found = objects(result, i)
        if not chosen[i]:
            assert set(found) == {i}
            np.testing.assert_array_equal(result.images[i], source[i])
            continue
        (partner,) = set(found) - {i}
        difference = source[i] - source[partner]
        share = ((result.images[i] - source[partner]) * difference).sum() / (difference**2).sum()
        assert 0.4 <= share <= 0.6
        np.testing.assert_allclose(
            result.images[i], share * source[i] + (1 - share) * source[partner], atol=1e-5
        )


@pytest.mark.parametrize("use_xla", [False, True])
@pytest.mark.parametrize("mix", [mixing.mosaic, mixing.mixup])
def test_it_follows_from_the_seed(mix, use_xla):
    given, chosen = scenes(), tf.fill([BATCH], True)
    compiled = tf.function(mix, jit_compile=use_xla)
    first, again, other = (
        numpy_scenes(compiled(given, chosen, tf.constant([step, 11]))) for step in (7, 7, 8)
    )
    for ours, theirs in zip(first, again):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(first.images - other.images).max() > 0.1


def test_partners_are_other_images_each_as_often():
    for seed in range(5):
        partners = mixing._partners(tf.constant([seed, 0]), batch=6, count=3).numpy()
        for i, row in enumerate(partners):
            assert len({i, *row}) == 4
        assert np.bincount(partners.ravel()).tolist() == [3] * 6


# ------------------------------------------------------------------------------ choosing


def host_batch(**more):
    size = tf.constant([[HEIGHT, WIDTH]] * BATCH, tf.float32)
    given = scenes()
    return {
        "boxes": given.boxes,
        "classes": given.classes,
        "is_crowd": tf.zeros([BATCH, ROWS], tf.bool),
        "geometry": geometry_lib.pack(geometry_lib.fit_inside(size, height=HEIGHT, width=WIDTH)),
        **more,
    }


def made(augmentation, seed=(0, 0), **more):
    return numpy_scenes(
        make_scenes(
            host_batch(**more),
            augmentation,
            network_input=lambda: scenes().images,
            size=(HEIGHT, WIDTH),
            drop_crowd=True,
            seed=tf.constant(seed),
        )
    )


def num_changed(result):
    return int((np.abs(result.images - scenes().images).max(axis=(1, 2, 3)) > 0).sum())


def test_without_shares_nothing_is_mixed():
    for augmentation in (None, DeviceAugmentation()):
        result = made(augmentation)
        assert num_changed(result) == 0
        np.testing.assert_array_equal(result.classes, scenes().classes)


def test_shares_choose_images_and_the_end_of_mixing_none():
    shares = DeviceAugmentation(mosaic=0.5)
    counts = [num_changed(made(shares, (step, 0))) for step in range(40)]
    assert 0.35 < np.mean(counts) / BATCH < 0.65 and len(set(counts)) > 2
    both = DeviceAugmentation(mosaic=1.0, mixup=1.0)
    assert num_changed(made(both)) == BATCH
    mixing_of = tf.constant([True, False, False, False, True])
    assert num_changed(made(both, mixing=mixing_of)) == 2
