"""The whole task at the smallest size: losses and gradients, detections, rows with masks."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from mask_records import mask_record, tiny_config, write_set
from pycocotools import mask as mask_api

from engine.batches import image_shape
from engine.task import MaskedRows, Shard
from maskrcnn.family import FAMILY
from object_detection.input import geometry as geometry_lib
from object_detection.masks.rows import unpack_mask
from object_detection.serve.detections import Detections, MaskDetections

OBJECTS = (((8, 10, 40, 60), 0), ((30, 30, 62, 50), 1))
LOSSES = ("rpn_score_loss", "rpn_box_loss", "fast_rcnn_class_loss", "fast_rcnn_box_loss")


def annotations():
    """The JSON of the records below, as a dictionary."""
    images = [{"id": i + 1, "height": 64, "width": 96, "file_name": f"{i}"} for i in range(3)]
    categories = [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}]
    return {"images": images, "categories": categories, "annotations": []}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    made = [mask_record(i, objects=OBJECTS) for i in range(2)]
    made.append(mask_record(2, objects=()))
    return write_set(tmp_path_factory.mktemp("set"), made)


def build(records, model_name="maskrcnn-r50-fpn", **changes):
    config = tiny_config(
        model_name,
        data__training_file_pattern=records[0],
        eval__val_file_pattern=records[0],
        **changes,
    )
    tf.keras.utils.set_random_seed(7)
    task = FAMILY.make_task(config, description={}, training=True, batch_norm=None, seed=5)
    task.set_scores.annotations = annotations()
    return task


@pytest.fixture(scope="module")
def task(records):
    return build(records)


@pytest.fixture(scope="module")
def batch(task):
    dataset = task.train_dataset(shard=Shard(0, 1), start_step=0)
    return task.device_batch(next(iter(dataset)))


SEED = (3, 4)


def losses_of(task, batch, seed=SEED, *, training=True):
    result = task.losses(batch, training=training, seed=tf.constant(seed))
    return float(result.loss), {k: float(v) for k, v in result.parts.items()}, float(result.weight)


@pytest.mark.quick
def test_losses_are_named_finite_and_add_up(task, batch):
    assert task.loss_names == (*LOSSES, "mask_loss")
    loss, parts, weight = losses_of(task, batch)
    assert tuple(parts) == task.loss_names and weight == 1.0
    assert np.isfinite(list(parts.values())).all() and min(parts.values()) > 0.0
    assert loss == pytest.approx(sum(parts.values()), rel=1e-6)


def test_every_trained_variable_gets_a_gradient(task, batch):
    with tf.GradientTape() as tape:
        loss = task.losses(batch, training=True, seed=tf.constant(SEED)).loss
    found = tape.gradient(loss, task.model.trainable_variables)
    names = [v.name for v, g in zip(task.model.trainable_variables, found) if g is None]
    assert names == []
    assert all(np.isfinite(g.numpy()).all() for g in found)
    by_part = {v.name.split("/")[0]: 0.0 for v in task.model.trainable_variables}
    for variable, gradient in zip(task.model.trainable_variables, found):
        by_part[variable.name.split("/")[0]] += float(tf.reduce_sum(tf.abs(gradient)))
    assert set(by_part) == {"backbone", "fpn", "rpn", "box_head", "mask_head"}
    assert min(by_part.values()) > 0.0
    assert float(loss) == pytest.approx(losses_of(task, batch)[0], rel=1e-3)


def test_batches_of_the_other_canvas_where_images_may_need_it(records, task, batch):
    assert task.in_other_shapes(batch) == []  # all are 64 x 96
    card = dataclasses.replace(records[1], max_height=120)
    task.train_card, kept = card, task.train_card
    (other,) = task.in_other_shapes(batch)
    task.train_card = kept
    assert image_shape(other) == (2, 96, 64, 3) and image_shape(batch) == (2, 64, 96, 3)
    assert other.keys() == batch.keys()
    assert np.isfinite(losses_of(task, other)[0])


def test_sampling_follows_the_seed(task, batch):
    first = losses_of(task, batch, training=False)[1]
    assert losses_of(task, batch, training=False)[1] == first
    other = losses_of(task, batch, (3, 5), training=False)[1]
    assert other["rpn_score_loss"] != first["rpn_score_loss"]


def test_images_that_only_fill_up_count_for_nothing(task, batch):
    whole = losses_of(task, batch, training=False)
    filled = {**batch, "valid": tf.constant([True, False])}
    half = losses_of(task, filled, training=False)
    other_box = batch["boxes"].numpy().copy()
    other_box[1] = [1, 1, 60, 90]
    changed = {**filled, "boxes": tf.constant(other_box)}
    assert half[2] == 0.5 and whole[2] == 1.0
    assert losses_of(task, changed, training=False)[1] == half[1] != whole[1]


def test_all_crops_unknown_leave_no_mask_loss(task, batch):
    unknown = {**batch, "masks": tf.zeros_like(batch["masks"])}
    assert losses_of(task, unknown)[1]["mask_loss"] == 0.0


@pytest.mark.parametrize(
    ("share", "jit_compile"),
    [
        (1.0, None),
        pytest.param(1.0, True, marks=[pytest.mark.nightly, pytest.mark.slow]),
        pytest.param(0.25, None, marks=[pytest.mark.nightly, pytest.mark.slow]),
    ],
)
def test_the_mask_head_needs_the_positive_rois_only(records, batch, share, jit_compile):
    found = {}
    for mask_rois in ("needed", "all"):
        task = build(records, roi__mask_rois=mask_rois, roi__fg_fraction=share)
        kernels = [
            v for v in task.model.trainable_variables if v.name.startswith(("mask_head", "fpn"))
        ]

        @tf.function(autograph=False, jit_compile=jit_compile)
        def step(seed, task=task, kernels=kernels):
            with tf.GradientTape() as tape:
                loss = task.losses(batch, training=False, seed=seed).parts["mask_loss"]
            return [loss, *tape.gradient(loss, kernels)]

        found[mask_rois] = [value.numpy() for value in step(tf.constant(SEED))]
        operations = {
            op.type for op in step.get_concrete_function(tf.constant(SEED)).graph.get_operations()
        }
        assert ("Case" in "".join(operations)) == (mask_rois == "needed")
    for needed, whole in zip(found["needed"], found["all"]):
        np.testing.assert_allclose(needed, whole, rtol=1e-4, atol=1e-6)


def test_a_batch_without_objects_trains(task, batch):
    empty = {
        **batch,
        "boxes": tf.zeros_like(batch["boxes"]),
        "classes": tf.fill(batch["classes"].shape, -1),
        "masks": tf.zeros_like(batch["masks"]),
    }
    parts = losses_of(task, empty)[1]
    assert parts["rpn_box_loss"] == parts["fast_rcnn_box_loss"] == parts["mask_loss"] == 0.0
    assert parts["rpn_score_loss"] > 0.0 and parts["fast_rcnn_class_loss"] > 0.0


def test_crowds_are_no_objects_and_where_they_count_no_background(records, batch):
    crowd = {**batch, "is_crowd": batch["classes"] >= 0}
    task = build(records, data__skip_crowd_during_training=False)
    truth = task._ground_truth(crowd, (64, 96))
    assert not (truth.classes.numpy() >= 0).any() and truth.crowds.numpy().any()
    np.testing.assert_array_equal(truth.boxes, np.zeros_like(truth.boxes))


def test_ground_truth_moves_with_a_mirrored_image(task):
    places = geometry_lib.fit_inside(tf.constant([[64.0, 96.0]]), height=64, width=96)
    packed = geometry_lib.pack(places._replace(flip=tf.constant([1.0])))
    made = {
        "boxes": tf.constant([[[8.0, 10.0, 40.0, 60.0]]]),
        "classes": tf.constant([[0]]),
        "is_crowd": tf.constant([[False]]),
        "geometry": packed,
        "valid": tf.constant([True]),
    }
    truth = task._ground_truth(made, (64, 96))
    np.testing.assert_allclose(truth.boxes[0, 0], [8, 36, 40, 86], atol=1e-4)
    np.testing.assert_allclose(truth.mask_frames, truth.boxes, atol=1e-4)
    assert truth.is_mirrored.numpy().tolist() == [True]
    np.testing.assert_allclose(truth.image_sizes, [[64, 96]])


# ------------------------------------------------------------------------------ detections


@pytest.fixture(scope="module")
def eval_batch(task):
    return next(iter(task.eval_dataset(shard=Shard(0, 1))))


@pytest.fixture(scope="module")
def found(task, eval_batch):
    predict = tf.function(task.predict, autograph=False)
    return predict(task.device_batch(eval_batch))


@pytest.mark.quick
def test_detections_have_masks_and_lie_in_the_image(found):
    assert isinstance(found, MaskDetections)
    assert found.boxes.shape == (2, 8, 4) and found.masks.shape == (2, 8, 28, 28)
    boxes, masks = found.boxes.numpy(), found.masks.numpy()
    assert (boxes >= 0).all() and (boxes <= [64, 96, 64, 96]).all()
    assert (masks >= 0).all() and (masks <= 1).all()
    assert not masks[found.classes.numpy() < 0].any()
    assert (np.diff(found.scores.numpy(), axis=1) <= 0).all()


def test_an_image_of_any_size_gives_what_its_canvas_gives(task, eval_batch, found):
    # The records' images have the canvas' size, so that no resampling is between the two.
    again = task.detect_images(eval_batch["image"])
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-4)
    np.testing.assert_allclose(again.boxes, found.boxes, atol=0.05)
    turned = task.detect_images(tf.zeros([1, 150, 100, 3], tf.uint8))
    assert turned.boxes.shape == (1, 8, 4)


def test_rows_carry_masks_pasted_into_their_images(task, eval_batch):
    square = np.ones([2, 3, 28, 28], np.float32)
    made = MaskDetections(
        boxes=tf.constant([[[4.0, 8.0, 20.0, 40.0], [0.0, 0.0, 64.0, 96.0], [0.0] * 4]] * 2),
        scores=tf.constant([[0.9, 0.8, 0.0]] * 2),
        classes=tf.constant([[0, 1, -1]] * 2),
        num_valid=tf.constant([2, 1]),
        masks=tf.constant(square),
    )
    found, images = task.detection_rows(eval_batch, made)
    assert isinstance(found, MaskedRows)
    assert images.tolist() == [0, 1]
    np.testing.assert_allclose(
        found.rows[:, :5], [[0, 8, 4, 32, 16], [0, 0, 0, 96, 64], [1, 8, 4, 32, 16]]
    )
    decoded = [mask_api.decode(unpack_mask(mask)) for mask in found.masks]
    assert decoded[0].shape == (64, 96) and decoded[0][4:20, 8:40].all()
    # Half a cell beyond the square there is nothing: corners of the image stay out.
    assert [int(mask.sum()) for mask in decoded] == [16 * 32, 64 * 96 - 4, 16 * 32]


def test_a_model_without_masks_trains_and_detects(records, batch, eval_batch):
    task = build(records, "fasterrcnn-r50-fpn")
    assert task.loss_names == LOSSES and not task.has_masks
    parts = losses_of(task, {k: v for k, v in batch.items() if k != "masks"})[1]
    assert tuple(parts) == LOSSES and np.isfinite(list(parts.values())).all()
    found = task.predict(task.device_batch(eval_batch))
    assert isinstance(found, Detections)
    rows, _ = task.detection_rows(eval_batch, found)
    assert rows.shape[1] == 7


def test_an_rpn_alone_trains(records, batch):
    task = build(records, "rpn-r50-fpn")
    assert task.loss_names == LOSSES[:2]
    assert losses_of(task, batch)[0] > 0.0


def test_the_solver_tells_biases_and_norms_apart(records):
    task = build(records, solver__bias_lr_factor=2.0, solver__decay_norm_scale=True)
    by_name = {v.name.removesuffix(":0"): v for v in task.model.trainable_variables}
    kernel, bias = by_name["rpn/conv/kernel"], by_name["rpn/conv/bias"]
    gamma = next(v for name, v in by_name.items() if name.endswith("/gamma"))
    beta = next(v for name, v in by_name.items() if name.endswith("/beta"))
    assert [task.learning_rate_factor(v) for v in (kernel, bias, gamma, beta)] == [1, 2, 1, 2]
    assert [task.is_decayed(v) for v in (kernel, bias, gamma, beta)] == [True, False, True, False]


def test_biases_and_norms_are_as_others_by_default(task):
    variables = task.model.trainable_variables
    assert {task.learning_rate_factor(v) for v in variables} == {1.0}
    decayed = {v.name.removesuffix(":0").split("/")[-1] for v in variables if task.is_decayed(v)}
    assert decayed == {"kernel"}


# Every model is one of these but for depth and left-out heads: test_maskrcnn_model.py.
NETWORKS = {
    "maskrcnn-r50-c4": {},
    "maskrcnn-r50-c5": {},
    "maskrcnn-x101-32x8d-fpn": {},
    "maskrcnn-r50-fpn-gn": {"model__norm": "group_norm"},
    "maskrcnn-r50-fpn-4conv1fc-gn": {"model__norm": "group_norm"},
    "fasterrcnn-r50-c4": {},
    "rpn-r50-c5": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_takes_a_step_that_lowers_its_loss(records, batch, name):
    small = {"model__num_norm_groups": 4, "model__box_conv_dim": 16, "model__backbone_width": 32}
    task = build(records, name, **small, **NETWORKS[name])
    variables = task.model.trainable_variables
    with tf.GradientTape() as tape:
        loss = task.losses(batch, training=True, seed=tf.constant(SEED)).loss
    gradients = tape.gradient(loss, variables)
    assert [v.name for v, g in zip(variables, gradients) if g is None] == []
    norm = float(tf.linalg.global_norm(gradients))
    assert 0.0 < norm < np.inf
    for variable, gradient in zip(variables, gradients):
        variable.assign_sub(gradient * (0.02 * float(loss) / norm**2))
    after = task.losses(batch, training=True, seed=tf.constant(SEED)).loss
    assert float(after) < float(loss)


def test_images_of_all_kinds_share_a_batch(tmp_path):
    """A portrait, a landscape, an empty, a crowd-only image, and one of 300 objects."""
    many = tuple(
        ((4.0 * (i // 20), 4.0 * (i % 20), 4.0 * (i // 20) + 3, 4.0 * (i % 20) + 3), i % 2)
        for i in range(300)
    )
    made = [
        mask_record(0, size=(96, 48), objects=(((8, 10, 60, 40), 0),)),
        mask_record(1, size=(48, 96), objects=OBJECTS[:1]),
        mask_record(2, objects=()),
        mask_record(3, objects=OBJECTS, is_crowd=[1, 1]),
        mask_record(4, size=(80, 80), objects=many),
    ]
    task = build(
        write_set(tmp_path, made),
        model__image_size=[96, 96],
        model__canvases=[[96, 96]],
        data__max_instances_per_image=300,
        train__batch_size=5,
        eval__eval_batch_size=5,
    )
    train = next(iter(task.train_dataset(shard=Shard(0, 1), start_step=0)))
    counts = (train["classes"].numpy() >= 0).sum(axis=1)
    assert sorted(counts) == [0, 0, 1, 1, 300]
    _, parts, weight = losses_of(task, task.device_batch(train))
    assert weight == 1.0 and np.isfinite(list(parts.values())).all()
    batch = next(iter(task.eval_dataset(shard=Shard(0, 1))))
    found = task.predict(task.device_batch(batch))
    sizes = geometry_lib.unpack(batch["geometry"]).original_size.numpy()
    assert len({tuple(size) for size in sizes}) == 4
    boxes = found.boxes.numpy()
    assert np.isfinite(found.masks).all() and (boxes >= 0.0).all()
    assert (boxes[..., 2:] <= sizes[:, None] + 1e-3).all()
