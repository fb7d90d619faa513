"""Drawn masks: what is tinted, where the contour lies, what stays untouched; heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from object_detection.draw.draw_masks import WEIGHTS, draw_heat_map, draw_masks, mask_heat
from object_detection.draw.entries import draw_entries
from object_detection.draw.palette import class_color
from object_detection.masks.mask_paste import MaskRule, paste_mask

GREY = np.full((120, 160, 3), 128, np.uint8)
NAMES = {0: "cat", 1: "traffic light"}


def rectangle(top, left, bottom, right):
    mask = np.zeros((120, 160), bool)
    mask[top:bottom, left:right] = True
    return mask


def changed(picture, original=GREY):
    """Returns bool [h, w], the pixels that drawing has touched."""
    return (picture != original).any(axis=-1)


def tinted(class_id):
    return 128 + 0.45 * (np.array(class_color(class_id), float) - 128)


def test_inside_is_tinted_and_outside_untouched():
    before = GREY.copy()
    picture = draw_masks(GREY, rectangle(30, 40, 90, 120)[None], np.array([0]), labels=False)
    assert picture.dtype == np.uint8
    assert np.array_equal(GREY, before), "the input image must be left alone"
    assert np.allclose(picture[36:84, 46:114], tinted(0), atol=1)
    touched = changed(picture)
    assert not touched[:26].any() and not touched[94:].any()
    assert not touched[:, :36].any() and not touched[:, 124:].any()


def test_contour_has_the_full_colour_at_the_edge_of_the_mask():
    picture = draw_masks(
        GREY, rectangle(30, 40, 90, 120)[None], np.array([0]), labels=False, zoom=4
    )
    column = np.abs(picture[:, 320].astype(float) - class_color(0)).sum(axis=1)
    lines = np.nonzero(column < 6)[0]
    assert np.abs(lines - 120).min() < 3 and np.abs(lines - 360).min() < 3
    assert all(abs(y - 120) < 4 or abs(y - 360) < 4 for y in lines), lines


def test_thin_and_tiny_objects_are_drawn():
    masks = np.stack([rectangle(20, 20, 21, 140), rectangle(60, 60, 61, 61)])
    touched = changed(draw_masks(GREY, masks, np.array([0, 1]), labels=False))
    assert touched[20, 22:138].all()
    assert touched[60, 60]


def test_fills_do_not_add_up_and_the_smaller_object_is_on_top():
    masks = np.stack([rectangle(40, 50, 80, 110), rectangle(10, 10, 110, 150)])
    for order in ([0, 1], [1, 0]):
        classes = np.array([1, 0])[order]
        picture = draw_masks(GREY, masks[order], classes, labels=False)
        assert np.allclose(picture[60, 80], tinted(1), atol=1)
        assert np.allclose(picture[95, 30], tinted(0), atol=1)


def test_the_contour_of_a_covered_object_is_hidden():
    below, above = rectangle(10, 10, 80, 150), rectangle(50, 60, 110, 110)
    picture = draw_masks(GREY, np.stack([below, above]), np.array([0, 1]), labels=False)
    assert np.array_equal(picture[79, 85], picture[95, 85])


def test_crowd_regions_are_striped():
    mask, classes = rectangle(10, 10, 110, 150)[None], np.array([0])
    plain = draw_masks(GREY, mask, classes, labels=False)
    striped = draw_masks(GREY, mask, classes, labels=False, crowd=np.array([True]))
    assert len(np.unique(plain[40:80, 40:120].reshape(-1, 3), axis=0)) == 1
    row = striped[60, 40:120, 0].astype(int)
    assert np.ptp(row) > 10
    assert (np.diff(np.sign(row - row.mean())) != 0).sum() >= 6, "several stripes"


def test_one_class_is_coloured_by_object_several_by_class():
    masks = np.stack([rectangle(10, 10, 60, 60), rectangle(70, 80, 100, 140)])
    classes = np.array([0, 0])
    one = draw_masks(GREY, masks, classes, names=["nucleus"], labels=False)
    assert not np.array_equal(one[35, 35], one[85, 110])
    several = draw_masks(GREY, masks, classes, names=NAMES, labels=False)
    assert np.array_equal(several[35, 35], several[85, 110])


def test_labels_leave_out_the_name_of_an_only_class():
    mask, classes = rectangle(40, 40, 110, 150)[None], np.array([0])
    bare = draw_masks(GREY, mask, classes, names=["nucleus"], labels=False)
    unlabelled = draw_masks(GREY, mask, classes, names=["nucleus"])
    assert np.array_equal(unlabelled, bare)
    scored = draw_masks(GREY, mask, classes, names=["nucleus"], scores=np.array([0.9]))
    assert changed(scored, bare).sum() > 100
    both = draw_masks(GREY, mask, classes, names={0: "nucleus", 1: "x"}, scores=np.array([0.9]))
    assert changed(both, bare).sum() > 1.5 * changed(scored, bare).sum()
    named = draw_masks(GREY, mask, classes, names=NAMES)
    assert changed(named, bare)[:40].sum() > 100
    # The report names each object by itself, also an only one: "cat: background".
    alone = draw_masks(GREY, mask, classes, names=["cat"], colors=[class_color(0)])
    assert np.array_equal(alone, named)


def test_labels_stand_above_the_top_of_the_mask_not_of_its_box():
    mask = rectangle(50, 100, 110, 150) | rectangle(90, 10, 110, 150)
    bare = draw_masks(GREY, mask[None], np.array([0]), names=NAMES, labels=False)
    label = changed(draw_masks(GREY, mask[None], np.array([0]), names=NAMES), bare)
    assert np.nonzero(label)[1].min() > 90


def test_boxes_are_drawn_on_request():
    mask, classes = rectangle(40, 40, 80, 120)[None], np.array([0])
    without = draw_masks(GREY, mask, classes, labels=False)
    boxes = np.array([[20.0, 20, 100, 140]])
    picture = draw_masks(GREY, mask, classes, labels=False, boxes=boxes)
    assert changed(picture, without)[19, 40:120].all()
    assert not changed(picture, without)[25:95, 25:135].any()


def test_an_object_without_a_mask_is_drawn_as_its_box():
    masks = np.stack([rectangle(40, 40, 80, 70), rectangle(0, 0, 0, 0)])
    boxes = np.array([[30.0, 30, 90, 80], [40, 100, 80, 140]])
    picture = draw_masks(GREY, masks, np.array([0, 1]), labels=False, boxes=boxes, all_boxes=False)
    touched = changed(picture)
    assert touched[39, 105:135].all() and not touched[45:75, 105:135].any()
    assert not touched[29, 40:70].any(), "no box around what has a mask"
    assert changed(
        draw_masks(GREY, masks, np.array([0, 1]), boxes=boxes, names=NAMES), picture
    ).any()


def test_a_mask_that_cannot_be_read_is_drawn_as_its_box():
    for broken in ({}, {"segmentation": "no mask"}, {"segmentation": [[1, 2]]}):
        entry = {"bbox": [30, 40, 50, 60], **broken}
        picture = draw_entries(GREY, [entry], np.array([0]), names=NAMES, with_masks=True)
        expected = draw_masks(
            GREY, rectangle(0, 0, 0, 0)[None], np.array([0]),
            boxes=np.array([[40, 30, 100, 80]]), names=NAMES,
        )  # fmt: skip
        assert np.array_equal(picture, expected) and changed(picture)[39, 40:70].all()


def test_empty_masks_padding_and_surplus_masks_are_skipped():
    masks = np.stack([rectangle(30, 40, 90, 120), rectangle(0, 0, 0, 0), rectangle(5, 5, 20, 20)])
    options = {"zoom": 2, "names": NAMES}
    scores = np.array([0.9, 0.8, 0.3])
    one = draw_masks(GREY, masks[:1], np.array([0]), scores=scores[:1], **options)
    assert one.shape == (240, 320, 3)
    padded = draw_masks(GREY, masks, np.array([0, 1, -1]), scores=scores, **options)
    best = draw_masks(GREY, masks, np.array([0, 1, 1]), scores=scores, max_objects=1, **options)
    assert np.array_equal(padded, one) and np.array_equal(best, one)
    nothing = draw_masks(GREY, np.zeros((0, 120, 160), bool), np.zeros(0, int))
    assert np.array_equal(nothing, GREY)


def test_wrong_input_is_named():
    mask = rectangle(5, 5, 20, 20)[None]
    with pytest.raises(ValueError, match="2 scores for 1"):
        draw_masks(GREY, mask, np.zeros(1, int), scores=np.zeros(2))
    with pytest.raises(ValueError, match="weigh_by='area'"):
        mask_heat(
            np.ones((1, 4, 4)), np.zeros((1, 4)), np.ones(1), height=5, width=5, weigh_by="area"
        )
    with pytest.raises(ValueError, match="does not fit the image"):
        draw_heat_map(GREY, np.zeros((10, 10)))


def test_heat_is_the_surest_object():
    masks = np.stack([np.full((4, 4), 0.75), np.full((4, 4), 0.4)])
    boxes = np.array([[2.0, 2, 10, 10], [6, 6, 14, 14]])
    scores = np.array([0.8, 1.0])
    heat = mask_heat(masks, boxes, scores, height=16, width=16)
    assert heat[4, 4] == pytest.approx(0.6)
    assert heat[8, 8] == pytest.approx(0.6)
    assert heat[12, 12] == pytest.approx(0.4)
    assert heat[0, 15] == 0
    by_score = mask_heat(masks, boxes, scores, height=16, width=16, weigh_by="score")
    assert by_score[4, 4] == pytest.approx(0.8)
    assert by_score[12, 12] == 0


@pytest.mark.parametrize("rule", [MaskRule(), MaskRule(0.3), MaskRule(convention="detectron")])
def test_heat_lies_where_the_model_pastes_its_masks(rule):
    mask, box, size = np.eye(4), np.array([2.3, 3.1, 12.6, 13.9]), {"height": 16, "width": 20}
    heat = {by: mask_heat([mask], [box], [0.5], rule=rule, weigh_by=by, **size) for by in WEIGHTS}
    pasted = paste_mask(mask, box, rule=rule, **size)
    np.testing.assert_array_equal(heat["score"], 0.5 * pasted)
    assert heat["probability"][pasted == 1].min() >= 0.5 * rule.threshold
    assert heat["probability"][pasted == 0].max() <= 0.5 * rule.threshold


def test_heat_map_brightens_with_heat_and_greys_the_rest():
    image = np.full((20, 30, 3), (200, 40, 40), np.uint8)
    heat = np.zeros((20, 30))
    heat[:, 10:20], heat[:, 20:] = 0.5, 1.0
    picture = draw_heat_map(image, heat)
    cold, warm, hot = (picture[10, x].astype(int) for x in (5, 15, 25))
    assert np.ptp(cold) == 0, "grey"
    assert hot.sum() > warm.sum()
    assert warm[0] > warm[2] + 60, "red"
    assert draw_heat_map(image, heat, zoom=2).shape == (40, 60, 3)
