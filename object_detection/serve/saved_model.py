"""SavedModel with everything inside: uint8 images of any size in, detections out.

It loads in plain TensorFlow, without this repository:

  model = tf.saved_model.load(folder)
  boxes, scores, classes, count = model(images)   # uint8 [batch, height, width, 3]

boxes are (y1, x1, y2, x2) in pixels of the given images; classes are the data set's category ids; a
model with masks also returns masks [batch, k, s, s], probabilities within each box. Labels are in
assets/labels.json. The export is checked against the source model before it is put in place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from object_detection.masks.mask_paste import MaskRule
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections, MaskDetections
from path_names.plain_path import plain_path

# Largest differences allowed between the export and the model it came from: pixels, score,
# detections whose score is at the threshold, and probabilities of masks.
_BOX_TOLERANCE, _SCORE_TOLERANCE, _COUNT_TOLERANCE, _MASK_TOLERANCE = 0.5, 0.01, 2, 0.05

# uint8 [batch, height, width, 3], any height and width.
Detect = Callable[[tf.Tensor], "Detections | MaskDetections"]


class _Detector(tf.Module):
    """The exported object."""

    def __init__(
        self,
        detect: Detect,
        class_map: ClassMap,
        *,
        variables: Sequence[tf.Variable],
        assets: Sequence[Path],
    ):
        super().__init__()
        self._detect = detect
        # Not the Keras model: each of its layers would be traced and stored a second time.
        self.weights = variables
        self.assets = [tf.saved_model.Asset(str(path)) for path in assets]
        ids = [class_map.categories.get(i, (-1, ""))[0] for i in range(class_map.num_classes)]
        self._category_ids = tf.constant([*ids, -1], tf.int32)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns boxes [b, k, 4], scores [b, k], classes [b, k] int32 and count [b] int32.

        Classes are category ids, -1 for padding. With masks a fifth result, [b, k, s, s].
        """
        found = self._detect(images)
        padding = tf.size(self._category_ids) - 1
        classes = tf.gather(self._category_ids, tf.where(found.classes < 0, padding, found.classes))
        masks = (found.masks,) if isinstance(found, MaskDetections) else ()
        return (found.boxes, found.scores, classes, found.num_valid, *masks)


def export_detector(
    detect: Detect,
    class_map: ClassMap,
    folder: str | Path,
    *,
    variables: Sequence[tf.Variable],
    check_size: tuple[int, int],
    mask_rule: MaskRule | None = None,
) -> None:
    """Writes the SavedModel aside, checks it on a random and a striped image, then renames it.

    Args:
      detect: detections on whole images.
      class_map: channels of the model.
      folder: replaced if it holds a SavedModel.
      variables: of the model, with its weights.
      check_size: (height, width) of the images of the check, pixels.
      mask_rule: how its masks are to be pasted, if it has some.

    Raises:
      ValueError: the folder holds something else.
      RuntimeError: the reloaded export gives other detections than the model; nothing is replaced.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "saved_model.pb").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than a SavedModel: choose another")
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    notes = folder.with_name(f".writing-{folder.name}-assets")
    notes.mkdir(parents=True, exist_ok=True)
    labels = [{"category_id": c, "name": n} for c, n in class_map.categories.values()]
    contents = {"labels.json": labels}
    if mask_rule:
        contents["masks.json"] = mask_rule._asdict()
    for name, content in contents.items():
        (notes / name).write_text(json.dumps(content))
    try:
        assets = [notes / name for name in contents]
        exported = _Detector(detect, class_map, variables=variables, assets=assets)
        tf.saved_model.save(exported, str(aside))
        _check(detect, aside, check_size)
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def load_saved_model(folder: str | Path) -> Any:
    """Loads a SavedModel from a folder of any name."""
    with plain_path(Path(folder) / "saved_model.pb") as plain:
        return tf.saved_model.load(str(Path(plain).parent))


def _check(detect: Detect, folder: Path, size: tuple[int, int]) -> None:
    height, width = size
    noise = np.random.default_rng(0).integers(0, 255, [height, width, 3])
    stripes = np.broadcast_to(
        (np.arange(width)[None, :, None] // 16 % 2) * 200 + 20, [height, width, 3]
    )
    images = tf.constant(np.stack([noise, stripes]), tf.uint8)
    ours = detect(images)
    boxes, scores, _, count, *masks = load_saved_model(folder)(images)
    count_gap = int(tf.reduce_max(tf.abs(count - ours.num_valid)))
    score_gap = float(tf.reduce_max(tf.abs(scores - ours.scores)))
    both = tf.cast(tf.minimum(scores, ours.scores) > 0.05, tf.float32)[..., None]
    box_gap = float(tf.reduce_max(tf.abs(boxes - ours.boxes) * both))
    mask_gap = 0.0
    if masks:
        difference = tf.reduce_max(tf.abs(masks[0] - ours.masks), axis=[2, 3])
        mask_gap = float(tf.reduce_max(difference * both[..., 0]))
    if (
        score_gap > _SCORE_TOLERANCE
        or box_gap > _BOX_TOLERANCE
        or count_gap > _COUNT_TOLERANCE
        or mask_gap > _MASK_TOLERANCE
    ):
        raise RuntimeError(
            f"the exported model differs from its source: scores by {score_gap:g} (at most "
            f"{_SCORE_TOLERANCE}), boxes by {box_gap:g} px (at most {_BOX_TOLERANCE}), number of "
            f"detections by {count_gap} (at most {_COUNT_TOLERANCE}), masks by {mask_gap:g} (at "
            f"most {_MASK_TOLERANCE}); left in {folder}"
        )
