"""Record order: each record once per epoch over all ranks, another in each, exact resume."""

import itertools
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from object_detection.records import reader
from object_detection.records.reader import RecordSet, Shard
from object_detection.records.tfrecord_file import write_records

# What makes the reader hold a set in memory, and what makes it stream.
CACHED, STREAMED = {"cache_below_bytes": 1 << 30}, {"cache_below_bytes": 0}
both_readers = pytest.mark.parametrize("how", [CACHED, STREAMED], ids=["cached", "streamed"])


def make_set(folder, counts) -> RecordSet:
    """Writes files of so many records; record i of the set holds the text `record i`."""
    numbers = itertools.count()
    files = []
    for i, count in enumerate(counts):
        files.append(str(folder / f"part-{i:03d}"))
        write_records(files[-1], [f"record {next(numbers)}".encode() for _ in range(count)])
    return reader.record_set(files)


def read(stream: tf.data.Dataset, count: int) -> list[tuple[int, int]]:
    """Returns (data_epoch, record_index) of the next records and checks that contents fit."""
    rows = []
    for epoch, index, serialized in stream.take(count).as_numpy_iterator():
        assert serialized == f"record {index}".encode()
        rows.append((int(epoch), int(index)))
    assert len(rows) == count
    return rows


# Records of each file, ranks: more files than ranks, fewer, one file, empty files, uneven ones.
LAYOUTS = [([4, 4, 4, 4, 4, 4, 4, 4], 2), ([5, 0, 3, 7, 1], 3), ([11], 3), ([3, 6], 4), ([2, 1], 1)]


@both_readers
@pytest.mark.parametrize(("counts", "ranks"), LAYOUTS)
def test_all_ranks_together_read_each_record_once_per_epoch(tmp_path, how, counts, ranks):
    records = make_set(tmp_path, counts)
    seen = {0: Counter(), 1: Counter()}
    sizes = []
    for rank in range(ranks):
        shard = Shard(rank, ranks)
        sizes.append(reader.records_per_epoch(records.num_records, shard))
        stream = reader.record_stream(records, shard=shard, seed=7, **how)
        rows = read(stream, 2 * sizes[-1])
        assert [epoch for epoch, _ in rows] == [0] * sizes[-1] + [1] * sizes[-1]
        for epoch, index in rows:
            seen[epoch][index] += 1
    for epoch, counted in seen.items():
        assert counted == Counter(range(records.num_records)), f"epoch {epoch}"
    assert sum(sizes) == records.num_records
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 8, 32])
def test_shares_differ_by_one_record_at_most(ranks):
    for num_records in (*range(1, 40), 5000, 117_266):
        sizes = [reader.records_per_epoch(num_records, Shard(rank, ranks)) for rank in range(ranks)]
        if num_records >= ranks:
            assert sum(sizes) == num_records
            assert max(sizes) - min(sizes) <= 1
        else:
            assert sizes == [1] * ranks


@both_readers
def test_with_fewer_records_than_ranks_each_rank_has_one_and_each_record_occurs(tmp_path, how):
    records, ranks = make_set(tmp_path, [2, 1]), 4
    per_rank = [
        read(reader.record_stream(records, shard=Shard(rank, ranks), seed=1, **how), 2)
        for rank in range(ranks)
    ]
    for epoch in (0, 1):
        counted = Counter(rows[epoch] for rows in per_rank)
        assert set(counted) == {(epoch, index) for index in range(3)}
        assert max(counted.values()) - min(counted.values()) <= 1


@both_readers
def test_resuming_equals_the_rest_of_an_unbroken_stream(tmp_path, how):
    records = make_set(tmp_path, [6, 9, 2, 4])  # 7 for each of three ranks
    arguments = {"shard": Shard(1, 3), "seed": 5, **how}
    unbroken = read(reader.record_stream(records, **arguments), 40)
    for position in (6, 7, 20):
        resumed = reader.record_stream(records, start_position=position, **arguments)
        assert read(resumed, 16) == unbroken[position : position + 16], position
    late = read(reader.record_stream(records, start_position=7 * 1000, **arguments), 16)
    assert late[0][0] == 1000
    later = reader.record_stream(records, start_position=7 * 1000 + 3, **arguments)
    assert read(later, 13) == late[3:]


@both_readers
def test_the_order_is_another_in_each_epoch_and_for_each_seed_and_always_the_same(tmp_path, how):
    records = make_set(tmp_path, [15, 15])

    def epochs(seed):
        rows = read(reader.record_stream(records, shard=Shard(), seed=seed, **how), 90)
        return [[index for _, index in rows[i : i + 30]] for i in (0, 30, 60)]

    tf.random.set_seed(1)
    first = epochs(3)
    tf.random.set_seed(2)
    assert epochs(3) == first, "same seed, same order, whatever the process' global seed"
    other = epochs(4)
    orders = [tuple(order) for order in (*first, *other, list(range(30)))]
    assert len(set(orders)) == len(orders)


