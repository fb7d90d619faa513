"""Inference on image files: detections as annotated images and JSON.

One image at a time, of any size, through the same graph as the exported model. A newcomer's trap:
class ids inside are the model's channels; files carry the data set's category ids and names.
"""

import glob
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from efficientdet import family
from efficientdet.settings import EfficientDetConfig
from efficientdet.task import EfficientDetTask
from engine import checkpoint
from engine.config import ConfigError
from object_detection.class_map import ClassMap
from object_detection.data.coco_categories import COCO_CATEGORIES
from object_detection.data.coco_json import read_annotations
from object_detection.visualize import contact_sheet, draw_boxes

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}

# uint8 [1, h, w, 3] -> boxes [1, k, 4] original pixels, scores [1, k], class ids [1, k], count [1].
Detector = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]


def load_task(path: str, *, config: EfficientDetConfig) -> EfficientDetTask:
    """Builds the model of a checkpoint with its weights.

    Args:
      path: checkpoint prefix or folder.
      config: as `family.config_of_checkpoint` gives it.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: the checkpoint lacks weights of the model.
    """
    prefix = checkpoint.find(path)
    stored = checkpoint.read_metadata(prefix)
    if stored:
        class_map = ClassMap.from_dict(stored["task"]["class_map"])
    else:
        class_map = coco_class_map(config)
    task = EfficientDetTask(config, class_map)
    family.load_weights(task, prefix)
    return task


def coco_class_map(config: EfficientDetConfig) -> ClassMap:
    """Returns COCO's classes, for checkpoints without a description."""
    if config.data.class_ids == "category_id":
        categories = {i - 1: (i, name) for i, name in COCO_CATEGORIES.items()}
        return ClassMap(config.data.num_classes or 90, categories)
    categories = {k: (i, name) for k, (i, name) in enumerate(COCO_CATEGORIES.items())}
    return ClassMap(config.data.num_classes or len(categories), categories)


def detector_of(task: EfficientDetTask) -> Detector:
    """Returns a function on images of any size, traced once."""
    signature = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    return tf.function(task.detect_images, autograph=False, input_signature=signature)


def read_image_list(path: str) -> list[str]:
    """Returns the paths that a text file holds, one a line.

    Raises:
      FileNotFoundError: no such file.
      ConfigError: it names no image.
    """
    paths = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(paths):
        raise ConfigError(f"{path}: expected one image path per line, found none")
    return [p for p in paths if p]


def find_images(path: str) -> list[str]:
    """Returns the image files that a file name, a folder or a glob means, sorted.

    Raises:
      FileNotFoundError: there is none.
    """
    if os.path.isdir(path):
        found = [str(p) for p in Path(path).iterdir() if p.suffix.lower() in _SUFFIXES]
    else:
        found = glob.glob(path)
    if not found:
        raise FileNotFoundError(f"no image at {path}: expected an image file, a folder or a glob")
    return sorted(found)


def read_image(path: str) -> np.ndarray:
    """Returns uint8 [h, w, 3] RGB as stored (no EXIF rotation, as in training).

    Raises:
      ValueError: the file is not a readable image; names it.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def predict_files(
    detector: Detector,
    class_map: ClassMap,
    paths: list[str],
    *,
    min_score: float,
    unreadable: list[str],
) -> Iterator[tuple[str, np.ndarray, list[dict[str, Any]]]]:
    """Runs the detector over files; what cannot be read is left out and named in `unreadable`.

    Yields:
      (path, uint8 image, detections): each detection has bbox (x, y, width, height in original
      pixels), score, category_id, name and class_id.
    """
    for path in paths:
        try:
            image = read_image(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        boxes, scores, classes, count = (t.numpy()[0] for t in detector(image[np.newaxis]))
        detections = []
        for i in range(int(count)):
            if scores[i] < min_score or int(classes[i]) not in class_map.categories:
                continue
            y1, x1, y2, x2 = boxes[i].astype(float)
            category_id, name = class_map.categories[int(classes[i])]
            detections.append(
                {
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(scores[i]),
                    "category_id": category_id,
                    "name": name,
                    "class_id": int(classes[i]),
                }
            )
        yield path, image, detections


def draw(
    image: np.ndarray,
    detections: list[dict[str, Any]],
    class_map: ClassMap,
    *,
    with_scores: bool = True,
    **options: Any,
) -> np.ndarray:
    """Returns the image with its detections drawn; options as for `draw_boxes`."""
    scores = np.array([d["score"] for d in detections], float) if with_scores else None
    xywh = np.array([d["bbox"] for d in detections], float).reshape([-1, 4])
    x, y, w, h = xywh.T
    return draw_boxes(
        image,
        np.stack([y, x, y + h, x + w], axis=1),
        np.array([d["class_id"] for d in detections], int),
        scores=scores,
        names=dict(enumerate(class_map.names)),
        **options,
    )


def saved_model_detector(folder: str) -> tuple[Detector, ClassMap]:
    """Loads an exported model: its detector and classes.

    Raises:
      FileNotFoundError: no SavedModel there.
    """
    if not (Path(folder) / "saved_model.pb").is_file():
        raise FileNotFoundError(f"no SavedModel in {folder}: export one with export.py")
    loaded = tf.saved_model.load(folder)
    labels = json.loads((Path(folder) / "assets" / "labels.json").read_text())
    categories = {label["category_id"]: (label["category_id"], label["name"]) for label in labels}
    if not categories:
        raise ConfigError(f"{folder}/assets/labels.json names no class")
    return loaded, ClassMap(max(categories) + 1, categories)


class GroundTruth:
    """Annotations to draw beside detections.

    Args:
      annotations: COCO instances JSON; images are found by file name.
    """

    def __init__(self, annotations: str):
        content = read_annotations(annotations).to_coco()
        self._names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        self._objects: dict[str, list[dict[str, Any]]] = {name: [] for name in self._names.values()}
        for entry in content["annotations"]:
            self._objects[self._names[entry["image_id"]]].append(entry)

    def beside(
        self, path: str, image: np.ndarray, drawn: np.ndarray, class_map: ClassMap
    ) -> np.ndarray:
        """Returns ground truth on the left, `drawn` on the right, captioned."""
        objects = [
            {**entry, "class_id": class_map.category_to_class.get(entry["category_id"], -1)}
            for entry in self._objects.get(Path(path).name, [])
        ]
        truth = draw(image, objects, class_map, with_scores=False)
        name = Path(path).name
        return contact_sheet([truth, drawn], 2, [f"{name}: ground truth", "detections"])
