"""A family's input: the settings of a run turned into `object_detection`'s data sets.

Nothing is read or decoded here. Augmentation: scale, crop, flip and shift on the host
(`object_detection.input.crop_decode`), colour on the device (`object_detection.input.preprocess`),
as are images made of several (`object_detection.augment`). Batches of several canvases come in
shapes of their own, so that every canvas has a compiled step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from engine.ranks import distributed, machine
from object_detection.input.canvases import frames_of_networks
from object_detection.input.datasets import (
    bytes_to_cache,
    evaluation_batches,
    records_of_card,
    training_batches,
    with_map_parallelization,
)
from object_detection.input.geometry import ANTIALIASED, Frames
from object_detection.input.loader import Augmentation, Reading, resizes_on_host
from object_detection.input.problems import InputProblems
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.records.reader import RecordSet, Shard


def train_dataset(
    config: Any,
    card: DataCard,
    class_map: ClassMap,
    *,
    frames: Sequence[Frames],
    shard: Shard,
    seed: int,
    start_position: int = 0,
    with_masks: bool = False,
) -> tf.data.Dataset:
    """Streams training batches for ever; see `datasets.training_batches`.

    Args:
      card: of the training records.
      frames: of `frames_of`.
      seed: of order and augmentation, the same on every rank; ranks differ by their records.
      start_position: examples that this rank has consumed already.
    """
    data = config.data
    records = records_of_card(data.training_file_pattern, card)
    reading = _reading(
        config, card, class_map, records,
        batch_size=config.train.batch_size, frames=frames, with_masks=with_masks,
    )  # fmt: skip
    batches = training_batches(
        records,
        reading,
        augmentation=Augmentation(
            jitter=(data.jitter_min, data.jitter_max),
            flip_probability=0.5 if data.input_rand_hflip else 0.0,
            seed=seed,
            translate=data.translate,
            mixing_end_epoch=data.mixing_end_epoch if data.mosaic or data.mixup else 0,
        ),
        shard=Shard(*shard),
        start_position=start_position,
        drop_crowd=data.skip_crowd_during_training,
        shuffle_buffer=data.shuffle_buffer,
        cache_below_bytes=bytes_to_cache(data.cache_records),
        repeat_first_batch=config.train.use_fake_data,
    )
    return with_map_parallelization(batches, config.runtime.enable_map_parallelization)


def eval_dataset(
    config: Any,
    card: DataCard,
    class_map: ClassMap,
    *,
    frames: Sequence[Frames],
    shard: Shard,
    with_masks: bool = False,
) -> tf.data.Dataset:
    """Gives each validation image once over all ranks; see `datasets.evaluation_batches`.

    Args:
      card: of the validation records; other arguments as of `train_dataset`.
    """
    records = records_of_card(config.eval.val_file_pattern, card)
    reading = _reading(
        config, card, class_map, records,
        batch_size=config.eval.eval_batch_size, frames=frames, with_masks=with_masks,
    )  # fmt: skip
    batches = evaluation_batches(
        records, reading, shard=Shard(*shard), most_records=config.eval.eval_samples
    )
    return with_map_parallelization(batches, config.runtime.enable_map_parallelization)


def frames_of(
    config: Any,
    network_sizes: Sequence[tuple[int, int]],
    cards: Sequence[DataCard | None],
    *,
    side_limits: tuple[int, int] | None = None,
) -> tuple[Frames, ...]:
    """Returns the sizes of networks and canvases, and where images are resampled.

    Args:
      network_sizes: (height, width) of each shape of network input, pixels.
      cards: of all records that are read; the largest image bounds the canvases.
    """
    known = [card for card in cards if card]
    largest = (max(c.max_height for c in known), max(c.max_width for c in known)) if known else None
    side = config.data.canvas_size
    frames = frames_of_networks(
        network_sizes,
        side_limits=side_limits,
        resize_on_host=resampled_on_host(config),
        canvas_size=(side, side) if side else None,
        largest_image=largest,
    )
    resampling = config.model.resampling or ANTIALIASED
    return tuple(frame._replace(resampling=resampling) for frame in frames)


def resampled_on_host(config: Any) -> bool:
    """Returns whether images leave the host at network size.

    Conventions without antialiasing need pixels that no decoder has reduced, which only the host
    has of images larger than the canvas.
    """
    is_ours = config.model.resampling in ("", ANTIALIASED)
    return not is_ours or resizes_on_host(config.data.resize_on)


def _reading(
    config: Any,
    card: DataCard,
    class_map: ClassMap,
    records: RecordSet,
    *,
    batch_size: int,
    frames: Sequence[Frames],
    with_masks: bool,
) -> Reading:
    data = config.data
    problems = InputProblems(
        records,
        max_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        max_instances=data.max_instances_per_image,
        on_overflow=data.on_overflow,
    )
    return Reading(
        batch_size=batch_size,
        frames=tuple(frames),
        class_of_category=class_map.of_card(card),
        problems=problems,
        threads=data.input_threads or machine.cores_per_rank(distributed.placement().local_size),
        prefetch_batches=data.prefetch_batches,
        with_masks=with_masks,
        png_masks=card.mask_format == "png",
    )