@both_readers
def test_ranks_change_their_records_from_epoch_to_epoch(tmp_path, how):
    """Else a rank would never meet the records of the other ranks."""
    records = make_set(tmp_path, [10, 10])
    rows = read(reader.record_stream(records, shard=Shard(0, 2), seed=2, **how), 100)
    shares = {frozenset(index for e, index in rows if e == epoch) for epoch in range(10)}
    assert len(shares) > 5
    assert frozenset.union(*shares) == frozenset(range(20))


def test_streamed_records_are_well_mixed(tmp_path):
    """A record's place in the epoch hardly tells its place in the set."""
    records = make_set(tmp_path, [20] * 10)
    stream = reader.record_stream(records, shard=Shard(), seed=0, **STREAMED)
    order = [index for _, index in read(stream, 200)]
    assert abs(np.corrcoef(order, np.arange(200))[0, 1]) < 0.3
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.sum() < 20


@pytest.mark.parametrize(
    "limits", [{"shuffle_buffer": 1}, {"shuffle_buffer_bytes": 1}, {"shuffle_buffer": 10**9}]
)
def test_any_shuffle_buffer_gives_the_same_records(tmp_path, limits):
    records = make_set(tmp_path, [7, 6])
    stream = reader.record_stream(records, shard=Shard(), seed=0, **STREAMED, **limits)
    assert sorted(read(stream, 13)) == [(0, index) for index in range(13)]


def read_ordered(records, **arguments) -> list[int]:
    """Returns the record indices of one rank's evaluation share; checks that contents fit."""
    stream = reader.ordered_records(records, **arguments)
    rows = list(stream.as_numpy_iterator())
    assert all(text == f"record {index}".encode() for _, index, text in rows)
    assert all(epoch == 0 for epoch, _, _ in rows)
    return [int(index) for _, index, _ in rows]


@pytest.mark.parametrize("counts", [[5, 0, 3, 7, 1], [1], [9, 9]])
@pytest.mark.parametrize("ranks", [1, 4])
def test_evaluation_reads_each_record_once_in_stored_order(tmp_path, counts, ranks):
    records = make_set(tmp_path, counts)
    shares = [read_ordered(records, shard=Shard(rank, ranks)) for rank in range(ranks)]
    assert list(itertools.chain(*shares)) == list(range(records.num_records))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluation_of_the_first_records_only(tmp_path):
    records = make_set(tmp_path, [4, 8])
    shares = [read_ordered(records, shard=Shard(r, 2), most_records=7) for r in range(2)]
    assert shares == [[0, 1, 2], [3, 4, 5, 6]]
    assert read_ordered(records, shard=Shard(), most_records=99) == list(range(12))


def test_a_record_is_located_by_its_index(tmp_path):
    records = make_set(tmp_path, [3, 0, 2])
    places = [records.locate(index) for index in range(5)]
    assert places == [
        (records.files[0], 0), (records.files[0], 1), (records.files[0], 2),
        (records.files[2], 0), (records.files[2], 1),
    ]  # fmt: skip
    assert records.num_records == 5


def test_a_truncated_file_is_named(tmp_path):
    records = make_set(tmp_path, [3, 3])
    broken = tmp_path / "part-001"
    broken.write_bytes(broken.read_bytes()[:-5])
    with pytest.raises(ValueError, match="part-001: record 2 at byte .* truncated"):
        reader.record_set(records.files)
    with pytest.raises(ValueError, match="part-001"):
        reader.record_set(records.files, records.counts)


def test_a_file_that_ends_between_two_records_disagrees_with_its_card(tmp_path):
    records = make_set(tmp_path, [3, 3])
    write_records(records.files[1], [b"record 3"])
    with pytest.raises(ValueError, match="part-001: expected 3 records by its data card, found 1"):
        reader.record_set(records.files, records.counts)


def test_large_sets_are_taken_at_the_cards_word(tmp_path):
    records = make_set(tmp_path, [3])
    described = reader.record_set(records.files, [17], scan_below_bytes=0)
    assert described.counts == (17,)


def test_a_set_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no records in 2 files"):
        make_set(tmp_path, [0, 0])


def test_a_file_that_shrinks_after_the_count_is_an_error(tmp_path):
    """Not a shorter epoch: ranks would drift apart."""
    records = make_set(tmp_path, [6])
    write_records(records.files[0], [b"record 0", b"record 1"])
    stream = reader.record_stream(records, shard=Shard(), seed=0, **STREAMED)
    with pytest.raises(tf.errors.OpError, match="6 elements but contained only 2"):
        list(stream.take(12))
