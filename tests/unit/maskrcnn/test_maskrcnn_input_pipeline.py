"""Mask R-CNN's input from records: canvases by shape, masks, crowds."""

import numpy as np
import pytest
from mask_records import OBJECTS, mask_record, tiny_config, write_set
from samples import unpack_mask

from maskrcnn.task import MaskRcnnTask
from object_detection.records.class_map import ClassMap
from object_detection.records.reader import Shard

CLASS_MAP = ClassMap(2, {0: (3, "red"), 1: (8, "blue")})


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Four landscape and two portrait images; one has no object, one a crowd."""
    made = [mask_record(i, objects=OBJECTS) for i in range(3)]
    made.append(mask_record(3, objects=OBJECTS, is_crowd=[True, False]))
    made.append(mask_record(4, size=(90, 60), objects=(((5, 5, 80, 50), 1),)))
    made.append(mask_record(5, size=(90, 60), objects=()))
    return write_set(tmp_path_factory.mktemp("set"), made)


class InputTask(MaskRcnnTask):
    """A task whose network is not needed."""

    build_model = staticmethod(lambda *_, **__: None)


def task_of(records, cards=None, **changes):
    pattern, card = records
    config = tiny_config(
        data__training_file_pattern=pattern, eval__val_file_pattern=pattern, **changes
    )
    train_card, eval_card = cards or (card, card)
    return InputTask(config, CLASS_MAP, train_card=train_card, eval_card=eval_card, seed=4)


def read(records, count=None, *, training=False, **changes):
    task = task_of(records, **changes)
    if not training:
        return list(task.eval_dataset(shard=Shard()).as_numpy_iterator())
    dataset = task.train_dataset(shard=Shard(), start_step=0)
    return list(dataset.take(count).as_numpy_iterator())


def test_evaluation_has_every_image_once_and_no_masks(records):
    batches = read(records)
    assert {batch["image"].shape for batch in batches} == {(2, 64, 96, 3), (2, 96, 64, 3)}
    seen = [int(i) for batch in batches for i in batch["record_index"][batch["valid"]]]
    assert sorted(seen) == list(range(6))
    assert all("masks" not in batch for batch in batches)


def test_validation_losses_need_masks(records):
    assert all("masks" in batch for batch in read(records, train__validate=True))


def test_a_model_without_masks_reads_none(records):
    (batch,) = read(records, 1, training=True, model__include_mask=False)
    assert "masks" not in batch


@pytest.mark.quick
def test_masks_are_the_stored_crops_of_their_boxes(records):
    for batch in read(records, 4, training=True):
        for row, slot in np.argwhere(batch["classes"] >= 0):
            crop = unpack_mask(batch["masks"][row, slot].tobytes())
            # An ellipse fills pi / 4 of its box, and none of the corners.
            assert crop.mean() == pytest.approx(np.pi / 4, abs=0.02)
            assert not crop[:5, :5].any()
        assert not batch["masks"][batch["classes"] < 0].any()


def test_crowds_are_left_out_of_training_unless_asked_for(records):
    def crowds(**changes):
        return sum(b["is_crowd"].sum() for b in read(records, 8, training=True, **changes))

    assert crowds() == 0
    assert crowds(data__skip_crowd_during_training=False) > 0


def test_the_canvas_is_bounded_by_the_largest_image_of_all_records(records):
    settings = {"data__resize_on": "device", "model__canvases": [[64, 96]]}
    for cards in ((records[1], None), (None, records[1])):
        (frame,) = task_of(records, cards, **settings).frames()
        assert frame.canvas_size == (80, 96) and frame.network_size == (64, 96)
    (frame,) = task_of(records, (None, None), **settings).frames()
    assert frame.canvas_size == (80, 120)


def test_a_batch_may_be_larger_than_the_images_of_a_shape(records):
    """Images of a rare shape wait for those of later epochs; all are seen equally often."""
    batches = read(records, 12, training=True, train__batch_size=4)
    assert {batch["image"].shape for batch in batches} == {(4, 64, 96, 3), (4, 96, 64, 3)}
    counts = np.bincount(np.concatenate([batch["record_index"] for batch in batches]), minlength=6)
    # 48 images are eight epochs of six.
    assert np.abs(counts - 8).max() <= 2, counts
