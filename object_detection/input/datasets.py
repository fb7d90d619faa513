"""The training and the evaluation input of one rank, for every detector.

A `Reading` in, a `tf.data.Dataset` of HostExample batches out. What a model family adds is its
own defaults and names of settings.
"""

from __future__ import annotations

import os

import tensorflow as tf

from object_detection.input.loader import Augmentation, Reading, collect_batches
from object_detection.records import tfrecord_file
from object_detection.records.card import DataCard
from object_detection.records.reader import (
    RecordSet,
    Shard,
    ordered_records,
    record_set,
    record_stream,
)

# Sets up to this size are held in memory unless the settings say otherwise.
_CACHE_BYTES = 1 << 30


def records_of_card(pattern: str, card: DataCard) -> RecordSet:
    """Finds the record files of a pattern; their counts are the card's if it knows the files."""
    files = tfrecord_file.record_files(pattern)
    counts = {shard.file: shard.num_records for shard in card.shards}
    names = [os.path.basename(file) for file in files]
    known = all(name in counts for name in names) and len(set(names)) == len(names)
    return record_set(files, [counts[name] for name in names] if known else None)


def bytes_to_cache(cache_records: bool | None) -> int:
    """Returns up to which size a set is held in memory; none: 1 GB."""
    return {None: _CACHE_BYTES, True: 1 << 62, False: 0}[cache_records]


def training_batches(
    records: RecordSet,
    reading: Reading,
    *,
    augmentation: Augmentation,
    shard: Shard = Shard(),  # noqa: B008  an immutable tuple
    start_position: int = 0,
    drop_crowd: bool = True,
    shuffle_buffer: int = 5000,
    cache_below_bytes: int = _CACHE_BYTES,
    repeat_first_batch: bool = False,
) -> tf.data.Dataset:
    """Streams augmented batches for ever; see `record_stream` for their order.

    Args:
      records: the training set.
      reading: how they become batches.
      augmentation: what is random.
      shard: which rank of how many.
      start_position: examples this rank has consumed already, a multiple of the batch size.
      drop_crowd: leave crowd regions out.
      shuffle_buffer: most records in the shuffle buffer.
      cache_below_bytes: sets up to this size are held in memory.
      repeat_first_batch: the first batch for ever, to measure everything but the input.

    Returns:
      Batches of `example`.
    """
    stream = record_stream(
        records,
        shard=shard,
        seed=augmentation.seed,
        # What came before a batch of a grouped stream is read, though not decoded.
        start_position=0 if reading.is_grouped else start_position,
        shuffle_buffer=shuffle_buffer,
        cache_below_bytes=cache_below_bytes,
    )
    batches = collect_batches(
        stream,
        reading,
        augmentation=augmentation,
        drop_crowd=drop_crowd,
        skip_batches=start_position // reading.batch_size if reading.is_grouped else 0,
    )
    if repeat_first_batch:
        batches = batches.take(1).cache().repeat()
    return with_threads(batches.prefetch(reading.prefetch_batches), reading.threads)


def evaluation_batches(
    records: RecordSet,
    reading: Reading,
    *,
    shard: Shard = Shard(),  # noqa: B008  an immutable tuple
    most_records: int | None = None,
) -> tf.data.Dataset:
    """Gives each record once over all ranks, whole images, crowds kept, in stored order.

    With one frame every rank gets the same number of batches; examples that fill up the last ones
    have `valid=False`. An undecodable image is invalid too, and counted.

    Args:
      records: the evaluation set.
      reading: how they become batches.
      shard: which rank of how many.
      most_records: only the first so many records; None: all.

    Returns:
      Batches of `example`.
    """
    num_records = min(records.num_records, most_records or records.num_records)
    most_per_rank = -(-num_records // shard.size)
    batches = collect_batches(
        ordered_records(records, shard=shard, most_records=num_records),
        reading,
        augmentation=None,
        drop_crowd=False,
        num_batches=None if reading.is_grouped else -(-most_per_rank // reading.batch_size),
    )
    return with_threads(batches.prefetch(reading.prefetch_batches), reading.threads)


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


def with_map_parallelization(dataset: tf.data.Dataset, enabled: bool) -> tf.data.Dataset:
    """Passes the graph option on; the maps that cost time are parallel in any case."""
    options = tf.data.Options()
    options.experimental_optimization.map_parallelization = enabled
    return dataset.with_options(options)
