import pytest
import tensorflow as tf

from maskrcnn.network.convolution import LEAST_POSITIONS, Conv2D
from object_detection.input.accelerator import assume_accelerator, has_accelerator
from object_detection.input.loader import resizes_on_host

pytestmark = pytest.mark.skipif(
    bool(tf.config.get_visible_devices("GPU")), reason="here it is about machines without a GPU"
)


def test_programs_for_an_accelerator_can_be_made_without_one():
    side = round(LEAST_POSITIONS**0.5) + 1
    images = tf.zeros([1, side, side, 2])

    def operations():
        layer = Conv2D(3, 3, padding="same")
        layer.build(images.shape)

        @tf.function
        def gradient(images):
            with tf.GradientTape() as tape:
                tape.watch(layer.kernel)
                loss = tf.reduce_sum(layer(images))
            return tape.gradient(loss, layer.kernel)

        return {op.type for op in gradient.get_concrete_function(images).graph.get_operations()}

    assert not has_accelerator() and resizes_on_host("auto")
    assert "Conv2DBackpropFilter" not in operations()
    with assume_accelerator():
        assert has_accelerator() and not resizes_on_host("auto")
        assert "Conv2DBackpropFilter" in operations()
    assert not has_accelerator()
