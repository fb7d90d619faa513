"""What a run's settings make of its input, and boxes that stay on their objects.

How batches come from records, good and bad, ranks and resumes: `test_host_batches.py`.
"""

import dataclasses

import numpy as np
import pytest
import samples
import tensorflow as tf

from detector import task as detector_task
from efficientdet.config import model_config
from efficientdet.losses import DetectionLosses
from efficientdet.settings import EfficientDetConfig
from efficientdet.task import EfficientDetTask
from engine.batches import iterate
from engine.config.settings import DataConfig, EvalConfig, TrainConfig
from engine.ranks import distributed
from object_detection.augment.mixing import Scenes
from object_detection.input import geometry as geometry_lib
from object_detection.input.loader import resizes_on_host
from object_detection.input.preprocess import ground_truth_in_network_frame, to_network_input
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.class_map import ClassMap
from object_detection.records.reader import Shard
from object_detection.records.tfrecord_file import write_records

SIDE = 64
HEIGHT, WIDTH = 60, 90
ROWS = 4
# Category ids with a gap, so that they differ from class ids.
CLASS_MAP = ClassMap(2, {0: (3, "ball"), 1: (8, "cup")})
RED = (250, 10, 10)


def jpeg(pixels):
    return samples.encoded(pixels, "JPEG", quality=95)


