"""Classes of several lists meet by name."""

import pytest

from object_detection.records.card_builder import Tally, build_card
from object_detection.records.class_map import (
    ClassMap,
    coco_class_map,
    make_class_map,
    read_label_map,
)

PETS = ClassMap(3, {0: (1, "person"), 1: (2, "animal"), 2: (3, "traffic light")})


def matched(others):
    return PETS.matched(others, source="val.json").category_to_class


def test_the_same_names_under_the_same_ids():
    assert matched({1: "person", 2: "animal", 3: "traffic light"}) == {1: 0, 2: 1, 3: 2}
    assert matched({1: "Person ", 2: "ANIMAL", 3: "traffic_light"}) == {1: 0, 2: 1, 3: 2}
    composed, decomposed = ClassMap(1, {0: (1, "caf\u00e9")}), {5: "Cafe\u0301"}
    assert composed.matched(decomposed, source="val.json").category_to_class == {5: 0}


def test_the_same_names_under_other_ids_are_mapped_and_said():
    swapped = PETS.matched({1: "person", 2: "traffic light", 3: "animal"}, source="val.json")
    assert swapped.category_to_class == {1: 0, 2: 2, 3: 1}
    assert PETS.renumbered(swapped) == [
        "'animal' is category 3 there, 2 here",
        "'traffic light' is category 2 there, 3 here",
    ]
    assert matched({0: "person", 1: "animal", 2: "traffic light"}) == {0: 0, 1: 1, 2: 2}


def test_fewer_and_unknown_categories():
    assert matched({3: "traffic light"}) == {3: 2}
    assert matched({3: "traffic light", 9: "cup"}) == {3: 2}


def test_other_names_under_the_same_ids_are_listed():
    message = "val.json.*category 2 is 'cup' there, 'animal' here; category 3 is 'fork' there"
    with pytest.raises(ValueError, match=message):
        matched({1: "person", 2: "cup", 3: "fork"})
    with pytest.raises(ValueError, match="categories 1 and 5 are both 'person' here"):
        matched({1: "1", 5: "person"})


def test_names_that_say_nothing_leave_it_to_the_ids():
    assert matched({1: "1", 2: "category 2", 3: "3"}) == {1: 0, 2: 1, 3: 2}
    twins = ClassMap(2, {0: (3, "part"), 1: (4, "part")})
    assert twins.matched({3: "part", 4: "part"}, source="x").category_to_class == {3: 0, 4: 1}


@pytest.mark.parametrize("number", [0, -1, 10**9])
def test_a_stored_map_has_as_many_channels_as_a_model_can_have(number):
    with pytest.raises(ValueError, match=f"num_classes={number}: expected 1 to 100000"):
        ClassMap.from_dict({**PETS.to_dict(), "num_classes": number})


def test_weights_of_few_classes_are_not_called_by_cocos_first():
    few = coco_class_map(class_ids="contiguous", num_classes=3)
    assert few.names == ("class 0", "class 1", "class 2") and few.coco_channels() is None
    for class_ids, num_classes, last in (("contiguous", None, 79), ("category_id", 91, 89)):
        coco = coco_class_map(class_ids=class_ids, num_classes=num_classes)
        assert (coco.names[0], coco.names[last]) == ("person", "toothbrush")


def test_a_label_map_does_not_part_a_model_from_its_data():
    renamed = PETS.renamed({2: "Tier"})
    stored = ClassMap.from_dict(renamed.to_dict())
    assert stored == renamed and stored.names[1] == "Tier"
    again = stored.matched({1: "person", 2: "animal", 3: "traffic light"}, source="val.json")
    assert again.category_to_class == {1: 0, 2: 1, 3: 2}
    assert stored.matched({2: "Tier"}, source="val.json").category_to_class == {2: 1}


def test_channels_of_a_weight_file_by_name():
    ours = ClassMap(3, {0: (7, "cup"), 1: (8, "animal"), 2: (9, "person")})
    channels = ours.channels_in(PETS)
    assert channels == [-1, 1, 0]
    said = ours.describe_channels(channels)
    assert "2 of 3 classes are the file's by name: animal, person" in said
    assert said.endswith("kept as initialised: cup")


def test_ids_too_large_to_number_channels():
    categories = [(10**12, "cup")]
    card = build_card(Tally(), split="train", categories=categories, shards=[], mask_format=None)
    assert make_class_map(card, class_ids="contiguous", num_classes=None).names == ("cup",)
    with pytest.raises(ValueError, match="1,000,000,000,000 channels for the 1 cat.*contiguous"):
        make_class_map(card, class_ids="category_id", num_classes=None)


PBTXT = """
item {
  id: 1  # of TensorFlow's object detection
  name: 'yes'
}
item { name: "/m/01g317" id: 90 display_name: "no" }
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.yaml", "1: yes\n90: no\n"),  # which YAML takes for true and false
        ("map.json", '{"1": "yes", "90": "no"}'),
        ("automl.yaml", "num_classes: 2\nlabel_map: {1: yes, 90: no}\n"),
        ("label_map.pbtxt", PBTXT),
    ],
)
def test_label_maps_of_several_programs(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_label_map(str(tmp_path / name)) == {1: "yes", 90: "no"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.yaml", "- cat\n- dog\n", "list, not numbers with names"),
        ("turned.yaml", "cat: 1", "'cat'"),
        ("negative.yaml", "-1: cat", "the id -1, below 0"),
        ("empty.pbtxt", "", "not one class"),
        ("unnamed.pbtxt", "item { id: 1 }", "'name'"),
    ],
)
def test_label_maps_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: expected category id: name; .*{message}"):
        read_label_map(str(tmp_path / name))
