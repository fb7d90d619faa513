"""Anchors of a configuration: the published table, order, number, places."""

import dataclasses

import numpy as np
import pytest

from maskrcnn.config import model_config
from maskrcnn.network.anchors import model_anchors

FPN = model_config("maskrcnn-r50-fpn")
# Corners (x1, y1, x2, y2) of the first cell, heights 1/2, 1 and 2 times the widths: the table of
# the PyTorch reference, whose far corners are the last pixel.
DETECTRON = {
    4: [(-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)],
    8: [(-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)],
    16: [(-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)],
    32: [(-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)],
    64: [(-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)],
}


def first_cells(config):
    """Returns stride -> anchors of the first cell as (x1, y1, x2, y2)."""
    anchors = model_anchors(config, (128, 128))
    cells, start = {}, 0
    for stride in config.anchor_strides:
        cells[stride] = anchors[start : start + 3][:, [1, 0, 3, 2]]
        start += 3 * (-(-128 // stride)) ** 2
    assert start == len(anchors)
    return cells


def test_detectron_anchors_are_those_of_the_table():
    config = dataclasses.replace(FPN, anchor_convention="detectron")
    for stride, found in first_cells(config).items():
        np.testing.assert_array_equal(found, DETECTRON[stride])


def test_our_anchors_have_the_tf2_references_sizes_and_number():
    assert len(model_anchors(FPN, (832, 1344))) == 279_279
    cells = first_cells(FPN)
    centre = (cells[4][:, :2] + cells[4][:, 2:]) / 2
    np.testing.assert_allclose(centre, 2.0)
    sides = cells[4][:, 2:] - cells[4][:, :2]
    np.testing.assert_allclose(sides, [(44.8, 22.4), (32, 32), (22.4, 44.8)], rtol=1e-6)


def test_torchvision_anchors_are_centred_at_the_cells_corners():
    config = dataclasses.replace(FPN, anchor_convention="torchvision")
    np.testing.assert_allclose(first_cells(config)[4], [(-23, -11, 23, 11), (-16, -16, 16, 16),
                                                        (-11, -23, 11, 23)])  # fmt: skip


def test_torchvision_divides_the_inputs_side_by_the_maps():
    # 928 pixels, P6: 15 cells of 928 // 15 = 61 pixels; 1344 has 21 of 64.
    config = dataclasses.replace(FPN, anchor_convention="torchvision")
    last = model_anchors(config, (928, 1344))[-1]
    np.testing.assert_array_equal((last[:2] + last[2:]) / 2, [14 * 61, 20 * 64])


def test_detectron2s_anchors_are_of_one_area_around_the_cells_corners():
    config = dataclasses.replace(FPN, anchor_convention="detectron2")
    root = 2**0.5
    expected = [(-16 * root, -8 * root), (-16, -16), (-8 * root, -16 * root)]
    np.testing.assert_allclose(first_cells(config)[4][:, :2], expected, rtol=1e-6)
    np.testing.assert_allclose(first_cells(config)[4][:, 2:], -np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("convention", ["continuous", "detectron", "torchvision"])
def test_one_map_carries_all_sizes_sizes_outermost(convention):
    config = dataclasses.replace(model_config("maskrcnn-r50-c4"), anchor_convention=convention)
    anchors = model_anchors(config, (64, 96))
    assert len(anchors) == 4 * 6 * 15
    areas = np.prod(anchors[:15, 2:] - anchors[:15, :2], axis=1)
    assert (np.diff(areas.reshape(5, 3).mean(axis=1)) > 0).all()


def test_maps_of_sides_that_do_not_divide_are_rounded_up():
    assert len(model_anchors(FPN, (96, 96))) == 3 * (24**2 + 12**2 + 6**2 + 3**2 + 2**2)
