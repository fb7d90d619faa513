"""Batches from records: bad records, padding, resume, ranks, kinds of images, masks."""

import numpy as np
import pytest
import tensorflow as tf
from samples import encoded, record

from object_detection.input import geometry as geometry_lib
from object_detection.input.canvases import frames_of_networks
from object_detection.input.datasets import evaluation_batches, training_batches
from object_detection.input.geometry import Frames
from object_detection.input.loader import Augmentation, Reading
from object_detection.input.problems import BadInputError, InputProblems
from object_detection.records import reader, schema
from object_detection.records.reader import Shard
from object_detection.records.tfrecord_file import write_records

FRAMES = Frames(network_size=(32, 48), canvas_size=(40, 60), resize_on_host=False)
CLASSES = {7: 0, 1: 1, 90: 2}  # category_id -> class_id
ROWS = 3


def plain(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def make_record(i, *, size=(40, 60), boxes=((4, 6, 20, 30),), image=None, **changes):
    """One image with objects of category 7, None for no annotation; its source_id is `id <i>`."""
    image = encoded(plain(*size, value=i)) if image is None else image
    return record(f"id {i}", size, boxes, image=image, **changes)


def make_set(folder, contents):
    """Writes the records to two files."""
    half = len(contents) // 2
    files = [str(folder / "part-0"), str(folder / "part-1")]
    write_records(files[0], contents[:half])
    write_records(files[1], contents[half:])
    return reader.record_set(files)


class Told(list):
    """Collects what the problems say."""

    def problems(self, records, **changes):
        limits = {"max_bad_records": 100, "max_instances": ROWS, **changes}
        return InputProblems(records, say=self.append, **limits)


def split(records, problems, changes):
    """Returns a Reading and the remaining changes."""
    reading = Reading(4, (FRAMES,), CLASSES, problems or Told().problems(records))
    of_reading = {name: changes.pop(name) for name in Reading._fields if name in changes}
    return reading._replace(**of_reading), changes


def evaluate(records, problems=None, **changes):
    reading, changes = split(records, problems, changes)
    return evaluation_batches(records, reading, **changes)


def train(records, problems=None, **changes):
    reading, changes = split(records, problems, changes)
    augmentation = Augmentation(jitter=(0.5, 1.5), flip_probability=0.5, seed=3)
    return training_batches(records, reading, **{"augmentation": augmentation, **changes})


def arrays(batches):
    """Returns the batches as a list of dicts of arrays."""
    return list(batches.as_numpy_iterator())


# ------------------------------------------------------------------------------ evaluation

GREY = np.tile(np.arange(40, dtype=np.uint8)[:, np.newaxis] * 3, (1, 60))
KINDS = {
    "plain": {},
    "no boxes": {"boxes": ()},
    "crowd": {"boxes": ((0, 0, 9, 9), (0, 0, 30, 30)), "is_crowd": [False, True]},
    "no annotation": {"boxes": None},
    "broken image": {"image": encoded(plain(40, 60), "JPEG")[:200]},
    "unusable boxes": {
        "boxes": ((float("nan"), 0, 5, 5), (0, 0, 2, 2), (3, 3, 3, 9), (0, 0, 3, 3), (0, 0, 4, 4))
    },
    "too many boxes": {
        "boxes": [(0, 0, side, side) for side in (3, 30, 2, 20, 10)],
        "category_ids": [7, 1, 90, 7, 1],
    },
    "grey": {"image": encoded(GREY, "JPEG")},
    "cmyk": {"image": encoded(plain(40, 60), "JPEG", mode="CMYK")},
    "alpha": {"image": encoded(np.full((40, 60, 4), 100, np.uint8))},
    "tiny": {"size": (1, 1), "boxes": ((0, 0, 1, 1),)},
    "huge": {"size": (1500, 2500), "image": encoded(plain(1500, 2500), "JPEG")},
    "flat": {"size": (3, 900), "boxes": ((0, 0, 3, 900),)},
}
INDEX = {kind: i for i, kind in enumerate(KINDS)}
NUM_RECORDS = len(KINDS) + 1  # and one that is no record at all


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    contents = [make_record(i, **kind) for i, kind in enumerate(KINDS.values())]
    return make_set(tmp_path_factory.mktemp("kinds"), [*contents, b"no record"])


@pytest.fixture(scope="module")
def evaluated(all_kinds):
    """(batches, what was said, problems) of a whole evaluation."""
    told = Told()
    problems = told.problems(all_kinds)
    dataset = evaluate(all_kinds, problems)
    rows = {"boxes": tf.float32, "classes": tf.int32, "is_crowd": tf.bool, "areas": tf.float32}
    assert dataset.element_spec == {
        "image": tf.TensorSpec((4, *FRAMES.canvas_size, 3), tf.uint8),
        "geometry": tf.TensorSpec((4, geometry_lib.GEOMETRY_SIZE)),
        **{name: tf.TensorSpec((4, ROWS, *[4] * (name == "boxes")), t) for name, t in rows.items()},
        "valid": tf.TensorSpec(4, tf.bool),
        "record_index": tf.TensorSpec(4, tf.int64),
        "source_id": tf.TensorSpec(4, tf.string),
    }
    return arrays(dataset), told, problems


def of_kind(batches, kind):
    """Returns the one example of a kind among batches, as a dict."""
    found = [
        {name: value[i] for name, value in batch.items()}
        for batch in batches
        for i in np.flatnonzero(batch["record_index"] == INDEX[kind])
        if batch["valid"][i]
    ]
    assert len(found) == 1
    return found[0]


def test_evaluation_gives_every_good_record_once_and_in_order(evaluated):
    batches, _, _ = evaluated
    bad = {INDEX["broken image"], NUM_RECORDS - 1}
    assert len(batches) == -(-NUM_RECORDS // 4)
    valid = np.concatenate([batch["valid"] for batch in batches])
    indices = np.concatenate([batch["record_index"] for batch in batches])
    ids = np.concatenate([batch["source_id"] for batch in batches])
    assert indices[valid].tolist() == [i for i in range(NUM_RECORDS) if i not in bad]
    assert ids[valid].tolist() == [f"id {i}".encode() for i in indices[valid]]
    assert (indices[~valid] == -1).all() and not valid[-1], "the last batch is filled up"
    for batch in batches:
        padding = ~batch["valid"]
        assert not batch["image"][padding].any() and not batch["boxes"][padding].any()
        assert (batch["classes"][padding] == -1).all()
        places = geometry_lib.unpack(batch["geometry"])
        assert np.isfinite(batch["geometry"]).all() and (places.network_scale > 0).all()


def test_bad_records_are_counted_with_file_place_and_reason(evaluated, all_kinds):
    _, told, problems = evaluated
    assert set(problems.bad_records) == {INDEX["broken image"], NUM_RECORDS - 1}
    file, position = all_kinds.locate(INDEX["broken image"])
    said = [line for line in told if "left out" in line and f"{file}, record {position}" in line]
    assert len(said) == 1
    assert "2 bad records left out" in problems.summary()


def test_rows_of_each_kind(evaluated):
    batches, told, problems = evaluated
    one = of_kind(batches, "plain")
    np.testing.assert_allclose(one["boxes"][0], [4, 6, 20, 30], rtol=1e-6)
    assert one["classes"].tolist() == [0, -1, -1] and one["areas"].tolist() == [10, 0, 0]
    for kind in ("no boxes", "no annotation"):
        assert of_kind(batches, kind)["classes"].tolist() == [-1] * 3
        assert not of_kind(batches, kind)["boxes"].any()
    crowd = of_kind(batches, "crowd")
    assert crowd["is_crowd"].tolist() == [False, True, False]
    assert crowd["classes"].tolist() == [0, 0, -1]
    usable = of_kind(batches, "unusable boxes")["boxes"]
    np.testing.assert_allclose(usable[:, 2], [2, 3, 4], rtol=1e-6)
    assert problems.images_with_unusable_boxes == {INDEX["unusable boxes"]: 2}
    many = of_kind(batches, "too many boxes")
    np.testing.assert_allclose(many["boxes"][:, 2], [30, 20, 10], rtol=1e-6)
    assert many["classes"].tolist() == [1, 0, 1], "the smallest go and the order stays"
    assert problems.images_over_limit == {INDEX["too many boxes"]: 5}
    assert any("max_instances_per_image=3 but image_id=id 6 has 5 boxes" in line for line in told)


def test_records_of_another_tool_may_lack_areas_crowds_sizes_and_ids(tmp_path):
    example = tf.train.Example.FromString(make_record(0))
    lacking = (schema.AREA, schema.IS_CROWD, schema.HEIGHT, schema.WIDTH, schema.SOURCE_ID)
    for name in lacking:
        del example.features.feature[name]
    contents = [example.SerializeToString()] * 2
    (batch,) = arrays(evaluate(make_set(tmp_path, contents), batch_size=2))
    np.testing.assert_allclose(batch["areas"][:, 0], 16 * 24, rtol=1e-5)
    assert not batch["is_crowd"].any() and batch["source_id"].tolist() == [b"", b""]


@pytest.mark.parametrize("kind", ["grey", "cmyk", "alpha", "tiny", "huge", "flat"])
def test_images_of_each_kind(evaluated, kind):
    one = of_kind(evaluated[0], kind)
    height, width = KINDS[kind].get("size", (40, 60))
    places = geometry_lib.unpack(one["geometry"])
    np.testing.assert_array_equal(places.original_size, [height, width])
    np.testing.assert_allclose(
        places.network_scale[0] * height, max(int(min(32 / height, 48 / width) * height), 1)
    )
    valid_height, valid_width = places.canvas_valid.astype(int)
    canvas = one["image"]
    assert canvas.shape == (*FRAMES.canvas_size, 3)
    assert not canvas[valid_height:].any() and not canvas[:, valid_width:].any()
    inside = canvas[:valid_height, :valid_width].astype(int)
    expected = {"grey": GREY[..., np.newaxis], "tiny": INDEX["tiny"], "flat": INDEX["flat"]}
    assert np.abs(inside - expected.get(kind, 100)).max() <= 3


def test_the_host_may_resample_to_the_networks_frame(all_kinds):
    frames = frames_of_networks([(32, 48)], resize_on_host=True)
    batches = arrays(evaluate(all_kinds, frames=frames))
    assert batches[0]["image"].shape == (4, 32, 48, 3)
    one = of_kind(batches, "plain")
    assert (one["image"][:32, :48] == INDEX["plain"]).all()
    huge = of_kind(batches, "huge")["image"]
    rows = int(1500 * 48 / 2500)
    assert (np.abs(huge[:rows].astype(int) - 100) <= 3).all() and not huge[rows:].any()


@pytest.mark.parametrize(("ranks", "batch_size", "most"), [(3, 2, None), (5, 4, 4)])
def test_ranks_share_the_evaluation_and_have_as_many_batches_each(
    tmp_path, ranks, batch_size, most
):
    """Seven records for three ranks; four for five ranks, of which one has padding only."""
    records = make_set(tmp_path, [make_record(i) for i in range(7)])
    seen, counts = [], []
    for rank in range(ranks):
        shard = Shard(rank, ranks)
        batches = arrays(evaluate(records, shard=shard, batch_size=batch_size, most_records=most))
        counts.append(len(batches))
        for batch in batches:
            assert batch["valid"].shape == (batch_size,)
            seen += batch["record_index"][batch["valid"]].tolist()
    assert seen == list(range(most or 7))
    assert len(set(counts)) == 1


# ------------------------------------------------------------------------------ training


def test_training_batches_are_full_and_drop_crowds_and_bad_records(all_kinds):
    told = Told()
    problems = told.problems(all_kinds)
    batches = arrays(train(all_kinds, problems, cache_below_bytes=0).take(3 * NUM_RECORDS // 4))
    bad = {INDEX["broken image"], NUM_RECORDS - 1}
    for batch in batches:
        assert batch["valid"].all()
        assert not bad & set(batch["record_index"].tolist())
        assert not batch["is_crowd"].any()
        assert np.isfinite(batch["boxes"]).all()
    indices = np.concatenate([batch["record_index"] for batch in batches])
    assert set(range(NUM_RECORDS)) - bad <= set(indices.tolist())
    assert set(problems.bad_records) == bad
    for index in bad:
        file, position = all_kinds.locate(index)
        said = [line for line in told if f"{file}, record {position} is left out" in line]
        assert len(said) == 1, "said once, not in each epoch"


@pytest.mark.parametrize("cache_below_bytes", [0, 1 << 30], ids=["streamed", "cached"])
def test_resumed_training_equals_the_unbroken_one(all_kinds, cache_below_bytes):
    """Also with bad records in it and with batches that reach from one epoch into the next."""
    augmentation = Augmentation(
        jitter=(0.5, 1.5), flip_probability=0.5, seed=3, translate=0.3, mixing_end_epoch=1
    )
    arguments = {"cache_below_bytes": cache_below_bytes, "augmentation": augmentation}
    unbroken = arrays(train(all_kinds, **arguments).take(9))
    mixing = np.concatenate([batch["mixing"] for batch in unbroken])
    assert mixing[:4].all() and not mixing[-4:].any()
    resumed = arrays(train(all_kinds, start_position=5 * 4, **arguments).take(4))
    for want, got in zip(unbroken[5:], resumed):
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value, name)


def test_augmentation_follows_the_seed_and_differs_between_epochs(tmp_path):
    records = make_set(tmp_path, [make_record(i) for i in range(4)])

    def geometry_by_record(seed, epochs=3):
        augmentation = Augmentation(jitter=(0.1, 2.0), flip_probability=0.5, seed=seed)
        batches = arrays(train(records, augmentation=augmentation).take(epochs))
        return [batch["geometry"][np.argsort(batch["record_index"])] for batch in batches]

    first, other = geometry_by_record(1), geometry_by_record(2)
    np.testing.assert_array_equal(geometry_by_record(1), first)
    drawn = {tuple(row) for epoch in (*first, *other) for row in epoch.tolist()}
    # Scaled sizes are whole pixels: at this size two draws may coincide.
    assert len(drawn) > 16


def test_a_batch_may_hold_more_images_than_there_are_records(tmp_path):
    records = make_set(tmp_path, [make_record(0), make_record(1)])
    batches = arrays(train(records, batch_size=5).take(2))
    indices = np.concatenate([batch["record_index"] for batch in batches]).reshape(5, 2)
    assert (np.sort(indices, axis=1) == [0, 1]).all()
    assert all(batch["valid"].all() for batch in batches)


def test_good_records_take_the_places_of_bad_ones_in_turn(tmp_path):
    records = make_set(
        tmp_path,
        [make_record(i, **({"image": b"none" * (i % 3)} if i % 2 else {})) for i in range(7)],
    )
    (batch,) = arrays(train(records, batch_size=7).take(1))
    found = batch["record_index"].tolist()
    assert sorted(found[:4]) == [0, 2, 4, 6] and found[4:] == found[:3]


def test_a_batch_of_bad_records_only_is_invalid_but_there(tmp_path):
    broken = [make_record(i, image=b"no image") for i in range(2)]
    records = make_set(tmp_path, [*broken, make_record(2), make_record(3)])
    batches = arrays(train(records, batch_size=2).take(20))
    bad = [batch for batch in batches if not batch["valid"].any()]
    assert bad and all((batch["classes"] == -1).all() for batch in bad)


# ------------------------------------------------------------------------------ refusals


def test_one_bad_record_more_than_allowed_ends_the_run(all_kinds):
    problems = Told().problems(all_kinds, max_bad_records=1)
    with pytest.raises(tf.errors.OpError, match="record .* cannot be used.*max_bad_records"):
        arrays(evaluate(all_kinds, problems))
    assert len(problems.bad_records) == 2


def test_an_unknown_category_ends_the_run(tmp_path):
    records = make_set(tmp_path, [make_record(0), make_record(1, category_ids=[55])])
    with pytest.raises(tf.errors.OpError, match="image_id=id 1 .* category id 55"):
        arrays(train(records).take(1))


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"image": b"no picture"}, r"part-1, record 0 cannot be used: .*\(image_id=id 1\): "),
        ({"boxes": [(0, 0, 9, 9)] * 5}, "image_id=id 1 has 5 boxes.*on_overflow=truncate"),
    ],
    ids=["bad record", "too many boxes"],
)
def test_what_ends_the_run_does_so_in_every_batch(tmp_path, faulty, message):
    """Of batches that are made at the same time the first to complain may never be used."""
    records = make_set(tmp_path, [make_record(0), make_record(1, **faulty)])
    problems = Told().problems(records, max_bad_records=0, on_overflow="error")
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match=message):
            arrays(evaluate(records, problems))


