"""What tests of conversion start from."""

import json

import numpy as np
import pytest
from PIL import Image

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
    rng = np.random.default_rng(0)
    result = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        images, entries = [], []
        for number in range(1, 5):
            pixels = rng.integers(0, 255, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 60})
            for category, box in ((1, [5, 6, 20, 20]), (2, [50, 30, 30, 30])):
                entries.append(
                    {"id": len(entries) + 1, "image_id": number, "category_id": category}
                    | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                )
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        result[split] = {"images": images, "annotations": entries, "categories": categories}
    return result
