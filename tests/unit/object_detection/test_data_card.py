"""Data cards: what they say, how they are found, and scanning records that have none."""

import dataclasses
import gc
import gzip
import sys

import numpy as np
import numpy_boxes
import pytest
from samples import record as make_record

from object_detection.coco.categories import COCO_CATEGORIES
from object_detection.records import schema
from object_detection.records.card import (
    Category,
    RecordFile,
    card_path,
    content_of,
    find_card,
    load_card,
    make_fingerprint,
    save_card,
)
from object_detection.records.card_builder import (
    Tally,
    build_card,
    card_from_records,
    find_or_scan_card,
)
from object_detection.records.example_proto import decode_example, encode_example
from object_detection.records.tfrecord_file import (
    iterate_records,
    publishing_marker,
    record_files,
    write_records,
)


def record(source_id, labels, *, names=None, crowd=None, **changes):
    boxes = [[0.0, 0.0, 4.0, 9.0]] * len(labels)
    given = {"category_ids": labels, "category_names": names or [""] * len(labels), **changes}
    given["is_crowd"] = crowd or [False] * len(labels)
    return make_record(source_id, (8, 16), boxes, areas=[36.0] * len(labels), **given)


def example_card(prefix="train", num_shards=2, **changes):
    tally = Tally()
    tally.add_image("7", (100, 200), boxes=np.array([[0.0, 0, 30, 30], [0, 0, 100, 200]]),
                    category_ids=[5, 9], is_crowd=[False, True])  # fmt: skip
    tally.add_image("8", (50, 300), boxes=np.zeros((0, 4)), category_ids=[], is_crowd=[])
    tally.counts.dropped["box: outside the image"] += 3
    tally.skipped_images.append(("9", "9.jpg", "empty file"))
    card = build_card(
        tally,
        split=prefix,
        categories=[(5, "cat"), (9, "dog"), (12, "cow")],
        shards=[RecordFile(f"{prefix}-{i:05d}-of-{num_shards:05d}.tfrecord", 1) for i in range(2)],
        mask_format="bitpacked",
        annotations_file="instances.json",
        annotations_sha256="abc",
    )
    return dataclasses.replace(card, **changes)


def write_set(folder, prefix="train", **changes):
    card = example_card(prefix, **changes)
    for shard in card.shards:
        (folder / shard.file).touch()
    save_card(card, folder / f"{prefix}-card.json")
    return card


def test_card_counts():
    card = example_card()
    assert card.num_images == 2
    assert card.num_images_without_boxes == 1
    assert (card.num_instances, card.num_crowd) == (2, 1)
    assert card.num_classes == 3
    assert card.categories[1] == Category(1, 9, "dog", instances=1, images=1)
    assert card.categories[2].instances == 0
    assert card.class_names == ("cat", "dog", "cow")
    assert card.category_ids == (5, 9, 12)
    assert (card.max_boxes_per_image, card.max_boxes_source_id) == (2, "7")
    assert (card.min_height, card.max_height) == (50, 100)
    assert (card.min_width, card.max_width) == (200, 300)
    assert card.skipped_source_ids == ("9",)
    # The crowd region is no box to learn from, so it is not in the statistics.
    assert card.box_statistics["sqrt_area_px"]["max"] == 30
    assert card.box_statistics["sqrt_area_relative"]["p50"] == pytest.approx(30 / 20000**0.5, 1e-4)
    assert card.box_statistics["boxes_per_image"]["max"] == 2


