"""The training and the evaluation input of one rank, for every detector.

Plain arguments in, a `tf.data.Dataset` of HostExample batches out. What a model family adds is its
own defaults and names of settings.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from object_detection.data.host_batches import Augmentation, Frames, collect_batches
from object_detection.data.input_problems import InputProblems
from object_detection.data.reader import RecordSet, Shard, ordered_records, record_stream


def training_batches(
    records: RecordSet,
    *,
    batch_size: int,
    frames: Frames,
    augmentation: Augmentation,
    class_of_category: Mapping[int, int],
    problems: InputProblems,
    shard: Shard = Shard(),  # noqa: B008  an immutable tuple
    seed: int = 0,
    start_position: int = 0,
    max_instances: int = 100,
    drop_crowd: bool = True,
    shuffle_buffer: int = 5000,
    cache_below_bytes: int = 1 << 30,
    threads: int = 2,
    prefetch_batches: int = 2,
    repeat_first_batch: bool = False,
) -> tf.data.Dataset:
    """Streams augmented batches for ever; see `record_stream` for their order.

    Args:
      records: the training set.
      batch_size: images per batch of this rank; may exceed the number of records.
      frames: sizes and where images are resampled.
      augmentation: what is random.
      class_of_category: category_id -> class_id.
      problems: takes what is wrong with the records.
      shard: which rank of how many.
      seed: of the order, the same on every rank.
      start_position: examples this rank has consumed already, a multiple of batch_size.
      max_instances: rows for boxes.
      drop_crowd: leave crowd regions out.
      shuffle_buffer: most records in the shuffle buffer.
      cache_below_bytes: sets up to this size are held in memory.
      threads: cores for this rank's input.
      prefetch_batches: batches prepared ahead.
      repeat_first_batch: the first batch for ever, to measure everything but the input.

    Returns:
      Batches as in `example.host_example_spec`.
    """
    stream = record_stream(
        records,
        shard=shard,
        seed=seed,
        start_position=start_position,
        shuffle_buffer=shuffle_buffer,
        cache_below_bytes=cache_below_bytes,
    )
    batches = collect_batches(
        stream,
        batch_size=batch_size,
        frames=frames,
        augmentation=augmentation,
        class_of_category=class_of_category,
        max_instances=max_instances,
        drop_crowd=drop_crowd,
        problems=problems,
        threads=threads,
    )
    if repeat_first_batch:
        batches = batches.take(1).cache().repeat()
    return with_threads(batches.prefetch(prefetch_batches), threads)


def evaluation_batches(
    records: RecordSet,
    *,
    batch_size: int,
    frames: Frames,
    class_of_category: Mapping[int, int],
    problems: InputProblems,
    shard: Shard = Shard(),  # noqa: B008  an immutable tuple
    most_records: int | None = None,
    max_instances: int = 100,
    threads: int = 2,
    prefetch_batches: int = 2,
) -> tf.data.Dataset:
    """Gives each record once over all ranks, whole images, crowds kept, in stored order.

    Every rank gets the same number of batches; examples that fill up the last ones have
    `valid=False`. An undecodable image is invalid too, and counted.

    Args:
      records: the evaluation set.
      batch_size: images per batch of this rank.
      frames: sizes and where images are resampled.
      class_of_category: category_id -> class_id.
      problems: takes what is wrong with the records.
      shard: which rank of how many.
      most_records: only the first so many records; None: all.
      max_instances: rows for boxes.
      threads: cores for this rank's input.
      prefetch_batches: batches prepared ahead.

    Returns:
      Batches as in `example.host_example_spec`.
    """
    num_records = min(records.num_records, most_records or records.num_records)
    most_per_rank = -(-num_records // shard.size)
    batches = collect_batches(
        ordered_records(records, shard=shard, most_records=num_records),
        batch_size=batch_size,
        frames=frames,
        augmentation=None,
        class_of_category=class_of_category,
        max_instances=max_instances,
        drop_crowd=False,
        problems=problems,
        threads=threads,
        num_batches=-(-most_per_rank // batch_size),
    )
    return with_threads(batches.prefetch(prefetch_batches), threads)


def with_threads(dataset: tf.data.Dataset, threads: int) -> tf.data.Dataset:
    """Gives the data set threads of its own, and fixes what tf.data would tune by itself.

    Tuning has nothing to win: parallelism is set where it belongs, and the tuner's growing buffers
    would hold whole batches.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)
