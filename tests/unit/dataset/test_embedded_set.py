"""The embedded data set: exact masks, determinism, and the shapes of data it promises."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from object_detection.metrics.ground_truth_check import check_ground_truth

pytest.importorskip("skimage", reason="the embedded set is made of scikit-image's photographs")

from dataset.embedded import backgrounds, photos, scene
from dataset.embedded.annotations import annotation_of, segmentation_of, uncompressed_rle
from dataset.embedded.make_set import draw_scene, write_embedded_set

NUM_TRAIN, NUM_EVAL, SIZE = 36, 6, 128


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    lines: list[str] = []
    place = write_embedded_set(
        tmp_path_factory.mktemp("embedded") / "set",
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        image_size=SIZE,
        report=lines.append,
    )
    return place, lines


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_json_is_coco_and_files_are_there(embedded):
    place, _ = embedded
    for images, json_path, count in (
        (place.train_images, place.train_annotations, NUM_TRAIN),
        (place.val_images, place.val_annotations, NUM_EVAL),
    ):
        coco = load(json_path)
        assert len(coco.imgs) == count
        assert len(list(images.iterdir())) == count
        for image in coco.imgs.values():
            with Image.open(images / image["file_name"]) as picture:
                assert picture.format == "JPEG"
                assert picture.size == (image["width"], image["height"])
                assert max(picture.size) <= SIZE
    both = [set(load(path).imgs) for path in (place.train_annotations, place.val_annotations)]
    assert not both[0] & both[1], "image ids are unique over the splits"


def test_boxes_and_areas_follow_from_the_masks(embedded):
    place, _ = embedded
    coco = load(place.train_annotations)
    assert len(coco.anns) > 2 * NUM_TRAIN
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + w, y + h)
        assert mask.sum() == annotation["area"] > 0


def test_masks_of_one_picture_do_not_overlap(embedded):
    place, _ = embedded
    coco = load(place.train_annotations)
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image_id]]
        if masks:
            assert np.sum(masks, axis=0).max() == 1


def test_it_has_what_real_data_has(embedded):
    """Gaps in the category ids, both orientations, empty images, crowds, both kinds of masks."""
    place, _ = embedded
    coco = load(place.train_annotations)
    ids = sorted(coco.cats)
    assert len(ids) == len(scene.THINGS) == 8
    assert ids != list(range(ids[0], ids[0] + len(ids)))
    sizes = {(image["width"], image["height"]) for image in coco.imgs.values()}
    assert any(w > h for w, h in sizes) and any(w < h for w, h in sizes)
    assert any(w == h for w, h in sizes)
    assert any(not coco.imgToAnns[image_id] for image_id in coco.imgs)
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    kinds = {type(a["segmentation"]) for a in coco.anns.values() if not a["iscrowd"]}
    assert kinds == {list, dict}
    assert {a["category_id"] for a in coco.anns.values()} == set(ids)


def test_ground_truth_scores_one_against_itself(embedded):
    place, _ = embedded
    check_ground_truth(place.val_annotations)


def test_licences_and_overview_are_written(embedded):
    place, lines = embedded
    attribution = (place.output_dir / "ATTRIBUTION.txt").read_text()
    for name in ("chelsea.png", "astronaut.png", "coffee.png", "coins.png"):
        assert name in attribution
    with Image.open(place.output_dir / "overview.jpg") as overview:
        assert min(overview.size) > 600
    assert any("36 of 36" in line for line in lines)


def test_every_photograph_in_use_is_attributed(monkeypatch):
    """Draws everything once and compares the photographs opened with the text."""
    opened = set()
    real = photos.photograph

    def noted(name):
        opened.add(name)
        return real(name)

    for module in (photos, backgrounds):
        monkeypatch.setattr(module, "photograph", noted)
    for cutout in ("_astronaut_cutout", "_cat_cutout", "_cup_cutout"):
        getattr(photos, cutout).cache_clear()
    rng = np.random.default_rng(0)
    for thing in scene.THINGS:
        assert thing.draw(rng).shape[2] == 4
    for kind in backgrounds.KINDS:
        monkeypatch.setattr(backgrounds, "KINDS", (kind,))
        found = backgrounds.draw_background(rng, height=48, width=64, split="val")
        assert found.pixels.shape == (48, 64, 3) and found.is_surface == kind[1]
    assert len(opened) >= 10
    assert all(name in photos.ATTRIBUTION for name in opened)


def test_same_seed_same_set(embedded, tmp_path):
    place, _ = embedded
    again = write_embedded_set(
        tmp_path, num_train=3, num_eval=2, image_size=SIZE, report=lambda line: None
    )
    # A smaller set is the beginning of a larger one.
    for name in sorted(path.name for path in again.train_images.iterdir()):
        assert (again.train_images / name).read_bytes() == (place.train_images / name).read_bytes()
    ours, theirs = (
        [a for a in json.loads(p.train_annotations.read_text())["annotations"] if a["image_id"] < 4]
        for p in (again, place)
    )
    assert ours == theirs


def test_pictures_do_not_depend_on_what_was_drawn_before():
    sprites = scene.SpriteBox(0, "train", variants=3)
    first = draw_scene("train", 5, seed=0, image_size=96, sprites=sprites)
    draw_scene("train", 6, seed=0, image_size=96, sprites=sprites)
    fresh = scene.SpriteBox(0, "train", variants=3)
    assert np.array_equal(
        first.pixels, draw_scene("train", 5, seed=0, image_size=96, sprites=fresh).pixels
    )
    other = draw_scene("train", 5, seed=1, image_size=96, sprites=sprites)
    assert not np.array_equal(first.pixels, other.pixels)


def test_complete_set_is_reused_and_another_one_refused(embedded):
    place, _ = embedded
    before = place.train_annotations.stat().st_mtime_ns
    same = {"num_train": NUM_TRAIN, "num_eval": NUM_EVAL, "image_size": SIZE}
    again = write_embedded_set(place.output_dir, **same, report=lambda line: None)
    assert again.reused
    assert place.train_annotations.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="belongs to another set"):
        write_embedded_set(place.output_dir, **same, seed=7, report=lambda line: None)


def test_interrupted_run_leaves_no_annotations(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(line):
        if line.lstrip().startswith("val"):
            raise Interrupted

    options = {"num_train": 2, "num_eval": 1, "image_size": 64}
    with pytest.raises(Interrupted):
        write_embedded_set(tmp_path, **options, report=interrupt)
    assert not list((tmp_path / "annotations").iterdir())
    assert not write_embedded_set(tmp_path, **options, report=lambda line: None).reused


def test_bad_arguments_and_missing_photographs_are_named(tmp_path):
    with pytest.raises(ValueError, match="num_train=0"):
        write_embedded_set(tmp_path, num_train=0)
    with pytest.raises(FileNotFoundError, match=r"does not carry eagle\.png"):
        photos.photograph("eagle.png")


def test_training_and_validation_see_different_parts_of_a_photograph(monkeypatch):
    """With a photograph that is dark on the left and bright on the right, crops differ."""
    halves = np.zeros((200, 300, 3), np.uint8)
    halves[:, round(300 * backgrounds.TRAIN_SHARE) :] = 255
    monkeypatch.setattr(backgrounds, "photograph", lambda name: halves)
    for seed in range(8):
        for split, expected in (("train", 0), ("val", 255)):
            rng, photo = np.random.default_rng(seed), backgrounds.Photo("halves")
            crop = backgrounds.from_photo(rng, photo, height=90, width=150, split=split)
            assert np.allclose(crop, expected, atol=1)


masks = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=120, deadline=None)
@given(masks)
def test_segmentations_are_exact(mask):
    if not mask.any():
        return
    height, width = mask.shape
    segmentation = segmentation_of(mask)
    if isinstance(segmentation, list):
        rle = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    else:
        rle = {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
    assert np.array_equal(mask_api.decode(rle).astype(bool), mask)
    crowd = mask_api.frPyObjects(uncompressed_rle(mask), height, width)
    assert np.array_equal(mask_api.decode(crowd).astype(bool), mask)


def test_outline_of_a_rectangle_has_few_points_and_a_hole_none():
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:7] = True
    (polygon,) = segmentation_of(mask)
    # Its corners are cut off between the middles of the pixels.
    assert len(polygon) == 16 and (min(polygon[::2]), max(polygon[::2])) == (3, 7)
    mask[3, 4] = False
    assert "counts" in segmentation_of(mask), "a hole"


def test_annotation_of_a_mask():
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:7] = True
    mask[4, 3] = False
    annotation = annotation_of(mask, annotation_id=9, image_id=4, category_id=13, is_crowd=True)
    assert annotation["bbox"] == [3.0, 2.0, 4.0, 3.0]
    assert annotation["area"] == 11.0
    assert annotation["iscrowd"] == 1
    assert sum(annotation["segmentation"]["counts"]) == 48
