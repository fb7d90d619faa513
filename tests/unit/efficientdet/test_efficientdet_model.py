"""The whole network: parameter counts, shapes, options, XLA and mixed precision."""

import dataclasses

import numpy as np
import precision
import pytest
import tensorflow as tf

from efficientdet.config import MODEL_TABLE, model_config
from efficientdet.network import backbone
from efficientdet.network.heads import build_heads
from efficientdet.network.layers import batch_norm_factory, drop_connect_seed
from efficientdet.network.model import build_model
from efficientdet.network.neck import Fuse, NeckBuilder, cell_nodes

# Published with 91 classes: (total, trainable), then trainable by part.
PUBLISHED = {
    "d0": (3927788, 3880652, 3595388, 175609, 20672, 69939, 19044),
    "d1": (6698155, 6626699, 6101024, 362548, 28424, 102195, 32508),
    "d2": (8179832, 8098056, 7202562, 668399, 39760, 137907, 49428),
    "d3": (12148049, 12033745, 10103336, 1497554, 61920, 248499, 122436),
    "d4": (20893012, 20725700, 16742216, 3248805, 101024, 404915, 228740),
    "d5": (33883308, 33655916, 27288112, 5257573, 148320, 594099, 367812),
    "d6": (52187231, 51875247, 39403992, 10361472, 222336, 1094451, 792996),
    "d7": (52187231, 51875247, 39403992, 10361472, 222336, 1094451, 792996),
    "d7x": (77568359, 77150631, 62143440, 12865152, 246912, 1098291, 796836),
}
PARTS = {"backbone": ("stem_", "stack_"), "neck": ("fpn_cells",), "p6": ("resample_p6",)}
PARTS |= {"class_net": ("class_net",), "box_net": ("box_net",)}


def trainable_by_part(variables):
    return tuple(
        sum(v.shape.num_elements() for v in variables if v.name.startswith(prefixes))
        for prefixes in PARTS.values()
    )


def counts_by_formula(config, *, num_classes):
    """Counts (total, trainable, by part) from the shapes alone; independent of the builders."""
    width, levels = config.fpn_num_filters, config.max_level - config.min_level + 1

    def separable(inputs, outputs):
        return 9 * inputs + inputs * outputs + outputs

    norms = [stem := backbone.stem_channels(config.backbone_name)]
    body = 27 * stem
    for block in backbone.backbone_blocks(config.backbone_name):
        inside = block.in_channels * block.expand_ratio
        if block.expand_ratio > 1:
            body += block.in_channels * inside
            norms.append(inside)
        body += block.kernel_size**2 * inside + inside * block.out_channels
        squeezed = block.se_channels
        body += squeezed * (2 * inside + 1) + inside if squeezed else 0
        norms += [inside, block.out_channels]
    body += 2 * sum(norms)

    channels = {b.level: b.out_channels for b in backbone.backbone_blocks(config.backbone_name)}
    p6 = channels[5] * width + width + 2 * width
    neck, neck_norms = 0, 0
    inputs = [channels.get(level, width) for level in range(config.min_level, config.max_level + 1)]
    for cell in range(config.fpn_cell_repeats):
        known = inputs if cell == 0 else [width] * levels
        nodes = cell_nodes(config)
        known = known + [width] * len(nodes)
        for node in nodes:
            neck += separable(width, width) + 2 * width
            neck_norms += width
            neck += len(node.inputs) if node.weight_method == "fastattn" else 0
            for source in node.inputs:
                if known[source] != width:
                    neck += known[source] * width + width + 2 * width
                    neck_norms += width

    def head(outputs):
        repeats = config.box_class_repeats
        count = repeats * (separable(width, width) + levels * 2 * width)
        return count + separable(width, 9 * outputs)

    parts = (body, neck, p6, head(num_classes), head(4))
    head_norms = 2 * config.box_class_repeats * levels * width
    statistics = 2 * (sum(norms) + neck_norms + width + head_norms)
    return (sum(parts) + statistics, sum(parts), *parts)


@pytest.fixture(scope="module")
def d0():
    return build_model(model_config("efficientdet-d0"), num_classes=91)


