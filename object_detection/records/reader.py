"""Which records a rank reads, and in which order: every record once per data epoch over all ranks.

For each data epoch the files are put in an order that depends on seed and epoch only, so that all
ranks agree on it, and the concatenated records are cut into one contiguous range per rank. A rank
opens only the files that its range touches, reads several at a time and shuffles the records in a
buffer. Sets small enough are held in memory by every rank instead, and each epoch's order is then
a permutation of the whole set. Either way the order is a function of (seed, epoch, shard) alone:
running twice gives it twice, and a stream that starts at position `p` equals what is left of an
unbroken one after `p` records.

Nothing is decoded here, and no Python runs per record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from object_detection.records import tfrecord_file

# Files that a rank reads at the same time. More mixes better and hides the latency of the storage.
_FILES_AT_ONCE = 8
# With fewer files than this per rank, permuting them would give a rank the same records too often,
# so the cut into ranges also starts at another record in each epoch.
_FILES_PER_RANK = 4


class Shard(NamedTuple):
    """One rank's share of a data set: `rank` of `size`."""

    rank: int = 0
    size: int = 1


class RecordSet(NamedTuple):
    """The files of a set, in sorted order, and how many records each holds."""

    files: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def num_records(self) -> int:
        """Records of all files."""
        return sum(self.counts)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(os.path.getsize(file) for file in self.files)

    def locate(self, record_index: int) -> tuple[str, int]:
        """Returns the file of a record and the record's position in that file."""
        ends = np.cumsum(self.counts)
        file_index = int(np.searchsorted(ends, record_index, side="right"))
        return self.files[file_index], record_index - int(
            ends[file_index] - self.counts[file_index]
        )


def record_set(
    files: Sequence[str], counts: Sequence[int] | None = None, *, scan_below_bytes: int = 1 << 30
) -> RecordSet:
    """Describes a set of record files and finds truncated ones before training does.

    Args:
      files: paths in the order that defines `record_index`.
      counts: records of each file, from the data card; None counts them here.
      scan_below_bytes: sets smaller than this are stepped through, record header by record header,
        even when the counts are known.

    Raises:
      ValueError: there is no record, a file is truncated (file and byte are named), or a file holds
        another number of records than the data card says.
    """
    described = RecordSet(tuple(files), tuple(counts) if counts is not None else ())
    if counts is None or described.num_bytes < scan_below_bytes:
        scanned = tuple(tfrecord_file.count_records(file) for file in files)
        for file, found, expected in zip(files, scanned, counts or scanned):
            if found != expected:
                raise ValueError(
                    f"{file}: expected {expected} records by its data card, found {found}. The "
                    "card belongs to another conversion, or the file was replaced: convert again"
                )
        described = RecordSet(tuple(files), scanned)
    if described.num_records == 0:
        raise ValueError(f"no records in {len(files)} files ({', '.join(described.files[:3])} ...)")
    return described


def records_per_epoch(num_records: int, shard: Shard) -> int:
    """Returns how many records of each data epoch `record_stream` gives to one rank."""
    first, last = _range_of(num_records, shard)
    return last - first


