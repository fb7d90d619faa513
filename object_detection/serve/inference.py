"""Detections on image files: as entries for JSON, as pictures, beside ground truth.

One image at a time, of any size, through the graph that an export holds too. Works for every
detector, with masks or without. Class ids inside are the model's channels; files carry the data
set's category ids and names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from object_detection.coco.annotations import read_scored
from object_detection.coco.image_paths import base_name
from object_detection.coco.listed import CocoImage
from object_detection.draw.draw_masks import draw_heat_map, mask_heat
from object_detection.draw.entries import corners, draw_entries
from object_detection.draw.visualize import contact_sheet
from object_detection.masks.mask_paste import MaskRule, encode_masks
from object_detection.masks.rescale import Size, is_same_shape, rescale_object
from object_detection.records.class_map import ClassMap
from object_detection.report.matches import match
from object_detection.report.pictures import worst_images
from object_detection.serve.image_files import read_image
from object_detection.serve.saved_model import load_saved_model
from outside_data.files import expecting, read_json
from outside_data.picture_file import MAX_PIXELS

# Pictures with masks of smaller images are enlarged by a whole number to about this side, pixels,
# but not beyond the second.
_LEAST_SIDE, _MOST_ZOOM = 512, 4
# Of a picture that stands beside another.
_LEAST_WIDTH = 480

# uint8 [1, h, w, 3] -> boxes [1, k, 4] original pixels, scores [1, k], class ids [1, k], count [1]
# and, of detectors with masks, probabilities [1, k, s, s] within the boxes.
Detector = Callable[[tf.Tensor], "tuple[tf.Tensor, ...]"]


class Prediction(NamedTuple):
    """What was found on one image.

    Attributes:
      path: of the file.
      image: uint8 [h, w, 3].
      objects: best first; each has bbox (x, y, width, height in pixels of the image), score,
        category_id, name, class_id and, with masks, segmentation (compressed RLE).
      masks: float32 [n, s, s] of the objects, probabilities within the boxes; none without masks.
      mask_rule: how they are pasted.
    """

    path: str
    image: np.ndarray
    objects: list[dict[str, Any]]
    masks: np.ndarray | None
    mask_rule: MaskRule = MaskRule()

    def entries(self, truth: AnnotatedImages | None = None) -> list[dict[str, Any]]:
        """Returns the objects as COCO's result entries.

        Each has `file_name`, the path, beside `image_id`, which is that of the annotations or, for
        images without any, the path too.
        """
        known = truth.image_id(self.path) if truth else None
        image_id = self.path if known is None else known
        return [{"image_id": image_id, "file_name": self.path, **found} for found in self.objects]


def detector_of(detect_images: Callable[[tf.Tensor], Any]) -> Detector:
    """Returns a task's function on whole images, traced once for images of all sizes."""
    signature = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    return tf.function(detect_images, autograph=False, input_signature=signature)


def saved_model_detector(folder: str) -> tuple[Detector, ClassMap, MaskRule | None]:
    """Loads an exported model: its detector, its classes and how masks are pasted, if any.

    Raises:
      FileNotFoundError: no SavedModel there.
      ValueError: it names no class.
    """
    if not (Path(folder) / "saved_model.pb").is_file():
        is_portable = (Path(folder) / "interface.json").is_file()
        remedy = "it is for another runtime: run its run.py" if is_portable else "export one"
        raise FileNotFoundError(f"no SavedModel in {folder}: {remedy}, or use export.py")
    loaded = load_saved_model(folder)
    path = Path(folder) / "assets" / "labels.json"
    with expecting(path, "a list of objects with category_id and name"):
        categories = {
            int(label["category_id"]): (int(label["category_id"]), str(label["name"]))
            for label in read_json(path)
        }
    if not categories:
        raise ValueError(f"{folder}/assets/labels.json names no class")
    masks = Path(folder) / "assets" / "masks.json"
    with expecting(masks, "the rule by which masks are pasted"):
        rule = MaskRule(**read_json(masks)) if masks.is_file() else None
    return loaded, ClassMap(max(categories) + 1, categories), rule