def test_tallies_merge_to_the_whole():
    rng = np.random.default_rng(0)
    whole, parts = Tally(), [Tally() for _ in range(3)]
    for index in range(9):
        count = int(rng.integers(0, 5))
        boxes = numpy_boxes.random(rng, count, high=50, side=(1, 50))
        for tally in (whole, parts[index // 3]):
            tally.add_image(str(index), (100, 100 + index), boxes=boxes,
                            category_ids=[1] * count, is_crowd=[False] * count)  # fmt: skip
    merged = Tally()
    for part in parts:
        merged.merge(part)
    arguments = {"split": "t", "categories": [(1, "a")], "shards": [], "mask_format": None}
    assert build_card(merged, **arguments) == build_card(whole, **arguments)


def test_fingerprint_follows_counts_categories_and_annotations():
    shards, categories = [RecordFile("a", 1), RecordFile("b", 2)], [Category(0, 1, "cat", 5, 5)]
    base = make_fingerprint(shards, categories, "f")
    assert base == make_fingerprint(shards, [Category(0, 1, "cat", 6, 6)], "f")
    assert base == make_fingerprint([RecordFile("x", 1), RecordFile("y", 2)], categories, "f")
    others = [
        make_fingerprint(shards[:1], categories, "f"),
        make_fingerprint(shards, [Category(0, 2, "cat")], "f"),
        make_fingerprint(shards, [Category(0, 1, "dog")], "f"),
        make_fingerprint(shards, categories, "g"),
        make_fingerprint([RecordFile("a", 1, "x"), shards[1]], categories, "f"),
    ]
    assert len({base, *others}) == 6


def test_exchanged_records_are_noticed(tmp_path):
    patterns = []
    for name, first in (("train", "1"), ("other", "2")):
        path = tmp_path / f"{name}-00000-of-00001.tfrecord"
        write_records(path, [record(first, [1]), record("3", [1])])
        save_card(card_from_records([str(path)]), tmp_path / f"{name}-card.json")
        patterns.append(f"{tmp_path}/{name}-*")
    ours, theirs = map(find_card, patterns)
    assert ours.num_images == theirs.num_images and ours.fingerprint != theirs.fingerprint
    (tmp_path / "other-00000-of-00001.tfrecord").replace(tmp_path / ours.shards[0].file)
    with pytest.raises(ValueError, match="changed or exchanged since they were converted.*train-0"):
        find_card(patterns[0])
    (tmp_path / "train-card.json").unlink()
    assert find_or_scan_card(patterns[0]).fingerprint == theirs.fingerprint


def test_content_is_that_of_the_whole_file_for_all_that_is_sampled(tmp_path):
    path = tmp_path / "file"
    data = bytearray(100_000)
    path.write_bytes(data)
    found = {content_of(path)}
    for position in (0, 50_001, 99_999):
        changed = data[:]
        changed[position] = 1
        path.write_bytes(changed)
        found.add(content_of(path))
    path.write_bytes(data + b"\0")
    assert len(found | {content_of(path)}) == 5


@pytest.mark.parametrize(
    "content", ["not json", "[]", "{}", '{"format_version": 99}', '{"format_version": 1}']
)
def test_broken_card_names_the_file(tmp_path, content):
    (tmp_path / "train-card.json").write_text(content)
    with pytest.raises(ValueError, match=r"train-card\.json is no data card"):
        load_card(tmp_path / "train-card.json")


def test_missing_card(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data card at"):
        load_card(tmp_path / "train-card.json")


@pytest.mark.parametrize(
    "pattern", ["train-*", "train-*.tfrecord", "train-0000?-of-00002*", "train*"]
)
def test_find_card_by_pattern(tmp_path, pattern):
    card = write_set(tmp_path)
    write_set(tmp_path, "val")
    assert find_card(f"{tmp_path}/{pattern}") == card


def test_pattern_of_some_shards_counts_only_their_images(tmp_path):
    card = write_set(tmp_path)
    part = find_card(f"{tmp_path}/train-00001-of-*")
    assert part.num_images == 1
    assert part.shards == card.shards[1:]
    assert part.categories == card.categories
    assert part.fingerprint != card.fingerprint


def test_find_card_under_another_name(tmp_path):
    card = write_set(tmp_path)
    (tmp_path / "train-card.json").rename(tmp_path / "my-card.json")
    assert find_card(f"{tmp_path}/train-*") == card


def test_find_card_of_foreign_records_is_none(tmp_path):
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    assert find_card(f"{tmp_path}/train-*") is None
    write_set(tmp_path, "val")
    assert find_card(f"{tmp_path}/train-*") is None
    # Two sets at once have no common card.
    assert find_card(f"{tmp_path}/*") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 99}'])
def test_a_broken_card_stops_only_the_records_that_are_called_like_it(tmp_path, content):
    card = write_set(tmp_path)
    (tmp_path / "train-card.json").rename(tmp_path / "my-card.json")
    (tmp_path / "old-card.json").write_text(content)
    assert find_card(f"{tmp_path}/train-*") == card
    (tmp_path / "my-card.json").unlink()
    assert find_card(f"{tmp_path}/train-*") is None
    (tmp_path / "val-00000-of-00001.tfrecord").touch()
    assert find_card(f"{tmp_path}/*.tfrecord") is None
    (tmp_path / "train-card.json").write_text(content)
    for pattern in ("train-*", "*.tfrecord"):
        with pytest.raises(ValueError, match="train-card.json is no data card"):
            find_card(f"{tmp_path}/{pattern}")


def test_find_card_in_the_current_folder(tmp_path, monkeypatch):
    card = write_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_card("train-*") == card


def test_card_that_does_not_agree_with_its_folder(tmp_path):
    write_set(tmp_path)
    stranger = tmp_path / "train-00000-of-00009.tfrecord"
    stranger.touch()
    with pytest.raises(ValueError, match="1 matching files are not in the card.*of-00009"):
        find_card(f"{tmp_path}/train-*")
    stranger.unlink()
    (tmp_path / "train-00001-of-00002.tfrecord").unlink()
    with pytest.raises(ValueError, match="1 files of the card do not exist"):
        find_card(f"{tmp_path}/train-*")


def test_half_published_set_is_refused_until_it_has_its_card(tmp_path):
    card = write_set(tmp_path)
    publishing_marker(tmp_path / "train").parent.mkdir()
    publishing_marker(tmp_path / "train").touch()
    assert find_card(f"{tmp_path}/train-*") == card
    card_path(tmp_path / "train").unlink()
    with pytest.raises(ValueError, match=r"train-\* is incomplete"):
        record_files(f"{tmp_path}/train-*")


def test_set_without_boxes_is_refused_for_training():
    example_card().require_boxes()
    with pytest.raises(ValueError, match="not one box.*instances"):
        example_card(num_instances=0).require_boxes()


def test_scan_foreign_records(tmp_path):
    files = [f"{tmp_path}/train-0000{i}-of-00002.tfrecord" for i in range(2)]
    write_records(files[0], [record("1", [20, 3, 3], names=["gear", "nut", "nut"],
                                    crowd=[False, False, True]), record("2", [])])  # fmt: skip
    write_records(files[1], [record("3", [3], names=["nut"])])
    seen = []
    card = find_or_scan_card(f"{tmp_path}/train-*", progress=lambda done, of: seen.append(done))
    assert seen == [1, 2]
    assert card.split == "train"
    assert [(c.category_id, c.name, c.instances, c.images) for c in card.categories] == [
        (3, "nut", 3, 2),
        (20, "gear", 1, 1),
    ]
    assert (card.num_images, card.num_instances, card.num_crowd) == (3, 4, 1)
    assert [shard.num_records for shard in card.shards] == [2, 1]
    assert (card.max_boxes_per_image, card.max_boxes_source_id) == (3, "1")
    assert card.box_statistics["sqrt_area_px"]["p50"] == pytest.approx(6)
    assert card.mask_format is None


def scan(tmp_path, *records):
    """Returns the card of records of another program."""
    path = f"{tmp_path}/val-00000-of-00001.tfrecord"
    write_records(path, records)
    return card_from_records([path])


@pytest.mark.parametrize("names", [["person", "toothbrush"], None], ids=["named", "unnamed"])
def test_scan_recognises_coco(tmp_path, names):
    card = scan(tmp_path, record("1", [1, 90], names=names))
    assert card.num_classes == 80
    assert card.categories[79] == Category(79, 90, "toothbrush", 1, 1)


def test_scan_names_unnamed_categories_outside_coco(tmp_path):
    card = scan(tmp_path, record("1", [0, 12]))  # 12 is one of the gaps in COCO's ids
    assert card.class_names == ("category 0", "category 12")


def test_scan_finds_masks_and_the_size_of_unsized_images(tmp_path):
    whole = record("1", [3], masks=[bytes(1568)], height=80, width=160)
    fields = decode_example(
        whole,
        ["image/encoded", schema.LABEL, schema.MASK_112, *(
            schema.XMIN, schema.XMAX, schema.YMIN, schema.YMAX)],
    )  # fmt: skip
    card = scan(tmp_path, encode_example(fields))
    assert card.mask_format == "bitpacked"
    assert (card.max_height, card.max_width) == (8, 16)
    assert card.max_boxes_source_id == ""


def test_scan_names_file_and_record_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"val-00000-of-00001\.tfrecord: record 1 is no image"):
        scan(tmp_path, record("1", [3]), encode_example({"other": [b"x"]}))


def test_records_with_names_alone_are_told_what_they_lack(tmp_path):
    kept = ("ENCODED", "HEIGHT", "WIDTH", "XMIN", "YMIN", "XMAX", "YMAX", "TEXT")
    kept = [getattr(schema, name) for name in kept]
    fields = decode_example(record("1", [3], names=["cat"]), kept)
    message = r"val-0.*record 0.*1 boxes but no image/object/class/label.*class/text alone.*write"
    with pytest.raises(ValueError, match=message):
        scan(tmp_path, encode_example(fields))


ALL_FIELDS = [value for name, value in vars(schema).items() if isinstance(value, str)]
F32, I64 = np.float32, np.int64


def changed(**changes):
    """One record of the class 3, nut, with other fields; None: without one."""
    fields = dict(decode_example(record("1", [3], names=["nut"]), ALL_FIELDS))
    for name, value in changes.items():
        fields[getattr(schema, name)] = value
    return encode_example({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"XMIN": np.zeros(2, F32)}, r"not as many values .*bbox/ymin 1, image/object/bbox/xmin 2"),
        ({"LABEL": np.ones(2, I64)}, "1 boxes but 2 labels in image/object/class/label"),
        ({"SOURCE_ID": np.ones(1, I64)}, "image/source_id holds int64, not bytes"),
        ({"SOURCE_ID": [b"caf\xe9"]}, r"image/source_id holds b'caf\\xe9', which is no UTF-8"),
        ({"LABEL": np.ones(1, F32)}, "image/object/class/label holds float32, not int64"),
        ({"LABEL": []}, "image/object/class/label holds bytes, not int64"),
        ({"XMIN": np.zeros(1, I64)}, "image/object/bbox/xmin holds int64, not float32"),
        ({"TEXT": np.ones(1, I64)}, "image/object/class/text holds int64, not bytes"),
        ({"LABEL": np.array([-1])}, "-1 in image/object/class/label: expected category ids from 0"),
        ({"ENCODED": None}, "no image/encoded, the picture's file; its fields are image/filename,"),
    ],
)
def test_fields_of_other_programs_that_are_not_what_is_read(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"val-0.*record 1 is no image record .*{message}"):
        scan(tmp_path, changed(), changed(**changes))


