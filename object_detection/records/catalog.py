"""The data-set catalog: names of data sets and where their images, annotations and records are.

    my_dataset_train:                        # any name
      images: images_train                   # or img_dir, as the PyTorch reference writes it
      annotations: instances_train.json      # or ann_file; COCO's format, any category ids
      records: records/my_dataset_train-*    # default: records/NAME-*.tfrecord

Paths are relative to the data folder. The names of the PyTorch reference are known without a
catalog file, at the places where dataset/ puts them. Training reads records, never images, so a set
must have been converted; `require_records` gives the command.
"""

from __future__ import annotations

import difflib
import itertools
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from object_detection.records.tfrecord_file import record_files
from outside_data.files import BadFileError, read_yaml, regular_file
from path_names.patterns import match


class DataSet(NamedTuple):
    """One data set. records: glob; made_by: the command that makes the annotations, '' if own."""

    name: str
    images: str
    annotations: str
    records: str
    made_by: str = ""


_KEYS = {
    "images": "images",
    "img_dir": "images",
    "annotations": "annotations",
    "ann_file": "annotations",
    "records": "records",
}
_NUM_SHARDS = 32


def stock_catalog(folder: str) -> dict[str, DataSet]:
    """Returns the data sets that the PyTorch reference knows by name, below a data folder."""
    entries: list[DataSet] = []

    def add(name: str, images: str, annotations: str, made_by: str, *, records: str = "") -> None:
        records = records or f"records/{name}-*.tfrecord"
        entries.append(DataSet(name, images, annotations, records, made_by))

    for split in ("train", "val"):
        made_by = "INCLUDE_MASKS=1 dataset/get_coco.sh DATA_DIR"
        annotations = f"annotations/instances_{split}2017.json"
        records = f"{split}-*.tfrecord"
        add(f"coco_2017_{split}", f"{split}2017", annotations, made_by, records=records)
    for split in ("train", "val", "minival", "valminusminival"):
        images = "train2014" if split == "train" else "val2014"
        annotations = f"annotations/instances_{split}2014.json"
        add(f"coco_2014_{split}", images, annotations, "dataset/get_coco2014.sh DATA_DIR")
    for year, split in itertools.product(("2007", "2012"), ("train", "val", "test")):
        folder_of_year = f"voc/VOC{year}"
        images = f"{folder_of_year}/JPEGImages"
        annotations = f"{folder_of_year}/Annotations/pascal_{split}{year}.json"
        made_by = f"python dataset/voc_to_coco.py --voc_dir=DATA_DIR/{folder_of_year}"
        for name in (f"voc_{year}_{split}", f"voc_{year}_{split}_cocostyle"):
            add(name, images, annotations, f"{made_by} --split={split}")
    for split in ("train", "val", "test"):
        made_by = "python dataset/cityscapes_to_coco.py --cityscapes_dir=DATA_DIR/cityscapes"
        add(
            f"cityscapes_fine_instanceonly_seg_{split}_cocostyle",
            "cityscapes/leftImg8bit",
            f"cityscapes/annotations/instancesonly_filtered_gtFine_{split}.json",
            f"{made_by} --split={split}",
        )
    return {entry.name: _placed(entry, folder) for entry in entries}


def read_catalog(path: str, folder: str) -> dict[str, DataSet]:
    """Returns the stock catalog with the data sets of a file added or in their place.

    Args:
      path: YAML file; '': none.
      folder: data folder; '': that of the file, without a file the present one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else; names the entry and the keys expected.
    """
    if not path:
        return stock_catalog(folder)
    folder = folder or os.path.dirname(path)
    if regular_file(path) is None:
        raise FileNotFoundError(f"no data-set catalog at {path} (--data_catalog)")
    content = read_yaml(path) or {}
    if not isinstance(content, Mapping):
        raise BadFileError(f"{path}: expected data sets by name, got {type(content).__name__}")
    catalog = stock_catalog(folder)
    for name, entry in content.items():
        catalog[str(name)] = _placed(_entry(str(name), entry, path), folder)
    return catalog


def _entry(name: str, entry: Any, path: str) -> DataSet:
    if not isinstance(entry, Mapping):
        raise BadFileError(
            f"{path}: {name}: expected images, annotations and records, got {entry!r}"
        )
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise BadFileError(
            f"{path}: {name}: unknown key {unknown[0]!r}: expected {', '.join(_KEYS)}. Sets in "
            "another format become COCO's with dataset/voc_to_coco.py or cityscapes_to_coco.py"
        )
    values = {_KEYS[key]: str(value) for key, value in entry.items()}
    if "annotations" not in values:
        raise BadFileError(f"{path}: {name}: annotations (or ann_file) is missing")
    values.setdefault("images", "")
    values.setdefault("records", f"records/{name}-*.tfrecord")
    return DataSet(name, **values)


def _placed(entry: DataSet, folder: str) -> DataSet:
    """Returns the entry with its paths below the data folder; absolute ones stay."""
    places = {
        key: os.path.join(folder, getattr(entry, key)) if getattr(entry, key) else ""
        for key in ("images", "annotations", "records")
    }
    return entry._replace(**places, made_by=entry.made_by.replace("DATA_DIR", folder or "."))


def choose(catalog: Mapping[str, DataSet], names: Iterable[str]) -> list[DataSet]:
    """Returns the named data sets.

    Raises:
      ValueError: a name is not in the catalog, or stands twice; lists the names that are near.
    """
    names = list(names)
    for name in names:
        if name not in catalog:
            near = difflib.get_close_matches(name, catalog, n=3, cutoff=0.4) or sorted(catalog)[:3]
            raise ValueError(
                f"data set {name!r} is unknown; did you mean {' or '.join(near)}? Own sets are "
                "named in a file (--data_catalog)"
            )
        if names.count(name) > 1:
            raise ValueError(f"data set {name!r} is named twice")
    return [catalog[name] for name in names]


def records_of(sets: Sequence[DataSet], *, with_masks: bool) -> str:
    """Returns the pattern that means the records of all the sets.

    Raises:
      FileNotFoundError: a set was not converted; gives the command, with masks or without.
    """
    for entry in sets:
        try:
            record_files(entry.records)
        except FileNotFoundError as error:
            raise FileNotFoundError(_how_to_convert(entry, with_masks=with_masks)) from error
    return ",".join(entry.records for entry in sets)


def _how_to_convert(entry: DataSet, *, with_masks: bool) -> str:
    prefix = entry.records.split("*")[0].rstrip("-")
    command = [
        *("python", "dataset/create_coco_tfrecord.py", *(["--include_masks"] * with_masks)),
        f"--image_dir={entry.images or 'IMAGES'}",
        f"--object_annotations_file={entry.annotations}",
        f"--output_file_prefix={prefix}",
        f"--num_shards={_NUM_SHARDS}",
    ]
    said = (
        f"data set {entry.name} is not converted: no file matches {entry.records}. Convert it: "
        f"{shlex.join(command)}"
    )
    if entry.made_by and not match(entry.annotations):
        said += f". Its annotations are missing too: {entry.made_by}"
    return said
