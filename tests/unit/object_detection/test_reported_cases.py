"""Data sets with one fault each, after public reports, made from real photographs.

Each is converted, and perfect detections (the boxes of the set without the fault) are scored, by
what the commands call.
"""

import dataclasses
import re

import numpy as np
import pytest
from samples import read_back

from object_detection.coco.annotations import read_annotations, read_scored
from object_detection.convert.convert import convert
from object_detection.convert.report import describe_conversion
from object_detection.convert.splits import find_splits
from object_detection.metrics.ground_truth_check import ground_truth_rows
from object_detection.metrics.set_scores import SetScores
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.class_map import make_class_map
from outside_data.picture_file import PictureRules

BOX = ("image/object/bbox/ymin", "image/object/bbox/xmin", "image/object/bbox/ymax",
       "image/object/bbox/xmax")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What conversion and scores make of a case.

    says: pieces of the report of the conversion, or of the error where it is `refused`.
    lost: objects of the training and of the validation set that are dropped.
    unknown_masks: likewise, objects that have no mask.
    """

    says: tuple[str, ...] = ()
    refused: bool = False
    lost: tuple[int, int] = (0, 0)
    unknown_masks: tuple[int, int] = (0, 0)
    exif: str = "ignore"
    on_orphan: str = "stop"
    average_precision: float = 1.0


OUTCOMES = {
    "base": Outcome(("dropped: nothing", "corrected: nothing")),
    "short_rle": Outcome(("mask unknown", "train_01.jpg, annotation 2"), unknown_masks=(1, 1)),
    "long_rle": Outcome(("mask unknown", "train_01.jpg, annotation 2"), unknown_masks=(1, 1)),
    "rle_text_counts": Outcome(),
    "two_point_polygon_val": Outcome(("mask unknown", "annotation"), unknown_masks=(0, 1)),
    "nan_box_val": Outcome(("box", "annotation"), lost=(0, 1)),
    "bbox_text": Outcome(("read from text",)),
    "bbox_missing": Outcome(("box: missing, taken from the mask (train_01.jpg, annotation",)),
    "iscrowd_area_null": Outcome(("area",)),
    "iscrowd_text_0_train": Outcome(),
    "crowded_image": Outcome(("boxes in one image",), average_precision=0.5594),
    "normalised_boxes": Outcome(("for example", "annotation", "image's width"), refused=True),
    "corner_boxes": Outcome(("for example", "annotation", "corners"), refused=True),
    "float_image_ids": Outcome(),
    "text_ids": Outcome(),
    "text_image_id": Outcome(),
    "orphan_annotation": Outcome(("orphan",), on_orphan="skip"),
    "category_without_name": Outcome(("name",)),
    "val_names_swapped": Outcome(),
    "val_fewer_categories": Outcome(),
    "utf8_bom": Outcome(),
    "json_half_size": Outcome(("scaled",)),
    "exif_6_viewer_frame": Outcome(("EXIF",), exif="apply"),
    "exif_3": Outcome(("EXIF",), exif="apply"),
    "grey_16_bit": Outcome(("16",)),
    "webp_tif": Outcome(),
    "damaged_jpeg": Outcome(("damaged",)),
    "huge_png": Outcome(("huge.png", "max_image_pixels")),
    "backslash_names": Outcome(("found under another name (backslashes)",)),
    "url_encoded_names": Outcome(("found under another name (percent-encoding)",)),
    "odd_folder": Outcome(),
}


def data_folder(case):
    """Returns the folder of `annotations/`, which may lie below that of the case."""
    (annotations,) = case.rglob("annotations")
    return annotations.parent


def converted(case, outcome, output):
    """Converts both splits; returns {split: Conversion}."""
    rules = PictureRules(exif=outcome.exif)
    return {
        split: convert(
            read_annotations(path, on_orphan=outcome.on_orphan),
            images,
            output / split,
            num_shards=1,
            mask_format="bitpacked",
            pictures=rules,
        )
        for split, (path, images) in find_splits(data_folder(case)).items()
    }


def stored_boxes(prefix):
    """Returns {name: boxes y1, x1, y2, x2 in pixels, sorted} of a record set, without crowds."""
    result = {}
    for example in read_back(f"{prefix}-*.tfrecord"):
        sides = [example["image/height"][0], example["image/width"][0]] * 2
        boxes = np.stack([example[name] for name in BOX], -1) * sides
        boxes = boxes[np.asarray(example["image/object/is_crowd"]) == 0]
        name = re.search(r"(train|val)_\d+|photo", example["image/filename"][0].decode())
        result[name[0]] = boxes[np.lexsort(np.round(boxes).T)]
    return result


@pytest.fixture(scope="module")
def base(reported_cases, tmp_path_factory):
    """Returns the boxes of the set without a fault, and perfect detections of its objects."""
    folder = tmp_path_factory.mktemp("base")
    done = converted(reported_cases / "base", Outcome(), folder)
    boxes = {split: stored_boxes(folder / split) for split in done}
    path = reported_cases / "base" / "annotations" / "instances_val.json"
    return boxes, ground_truth_rows(scored(path, done).evaluator)[0]


@pytest.mark.parametrize("name", OUTCOMES)
def test_case(name, reported_cases, base, tmp_path):
    case, outcome = reported_cases / name, OUTCOMES[name]
    base_boxes, base_rows = base
    splits = find_splits(data_folder(case))
    if outcome.refused:
        for read in (read_annotations, read_scored):
            with pytest.raises(ValueError) as error:
                read(splits["train"][0])
            for piece in outcome.says:
                assert piece in str(error.value)
        return
    done = converted(case, outcome, tmp_path)
    report = "\n".join(describe_conversion(conversion) for conversion in done.values())
    for piece in outcome.says:
        assert piece in report
    for which, (split, conversion) in enumerate(done.items()):
        ours, theirs = stored_boxes(tmp_path / split), base_boxes[split]
        counts = sum(map(len, ours.values())), sum(map(len, theirs.values()))
        assert counts[0] == conversion.card.num_instances
        if name != "crowded_image":
            assert counts[0] == counts[1] - outcome.lost[which]
        if not outcome.lost[which] and name not in ("crowded_image", "odd_folder"):
            assert set(ours) == set(theirs)
            for stem, boxes in theirs.items():
                np.testing.assert_allclose(ours[stem], boxes, atol=1.0, err_msg=stem)
    scores = scored(splits["val"][0], done)
    renumbered = scores.class_map.renumbered(scores._channels)
    assert bool(renumbered) == (name == "val_names_swapped"), renumbered
    own, objects = ground_truth_rows(scores.evaluator)
    assert len(own) == done["val"].card.num_instances
    assert sum(entry["segmentation"] is None for entry in objects) == outcome.unknown_masks[1]
    same = name not in ("crowded_image", "nan_box_val", "val_names_swapped")
    perfect = base_rows if same else own
    expected = pytest.approx(outcome.average_precision, abs=1e-4)
    assert scores.evaluator.evaluate(perfect)["AP"] == expected


def scored(path, done):
    """Returns the scores of a validation set for a detector of the classes of the training set."""
    classes = make_class_map(done["train"].card, class_ids="contiguous", num_classes=None)
    return SetScores(str(path), classes, "val", done["val"].card)


def test_records_without_labels_name_what_is_missing(reported_cases):
    with pytest.raises(ValueError, match="record 0.*class/label.*class/text alone"):
        find_or_scan_card(f"{reported_cases}/records_text_only/records/train-*")


def test_records_without_image_ids_are_read_for_training(reported_cases, base):
    card = find_or_scan_card(f"{reported_cases}/records_no_source_id/records/train-*")
    assert (card.num_images, card.num_instances) == (8, sum(map(len, base[0]["train"].values())))
