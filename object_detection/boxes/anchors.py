"""Anchor boxes of a feature pyramid, as NumPy constants.

One position of one level carries `num_scales * len(aspect_ratios)` anchors, octave outermost. The
order of all anchors is level, row, column, anchor: that of the heads' output channels once each
level is reshaped to [positions * anchors, ...] and the levels are put behind one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def level_sizes(
    image_size: tuple[int, int], *, min_level: int, max_level: int
) -> list[tuple[int, int]]:
    """Computes the map size of each pyramid level: level 0 is the image, each next one ceil(n / 2).

    Args:
      image_size: (height, width), pixels.
      min_level: first level returned.
      max_level: last level returned.

    Returns:
      (height, width) of levels min_level .. max_level.

    Raises:
      ValueError: if the sizes or levels make no pyramid.
    """
    height, width = (int(side) for side in image_size)
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be (height, width) of at least 1, got {image_size}")
    if not 0 <= min_level <= max_level:
        raise ValueError(
            f"expected 0 <= min_level <= max_level, got min_level={min_level}, "
            f"max_level={max_level}"
        )
    sizes = [(height, width)]
    for _ in range(max_level):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes[min_level:]


def generate_anchors(
    image_size: tuple[int, int],
    *,
    min_level: int,
    max_level: int,
    num_scales: int,
    aspect_ratios: Sequence[tuple[float, float]],
    anchor_scale: float,
) -> np.ndarray:
    """Lays anchors over an image (google/automl convention; EfficientDet, section 5).

    The stride of a level is image size over map size, per axis. Octave `o` and aspect `(aw, ah)`
    give a box of `anchor_scale * stride * 2^(o / num_scales)` times `aw` wide and `ah` high,
    centred at `(i + 1/2) * stride`. Anchors reach over the border and are not clipped.

    Args:
      image_size: (height, width) of the network's input, pixels.
      min_level: finest level, 3 for a stride of 8.
      max_level: coarsest level.
      num_scales: octave steps per level.
      aspect_ratios: (width factor, height factor) pairs.
      anchor_scale: side of the square anchor of octave 0 in strides.

    Returns:
      [A, 4] float32, (y1, x1, y2, x2), input pixels.
    """
    sizes = level_sizes(image_size, min_level=min_level, max_level=max_level)
    shapes = np.array(
        [
            (
                height_factor * 2.0 ** (octave / num_scales),
                width_factor * 2.0 ** (octave / num_scales),
            )
            for octave in range(num_scales)
            for width_factor, height_factor in aspect_ratios
        ],
        dtype=np.float64,
    )
    levels = [_level_anchors(image_size, size, anchor_scale * shapes) for size in sizes]
    return np.concatenate(levels).astype(np.float32)


def _level_anchors(
    image_size: tuple[int, int], map_size: tuple[int, int], shapes: np.ndarray
) -> np.ndarray:
    """Lays anchors of the given (height, width) in strides over one level: [h * w * n, 4]."""
    strides = np.asarray(image_size, np.float64) / np.asarray(map_size, np.float64)
    centers_y = (np.arange(map_size[0]) + 0.5) * strides[0]
    centers_x = (np.arange(map_size[1]) + 0.5) * strides[1]
    grid = np.stack(np.meshgrid(centers_y, centers_x, indexing="ij"), axis=-1)
    half_sizes = shapes * strides / 2.0
    low = grid[:, :, np.newaxis, :] - half_sizes
    high = grid[:, :, np.newaxis, :] + half_sizes
    return np.concatenate([low, high], axis=-1).reshape(-1, 4)


def anchor_shapes(size: float, *, aspect_ratios: Sequence[tuple[float, float]]) -> np.ndarray:
    """Scales aspects to one anchor size.

    Args:
      size: side of the square anchor, pixels.
      aspect_ratios: (width factor, height factor) pairs.

    Returns:
      [n, 2] float64, (height, width), pixels.
    """
    return np.array([(size * height, size * width) for width, height in aspect_ratios], np.float64)


def detectron_anchor_shapes(
    stride: int, *, sizes: Sequence[float], ratios: Sequence[float]
) -> np.ndarray:
    """Makes the anchor shapes of Detectron, rounded to whole pixels before they are scaled.

    A cell of `stride` by `stride` pixels is brought to ratio `r` by
    `width = round(sqrt(stride^2 / r))`, `height = round(width * r)`, halves to even, and scaled by
    `size / stride`.

    Args:
      stride: of the level, pixels.
      sizes: of the level, pixels.
      ratios: height over width.

    Returns:
      [len(ratios) * len(sizes), 2] float64, (height, width), pixels; sizes innermost.
    """
    shapes = []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        shapes += [(height * size / stride, width * size / stride) for size in sizes]
    return np.array(shapes, np.float64)


def torchvision_anchor_shapes(*, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Makes the anchor shapes of torchvision: half sides rounded to whole pixels.

    Args:
      sizes: root of the area, pixels.
      ratios: height over width.

    Returns:
      [len(ratios) * len(sizes), 2] float64, (height, width), pixels; sizes innermost.
    """
    roots = np.sqrt(np.asarray(ratios, np.float64))[:, np.newaxis]
    sides = np.stack([roots * np.asarray(sizes), np.asarray(sizes) / roots], axis=-1)
    return 2.0 * np.round(sides.reshape(-1, 2) / 2.0)


def generate_grid_anchors(
    map_sizes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int | tuple[int, int]],
    shapes: Sequence[np.ndarray],
    center: float = 0.5,
    pixel_offset: float = 0.0,
) -> np.ndarray:
    """Lays anchors of given shapes over maps of given strides (Faster R-CNN, section 3.1.1).

    Unlike `generate_anchors` the stride is exact where a map is larger than the image over the
    stride. Anchors are centred at `(i + center) * stride`.

    Args:
      map_sizes: (height, width) of each level, finest first.
      strides: pixels per cell of each level; (height, width) of a cell where they differ.
      shapes: [n, 2] (height, width) of each level's anchors, pixels.
      center: place of the anchors within their cell; 0.0 is torchvision's.
      pixel_offset: taken off the far corners; 1.0 gives Detectron's boxes, whose far corner is the
        last pixel that they contain.

    Returns:
      [A, 4] float32, (y1, x1, y2, x2), input pixels; the order is level, row, column, shape.

    Raises:
      ValueError: if the levels of the arguments differ in number.
    """
    if not len(map_sizes) == len(strides) == len(shapes):
        raise ValueError(
            "expected as many strides and shapes as maps, got "
            f"{len(map_sizes)} maps, {len(strides)} strides, {len(shapes)} shapes"
        )
    levels = []
    for map_size, stride, level_shapes in zip(map_sizes, strides, shapes):
        anchors = _level_anchors(
            np.multiply(stride, map_size), map_size, np.divide(level_shapes, stride)
        )
        levels.append(anchors + (center - 0.5) * np.resize(stride, 4))
    return (np.concatenate(levels) - [0.0, 0.0, pixel_offset, pixel_offset]).astype(np.float32)