def record_stream(
    records: RecordSet,
    *,
    shard: Shard,
    seed: int,
    start_position: int = 0,
    shuffle_buffer: int = 5000,
    shuffle_buffer_bytes: int = 1 << 29,
    cache_below_bytes: int = 1 << 28,
) -> tf.data.Dataset:
    """Streams one rank's records for ever, in another order in each data epoch.

    Args:
      records: the set.
      shard: which rank of how many. With fewer records than ranks, rank r has the r-th record of
        the epoch's order, counted round and round.
      seed: of the order; the same on every rank.
      start_position: records that this rank has already consumed, over all epochs.
      shuffle_buffer: most records in the shuffle buffer.
      shuffle_buffer_bytes: most bytes in it, by the mean size of the set's records.
      cache_below_bytes: sets up to this size are held in memory; 0 never does.

    Returns:
      A dataset of (data_epoch int64 [], record_index int64 [], serialized string []).
    """
    per_epoch = records_per_epoch(records.num_records, shard)
    num_bytes = records.num_bytes
    if num_bytes <= cache_below_bytes:
        epoch_of = _cached_epochs(records, shard, seed)
    else:
        fitting = max(shuffle_buffer_bytes * records.num_records // num_bytes, 1)
        buffer = min(shuffle_buffer, fitting, per_epoch)
        epoch_of = _streamed_epochs(records, shard, seed, buffer)
    first_epoch, consumed = divmod(start_position, per_epoch)

    def epoch_with_number(epoch: tf.Tensor) -> tf.data.Dataset:
        skip = tf.where(tf.equal(epoch, first_epoch), tf.constant(consumed, tf.int64), 0)
        # Inside a traced function this sets the seed of that function's graph only: it keeps the
        # process' global seed from reaching the shuffle. Not 0: that asks for a random seed.
        tf.random.set_seed(1)
        epochs = tf.data.Dataset.from_tensors(epoch).repeat()
        whole = epoch_of(epoch).apply(tf.data.experimental.assert_cardinality(per_epoch))
        return tf.data.Dataset.zip((epochs, whole.skip(skip)))

    numbers = tf.data.Dataset.counter(start=first_epoch, dtype=tf.int64)
    return numbers.flat_map(epoch_with_number).map(lambda epoch, record: (epoch, *record))


def ordered_records(
    records: RecordSet, *, shard: Shard, most_records: int | None = None
) -> tf.data.Dataset:
    """Reads one rank's contiguous share of the set once, in stored order, for evaluation.

    Only the first `most_records` are shared out; some ranks get nothing when there are fewer.

    Returns:
      A dataset of (data_epoch = 0, record_index, serialized), as `record_stream`'s.
    """
    num_records = min(records.num_records, most_records or records.num_records)
    first, last = (num_records * r // shard.size for r in (shard.rank, shard.rank + 1))
    order = tf.range(len(records.files), dtype=tf.int64)
    pieces = _pieces(records, order, tf.constant([[first, last]], tf.int64))
    read = tf.data.Dataset.from_tensor_slices(pieces).flat_map(_read_piece)
    return read.map(lambda index, serialized: (tf.constant(0, tf.int64), index, serialized))


def _range_of(num_records: int, shard: Shard) -> tuple[int, int]:
    if num_records < shard.size:
        return shard.rank % num_records, shard.rank % num_records + 1
    return num_records * shard.rank // shard.size, num_records * (shard.rank + 1) // shard.size


def _cached_epochs(records: RecordSet, shard: Shard, seed: int):
    loaded = tf.data.TFRecordDataset(list(records.files)).batch(records.num_records)
    serialized = loaded.get_single_element()
    first, last = _range_of(records.num_records, shard)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = _permutation(records.num_records, seed, epoch)[first:last]
        indices = tf.data.Dataset.from_tensor_slices(order)
        return indices.map(lambda index: (index, serialized[index]))

    return epoch_of


def _streamed_epochs(records: RecordSet, shard: Shard, seed: int, buffer: int):
    num_files, num_records = len(records.files), records.num_records
    first, last = _range_of(num_records, shard)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = _permutation(num_files, seed, epoch)
        start = tf.constant(0, tf.int64)
        if num_files < _FILES_PER_RANK * shard.size:
            uniform = tf.random.stateless_uniform(
                [], seed=tf.stack([seed, epoch + 1]), minval=0, maxval=num_records, dtype=tf.int64
            )
            start = uniform
        ranges = _rotated(start + first, start + last, num_records)
        pieces = tf.data.Dataset.from_tensor_slices(_pieces(records, order, ranges))
        read = pieces.interleave(_read_piece, cycle_length=_FILES_AT_ONCE)
        return read.shuffle(buffer, seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False)

    return epoch_of


def _permutation(size: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Returns int64 [size], an order that depends on seed and epoch only."""
    keys = tf.random.stateless_uniform([size], tf.stack([seed, epoch]), None, None, tf.int64)
    return tf.cast(tf.argsort(keys), tf.int64)


def _rotated(first: tf.Tensor, last: tf.Tensor, num_records: int) -> tf.Tensor:
    """Cuts [first, last), which may reach beyond the end, into ranges [2, 2] within the set."""
    end = tf.minimum(last, num_records)
    inside = tf.stack([tf.minimum(first, num_records), end])
    wrapped = tf.stack([tf.maximum(first - num_records, 0), tf.maximum(last - num_records, 0)])
    return tf.stack([inside, wrapped])


def _pieces(records: RecordSet, order: tf.Tensor, ranges: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Finds what to read of which file for some ranges of the files' concatenation.

    Args:
      records: the set.
      order: int64 [num_files], the order in which the files are concatenated.
      ranges: int64 [num_ranges, 2], (first, last + 1).

    Returns:
      (file, first position in the file, number of records, record_index of the file's first
      record) of each piece, each [num_pieces].
    """
    files = tf.constant(records.files)
    counts = tf.constant(records.counts, tf.int64)
    first_index = tf.gather(tf.cumsum(counts, exclusive=True), order)
    counts = tf.gather(counts, order)
    starts = tf.cumsum(counts, exclusive=True)
    begin = tf.clip_by_value(ranges[:, :1] - starts, 0, counts)
    size = tf.clip_by_value(ranges[:, 1:] - starts, 0, counts) - begin
    num_ranges = tf.shape(ranges)[0]
    chosen = tf.reshape(size, [-1]) > 0

    def per_piece(column: tf.Tensor) -> tf.Tensor:
        return tf.boolean_mask(column, chosen)

    return (
        per_piece(tf.tile(tf.gather(files, order), [num_ranges])),
        per_piece(tf.reshape(begin, [-1])),
        per_piece(tf.reshape(size, [-1])),
        per_piece(tf.tile(first_index, [num_ranges])),
    )


def _read_piece(
    file: tf.Tensor, begin: tf.Tensor, size: tf.Tensor, first_index: tf.Tensor
) -> tf.data.Dataset:
    read = tf.data.TFRecordDataset(file, buffer_size=1 << 20).skip(begin).take(size)
    return tf.data.Dataset.zip((tf.data.Dataset.range(first_index + begin, tf.int64.max), read))
