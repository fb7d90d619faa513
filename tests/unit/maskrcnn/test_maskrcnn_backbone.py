"""ResNets: against NumPy, known parameter counts, freezing, norms, dilation, recomputation."""

import dataclasses

import network_in_numpy as reference
import numpy as np
import precision
import pytest
import tensorflow as tf

from detector.frozen_norm import FrozenBatchNorm
from maskrcnn.config import model_config
from maskrcnn.network.backbone import Block, Bottleneck, build_backbone, stage_blocks
from maskrcnn.network.layers import GroupNorm, NormMaker

# torchvision's parameters without the classifier: kernels, scales and shifts.
KNOWN = {"resnet50": 23508032, "resnet101": 42500160, "resnext101_32x8d": 86742336}
KERNELS_OF_RESNET50 = 23454912


def maker(kind):
    return NormMaker(dataclasses.replace(model_config("maskrcnn-r50-fpn"), num_norm_groups=2), kind)


def small_block(**changes):
    block = Block(
        name="backbone/layer2/0",
        mid_channels=4,
        out_channels=8,
        num_groups=1,
        stride=2,
        dilation=1,
        stride_in="3x3",
        padding="symmetric",
        has_projection=True,
    )
    return block._replace(**changes)


def block_model(block, norm, *, remat=False):
    layer = Bottleneck(block, norm, remat=remat)
    images = tf.keras.Input((None, None, 6))
    return tf.keras.Model(images, layer(images))


def block_in_numpy(x, weights, block):
    """Computes one bottleneck from its variables."""
    kind = "bn" if f"{block.name}/bn1/gamma" in weights else "gn"
    first = block.stride_in == "1x1"

    def conv(x, name, **kwargs):
        kernel = weights[f"{block.name}/{name}/kernel"]
        return reference.conv2d(x, kernel, padding=block.padding, **kwargs)

    def norm(x, name):
        return reference.norm(x, weights, f"{block.name}/{name}", num_groups=2)

    y = conv(x, "conv1", stride=block.stride if first else 1)
    y = reference.relu(norm(y, f"{kind}1"))
    y = conv(
        y,
        "conv2",
        stride=1 if first else block.stride,
        dilation=block.dilation,
        groups=block.num_groups,
    )
    y = norm(conv(reference.relu(norm(y, f"{kind}2")), "conv3"), f"{kind}3")
    if block.has_projection:
        x = conv(x, "downsample_conv", stride=block.stride)
        x = norm(x, f"downsample_{kind}")
    return reference.relu(y + x)


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "frozen_bn"),
        ({"padding": "same"}, "frozen_bn"),
        ({"stride_in": "1x1"}, "group_norm"),
        ({"num_groups": 2}, "group_norm"),
        ({"stride": 1, "dilation": 2}, "frozen_bn"),
        ({"stride": 1, "has_projection": False, "out_channels": 6}, "batch_norm"),
    ],
)
def test_bottleneck_equals_numpy(size, change, kind):
    block = small_block(**change)
    model = block_model(block, maker(kind))
    weights = reference.randomise(model)
    x = np.random.default_rng(1).normal(size=(2, *size, 6))
    expected = block_in_numpy(x, weights, block)
    result = model(tf.constant(x, tf.float32), training=False)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_paddings_differ():
    """Else the comparison above could not tell them apart."""
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 6)).astype(np.float32)
    results = []
    for padding in ("symmetric", "same"):
        model = block_model(small_block(padding=padding), maker("frozen_bn"))
        reference.randomise(model)
        results.append(model(x).numpy())
    assert np.abs(results[0] - results[1]).max() > 0.1


def shallow(name="maskrcnn-r50-fpn", **changes):
    """A configuration with one block per stage."""
    return dataclasses.replace(model_config(name), backbone_repeats=(1, 1, 1, 1), **changes)


