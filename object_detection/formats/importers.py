"""Finds out in which format a data folder is annotated, and writes it as COCO instances files.

What is written stays in a folder of its own and is used again as long as the data folder has the
same files: names, sizes and times are compared.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from object_detection.formats import tables
from object_detection.formats.folder import DataFolder, head_of, is_labelme
from object_detection.formats.labelled import LabelledSet, coco_split
from outside_data.files import (
    MOST_JSON_BYTES,
    BadFileError,
    expecting,
    open_as_utf8,
    read_file,
    read_json,
    regular_file,
)
from outside_data.text import clean
from outside_data.whole_file import write_whole

_OF_JSON = ("labelme", "supervisely", "via", "createml", "label_studio")
FORMATS = ("coco", "cvat", "voc", *_OF_JSON, "open_images", "yolo")
"""In the order in which they are looked for: later ones leave fewer marks."""

_MODULES = {"open_images": "tables", **{name: f"json_files.{name}" for name in _OF_JSON}}
_ONE_SUFFIX = {"voc": ".xml", "cvat": ".xml", **dict.fromkeys(_OF_JSON, ".json")}
# What the JSON of tools is marked by that are not read.
_NOT_READ = {
    "VGG Image Annotator 3": (b'"vid"', b'"xy"'),
    "VoTT": (b'"asset"', b'"regions"'),
    "FiftyOne": (b'"labels"', b'"bounding_box"'),
    "BDD100K": (b'"box2d"',),
    "Labelbox": (b'"Labeled Data"',),
}
_DESCRIPTION = "imported.json"
_VERSION = 2


class Imported(NamedTuple):
    """A data folder in COCO's form.

    Attributes:
      format: one of FORMATS.
      splits: name to (instances file, image folder).
      counts: what was left out or guessed, and how often.
    """

    format: str
    splits: dict[str, tuple[Path, Path]]
    counts: Mapping[str, int]


def detect_format(folder: DataFolder) -> str:
    """Returns the format of a folder's annotations.

    Raises:
      ValueError: none is recognised; says what was looked for.
    """
    for name in FORMATS:
        if _coco_files(folder) if name == "coco" else _importer(name).files(folder):
            return name
    stems = {image.stem for image in folder.images}
    raise BadFileError(
        f"{folder.root}: {len(folder.images)} images, but no annotations in a known format "
        f"({', '.join(FORMATS)}): expected for instance annotations/instances_train.json, an .xml "
        "file for each image, or labels/*.txt; if it is there, dataset/convert.py --format names it"
        + "".join(f". {_records_hint(path)}" for path in folder.files(".tfrecord")[:1])
        + "".join(f". {_why_not_coco(path)}" for path in folder.files(".json")[:1])
        + "".join(f". {tables.why_not(path)}" for path in folder.files(".csv")[:1])
        + "".join([f". {hint}" for hint in map(tables.text_hint, folder.files(".txt")) if hint][:1])
        + "".join([f". {_why_not_yolo(p)}" for p in folder.files(".txt") if p.stem in stems][:1])
    )


def import_folder(
    root: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    format_name: str = "auto",
    voc_corners: str = "auto",
) -> Imported:
    """Writes a folder's annotations as COCO's, unless they are that already or were written.

    Args:
      root: the data folder. Nothing is written into it.
      output_dir: gets `annotations/instances_<split>.json`.
      format_name: one of FORMATS, or auto, which finds out.
      voc_corners: see `voc.read`.

    Returns:
      The splits; none for COCO's own format, whose files are where they are.

    Raises:
      FileNotFoundError, ValueError: no such folder or format; a file that cannot be read, named.
    """
    if format_name not in ("auto", *FORMATS):
        raise ValueError(f"format={format_name!r}: expected auto, {', '.join(FORMATS)}")
    folder = DataFolder(root)
    name = detect_format(folder) if format_name == "auto" else format_name
    if name == "coco":
        return Imported(name, {}, {})
    target = Path(output_dir)
    description = target / _DESCRIPTION
    identity = _identity(folder, name, voc_corners)
    if description.is_file():
        with expecting(description, "what an import wrote; delete it to import again"):
            known = read_json(description)
            splits = {split: (Path(a), Path(b)) for split, (a, b) in known["splits"].items()}
            is_same = known["identity"] == identity
            if is_same and all(
                path.is_file() and images.is_dir() for path, images in splits.values()
            ):
                return Imported(name, splits, known["counts"])
    importer = _importer(name)
    used = importer.files(folder)
    if not used:
        raise BadFileError(f"{folder.root}: no annotations in the format {name}")
    with expecting(folder.root, f"annotations of the format {name}"):
        options = {"voc": {"corners": voc_corners}, "labelme": {"pictures": target / "pictures"}}
        read = importer.read(folder, **options.get(name, {}))
    if read.missing and len(read.missing) == sum(map(len, read.splits.values())):
        raise next(iter(read.missing.values()))
    if name in _ONE_SUFFIX:
        for path in sorted({*folder.files(_ONE_SUFFIX[name])} - {*used}):
            read.note(f"{path.suffix} file without annotations of this format left out", path)
    _require_objects(read, folder, name)
    splits = {}
    for split, images in read.splits.items():
        content, image_dir = coco_split(images, read.all_class_names(), missing=read.missing)
        path = target / "annotations" / f"instances_{split}.json"
        _write(path, content)
        splits[split] = (Path(os.path.abspath(path)), Path(os.path.abspath(image_dir)))
    imported = Imported(name, splits, read.described_counts())
    paths = {split: list(map(str, pair)) for split, pair in splits.items()}
    _write(description, {"identity": identity, "splits": paths, "counts": imported.counts})
    return imported


def _importer(name: str) -> Any:
    return importlib.import_module(f"object_detection.formats.{_MODULES.get(name, name)}")


def _coco_files(folder: DataFolder) -> list[Path]:
    """Returns the first JSON file that has the two lists of an instances file, as a list."""
    for path in folder.files(".json"):
        head = head_of(path)
        # LabelMe's files may hold their images: those are not read whole.
        if head.startswith(b"{") and not is_labelme(head):
            with open_as_utf8(path, most=MOST_JSON_BYTES) as file:
                data = file.read()
            if b'"images"' in data and b'"categories"' in data:
                return [path]
    return []


def _records_hint(path: Path) -> str:
    return (
        f"{path} holds records, which train.py takes as --training_file_pattern and "
        "--val_file_pattern; scores need a COCO file beside them (--val_json_file; "
        "--skip_test: none), so export COCO instead if you can"
    )


def _why_not_coco(path: Path) -> str:
    """Says what a JSON file lacks to be COCO's; reading it as such may end in the reason."""
    try:
        content = read_json(path, most=MOST_JSON_BYTES)
    except BadFileError as error:
        return str(error)
    is_object = isinstance(content, dict)
    found = f"has the keys {clean(sorted(content)[:9])}" if is_object else "holds no object, { }"
    head = head_of(path)
    tools = (tool for tool, marks in _NOT_READ.items() if all(mark in head for mark in marks))
    others = "".join(f"; like {tool}'s, which is not read: export COCO there" for tool in tools)
    return f"{path} {found}: COCO's instances have 'images', 'annotations' and 'categories'{others}"


