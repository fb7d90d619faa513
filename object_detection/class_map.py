"""What the model's class channels mean: class_id <-> category_id and name.

`contiguous`: channel i is the i-th category of the data card. `category_id`: channel i is category
id i + 1, the reference's convention, with channels that no category uses. The map is stored in
every checkpoint. A newcomer's trap: the map decides what is trained and scored, names only what is
shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from object_detection.data.card import DataCard
from object_detection.data.coco_categories import COCO_CATEGORIES

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# Names of the reference's label maps: category_id -> name.
LABEL_MAPS: dict[str, dict[int, str]] = {
    "coco": COCO_CATEGORIES,
    "voc": dict(enumerate(_VOC, start=1)),
    "waymo": {1: "vehicle", 2: "pedestrian", 4: "cyclist"},
}


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Channels of a model.

    num_classes: class channels, foreground only.
    categories: class_id -> (category_id, name) of the channels in use.
    """

    num_classes: int
    categories: Mapping[int, tuple[int, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each channel; unused ones are called 'class N'."""
        return tuple(self.categories.get(i, (0, f"class {i}"))[1] for i in range(self.num_classes))

    @property
    def category_to_class(self) -> dict[int, int]:
        """category_id -> class_id."""
        return {category_id: class_id for class_id, (category_id, _) in self.categories.items()}

    def is_known(self, class_ids: np.ndarray) -> np.ndarray:
        """True where a channel stands for a category; bool, shape of the argument."""
        return np.isin(class_ids, list(self.categories))

    def renamed(self, names: Mapping[int, str]) -> ClassMap:
        """Returns the map with other names.

        Args:
          names: category_id -> name; categories that are not in it keep theirs.

        Raises:
          ValueError: it names none of the categories.
        """
        if not set(names) & set(self.category_to_class):
            raise ValueError(
                f"the label map names category ids {sorted(names)[:5]}, the data set's are "
                f"{sorted(self.category_to_class)[:5]}: it belongs to another data set"
            )
        categories = {i: (c, names.get(c, name)) for i, (c, name) in self.categories.items()}
        return ClassMap(self.num_classes, categories)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "num_classes": self.num_classes,
            "categories": [[i, c, n] for i, (c, n) in self.categories.items()],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClassMap:
        """Undoes `to_dict`."""
        return ClassMap(values["num_classes"], {i: (c, n) for i, c, n in values["categories"]})


def make_class_map(
    card: DataCard,
    *,
    class_ids: str,
    num_classes: int | None,
) -> ClassMap:
    """Builds the map of a data set.

    Args:
      card: the data card of the training records.
      class_ids: 'contiguous' or 'category_id'.
      num_classes: channels; None: as many as needed.

    Raises:
      ValueError: more categories than channels, or a category id that has no channel.
    """
    known = {c.category_id: c.name for c in card.categories}
    if not known:
        raise ValueError(f"the data set {card.split!r} has no category: convert it from instances")
    if class_ids == "contiguous":
        categories = dict(enumerate(known.items()))
    else:
        categories = {
            category_id - 1: (category_id, name) for category_id, name in sorted(known.items())
        }
    needed = max(categories, default=-1) + 1
    total = num_classes if num_classes is not None else needed
    if needed > total or min(categories, default=0) < 0:
        raise ValueError(
            f"num_classes={total} but the data set {card.split!r} needs {needed} channels "
            f"(category ids {min(known)} to {max(known)}, class_ids={class_ids}): leave "
            "num_classes unset or raise it"
        )
    return ClassMap(total, categories)