def backbone_model(*, batch_norm=None, **options):
    config = shallow(**options)
    images = tf.keras.Input((None, None, 3))
    features = build_backbone(images, config, batch_norm=batch_norm, remat=False)
    return tf.keras.Model(images, features)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_stem_and_levels_equal_numpy(padding):
    model = backbone_model(padding=padding)
    weights = reference.randomise(model)
    images = np.random.default_rng(0).normal(size=(1, 32, 64, 3))
    x = reference.conv2d(images, weights["backbone/conv1/kernel"], stride=2, padding=padding)
    x = reference.relu(reference.norm(x, weights, "backbone/bn1"))
    x = reference.max_pool(x, padding=padding)
    config = shallow(padding=padding)
    features = model(tf.constant(images, tf.float32))
    for level in (2, 3, 4, 5):
        for block in stage_blocks(config, level - 1):
            x = block_in_numpy(x, weights, block)
        assert x.shape == (1, 32 >> level, 64 >> level, 64 << level)
        np.testing.assert_allclose(features[level], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_give_the_known_parameter_counts(name):
    config = dataclasses.replace(model_config("maskrcnn-r50-fpn"), backbone_name=name)
    channels, kernels, norms = 64, 7 * 7 * 3 * 64, 64
    for stage in (1, 2, 3, 4):
        for block in stage_blocks(config, stage):
            mid, out = block.mid_channels, block.out_channels
            kernels += channels * mid + 9 * mid * mid // block.num_groups + mid * out
            norms += 2 * mid + out
            if block.has_projection:
                kernels += channels * out
                norms += out
            channels = out
    assert kernels + 2 * norms == KNOWN[name]
    if name == "resnet50":
        assert kernels == KERNELS_OF_RESNET50


def parts_trained(model):
    """Returns the stages with trained variables, by kind of variable."""
    kinds = {"kernel": set(), "gamma": set()}
    for variable in model.trainable_variables:
        part = variable.name.split("/")[1]
        kind = variable.name.removesuffix(":0").split("/")[-1]
        kinds["gamma" if kind in ("gamma", "beta") else "kernel"].add(
            "stem" if not part.startswith("layer") else part
        )
    return kinds["kernel"], kinds["gamma"]


@pytest.mark.parametrize(
    ("freeze_at", "norm"),
    [
        *((0, "frozen_bn"), (1, "frozen_bn"), (2, "frozen_bn"), (5, "frozen_bn")),
        *((0, "batch_norm"), (3, "batch_norm"), (2, "group_norm")),
    ],
)
def test_freezing_by_stage(freeze_at, norm):
    model = backbone_model(norm=norm, freeze_at=freeze_at)
    stages = ["stem", "layer1", "layer2", "layer3", "layer4"]
    kernels, norms = parts_trained(model)
    assert kernels == set(stages[freeze_at:])
    assert norms == (set() if norm == "frozen_bn" else kernels)


def test_trained_batch_norm_moves_only_where_it_is_not_frozen():
    model = backbone_model(finetune_bn=True)
    before = {v.name: v.numpy() for v in model.variables}
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    model(images, training=True)
    moved = {v.name for v in model.variables if np.any(v.numpy() != before[v.name])}
    statistics = {name for name in before if "moving" in name}
    frozen = {n for n in statistics if n.startswith(("backbone/bn1", "backbone/layer1"))}
    assert moved == statistics - frozen and frozen


def test_injected_batch_norm_is_used_where_it_is_trained():
    made = []

    def factory(*, name, momentum, epsilon):
        made.append(name)
        assert (momentum, epsilon) == (0.9, 1e-5)
        return tf.keras.layers.BatchNormalization(name=name, momentum=momentum, epsilon=epsilon)

    backbone_model(finetune_bn=True, batch_norm=factory)
    assert made == ["bn1", "bn2", "bn3", "downsample_bn"] * 3


def test_frozen_batch_norm_cannot_be_thawed():
    layer = FrozenBatchNorm(epsilon=1e-5, name="bn1")
    images = tf.keras.Input((4, 4, 3))
    model = tf.keras.Model(images, layer(images))
    reference.randomise(model)
    model.trainable = True
    layer.trainable = True
    assert not model.trainable_variables and len(model.variables) == 4
    before = model.get_weights()
    model(np.ones([2, 4, 4, 3], np.float32), training=True)
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(model.get_weights()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_compute_in_float32(dtype):
    """A mean of 200 with a deviation of 1 would be lost in half precision."""
    rng = np.random.default_rng(0)
    x = tf.cast(rng.normal(200.0, 1.0, (2, 8, 8, 4)), dtype)
    exact = x.numpy().astype(np.float64)
    policy = tf.keras.mixed_precision.Policy(f"mixed_{dtype}")
    for layer in (
        FrozenBatchNorm(epsilon=1e-5, name="bn"),
        GroupNorm(num_groups=2, epsilon=1e-5, name="gn"),
    ):
        layer._set_dtype_policy(policy)
        layer.build(x.shape)
        weights = {v.name.removesuffix(":0"): v.numpy() for v in layer.variables}
        if "moving_mean" in weights:
            layer.moving_mean.assign(np.full(4, 200.0))
            weights["moving_mean"] = np.full(4, 200.0)
        expected = reference.norm(
            exact, {f"n/{k}": v for k, v in weights.items()}, "n", num_groups=2
        )
        result = layer(x)
        assert result.dtype == dtype
        tolerance = 2e-3 if dtype == "float16" else 2e-2
        np.testing.assert_allclose(tf.cast(result, tf.float32), expected, atol=tolerance)


def test_group_norm_wants_divisible_channels():
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        GroupNorm(num_groups=4, epsilon=1e-5, name="gn").build(tf.TensorShape([None, 2, 2, 6]))


def test_dilated_stage_keeps_the_size():
    model = backbone_model(name="maskrcnn-r50-c5", res5_dilation=2)
    assert model(tf.zeros([1, 64, 64, 3]))[5].shape == (1, 4, 4, 2048)
    model = backbone_model(name="maskrcnn-r50-c4")
    assert sorted(model(tf.zeros([1, 64, 64, 3]))) == [2, 3, 4]


@pytest.mark.parametrize("kind", ["frozen_bn", "batch_norm", "group_norm"])
def test_recomputed_blocks_give_equal_gradients_and_statistics(kind):
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 8, 8, 6)), tf.float32)
    results = []
    for remat in (False, True):
        model = block_model(small_block(), maker(kind), remat=remat)
        reference.randomise(model)

        @tf.function(autograph=False)
        def step(x, model=model):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x, training=True) ** 2)
            return tape.gradient(loss, model.trainable_variables)

        gradients = [g.numpy() for g in step(x)]
        results.append(gradients + model.get_weights())
    assert len(results[0]) > 4
    for plain, recomputed in zip(*results):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_half_precision_runs_close_to_float32():
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    exact = backbone_model()
    reference.randomise(exact)
    expected = exact(images)[5].numpy()
    for dtype, tolerance in (("float16", 0.02), ("bfloat16", 0.15)):
        with precision.policy(f"mixed_{dtype}"):
            half = backbone_model()
        reference.randomise(half)
        features = half(images)[5]
        assert features.dtype == dtype
        difference = np.abs(tf.cast(features, tf.float32) - expected).max()
        assert difference < tolerance * np.abs(expected).max()
