"""SavedModel with everything inside: uint8 images of any size in, detections out.

It loads in plain TensorFlow, without this repository:

  model = tf.saved_model.load(folder)
  boxes, scores, classes, count = model(images)   # uint8 [batch, height, width, 3]

boxes are (y1, x1, y2, x2) in pixels of the given images; classes are the data set's category ids.
Labels are in assets/labels.json. The export is checked against the source model before it is put in
place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from efficientdet.task import EfficientDetTask
from engine.config import ConfigError

# Largest differences allowed between the export and the model it came from: pixels, score, and
# detections whose score is at the threshold.
_BOX_TOLERANCE, _SCORE_TOLERANCE, _COUNT_TOLERANCE = 0.5, 0.01, 2


class _Detector(tf.Module):
    """The exported object."""

    def __init__(self, task: EfficientDetTask, labels: Path):
        super().__init__()
        self._detect = task.detect_images
        # Not the Keras model: each of its layers would be traced and stored a second time.
        self.weights = task.model.variables
        self.labels = tf.saved_model.Asset(str(labels))
        ids = [
            task.class_map.categories.get(i, (-1, ""))[0] for i in range(task.class_map.num_classes)
        ]
        self._category_ids = tf.constant([*ids, -1], tf.int32)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns boxes [b, k, 4], scores [b, k], classes [b, k] int32 and count [b] int32.

        Classes are category ids, -1 for padding.
        """
        detections = self._detect(images)
        padding = tf.size(self._category_ids) - 1
        classes = tf.gather(
            self._category_ids, tf.where(detections.classes < 0, padding, detections.classes)
        )
        return detections.boxes, detections.scores, classes, detections.num_valid


def export_saved_model(task: EfficientDetTask, folder: str | Path) -> None:
    """Writes the SavedModel aside, checks it on a random and a striped image, then renames it.

    Args:
      task: the model with its weights.
      folder: replaced if it holds a SavedModel.

    Raises:
      ConfigError: the folder holds something else.
      RuntimeError: the reloaded export gives other detections than the model; nothing is replaced.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "saved_model.pb").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else than a SavedModel: choose another")
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    labels = folder.with_name(f".writing-{folder.name}-labels") / "labels.json"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(
        json.dumps([{"category_id": c, "name": n} for c, n in task.class_map.categories.values()])
    )
    try:
        tf.saved_model.save(_Detector(task, labels), str(aside))
        _check(task, aside)
    finally:
        shutil.rmtree(labels.parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _check(task: EfficientDetTask, folder: Path) -> None:
    height, width = task.config.model.image_size
    noise = np.random.default_rng(0).integers(0, 255, [height, width, 3])
    stripes = np.broadcast_to(
        (np.arange(width)[None, :, None] // 16 % 2) * 200 + 20, [height, width, 3]
    )
    images = tf.constant(np.stack([noise, stripes]), tf.uint8)
    ours = task.detect_images(images)
    boxes, scores, _, count = tf.saved_model.load(str(folder))(images)
    count_gap = int(tf.reduce_max(tf.abs(count - ours.num_valid)))
    score_gap = float(tf.reduce_max(tf.abs(scores - ours.scores)))
    both = tf.cast(tf.minimum(scores, ours.scores) > 0.05, tf.float32)[..., None]
    box_gap = float(tf.reduce_max(tf.abs(boxes - ours.boxes) * both))
    if score_gap > _SCORE_TOLERANCE or box_gap > _BOX_TOLERANCE or count_gap > _COUNT_TOLERANCE:
        raise RuntimeError(
            f"the exported model differs from its source: scores by {score_gap:g} (at most "
            f"{_SCORE_TOLERANCE}), boxes by {box_gap:g} px (at most {_BOX_TOLERANCE}), number of "
            f"detections by {count_gap} (at most {_COUNT_TOLERANCE}); left in {folder}"
        )
