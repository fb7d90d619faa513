"""A trained detector in Python: arrays, files, folders or videos in, NumPy out.

TensorFlow is imported by `load`, so that `import ringdet` takes no time.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Union

import numpy as np

from ringdet.programs import as_hparams

if TYPE_CHECKING:  # they bring TensorFlow
    from object_detection.masks.mask_paste import MaskRule
    from object_detection.records.class_map import ClassMap
    from object_detection.serve.inference import Detector, Prediction

Image = Union[str, os.PathLike, bytes, np.ndarray]
Images = Union[Image, Iterable[Image]]
"""An image file or its bytes, a folder, a glob, a video, uint8 [h, w, 3] or [n, h, w, 3] RGB, or
several.

What NumPy reads as such an array is one: a tensor, an RGB image of Pillow."""


class Detections:
    """What was found on one image, best first.

    Attributes:
      path: of the file; of an array or bytes "", of a frame of a video PATH#NUMBER.
      image: uint8 [h, w, 3], RGB.
      boxes: float32 [n, 4], (y1, x1, y2, x2), pixels of the image.
      scores: float32 [n].
      category_ids: int64 [n], the data set's.
      names: n names of classes.
    """

    def __init__(self, prediction: Prediction, class_map: ClassMap):
        from object_detection.draw.entries import corners

        self._prediction, self._class_map = prediction, class_map
        objects = prediction.objects
        self.path, self.image = prediction.path, prediction.image
        self.boxes = corners([d["bbox"] for d in objects]).astype(np.float32)
        self.scores = np.array([d["score"] for d in objects], np.float32)
        self.category_ids = np.array([d["category_id"] for d in objects], np.int64)
        self.names: list[str] = [d["name"] for d in objects]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names, self.scores))
        return f"<{self.path or 'array'}: {found or 'nothing'}>"

    @functools.cached_property
    def masks(self) -> np.ndarray | None:
        """Bool [n, h, w] in the image's pixels; None of a model without masks."""
        from object_detection.masks.rle import decode_mask

        if self._prediction.masks is None:
            return None
        size = self.image.shape[:2]
        masks = [decode_mask(d["segmentation"], *size) for d in self._prediction.objects]
        return np.array(masks, bool).reshape([-1, *size])

    def draw(self) -> np.ndarray:
        """Returns uint8 [h, w, 3], the image with its detections."""
        from object_detection.serve.inference import draw

        found = self._prediction
        has_masks = found.masks is not None
        return draw(found.image, found.objects, self._class_map, with_masks=has_masks)

    def entries(self) -> list[dict[str, Any]]:
        """Returns COCO's result entries, as infer.py writes them."""
        return self._prediction.entries()


