"""SavedModel with everything inside: uint8 images of any size in, detections out.

It loads in plain TensorFlow, without this repository:

  model = tf.saved_model.load(folder)
  boxes, scores, classes, count = model(images)   # uint8 [batch, height, width, 3]

boxes are (y1, x1, y2, x2) in pixels of the given images; classes are the data set's category ids; a
model with masks also returns masks [batch, k, s, s], probabilities within each box. Labels are in
assets/labels.json. The export is compared with the source model before it is put in place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from object_detection.masks.mask_paste import MaskRule
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections, MaskDetections
from object_detection.serve.fidelity import Gaps, detection_gaps
from object_detection.serve.image_files import known_photographs, read_image
from object_detection.serve.run_script import saved_model_script
from path_names.plain_path import plain_path

# Largest differences allowed between the export and the model it came from: score, pixels, and
# probabilities of masks.
_SCORE_TOLERANCE, _BOX_TOLERANCE, _MASK_TOLERANCE = 0.01, 0.5, 0.05

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
        self.category_ids = tf.constant([*ids, -1], tf.int32)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns boxes [b, k, 4], scores [b, k], classes [b, k] int32 and count [b] int32.

        Classes are category ids, -1 for padding. With masks a fifth result, [b, k, s, s].
        """
        # Convolutions fail on nothing, in words that do not say why.
        is_some = tf.debugging.assert_positive(tf.size(images), "expected at least one image")
        with tf.control_dependencies([is_some]):
            found = self._detect(tf.identity(images))
        padding = tf.size(self.category_ids) - 1
        classes = tf.gather(self.category_ids, tf.where(found.classes < 0, padding, found.classes))
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
) -> str:
    """Writes the SavedModel aside, compares it on two photographs, then renames it.

    Beside it stands `run.py`, a program that runs it on a photo.

    Args:
      detect: detections on whole images.
      class_map: channels of the model.
      folder: replaced if it holds a SavedModel.
      variables: of the model, with its weights.
      check_size: (height, width) of the images of the comparison, pixels.
      mask_rule: how its masks are to be pasted, if it has some.

    Returns:
      What to tell: by how much the two differ.

    Raises:
      ValueError: the folder holds something else.
      RuntimeError: the reloaded export gives other detections than the model; nothing is replaced.
    """
    folder = Path(folder).resolve()  # of a link: what it leads to
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
        gaps = _compare(detect, aside, check_size, exported.category_ids)
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    (aside / "run.py").write_text(saved_model_script())
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return f"{folder}: on 2 photographs it differs from the checkpoint in {gaps}"


def load_saved_model(folder: str | Path) -> Any:
    """Loads a SavedModel from a folder of any name."""
    with plain_path(Path(folder) / "saved_model.pb") as plain:
        return tf.saved_model.load(str(Path(plain).parent))


def _compare(detect: Detect, folder: Path, size: tuple[int, int], category_ids: tf.Tensor) -> Gaps:
    height, width = size
    photographs = [Image.fromarray(read_image(path).pixels) for path in known_photographs()[:2]]
    images = tf.constant(np.stack([photo.resize((width, height)) for photo in photographs]))
    found = {name: value.numpy() for name, value in detect(images)._asdict().items()}
    found["classes"] = np.where(found["classes"] < 0, -1, category_ids.numpy()[found["classes"]])
    names = ("boxes", "scores", "classes", "num_valid", "masks")
    exported = dict(zip(names, (value.numpy() for value in load_saved_model(folder)(images))))
    side = float(max(size))
    for one in (found, exported):
        one["boxes"] = one["boxes"] / side
    limits = Gaps(_SCORE_TOLERANCE, _BOX_TOLERANCE / side, _MASK_TOLERANCE)
    gaps = detection_gaps(found, exported, limits=limits)
    if not gaps.within(limits):
        raise RuntimeError(
            f"the exported model differs from its source: {gaps} (at most {limits}); left in "
            f"{folder}"
        )
    return gaps
