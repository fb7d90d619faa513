"""EfficientDet's input: the settings of a run turned into `object_detection`'s data sets.

Nothing is read or decoded here. Augmentation as in the paper's reference code: scale, crop and
flip on the host (`object_detection.data.crop_decode`), colour on the device
(`object_detection.preprocess`).
"""

from __future__ import annotations

import os

import tensorflow as tf

from efficientdet.settings import EfficientDetConfig
from engine import env
from object_detection.class_map import ClassMap
from object_detection.data import tfrecord_file
from object_detection.data.card import DataCard
from object_detection.data.host_batches import Augmentation, Frames, make_frames
from object_detection.data.input_datasets import evaluation_batches, training_batches
from object_detection.data.input_problems import InputProblems
from object_detection.data.reader import RecordSet, Shard, record_set

# Sets up to this size are held in memory unless the settings say otherwise.
_CACHE_BYTES = 1 << 30


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
    records = _records(data.training_file_pattern, card)
    cache = {None: _CACHE_BYTES, True: 1 << 62, False: 0}[data.cache_records]
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
        cache_below_bytes=cache,
        threads=data.input_threads or env.cores_per_rank(local_ranks),
        prefetch_batches=data.prefetch_batches,
        repeat_first_batch=config.train.use_fake_data,
    )
    return _with_graph_options(batches, config)


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
    records = _records(config.eval.val_file_pattern, card)
    batches = evaluation_batches(
        records,
        batch_size=config.eval.eval_batch_size,
        frames=frames(config, card),
        class_of_category=class_map.category_to_class,
        problems=_problems(config, records),
        shard=Shard(*shard),
        most_records=config.eval.eval_samples,
        max_instances=config.data.max_instances_per_image,
        threads=config.data.input_threads or env.cores_per_rank(local_ranks),
        prefetch_batches=config.data.prefetch_batches,
    )
    return _with_graph_options(batches, config)


def frames(config: EfficientDetConfig, card: DataCard | None = None) -> Frames:
    """Returns the sizes of network and canvas, and where images are resampled.

    Args:
      config: of the run.
      card: its largest image bounds the canvas.
    """
    side = config.data.canvas_size
    return make_frames(
        config.model.image_size,
        resize_on_host=resizes_on_host(config),
        canvas_size=(side, side) if side else None,
        largest_image=(card.max_height, card.max_width) if card else None,
    )


def resizes_on_host(config: EfficientDetConfig) -> bool:
    """Returns whether images are resampled on the host.

    `auto` means: on the accelerator if there is one. Without, both are the same cores, and the
    host's way is the cheaper one: about 7 against 40 CPU ms per image for 640 to 512 pixels,
    measured on 2 cores, 2026-11-22.
    """
    if config.data.resize_on == "auto":
        return not tf.config.get_visible_devices("GPU")
    return config.data.resize_on == "host"


def _records(pattern: str, card: DataCard) -> RecordSet:
    files = tfrecord_file.record_files(pattern)
    counts = {shard.file: shard.num_records for shard in card.shards}
    names = [os.path.basename(file) for file in files]
    known = all(name in counts for name in names) and len(set(names)) == len(names)
    return record_set(files, [counts[name] for name in names] if known else None)


def _problems(config: EfficientDetConfig, records: RecordSet) -> InputProblems:
    data = config.data
    return InputProblems(
        records,
        max_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        max_instances=data.max_instances_per_image,
        on_overflow=data.on_overflow,
    )


def _with_graph_options(batches: tf.data.Dataset, config: EfficientDetConfig) -> tf.data.Dataset:
    """Passes on --enable_map_parallelization; the maps that cost time are parallel in any case."""
    options = tf.data.Options()
    parallel = config.runtime.enable_map_parallelization
    options.experimental_optimization.map_parallelization = parallel
    return batches.with_options(options)