def _why_not_yolo(path: Path) -> str:
    first = clean(head_of(path).split(b"\n")[0].decode(errors="replace"))
    return f"{path} begins with {first!r}: YOLO's lines are a class's number and four shares"


def _identity(folder: DataFolder, name: str, voc_corners: str) -> str:
    kinds = (".xml", ".json", ".txt", ".yaml", ".yml", ".csv", ".names", ".labels", "")
    seen = hashlib.sha256(json.dumps([_VERSION, name, voc_corners]).encode())
    for path in [*folder.files(*kinds), *folder.images]:
        status = path.stat()
        seen.update(os.fsencode(path) + b" %d %d\n" % (status.st_size, status.st_mtime_ns))
    return seen.hexdigest()


def _require_objects(read: LabelledSet, folder: DataFolder, name: str) -> None:
    objects = sum(len(image.objects) for images in read.splits.values() for image in images)
    if not objects:
        images = sum(map(len, read.splits.values()))
        left_out = "; ".join(f"{count} x {what}" for what, count in read.described_counts().items())
        raise BadFileError(
            f"{folder.root}: read as {name}, {images} images and not one object"
            + (f" ({left_out})" if left_out else "")
        )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file unless it says the same: what was made of it would be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content)
    if regular_file(path) is None or read_file(path, most=MOST_JSON_BYTES) != text.encode():
        write_whole(path, text)