@pytest.fixture
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(backbone.SCALINGS, "tiny", backbone.Scaling(0.25, 0.3))


def tiny_config(**changes):
    changes = {"fpn_cell_repeats": 1, "box_class_repeats": 1, "fpn_num_filters": 8} | changes
    changes = {"backbone_name": "tiny", "image_size": (64, 64)} | changes
    return dataclasses.replace(model_config("efficientdet-d0"), **changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_give_the_published_parameter_counts(name):
    config = model_config(f"efficientdet-{name}")
    assert counts_by_formula(config, num_classes=91) == PUBLISHED[name]


def test_d0_has_the_published_parameters(d0):
    total, trainable, *parts = PUBLISHED["d0"]
    assert d0.count_params() == total
    assert sum(v.shape.num_elements() for v in d0.trainable_variables) == trainable
    assert trainable_by_part(d0.trainable_variables) == tuple(parts)
    assert (len(d0.weights), len(d0.trainable_weights)) == (709, 493)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0", pytest.param("d7x", marks=pytest.mark.nightly)])
def test_built_models_have_the_parameters_of_their_shapes(name):
    config = model_config(f"efficientdet-{name}")
    model = build_model(config, num_classes=91)
    total, _, *parts = counts_by_formula(config, num_classes=91)
    assert (model.count_params(), trainable_by_part(model.trainable_variables)) == (
        total,
        tuple(parts),
    )
    assert len(model.outputs) == 2 * (config.max_level - 2)


def test_every_model_is_in_one_of_the_count_tests():
    assert {name for name in MODEL_TABLE if "lite" not in name} == {
        f"efficientdet-{name}" for name in PUBLISHED
    }


def test_d0_outputs_cover_the_anchors(d0):
    logits, deltas = d0.output["class_logits"], d0.output["box_deltas"]
    assert [tuple(x.shape[1:3]) for x in logits] == [(n, n) for n in (64, 32, 16, 8, 4)]
    assert {x.shape[-1] for x in logits} == {819}
    assert {x.shape[-1] for x in deltas} == {36}
    assert sum(9 * x.shape[1] * x.shape[2] for x in deltas) == 49104


def test_d0_variable_names(d0):
    names = [variable.name for variable in d0.variables]
    assert len(set(names)) == len(names)
    for name in (
        "stem_conv2d/kernel",
        "stack_6/block_0/project_bn/moving_mean",
        "resample_p6/conv2d/bias",
        "fpn_cells/cell_0/fnode0/WSM",
        "fpn_cells/cell_2/fnode4/WSM_2",
        "fpn_cells/cell_0/fnode1/resample_0_2_6/bn/gamma",
        "fpn_cells/cell_0/fnode5/resample_0_2_10/conv2d/kernel",
        "fpn_cells/cell_1/fnode0/op_after_combine5/conv/pointwise_kernel",
        "class_net/class-0/depthwise_kernel",
        "class_net/class-2-bn-7/beta",
        "class_net/class-predict/bias",
        "box_net/box-predict/pointwise_kernel",
    ):
        assert f"{name}:0" in names


def test_initial_values(d0):
    bias = d0.get_layer("class_net/class-predict").bias.numpy()
    np.testing.assert_allclose(bias, -np.log(99.0), rtol=1e-6)
    assert not d0.get_layer("box_net/box-predict").bias.numpy().any()
    kernels = [d0.get_layer(f"class_net/class-{i}").pointwise_kernel.numpy() for i in range(3)]
    assert not np.allclose(kernels[0], kernels[1]) and not np.allclose(kernels[1], kernels[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"fpn_name": "qufpn"},
        {"fpn_weight_method": "channel_attn", "separable_conv": False, "min_level": 4},
        {"fpn_weight_method": "attn", "conv_bn_act_pattern": True, "act_type": "hswish"},
        {"conv_after_downsample": True, "apply_bn_for_resampling": False, "max_level": 6},
        {"head_survival_prob": 0.5, "box_class_repeats": 2, "survival_prob": 0.5},
        {"double_normalize": True, "image_size": (72, 104), "max_level": 8},
    ],
)
def test_options_build_and_run(tiny_backbone, changes):
    config = tiny_config(**changes)
    model = build_model(config, num_classes=2)
    images = tf.random.stateless_normal([2, *config.image_size, 3], [1, 2])
    outputs = model(images, training=True)
    for index, level in enumerate(range(config.min_level, config.max_level + 1)):
        size = [-(-n // 2**level) for n in config.image_size]
        assert outputs["class_logits"][index].shape == (2, *size, 18)
        assert outputs["box_deltas"][index].shape == (2, *size, 36)
    assert all(np.isfinite(x).all() for x in tf.nest.flatten(outputs))


@pytest.mark.quick
def test_two_models_in_one_process_are_alike(tiny_backbone):
    first, second = (build_model(tiny_config(), num_classes=2) for _ in range(2))
    assert [v.name for v in first.weights] == [v.name for v in second.weights]
    images = tf.random.stateless_normal([1, 64, 64, 3], [1, 2])
    second.set_weights(first.get_weights())
    for a, b in zip(tf.nest.flatten(first(images)), tf.nest.flatten(second(images))):
        np.testing.assert_array_equal(a, b)


def test_frozen_batch_norm_stays_as_it_is(tiny_backbone):
    model = build_model(tiny_config(is_training_bn=False), num_classes=2)
    model.trainable = True  # what a fine-tuning script might do
    statistics = [v for v in model.variables if "moving_" in v.name]
    before = [v.numpy() for v in statistics]
    images = tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    trained, inferred = model(images, training=True), model(images, training=False)
    for value, variable in zip(before, statistics):
        np.testing.assert_array_equal(value, variable.numpy())
    for a, b in zip(tf.nest.flatten(trained), tf.nest.flatten(inferred)):
        np.testing.assert_array_equal(a, b)
    assert not [v.name for v in model.trainable_variables if "gamma" in v.name or "beta" in v.name]


def test_training_moves_unfrozen_statistics(tiny_backbone):
    model = build_model(tiny_config(), num_classes=2)
    statistics = [v for v in model.variables if v.name == "stem_bn/moving_mean:0"]
    model(tf.ones([2, 64, 64, 3]), training=True)
    assert np.abs(statistics[0].numpy()).max() > 0


def test_injected_batch_norm_is_used_everywhere(tiny_backbone):
    made = []

    class Norm(tf.keras.layers.BatchNormalization):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            made.append((self.momentum, self.epsilon))

    model = build_model(tiny_config(bn_momentum=0.9), num_classes=2, batch_norm=Norm)
    norms = [v for v in model.variables if v.name.endswith("moving_mean:0")]
    assert len(made) == len(norms)
    assert set(made) == {(0.9, 1e-3)}


def test_class_count_is_checked():
    with pytest.raises(ValueError, match="num_classes >= 1"):
        build_model(model_config("efficientdet-d0"), num_classes=0)


class TestFuse:
    def fuse(self, method, weights, *, raw=False):
        layer = Fuse(method, raw_weights=raw, scope="cell/fnode0")
        inputs = [tf.fill([1, 1, 1, 3], value) for value in (2.0, 10.0)]
        layer(inputs)
        for variable, value in zip(layer.weights, weights):
            variable.assign(tf.fill(variable.shape, value))
        return layer(inputs).numpy().ravel()

    @pytest.mark.parametrize(
        ("method", "weights", "expected"),
        [
            ("fastattn", [3.0, 1.0], (3.0 * 2.0 + 1.0 * 10.0) / (4.0 + 1e-4)),
            ("channel_fastattn", [3.0, 1.0], (3.0 * 2.0 + 1.0 * 10.0) / (4.0 + 1e-4)),
            ("fastattn", [1.0, -1.0], 2.0 / (1.0 + 1e-4)),  # negative ones count nothing
            ("fastattn", [-1.0, -1.0], 0.0),
            ("attn", [0.0, 1.0], (2.0 + np.e * 10.0) / (1.0 + np.e)),
            ("channel_attn", [0.0, 1.0], (2.0 + np.e * 10.0) / (1.0 + np.e)),
        ],
    )
    def test_fusion_by_hand(self, method, weights, expected):
        np.testing.assert_allclose(self.fuse(method, weights), [expected] * 3, rtol=1e-6)

    def test_raw_weights_and_sums(self):
        expected = (1.0 * 2.0 - 0.5 * 10.0) / (0.5 + 1e-4)
        np.testing.assert_allclose(self.fuse("fastattn", [1.0, -0.5], raw=True), expected)
        np.testing.assert_array_equal(self.fuse("sum", []), 12.0)

    def test_weights_stay_float32_in_half_precision(self):
        with precision.policy("mixed_float16"):
            layer = Fuse("fastattn", raw_weights=False, scope="cell/fnode0")
            output = layer([tf.ones([1, 1, 1, 1], tf.float16)] * 2)
        assert output.dtype == tf.float16
        assert {variable.dtype for variable in layer.weights} == {tf.float32}
        assert [v.name for v in layer.weights] == ["cell/fnode0/WSM:0", "cell/fnode0/WSM_1:0"]


def gradients_of(function, variables, *, jit_compile):
    """Returns the outputs and gradients of the summed squares of a training call."""

    def step():
        with tf.GradientTape() as tape, drop_connect_seed(tf.constant([3, 5])):
            outputs = tf.nest.flatten(function())
            loss = tf.add_n([tf.reduce_sum(tf.square(tf.cast(y, tf.float32))) for y in outputs])
        return outputs, tape.gradient(loss, variables)

    outputs, gradients = (tf.function(step, jit_compile=True) if jit_compile else step)()
    return [x.numpy() for x in outputs], [x.numpy() for x in gradients]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("part", ["neck", "heads"])
def test_neck_and_heads_compile_with_xla_and_agree(part, policy):
    config = tiny_config(max_level=6, head_survival_prob=0.5, box_class_repeats=2)
    norm = batch_norm_factory(None, momentum=0.99, epsilon=1e-3, frozen=False)
    sizes = [(9, 10), (5, 5), (3, 3), (2, 2)]
    tf.keras.utils.set_random_seed(1)
    with precision.policy(policy):
        inputs = [tf.keras.Input((*size, 8)) for size in sizes]
        if part == "neck":
            outputs = NeckBuilder(config, norm).cell(inputs, name="cell")
        else:
            outputs = build_heads(inputs, config, num_classes=2, batch_norm=norm)
        model = tf.keras.Model(inputs, outputs)
        maps = [tf.random.stateless_normal([4, *size, 8], [1, 2]) for size in sizes]
        plain, compiled = (
            gradients_of(
                lambda: model(maps, training=True), model.trainable_variables, jit_compile=jit
            )
            for jit in (False, True)
        )
    tolerance = 1e-4 if policy == "float32" else 2e-2
    for a, b in zip(compiled[0], plain[0]):
        assert a.dtype == (np.float32 if policy == "float32" else np.float16)
        np.testing.assert_allclose(a, b, atol=tolerance * (1 + np.abs(b).max()))
    for a, b in zip(compiled[1], plain[1]):
        # Biases before a batch normalisation have no true gradient, only rounding.
        np.testing.assert_allclose(a, b, atol=3 * tolerance * (10 + np.abs(b).max()))


@pytest.mark.slow
def test_train_step_of_the_whole_network_compiles(tiny_backbone):
    with precision.policy("mixed_float16"):
        config = tiny_config(survival_prob=0.8, max_level=5)
        model = build_model(config, num_classes=2, remat=True)
    images = tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    initial = model.get_weights()
    results = []
    for jit_compile in (False, True):
        model.set_weights(initial)
        results.append(
            gradients_of(
                lambda: model(images, training=True),
                model.trainable_variables,
                jit_compile=jit_compile,
            )
        )
    (plain, _), (compiled, gradients) = results
    for a, b in zip(compiled, plain):
        np.testing.assert_allclose(a, b, atol=5e-2 * (1 + np.abs(b).max()))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
