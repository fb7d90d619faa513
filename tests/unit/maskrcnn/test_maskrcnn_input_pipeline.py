"""Mask R-CNN's input from records: canvases by shape, masks, crowds, resume."""

import numpy as np
import pytest
from mask_records import OBJECTS, mask_record, tiny_config, write_set
from samples import unpack_mask

from detector import inputs
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


def configured(records, **changes):
    pattern, _ = records
    return tiny_config(
        data__training_file_pattern=pattern, eval__val_file_pattern=pattern, **changes
    )


def frames_of(config, cards):
    model = config.model
    return inputs.frames_of(config, model.canvas_sizes, cards, side_limits=model.image_size)


def read(records, count=None, *, training=False, start_position=0, **changes):
    config, card = configured(records, **changes), records[1]
    with_masks = config.model.include_mask
    places = {"frames": frames_of(config, [card]), "shard": Shard()}
    if not training:
        with_masks = with_masks and config.train.validate
        dataset = inputs.eval_dataset(config, card, CLASS_MAP, with_masks=with_masks, **places)
        return list(dataset.as_numpy_iterator())
    dataset = inputs.train_dataset(
        config,
        card,
        CLASS_MAP,
        seed=4,
        start_position=start_position,
        with_masks=with_masks,
        **places,
    )
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


def test_a_resumed_stream_equals_the_unbroken_one(records):
    unbroken = read(records, 7, training=True)
    resumed = read(records, 3, training=True, start_position=8)
    for expected, found in zip(unbroken[4:], resumed):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_canvas_is_bounded_by_the_largest_image_of_all_records(records):
    config = configured(records, data__resize_on="device", model__canvases=[[64, 96]])
    (frame,) = frames_of(config, [records[1], None])
    assert frame.canvas_size == (80, 96) and frame.network_size == (64, 96)
    (frame,) = frames_of(config, [None])
    assert frame.canvas_size == (80, 120)


def test_a_batch_may_be_larger_than_the_images_of_a_shape(records):
    """Images of a rare shape wait for those of later epochs; all are seen equally often."""
    batches = read(records, 12, training=True, train__batch_size=4)
    assert {batch["image"].shape for batch in batches} == {(4, 64, 96, 3), (4, 96, 64, 3)}
    counts = np.bincount(np.concatenate([batch["record_index"] for batch in batches]), minlength=6)
    # 48 images are eight epochs of six.
    assert np.abs(counts - 8).max() <= 2, counts
