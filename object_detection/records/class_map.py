"""What the model's class channels mean: class_id <-> category_id and name.

`contiguous`: channel i is the i-th category of the data card. `category_id`: channel i is category
id i + 1, the reference's convention, with channels that no category uses. The map is stored in
every checkpoint and decides what is trained and scored. Other lists of categories (a validation
set's, a JSON's) meet it by name (`ClassMap.matched`): ids are counted anew by many exporters.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.coco.categories import COCO_CATEGORIES
from object_detection.coco.listed import some
from object_detection.records.card import DataCard
from outside_data.files import expecting, read_text, read_yaml, regular_file
from path_names.spellings import folded

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_MOST_CHANNELS = 100_000
# Names of the reference's label maps: category_id -> name.
LABEL_MAPS: dict[str, dict[int, str]] = {
    "coco": COCO_CATEGORIES,
    "voc": dict(enumerate(_VOC, start=1)),
    "waymo": {1: "vehicle", 2: "pedestrian", 4: "cyclist"},
}

_ITEM = re.compile(r"item\s*\{(.*?)\}", re.DOTALL)
_ITEM_FIELD = re.compile(r"""(\w+)\s*:\s*(?:(["'])(.*?)\2|(\S+))""")


def plain_name(name: str) -> str:
    """Returns a name without what exporters change: case, Unicode form, spaces, `_`, `-`."""
    return folded(re.sub(r"[\s_-]+", " ", name).strip())


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Channels of a model.

    num_classes: class channels, foreground only.
    categories: class_id -> (category_id, name) of the channels in use.
    data_names: class_id -> name in the training data, where a label map renamed it.
    """

    num_classes: int
    categories: Mapping[int, tuple[int, str]]
    data_names: Mapping[int, str] = dataclasses.field(default_factory=dict)

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
        data_names = {i: self.data_names.get(i, n) for i, (_, n) in self.categories.items()}
        return ClassMap(self.num_classes, categories, data_names)

    def matched(self, others: Mapping[int, str], *, source: str) -> ClassMap:
        """Returns these channels with the category ids of another list.

        Categories of one name are one class, whatever their ids; where a name says nothing (it is
        the id, or belongs to several), the id decides.

        Args:
          others: category_id -> name of the other list.
          source: whose list it is, for messages.

        Returns:
          The map. Channels that the other list lacks, and its categories that no channel stands
          for, are left out.

        Raises:
          ValueError: the other list calls ids by names that are unknown here; lists them.
        """
        by_id, by_name = self.category_to_class, self._channels_by_name()
        counts = Counter(plain_name(name) for name in others.values())
        categories: dict[int, tuple[int, str]] = {}
        clashes: list[str] = []
        for category_id, name in sorted(others.items()):
            channel = by_id.get(category_id)
            if channel is None or not self._is_called(channel, category_id, name):
                is_unique = counts[plain_name(name)] == 1
                named = by_name.get(plain_name(name)) if is_unique else None
                if named is None and channel is not None:
                    known = self.categories[channel][1]
                    clashes.append(f"category {category_id} is {name!r} there, {known!r} here")
                    continue
                channel = named
            if channel is None:
                continue
            if channel in categories:
                twice = f"{categories[channel][0]} and {category_id}"
                clashes.append(f"categories {twice} are both {self.categories[channel][1]!r} here")
                continue
            categories[channel] = (category_id, self.categories[channel][1])
        if clashes:
            raise ValueError(
                f"the classes of {source} and of the model do not meet: {'; '.join(clashes[:10])}"
                f"{'; ...' if len(clashes) > 10 else ''}. The same id must mean the same class, or "
                "the same name: correct 'categories' in the annotation file and convert it again"
            )
        return dataclasses.replace(self, categories=categories)

    def of_card(self, card: DataCard) -> dict[int, int]:
        """Returns category_id, as records have it, to class_id; see `matched`."""
        return self.matched(
            card.category_names, source=f"the record set {card.split}"
        ).category_to_class

    def renumbered(self, other: ClassMap) -> list[str]:
        """Names the classes that have other category ids in a map that `matched` returned."""
        return [
            f"{name!r} is category {other.categories[i][0]} there, {category_id} here"
            for i, (category_id, name) in self.categories.items()
            if i in other.categories and other.categories[i][0] != category_id
        ]

    def channels_in(self, other: ClassMap) -> list[int]:
        """Returns for each channel the channel of the other map of the same name, -1 for none."""
        by_name = other._channels_by_name()
        return [
            next((by_name[n] for n in self._names_of(i) if n in by_name), -1)
            for i in range(self.num_classes)
        ]

    def coco_channels(self) -> list[int] | None:
        """Returns for each channel the COCO id less 1 of its category; None for other classes."""
        is_coco = all(COCO_CATEGORIES.get(i) == name for i, name in self.categories.values())
        if not is_coco or len(self.categories) != self.num_classes:
            return None
        return [self.categories[channel][0] - 1 for channel in range(self.num_classes)]

    def describe_channels(self, channels: Sequence[int]) -> str:
        """Says which classes continue those of a weight file; see `channels_in`."""
        kept = [self.names[i] for i, channel in enumerate(channels) if channel >= 0]
        new = [self.names[i] for i, channel in enumerate(channels) if channel < 0]
        said = f"class predictor: {len(kept)} of {len(channels)} classes are the file's by name"
        said += f": {some(kept, 10)}" if kept else ""
        return said + (f"; kept as initialised: {some(new, 10)}" if new else "")

    def _names_of(self, channel: int) -> list[str]:
        if channel not in self.categories:
            return []
        shown = self.categories[channel][1]
        return [plain_name(name) for name in (shown, self.data_names.get(channel, shown))]

    def _channels_by_name(self) -> dict[str, int]:
        """Plain name -> channel, of names that only one channel has."""
        names = {channel: set(self._names_of(channel)) for channel in self.categories}
        counts = Counter(name for of_channel in names.values() for name in of_channel)
        return {
            name: channel
            for channel, of_channel in names.items()
            for name in of_channel
            if counts[name] == 1
        }

    def _is_called(self, channel: int, category_id: int, name: str) -> bool:
        """Whether a channel may be the category of this id and name."""
        is_nameless = any(
            candidate in (str(category_id), f"category {category_id}", f"class {channel}")
            for candidate in (plain_name(name), *self._names_of(channel))
        )
        return is_nameless or plain_name(name) in self._names_of(channel)

    def require_count(self, num_classes: int | None) -> None:
        """Raises ValueError if a checkpoint of these classes is asked for another number of them.

        Args:
          num_classes: the setting; None: not given.
        """
        if num_classes is not None and num_classes != self.num_classes:
            raise ValueError(
                f"num_classes={num_classes} but the checkpoint has {self.num_classes} classes: "
                "leave num_classes unset; to train on other classes use --pretrained_ckpt and a "
                "new --model_dir"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        renamed = {"data_names": [[i, n] for i, n in self.data_names.items()]}
        return {
            "num_classes": self.num_classes,
            "categories": [[i, c, n] for i, (c, n) in self.categories.items()],
            **(renamed if self.data_names else {}),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClassMap:
        """Undoes `to_dict`; ValueError for more channels than a model can have, or none."""
        if not 1 <= values["num_classes"] <= _MOST_CHANNELS:
            raise ValueError(f"num_classes={values['num_classes']}: expected 1 to {_MOST_CHANNELS}")
        return ClassMap(
            values["num_classes"],
            {i: (c, n) for i, c, n in values["categories"]},
            dict(values.get("data_names", ())),
        )


def make_class_map(card: DataCard, *, class_ids: str, num_classes: int | None) -> ClassMap:
    """Builds the map of a data set; class_ids as above, num_classes None: as many as needed.

    Raises:
      ValueError: more categories than channels, or a category id that has no channel.
    """
    known = card.category_names
    if not known:
        raise ValueError(f"the data set {card.split!r} has no category: convert it from instances")
    categories = _channels_of(known, class_ids)
    needed = max(categories) + 1
    if needed > _MOST_CHANNELS:
        raise ValueError(
            f"class_ids={class_ids} takes {needed:,} channels for the {len(known)} categories of "
            f"the data set {card.split!r}, whose ids go up to {max(known)}: use "
            "class_ids=contiguous"
        )
    total = num_classes if num_classes is not None else needed
    if needed > total or min(categories) < 0:
        raise ValueError(
            f"num_classes={total} but the data set {card.split!r} needs {needed} channels "
            f"(category ids {min(known)} to {max(known)}, class_ids={class_ids}): leave "
            "num_classes unset or raise it"
        )
    return ClassMap(total, categories)


def class_map_of_run(
    train_card: DataCard | None,
    eval_card: DataCard | None,
    *,
    stored: Mapping[str, Any] | None,
    class_ids: str,
    num_classes: int | None,
    label_map: str = "",
) -> ClassMap:
    """Returns the map of a run: that of its checkpoint, else that of its data.

    Args:
      train_card: of the training records, None where nothing is trained.
      eval_card: of the validation records, if there are any.
      stored: `ClassMap.to_dict` of the checkpoint that is continued or evaluated; None: a new run.
      class_ids, num_classes: see `make_class_map`.
      label_map: see `read_label_map`; '': names are the card's.

    Raises:
      ValueError: the classes asked for, of the data and of the checkpoint do not meet.
    """
    card = train_card or eval_card
    if stored:
        class_map = ClassMap.from_dict(stored)
        _require_same_classes(class_map, train_card, num_classes)
    elif card is None:
        raise ValueError("--val_file_pattern is required: the classes are read from its records")
    else:
        class_map = make_class_map(card, class_ids=class_ids, num_classes=num_classes)
    if eval_card:
        class_map.matched(eval_card.category_names, source=f"the validation set {eval_card.split}")
    return class_map.renamed(read_label_map(label_map)) if label_map else class_map


def _require_same_classes(
    class_map: ClassMap, card: DataCard | None, num_classes: int | None
) -> None:
    class_map.require_count(num_classes)
    names = card.category_names if card else {}
    known = class_map.matched(names, source="the training records").category_to_class
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"the training records have category ids {unknown[:5]} that the checkpoint does not "
            "know: to train on other classes use --pretrained_ckpt and a new --model_dir"
        )


def read_label_map(label_map: str) -> dict[int, str]:
    """Returns category_id -> name of `--label_map`: a name known here or a file.

    A YAML file holds them as `id: name`, at its top or, as google/automl's settings do, under
    `label_map`. TensorFlow's `.pbtxt` has items with an id and a name, or a name to be shown.

    Raises:
      ValueError: the file holds something else.
      FileNotFoundError: neither a known name nor a file.
    """
    if label_map in LABEL_MAPS:
        return LABEL_MAPS[label_map]
    if regular_file(label_map) is None:
        raise FileNotFoundError(
            f"label_map={label_map!r}: expected {', '.join(LABEL_MAPS)} or a YAML file"
        )
    with expecting(label_map, "category id: name"):
        if os.fspath(label_map).endswith(".pbtxt"):
            names = dict(map(_labelled_item, _ITEM.findall(read_text(label_map))))
        else:
            content = read_yaml(label_map, as_text=True)
            if not isinstance(content, dict):
                raise ValueError(f"{type(content).__name__}, not numbers with names")
            content = content.get("label_map", content)
            names = {int(key): str(name) for key, name in content.items()}
        if not names:
            raise ValueError("not one class")
        if min(names) < 0:
            raise ValueError(f"the id {min(names)}, below 0")
        return names


def _labelled_item(item: str) -> tuple[int, str]:
    fields = {key: quoted or bare for key, _, quoted, bare in _ITEM_FIELD.findall(item)}
    return int(fields["id"]), fields.get("display_name") or fields["name"]


def coco_class_map(*, class_ids: str, num_classes: int | None) -> ClassMap:
    """Returns COCO's classes, for checkpoints without a description; as `make_class_map`.

    Fewer classes are not COCO's first: they are called by their numbers.
    """
    categories = _channels_of(COCO_CATEGORIES, class_ids)
    total = num_classes or max(categories) + 1
    if total <= max(categories):
        categories = {channel: (channel + 1, f"class {channel}") for channel in range(total)}
    return ClassMap(total, categories)


def _channels_of(names: Mapping[int, str], class_ids: str) -> dict[int, tuple[int, str]]:
    """Returns class_id -> (category_id, name), from category_id -> name."""
    if class_ids == "contiguous":
        return dict(enumerate(names.items()))
    return {category_id - 1: (category_id, name) for category_id, name in sorted(names.items())}