def test_a_class_has_one_name_in_all_records(tmp_path):
    card = scan(tmp_path, changed(), changed(TEXT=[b"NUT "]), changed(TEXT=[b""]))
    assert card.class_names == ("nut",)
    with pytest.raises(ValueError, match="id 3 is called 'gear', in another record 'nut': give"):
        scan(tmp_path, changed(), changed(TEXT=[b"gear"]))


def test_sloppy_boxes_and_fields_without_values_are_read(tmp_path):
    nothing = {name: np.zeros(0, F32) for name in ("XMIN", "XMAX", "YMIN", "YMAX")}
    nothing |= {"LABEL": np.zeros(0, I64), "TEXT": [], "SOURCE_ID": None}
    sloppy = {"XMIN": np.array([-0.5], F32), "XMAX": np.array([1.5], F32)}
    unknown = {"YMIN": np.array([np.nan], F32), "YMAX": np.array([np.inf], F32)}
    card = scan(tmp_path, changed(**sloppy), changed(**nothing), changed(**unknown))
    assert (card.num_images, card.num_instances, card.num_images_without_boxes) == (3, 2, 1)


def test_boxes_in_pixels_are_refused_where_most_are(tmp_path):
    far = {"XMAX": np.array([30], F32), "YMAX": np.array([20], F32)}
    card = scan(tmp_path, changed(), changed(**far))
    assert card.num_instances == 2  # training leaves it out by name
    message = r"val-0.*: 2 boxes as from .* to \[20\.0, 30\.0\]: expected shares .*are these pixels"
    with pytest.raises(ValueError, match=message):
        scan(tmp_path, changed(), changed(**far), changed(**far))


def test_compressed_records_are_said_to_be(tmp_path):
    path = tmp_path / "val-00000-of-00001.tfrecord"
    write_records(path, [record("1", [3])])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"tfrecord: compressed with gzip.*unpack it"):
        card_from_records([str(path)])


def test_an_error_in_a_record_leaves_no_other_behind(tmp_path, monkeypatch):
    """The file is mapped, and what led to the error holds views of it when the file is closed."""
    path = tmp_path / "val-00000-of-00001.tfrecord"
    write_records(path, [b"no message of any kind"])
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    records = iterate_records(path)
    record = next(records)
    view = record[1:3]
    records.close()
    assert bytes(view) == b"o "
    del records, record, view
    gc.collect()
    assert unraised == []


def test_coco_categories():
    assert len(COCO_CATEGORIES) == 80
    assert set(range(1, 91)) - set(COCO_CATEGORIES) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
