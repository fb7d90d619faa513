"""Errors of an input pipeline reach people without TensorFlow's wrapping."""

import pytest
import tensorflow as tf

from engine.batches import image_shape, iterate


def failing_after(count: int, error: Exception) -> tf.data.Dataset:
    def check(number):
        if number.numpy() >= count:
            raise error
        return number

    numbers = tf.data.Dataset.range(10)
    return numbers.map(lambda n: {"x": tf.py_function(check, [n], tf.int64)})


def test_batches_in_order():
    found = [int(batch["x"]) for batch in iterate(failing_after(99, ValueError()))]
    assert found == list(range(10))


def test_what_the_pipelines_own_code_said():
    batches = iterate(failing_after(2, ValueError("file a-00001, record 7: too many boxes")))
    assert [int(next(batches)["x"]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError) as error:
        next(batches)
    assert str(error.value) == ("the input pipeline failed: file a-00001, record 7: too many boxes")


def test_what_tensorflow_said(tmp_path):
    missing = tf.data.TFRecordDataset([str(tmp_path / "gone.tfrecord")]).map(lambda r: {"r": r})
    with pytest.raises(ValueError, match="the input pipeline failed: .*gone.tfrecord"):
        next(iterate(missing))


def test_the_images_name_a_shape_though_masks_are_larger():
    batch = {"masks": tf.zeros([2, 100, 1568]), "image": tf.zeros([2, 96, 128, 3])}
    assert image_shape(batch) == (2, 96, 128, 3)
