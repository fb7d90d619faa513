"""COCO annotation files: reading, checking, finding splits, cutting splits."""

import gzip
import json
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from object_detection.coco.annotations import (
    CocoAnnotations,
    CocoCategory,
    CocoImage,
    read_annotations,
    read_captions,
    read_images,
    write_annotations,
)
from object_detection.convert.splits import find_image_dir, find_splits, make_split
from object_detection.formats.folder import DataFolder

LVIS = ("val2017/2.jpg", "train2017/1.jpg")


def content(**changes):
    base = {
        "images": [
            {"id": 4, "file_name": "b.jpg", "height": 20, "width": 30},
            {"id": "x-1", "file_name": "a.jpg"},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat", "supercategory": "pet"}],
        "annotations": [
            {"id": 0, "image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"id": 0, "image_id": "4", "category_id": 2, "bbox": [1, 2, 3, 4], "area": 5.5},
            {"id": 1, "image_id": "x-1", "category_id": 2, "bbox": [float("nan"), 2, 3, 4]},
        ],
    }
    return {**base, **changes}


@pytest.fixture
def write(tmp_path):
    def write_json(value, name="instances_train.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = value if isinstance(value, (str, bytes)) else json.dumps(value)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_json


def test_read(write):
    annotations = read_annotations(write(content()))
    assert annotations.categories == (CocoCategory(0, 2, "cat", "pet"), CocoCategory(1, 7, "dog"))
    assert [image.source_id for image in annotations.images] == ["4", "x-1"]
    assert annotations.images[1].height is None
    assert {key: len(entries) for key, entries in annotations.objects.items()} == {"4": 2}
    assert annotations.num_objects == 2
    assert len(annotations.sha256) == 64


def test_to_coco_is_fit_for_scoring(write):
    dataset = read_annotations(write(content())).to_coco()
    # Ids start at 1, the NaN box is gone, ids keep their type, area and iscrowd are filled in.
    assert [(a["id"], a["image_id"], a["area"], a["iscrowd"]) for a in dataset["annotations"]] == [
        (1, 4, 12, 1),
        (2, 4, 5.5, 0),
    ]
    assert [image["id"] for image in dataset["images"]] == [4, "x-1"]


def test_written_annotations_are_read_back(write, tmp_path):
    annotations = read_annotations(write(content()))
    write_annotations(annotations, tmp_path / "sub" / "instances_val.json")
    again = read_annotations(tmp_path / "sub" / "instances_val.json")
    assert again.images == annotations.images
    assert again.categories == annotations.categories
    assert again.num_objects == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "'images' is a NoneType"),
        ({"images": []}, "list of images is empty"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
        ({"images": [{"file_name": "a"}]}, r"images\[0\] has no id"),
        ({"images": [{"id": 7, "file_name": "a"}, {"id": "7", "file_name": "b"}]},
         "image id 7 occurs twice .a and b"),
        ({"categories": []}, "list of categories is empty"),
        ({"categories": [{"name": "cat"}]}, r"categories\[0\] has id None: expected an integer"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
         "category id 1 occurs twice .cat and dog"),
        ({"annotations": "x"}, "'annotations' is a str"),
        ({"annotations": [{"id": 3, "image_id": 9, "category_id": 2}]},
         "1 of 1 annotations.*annotation 3: image_id 9.*another data set"),
        ({"annotations": [{"id": 3, "image_id": 4, "category_id": 0},
                          {"id": 4, "image_id": 4, "category_id": 2}]},
         "1 of 2 annotations.*annotation 3: category_id 0.*on_orphan_annotation"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(write, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(write(content(**changes)))
    assert "instances_train.json" in str(error.value)


def test_images_of_lvis_are_named_by_their_url(write):
    url = "http://images.cocodataset.org/train2017/000000000009.jpg"
    images = [{"id": 4, "coco_url": url}, {"id": "x-1", "file_name": "b.jpg", "coco_url": url}]
    annotations = read_annotations(write(content(images=images)))
    names = [image.file_name for image in annotations.images]
    assert names == ["train2017/000000000009.jpg", "b.jpg"]
    assert "named by coco_url (of LVIS; scores are COCO's)" in str(annotations.findings)


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_missing_key(write, key):
    value = content()
    del value[key]
    with pytest.raises(ValueError, match=f"no '{key}'"):
        read_annotations(write(value))


def test_other_json_files(write, tmp_path):
    with pytest.raises(ValueError, match="got a list .of detections"):
        read_annotations(write([{"image_id": 1, "score": 0.5}]))
    with pytest.raises(ValueError, match="no valid JSON"):
        read_annotations(write(json.dumps(content())[:-20]))
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_annotations(tmp_path / "nothing.json")


def test_halves_of_surrogates_become_escapes(write):
    """Records hold UTF-8; Python writes file names of other encodings so."""
    images = [{"id": "caf\udce9", "file_name": "caf\udce9.jpg"}]
    categories = [{"id": 1, "name": "d\ud800g"}]
    value = content(images=images, categories=categories, annotations=[])
    annotations = read_annotations(write(value))
    assert annotations.class_names == (r"d\ud800g",)
    assert annotations.images[0].source_id == r"caf\udce9"


def test_image_list_without_annotations(write):
    value = content()
    del value["annotations"]
    path = write(value)
    assert read_annotations(path, require_objects=False).num_objects == 0
    assert len(read_images(path)) == 2


def test_captions(write):
    captions = [{"image_id": 4, "caption": "one"}, {"image_id": 4, "caption": "two"}]
    assert read_captions(write({"annotations": captions})) == {"4": ["one", "two"]}
    assert read_captions(write({"annotations": [{"image_id": 4, "caption": 3}]})) == {"4": ["3"]}
    for value, message in (
        (content(), "expected a captions file"),
        ({"annotations": None}, "'annotations' is a NoneType"),
        ({"annotations": [7]}, r"annotations\[0\] is 7"),
    ):
        with pytest.raises(ValueError, match=message):
            read_captions(write(value))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def named(*file_names):
    images = [{"id": i, "file_name": name} for i, name in enumerate(file_names)]
    return content(images=images, annotations=[])


@pytest.mark.parametrize(
    ("annotation_file", "image", "split", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017/a.jpg", "train2017", "train2017"),
        ("annotations/instances_val2017.json", "val/a.jpg", "val2017", "val"),
        ("annotations/instances_test.json", "images/a.jpg", "test", "images"),
        ("annotations/instances_val.json", "images/val/a.jpg", "val", "images/val"),
        ("instances_train.json", "a.jpg", "train", "."),
        ("annotations/instances_train.JSON", "a.jpg", "train", "."),
        ("valid/_annotations.coco.json", "valid/a.jpg", "valid", "valid"),
        ("annotations/everything.json", "pictures/a.jpg", "everything", "pictures"),
        ("annotations/everything.json", "mine/a.jpg", "everything", "mine"),
    ],
)
def test_find_splits_in_many_layouts(write, tmp_path, annotation_file, image, split, folder):
    path = write(named("a.jpg"), annotation_file)
    write("{}", "annotations/captions_val.json")
    touch(tmp_path, image, "other/b.jpg", ".preparing")  # records were written here, too
    write("another picture", ".trash/a.jpg")
    assert find_splits(tmp_path) == {split: (path, tmp_path / folder)}


def test_splits_of_lvis_lie_in_both_folders_of_coco(write, tmp_path):
    images = [{"id": i, "coco_url": f"http://x/{name}"} for i, name in enumerate(LVIS)]
    path = write(content(images=images, annotations=[]), "lvis_v1_val.json")
    touch(tmp_path, *LVIS)
    assert find_splits(tmp_path) == {"val": (path, tmp_path)}


@pytest.mark.parametrize("missing", [None, "train/2.jpg", "val/1.jpg"])
@pytest.mark.parametrize("splits", [("train2017", "val2017"), ("cells_Train", "cells_Val")])
@pytest.mark.parametrize("inside", [".", "images"])
def test_same_names_in_two_folders_go_to_the_one_named_like_the_split(
    write, tmp_path, missing, splits, inside
):
    for split in splits:
        write(named("1.jpg", "2.jpg"), f"annotations/instances_{split}.json")
    names = ("train/1.jpg", "train/2.jpg", "val/1.jpg", "val/2.jpg")
    touch(tmp_path / inside, *(name for name in names if name != missing))
    assert {name: folder.name for name, (_, folder) in find_splits(tmp_path).items()} == dict(
        zip(splits, ("train", "val"))
    )


def test_file_names_with_a_folder_and_with_escapes(write, tmp_path):
    write(named("sub/a.jpg", 'sub/ü "b".jpg'), "annotations/instances_all.json")
    touch(tmp_path, "pictures/sub/a.jpg")
    assert find_splits(tmp_path)["all"][1] == tmp_path / "pictures"


def test_key_points_are_read_where_there_are_no_instances(write, tmp_path):
    write(named("a.jpg"), "annotations/person_keypoints_train2017.json")
    touch(tmp_path, "train/a.jpg", "val/b.jpg")
    ((split, (path, images)),) = find_splits(tmp_path).items()
    assert (split, path.name) == ("train2017", "person_keypoints_train2017.json")
    assert images == tmp_path / "train"
    write(named("b.jpg"), "labels.json")
    assert {split: path.name for split, (path, _) in find_splits(tmp_path).items()} == {
        "labels": "labels.json"
    }


def test_annotations_of_another_task_are_named(write, tmp_path):
    write(named("a.jpg"), "annotations/panoptic_train2017.json")
    write("[]", "annotations/a.json")
    with pytest.raises(FileNotFoundError, match=r"no boxes of objects: annotations/panoptic_train"):
        find_splits(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(write, tmp_path):
    path = write("names: [cat]", "data.yaml")
    with pytest.raises(FileNotFoundError, match=rf"data\.yaml is a file: name {tmp_path}, or the"):
        find_splits(path)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(path)
    with pytest.raises(
        FileNotFoundError, match=r"set\.zip is a file: unpack it and name the folder"
    ):
        DataFolder(tmp_path / "set.zip")


def test_find_splits_errors(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder"):
        find_splits(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no COCO annotations: expected one of annotations"
    ):
        find_splits(tmp_path)
    write(named("a.jpg"), "annotations/instances_train.json")
    with pytest.raises(
        FileNotFoundError, match=r"first 1 images .a\.jpg.*: put them there, or cor"
    ):
        find_splits(tmp_path)
    touch(tmp_path, "train.zip")
    with pytest.raises(FileNotFoundError, match=r"first 1 images .a\.jpg.*: unpack .*train\.zip"):
        find_splits(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "is no valid JSON: Expecting value"),
        (gzip.compress(b"{}"), "no UTF-8 text.*unpack it if it is an archive"),
        ("{'images': [{'file_name': 'a.jpg'}]}", "is no valid JSON: Expecting property name"),
        ({"images": [], "annotations": []}, "the list of images is empty"),
        ({"images": [{"id": 1, "flickr_url": "a.jpg"}]}, r"images\[0\] has no file_name"),
    ],
)
def test_why_a_file_names_no_image_is_said(write, value, message):
    path = write(value, "annotations/instances_train.json")
    with pytest.raises(ValueError, match=f"instances_train.json.*{message}"):
        find_image_dir(path, path.parents[1])


def test_names_that_are_numbers_are_names(write, tmp_path):
    path = write(named(7), "annotations/instances_train.json")
    write("", "train/7.jpg")
    assert find_image_dir(path, tmp_path) == tmp_path / "train"


def synthetic(classes_of_images):
    images = tuple(CocoImage(str(i), i, f"{i}.jpg", 10, 10) for i in range(len(classes_of_images)))
    objects = {
        str(i): [{"image_id": i, "category_id": c, "bbox": [0, 0, 1, 1]} for c in classes]
        for i, classes in enumerate(classes_of_images)
        if classes
    }
    names = sorted({c for classes in classes_of_images for c in classes})
    categories = tuple(CocoCategory(i, c, f"class {c}") for i, c in enumerate(names))
    return CocoAnnotations("all.json", "hash", images, categories, objects)


def classes_in(part):
    return {entry["category_id"] for entries in part.objects.values() for entry in entries}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_split_has_the_size_asked_for_and_does_not_depend_on_order(classes, fraction, seed):
    whole = synthetic(classes)
    train, held_out = make_split(whole, fraction, seed=seed)
    ids = [{image.source_id for image in part.images} for part in (train, held_out)]
    assert ids[0] | ids[1] == {image.source_id for image in whole.images}
    assert not ids[0] & ids[1]
    expected = min(max(round(fraction * len(classes)), 1), len(classes) - 1)
    assert len(ids[1]) == expected
    backwards = CocoAnnotations(
        "all.json", "hash", whole.images[::-1], whole.categories, whole.objects
    )
    again = make_split(backwards, fraction, seed=seed)[1]
    assert {image.source_id for image in again.images} == ids[1]


def test_split_represents_rare_classes_on_both_sides():
    # 100 images of class 0; class 1 in three of them, class 2 in two, class 3 in one.
    classes = [{0} for _ in range(100)]
    for image, extra in ((10, 1), (20, 1), (30, 1), (40, 2), (50, 2), (60, 3)):
        classes[image].add(extra)
    for seed in range(20):
        train, held_out = make_split(synthetic(classes), 0.1, seed=seed)
        assert classes_in(train) == {0, 1, 2, 3}
        assert classes_in(held_out) >= {0, 1, 2}
    first = make_split(synthetic(classes), 0.1, seed=0)[1]
    assert first.images != make_split(synthetic(classes), 0.1, seed=1)[1].images


@pytest.mark.parametrize(("num_images", "fraction"), [(1, 0.5), (10, 0.0), (10, 1.0), (10, -0.1)])
def test_split_that_cannot_be(num_images, fraction):
    with pytest.raises(ValueError, match="cannot hold out"):
        make_split(synthetic([{0}] * num_images), fraction)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("coco_cc", {"train2017": (60, 490, 80), "val2017": (27, 270, 80)}),
        ("bccd", {"train": (205, 2804, 3), "val": (87, 1137, 3), "test": (72, 945, 3)}),
        ("nuclei", {"train": (180, 5079, 1), "val": (60, 2091, 1)}),
    ],
)
def test_real_sets(detection_test_data, folder, expected):
    found = {}
    for split, (annotation_file, image_dir) in find_splits(detection_test_data / folder).items():
        annotations = read_annotations(annotation_file)
        found[split] = (
            len(annotations.images),
            annotations.num_objects,
            len(annotations.categories),
        )
        assert all((image_dir / image.file_name).is_file() for image in annotations.images)
        train, held_out = make_split(annotations, 0.2)
        assert classes_in(train) == classes_in(annotations)
        assert len(held_out.images) == round(0.2 * len(annotations.images))
    assert found == expected
