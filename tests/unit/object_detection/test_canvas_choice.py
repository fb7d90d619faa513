"""Choice of canvas by an image's shape, and grouping of records by canvas."""

import numpy as np
import pytest
import tensorflow as tf
from samples import encoded, record

from object_detection.input.canvases import best_frame, fit_size, frames_in_use, frames_of_networks
from object_detection.input.datasets import evaluation_batches, training_batches
from object_detection.input.geometry import Frames, unpack
from object_detection.input.loader import Augmentation, Reading, collect_batches
from object_detection.input.problems import InputProblems
from object_detection.records.reader import Shard, ordered_records, record_set
from object_detection.records.tfrecord_file import write_records

LIMITS = (832, 1344)
LANDSCAPE, PORTRAIT, SQUARE = (832, 1344), (1344, 832), (928, 928)
FRAMES = frames_of_networks([LANDSCAPE, PORTRAIT, SQUARE], side_limits=LIMITS, resize_on_host=True)
SMALL = frames_of_networks(
    [(32, 64), (64, 32), (40, 40)], side_limits=(32, 64), resize_on_host=True
)


def chosen(height, width, frames=FRAMES):
    size = tf.constant([height, width], tf.float32)
    frame = frames[int(best_frame(size, frames))]
    return frame.network_size, fit_size(size, frame).numpy()


def test_frames_are_in_order_of_size():
    assert [frame.network_size for frame in FRAMES] == [SQUARE, LANDSCAPE, PORTRAIT]


@pytest.mark.parametrize(
    ("size", "network", "scaled"),
    [
        ((480, 640), LANDSCAPE, (832, 1109.33)),
        ((640, 480), PORTRAIT, (1109.33, 832)),
        ((500, 500), SQUARE, (832, 832)),  # the short side's limit, though the canvas has more
        ((500, 540), SQUARE, (832, 898.56)),
        ((540, 500), SQUARE, (898.56, 832)),
        ((300, 900), LANDSCAPE, (448, 1344)),  # the long side's limit
        ((1000, 200), PORTRAIT, (1344, 268.8)),
    ],
)
def test_an_image_goes_to_the_smallest_canvas_that_holds_it(size, network, scaled):
    found, fits = chosen(*size)
    assert found == network
    scale = np.min(fits / size)
    np.testing.assert_allclose(np.array(size) * scale, scaled, atol=0.5)


@pytest.mark.parametrize(
    ("size", "limits", "network", "scaled"),
    [
        ((480, 1000), (800, 1333), LANDSCAPE, (639.84, 1333)),
        ((480, 1000), (1333, 800), LANDSCAPE, (639.84, 1333)),  # either order
        ((300, 900), (800, 900), SQUARE, (300, 900)),  # the smaller canvas holds it at that size
    ],
)
def test_the_long_sides_limit_holds_on_longer_canvases(size, limits, network, scaled):
    frames = frames_of_networks([LANDSCAPE, SQUARE], side_limits=limits, resize_on_host=True)
    found, fits = chosen(*size, frames)
    assert found == network
    np.testing.assert_allclose(np.array(size) * np.min(fits / size), scaled, rtol=1e-6)


@pytest.mark.parametrize(
    ("smallest", "largest", "networks"),
    [
        ((480, 640), (480, 640), [LANDSCAPE]),
        ((640, 480), (640, 480), [PORTRAIT]),
        ((480, 640), (640, 1280), [SQUARE, LANDSCAPE]),  # 640 x 640 may be among them
        ((300, 300), (640, 640), [SQUARE, LANDSCAPE, PORTRAIT]),
        ((0, 0), (480, 640), [SQUARE, LANDSCAPE, PORTRAIT]),  # of records without sizes
    ],
)
def test_frames_that_a_set_may_need(smallest, largest, networks):
    found = frames_in_use(FRAMES, smallest, largest)
    assert [frame.network_size for frame in found] == networks


def test_one_canvas_is_needed_whatever_images_there_are():
    frames = frames_of_networks([(512, 512)], resize_on_host=False)  # no limits of sides
    assert frames_in_use(frames, (100, 200), (300, 400)) == list(frames)


def test_with_one_canvas_a_portrait_image_shrinks_into_it():
    frames = frames_of_networks([LANDSCAPE], side_limits=LIMITS, resize_on_host=True)
    network, fits = chosen(640, 480, frames)
    assert network == LANDSCAPE
    assert np.min(fits / (640, 480)) == pytest.approx(832 / 640)


def test_canvases_are_bounded_by_the_largest_image_but_differ():
    sizes = [(64, 96), (96, 64)]
    made = frames_of_networks(
        sizes, side_limits=(64, 96), resize_on_host=False, largest_image=(100, 100)
    )
    assert [frame.canvas_size for frame in made] == [(80, 100), (100, 80)]
    made = frames_of_networks(
        sizes, side_limits=(64, 96), resize_on_host=False, largest_image=(50, 50)
    )
    assert [frame.canvas_size for frame in made] == [(50, 50), (58, 50)]


