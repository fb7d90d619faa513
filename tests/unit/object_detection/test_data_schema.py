"""Records: our serialisation against TensorFlow's, field by field and byte by byte."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import record

from object_detection.records.example_proto import decode_example, encode_example
from object_detection.records.tfrecord_file import (
    count_records,
    crc32c,
    iterate_records,
    record_files,
    write_records,
)

JPEG = tf.io.encode_jpeg(np.zeros((20, 40, 3), np.uint8)).numpy()


def make_record(boxes=((2.0, 4.0, 10.0, 24.0), (0.0, 0.0, 20.0, 40.0)), **changes):
    given = {
        "image_format": "jpeg",
        "category_ids": [90, 1],
        "category_names": ["toothbrush", "person"],
        "is_crowd": [False, True],
        "areas": [100.5, 800.0],
    }
    return record("139", (20, 40), boxes, image=JPEG, **{**given, **changes})


def test_encoding_equals_tensorflows_byte_for_byte():
    record = make_record(masks=[b"a" * 1568, b"b" * 1568], captions=["a cat", "müde"])
    example = tf.train.Example.FromString(record)
    assert example.SerializeToString(deterministic=True) == record


def test_record_has_the_fields_of_the_reference():
    feature = tf.train.Example.FromString(make_record()).features.feature
    assert set(feature) == {
        "image/encoded", "image/format", "image/height", "image/width", "image/filename",
        "image/source_id", "image/key/sha256", "image/object/bbox/xmin", "image/object/bbox/xmax",
        "image/object/bbox/ymin", "image/object/bbox/ymax", "image/object/class/text",
        "image/object/class/label", "image/object/is_crowd", "image/object/area",
    }  # fmt: skip
    assert feature["image/object/bbox/ymin"].float_list.value == pytest.approx([0.1, 0.0])
    assert feature["image/object/bbox/xmax"].float_list.value == pytest.approx([0.6, 1.0])
    assert list(feature["image/object/class/label"].int64_list.value) == [90, 1]
    assert list(feature["image/object/is_crowd"].int64_list.value) == [0, 1]
    assert feature["image/source_id"].bytes_list.value[0] == b"139"


def test_record_without_annotations_has_no_object_field():
    feature = tf.train.Example.FromString(make_record(boxes=None)).features.feature
    assert not [name for name in feature if name.startswith("image/object/")]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(
            st.lists(st.binary(max_size=200), max_size=3),
            st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(
                lambda values: np.array(values, np.float32)
            ),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(
                lambda values: np.array(values, np.int64)
            ),
        ),
        max_size=4,
    )
)
def test_any_example_round_trips_here_and_through_tensorflow(features):
    message = encode_example(features)
    theirs = tf.train.Example.FromString(message).SerializeToString()
    assert len(theirs) == len(message)
    for decoded in (decode_example(message, features), decode_example(theirs, features)):
        assert set(decoded) == set(features)
        for name, value in features.items():
            assert list(decoded[name]) == list(value)


@pytest.mark.parametrize("message", [b"\x0a\xff\x01abc", b"\x80", b"\x0b", JPEG])
def test_decoding_something_else_is_a_clear_error(message):
    with pytest.raises(ValueError, match=r"tf\.train\.Example"):
        decode_example(message, ["image/encoded"])


def test_wrong_number_of_labels_names_image_and_field():
    with pytest.raises(ValueError, match=r"image 139: expected 2 values of .*class/label.*got 1"):
        make_record(category_ids=[1])


def test_crc32c_published_values():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, section B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_files_are_read_by_tensorflow_and_the_other_way_round(tmp_path):
    lengths = (0, 1, 3, 127, 128, 129, 255, 256, 257, 1000, 4096, 4097, 12345, 100_003)
    records = [*map(np.random.default_rng(0).bytes, lengths), make_record()]
    assert write_records(tmp_path / "ours", records) == len(records)
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(tmp_path / "ours"))] == records
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in records:
            writer.write(record)
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()
    assert [bytes(record) for record in iterate_records(tmp_path / "theirs")] == records


def test_empty_file_has_no_record(tmp_path):
    write_records(tmp_path / "empty", [])
    assert count_records(tmp_path / "empty") == 0


@pytest.mark.parametrize("cut", [1, 10, 30, 50, 115])
def test_truncated_file_names_file_and_record(tmp_path, cut):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    write_records(path, [b"a" * 100, b"b" * 100])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.*record 1 .*truncated"):
        count_records(path)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.tfrecord").write_bytes(JPEG * 3)
    with pytest.raises(ValueError, match=r"x\.tfrecord: record 0"):
        count_records(tmp_path / "x.tfrecord")


def test_record_files_leaves_out_what_is_no_record(tmp_path):
    names = ["train-00001-of-00002.tfrecord", "train-00000-of-00002.tfrecord", "train-card.json",
             "train-x.tmp", "val-00000-of-00001"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "train-folder").mkdir()
    found = record_files(f"{tmp_path}/train-*")
    assert found == [f"{tmp_path}/{name}" for name in sorted(names[:2])]
    assert len(record_files(f"{tmp_path}/train-*,{tmp_path}/val-*")) == 3


def test_record_files_names_the_pattern_that_matches_nothing(tmp_path):
    (tmp_path / "train-card.json").touch()
    with pytest.raises(FileNotFoundError, match=r"train-\*"):
        record_files(f"{tmp_path}/train-*")
