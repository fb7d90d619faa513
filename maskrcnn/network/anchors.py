"""The anchors of a configuration, for each size of network input."""

from __future__ import annotations

import numpy as np

from maskrcnn.config import ModelConfig, with_our_conventions
from object_detection.boxes.anchors import (
    anchor_shapes,
    detectron_anchor_shapes,
    generate_grid_anchors,
    torchvision_anchor_shapes,
)


def model_anchors(config: ModelConfig, network_size: tuple[int, int]) -> np.ndarray:
    """Lays the anchors of all levels; sizes and then aspects run at one position.

    Args:
      config: of the network; its convention says how anchors are rounded and placed.
      network_size: (height, width) of the input, pixels.

    Returns:
      [A, 4] float32, (y1, x1, y2, x2), network pixels, in the order of the RPN's outputs.
      torchvision's cells are the input's side over the map's, rounded down: less than the stride
      where a side is no multiple of it.
    """
    config = with_our_conventions(config)
    strides = config.anchor_strides
    sizes = [(size,) for size in config.anchor_sizes]
    if config.body != "fpn":
        sizes = [config.anchor_sizes]
    is_detectron = config.anchor_convention == "detectron"
    is_torchvision = config.anchor_convention == "torchvision"
    map_sizes = [tuple(-(-side // stride) for side in network_size) for stride in strides]
    return generate_grid_anchors(
        map_sizes,
        strides=[
            tuple(side // cells for side, cells in zip(network_size, size))
            if is_torchvision
            else (stride, stride)
            for stride, size in zip(strides, map_sizes)
        ],
        shapes=[
            np.concatenate([_shapes(config, stride, size) for size in of_level])
            for stride, of_level in zip(strides, sizes)
        ],
        center=0.0 if config.anchor_convention in ("detectron2", "torchvision") else 0.5,
        pixel_offset=1.0 if is_detectron else 0.0,
    )


def _shapes(config: ModelConfig, stride: int, size: float) -> np.ndarray:
    """Returns [aspects, 2] (height, width) of the anchors of one size."""
    ratios = [height / width for width, height in config.aspect_ratios]
    if config.anchor_convention == "detectron":
        return detectron_anchor_shapes(stride, size=size, ratios=ratios)
    if config.anchor_convention == "torchvision":
        return torchvision_anchor_shapes(size=size, ratios=ratios)
    if config.anchor_convention == "detectron2":
        return anchor_shapes(size, aspect_ratios=[(ratio**-0.5, ratio**0.5) for ratio in ratios])
    return anchor_shapes(size, aspect_ratios=config.aspect_ratios)
