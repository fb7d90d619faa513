"""Several record sets as one: counts, classes that must agree, masks, files."""

import numpy as np
import pytest

from object_detection.input.datasets import records_of_card
from object_detection.records.card import RecordFile, card_path, save_card
from object_detection.records.card_builder import Tally, build_card, find_or_scan_card
from object_detection.records.tfrecord_file import write_records

CLASSES = ((3, "red"), (8, "blue"))


@pytest.fixture
def make(tmp_path):
    """Writes a set of records that nobody parses, with a card; returns its pattern."""

    def write(name, num_images=2, *, categories=CLASSES, mask_format="bitpacked", folder=""):
        prefix = tmp_path / folder / name
        prefix.parent.mkdir(exist_ok=True)
        file = f"{prefix}-00000-of-00001.tfrecord"
        write_records(file, [b"record"] * num_images)
        tally = Tally()
        tally.counts.drop("box: outside the image", f"{name}, 0")
        tally.resized[name] = (9, 9)
        for index in range(num_images):
            tally.add_image(
                str(index),
                (40 + index, 60),
                boxes=np.array([[0.0, 0.0, 9.0, 9.0]]),
                category_ids=[categories[0][0]],
                is_crowd=[False],
            )
        shards = [RecordFile(f"{name}-00000-of-00001.tfrecord", num_images)]
        card = build_card(
            tally,
            split=name,
            categories=categories,
            shards=shards,
            mask_format=mask_format,
            annotations_sha256=name,
        )
        save_card(card, card_path(prefix))
        return f"{prefix}-*.tfrecord"

    return write


def test_counts_add_up(make):
    pattern = f"{make('one', 2)},{make('two', 3, folder='other')}"
    card = find_or_scan_card(pattern)
    assert (card.num_images, card.num_instances, card.split) == (5, 5, "one+two")
    assert [(c.category_id, c.instances) for c in card.categories] == [(3, 5), (8, 0)]
    assert (card.min_height, card.max_height, card.mask_format) == (40, 42, "bitpacked")
    assert records_of_card(pattern, card).num_records == 5
    assert card.dropped == {"box: outside the image": 2}
    assert card.examples == {"box: outside the image": ["one, 0"]}
    assert card.resized_images == {"one": (9, 9), "two": (9, 9)}
    assert card.fingerprint != find_or_scan_card(pattern.split(",")[0]).fingerprint


def test_shards_of_one_set_are_one_set(make):
    pattern = make("one", 2)
    assert find_or_scan_card(f"{pattern},{pattern}") == find_or_scan_card(pattern)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (((3, "red"),), r"the second lacks the classes \['blue'\]"),
        ((*CLASSES, (9, "green")), r"the first lacks the classes \['green'\]"),
        (((8, "red"), (3, "blue")), "'red' is category 3 in the first and 8 in the second"),
    ],
)
def test_classes_must_agree(make, categories, message):
    with pytest.raises(ValueError, match=f"cannot be trained on together: .*{message}"):
        find_or_scan_card(f"{make('one')},{make('two', categories=categories)}")


def test_masks_in_all_or_none(make):
    with pytest.raises(ValueError, match=r"two-\*.tfrecord holds no masks, the other sets do"):
        find_or_scan_card(f"{make('one')},{make('two', mask_format=None)}")
    mixed = f"{make('three')},{make('four', mask_format='png')}"
    assert find_or_scan_card(mixed).mask_format == "png"


def test_a_file_belongs_to_one_set(make):
    one = make("one")
    with pytest.raises(ValueError, match="name each set once"):
        find_or_scan_card(f"{make('two')},{one},{one.replace('-*', '-0*')}")
