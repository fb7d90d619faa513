"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3): features of boxes of a pyramid, resampled.

Each output bin is the mean of some bilinear samples. A sample reads four cells of one level; all
levels lie in one flat array of positions, and each read is a gather of whole feature vectors with
int32 positions, so that the cost does not depend on the size of the maps.

Written with a gradient of its own, for three reasons: nothing of the samples is kept for the
backward pass, the scatter adds up in float32 also under mixed precision, and boxes get no gradient,
as in all implementations of the method.

Cost for R boxes, o x o bins, s x s samples a bin and C channels: 4 * R * (o * s)^2 * C values read
in the forward pass and added in the backward pass; one copy of the pyramid; float32 temporaries of
the result's size, and of the pyramid's in the backward pass. Measured on one CPU core, compiled,
for 128 boxes, o = 7, s = 2, C = 256 on a pyramid of 256 x 256 pixels: 6 ms forward, 45 ms backward.
The separable form, which gathers the cells of all samples and multiplies by the weights of rows and
columns, writes those cells to memory first and took 240 ms forward.

The trap: continuous pixel coordinate y is at position y / stride - 1/2 of a feature map, for cell i
stands for [i, i + 1) and its value for the middle. Older implementations leave out the half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from object_detection.boxes.box_ops import box_areas, split_corners

# FPN (arXiv 1612.03144, eq. 1): a box of 224 x 224 pixels, ImageNet's size, belongs to level 4.
_CANONICAL_SIZE = 224.0
_CANONICAL_LEVEL = 4


class Convention(NamedTuple):
    """How a box lies on a feature map.

    Attributes:
      shift: taken off box / stride, cells.
      min_size: least height and width of a box on the map, cells.
      is_zero_outside: whether samples more than a cell outside the map are 0; otherwise they are
        those of the border.
      is_at_corners: one sample for each bin, the first and the last at the corners of the box; the
        middles of the map's border cells are the first and last pixel of the image.
      rounds_level: levels are rounded, not rounded down.
    """

    shift: float
    min_size: float
    is_zero_outside: bool
    is_at_corners: bool = False
    rounds_level: bool = False


CONVENTIONS = {
    # Right: half a cell off.
    "aligned": Convention(shift=0.5, min_size=0.0, is_zero_outside=True),
    # Detectron, torchvision's default and the NVIDIA PyTorch reference.
    "legacy": Convention(shift=0.0, min_size=1.0, is_zero_outside=True),
    # The NVIDIA TF2 reference's crop of features; it takes one sample per bin.
    "crop": Convention(shift=0.0, min_size=0.0, is_zero_outside=False),
    # matterport's: tf.image.crop_and_resize of boxes in units of the image less one pixel.
    "corners": Convention(0.0, 0.0, is_zero_outside=False, is_at_corners=True, rounds_level=True),
}


class _Axis(NamedTuple):
    """What places samples along one axis; each float32 [B, R, 1], lengths in cells."""

    start: tf.Tensor
    bin_size: tf.Tensor
    length: tf.Tensor  # of the map
    num_samples: tf.Tensor  # of a bin


