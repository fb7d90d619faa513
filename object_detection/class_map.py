"""What the model's class channels mean: class_id <-> category_id and name.

`contiguous`: channel i is the i-th category of the data card. `category_id`: channel i is category id i + 1, the
reference's convention, with channels that no category uses. The map is stored in every checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from object_detection.data.card import DataCard


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

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "num_classes": self.num_classes,
            "categories": [[i, c, n] for i, (c, n) in self.categories.items()],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ClassMap":
        """Undoes `to_dict`."""
        return ClassMap(values["num_classes"], {i: (c, n) for i, c, n in values["categories"]})


def make_class_map(
    card: DataCard,
    *,
    class_ids: str,
    num_classes: int | None,
    names: Mapping[int, str] | None = None,
) -> ClassMap:
    """Builds the map of a data set.

    Args:
      card: the data card of the training records.
      class_ids: 'contiguous' or 'category_id'.
      num_classes: channels; None: as many as needed.
      names: category_id -> name, instead of the card's names.

    Raises:
      ValueError: more categories than channels, or a category id that has no channel.
    """
    known = {c.category_id: (names or {}).get(c.category_id, c.name) for c in card.categories}
    if class_ids == "contiguous":
        categories = {i: (category_id, name) for i, (category_id, name) in enumerate(known.items())}
    else:
        categories = {
            category_id - 1: (category_id, name) for category_id, name in sorted(known.items())
        }
    needed = max(categories, default=-1) + 1
    total = num_classes if num_classes is not None else needed
    if needed > total or min(categories, default=0) < 0:
        raise ValueError(
            f"num_classes={total} but the data set {card.split!r} needs {needed} channels (category ids "
            f"{min(known)} to {max(known)}, class_ids={class_ids}): leave num_classes unset or raise it"
        )
    return ClassMap(total, categories)