def predict_files(
    detector: Detector,
    class_map: ClassMap,
    paths: Sequence[str],
    *,
    min_score: float,
    unreadable: list[str],
    noted: list[str] | None = None,
    mask_rule: MaskRule | None = None,
    exif: str = "ignore",
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Prediction]:
    """Runs the detector over files.

    Args:
      detector, class_map: of the model.
      paths: image files; what cannot be read is left out.
      min_score: least score that is kept.
      unreadable: becomes longer by a message for each file left out.
      noted: becomes longer by what else is to be known of files.
      mask_rule: how masks are pasted.
      exif, max_pixels: as of `read_image`.
    """
    for path in paths:
        try:
            image, notes = read_image(path, exif=exif, max_pixels=max_pixels)
            found = predict_pixels(
                detector, class_map, path, image, min_score=min_score, mask_rule=mask_rule
            )
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if noted is not None:
            noted.extend(notes)
        yield found


def predict_pixels(
    detector: Detector,
    class_map: ClassMap,
    path: str,
    image: np.ndarray,
    *,
    min_score: float,
    mask_rule: MaskRule | None = None,
) -> Prediction:
    """Runs the detector on an image, uint8 [h, w, 3]; see `predict_files`.

    Raises:
      ValueError: memory does not suffice; names the path.
    """
    height, width = image.shape[:2]
    try:
        boxes, scores, classes, count, *masks = (t.numpy()[0] for t in detector(image[np.newaxis]))
    except tf.errors.ResourceExhaustedError as error:
        raise ValueError(
            f"{path}: no memory to detect on {width}x{height} pixels: reduce it"
        ) from error
    kept = np.flatnonzero(
        (np.arange(len(scores)) < count) & (scores >= min_score) & class_map.is_known(classes)
    )
    objects = [_entry(boxes[i], scores[i], int(classes[i]), class_map) for i in kept]
    soft = masks[0][kept] if masks else None
    rule = mask_rule or MaskRule()
    if soft is not None:
        encoded = encode_masks(soft, boxes[kept], height=height, width=width, rule=rule)
        for entry, rle in zip(objects, encoded):
            entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return Prediction(path, image, objects, soft, rule)


def _entry(
    box: np.ndarray, score: np.ndarray, class_id: int, class_map: ClassMap
) -> dict[str, Any]:
    y1, x1, y2, x2 = box.astype(float).tolist()
    category_id, name = class_map.categories[class_id]
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(score),
        "category_id": category_id,
        "name": name,
        "class_id": class_id,
    }


def draw(
    image: np.ndarray,
    objects: Sequence[dict[str, Any]],
    class_map: ClassMap,
    *,
    with_masks: bool,
    max_objects: int = 100,
    with_boxes: bool = True,
) -> np.ndarray:
    """Draws detections or annotations with the names of a class map; see `draw_entries`.

    Args:
      image: uint8 [h, w, 3].
      objects: entries with a class_id.
      class_map: says the names.
      with_masks, max_objects: as of `draw_entries`.
      with_boxes: draw boxes of objects with a segmentation too.

    Returns:
      uint8, as large as the image; with masks small images are enlarged.
    """
    return draw_entries(
        image,
        objects,
        np.array([d["class_id"] for d in objects], int),
        # As many as there are classes, so that drawing knows of an only one.
        names={i: name for i, (_, name) in class_map.categories.items()},
        with_masks=with_masks,
        all_boxes=with_boxes,
        max_objects=max_objects,
        zoom=_zoom_of(image) if with_masks else 1.0,
    )


def draw_heat(prediction: Prediction, *, weigh_by: str = "probability") -> np.ndarray:
    """Draws where the model sees objects; see `mask_heat`.

    Raises:
      ValueError: the model has no masks.
    """
    if prediction.masks is None:
        raise ValueError("a heat map needs masks, and this model has none")
    height, width = prediction.image.shape[:2]
    heat = mask_heat(
        prediction.masks,
        corners([d["bbox"] for d in prediction.objects]),
        np.array([d["score"] for d in prediction.objects]),
        height=height,
        width=width,
        weigh_by=weigh_by,
        rule=prediction.mask_rule,
    )
    return draw_heat_map(prediction.image, heat, zoom=_zoom_of(prediction.image))


