"""A batch of training images in the network's frame with its objects, changed as the run asks.

What is random follows from a seed of two numbers: the engine gives the step and the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from object_detection.augment.autoaugment import auto_augment
from object_detection.augment.mixing import Scenes, mixup, mosaic
from object_detection.input import geometry as geometry_lib
from object_detection.input.preprocess import ground_truth_in_network_frame

# What the seed is folded with, so that decisions do not depend on one another.
_MOSAIC, _MOSAIC_CHOICE, _MIXUP, _MIXUP_CHOICE, _AUTO_AUGMENT = range(5)


class DeviceAugmentation(NamedTuple):
    """What is random on the device."""

    color_jitter: float = 0.0  # strength, see `preprocess.jitter_colors`
    mosaic: float = 0.0  # share of the images
    mixup: float = 0.0  # share of the images
    autoaugment: str = ""  # policy of `policies`; "": none

    @property
    def mixes(self) -> bool:
        """Whether rows of objects hold others than the batch's."""
        return bool(self.mosaic or self.mixup)


def make_scenes(
    batch: Mapping[str, tf.Tensor],
    augmentation: DeviceAugmentation | None,
    *,
    network_input: Callable[..., tf.Tensor],
    size: tuple[int, int],
    drop_crowd: bool,
    seed: tf.Tensor | None = None,
) -> Scenes:
    """Brings a batch into the network's frame and augments it.

    Args:
      batch: fields of a `HostExample`, batched.
      augmentation: None: none, as in evaluation.
      network_input: makes the batch's normalised images; colour changes are its own. Takes the
        argument `change` of `preprocess.to_network_input`.
    """
    boxes, classes = ground_truth_in_network_frame(batch, size, drop_crowd=drop_crowd)
    places = geometry_lib.unpack(batch["geometry"])
    ends = geometry_lib.ends_in_network(places, size)
    if augmentation is None:
        return Scenes(network_input(), boxes, classes, ends)
    objects = [boxes, classes]

    def change(pixels: tf.Tensor, inside: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, inside, *objects[:] = auto_augment(
            *(pixels, inside, boxes, classes),
            name=augmentation.autoaugment,
            ends=ends,
            unit=tf.reduce_max(places.original_size * places.network_scale, axis=-1),
            seed=tf.random.fold_in(seed, _AUTO_AUGMENT),
        )
        return pixels, inside

    images = network_input(change=change) if augmentation.autoaugment else network_input()
    scenes = Scenes(images, *objects, ends)
    for mix, share, choice, place in (
        (mosaic, augmentation.mosaic, _MOSAIC_CHOICE, _MOSAIC),
        (mixup, augmentation.mixup, _MIXUP_CHOICE, _MIXUP),
    ):
        if share:
            of_choice = tf.random.fold_in(seed, choice)
            chosen = tf.random.stateless_uniform([classes.shape[0]], of_choice) < share
            if "mixing" in batch:
                chosen &= batch["mixing"]
            scenes = mix(scenes, chosen, tf.random.fold_in(seed, place))
    return scenes
