"""Random crops, pixels and boxes against a NumPy model that works on the whole image, step by step.

The model is that of the EfficientDet reference: mirror the image, scale it into `s` times the
network size with `s ~ U(0.1, 2)` and truncated sizes, crop at a uniform whole offset, pad at bottom
and right, move the boxes likewise, clip them and drop those without area. Two departures are in it:
the resize is antialiased, and boxes are clipped to the network size, not to one pixel less.
"""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image
from samples import encoded, record

from object_detection.input import crop_decode, preprocess
from object_detection.input import geometry as geometry_lib
from object_detection.input.datasets import training_batches
from object_detection.input.geometry import Frames
from object_detection.input.loader import Augmentation, Reading
from object_detection.input.problems import InputProblems
from object_detection.records import reader
from object_detection.records.tfrecord_file import write_records

JITTER = (0.1, 2.0)
MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)


# ------------------------------------------------------------------------------ the model


def model_crop(uniforms, size, network):
    """Returns (scaled size, offset in the mirrored image, mirrored?), each [n, ...], by float64."""
    u = np.asarray(uniforms, np.float64).reshape(-1, 4)
    factor = JITTER[0] + u[:, :1] * (JITTER[1] - JITTER[0])
    target = np.floor(factor * network)
    scale = (target / size).min(axis=1, keepdims=True)
    scaled = np.maximum(np.floor(scale * size + 1e-6), 1)
    offset = np.floor(np.maximum(scaled - network, 0) * u[:, 1:3])
    return scaled, offset, u[:, 3] < 0.5


def model_boxes(size, scaled, offset, mirrored):
    """Moves BOXES of an image into each of n crops: [n, m, 4], zero where nothing is left."""
    boxes = np.tile(BOXES * np.tile(size, 2), (len(scaled), 1, 1))
    boxes[mirrored] = np.stack(
        [
            boxes[mirrored, :, 0],
            size[1] - boxes[mirrored, :, 3],
            boxes[mirrored, :, 2],
            size[1] - boxes[mirrored, :, 1],
        ],
        axis=-1,
    )
    moved = boxes * np.tile(scaled / size, 2)[:, np.newaxis] - np.tile(offset, 2)[:, np.newaxis]
    moved = np.clip(moved, 0, np.tile(DRAWN_NETWORK, 2))
    has_area = (moved[..., 2:] > moved[..., :2]).all(axis=-1)
    return moved * has_area[..., np.newaxis]


def model_pixels(pixels, network, *, scaled, offset, mirrored):
    """Mirrors, resizes the whole image with Pillow, crops and pads; float64 [*network, 3]."""
    height, width = (int(side) for side in scaled)
    top, left = (int(side) for side in offset)
    pixels = pixels[:, ::-1] if mirrored else pixels
    channels = [Image.fromarray(channel) for channel in np.float32(pixels.transpose(2, 0, 1))]
    channels = [each.resize((width, height), Image.Resampling.BILINEAR) for each in channels]
    resized = np.stack([np.asarray(each) for each in channels], axis=-1)
    part = resized[top : top + network[0], left : left + network[1]]
    result = np.zeros((*network, 3))
    result[: part.shape[0], : part.shape[1]] = part
    return result


# ------------------------------------------------------------------------------ one crop


def picture(height, width, *, grain=12):
    """Smooth colours with fine grain of so many levels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width] * 1.0
    smooth = [
        128 + 90 * np.sin(rows / 17 + 1) * np.cos(columns / 23),
        128 + 90 * np.cos(rows / 31) * np.sin(columns / 13 + 2),
        40 + 170 * columns / width,
    ]
    noise = rng.uniform(-grain, grain, (height, width, 3))
    return np.clip(np.stack(smooth, axis=-1) + noise, 0, 255).astype(np.uint8)


def network_pixels(file, uniforms, network, *, resize_on_host):
    """Runs host and device on one image; float32 [*network, 3] in 0..255, padding 0."""
    image = crop_decode.open_image(tf.constant(file))
    crop = crop_decode.sample_crop(
        tf.constant(uniforms, tf.float32),
        image.size,
        network_size=network,
        jitter=JITTER,
        flip_probability=0.5,
    )
    canvas = network if resize_on_host else tuple(side * 5 // 4 for side in network)
    pixels, packed = crop_decode.decode_crop(image, crop, Frames(network, canvas, resize_on_host))
    padded = np.zeros((1, *canvas, 3), np.uint8)
    padded[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    result = preprocess.to_network_input(
        tf.constant(padded),
        packed[tf.newaxis],
        height=network[0],
        width=network[1],
        mean=MEAN,
        std=STD,
        dtype=tf.float32,
        resized_on_host=resize_on_host,
    )[0].numpy()
    is_padding = (result == 0.0).all(axis=-1, keepdims=True)
    return np.where(is_padding, 0.0, result * STD + MEAN)


def scaled_crop(pixels, factor, mirrored):
    """Random numbers for `factor` times the network, the model's scaled size and its pixels."""
    uniforms = [(factor - JITTER[0]) / (JITTER[1] - JITTER[0]), 0.4, 0.7, 0.1 if mirrored else 0.9]
    (scaled,), (offset,), _ = model_crop(uniforms, pixels.shape[:2], NETWORK)
    expected = model_pixels(pixels, NETWORK, scaled=scaled, offset=offset, mirrored=mirrored)
    return uniforms, scaled, expected