def roi_align(
    features: Mapping[int, tf.Tensor],
    boxes: tf.Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
    convention: str = "aligned",
    pixel_offset: float = 0.0,
) -> tf.Tensor:
    """Resamples the features under each box to a fixed size.

    Args:
      features: level -> [B, h, w, C], any float dtype, the same B and C; the stride of a level is
        2^level. One level takes all boxes; of several each box takes that of `assign_levels`.
      boxes: [B, R, 4], (y1, x1, y2, x2), network pixels, within the image. Zero boxes of padding
        give finite features without meaning.
      output_size: o, bins along each side.
      sampling_ratio: s, samples of a bin along each side; 0 takes ceil(size of the bin in cells),
        as the C4 configurations of Detectron do, at a cost of that for a box as large as the map.
      convention: one of `CONVENTIONS`.
      pixel_offset: see `assign_levels`.

    Returns:
      [B, R, o, o, C] of the features' dtype.

    Raises:
      ValueError: if the convention is unknown, or cannot have so many samples; or levels are
        missing.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"unknown RoIAlign convention {convention!r}, expected one of {sorted(CONVENTIONS)}"
        )
    levels = sorted(features)
    if not levels or levels[-1] - levels[0] + 1 != len(levels):
        raise ValueError(f"expected features of one level or of levels in a row, got {levels}")
    rule = CONVENTIONS[convention]
    if rule.is_at_corners and (sampling_ratio != 1 or output_size < 2):
        raise ValueError(
            f"RoIAlign convention {convention!r} has one sample in each of several bins: set "
            f"roi_sampling_ratio=1, not {sampling_ratio}"
        )
    boxes = tf.stop_gradient(boxes)
    level_of_box = assign_levels(
        boxes,
        min_level=levels[0],
        max_level=levels[-1],
        pixel_offset=pixel_offset,
        rounds=rule.rounds_level,
    )
    shapes = [tuple(features[level].shape[1:3]) for level in levels]
    # Samples of a bin along y and x that the largest box inside the image can ask for.
    limits = [sampling_ratio or -(-max(sides) // output_size) for sides in zip(*shapes)]
    rows, columns, bases, widths = _place_boxes(
        boxes,
        level_of_box,
        levels=levels,
        shapes=shapes,
        output_size=output_size,
        max_samples=limits,
        is_adaptive=sampling_ratio == 0,
        rule=rule,
    )

    def corners_of_sample(index: tf.Tensor | int) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Positions int32 and weights of the four cells of a sample: each [B, R, o, o]."""
        along_y = _cells(rows, index // limits[1], output_size, rule)
        along_x = _cells(columns, index % limits[1], output_size, rule)
        return [
            (
                bases + y[..., tf.newaxis] * widths + x[..., tf.newaxis, :],
                weight_y[..., tf.newaxis] * weight_x[..., tf.newaxis, :],
            )
            for y, weight_y in along_y
            for x, weight_x in along_x
        ]

    channels = features[levels[0]].shape[-1]
    maps = [
        tf.reshape(features[level], [-1, height * width, channels])
        for level, (height, width) in zip(levels, shapes)
    ]
    shape = tf.concat([tf.shape(boxes)[:2], [output_size, output_size, channels]], axis=0)
    result = _resample(
        tf.reshape(tf.concat(maps, axis=1), [-1, channels]),
        corners_of_sample,
        num_samples=limits[0] * limits[1],
        shape=shape,
    )
    result.set_shape([*boxes.shape[:2], output_size, output_size, channels])
    return result


def assign_levels(
    boxes: tf.Tensor,
    *,
    min_level: int,
    max_level: int,
    pixel_offset: float = 0.0,
    rounds: bool = False,
) -> tf.Tensor:
    """Assigns boxes to pyramid levels by area: `floor(k0 + log2(sqrt(area) / 224))`, clamped.

    Compared with the areas at which the level changes, so that there is no logarithm to be rounded
    the wrong way or to be taken of zero (FPN, arXiv 1612.03144, eq. 1).

    Args:
      boxes: [..., 4], (y1, x1, y2, x2), network pixels.
      min_level: finest level.
      max_level: coarsest level.
      pixel_offset: added to height and width; 1.0 is the NVIDIA PyTorch reference's convention.
      rounds: round to the nearest level in place of the floor.

    Returns:
      [...] int32, min_level .. max_level.
    """
    areas = box_areas(boxes, pixel_offset=pixel_offset)
    levels = tf.fill(tf.shape(areas), min_level)
    for level in range(min_level + 1, max_level + 1):
        least = (_CANONICAL_SIZE * 2.0 ** (level - _CANONICAL_LEVEL - rounds / 2)) ** 2
        levels += tf.cast(areas >= least, tf.int32)
    return levels


def _place_boxes(
    boxes: tf.Tensor,
    level_of_box: tf.Tensor,
    *,
    levels: list[int],
    shapes: list[tuple[int, int]],
    output_size: int,
    max_samples: Sequence[int],
    is_adaptive: bool,
    rule: Convention,
) -> tuple[_Axis, _Axis, tf.Tensor, tf.Tensor]:
    """Maps boxes onto their levels.

    Returns:
      Placement along y and along x, the flat position of each box's map [B, R, 1, 1] int32, and
      the map's width, the same.
    """
    slots = level_of_box - levels[0]
    heights, widths = (tf.gather(tf.constant(side), slots) for side in zip(*shapes))
    sizes = [height * width for height, width in shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    images = tf.range(tf.shape(boxes)[0])[:, tf.newaxis]
    bases = images * sum(sizes) + tf.gather(tf.constant(starts), slots)
    cells_per_pixel = tf.gather(tf.constant([2.0**-level for level in levels]), slots)
    y1, x1, y2, x2 = (corner * cells_per_pixel for corner in split_corners(boxes))

    def axis(low: tf.Tensor, high: tf.Tensor, length: tf.Tensor, most: int) -> _Axis:
        if rule.is_at_corners:
            pixel = cells_per_pixel
            cells = tf.cast(length, tf.float32)
            ratio = (cells - 1.0) / (cells - pixel)  # of the map, and of the image in cells
            low, high = low * ratio, (high - pixel) * ratio
        bin_size = tf.maximum(high - low, rule.min_size) / (output_size - rule.is_at_corners)
        counts = tf.fill(tf.shape(low), float(most))
        if is_adaptive:
            counts = tf.minimum(tf.maximum(tf.math.ceil(bin_size), 1.0), counts)
        columns = (low - rule.shift, bin_size, tf.cast(length, tf.float32), counts)
        return _Axis(*(values[..., tf.newaxis] for values in columns))

    rows = axis(y1, y2, heights, max_samples[0])
    columns = axis(x1, x2, widths, max_samples[1])
    expand = (..., tf.newaxis, tf.newaxis)
    return rows, columns, bases[expand], widths[expand]


def _cells(
    axis: _Axis, sample: tf.Tensor | int, output_size: int, rule: Convention
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Places one sample of each bin along one axis.

    Returns:
      The two cells that it lies between, each (index int32 [B, R, o], weight [B, R, o]). Weights
      hold the mean over the bin's samples; they are 0 for samples that do not count.
    """
    sample = tf.cast(sample, tf.float32)
    offsets = tf.range(output_size, dtype=tf.float32)
    if not rule.is_at_corners:
        offsets += (sample + 0.5) / axis.num_samples
    positions = axis.start + offsets * axis.bin_size
    counts = tf.broadcast_to(sample < axis.num_samples, tf.shape(positions))
    if rule.is_zero_outside:
        counts &= (positions >= -1.0) & (positions <= axis.length)
    last = axis.length - 1.0
    positions = tf.minimum(tf.maximum(positions, 0.0), last)
    low = tf.floor(positions)
    share = positions - low
    weight = tf.where(counts, 1.0 / axis.num_samples, 0.0)
    # Clamped as integers too: a box that is not a number must not read outside the array.
    bound = tf.cast(last, tf.int32)
    cells = (tf.minimum(tf.maximum(tf.cast(low + step, tf.int32), 0), bound) for step in (0.0, 1.0))
    return list(zip(cells, ((1.0 - share) * weight, share * weight)))


def _resample(
    flat: tf.Tensor,
    corners_of_sample: Callable,
    *,
    num_samples: int,
    shape: tf.Tensor,
) -> tf.Tensor:
    """Sums weighted cells.

    Args:
      flat: [positions, C].
      corners_of_sample: sample number -> four pairs of positions and weights.
      num_samples: of a bin.
      shape: of the result, [B, R, o, o, C].
    """

    @tf.custom_gradient
    def resample(flat: tf.Tensor):
        def add_sample(index: tf.Tensor | int, total: tf.Tensor) -> tf.Tensor:
            for positions, weights in corners_of_sample(index):
                with tf.control_dependencies([total]):  # one corner's cells in memory at a time
                    cells = tf.cast(tf.gather(flat, positions), tf.float32)
                    total += cells * weights[..., tf.newaxis]
            return total

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            upstream = tf.cast(upstream, tf.float32)

            def scatter_sample(index: tf.Tensor | int, total: tf.Tensor) -> tf.Tensor:
                for positions, weights in corners_of_sample(index):
                    with tf.control_dependencies([total]):
                        total = tf.tensor_scatter_nd_add(
                            total, positions[..., tf.newaxis], upstream * weights[..., tf.newaxis]
                        )
                return total

            zeros = tf.zeros(tf.shape(flat), tf.float32)
            return tf.cast(_repeat(scatter_sample, zeros, num_samples), flat.dtype)

        total = _repeat(add_sample, tf.zeros(shape, tf.float32), num_samples)
        return tf.cast(total, flat.dtype), gradient

    return resample(flat)


def _repeat(body: Callable, total: tf.Tensor, count: int) -> tf.Tensor:
    """Applies `body(index, total)` for each index below `count`.

    A counted loop: written out, four samples are as fast but take three times as long to compile.
    """
    if count == 1:
        return body(0, total)
    _, total = tf.while_loop(
        lambda index, _: index < count,
        lambda index, total: (index + 1, body(index, total)),
        (tf.constant(0), total),
        parallel_iterations=1,
    )
    return total