def _zoom_of(image: np.ndarray) -> int:
    return min(max(round(_LEAST_SIDE / min(image.shape[:2])), 1), _MOST_ZOOM)


class AnnotatedImages:
    """Annotations to draw beside detections.

    Args:
      annotations: COCO instances JSON; images are found by file name, folders only where they tell.
    """

    def __init__(self, annotations: str):
        self._truth, self._source = read_scored(annotations), annotations
        self._images: dict[str, list[CocoImage]] = defaultdict(list)
        for image in self._truth.images:
            self._images[base_name(image.file_name)].append(image)

    def image_id(self, path: str) -> Any | None:
        """Returns the id of an image file in the annotations, None where it is not in them."""
        image = self._image_of(path)
        return image.image_id if image else None

    def _image_of(self, path: str) -> CocoImage | None:
        """Returns the image of a file; where several have its name, that with its folders too."""
        named = self._images.get(base_name(Path(path).name), [])
        if len(named) > 1:
            whole = Path(path).absolute().as_posix()
            named = [image for image in named if whole.endswith(f"/{image.file_name}")]
        return named[0] if len(named) == 1 else None

    def _objects_of(self, path: str, size: Size) -> Sequence[Mapping[str, Any]]:
        """Returns the objects of an image, in its own pixels where the JSON has another size."""
        image = self._image_of(path)
        objects = self._truth.objects.get(image.source_id, ()) if image else ()
        stated = (image.height, image.width) if image else size
        if None in stated or stated == size or not is_same_shape(stated, size):
            return objects
        return [rescale_object(entry, stated, size) for entry in objects]

    def worst_files(
        self, entries: Sequence[dict[str, Any]], paths: Sequence[str], *, count: int
    ) -> list[str]:
        """Returns the files with the most to complain about, the worst first.

        Args:
          entries: of all files, see `Prediction.entries`.
          paths: of all files; those without annotations are left out.
          count: the most files.

        Raises:
          ValueError: not one of the files is in the annotations.
        """
        files = {self.image_id(path): path for path in paths}
        files.pop(None, None)
        if not files:
            raise ValueError(
                f"{self._source}: not one of {len(paths)} image files is listed there, such as "
                f"{paths[0]}: give the annotations of these images"
            )
        ids = {name: category for category, name in self._truth.category_names.items()}
        known = [
            {**entry, "category_id": ids[entry["name"]]}
            for entry in entries
            if entry["name"] in ids
        ]
        matches = match(self._truth, known, image_ids=list(files))
        worst = worst_images(matches, 0.0, count)
        return [files[matches.images[result.image].image_id] for result in worst]

    def beside(
        self, prediction: Prediction, drawn: np.ndarray, class_map: ClassMap, *, with_boxes: bool
    ) -> np.ndarray:
        """Returns ground truth on the left, `drawn` on the right, captioned.

        Args:
          prediction: says the image, and by its masks whether those of the truth are drawn.
          drawn: uint8 [h, w, 3], the prediction.
          class_map: says names and classes.
          with_boxes: as of `draw`.
        """
        names = self._truth.category_names
        known = class_map.matched(names, source=self._source).category_to_class
        objects = [
            {**entry, "class_id": known.get(entry["category_id"], -1)}
            for entry in self._objects_of(prediction.path, prediction.image.shape[:2])
        ]
        truth = draw(
            prediction.image,
            objects,
            class_map,
            with_masks=prediction.masks is not None,
            with_boxes=with_boxes,
        )
        # Wide enough for the captions.
        scale = max(_LEAST_WIDTH / truth.shape[1], 1.0)
        cell = (round(scale * truth.shape[0]), round(scale * truth.shape[1]))
        captions = [f"{Path(prediction.path).name}: ground truth", "detections"]
        return contact_sheet([truth, drawn], 2, captions, cell=cell)
