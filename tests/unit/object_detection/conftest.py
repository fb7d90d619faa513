"""What tests of conversion start from."""

import json

import pytest

from object_detection.coco.annotations import read_annotations


@pytest.fixture
def data(tmp_path):
    """Writes image files and annotations; returns (annotations, image folder).

    `files`: name -> content, None for a file that is missing; `objects`: annotations without ids,
    of images by their place; `size`: (height, width) of all.
    """

    def write(files, objects=(), *, size=(30, 40)):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        images = []
        for index, (name, content) in enumerate(files.items()):
            if content is not None:
                (folder / name).write_bytes(content)
            images.append({"id": index, "file_name": name, "height": size[0], "width": size[1]})
        dataset = {
            "images": images,
            "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
            "annotations": [{"id": i, **entry} for i, entry in enumerate(objects, 1)],
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(dataset))
        return read_annotations(path), folder

    return write
