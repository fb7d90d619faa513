"""Draws batches of the input pipeline as the network sees them, with their boxes or masks."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from object_detection.augment.scenes import DeviceAugmentation, make_scenes
from object_detection.draw.draw_masks import draw_masks
from object_detection.draw.visualize import Names, draw_boxes
from object_detection.input import geometry as geometry_lib
from object_detection.input.geometry import Frames
from object_detection.input.preprocess import to_network_input
from object_detection.masks.mask_ops import unpack_masks
from object_detection.masks.mask_paste import paste_mask


def draw_batch(
    batch: Mapping[str, tf.Tensor],
    names: Names,
    frames: Frames,
    *,
    augmentation: DeviceAugmentation = DeviceAugmentation(),  # noqa: B008  an immutable tuple
    seed: int = 0,
) -> list[np.ndarray]:
    """Runs the device's part; draws masks, boxes where there are none, crowds striped or dashed.

    Args:
      batch: fields of a `HostExample`, batched.
      names: class_id -> name.
      frames: of the batch.
      augmentation, seed: what the device changes.

    Returns:
      uint8 [height, width, 3] of each example.
    """
    height, width = frames.network_size
    seeds = tf.constant([seed, 0])
    network_input = functools.partial(
        to_network_input,
        batch["image"],
        batch["geometry"],
        height=height,
        width=width,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        dtype=tf.float32,
        resized_on_host=frames.resize_on_host,
        color_jitter=augmentation.color_jitter,
        seed=seeds,
    )
    scenes = make_scenes(
        batch,
        augmentation,
        network_input=network_input,
        size=frames.network_size,
        drop_crowd=augmentation.mixes,
        seed=seeds,
    )
    pixels = np.round(scenes.images.numpy()).astype(np.uint8)
    is_crowd = batch["is_crowd"].numpy() & (not augmentation.mixes)
    columns = [scenes.boxes.numpy(), scenes.classes.numpy(), is_crowd]
    if "masks" not in batch:
        return [
            draw_boxes(image, b, c, names=names, crowd=crowd)
            for image, b, c, crowd in zip(pixels, *columns)
        ]
    masks = paste_masks(batch, height=height, width=width)
    return [
        draw_masks(image, m, c, names=names, boxes=b, all_boxes=False, crowd=crowd)
        for image, m, b, c, crowd in zip(pixels, masks, *columns)
    ]


def paste_masks(batch: Mapping[str, tf.Tensor], *, height: int, width: int) -> list[np.ndarray]:
    """Returns bool [max_instances, height, width] of each example: its masks as the network sees.

    A crop belongs to the whole box, so it moves with the box before this is clipped.
    """
    geometry = geometry_lib.unpack(batch["geometry"])
    boxes = geometry_lib.original_to_network(batch["boxes"], geometry, network_width=width)
    examples = []
    for masks, places, is_mirrored in zip(
        unpack_masks(batch["masks"]).numpy(), boxes.numpy(), geometry.flip.numpy() > 0
    ):
        masks = masks[..., ::-1] if is_mirrored else masks
        pasted = [
            paste_mask(mask, box, height=height, width=width) for mask, box in zip(masks, places)
        ]
        examples.append(np.array(pasted, bool).reshape(-1, height, width))
    return examples
