"""The data-set catalog: stock names, a file of one's own, and what is wrong with one."""

import pytest

from object_detection.records.catalog import choose, read_catalog, records_of, stock_catalog


def test_the_references_names_are_known():
    catalog = stock_catalog("/data")
    entry = catalog["coco_2017_train"]
    assert entry.images == "/data/train2017" and entry.records == "/data/train-*.tfrecord"
    assert entry.annotations == "/data/annotations/instances_train2017.json"
    minival = catalog["coco_2014_minival"]
    assert minival.images == "/data/val2014"
    assert minival.annotations == "/data/annotations/instances_minival2014.json"
    assert {"coco_2014_valminusminival", "voc_2007_test", "voc_2012_train_cocostyle"} <= set(
        catalog
    )
    assert catalog["cityscapes_fine_instanceonly_seg_val_cocostyle"].made_by == (
        "python dataset/cityscapes_to_coco.py --cityscapes_dir=/data/cityscapes --split=val"
    )


def test_an_own_file(tmp_path):
    path = tmp_path / "sets.yaml"
    path.write_text(
        "mine: {images: pictures, annotations: /abs/mine.json}\n"
        "coco_2017_train: {ann_file: other.json, records: r-*}\n"
    )
    catalog = read_catalog(str(path), "")
    assert catalog["mine"] == (
        *("mine", f"{tmp_path}/pictures", "/abs/mine.json"),
        *(f"{tmp_path}/records/mine-*.tfrecord", ""),
    )
    assert catalog["coco_2017_train"].records == f"{tmp_path}/r-*"
    assert "coco_2014_train" in catalog
    assert read_catalog(str(path), "/data")["mine"].images == "/data/pictures"
    with pytest.raises(FileNotFoundError, match="data set mine is not converted"):
        records_of(choose(catalog, ["mine"]), with_masks=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected data sets by name, got list"),
        ("mine: 3", "mine: expected images, annotations and records, got 3"),
        ("mine: {images: x}", "mine: annotations .* is missing"),
        ("mine: {split: train}", "mine: unknown key 'split'.*voc_to_coco"),
        ("mine: {", "not readable as YAML"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, text, message):
    path = tmp_path / "sets.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"sets.yaml: {message}"):
        read_catalog(str(path), "")


def test_names_are_known_and_stand_once(tmp_path):
    catalog = stock_catalog("")
    with pytest.raises(ValueError, match="'coco_2017_vall' is unknown; did you mean coco_2017_val"):
        choose(catalog, ["coco_2017_vall"])
    with pytest.raises(ValueError, match="named twice"):
        choose(catalog, ["voc_2007_val", "voc_2007_val"])
    with pytest.raises(FileNotFoundError, match="no data-set catalog at"):
        read_catalog(str(tmp_path / "none.yaml"), "")
