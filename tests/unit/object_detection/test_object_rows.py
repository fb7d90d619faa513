"""The objects of records in rows of fixed number: order, crowds, what cannot be used."""

import numpy as np
import pytest
import tensorflow as tf

from object_detection.input import example

CLASSES = {7: 0, 1: 1, 90: 2}  # category_id -> class_id
ROWS = 3


def rows_of(boxes_px, *, categories=None, drop_crowd=False, **columns):
    """Makes the rows of one image from boxes in pixels; columns may be missing or short."""
    boxes = np.array(boxes_px, np.float32).reshape(-1, 4) / [100, 200, 100, 200]
    categories = [7] * len(boxes) if categories is None else categories
    return example.object_rows(
        {
            "boxes_norm": tf.constant([boxes], tf.float32),
            "category_ids": tf.constant([categories], tf.int64),
            "is_crowd": tf.constant([columns.get("is_crowd", [])], tf.int64),
            "areas": tf.constant([columns.get("areas", [])], tf.float32),
        },
        original_size=tf.constant([[100.0, 200.0]]),
        class_of_category=CLASSES,
        max_instances=ROWS,
        drop_crowd=drop_crowd,
    )


def test_objects_become_rows_padded_with_nothing():
    rows = rows_of([[10, 20, 30, 60], [0, 0, 100, 200]], categories=[90, 1], areas=[5.0, 6.0])
    np.testing.assert_allclose(
        rows.boxes[0], [[10, 20, 30, 60], [0, 0, 100, 200], [0] * 4], rtol=1e-6
    )
    assert rows.classes[0].numpy().tolist() == [2, 1, -1]
    assert rows.areas[0].numpy().tolist() == [5.0, 6.0, 0.0]
    assert rows.is_crowd[0].numpy().tolist() == [False] * 3
    assert rows.num_usable.numpy().tolist() == [2]
    assert rows.num_unusable.numpy().tolist() == [0]


def test_boxes_are_clipped_and_stand_for_areas_that_a_record_lacks():
    rows = rows_of([[-10, -20, 300, 60], [10, 20, 15, 40]])
    np.testing.assert_allclose(rows.boxes[0, 0], [0, 0, 100, 60], rtol=1e-6)
    np.testing.assert_allclose(rows.areas[0], [6000.0, 100.0, 0.0], rtol=1e-4)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [
        [NAN, 0, 10, 10],
        [0, 0, 10, NAN],
        [0, 0, INF, 10],
        [-INF, 0, 10, 10],
        [10, 10, 10, 30],  # no height
        [10, 10, 30, 10],  # no width
        [30, 10, 10, 30],  # upside down
        [0, 250, 10, 300],  # outside
        [-30, 0, 0, 10],
        [0, 0, 0, 0],
    ],
    ids=str,
)
def test_boxes_that_cannot_be_used_are_left_out_and_counted(box):
    rows = rows_of([[1, 2, 3, 4], box])
    assert rows.classes[0].numpy().tolist() == [0, -1, -1]
    assert np.isfinite(rows.boxes).all() and np.isfinite(rows.areas).all()
    assert not rows.boxes[0, 1:].numpy().any()
    assert (int(rows.num_usable[0]), int(rows.num_unusable[0])) == (1, 1)


def test_crowds_go_before_the_smallest_object():
    boxes = [[0, 0, 90, 90], [0, 0, 2, 2], [0, 0, 3, 3], [0, 0, 4, 4]]
    rows = rows_of(boxes, is_crowd=[1, 0, 0, 0])
    np.testing.assert_allclose(rows.boxes[0, :, 2], [2, 3, 4], rtol=1e-6)
    assert not rows.is_crowd.numpy().any()


@pytest.mark.parametrize("drop", [False, True])
def test_dropped_crowds_take_no_row(drop):
    boxes = [[0, 0, 90, 90], [0, 0, 2, 2], [0, 0, 3, 3]]
    rows = rows_of(boxes, is_crowd=[1, 0, 0], drop_crowd=drop)
    assert int(rows.num_usable[0]) == (2 if drop else 3)
    assert rows.is_crowd[0].numpy().tolist() == [not drop, False, False]
    assert rows.classes[0].numpy().tolist() == [-1 if drop else 0, 0, 0]
    assert int(rows.num_unusable[0]) == 0, "a crowd is nothing wrong"


@pytest.mark.parametrize("category", [0, 8, 91, -5, 2**40])
def test_a_category_without_class_is_told(category):
    rows = rows_of([[0, 0, 5, 5], [0, 0, 9, 9]], categories=[7, category])
    assert int(rows.unknown_category[0]) == category
    assert int(rows_of([[0, 0, 5, 5]]).unknown_category[0]) == tf.int64.min


def test_rows_are_made_alike_eagerly_and_in_a_data_set():
    def make(boxes):
        # Batches of records have no static number of objects.
        boxes = tf.compat.v1.placeholder_with_default(boxes, [None, None, 4])
        columns = {
            "boxes_norm": boxes,
            "category_ids": tf.fill(tf.shape(boxes)[:2], tf.constant(7, tf.int64)),
            "is_crowd": tf.zeros(tf.shape(boxes)[:2], tf.int64),
            "areas": tf.zeros([tf.shape(boxes)[0], 0]),
        }
        size = tf.tile([[50.0, 80.0]], [tf.shape(boxes)[0], 1])
        return example.object_rows(
            columns,
            original_size=size,
            class_of_category=CLASSES,
            max_instances=ROWS,
            drop_crowd=True,
        )

    low = np.random.default_rng(0).uniform(0, 0.9, (2, 8, 2))
    boxes = tf.constant(np.concatenate([low, low + 0.1], axis=-1), tf.float32)
    for part in (boxes, boxes[:, :2]):  # cut and padded
        (mapped,) = tf.data.Dataset.from_tensors(part).map(make).as_numpy_iterator()
        for want, got in zip(make(part), mapped):
            np.testing.assert_array_equal(got, want)