def some_problems(**changes):
    records = reader.RecordSet(("a", "b"), (3, 300))
    told = Told()
    return told.problems(records, **changes), told


def test_a_bad_record_is_counted_once():
    problems, told = some_problems(max_bad_records=1)
    problems.bad_record(4, "worn out")
    problems.bad_record(4, "worn out")
    assert told == ["file b, record 1 is left out: worn out (bad records so far: 1)"]
    with pytest.raises(BadInputError, match="file a, record 2.*: torn.*than the 1 allowed"):
        problems.bad_record(2, "torn")


def test_many_problems_are_not_all_spoken_of():
    problems, told = some_problems(max_bad_records=1000)
    for index in range(151):
        problems.bad_record(index, "worn out")
    assert 3 <= len(told) <= 30
    assert problems.summary() == "151 bad records left out"
    assert some_problems()[0].summary() == ""
    with pytest.raises(BadInputError, match="record 148 .*: torn. More than half of the 303 rec"):
        problems.bad_record(151, "torn")


def test_problems_refuse_an_unknown_policy():
    with pytest.raises(ValueError, match="'truncate' or 'error', got 'shrug'"):
        some_problems(on_overflow="shrug")


# ------------------------------------------------------------------------------ masks


def crops(*values):
    """Packed masks, each of one repeated byte."""
    return [bytes([value]) * schema.MASK_BYTES for value in values]


