"""What tests of conversion start from."""

import json

import numpy as np
import pytest
from data_folder import Folder
from PIL import Image
from samples import instances

from object_detection.coco.annotations import read_annotations


@pytest.fixture
def data(tmp_path):
    """Writes image files and annotations; returns (annotations, image folder).

    `files`: name -> content, None for a file that is missing; `objects`: annotations without ids,
    of images by their place; `names`: of the images in the JSON, if not those of the files;
    `size`: (height, width) of all.
    """

    def write(files, objects=(), *, names=None, size=(30, 40)):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)
        dataset = {
            "images": [
                {"id": index, "file_name": name, "height": size[0], "width": size[1]}
                for index, name in enumerate(names or files)
            ],
            "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
            "annotations": [{"id": i, **entry} for i, entry in enumerate(objects, 1)],
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(dataset))
        return read_annotations(path), folder

    return write


@pytest.fixture
def small_set(tmp_path):
    """Two splits of four pictures with two boxes each."""
    rng, numbers = np.random.default_rng(0), range(1, 5)
    boxes = ((1, [5, 6, 20, 20]), (2, [50, 30, 30, 30]))
    objects = [(number, *box) for number in numbers for box in boxes]
    names, form = ((1, "cat"), (2, "dog")), {"size": (60, 80), "ending": ".png"}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in numbers:
            pixels = rng.integers(0, 255, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}.png")
    return {split: instances(numbers, objects, names, **form) for split in ("train", "val")}


@pytest.fixture
def folder(tmp_path):
    """An empty data folder."""
    return Folder(tmp_path / "set")