@pytest.mark.parametrize(
    ("network", "changes", "canvas"),
    [
        ((512, 640), {}, (640, 800)),  # a quarter larger
        ((512, 512), {"largest_image": (480, 700)}, (480, 640)),
        ((64, 64), {"canvas_size": (70, 72)}, (70, 72)),
        ((64, 96), {"canvas_size": (70, 72), "resize_on_host": True}, (64, 96)),
    ],
)
def test_the_canvas_of_one_network(network, changes, canvas):
    options = {"resize_on_host": False, **changes}
    assert frames_of_networks([network], **options) == (
        Frames(network, canvas, options["resize_on_host"]),
    )


def test_one_canvas_size_for_several_networks_is_refused():
    with pytest.raises(ValueError, match="canvas_size=50"):
        frames_of_networks(
            [(64, 96), (96, 64)], side_limits=(64, 96), resize_on_host=False, canvas_size=(50, 50)
        )


def test_without_limits_an_image_fills_the_network():
    assert fit_size(tf.constant([10.0, 20.0]), Frames((32, 32), (32, 32), True)) is None


# ------------------------------------------------------------------------------ batches

SHAPES = [(32, 64), (64, 32), (40, 40), (30, 60), (60, 30), (64, 31), (33, 64)]


def make_set(folder, *more):
    """Writes seven images of three shapes, one of them without its size, and more records."""
    contents = []
    for i, shape in enumerate(SHAPES):
        image = encoded(np.full((*shape, 3), 10 * i))
        size = (-1, -1) if i == 5 else shape
        contents.append(record(str(i), size, [[1, 2, 20, 25]], image=image, category_ids=[1]))
    write_records(str(folder / "part-0"), [*contents, *more])
    return record_set([str(folder / "part-0")])


@pytest.fixture
def records(tmp_path):
    return make_set(tmp_path)


def reading_of(records, *, max_bad_records=0):
    problems = InputProblems(records, max_bad_records=max_bad_records, max_instances=3)
    return Reading(2, tuple(SMALL), {1: 0}, problems, threads=1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_has_each_image_once_in_batches_of_one_shape(records, ranks):
    seen = []
    for rank in range(ranks):
        shard = Shard(rank, ranks)
        for batch in evaluation_batches(
            records, reading_of(records), shard=shard
        ).as_numpy_iterator():
            canvas = batch["image"].shape[1:3]
            assert batch["image"].shape == (2, *canvas, 3)
            for index in batch["record_index"][batch["valid"]]:
                assert chosen(*SHAPES[index], SMALL)[0] == canvas
                seen.append(int(index))
    assert sorted(seen) == list(range(len(SHAPES)))


def test_records_whose_size_cannot_be_found_out_are_bad_records(tmp_path):
    broken = record("7", (-1, -1), image=b"no image")
    records = make_set(tmp_path, broken, b"no record")
    reading = reading_of(records, max_bad_records=2)
    for _ in evaluation_batches(records, reading):
        pass
    assert set(reading.problems.bad_records) == {7, 8}
    with pytest.raises(tf.errors.OpError, match="cannot be used"):
        list(evaluation_batches(records, reading_of(records)))


@pytest.mark.parametrize("usual", [0, 1])
def test_unreadable_records_bring_no_canvas_into_use(tmp_path, usual):
    shapes = ((32, 64), (64, 32))
    broken = [record(str(i), (-1, -1), image=b"no image") for i in (0, 3)]
    image = encoded(np.zeros((*shapes[usual], 3)))
    box = {"boxes": [[1, 2, 20, 25]], "category_ids": [1]}
    good = [record(str(i), shapes[usual], image=image, **box) for i in (1, 2)]
    write_records(str(tmp_path / "part-0"), [broken[0], *good, broken[1]])
    records = record_set([str(tmp_path / "part-0")])
    reading = reading_of(records, max_bad_records=2)._replace(usual_size=shapes[usual])
    batches = list(evaluation_batches(records, reading).as_numpy_iterator())
    assert {batch["image"].shape[1:3] for batch in batches} == {shapes[usual]}
    assert [sum(batch["valid"]) for batch in batches] == [1, 1]
    assert set(reading.problems.bad_records) == {0, 3}


def training(records, start_batch, count):
    stream = training_batches(
        records,
        reading_of(records),
        augmentation=Augmentation(jitter=(1.0, 1.0), flip_probability=0.5, seed=3),
        start_position=start_batch * 2,
    )
    return list(stream.take(count).as_numpy_iterator())


def test_training_batches_have_one_shape_and_a_resumed_stream_equals_the_unbroken_one(records):
    unbroken, resumed = training(records, 0, 9), training(records, 4, 5)
    shapes = {batch["image"].shape for batch in unbroken}
    assert shapes == {(2, 32, 64, 3), (2, 64, 32, 3), (2, 40, 40, 3)}
    for expected, found in zip(unbroken[4:], resumed):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_images_keep_their_aspect(records):
    for batch in training(records, 0, 6):
        scale = np.asarray(unpack(tf.constant(batch["geometry"])).network_scale)
        np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=0.04)


def test_num_batches_cannot_be_known_with_several_canvases(records):
    with pytest.raises(ValueError, match="num_batches"):
        collect_batches(
            ordered_records(records, shard=Shard()),
            reading_of(records),
            augmentation=None,
            drop_crowd=False,
            num_batches=2,
        )
