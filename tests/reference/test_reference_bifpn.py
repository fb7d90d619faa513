"""The nodes of the pyramid against their tables, and upsampling against nearest neighbour.

What a cell computes: `test_efficientdet_weights.py`, of effdet.
"""

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


def numpy_nearest(x, height, width):
    """The cell at the same share of the map, by the corners of cells, rounded down."""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


def test_raw_fusion_weights_may_be_negative():
    """Of weights that are all negative the signs cancel; a ReLU would leave none of the inputs."""
    config = dataclasses.replace(
        model_config("efficientdet-d0"), fpn_num_filters=6, raw_fusion_weights=True
    )
    norm = batch_norm_factory(None, momentum=0.99, epsilon=config.bn_epsilon, frozen=False)
    shapes = [(size, size, 6) for size in (16, 8, 4, 2, 1)]
    inputs = [tf.keras.Input(shape) for shape in shapes]
    model = tf.keras.Model(inputs, NeckBuilder(config, norm).cell(inputs, name="cell"))
    maps = [tf.random.stateless_normal([1, *shape], [3, shape[0]]) for shape in shapes]
    expected = model(maps)
    for variable in model.weights:
        if "WSM" in variable.name:
            variable.assign(-variable)
    for ours, reference in zip(model(maps), expected):
        np.testing.assert_allclose(ours, reference, atol=1e-3)


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
