"""Targets of RPN, box head and mask head: hand-made cases, padding, crowds, empty images."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf

from engine.config.fields import override
from maskrcnn.regions.targets import (
    RoiTargets,
    RpnTargets,
    assign_mask_targets,
    assign_rpn_targets,
    crowd_cover,
    sample_rois,
)
from maskrcnn.settings import MaskRcnnConfig, base_config
from object_detection.boxes.box_coder import encode_boxes

NUM_CLASSES = 3
SEED = tf.constant([1, 2])
BOX = [20.0, 20, 60, 60]


def grid_anchors(step=10, half=20):
    centers = np.stack(np.meshgrid(np.arange(5, 100, step), np.arange(5, 100, step)), -1)
    centers = centers.reshape(-1, 2)
    return np.concatenate([centers - half, centers + half], -1).astype(np.float32)


ANCHORS = grid_anchors()


def config_with(**changes) -> MaskRcnnConfig:
    settings = {"rpn_batch_size_per_im": 16, "roi.batch_size_per_im": 8, **changes}
    offsets = {"coding_offset": 0.0, "iou_offset": 0.0}
    return override(base_config("maskrcnn-r50-fpn"), {**offsets, **settings}, source="test")


def rpn(gt_boxes, gt_classes, anchors=ANCHORS, image_sizes=None, crowds=None, **changes):
    targets = assign_rpn_targets(
        tf.constant(anchors),
        tf.constant(gt_boxes),
        tf.constant(gt_classes),
        image_sizes=image_sizes,
        crowd_boxes=crowds,
        config=config_with(**changes),
        seed=SEED,
    )
    return RpnTargets(*(field.numpy() for field in targets))


def random_gt(rng, batch, count):
    return numpy_boxes.random(rng, batch, count, high=70, side=(8, 40))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rpn_labels_and_box_targets_equal_numpy(offset):
    rng = np.random.default_rng(0)
    gt_boxes = random_gt(rng, 2, 6)
    gt_classes = np.array([[0, 2, -1, 1, 0, -1], [1, -1, -1, -1, -1, -1]], np.int32)
    offsets = {"iou_offset": offset, "coding_offset": offset}
    targets = rpn(gt_boxes, gt_classes, rpn_batch_size_per_im=64, **offsets)
    for image in range(2):
        valid = np.flatnonzero(gt_classes[image] >= 0)
        overlaps = numpy_boxes.overlaps(ANCHORS, gt_boxes[image, valid], offset)
        best, owner = overlaps.max(axis=1), valid[overlaps.argmax(axis=1)]
        is_positive = best >= 0.7
        for box, column in zip(valid[::-1], overlaps.T[::-1]):
            is_positive[column.argmax()], owner[column.argmax()] = True, box
        is_negative = (best < 0.3) & ~is_positive
        indices, labels = targets.indices[image], targets.labels[image]
        assert (labels == 1).sum() == min(is_positive.sum(), 32) > 0
        assert (labels == 0).sum() == min(is_negative.sum(), 64 - (labels == 1).sum())
        assert is_positive[indices[labels == 1]].all() and is_negative[indices[labels == 0]].all()
        expected = encode_boxes(gt_boxes[image, owner], ANCHORS, pixel_offset=offset).numpy()
        np.testing.assert_array_equal(targets.is_matched[image], is_positive)
        for found, chosen in (
            (targets.box_targets[image][labels == 1], indices[labels == 1]),
            (targets.matched_targets[image][is_positive], is_positive),
        ):
            np.testing.assert_allclose(found, expected[chosen], rtol=1e-4, atol=1e-5)
        assert not targets.box_targets[image][labels != 1].any()


@pytest.mark.parametrize(("convention", "count"), [("continuous", 1), ("detectron", 4)])
def test_detectrons_anchors_are_positive_wherever_they_overlap_a_box_most(convention, count):
    """The small box lies in the middle of four anchors."""
    box = np.array([[[48.0, 48, 52, 52]]], np.float32)
    anchors = grid_anchors(step=10, half=7)
    targets = rpn(box, np.zeros((1, 1), np.int32), anchors=anchors, anchor_convention=convention)
    assert (targets.labels == 1).sum() == targets.is_matched.sum() == count


def test_a_box_without_area_has_no_anchor_though_a_line_of_pixels_would():
    line = np.array([[[20.0, 20, 20, 60]]], np.float32)
    targets = rpn(line, np.zeros((1, 1), np.int32), iou_offset=1.0, coding_offset=1.0)
    np.testing.assert_array_equal(targets.labels, np.zeros((1, 16)))


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_objects_have_their_share_of_the_samples(share):
    boxes = ANCHORS[np.newaxis, ::7]
    targets = rpn(boxes, np.zeros(boxes.shape[:2], np.int32), rpn_fg_fraction=share)
    assert (targets.labels == 1).sum() == 16 * share
    regions = rois([[BOX] * 9], [[True] * 9], [[BOX]], [[0]], fg_fraction=share)
    assert regions.is_positive.sum() == 8 * share


def test_rpn_without_boxes_samples_background_only():
    targets = rpn(np.zeros((1, 3, 4), np.float32), np.full((1, 3), -1, np.int32))
    np.testing.assert_array_equal(targets.labels, np.zeros((1, 16)))
    assert not targets.box_targets.any()


def test_rpn_pads_where_too_few_anchors_are_background():
    gt_boxes = np.array([[BOX]], np.float32)
    anchors = np.array([BOX, [0, 0, 5, 5], [25, 20, 60, 60]], np.float32)
    targets = rpn(gt_boxes, np.zeros((1, 1), np.int32), anchors=anchors)
    np.testing.assert_array_equal(targets.labels[0], [1, 1, 0] + [-1] * 13)
    assert set(targets.indices[0, :2]) == {0, 2} and targets.indices[0, 2] == 1


def test_anchors_that_leave_the_image_are_not_sampled_if_asked():
    gt_boxes = np.array([[[0, 0, 22, 22]]] * 2, np.float32)
    gt_classes = np.zeros((2, 1), np.int32)
    image_sizes = tf.constant([[100.0, 100.0], [60.0, 80.0]])
    settings = {"image_sizes": image_sizes, "rpn_batch_size_per_im": 80}
    everywhere = rpn(gt_boxes, gt_classes, **settings)
    assert (ANCHORS[everywhere.indices].min(axis=-1) < 0).any()
    inside = rpn(gt_boxes, gt_classes, rpn_straddle_thresh=0, **settings)
    for image, (height, width) in enumerate(image_sizes.numpy()):
        used = ANCHORS[inside.indices[image][inside.labels[image] >= 0]]
        assert len(used) and used.min() >= 0
        assert used[:, 2].max() <= height and used[:, 3].max() <= width
    # The box at the corner is matched best by an anchor outside: ignored, and nobody else's.
    assert (inside.labels == 1).sum() == 0
    loose = rpn(gt_boxes, gt_classes, rpn_straddle_thresh=16.0, **settings)
    assert (loose.labels == 1).sum() == 2


@pytest.mark.parametrize("pixel_offset", [0.0, 1.0])
def test_anchors_may_touch_the_border(pixel_offset):
    end = 100 - pixel_offset
    inside = [[0, 0, 10, 10], [90, 60, end, end - 20]]
    outside = [[-1, 0, 9, 10], [0, -1, 10, 9], [90, 60, end + 1, 70], [60, 60, 80, end - 19]]
    for margin, expected in ((0, {0, 1}), (1, set(range(6)))):
        targets = rpn(
            *(np.zeros((1, 1, 4), np.float32), np.full((1, 1), -1, np.int32)),
            anchors=np.array(inside + outside, np.float32),
            image_sizes=tf.constant([[100.0, 80.0]]),
            rpn_straddle_thresh=margin,
            coding_offset=pixel_offset,
        )
        assert set(targets.indices[targets.labels == 0]) == expected


def test_background_anchors_on_a_crowd_are_taken_back():
    gt_boxes, gt_classes = np.zeros((1, 2, 4), np.float32), np.full((1, 2), -1, np.int32)
    crowd = np.array([[[0, 0, 60, 130], [0, 0, 0, 0]]], np.float32)
    targets = rpn(gt_boxes, gt_classes, rpn_batch_size_per_im=90, crowds=tf.constant(crowd))
    cover = crowd_cover(tf.constant(ANCHORS)[tf.newaxis], tf.constant(crowd)).numpy()[0]
    used = targets.indices[0][targets.labels[0] == 0]
    assert 10 < len(used) < 90
    assert (cover[used] < 0.7).all()


def test_an_anchor_of_an_object_on_a_crowd_is_kept():
    crowd = tf.constant([[[0.0, 0, 100, 7]]])  # covers 0.7 of the second anchor and of the fourth
    anchors = [BOX, [0, 0, 10, 10], [0, 80, 10, 90], [80, 0, 90, 10], [90, 0, 100, 10.1]]
    box = np.array([[[80.0, 0, 90, 10]]], np.float32)
    targets = rpn(
        box, np.zeros((1, 1), np.int32), anchors=np.array(anchors, np.float32), crowds=crowd
    )
    np.testing.assert_array_equal(np.sort(targets.indices[targets.labels == 0]), [0, 2, 4])
    np.testing.assert_array_equal(targets.indices[targets.labels == 1], [3])


def test_the_cover_is_that_of_one_crowd():
    halves = tf.constant([[[0.0, 0, 10, 4], [0.0, 4, 10, 10]]])
    cover = crowd_cover(tf.constant([[[0.0, 0, 10, 10], [5, 5, 5, 5]]]), halves)
    np.testing.assert_allclose(cover, [[0.6, 0.0]], rtol=1e-6)


def rois(proposals, valid, gt_boxes, gt_classes, crowds=None, **changes):
    targets = sample_rois(
        tf.constant(proposals, tf.float32),
        tf.constant(valid),
        tf.constant(gt_boxes, tf.float32),
        tf.constant(gt_classes, tf.int32),
        num_classes=NUM_CLASSES,
        crowd_boxes=crowds,
        config=config_with(**changes),
        seed=SEED,
    )
    return RoiTargets(*(field.numpy() for field in targets))


def test_rois_by_overlap_with_ground_truth_among_them():
    proposals = [[[20, 20, 60, 50], [20, 20, 40, 38], [80, 80, 90, 90], [0, 0, 0, 0]]]
    valid = [[True, True, True, False]]
    gt_boxes, gt_classes = [[BOX, [0, 0, 0, 0]]], [[2, -1]]
    targets = rois(proposals, valid, gt_boxes, gt_classes, fg_fraction=0.5)
    # IoU 0.75 and the box itself are objects, 0.225 and 0 background; the padding is neither.
    assert {tuple(box) for box in targets.boxes[0, :2]} == {(20, 20, 60, 50), tuple(BOX)}
    assert {tuple(box) for box in targets.boxes[0, 2:4]} == {(20, 20, 40, 38), (80, 80, 90, 90)}
    np.testing.assert_array_equal(targets.class_targets[0], [2, 2, 3, 3, -1, -1, -1, -1])
    np.testing.assert_array_equal(targets.is_positive[0], [True] * 2 + [False] * 6)
    np.testing.assert_array_equal(targets.gt_index[0, :2], [0, 0])
    assert not targets.boxes[0, 4:].any() and not targets.box_targets[0, 2:].any()
    # The box itself has nothing to correct; the other is 30 of 40 wide, its middle 5 px left.
    by_box = {tuple(box): row for box, row in zip(targets.boxes[0, :2], targets.box_targets[0])}
    np.testing.assert_allclose(by_box[tuple(BOX)], [0, 0, 0, 0], atol=1e-6)
    expected = [0, 10 * 5 / 30, 0, 5 * np.log(40 / 30)]
    np.testing.assert_allclose(by_box[20, 20, 60, 50], expected, rtol=1e-5, atol=1e-6)


def test_roi_thresholds():
    # IoU with BOX: 0.5 exactly, 0.45, 0.05 and 0.
    proposals = [[[20, 20, 60, 40], [20, 20, 60, 38], [20, 20, 60, 22], [80, 80, 90, 90]]]
    valid = [[True] * 4]
    targets = rois(proposals, valid, [[BOX]], [[0]], fg_fraction=0.5)
    np.testing.assert_array_equal(targets.class_targets[0], [0, 0, 3, 3, 3] + [-1] * 3)
    settings = {"bg_thresh_hi": 0.4, "bg_thresh_lo": 0.01, "fg_fraction": 0.5}
    targets = rois(proposals, valid, [[BOX]], [[0]], **settings)
    np.testing.assert_array_equal(targets.class_targets[0], [0, 0, 3] + [-1] * 5)
    np.testing.assert_array_equal(targets.boxes[0, 2], [20, 20, 60, 22])


def test_rois_by_the_conventions_of_the_model():
    # IoU with BOX: 20 / 40 without the last pixel, 21 / 41 with it; 19 / 40 and 20 / 41.
    proposals = [[[20, 20, 60, 40], [20, 20, 60, 39]]]
    settings = {"fg_thresh": 0.505, "bg_thresh_hi": 0.5, "fg_fraction": 1.0}
    targets = rois(proposals, [[True] * 2], [[BOX]], [[0]], **settings)
    np.testing.assert_array_equal(targets.class_targets[0, :3], [0, NUM_CLASSES, -1])
    weights = {"bbox_reg_weights": (2.0, 3.0, 5.0, 7.0)}
    offsets = {"iou_offset": 1.0, "coding_offset": 1.0}
    targets = rois(proposals, [[True] * 2], [[BOX]], [[0]], **settings, **offsets, **weights)
    np.testing.assert_array_equal(targets.class_targets[0, :4], [0, 0, NUM_CLASSES, -1])
    by_box = {tuple(box): row for box, row in zip(targets.boxes[0], targets.box_targets[0])}
    # 21 of 41 pixels wide, its middle 10 further left.
    expected = [0, 3 * 10 / 21, 0, 7 * np.log(41 / 21)]
    np.testing.assert_allclose(by_box[20, 20, 60, 40], expected, rtol=1e-5, atol=1e-6)


def test_a_box_left_out_makes_no_object_and_an_object_is_no_background():
    proposals = [[[20, 20, 60, 50], [20, 20, 60, 58]]]
    targets = rois(proposals, [[True] * 2], [[BOX]], [[-1]])
    np.testing.assert_array_equal(targets.class_targets[0], [NUM_CLASSES] * 2 + [-1] * 6)
    overlapping = {"fg_thresh": 0.9, "bg_thresh_hi": 0.99}
    targets = rois(proposals, [[True] * 2], [[BOX]], [[0]], fg_fraction=0.5, **overlapping)
    np.testing.assert_array_equal(targets.class_targets[0], [0, 0, NUM_CLASSES] + [-1] * 5)


def test_targets_have_no_gradient():
    boxes = [tf.constant([[[20.0, 20, 60, 50]]]), tf.constant([[BOX]])]
    options = {"config": config_with(), "crowd_boxes": None, "seed": SEED}
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        classes = tf.constant([[0]])
        regions = sample_rois(
            *(boxes[0], tf.constant([[True]]), boxes[1], classes), num_classes=3, **options
        )
        anchors = assign_rpn_targets(ANCHORS, boxes[1], classes, image_sizes=None, **options)
        made = [regions.boxes, regions.box_targets, anchors.box_targets, anchors.matched_targets]
    assert tape.gradient(made, boxes) == [None, None]


def test_regions_on_a_crowd_are_no_background():
    seven_tenths = [53, 80, 63, 90]
    proposals = [[[20, 20, 60, 50], [70, 70, 90, 90], [0, 70, 20, 90], seven_tenths]]
    crowd = tf.constant([[[56.0, 60, 100, 100], [0, 0, 0, 0]]])
    targets = rois(proposals, [[True] * 4], [[BOX]], [[0]], crowds=crowd)
    used = {tuple(box) for box in targets.boxes[0][targets.class_targets[0] == NUM_CLASSES]}
    assert used == {(0, 70, 20, 90)}


@pytest.mark.parametrize("flat", [[30, 70, 30, 90], [30, 70, 50, 70]])
def test_a_box_without_area_is_no_region(flat):
    targets = rois([[[0, 0, 10, 10]]], [[True]], [[BOX, flat]], [[0, 1]])
    np.testing.assert_array_equal(targets.class_targets[0], [0, NUM_CLASSES] + [-1] * 6)


def test_bad_proposals_are_never_sampled():
    proposals = np.array([[[np.nan, 0, 10, 10], [70, 70, 90, 90]]], np.float32)
    targets = rois(proposals, [[True, True]], [[BOX]], [[0]])
    assert np.isfinite(targets.boxes).all() and np.isfinite(targets.box_targets).all()
    assert (targets.class_targets >= 0).sum() == 2


def half_masks():
    """Two crops of 112 x 112: left half and top half; and one unknown."""
    bits = np.zeros((3, 112, 112), np.uint8)
    bits[0, :, :56], bits[1, :56] = 1, 1
    return np.packbits(bits.reshape(3, -1), axis=1)


def test_masks_of_the_sampled_objects():
    gt_boxes = np.array([[[0, 0, 40, 40], [50, 50, 90, 90], [0, 60, 30, 90]]], np.float32)
    rois_ = RoiTargets(
        boxes=tf.constant([[gt_boxes[0, 1], [0, 0, 40, 20], gt_boxes[0, 2], [9.0, 9, 19, 19]]]),
        class_targets=tf.constant([[1, 2, 0, NUM_CLASSES]]),
        box_targets=tf.zeros([1, 4, 4]),
        is_positive=tf.constant([[True, True, True, False]]),
        gt_index=tf.constant([[1, 0, 2, 0]]),
    )
    masks = tf.constant(half_masks()[np.newaxis])

    def assign(num_rois, *, is_mirrored):
        return assign_mask_targets(
            rois_,
            masks,
            tf.constant(gt_boxes),
            num_rois=num_rois,
            mask_size=8,
            is_mirrored=tf.constant([is_mirrored]),
        )

    targets = assign(4, is_mirrored=False)
    assert targets.masks.shape == (1, 4, 8, 8)
    # Unknown mask and background do not count.
    np.testing.assert_array_equal(targets.classes, [[1, 2, -1, -1]])
    np.testing.assert_array_equal(targets.masks[0, 0], np.repeat([[1], [0]], 4, 0) * np.ones(8))
    np.testing.assert_array_equal(targets.masks[0, 1], np.ones((8, 8)))
    assert not targets.masks[0, 2:].numpy().any()
    mirrored = assign(2, is_mirrored=True)
    # In the mirrored image the left half of the box is the right half of its mask.
    np.testing.assert_array_equal(mirrored.masks[0, 1], np.zeros((8, 8)))


def mixed_batch(rng):
    """Images with some objects, without, with crowds only, and with 300 objects."""
    gt_boxes = random_gt(rng, 4, 300)
    gt_classes = np.full((4, 300), -1, np.int32)
    gt_classes[0, :5] = [0, 1, 2, 1, 0]
    gt_classes[3] = rng.integers(0, NUM_CLASSES, 300)
    crowd_boxes = np.zeros((4, 300, 4), np.float32)
    crowd_boxes[2, :2] = [[0, 0, 50, 100], [50, 0, 100, 50]]
    gt_boxes[1:3] = 0
    return gt_boxes, gt_classes, crowd_boxes


def test_all_targets_compile_and_agree_with_the_plain_ones():
    rng = np.random.default_rng(5)
    gt_boxes, gt_classes, crowd_boxes = (tf.constant(part) for part in mixed_batch(rng))
    packed = tf.constant(rng.integers(0, 256, (4, 300, 1568), dtype=np.uint8))
    proposals = tf.constant(random_gt(rng, 4, 200))
    valid = tf.constant(np.arange(200) < np.array([[200], [50], [200], [200]]))
    image_sizes = tf.constant([[100.0, 70], [70, 100], [100, 100], [100, 100]])
    settings = {"rpn_batch_size_per_im": 64, "roi.batch_size_per_im": 32}
    config = config_with(rpn_straddle_thresh=0, **settings)

    def run(gt_boxes, gt_classes, crowd_boxes, packed, proposals, valid):
        anchors = assign_rpn_targets(
            ANCHORS,
            gt_boxes,
            gt_classes,
            image_sizes=image_sizes,
            crowd_boxes=crowd_boxes,
            config=config,
            seed=SEED,
        )
        regions = sample_rois(
            proposals,
            valid,
            gt_boxes,
            gt_classes,
            num_classes=NUM_CLASSES,
            crowd_boxes=crowd_boxes,
            config=config,
            seed=SEED + 1,
        )
        mirrored = tf.constant([False] * 4)
        masks = assign_mask_targets(
            regions, packed, gt_boxes, num_rois=8, mask_size=14, is_mirrored=mirrored
        )
        return anchors, regions, masks

    arguments = (gt_boxes, gt_classes, crowd_boxes, packed, proposals, valid)
    graph = tf.function(run, autograph=False)(*arguments)
    compiled = tf.function(run, autograph=False, jit_compile=True)(*arguments)
    for anchors, regions, masks in (graph, compiled):
        for part in (anchors.box_targets, regions.boxes, regions.box_targets, masks.masks):
            assert np.isfinite(part).all()
        np.testing.assert_array_equal((regions.is_positive.numpy()).sum(1)[1:], [0, 0, 8])
        assert (regions.class_targets.numpy() >= 0).sum(1).min() == 32
        np.testing.assert_array_equal(
            masks.classes, np.where(regions.is_positive, regions.class_targets, -1)[:, :8]
        )
    np.testing.assert_array_equal(graph[0].is_matched, compiled[0].is_matched)
    np.testing.assert_array_equal(graph[1].is_positive, compiled[1].is_positive)
