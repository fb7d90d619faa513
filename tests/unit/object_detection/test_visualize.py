"""Pictures: what is coloured, what must stay untouched, and inputs that must not break drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.draw import palette as colors
from object_detection.draw import visualize

GREY = np.full((120, 160, 3), 128, np.uint8)
NAMES = {0: "cat", 1: "traffic light"}


def changed(picture, original=GREY):
    """Returns bool [h, w], the pixels that drawing has touched."""
    return (picture != original).any(axis=-1)


def test_line_runs_along_the_box_and_the_object_stays_visible():
    box = np.array([[40, 50, 80, 120]])
    before = GREY.copy()
    picture = visualize.draw_boxes(GREY, box, np.array([0]), labels=False)
    assert picture.dtype == np.uint8
    assert picture.shape == GREY.shape
    assert np.array_equal(GREY, before), "the input image must be left alone"
    touched = changed(picture)
    assert touched[39, 60:110].all(), "top line just outside the box"
    assert touched[50:70, 49].all(), "left line just outside the box"
    assert not touched[43:77, 53:117].any(), "inside of the box"
    assert not touched[:34].any() and not touched[:, 130:].any(), "far away"


def test_line_has_the_colour_of_its_class():
    boxes = np.array([[10.0, 10, 60, 60], [10, 90, 60, 150]])
    picture = visualize.draw_boxes(GREY, boxes, np.array([0, 1]), labels=False, zoom=3)
    for k, x in ((0, 100), (1, 360)):
        column = picture[20:32, x].astype(int)
        distance = np.abs(column - colors.class_color(k)).sum(axis=1)
        assert distance.min() < 30


def test_zoom_enlarges_the_result_and_the_boxes_with_it():
    boxes = np.array([[40, 50, 80, 120]])
    picture = visualize.draw_boxes(GREY, boxes, np.array([0]), labels=False, zoom=2)
    assert picture.shape == (240, 320, 3)
    touched = changed(picture, np.full_like(picture, 128))
    rows, columns = np.nonzero(touched)
    assert abs(rows.min() - 80) < 6 and abs(rows.max() - 160) < 6
    assert abs(columns.min() - 100) < 6 and abs(columns.max() - 240) < 6


@pytest.mark.parametrize("corner", [(1, 1), (1, 148), (108, 1), (108, 148), (60, 80)])
def test_label_never_covers_a_small_object(corner):
    y, x = corner
    box = np.array([[y, x, y + 11, x + 11]])
    scores = np.array([0.876])
    without = visualize.draw_boxes(GREY, box, np.array([1]), labels=False)
    picture = visualize.draw_boxes(GREY, box, np.array([1]), scores=scores, names=NAMES)
    assert changed(picture, without).sum() > 300, "there is a label"
    assert not changed(picture)[y + 1 : y + 10, x + 1 : x + 10].any()


def test_labels_keep_clear_of_each_other_and_of_small_objects():
    """A grid of small boxes too dense for all labels: every object stays visible."""
    tops, lefts = np.meshgrid(np.arange(8, 110, 17), np.arange(8, 150, 21), indexing="ij")
    boxes = np.stack([tops, lefts, tops + 9, lefts + 9], axis=-1).reshape(-1, 4)
    picture = visualize.draw_boxes(
        GREY, boxes, np.zeros(len(boxes), int), names=NAMES, scores=np.full(len(boxes), 0.5)
    )
    for y1, x1, y2, x2 in boxes:
        assert changed(picture)[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean() < 0.3


def test_label_names_class_and_score():
    box = np.array([[40, 30, 110, 150]])
    pictures = [
        visualize.draw_boxes(GREY, box, np.array([0]), names=names, scores=scores)
        for names, scores in (
            (NAMES, None),
            (NAMES, np.array([0.87])),
            (NAMES, np.array([0.8799])),
            (NAMES, np.array([0.88])),
            ({0: "dog"}, None),
        )
    ]
    assert np.array_equal(pictures[1], pictures[2]), "scores are cut, not rounded up"
    for a, b in ((0, 1), (2, 3), (0, 4)):
        assert not np.array_equal(pictures[a], pictures[b])


def test_class_names_come_from_maps_lists_or_nothing():
    assert visualize.class_name(NAMES, 1) == "traffic light"
    assert visualize.class_name(["cat"], np.int32(0)) == "cat"
    assert visualize.class_name(["cat"], 7) == "class 7"
    assert visualize.class_name(NAMES, 7) == "class 7"
    assert visualize.class_name(None, 0) == "class 0"


def test_padding_and_surplus_boxes_are_left_out():
    boxes = np.array([[20, 20, 60, 60], [0, 0, 0, 0], [70, 90, 110, 150]])
    classes = np.array([0, -1, 1])
    scores = np.array([0.9, 0.0, 0.4])
    first = visualize.draw_boxes(GREY, boxes[:1], classes[:1], scores=scores[:1])
    picture = visualize.draw_boxes(GREY, boxes, classes, scores=scores, max_objects=1)
    assert np.array_equal(picture, first)
    picture = visualize.draw_boxes(GREY, boxes[:2], classes[:2], scores=scores[:2])
    assert np.array_equal(picture, first)


def test_no_boxes_and_bad_boxes_draw_nothing():
    nothing = visualize.draw_boxes(GREY, np.zeros((0, 4)), np.zeros(0, int))
    bad = np.array([[50, 50, 50, 90], [90, 20, 40, 60], [np.nan, 1, 2, 3]])
    ignored = visualize.draw_boxes(GREY, bad, np.zeros(3, int), scores=np.ones(3))
    assert np.array_equal(nothing, GREY)
    assert np.array_equal(ignored, GREY)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-300, 400, allow_nan=False) for _ in range(4)]),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0.5, 1.0, 1.7]),
)
def test_boxes_anywhere_do_not_break_drawing(boxes, zoom):
    classes = np.arange(len(boxes)) * 37
    picture = visualize.draw_boxes(GREY[:40, :50], np.array(boxes), classes, zoom=zoom)
    assert picture.shape == (round(40 * zoom), round(50 * zoom), 3)


def test_crowd_regions_have_a_broken_line():
    box, classes = np.array([[20, 20, 100, 140]]), np.array([0])
    solid = visualize.draw_boxes(GREY, box, classes, labels=False)
    broken = visualize.draw_boxes(GREY, box, classes, labels=False, crowd=np.array([True]))
    share = changed(broken).sum() / changed(solid).sum()
    assert 0.3 < share < 0.8


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="uint8 image"):
        visualize.draw_boxes(GREY.astype(np.float32), np.zeros((0, 4)), np.zeros(0))
    with pytest.raises(ValueError, match="2 scores for 1"):
        visualize.draw_boxes(GREY, np.zeros((1, 4)), np.zeros(1), scores=np.zeros(2))


def test_colours_are_stable_and_apart():
    palette = colors.palette()
    assert len(set(palette)) == len(palette) == 96
    assert colors.class_color(0) == palette[0]
    assert colors.class_color(96) == palette[0]
    lab = colors._oklab(np.array(palette[:20], float))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(20)
    assert apart.min() > 0.08
    # OKLab of white is lightness 1 without hue (definition).
    assert np.allclose(colors._oklab(np.array([[255.0, 255, 255]])), [[1, 0, 0]], atol=1e-3)


def test_text_can_be_read_on_every_colour():
    """WCAG 2.1 asks for a contrast of 4.5; the worst colour between dark and light has 4.3."""
    assert colors.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    for color in colors.palette():
        assert colors.contrast(color, colors.text_color_on(color)) > 4.3


def test_contact_sheet_lays_out_rows():
    images = [np.full((h, w, 3), 200, np.uint8) for h, w in ((60, 80), (80, 60), (60, 80))]
    sheet = visualize.contact_sheet(images, 2, cell=(60, 80))
    assert sheet.shape == (12 + 60 + 12 + 60 + 12, 12 + 2 * 92, 3)
    assert (sheet[20:60, 20:80] == 200).all()
    captioned = visualize.contact_sheet(images, 2, ["a", "b", "c" * 99], cell=(60, 80), title="t")
    assert captioned.shape[0] > sheet.shape[0]
    assert (captioned[:24] != captioned[0, 0]).any(), "the title"
    others = visualize.contact_sheet(images, 2, ["q", "b", "w"], cell=(60, 80), title="t")
    is_other = changed(others, captioned)
    assert is_other[:, :92].any() and not is_other[:, 104:].any(), "the second has its caption"
    for shape, rows, columns in (((30, 160), (0, 15), (0, 80)), ((160, 30), (0, 60), (34, 45))):
        fitted = visualize.contact_sheet([np.full((*shape, 3), 200, np.uint8)], 1, cell=(60, 80))
        inside = np.argwhere((fitted == 200).all(axis=-1)) - 12
        assert inside.min(axis=0).tolist() == [rows[0], columns[0]]
        assert (inside.max(axis=0) + 1).tolist() == [rows[1], columns[1]]
    with pytest.raises(ValueError, match="0 images"):
        visualize.contact_sheet([], 2)
    with pytest.raises(ValueError, match="1 captions for 3"):
        visualize.contact_sheet(images, 2, ["a"])
