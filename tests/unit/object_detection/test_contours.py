"""Outlines of masks and distances from them: hand-made shapes with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.draw import contours
from object_detection.draw.contours import mask_box, signed_distance


def outline(mask):
    """Returns the segments [n, 2, 2] from which distances are measured."""
    return contours._segments(contours._smoothed(mask))


def disc(size, centre, radius):
    y, x = np.mgrid[:size, :size] + 0.5
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def test_box_of_a_mask():
    mask = np.zeros((9, 12), bool)
    mask[3:6, 4:10] = True
    assert mask_box(mask) == (3.0, 4.0, 6.0, 10.0)
    assert mask_box(np.zeros((9, 12), bool)) == (0.0, 0.0, 0.0, 0.0)


def test_outline_of_a_rectangle_runs_along_its_sides():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 15:40] = True
    points = outline(mask).reshape(-1, 2)
    far_from_corners = (points[:, 0] > 14) & (points[:, 0] < 26)
    sides = np.unique(np.round(points[far_from_corners, 1], 3))
    assert np.allclose(sides, [15, 40], atol=0.05)
    assert points[:, 0].min() == pytest.approx(10, abs=0.05)
    assert points[:, 0].max() == pytest.approx(30, abs=0.05)


def test_outline_is_closed():
    """Each point ends two segments."""
    mask = disc(40, (20, 18), 11)
    mask[22, 30] = True  # touches the disc at most by a corner
    points = np.round(outline(mask).reshape(-1, 2), 6)
    _, counts = np.unique(points, axis=0, return_counts=True)
    assert (counts == 2).all()


def test_outline_smooths_stairs():
    """Along a disc the outline stays nearer to the circle than the corners of its pixels."""
    points = outline(disc(80, (40.3, 39.6), 25)).reshape(-1, 2)
    error = np.abs(np.hypot(points[:, 0] - 40.3, points[:, 1] - 39.6) - 25)
    assert len(points) > 200
    assert error.max() < 0.55
    assert error.mean() < 0.2


@pytest.mark.parametrize("zoom", [1.0, 3.0, 1.4])
def test_distance_to_a_disc(zoom):
    mask = disc(60, (30, 30), 20)
    side = round(60 * zoom)
    field = signed_distance(mask, height=side, width=side, reach=4.0)
    y = np.arange(field.rows.start, field.rows.stop)[:, None] + 0.5
    x = np.arange(field.columns.start, field.columns.stop) + 0.5
    expected = np.clip(20 * zoom - np.hypot(y - 30 * zoom, x - 30 * zoom), -4, 4)
    assert np.abs(field.distance - expected).max() < 0.6 * zoom
    assert field.distance.max() == pytest.approx(4.0)
    assert field.distance.min() == pytest.approx(-4.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_the_outline_separates_the_pixels_of_the_mask(seed, height, width):
    """What is one pixel wide keeps its place."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    field = signed_distance(mask, height=height, width=width, reach=3.0)
    if not mask.any():
        assert field is None
        return
    found = np.zeros((height, width), bool)
    found[field.rows, field.columns] = field.distance > 0
    assert np.array_equal(found, mask)


def test_distance_equals_that_to_all_segments():
    mask = disc(30, (14, 15), 8) | disc(30, (8, 24), 3)
    field = signed_distance(mask, height=30, width=30, reach=5.0)
    begin, end = outline(mask).transpose(1, 0, 2)
    y = np.arange(field.rows.start, field.rows.stop) + 0.5
    x = np.arange(field.columns.start, field.columns.stop) + 0.5
    pixels = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    along = end - begin
    share = np.clip(((pixels - begin) * along).sum(-1) / (along**2).sum(-1), 0, 1)
    gaps = np.linalg.norm(pixels - begin - share[..., None] * along, axis=-1).min(axis=-1)
    assert np.abs(np.abs(field.distance) - np.minimum(gaps, 5.0)).max() < 1e-4


def test_no_outline_along_the_border_of_the_image():
    mask = np.zeros((30, 40), bool)
    mask[:15, :20] = True
    field = signed_distance(mask, height=30, width=40, reach=4.0)
    assert field.distance[0, 0] == field.distance[7, 8] == pytest.approx(4.0)
    assert field.distance[14, 0] == pytest.approx(0.5, abs=0.05)
    # The outline leaves the image straight, without an end.
    assert field.distance[0, 19] == pytest.approx(field.distance[8, 19], abs=0.05)
