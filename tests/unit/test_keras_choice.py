"""Keras 2 on every TensorFlow; Keras 3 is refused with the way out."""

import keras_choice

import pytest
import tensorflow as tf


@pytest.mark.both_stacks
def test_keras_is_2_here():
    assert getattr(tf.keras, "__version__", "2.").startswith("2.")
    assert tf.keras.optimizers.legacy.SGD is not None


@pytest.mark.parametrize(
    ("tensorflow", "before", "after"),
    [
        ("2.15.1", {}, {}),
        ("2.15.1", {"TF_USE_LEGACY_KERAS": "1"}, {}),
        ("2.15.0+nv24.3", {}, {}),
        ("", {}, {}),
        ("2.19.1", {}, {"TF_USE_LEGACY_KERAS": "1"}),
        ("2.19.1", {"TF_USE_LEGACY_KERAS": "True"}, {"TF_USE_LEGACY_KERAS": "1"}),
        ("3.0.0", {}, {"TF_USE_LEGACY_KERAS": "1"}),
    ],
)
def test_the_variable_is_set_where_it_is_needed(tensorflow, before, after):
    environment = dict(before)
    keras_choice.choose_keras(environment, tensorflow=tensorflow, has_tf_keras=True)
    assert environment == after


def test_keras_3_is_refused():
    with pytest.raises(ImportError, match=r"TensorFlow 2.19.1 .* pip install 'tf_keras==2.19.\*'"):
        keras_choice.choose_keras({}, tensorflow="2.19.1", has_tf_keras=False)
    with pytest.raises(ImportError, match="TF_USE_LEGACY_KERAS=0 asks for Keras 3"):
        keras_choice.choose_keras(
            {"TF_USE_LEGACY_KERAS": "0"}, tensorflow="2.19.1", has_tf_keras=True
        )
    with pytest.raises(ImportError, match=r"Keras 3\.15\.1 here"):
        keras_choice.refuse_keras_3("3.15.1")
    keras_choice.refuse_keras_3("2.15.0")
