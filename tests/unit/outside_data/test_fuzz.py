"""Readers of outside data given anything: they answer, or end in OSError or BadFileError, in time.

Both name the file. Pictures, masks and examples are read from bytes, whose file the caller names.

Each case is a small valid file, which hypothesis damages: bytes are changed, cut, doubled; values
of JSON and YAML are exchanged for others, among them those that hurt. What once failed is kept in
`FOUND`, and runs each time. Longer: pytest -m nightly on this file.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from weight_pickles import state_dict, write_torch_zip

from engine.config.recipe_yaml import read_yaml as read_recipe
from engine.files import description
from engine.files.numpy_pickle import read_numpy_pickle
from engine.files.restricted_pickle import read_torch_file
from engine.files.safetensors_file import read_safetensors
from object_detection.coco.annotations import read_annotations
from object_detection.formats.importers import import_folder
from object_detection.masks.rle import BadMaskError, decode_mask
from object_detection.metrics.coco import METRIC_NAMES
from object_detection.records import schema
from object_detection.records.card import load_card
from object_detection.records.catalog import read_catalog
from object_detection.records.class_map import read_label_map
from object_detection.records.example_proto import decode_example, encode_example
from object_detection.records.tfrecord_file import iterate_records, write_records
from object_detection.report.history import read_records
from object_detection.report.write import read_evaluation
from outside_data.files import BadFileError
from outside_data.keras_hdf5 import VARIABLE, read_keras_hdf5
from outside_data.picture_file import open_picture

MOST_SECONDS = 2.0
MOST_BYTES = 1 << 30

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {
            **{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16.0},
            **{"iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]},
        }
    ],
}
LABELME = {
    **{"version": "5", "imagePath": "a.png", "imageHeight": 8, "imageWidth": 8},
    "shapes": [{"label": "cat", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}],
}
LABEL_STUDIO = [
    {
        "data": {"image": "/data/a.png"},
        "annotations": [
            {
                "result": [
                    {
                        **{"type": "rectanglelabels", "original_width": 8, "original_height": 8},
                        "value": {
                            **{"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0},
                            "rectanglelabels": ["cat"],
                        },
                    }
                ]
            }
        ],
    }
]
CARD = {
    **{"format_version": 1, "split": "train", "num_images": 1, "num_instances": 1, "num_crowd": 0},
    **{"num_images_without_boxes": 0, "max_boxes_per_image": 1, "max_boxes_source_id": "1"},
    "categories": [{"class_id": 0, "category_id": 1, "name": "cat", "instances": 1, "images": 1}],
    **{"min_height": 8, "max_height": 8, "min_width": 8, "max_width": 8},
    "shards": [{"file": "train-00000-of-00001.tfrecord", "num_records": 1}],
    **{"box_statistics": {}, "dropped": {}, "corrected": {}, "skipped_source_ids": []},
    **{"mask_format": None, "annotations_file": "", "annotations_sha256": "", "fingerprint": ""},
    "has_masks": False,
}
RLE = {"size": [8, 8], "counts": [3, 5, 56]}
META = {"config": {"model": {"name": "efficientdet-d0"}}, "step": 3, "metrics": {"AP": 0.5}}
METRICS = {"kind": "train", "step": 1, "box_loss": 0.5}
EVALUATION = {
    "detections.json": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}],
    "metrics.json": {"epoch": 1, **dict.fromkeys(METRIC_NAMES, 0.5)},
    "evaluation.json": {
        **{"model": "efficientdet-d0", "epoch": 1, "annotations": "a.json", "records": ""},
        **{"image_ids": [1], "class_scores": {"": {}}, "settings": {}, "cards": {}},
    },
}
RECIPE = {"model": {"name": "efficientdet-d0"}, "optim": {"learning_rate": 0.1, "steps": [1, 2]}}
CATALOG = {"mine": {"images": "i", "annotations": "a.json", "records": "r-*"}}
VOC = """<annotation><filename>a.png</filename><size><width>8</width><height>8</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
</object></annotation>"""
CVAT = """<annotations><image id="0" name="a.png" width="8" height="8"><box label="cat" xtl="1"
ytl="1" xbr="5" ybr="5"/><polygon label="cat" points="1,1;5,1;5,5"/></image></annotations>"""
CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,8,8,cat,1,1,5,5\n"
OPEN_IMAGES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/1,0.1,0.5,0.1,0.5,0\n"
YOLO_YAML = {"names": {0: "cat", 1: "dog"}, "train": "images", "path": "."}


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def torch_zip() -> bytes:
    file = io.BytesIO()
    write_torch_zip(file, state_dict({"w": np.zeros(4, np.float32)}))
    return file.getvalue()


def torch_legacy() -> bytes:
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"w": [1]}, [])
    return b"".join(pickle.dumps(value, protocol=2) for value in values)


def safetensors() -> bytes:
    table = {"w": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]}}
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


def keras_hdf5() -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["layer_names"] = ["a"]
        file.create_group("a").attrs["weight_names"] = ["w:0"]
        file["a"].create_dataset("w:0", data=np.arange(8.0), chunks=(4,), compression="gzip")
    return memory.getvalue()


def records(folder: Path) -> bytes:
    example = encode_example({schema.SOURCE_ID: [b"1"], schema.YMIN: np.array([0.5], np.float32)})
    write_records(folder / "made", [example, example])
    return (folder / "made").read_bytes()


def example(_: Path) -> bytes:
    return encode_example({schema.LABEL: np.array([1, 300]), schema.ENCODED: [b"x"]})


def import_of(name: str, file: str):
    def read(path: Path) -> None:
        folder = path.parent / "set"
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(picture("PNG"))
        (folder / file).write_bytes(path.read_bytes())
        if file == "data.yaml":
            (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        import_folder(folder, path.parent / "out", format_name=name)

    return read


def read_metadata(path: Path) -> None:
    path.rename(path.with_name("ckpt-1.json"))
    description.describe(description.read_metadata(path.with_name("ckpt-1")))


def read_history(path: Path) -> None:
    path.rename(path.with_name("metrics.jsonl"))
    read_records(path.parent)


def read_hdf5(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "1")
        read_keras_hdf5(path)


def read_part(name: str):
    def read(path: Path) -> None:
        for other, content in EVALUATION.items():
            path.with_name(other).write_text(json.dumps(content))
        path.rename(path.with_name(name))
        read_evaluation(path.parent)

    return read


def read_mask(path: Path) -> None:
    try:
        mask = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    try:
        decode_mask(mask, 8, 8)
    except BadMaskError:
        pass


PICTURES = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM", "PCX", "SGI")
FROM_BYTES = {"example", "mask", *PICTURES}

# Name -> (reader of a path, content): bytes, a maker of bytes, or what JSON or YAML hold.
READERS: dict[str, tuple[Any, Any]] = {
    "coco": (read_annotations, COCO),
    "card": (load_card, CARD),
    "checkpoint": (read_metadata, META),
    "history": (read_history, METRICS),
    "mask": (read_mask, RLE),
    **{name: (read_part(name), content) for name, content in EVALUATION.items()},
    "recipe.yaml": (read_recipe, RECIPE),
    "labels.yaml": (read_label_map, {1: "cat", 2: "dog"}),
    "catalog.yaml": (lambda path: read_catalog(str(path), ""), CATALOG),
    "pickle": (read_numpy_pickle, pickle.dumps({"w": np.arange(4), "n": np.float32(1)})),
    "torch zip": (read_torch_file, torch_zip()),
    "torch legacy": (read_torch_file, torch_legacy()),
    "safetensors": (read_safetensors, safetensors()),
    "hdf5": (read_hdf5, keras_hdf5()),
    "records": (lambda path: [bytes(r) for r in iterate_records(path)], records),
    "example": (
        lambda path: decode_example(path.read_bytes(), (schema.LABEL, schema.ENCODED)),
        example,
    ),
    **{
        kind: (lambda path: open_picture(path.read_bytes(), max_pixels=10**6).rgb(upright=True), p)
        for kind in PICTURES
        for p in [picture(kind)]
    },
    "voc": (import_of("voc", "a.xml"), VOC.encode()),
    "cvat": (import_of("cvat", "a.xml"), CVAT.encode()),
    "labelme": (import_of("labelme", "a.json"), LABELME),
    "label_studio": (import_of("label_studio", "a.json"), LABEL_STUDIO),
    "table": (import_of("open_images", "a.csv"), CSV.encode()),
    "open_images": (import_of("open_images", "a.csv"), OPEN_IMAGES.encode()),
    "yolo": (import_of("yolo", "a.txt"), b"0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.1 0.2 0.2\n"),
    "yolo.yaml": (import_of("yolo", "data.yaml"), YOLO_YAML),
}

PAINFUL = [
    *(None, True, -1, 0, 10**20, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "\0"),
    *("9" * 5000, "1e999", "../../x", "\x1b[2J\n", "\ud800", "a" * 100_000),
    *([], {}, [[]], {"a": {}}),
]
VALUES = st.recursive(
    st.sampled_from(PAINFUL) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)

# What once failed: (reader, bytes of the file).
FOUND: list[tuple[str, bytes]] = [
    ("table", b"\r" + CSV.encode()),
    ("torch zip", torch_zip()[1:]),  # zipfile seeks before the beginning
    ("history", b'{"kind": [], "step": 1}'),
    ("history", b'{"kind": "train", "step": [1]}\n{"kind": "train", "step": 2}'),
    ("checkpoint", b'{"step": 3, "metrics": null}'),
]


def exchanged(data: st.DataObject, value: Any) -> Any:
    """Returns a value with some part of it exchanged or left out."""
    parts: list[Any] = []
    if isinstance(value, (dict, list)):
        parts = list(value.items() if isinstance(value, dict) else enumerate(value))
    if not parts or data.draw(st.integers(0, 5)) == 0:
        return data.draw(VALUES)
    at, part = data.draw(st.sampled_from(parts))
    rest = dict(parts)
    if data.draw(st.integers(0, 9)) == 0:
        del rest[at]
    else:
        rest[at] = exchanged(data, part)
    return rest if isinstance(value, dict) else list(rest.values())


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Returns bytes with a few edits."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        end = at + data.draw(st.integers(0, 8))
        piece = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\xff" * 8, bytes(8), content[at:end] * 50, b"9" * 5000, b"[" * 99])
        )
        content = content[:at] + piece + content[end:]
    return content


def made(data: st.DataObject, name: str, folder: Path) -> bytes:
    """Returns a damaged file for a reader."""
    content = READERS[name][1]
    if callable(content):
        content = content(folder)
    if not isinstance(content, bytes):
        if data.draw(st.booleans()):
            content = exchanged(data, content)
        if name.endswith(".yaml"):
            content = yaml.dump(content).encode("utf-8", "surrogatepass")
        else:
            content = json.dumps(content).encode()
        return content if data.draw(st.booleans()) else damaged(data, content)
    return damaged(data, content)


def try_reader(name: str, content: bytes, folder: Path) -> None:
    """Reads a file; anything but an answer or a documented error, in time, fails."""
    path = folder / ("x.yaml" if name.endswith(".yaml") else "x.json")
    path.write_bytes(content)
    started, used = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        READERS[name][0](path)
    except (OSError, BadFileError) as error:
        assert folder.name in str(error), f"names no file: {error!r}"
    except ValueError as error:
        assert name in FROM_BYTES and str(error)
    assert time.process_time() - started < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * 1024 < MOST_BYTES


def fuzz(
    name: str, tmp_path_factory: pytest.TempPathFactory, examples: int, *, fixed: bool
) -> None:
    """Runs a reader on damaged files."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=fixed,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        folder = tmp_path_factory.mktemp("fuzz")
        content = made(data, name, folder)
        try:
            try_reader(name, content, folder)
        except BaseException as error:
            error.args = (*error.args, f"FOUND: {(name, content)!r:.3000}")
            raise

    run()


@pytest.mark.parametrize("name", READERS)
def test_readers_of_damaged_files(name, tmp_path_factory):
    fuzz(name, tmp_path_factory, 5, fixed=True)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_readers_of_many_damaged_files(name, tmp_path_factory):
    fuzz(name, tmp_path_factory, 400, fixed=False)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, tmp_path):
    content = READERS[name][1]
    content = content(tmp_path) if callable(content) else content
    if not isinstance(content, bytes):
        text = yaml.dump(content) if name.endswith(".yaml") else json.dumps(content)
        content = text.encode()
    path = tmp_path / ("x.yaml" if name.endswith(".yaml") else "x.json")
    path.write_bytes(content)
    READERS[name][0](path)


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_once_failed(name, content, tmp_path):
    try_reader(name, content, tmp_path)
