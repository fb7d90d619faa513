"""Reading the ground truth of a COCO instances JSON for scoring.

Image ids may be numbers or text; records carry them as text. Here they meet: everything is looked
up by `id_text`, and the scorer sees numbers from 1 only.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def load_annotations(
    annotations: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[str, Mapping[str, Any]]:
    """Returns a name for messages and the parsed instances dictionary.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or without images or categories.
    """
    if isinstance(annotations, Mapping):
        source, dataset = "the annotations given", annotations
    else:
        path = Path(annotations)
        source = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"no annotations JSON at {path}")
        try:
            dataset = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(dataset, Mapping) or not dataset.get(key):
            raise ValueError(
                f"{source} has no {key!r}: expected COCO's instances format (images, categories, "
                "annotations); captions and person keypoints are other files"
            )
    return source, dataset


def categories_of(dataset: Mapping[str, Any]) -> dict[int, tuple[int, str]]:
    """Returns class_id -> (category_id, name), class ids in order of the category ids."""
    ordered = sorted(dataset["categories"], key=lambda category: int(category["id"]))
    return {i: (int(c["id"]), str(c["name"])) for i, c in enumerate(ordered)}


def scoring_names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Returns category_id -> name, with the id appended where two categories share a name."""
    names = {int(category["id"]): str(category["name"]) for category in dataset["categories"]}
    counts = Counter(names.values())
    return {
        category_id: name if counts[name] == 1 else f"{name} ({category_id})"
        for category_id, name in sorted(names.items())
    }


def numbered_ground_truth(
    dataset: Mapping[str, Any], index: Mapping[str, int], *, iou_type: str, source: str
) -> dict[str, Any]:
    """Copies the ground truth with images and annotations numbered from 1.

    Annotations of unknown images cannot be scored and are left out, as pycocotools does;
    `check_ground_truth` names them. A missing area is the box's, a missing iscrowd is 0.
    """
    images = [{**image, "id": index[id_text(image["id"])] + 1} for image in dataset["images"]]
    annotations = []
    for annotation in dataset["annotations"]:
        number = index.get(id_text(annotation["image_id"]))
        if number is None:
            continue
        if iou_type == "segm" and not annotation.get("segmentation"):
            raise ValueError(
                f"annotation {annotation.get('id')} of image {annotation['image_id']} in {source} "
                "has no segmentation: this data set can only be scored with iou_type bbox"
            )
        _, _, width, height = annotation["bbox"]
        annotations.append(
            {
                **annotation,
                "id": len(annotations) + 1,
                "image_id": number + 1,
                "area": annotation.get("area", width * height),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    images.sort(key=lambda image: image["id"])
    return {
        "info": {},
        "images": images,
        "categories": [dict(category) for category in dataset["categories"]],
        "annotations": annotations,
    }


def id_text(identifier: Any) -> str:
    """Returns an image id as records carry it."""
    return identifier.decode("utf-8") if isinstance(identifier, bytes) else str(identifier)


def sorted_ids(identifiers: Iterable[Any]) -> list[Any]:
    """Sorts image ids as pycocotools does, numbers by value, so that ties of score fall alike."""
    ids = list(identifiers)
    return sorted(ids) if all(isinstance(i, int) for i in ids) else sorted(ids, key=str)


def index_by_text(image_ids: Sequence[Any], source: str) -> dict[str, int]:
    """Returns the position of each id by its text.

    Raises:
      ValueError: two images share an id, also when one is a number and one its text.
    """
    index = {id_text(image_id): position for position, image_id in enumerate(image_ids)}
    if len(index) != len(image_ids):
        counts = Counter(id_text(image_id) for image_id in image_ids)
        repeated = sorted(text for text, count in counts.items() if count > 1)
        raise ValueError(f"image ids that occur more than once in {source}: {some(repeated)}")
    return index


def some(values: Sequence[Any], limit: int = 5) -> str:
    """Returns the first few values for a message."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (", ..." if len(values) > limit else "")