NETWORK = (48, 64)
# name: image size, factor of the network size.
CASES = {
    "reduced and padded": ((150, 200), 0.41),
    "reduced a lot": ((150, 200), 0.13),
    "reduced and cropped": ((150, 200), 1.53),
    "as large as the network": ((96, 128), 1.0),
    "enlarged and cropped": ((30, 40), 1.9),
    "enlarged and padded": ((10, 7), 0.9),
    "tall": ((220, 40), 1.7),
    "wide": ((25, 230), 1.7),
}


@pytest.mark.parametrize("resize_on_host", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_whole_image_resized_then_cropped(case, mirrored, resize_on_host):
    size, factor = CASES[case]
    pixels = picture(*size)
    uniforms, _, expected = scaled_crop(pixels, factor, mirrored)
    got = network_pixels(encoded(pixels), uniforms, NETWORK, resize_on_host=resize_on_host)
    # Rounding to uint8 on the way: half a level, and a little where it is resampled once more.
    assert np.abs(got - expected).max() < 0.75


def shift_between(got, expected):
    """Least squares: by how many pixels (y, x) `got` lies after `expected`, both [h, w, 3]."""
    slopes = np.stack(np.gradient(expected, axis=(0, 1)), axis=-1)
    constants = np.broadcast_to(np.eye(3), (*got.shape[:2], 3, 3))  # a bias of each channel
    columns = np.concatenate([slopes, constants], axis=-1)[1:-1, 1:-1].reshape(-1, 5)
    solution = np.linalg.lstsq(columns, (got - expected)[1:-1, 1:-1].ravel(), rcond=None)[0]
    return -solution[:2]


@pytest.mark.parametrize("resize_on_host", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize(("factor", "ratio"), [(1.8, 1), (1.0, 2), (0.5, 4), (0.24, 8), (0.13, 8)])
def test_jpeg_pixels_with_the_decoders_ratio(factor, ratio, mirrored, resize_on_host):
    """Reduced while decoding: near the filter's result, not equal to it, and in the same place."""
    file = encoded(picture(122, 170, grain=2), "JPEG", quality=95, subsampling=0)
    pixels = tf.io.decode_jpeg(file, channels=3).numpy()
    uniforms, scaled, expected = scaled_crop(pixels, factor, mirrored)
    assert ratio <= (pixels.shape[:2] / scaled).min() + 1e-5, "the case is what it says"
    got = network_pixels(file, uniforms, NETWORK, resize_on_host=resize_on_host)
    height, width = (int(min(pair)) for pair in zip(scaled, NETWORK))
    assert (got[height:] == 0).all() and (got[:, width:] == 0).all()
    got, expected = got[:height, :width], expected[:height, :width]
    error = np.abs(got - expected)
    # The decoder's arithmetic at full size and that of reduced sizes differ by a level.
    assert error.mean() < 2.0
    assert error.max() < 8.0
    assert np.abs(shift_between(got, expected)).max() < 0.05


@pytest.mark.parametrize("size", [(427, 640), (640, 480), (50, 37), (9, 1200)], ids=str)
def test_crops_equal_the_models_for_equal_random_numbers(size):
    network = (384, 512)
    uniforms = np.random.default_rng(5).uniform(size=(2000, 4)).astype(np.float32)

    def one(row):
        return crop_decode.sample_crop(
            row,
            tf.constant(size, tf.float32),
            network_size=network,
            jitter=JITTER,
            flip_probability=0.5,
        )

    crops = tf.vectorized_map(one, tf.constant(uniforms))
    scaled, offset, mirrored = model_crop(uniforms, size, network)
    # A crop is given by its offset from the left of the image as stored.
    offset[mirrored, 1] = (scaled - network - offset)[mirrored, 1]
    np.testing.assert_array_equal(crops.flip.numpy() > 0.5, mirrored)
    for got, want in ((crops.scaled_size, scaled), (crops.offset, offset)):
        difference = np.abs(got.numpy() - want)
        # Where float32 and float64 truncate to different whole pixels, and what follows from it.
        assert (difference == 0).all(axis=1).mean() > 0.995
        assert difference.max() <= 2


# ------------------------------------------------------------------------------ distributions

DRAWN_SIZES = ((48, 64), (64, 48), (21, 64), (60, 60))
BOXES = np.array([[0.45, 0.4, 0.6, 0.55], [0.02, 0.9, 0.1, 1.0], [0.1, 0.1, 0.9, 0.95]])
DRAWN_NETWORK = (256, 320)
RECORDS, EPOCHS = 400, 10


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Geometry and moved boxes of many records and epochs, through the training input."""
    records = []
    for i in range(RECORDS):
        size = DRAWN_SIZES[i % len(DRAWN_SIZES)]
        records.append(record(str(i), size, BOXES * np.tile(size, 2), category_ids=[1, 2, 3]))
    path = tmp_path_factory.mktemp("drawn") / "set.tfrecord"
    write_records(path, records)
    record_set = reader.record_set([str(path)])
    batches = training_batches(
        record_set,
        Reading(
            batch_size=100,
            frames=(Frames(DRAWN_NETWORK, (64, 64), False),),
            class_of_category={1: 0, 2: 1, 3: 2},
            problems=InputProblems(record_set, max_bad_records=0, max_instances=4),
        ),
        augmentation=Augmentation(jitter=JITTER, flip_probability=0.5, seed=11),
    )
    columns = {"index": [], "geometry": [], "boxes": [], "classes": []}
    for batch in batches.take(RECORDS * EPOCHS // 100):
        boxes, classes = preprocess.ground_truth_in_network_frame(
            batch, DRAWN_NETWORK, drop_crowd=True
        )
        values = batch["record_index"], batch["geometry"], boxes[:, :3], classes[:, :3]
        for column, value in zip(columns.values(), values):
            column.append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def are_alike(sample, other):
    """Whether Kolmogorov and Smirnov's test finds no difference at 0.1%."""
    return scipy.stats.ks_2samp(sample, other, method="asymp").pvalue > 0.001


def drawn_crops(drawn, size):
    """Scaled size, offset in the mirrored image, mirrored? of what was drawn for one image size."""
    places = geometry_lib.unpack(drawn["geometry"])
    mine = (places.original_size == np.float32(size)).all(axis=1)
    scaled = np.round((places.network_scale * places.original_size)[mine])
    offset, mirrored = places.network_offset[mine].copy(), places.flip[mine] > 0.5
    offset[mirrored, 1] = (scaled - DRAWN_NETWORK - offset)[mirrored, 1]
    return mine, scaled, offset, mirrored


@pytest.mark.parametrize("size", DRAWN_SIZES, ids=str)
def test_scales_offsets_and_surviving_boxes_are_distributed_as_the_models(drawn, size):
    mine, scaled, offset, mirrored = drawn_crops(drawn, size)
    assert mine.sum() == RECORDS * EPOCHS // len(DRAWN_SIZES)
    uniforms = np.random.default_rng(2).uniform(size=(40_000, 4))
    model_scaled, model_offset, model_mirrored = model_crop(uniforms, size, DRAWN_NETWORK)
    for axis in (0, 1):
        assert are_alike(scaled[:, axis], model_scaled[:, axis])
        assert are_alike(offset[:, axis], model_offset[:, axis])
        for is_flipped in (False, True):
            chosen, model_chosen = mirrored == is_flipped, model_mirrored == is_flipped
            assert are_alike(offset[chosen, axis], model_offset[model_chosen, axis])
    deviation = np.sqrt(0.25 / len(mirrored))
    assert abs(mirrored.mean() - 0.5) < 4 * deviation

    expected = model_boxes(size, model_scaled, model_offset, model_mirrored)
    for k in range(len(BOXES)):
        survives = drawn["classes"][mine, k] == k
        assert set(drawn["classes"][mine, k].tolist()) <= {-1, k}
        model_survives = expected[:, k, 2] > 0
        share = model_survives.mean()
        assert abs(survives.mean() - share) < 4 * np.sqrt(share * (1 - share) / mine.sum()) + 1e-9
        for corner in range(4):
            got = drawn["boxes"][mine, k, corner][survives]
            assert are_alike(got, expected[model_survives, k, corner])


def test_boxes_of_each_drawn_crop_are_the_models(drawn):
    """The same crops, box by box."""
    for size in DRAWN_SIZES:
        mine, scaled, offset, mirrored = drawn_crops(drawn, size)
        expected = model_boxes(size, scaled, offset, mirrored)
        np.testing.assert_allclose(drawn["boxes"][mine], expected, atol=2e-3)


def test_draws_of_records_and_epochs_are_independent(drawn):
    places = geometry_lib.unpack(drawn["geometry"])
    scale = places.network_scale[:, 0] * places.original_size[:, 0]
    by_epoch = np.zeros((EPOCHS, RECORDS))
    flips = np.zeros((EPOCHS, RECORDS))
    for epoch in range(EPOCHS):
        rows = slice(epoch * RECORDS, (epoch + 1) * RECORDS)
        by_epoch[epoch, drawn["index"][rows]] = scale[rows]
        flips[epoch, drawn["index"][rows]] = places.flip[rows]
    for values in (by_epoch, flips):
        # Records of one image size only: others have another range of scales.
        values = values[:, :: len(DRAWN_SIZES)]
        limit = 4 / np.sqrt(values.size)
        for one, other in (
            (values[1:], values[:-1]),  # the same record in the next epoch
            (values[:, 1:], values[:, :-1]),  # the next record
            (values[1:, 1:], values[:-1, :-1]),
        ):
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < limit
    # Scale and flip of one draw.
    assert abs(np.corrcoef(by_epoch[:, ::4].ravel(), flips[:, ::4].ravel())[0, 1]) < 0.06
