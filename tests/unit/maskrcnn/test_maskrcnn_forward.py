"""How the parts of Mask R-CNN are joined, with a network that gives what a test wants."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from mask_records import tiny_config

from maskrcnn.config import with_our_conventions
from maskrcnn.network.model import BoxOutputs, TrunkOutputs
from maskrcnn.regions import forward
from maskrcnn.regions.forward import Forward, GroundTruth
from object_detection.boxes.roi_align import roi_align
from object_detection.input.accelerator import assume_accelerator

SIZE, CHANNELS, NUM_CLASSES = 64, 3, 2
IMAGES = tf.zeros([2, SIZE, SIZE, 3])
IMAGE_SIZES = tf.fill([2, 2], float(SIZE))
SEED = tf.constant([3, 4])
HEADS = ("trunk", "roi_features", "boxes", "masks")


class Network:
    """Gives equal scores to all classes, no correction to boxes, and one logit to all masks.

    Attributes:
      seen: part -> (its input, `training`) of each call.
    """

    def __init__(self, model, *, mask_logit=4.0):
        self.num_classes, self.model, self.mask_logit = NUM_CLASSES, model, mask_logit
        rng = np.random.default_rng(0)
        sides = [SIZE // stride for stride in model.anchor_strides]
        maps = [rng.normal(size=(2, side, side, CHANNELS)).astype(np.float32) for side in sides]
        features = dict(zip(model.map_levels, maps))
        count = model.num_anchors_per_cell
        self.trunk = TrunkOutputs(
            {level: features[level] for level in model.roi_levels},
            [rng.normal(size=(2, side, side, count)).astype(np.float32) for side in sides],
            [tf.zeros([2, side, side, 4 * count]) for side in sides],
        )
        self.seen = {part: [] for part in HEADS}

    def __call__(self, images, training):
        self.seen["trunk"].append((images, training))
        return self.trunk

    def roi_features(self, rois, training):
        self.seen["roi_features"].append((rois, training))
        return rois

    def boxes(self, features, training):
        self.seen["boxes"].append((features, training))
        rows = features.shape[0]
        return BoxOutputs(tf.zeros([rows, NUM_CLASSES + 1]), tf.zeros([rows, NUM_CLASSES, 4]))

    def masks(self, features, training):
        self.seen["masks"].append((features, training))
        side = self.model.mask_size
        return tf.fill([features.shape[0], side, side, NUM_CLASSES], self.mask_logit)

    def masks_of_classes(self, features, classes, training):
        self.seen["masks"].append((features, training))
        return tf.fill([features.shape[0], 4, 4], tf.constant(self.mask_logit, tf.float16))


def make(name="maskrcnn-r50-fpn", *, mask_logit=4.0, **changes):
    """Makes forward passes and their network."""
    sizes = {"model__image_size": [SIZE, SIZE], "model__canvases": [[SIZE, SIZE]]}
    config = tiny_config(name, **sizes, **changes)
    config = dataclasses.replace(config, model=with_our_conventions(config.model))
    made = Network(config.model, mask_logit=mask_logit)
    return Forward(config, made), made


def truth_of(boxes=(), **changes):
    """Objects of class 1 at the same boxes in both images, which their masks fill."""
    rows = np.zeros([2, 4, 4], np.float32)
    rows[:, : len(boxes)] = np.reshape(boxes, [-1, 4])
    made = GroundTruth(
        boxes=tf.constant(rows),
        classes=tf.constant(np.where(np.arange(4) < len(boxes), [[1]] * 2, -1), tf.int32),
        crowds=None,
        packed_masks=tf.fill([2, 4, 1568], tf.constant(255, tf.uint8)),
        mask_frames=tf.constant(rows),
        is_mirrored=tf.constant([False, False]),
        image_sizes=IMAGE_SIZES,
        is_counted=tf.constant([True, True]),
    )
    return made._replace(**changes)


def losses_of(passes, truth, *, training=True):
    found = passes.losses(IMAGES, truth, training=training, seed=SEED)
    assert tuple(found) == passes.loss_names
    return {name: float(value) for name, value in found.items()}


BOX = (8.0, 8, 40, 40)


def test_losses_have_their_weights():
    weights = {"rpn_box": 3.0, "fast_rcnn_box": 5.0, "mask": 7.0}
    plain = losses_of(make()[0], truth_of([BOX]))
    weighted = make(
        loss__rpn_box_loss_weight=weights["rpn_box"],
        loss__fast_rcnn_box_loss_weight=weights["fast_rcnn_box"],
        loss__mrcnn_weight_loss_mask=weights["mask"],
    )[0]
    for name, value in losses_of(weighted, truth_of([BOX])).items():
        assert value == pytest.approx(plain[name] * weights.get(name[:-5], 1.0), rel=1e-6)
        assert value > 0.0


def test_nothing_on_a_crowd_is_background():
    everywhere = tf.constant([[[-999.0, -999.0, 999.0, 999.0]]] * 2)
    assert losses_of(make()[0], truth_of())["fast_rcnn_class_loss"] > 0.0
    assert set(losses_of(make()[0], truth_of(crowds=everywhere)).values()) == {0.0}


def test_as_many_proposals_as_training_and_evaluation_ask_for():
    counts = {"rpn__train_rpn_post_nms_topn": 3, "rpn__test_rpn_post_nms_topn": 5}
    passes, network = make(**counts)
    # Three regions of background, each -ln(1/3), of the 16 that were asked for.
    loss = losses_of(passes, truth_of())["fast_rcnn_class_loss"]
    assert loss == pytest.approx(3 * np.log(NUM_CLASSES + 1) / 16, rel=1e-5)
    passes.detect(IMAGES, IMAGE_SIZES)
    assert network.seen["boxes"][-1][0].shape[0] == 2 * 5


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_all_parts_is_told_whether_it_trains(training):
    passes, network = make()
    losses_of(passes, truth_of([BOX]), training=training)
    assert {part: calls[0][1] for part, calls in network.seen.items()} == dict.fromkeys(
        HEADS, training
    )
    passes, network = make()
    passes.detect(IMAGES, IMAGE_SIZES)
    assert {part: calls[0][1] for part, calls in network.seen.items()} == dict.fromkeys(
        HEADS, False
    )


def test_rpn_and_regions_are_sampled_by_seeds_of_their_own(monkeypatch):
    seeds = []
    for name in ("assign_rpn_targets", "sample_rois"):

        def recorded(function, *arguments, **options):
            seeds.append(tuple(options["seed"].numpy()))
            return function(*arguments, **options)

        monkeypatch.setattr(forward, name, functools.partial(recorded, getattr(forward, name)))
    for seed in (SEED, SEED + 1):
        make()[0].losses(IMAGES, truth_of(), training=True, seed=seed)
    assert len(set(seeds)) == 4


def test_heads_get_features_by_the_conventions_of_the_model():
    conventions = {"output_size": 5, "sampling_ratio": 1, "convention": "legacy"}
    passes, network = make(
        model__box_resolution=conventions["output_size"],
        model__roi_sampling_ratio=conventions["sampling_ratio"],
        model__roi_align_convention=conventions["convention"],
        model__iou_offset=1.0,
    )
    # By the offset alone its area reaches that of level 3.
    square = (4.0, 4.0, 4.0 + 111, 4.0 + 111)
    pooled = passes._pool(network.trunk, tf.constant([[square]] * 2), 5)
    features = {3: network.trunk.features[3]}
    expected = roi_align(features, tf.constant([[square]] * 2), **conventions)
    np.testing.assert_allclose(pooled, expected[:, 0], rtol=1e-5)
    passes.detect(IMAGES, IMAGE_SIZES)
    assert network.seen["boxes"][0][0].shape[1:] == (5, 5, CHANNELS)
    assert network.seen["masks"][0][0].shape[1:] == (14, 14, CHANNELS)


def half_masks():
    """The left half of each box, packed."""
    bits = np.zeros([112, 112], np.uint8)
    bits[:, :56] = 1
    return tf.constant(np.tile(np.packbits(bits.ravel()), [2, 4, 1]))


@pytest.mark.parametrize(
    ("left", "is_mirrored", "share"),
    [(8.0, False, 0.5), (8.0, True, 0.5), (-24.0, False, 0.0), (-24.0, True, 1.0)],
)
def test_masks_belong_to_boxes_that_are_not_clipped(left, is_mirrored, share):
    """Their right half is in the image: the left half of the mask in a mirrored one."""
    frames = np.zeros([2, 4, 4], np.float32)
    frames[:, 0] = 8, left, 40, 40
    box = (8.0, max(left, 8.0), 40.0, 40.0)
    truth = truth_of(
        [box],
        packed_masks=half_masks(),
        mask_frames=tf.constant(frames),
        is_mirrored=tf.constant([is_mirrored] * 2),
    )
    # No proposal is as good as the box itself.
    passes, _ = make(roi__fg_thresh=0.999)
    loss = losses_of(passes, truth)["mask_loss"]
    assert loss == pytest.approx(np.log1p(np.exp(4.0)) - 4.0 * share, rel=1e-4)


def test_the_mask_loss_is_divided_as_the_settings_say():
    masks = np.full([2, 4, 1568], 255, np.uint8)
    masks[1, :2], masks[0, 1] = 0, half_masks()[0, 0]
    truth = truth_of([BOX, (40.0, 40, 60, 60)], packed_masks=tf.constant(masks))
    wrong = np.log1p(np.exp(4.0))
    by_image = (2 * wrong - 6.0) / 2  # of the first image, of masks 1 and 1/2; the other has none
    for changes, expected in (
        ({}, by_image / 2),
        ({"loss__mask_normalizer": "batch"}, by_image),
    ):
        passes, _ = make(roi__fg_thresh=0.999, roi__fg_fraction=0.5, **changes)
        assert losses_of(passes, truth)["mask_loss"] == pytest.approx(expected, rel=1e-3)
        alone = losses_of(passes, truth._replace(is_counted=tf.constant([True, False])))[
            "mask_loss"
        ]
        assert alone == pytest.approx(by_image, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "norm", "objects", "expected"),
    [
        *[("needed", "", objects, max(objects, 1)) for objects in range(4)],
        ("needed", "batch_norm", 1, 3),
        ("auto", "", 1, 3),
    ],
)
def test_the_mask_head_runs_on_a_quarter_half_or_all_of_what_may_be_positive(
    asked, norm, objects, expected
):
    boxes = [(8.0, 8, 24, 24), (8.0, 40, 24, 60), (40.0, 8, 60, 24)]
    passes, network = make(
        model__mask_head_norm=norm,
        roi__mask_rois=asked,
        roi__batch_size_per_im=12,
        roi__fg_fraction=0.25,
        roi__fg_thresh=0.999,
    )
    classes = np.full([2, 4], -1, np.int32)
    classes[0, :objects] = 1  # the other image has none
    with assume_accelerator():
        losses_of(passes, truth_of(boxes, classes=tf.constant(classes)))
    assert network.seen["masks"][0][0].shape[0] == 2 * expected


def test_a_mask_head_of_its_own_gets_features_of_the_objects():
    passes, network = make(roi__fg_thresh=0.999)
    losses_of(passes, truth_of([BOX]))
    found = tf.reshape(network.seen["masks"][0][0], [2, -1, 14, 14, CHANNELS])[:, 0]
    expected = passes._pool(network.trunk, tf.constant([[BOX]] * 2), 14)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_mask_head_on_stage_5_shares_the_features_of_the_first_regions():
    passes, network = make("maskrcnn-r50-c4", roi__batch_size_per_im=8, roi__fg_fraction=0.25)
    losses_of(passes, truth_of([BOX]))
    features = tf.reshape(network.seen["boxes"][0][0], [2, 8, 14, 14, CHANNELS])
    shared = tf.reshape(network.seen["masks"][0][0], [2, 2, 14, 14, CHANNELS])
    np.testing.assert_array_equal(shared, features[:, :2])


def test_masks_are_probabilities_in_float32_and_none_of_padding():
    passes, _ = make(
        mask_logit=9.0,
        test__test_score_thresh=0.1,
        rpn__test_rpn_post_nms_topn=2,
        test__test_detections_per_image=6,
    )
    found, masks = passes.detect(IMAGES, IMAGE_SIZES)
    is_object = found.classes.numpy() >= 0
    assert (found.num_valid.numpy() == 4).all()  # two boxes of two classes
    np.testing.assert_allclose(masks.numpy()[is_object], 1 / (1 + np.exp(-9.0)), rtol=1e-6)
    assert masks.shape[:2] == (2, 6) and not masks.numpy()[~is_object].any()


def test_proposals_alone_are_detections_of_one_class():
    passes, network = make(
        "rpn-r50-fpn", rpn__test_rpn_post_nms_topn=6, test__test_detections_per_image=4
    )
    found, masks = passes.detect(IMAGES, IMAGE_SIZES)
    assert masks is None and found.boxes.shape == (2, 4, 4)
    best = -np.sort(-np.concatenate([x.reshape(2, -1) for x in network.trunk.rpn_logits], 1))
    assert found.scores.numpy()[0, 0] == pytest.approx(1 / (1 + np.exp(-best[0, 0])), rel=1e-5)
    np.testing.assert_array_equal(found.classes, np.zeros([2, 4]))
    np.testing.assert_array_equal(found.num_valid, [4, 4])
    assert (np.diff(found.scores.numpy()) <= 0).all()
    more, _ = make("rpn-r50-fpn", rpn__test_rpn_post_nms_topn=6)[0].detect(IMAGES, IMAGE_SIZES)
    np.testing.assert_array_equal(more.boxes[:, :4], found.boxes)
    # Of the anchors of 96 pixels, which are the whole image once clipped, one is left.
    whole, _ = make("rpn-r50-fpn", rpn__rpn_min_size=60.0)[0].detect(IMAGES, IMAGE_SIZES)
    np.testing.assert_array_equal(whole.boxes[:, 0], [[0, 0, SIZE, SIZE]] * 2)
    np.testing.assert_array_equal(whole.classes[:, :3], [[0, -1, -1]] * 2)
    np.testing.assert_array_equal(whole.num_valid, [1, 1])
