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
    """Computes the map sizes of levels min_level .. max_level, (height, width) each.

    Level 0 is the image, each next one ceil(n / 2).

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
    strides = [np.divide(image_size, size) for size in sizes]
    octaves = [anchor_scale * 2.0 ** (octave / num_scales) for octave in range(num_scales)]
    in_strides = np.concatenate(
        [anchor_shapes(size, aspect_ratios=aspect_ratios) for size in octaves]
    )
    return generate_grid_anchors(
        sizes, strides=strides, shapes=[in_strides * stride for stride in strides]
    )


def anchor_shapes(size: float, *, aspect_ratios: Sequence[tuple[float, float]]) -> np.ndarray:
    """Scales (width factor, height factor) pairs to one size: [n, 2] float64 (height, width)."""
    return np.array([(size * height, size * width) for width, height in aspect_ratios], np.float64)


def detectron_anchor_shapes(stride: int, *, size: float, ratios: Sequence[float]) -> np.ndarray:
    """Makes the anchor shapes of Detectron, rounded to whole pixels before they are scaled.

    A cell of `stride` by `stride` pixels is brought to ratio `r` by
    `width = round(sqrt(stride^2 / r))`, `height = round(width * r)`, halves to even, and scaled by
    `size / stride`.

    Args:
      stride: of the level, pixels.
      size: root of the area, pixels.
      ratios: height over width.

    Returns:
      [len(ratios), 2] float64, (height, width), pixels.
    """
    widths = np.round(np.sqrt(stride * stride / np.asarray(ratios, np.float64)))
    heights = np.round(widths * ratios)
    return np.stack([heights, widths], axis=-1) * size / stride


def torchvision_anchor_shapes(*, size: float, ratios: Sequence[float]) -> np.ndarray:
    """Makes the anchor shapes of torchvision: half sides rounded to whole pixels.

    Args:
      size: root of the area, pixels.
      ratios: height over width.

    Returns:
      [len(ratios), 2] float64, (height, width), pixels.
    """
    roots = np.sqrt(np.asarray(ratios, np.float64))
    return 2.0 * np.round(np.stack([roots * size, size / roots], axis=-1) / 2.0)


def generate_grid_anchors(
    map_sizes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int | tuple[int, int] | np.ndarray],
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
        cells = np.stack(np.indices(map_size), axis=-1)[:, :, np.newaxis]
        centers = (cells + center) * stride
        anchors = np.concatenate([centers - level_shapes / 2, centers + level_shapes / 2], axis=-1)
        levels.append(anchors.reshape(-1, 4))
    return (np.concatenate(levels) - [0.0, 0.0, pixel_offset, pixel_offset]).astype(np.float32)
