"""The pyramid against its node table and against a cell computed with NumPy."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import model_config
from efficientdet.network.layers import batch_norm_factory
from efficientdet.network.neck import NeckBuilder, UpsampleTo, cell_nodes

# (level, inputs) of nodes 5..12; 0..4 are the inputs P3..P7.
D0_NODES = [
    (6, (3, 4)),
    (5, (2, 5)),
    (4, (1, 6)),
    (3, (0, 7)),
    (4, (1, 7, 8)),
    (5, (2, 6, 9)),
    (6, (3, 5, 10)),
    (7, (4, 11)),
]
# The same rule for P3..P8: nodes 6..15; 0..5 are the inputs.
D7X_NODES = [
    (7, (4, 5)),
    (6, (3, 6)),
    (5, (2, 7)),
    (4, (1, 8)),
    (3, (0, 9)),
    (4, (1, 9, 10)),
    (5, (2, 8, 11)),
    (6, (3, 7, 12)),
    (7, (4, 6, 13)),
    (8, (5, 14)),
]


def plain(nodes):
    return [(node.level, node.inputs) for node in nodes]


def test_nodes_of_p3_to_p7():
    assert plain(cell_nodes(model_config("efficientdet-d0"))) == D0_NODES


def test_nodes_of_p3_to_p8():
    nodes = cell_nodes(model_config("efficientdet-d7x"))
    assert plain(nodes) == D7X_NODES
    assert {node.weight_method for node in nodes} == {"sum"}


def test_quad_pyramid_paths():
    config = model_config("efficientdet-d0")
    nodes = cell_nodes(dataclasses.replace(config, fpn_name="qufpn", fpn_weight_method="sum"))
    assert plain(nodes[:8]) == D0_NODES  # paths 1 and 2 are those of BiFPN
    bottom_up, top_down, quad = nodes[8:12], nodes[12:16], nodes[16:]
    assert plain(bottom_up) == [(4, (1, 0)), (5, (2, 13)), (6, (3, 14)), (7, (4, 15))]
    assert plain(top_down) == [(6, (3, 15, 16)), (5, (2, 14, 17)), (4, (1, 13, 18)), (3, (0, 19))]
    ends = [(7, (12, 16)), (6, (11, 17)), (5, (10, 18)), (4, (9, 19)), (3, (8, 20))]
    assert plain(quad) == ends
    assert [node.weight_method for node in nodes] == ["sum"] * 16 + ["fastattn"] * 5


def numpy_pool(x):
    """3x3 maximum with stride 2, padded as TensorFlow's SAME."""
    batch, height, width, channels = x.shape
    out_h, out_w = -(-height // 2), -(-width // 2)
    pad_h, pad_w = max(0, 2 * out_h + 1 - height), max(0, 2 * out_w + 1 - width)
    padding = [(0, 0), (pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0)]
    padded = np.pad(x, padding, constant_values=-np.inf)
    result = np.empty([batch, out_h, out_w, channels], x.dtype)
    for row in range(out_h):
        for column in range(out_w):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            result[:, row, column] = window.max(axis=(1, 2))
    return result


def numpy_nearest(x, height, width):
    """The cell at the same share of the map, by the corners of cells, rounded down."""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


def numpy_resample(x, height, width):
    if x.shape[1] > height:
        return numpy_pool(x)
    return numpy_nearest(x, height, width)


def numpy_depthwise(x, kernel):
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    result = np.zeros_like(x)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            result += shifted * kernel[row, column, :, 0]
    return result


def numpy_cell(maps, weights, config):
    """One cell in inference mode; weights by name."""

    def norm(x, prefix):
        gamma, beta, mean, variance = (
            weights[f"{prefix}/bn/{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + config.bn_epsilon) * gamma + beta

    maps = list(maps)
    sizes = [x.shape[1:3] for x in maps]
    last = {}
    for index, (level, inputs) in enumerate(D0_NODES):
        scope = f"cell/fnode{index}"
        edges = [weights[f"{scope}/WSM" + (f"_{i}" if i else "")] for i in range(len(inputs))]
        edges = edges if config.raw_fusion_weights else [max(0.0, edge) for edge in edges]
        fused = 0.0
        for position, source in enumerate(inputs):
            x = maps[source]
            resample = f"{scope}/resample_{position}_{source}_{5 + index}"
            if x.shape[-1] != config.fpn_num_filters:
                kernel = weights[f"{resample}/conv2d/kernel"][0, 0]
                x = norm(x @ kernel + weights[f"{resample}/conv2d/bias"], resample)
            fused += edges[position] / (sum(edges) + 1e-4) * numpy_resample(x, *sizes[level - 3])
        after = f"{scope}/op_after_combine{5 + index}"
        x = fused / (1.0 + np.exp(-fused))
        x = numpy_depthwise(x, weights[f"{after}/conv/depthwise_kernel"])
        x = x @ weights[f"{after}/conv/pointwise_kernel"][0, 0] + weights[f"{after}/conv/bias"]
        x = norm(x, after)
        maps.append(x)
        last[level] = x
    return [last[level] for level in range(3, 8)]


@pytest.mark.parametrize("raw_fusion_weights", [False, True])
def test_cell_equals_numpy(raw_fusion_weights):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        model_config("efficientdet-d0"), fpn_num_filters=6, raw_fusion_weights=raw_fusion_weights
    )
    norm = batch_norm_factory(None, momentum=0.99, epsilon=config.bn_epsilon, frozen=False)
    # The sizes of a 160x320 image; the odd ones upsample to 2n - 1. Two maps need a projection.
    shapes = [(20, 40, 6), (10, 20, 8), (5, 10, 10), (3, 5, 6), (2, 3, 6)]
    inputs = [tf.keras.Input(shape) for shape in shapes]
    outputs = NeckBuilder(config, norm).cell(inputs, name="cell")
    model = tf.keras.Model(inputs, outputs)
    for variable in model.weights:
        value = rng.normal(0.0, 0.5, variable.shape)
        if "moving_variance" in variable.name:
            value = rng.uniform(0.5, 2.0, variable.shape)
        elif "WSM" in variable.name:
            # Large enough that no sum of raw weights comes near zero.
            value = -0.2 if variable.name.endswith("WSM_1:0") else 1.5
        variable.assign(value)
    weights = {v.name.removesuffix(":0"): v.numpy().astype(np.float64) for v in model.weights}
    maps = [rng.normal(size=(2, *shape)) for shape in shapes]
    expected = numpy_cell(maps, weights, config)
    actual = model([tf.constant(x, tf.float32) for x in maps], training=False)
    for ours, reference in zip(actual, expected):
        np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("odd", [False, True])
def test_upsampling_is_the_nearest_neighbour_of_google_automl(size, odd):
    target = 2 * size - odd
    x = tf.random.stateless_normal([2, size, 3, 2], [size, 0])
    expected = tf.compat.v1.image.resize_nearest_neighbor(x, [target, 6]).numpy()
    np.testing.assert_array_equal(UpsampleTo(target, 6)(x).numpy(), expected)
    np.testing.assert_array_equal(numpy_nearest(x.numpy(), target, 6), expected)


def test_an_odd_map_repeats_all_cells_but_the_last():
    x = tf.reshape(tf.range(9.0), [1, 3, 3, 1])  # P7 of Lite0, whose P6 has 5 x 5 cells
    rows = UpsampleTo(5, 5)(x).numpy()[0, :, :, 0]
    of_row = np.array([0.0, 0.0, 1.0, 1.0, 2.0])
    np.testing.assert_array_equal(rows, of_row + 3.0 * of_row[:, np.newaxis])


def test_upsampling_refuses_other_factors():
    with pytest.raises(ValueError, match="cannot upsample 3 cells to 7; expected 5 or 6"):
        UpsampleTo(7, 7)(tf.zeros([1, 3, 3, 1]))
