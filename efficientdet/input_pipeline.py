"""EfficientDet's input: the settings of a run turned into `object_detection`'s data sets.

Nothing is read or decoded here. Augmentation as in the paper's reference code: scale, crop and
flip on the host (`object_detection.input.crop_decode`), colour on the device
(`object_detection.input.preprocess`).
"""

from __future__ import annotations

import tensorflow as tf

from efficientdet.settings import EfficientDetConfig
from engine.ranks import machine
from object_detection.input.canvases import Frames, make_frames
from object_detection.input.datasets import (
    bytes_to_cache,
    evaluation_batches,
    records_of_card,
    training_batches,
    with_map_parallelization,
)
from object_detection.input.loader import Augmentation, resizes_on_host
from object_detection.input.problems import InputProblems
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.records.reader import RecordSet, Shard


def train_dataset(
    config: EfficientDetConfig,
    card: DataCard,
    class_map: ClassMap,
    *,
    shard: Shard,
    seed: int,
    start_position: int = 0,
    local_ranks: int = 1,
) -> tf.data.Dataset:
    """Streams training batches for ever; see `input_datasets.training_batches`.

    Args:
      config: of the run.
      card: of the training records.
      class_map: channels of the model.
      shard: this rank of how many.
      seed: of order and augmentation, the same on every rank; ranks differ by their records.
      start_position: examples that this rank has consumed already.
      local_ranks: ranks that share this host's cores.
    """
    data = config.data
    records = records_of_card(data.training_file_pattern, card)
    batches = training_batches(
        records,
        batch_size=config.train.batch_size,
        frames=frames(config, card),
        augmentation=Augmentation(
            jitter=(data.jitter_min, data.jitter_max),
            flip_probability=0.5 if data.input_rand_hflip else 0.0,
            seed=seed,
        ),
        class_of_category=class_map.category_to_class,
        problems=_problems(config, records),
        shard=Shard(*shard),
        seed=seed,
        start_position=start_position,
        max_instances=data.max_instances_per_image,
        drop_crowd=data.skip_crowd_during_training,
        shuffle_buffer=data.shuffle_buffer,
        cache_below_bytes=bytes_to_cache(data.cache_records),
        threads=data.input_threads or machine.cores_per_rank(local_ranks),
        prefetch_batches=data.prefetch_batches,
        repeat_first_batch=config.train.use_fake_data,
    )
    return with_map_parallelization(batches, config.runtime.enable_map_parallelization)


def eval_dataset(
    config: EfficientDetConfig,
    card: DataCard,
    class_map: ClassMap,
    *,
    shard: Shard,
    local_ranks: int = 1,
) -> tf.data.Dataset:
    """Gives each validation image once over all ranks; see `input_datasets.evaluation_batches`.

    Args:
      config: of the run.
      card: of the validation records.
      class_map: channels of the model.
      shard: this rank of how many.
      local_ranks: ranks that share this host's cores.
    """
    records = records_of_card(config.eval.val_file_pattern, card)
    batches = evaluation_batches(
        records,
        batch_size=config.eval.eval_batch_size,
        frames=frames(config, card),
        class_of_category=class_map.category_to_class,
        problems=_problems(config, records),
        shard=Shard(*shard),
        most_records=config.eval.eval_samples,
        max_instances=config.data.max_instances_per_image,
        threads=config.data.input_threads or machine.cores_per_rank(local_ranks),
        prefetch_batches=config.data.prefetch_batches,
    )
    return with_map_parallelization(batches, config.runtime.enable_map_parallelization)


def frames(config: EfficientDetConfig, card: DataCard | None = None) -> Frames:
    """Returns the sizes of network and canvas, and where images are resampled.

    Args:
      config: of the run.
      card: its largest image bounds the canvas.
    """
    side = config.data.canvas_size
    return make_frames(
        config.model.image_size,
        resize_on_host=resizes_on_host(config.data.resize_on),
        canvas_size=(side, side) if side else None,
        largest_image=(card.max_height, card.max_width) if card else None,
    )


def _problems(config: EfficientDetConfig, records: RecordSet) -> InputProblems:
    data = config.data
    return InputProblems(
        records,
        max_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        max_instances=data.max_instances_per_image,
        on_overflow=data.on_overflow,
    )