def test_masks_come_in_the_rows_of_their_boxes(tmp_path):
    two = ((4, 6, 20, 30), (1, 1, 10, 10))
    four = [(0, 0, 5, 5), (0, 0, 30, 30), (0, 0, 2, 2), (0, 0, 20, 20)]
    contents = [
        make_record(0, boxes=two, masks=crops(3, 5)),
        make_record(1, masks=crops(9)),
        make_record(2, boxes=()),
        make_record(3, boxes=two, masks=crops(7, 8), is_crowd=[True, False]),
        make_record(4, boxes=four, masks=crops(1, 2, 3, 4)),
        make_record(5, boxes=two),
    ]
    records = make_set(tmp_path, contents)
    (batch,) = arrays(evaluate(records, with_masks=True, batch_size=6))
    assert batch["masks"].shape == (6, ROWS, schema.MASK_BYTES)
    assert batch["masks"][:, :, 0].tolist() == [
        *([3, 5, 0], [9, 0, 0], [0, 0, 0], [7, 8, 0]),
        [1, 2, 4],  # the smallest box is left out
        [0, 0, 0],  # unknown
    ]
    assert batch["classes"][5].tolist() == [0, 0, -1]
    assert (batch["masks"] == batch["masks"][:, :, :1]).all()
    (batch,) = arrays(train(records, with_masks=True, batch_size=6).take(1))
    (row,) = np.flatnonzero(batch["record_index"] == 3)
    assert batch["masks"][row, :, 0].tolist() == [0, 8, 0]  # the crowd's row is empty
    assert batch["classes"][row].tolist() == [-1, 0, -1]
    assert "masks" not in arrays(evaluate(records))[0]


def test_masks_of_another_size_make_a_bad_record(tmp_path):
    told = Told()
    contents = [make_record(0, masks=crops(1)), make_record(1, masks=[b"short"])]
    records = make_set(tmp_path, contents)
    (batch,) = arrays(evaluate(records, told.problems(records), with_masks=True, batch_size=2))
    assert batch["valid"].tolist() == [True, False]
    assert "1568 bytes" in told[0]