def picture(box):
    """A grey image with a red box (y1, x1, y2, x2)."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    y1, x1, y2, x2 = box
    pixels[y1:y2, x1:x2] = RED
    return pixels


def record(index, *, image=None, boxes=None, categories=None):
    box = (10 + index, 20, 40, 50 + index)
    boxes = [box] if boxes is None else boxes
    categories = categories or [8] * len(boxes)
    names = dict(CLASS_MAP.categories.values())
    return samples.record(
        str(1000 + index),
        (HEIGHT, WIDTH),
        boxes,
        image=jpeg(picture(box)) if image is None else image,
        image_format="jpeg",
        category_ids=categories,
        category_names=[names[category] for category in categories],
        areas=[float((b[2] - b[0]) * (b[3] - b[1])) for b in boxes],
    )


class InputTask(EfficientDetTask):
    """A task whose network is not needed."""

    build_model = staticmethod(lambda *_, **__: None)


class Records:
    """Record files in a folder, with what the data set functions need."""

    def __init__(self, folder, records, *, num_files=3):
        for i in range(num_files):
            write_records(
                folder / f"set-{i:05d}-of-{num_files:05d}.tfrecord", records[i::num_files]
            )
        self.pattern = str(folder / "set-*")
        self.card = find_or_scan_card(self.pattern)
        # Position in the set, which has one file after the other, of each record as given.
        self.index_of = {
            given: position
            for position, given in enumerate(
                given for i in range(num_files) for given in range(i, len(records), num_files)
            )
        }

    def config(self, *, batch_size=4, eval_samples=5000, use_fake_data=False, **data):
        settings = {
            "resize_on": "host",
            "max_instances_per_image": ROWS,
            "input_threads": 1,
            **data,
        }
        model = dataclasses.replace(model_config("efficientdet-d0"), image_size=(SIDE, SIDE))
        return EfficientDetConfig(
            model=model,
            data=DataConfig(training_file_pattern=self.pattern, **settings),
            train=TrainConfig(batch_size=batch_size, use_fake_data=use_fake_data),
            eval=EvalConfig(
                val_file_pattern=self.pattern, eval_batch_size=batch_size, eval_samples=eval_samples
            ),
        )

    def task(self, *, card=None, **settings):
        cards = {"train_card": card or self.card, "eval_card": self.card}
        return InputTask(self.config(**settings), CLASS_MAP, seed=5, **cards)

    def train(self, num_batches, **settings):
        dataset = self.task(**settings).train_dataset(shard=Shard(), start_step=0)
        return list(iterate(dataset.take(num_batches)))

    def eval(self, **settings):
        return list(iterate(self.task(**settings).eval_dataset(shard=Shard())))


@pytest.fixture
def ten(tmp_path):
    """Ten sound records; the first also has a box of the other category."""
    others = [record(i) for i in range(1, 10)]
    both = [(10, 20, 40, 50), (0, 0, 20, 20)]
    return Records(tmp_path, [record(0, boxes=both, categories=[8, 3]), *others])


def indices(batches):
    return np.concatenate([batch["record_index"].numpy() for batch in batches])


def test_category_ids_become_class_ids(ten):
    batches = ten.eval(batch_size=10)
    row = np.flatnonzero(batches[0]["source_id"].numpy() == b"1000")[0]
    np.testing.assert_array_equal(batches[0]["classes"][row], [1, 0, -1, -1])
    np.testing.assert_allclose(
        batches[0]["boxes"][row], [[10, 20, 40, 50], [0, 0, 20, 20], [0] * 4, [0] * 4], atol=1e-4
    )
    np.testing.assert_allclose(batches[0]["areas"][row], [900, 400, 0, 0])


def test_eval_samples_limits_the_evaluation(ten):
    batches = ten.eval(batch_size=4, eval_samples=6)
    assert sorted(index for index in indices(batches) if index >= 0) == list(range(6))


def test_evaluation_neither_crops_nor_mirrors(ten):
    for batch in ten.eval():
        places = geometry_lib.unpack(batch["geometry"])
        np.testing.assert_array_equal(places.flip, 0.0)
        np.testing.assert_array_equal(places.network_offset, 0.0)
        scale = tf.boolean_mask(places.network_scale, batch["valid"])
        np.testing.assert_allclose(scale, SIDE / WIDTH, rtol=0.02)


def test_fake_data_repeats_the_first_batch(ten):
    batches = ten.train(3, use_fake_data=True)
    np.testing.assert_array_equal(indices(batches[:1]), indices(batches[2:]))
    np.testing.assert_array_equal(batches[0]["image"], batches[2]["image"])


@pytest.mark.parametrize("resize_on", ["host", "device"])
def test_boxes_stay_on_their_objects(ten, resize_on):
    """Each drawn red box is found again where its ground truth says."""
    found = 0
    for batch in ten.train(4, batch_size=10, resize_on=resize_on, jitter_min=0.5):
        images = to_network_input(
            batch["image"],
            batch["geometry"],
            height=SIDE,
            width=SIDE,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            dtype=tf.float32,
            resized_on_host=resize_on == "host",
        ).numpy()
        boxes, classes = ground_truth_in_network_frame(batch, (SIDE, SIDE), drop_crowd=True)
        is_red = (images[..., 0] > 185) & (images[..., 1] < 65)
        for red, rows, ids in zip(is_red, boxes.numpy(), classes.numpy()):
            rows = rows[ids == 1]
            if not len(rows) or min(rows[0, 2:] - rows[0, :2]) < 4:
                continue
            ys, xs = np.nonzero(red)
            extent = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
            np.testing.assert_allclose(extent, rows[0], atol=1.5)
            found += 1
    assert found > 20


# ------------------------------------------------------------------------------ bad input


BAD_IMAGE = r"set-00001-of-00003\.tfrecord, record 1 .*on_bad_record"
SIX = [(0, 0, 10 + i, 10 + i) for i in (3, 9, 1, 7, 5, 8)]
SIX_BOXES = r"max_instances_per_image=4 but image_id=1004 has 6 boxes .*on_overflow=truncate"


@pytest.mark.parametrize(
    ("fault", "policy", "message"),
    [
        ({"image": b""}, {"on_bad_record": "error"}, BAD_IMAGE),
        ({"image": b""}, {"max_bad_records": 0}, BAD_IMAGE),
        ({"boxes": SIX}, {"on_overflow": "error"}, SIX_BOXES),
    ],
)
def test_one_bad_record_can_end_the_run(tmp_path, fault, policy, message):
    records = Records(tmp_path, [record(i, **(fault if i == 4 else {})) for i in range(10)])
    with pytest.raises(ValueError, match=message):
        records.train(4, **policy)


def test_bad_records_at_the_start_of_an_evaluation_are_named_in_one_line(tmp_path):
    bad = Records(tmp_path, [record(i, image=b"no picture") for i in range(4)])
    with pytest.raises(ValueError, match=r"^the input pipeline failed: file .*record \d .*\Z"):
        bad.task()._first_batch()


def test_a_card_of_other_records_is_found_out(ten):
    shards = tuple(dataclasses.replace(shard, num_records=7) for shard in ten.card.shards)
    with pytest.raises(ValueError, match=r"expected 7 records by its data card, found 4"):
        ten.train(1, card=dataclasses.replace(ten.card, shards=shards))


def test_images_are_resampled_on_the_host_where_there_is_no_accelerator(ten):
    assert resizes_on_host("host")
    assert not resizes_on_host("device")
    has_gpu = bool(tf.config.get_visible_devices("GPU"))
    assert resizes_on_host("auto") is not has_gpu


def test_the_canvas_can_be_given(ten):
    (frame,) = ten.task(resize_on="device", canvas_size=48).frames(ten.card)
    assert frame.canvas_size == (48, 48)


def test_scores_are_as_the_settings_say(ten):
    config = ten.config()
    assert InputTask(config, CLASS_MAP).score_threshold == 0.001  # 0 stands for it
    evaluation = {"max_detections": 300, "skip_eval": True, "testdev_dir": "folder"}
    changed = dataclasses.replace(
        config,
        eval=dataclasses.replace(config.eval, **evaluation),
        nms_configs=dataclasses.replace(config.nms_configs, score_thresh=0.3),
    )
    scores = InputTask(changed, CLASS_MAP).set_scores
    assert (scores.max_detections, scores.score_threshold) == (300, 0.3)
    assert (scores.is_scored, scores.is_submission, scores.has_masks) == (False, True, False)


def test_an_evaluation_has_no_more_images_than_there_are(ten):
    assert [ten.task(eval_samples=n).num_eval_examples for n in (6, 5000)] == [6, 10]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"flip_probability": 0.5, "jitter": (0.1, 2.0), "translate": 0.0}),
        ({"input_rand_hflip": False}, {"flip_probability": 0.0}),
        (
            {"jitter_min": 0.8, "jitter_max": 1.2, "translate": 0.3},
            {"jitter": (0.8, 1.2), "translate": 0.3},
        ),
        ({"mixing_end_epoch": 7}, {"mixing_end_epoch": 0}),  # nothing is mixed
        ({"mixing_end_epoch": 7, "mosaic": 0.5}, {"mixing_end_epoch": 7}),
        ({"mixing_end_epoch": 7, "mixup": 0.5}, {"mixing_end_epoch": 7}),
    ],
)
def test_training_is_augmented_as_the_settings_say(ten, monkeypatch, settings, expected):
    asked = {}
    monkeypatch.setattr(
        detector_task,
        "training_batches",
        lambda records, reading, **options: asked.update(options) or tf.data.Dataset.range(3),
    )
    ten.task(**settings).train_dataset(shard=Shard(1, 2), start_step=6)
    augmentation = asked["augmentation"]._asdict()
    assert {name: augmentation[name] for name in expected} == expected
    assert augmentation["seed"] == 5
    assert (asked["start_position"], asked["shard"]) == (24, Shard(1, 2))  # 6 steps of 4 images


def test_pixels_are_normalised_by_the_model(ten):
    task = ten.task()
    model = dataclasses.replace(
        task.config.model, mean_rgb=(10.0, 20.0, 30.0), stddev_rgb=(1.0, 2.0, 4.0)
    )
    task.config = dataclasses.replace(task.config, model=model)
    pixels = tf.constant([[[[14.0, 24.0, 34.0]]]])
    np.testing.assert_array_equal(task.normalised(pixels), [[[[4.0, 2.0, 1.0]]]])
    picture = tf.ones([1, SIDE, SIDE, 3], tf.uint8) * tf.constant([14, 24, 34], tf.uint8)
    size = tf.constant([[float(SIDE), float(SIDE)]])
    geometry = geometry_lib.pack(geometry_lib.fit_inside(size, height=SIDE, width=SIDE))
    found = task.network_input(picture, geometry, size=(SIDE, SIDE))
    np.testing.assert_array_equal(found[0, 5, 7], [4.0, 2.0, 1.0])


# ------------------------------------------------------------------------------ losses


def test_images_that_fill_up_a_validation_have_no_class_loss(ten):
    task = ten.task()
    boxes = tf.constant([[[10.0, 10.0, 40.0, 40.0]]] * 2)
    scenes = Scenes(tf.zeros([2, SIDE, SIDE, 3]), boxes, tf.constant([[1]] * 2), None)
    batch = {"valid": tf.constant([True, False])}
    trained, validated = (task._targets(batch, scenes, training=is_on) for is_on in (True, False))
    np.testing.assert_array_equal(trained.class_targets[0], trained.class_targets[1])
    assert set(np.unique(trained.class_targets)) == {1, CLASS_MAP.num_classes}
    np.testing.assert_array_equal(validated.class_targets[0], trained.class_targets[0])
    assert (validated.class_targets[1].numpy() == -1).all()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_joined_losses_are_divided_by_the_positives_of_all_ranks(ten, monkeypatch, accumulation):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    task = ten.task()
    optim = dataclasses.replace(task.config.optim, gradient_accumulation=accumulation)
    task.config = dataclasses.replace(task.config, optim=optim)
    positives = np.arange(2.0 * accumulation)
    sums = 10.0 + positives**2  # of the losses, before they are divided by positives + 1
    parts = [
        DetectionLosses(*[tf.constant(total / (count + 1)) for _ in range(4)], tf.constant(count))
        for total, count in zip(sums, positives)
    ]
    joined = [task._weighted(part, batch_size=4) for part in parts]
    weights = np.array([float(losses.weight) for losses in joined])
    for name in task.loss_names:
        found = np.average([float(losses.parts[name]) for losses in joined], weights=weights)
        assert found == pytest.approx(sums.sum() / (positives.sum() + 1.0), rel=1e-5)
    # A typical number of positives, 32 for each of four images, weighs 1.
    assert weights.sum() == pytest.approx((positives.sum() + 1.0) / (32 * 4), rel=1e-5)
    loss = dataclasses.replace(task.config.loss, loss_normalizer="rank")
    task.config = dataclasses.replace(task.config, loss=loss)
    alone = task._weighted(parts[1], batch_size=4)
    assert (float(alone.loss), float(alone.weight)) == (float(parts[1].det_loss), 1.0)