class Model:
    """A detector that `load` made.

    Attributes:
      names: category id -> name.
    """

    def __init__(self, detector: Detector, class_map: ClassMap, mask_rule: MaskRule | None):
        self._detector, self._class_map, self._mask_rule = detector, class_map, mask_rule
        self.names = dict(class_map.categories.values())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model cannot be pickled or copied: load it in each process")

    def predict(
        self, images: Images, *, min_score: float = 0.4, exif: str = "ignore"
    ) -> list[Detections]:
        """Detects objects; see `stream`, which gives one image at a time, for long videos."""
        return list(self.stream(images, min_score=min_score, exif=exif))

    def stream(
        self, images: Images, *, min_score: float = 0.4, exif: str = "ignore"
    ) -> Iterator[Detections]:
        """Detects objects, image by image.

        Args:
          images: see `Images`; in a folder or glob a file that cannot be read, or for which memory
            does not suffice, is left out with a warning.
          min_score: least score.
          exif: "apply" turns files by their EXIF orientation, "ignore" takes them as stored.

        Raises:
          FileNotFoundError: no such file.
          ValueError: bytes or a file named by itself cannot be read, an array is no image, or there
            is no memory to detect on one.
          TypeError: something else than what is listed in `Images`.
          ImportError: a video, and nothing installed to read it; names the extra.
        """
        from object_detection.serve.image_files import find_images

        _require("exif", exif, ("apply", "ignore"))
        if isinstance(min_score, str) or not 0 <= min_score <= 1:
            raise ValueError(f"min_score={min_score!r}: expected a number from 0 to 1")
        if isinstance(images, (str, os.PathLike)):
            path = os.path.expanduser(os.fspath(images))
            for file in find_images(path):
                try:
                    for name, pixels in _pixels_of_file(file, exif):
                        yield self._found(name, pixels, min_score)
                except ValueError as error:
                    if file == path:
                        raise
                    warnings.warn(f"left out: {error}", stacklevel=2)
        elif hasattr(images, "__array__") or hasattr(images, "__array_interface__"):
            array = np.asarray(images)
            for image in array if array.ndim == 4 else [array]:
                yield self._found("", _checked(image), min_score)
        elif isinstance(images, (bytes, bytearray)):
            yield self._found("", _pixels_of(bytes(images), exif), min_score)
        elif isinstance(images, Iterable):
            for some in images:
                yield from self.stream(some, min_score=min_score, exif=exif)
        else:
            raise TypeError(
                f"expected a path, an image or several of them, got {type(images).__name__}"
            )

    def _found(self, path: str, image: np.ndarray, min_score: float) -> Detections:
        from object_detection.serve.inference import predict_pixels

        options = {"min_score": min_score, "mask_rule": self._mask_rule}
        found = predict_pixels(self._detector, self._class_map, path, image, **options)
        return Detections(found, self._class_map)


def _require(name: str, word: str, words: tuple[str, str]) -> None:
    if word not in words:
        raise ValueError(f"{name}={word!r}: expected {' or '.join(map(repr, words))}")


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"expected an image as uint8 [height, width, 3] in RGB, got {image.dtype} "
            f"{list(image.shape)}"
        )
    return image


def _pixels_of_file(path: str, exif: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, uint8 [h, w, 3]) of an image file, or of each frame of a video."""
    from object_detection.serve.videos import is_video, named_frames

    if is_video(path):
        yield from named_frames(path)
        return
    yield path, _pixels_of(path, exif)


def _pixels_of(file: str | bytes, exif: str) -> np.ndarray:
    """Returns uint8 [h, w, 3] of an image file or of its bytes."""
    from object_detection.serve.image_files import read_image

    image, notes = read_image(file, exif=exif)
    for note in notes:
        warnings.warn(note, stacklevel=4)
    return image


def load(
    path: str | Path,
    *,
    which: str = "best",
    model_name: str = "",
    preset: str = "",
    hparams: str | Mapping[str, Any] = "",
) -> Model:
    """Loads a detector.

    Args:
      path: folder of a run, a checkpoint's prefix, or the folder of an export (a SavedModel).
      which: "best" or "last" checkpoint of a run's folder.
      model_name: model of a checkpoint without a description; "": efficientdet-d0.
      preset: conventions of a checkpoint without a description.
      hparams: settings that differ from the checkpoint's, as key=value pairs or a dictionary.

    Raises:
      FileNotFoundError: nothing to load there.
      ConfigError: the checkpoint and what is asked for do not fit; a ValueError.
    """
    _require("which", which, ("best", "last"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import families
    from engine.config.fields import ConfigError
    from object_detection.serve import inference

    path = os.path.expanduser(path)
    if (Path(path) / "saved_model.pb").is_file():
        if model_name or preset or hparams:
            raise ConfigError(
                f"{path}, an export, keeps its settings: leave model_name, preset, hparams out"
            )
        return Model(*inference.saved_model_detector(path))
    task = families.load_task(
        path,
        which=which,
        model_name=model_name or families.DEFAULT_MODEL,
        preset_name=preset,
        hparams=as_hparams(hparams),
    )
    return Model(inference.detector_of(task.detect_images), task.class_map, task.mask_rule)
