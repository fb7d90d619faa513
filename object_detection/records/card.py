"""The data card: what a record set holds, written as `<prefix>-card.json` beside its shards.

Training, evaluation and inference read class count, names, image count and the largest number of
boxes from here instead of from flags. The card maps the data set's `category_id` (any integers,
gaps allowed) to the model's contiguous `class_id` (0-based, foreground only): never use one for
the other. Record sets made by others have no card; `card_builder` makes one by reading them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from object_detection.records.tfrecord_file import record_files, shard_prefix
from outside_data.files import BadFileError, open_file, read_json, regular_file
from outside_data.whole_file import write_whole

CARD_SUFFIX = "-card.json"
FORMAT_VERSION = 1
_SAMPLE_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True)
class Category:
    """One class: the model's `class_id`, the data set's `category_id`, and how often it occurs.

    `instances` counts boxes, crowd regions included; `images` counts images with at least one.
    """

    class_id: int
    category_id: int
    name: str
    instances: int = 0
    images: int = 0


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """One record file, named without its folder.

    content: of `content_of`; "" in cards made before there was one.
    """

    file: str
    num_records: int
    content: str = ""


@dataclasses.dataclass(frozen=True)
class DataCard:
    """Description of one record set. Sizes in pixels; counts are of what the records hold."""

    split: str
    num_images: int
    num_instances: int  # boxes, crowd regions included
    num_crowd: int
    num_images_without_boxes: int
    categories: tuple[Category, ...]
    max_boxes_per_image: int  # crowd regions included
    max_boxes_source_id: str  # the image that has them
    min_height: int
    max_height: int
    min_width: int
    max_width: int
    shards: tuple[RecordFile, ...]
    box_statistics: Mapping[str, Mapping[str, float]]  # measure -> quantile -> value
    dropped: Mapping[str, int]  # reason -> boxes or images left out
    corrected: Mapping[str, int]  # what was changed on the way in -> how often
    skipped_source_ids: tuple[str, ...]  # images of the annotation file that have no record
    mask_format: str | None  # "png", "bitpacked" or None
    annotations_file: str  # path at the time of conversion, "" if unknown
    annotations_sha256: str
    fingerprint: str
    examples: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Of what was dropped or corrected: image files and annotations, the first few of each."""
    resized_images: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """source_id of images whose JSON states another size or none -> (height, width) of the file, to
    which their objects were scaled."""

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names, indexed by class_id."""
        return tuple(category.name for category in self.categories)

    @property
    def category_names(self) -> dict[int, str]:
        """The data set's ids to names."""
        return {category.category_id: category.name for category in self.categories}

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's ids, indexed by class_id."""
        return tuple(category.category_id for category in self.categories)

    @property
    def has_masks(self) -> bool:
        """Whether the records hold instance masks."""
        return self.mask_format is not None

    def require_boxes(self) -> None:
        """Raises ValueError if there is nothing to learn from."""
        if 0 < self.num_instances == self.num_crowd:
            raise ValueError(
                f"all {self.num_crowd} objects of the record set {self.split!r} are crowd regions "
                "(iscrowd 1), which are left out of training, so a detector would learn only "
                "background. Correct 'iscrowd' in the annotation file and convert it again"
            )
        if self.num_instances == 0:
            raise ValueError(
                f"the record set {self.split!r} holds {self.num_images} images and not one box, "
                "so a detector would learn only background. Convert it again from an *instances* "
                "annotation file (--object_annotations_file); captions hold no boxes"
            )


def make_fingerprint(
    shards: Iterable[RecordFile], categories: Iterable[Category], annotations_sha256: str
) -> str:
    """Returns a sha256 over the shards' counts and contents, categories and annotation file."""
    identity = [
        [[shard.num_records, shard.content] for shard in shards],
        [[category.category_id, category.name] for category in categories],
        annotations_sha256,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def content_of(path: str | os.PathLike[str]) -> str:
    """Returns a sha256 over a file's length and samples of its beginning, middle and end.

    Reads little however large the file is: enough to tell it from any other set's.
    """
    with open_file(path, most=None) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        for start in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def card_path(prefix: str | os.PathLike[str]) -> Path:
    """Returns `dir/train-card.json` for `dir/train`."""
    return Path(f"{os.fspath(prefix)}{CARD_SUFFIX}")


def save_card(card: DataCard, path: str | os.PathLike[str]) -> None:
    """Writes a card aside and renames it into place."""
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(card)}
    content["has_masks"] = card.has_masks
    write_whole(path, json.dumps(content, indent=1) + "\n")


def load_card(path: str | os.PathLike[str]) -> DataCard:
    """Reads a card.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no data card, or of a later format.
    """
    source = Path(path)
    if regular_file(source) is None:
        raise FileNotFoundError(f"no data card at {source}: convert the data set first")
    try:
        return _from_json(read_json(source))
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise BadFileError(
            f"{source} is no data card of format {FORMAT_VERSION} ({error!r}): convert the data "
            "set again, or delete the file to have the records scanned instead"
        ) from error


def find_card(file_pattern: str) -> DataCard | None:
    """Finds the card of the record files that a pattern matches.

    `dir/train-*` has the card `dir/train-card.json`. If there is none by that name, the one card
    in the folder that lists every matched file is taken; what else is called a card there and
    cannot be read is passed over, unless it is named like some of the files.

    Returns:
      The card, or None if there is none: then scan the records (`card_builder.card_from_records`).
      For a pattern that matches only some of the shards, `shards`, `num_images` and `fingerprint`
      are those of the matched ones, all other counts those of the whole set.

    Raises:
      FileNotFoundError: no record file matches.
      ValueError: the card does not agree with the files, or several cards would do.
    """
    files = record_files(file_pattern)
    folders = {os.path.dirname(path) for path in files}
    prefixes = {shard_prefix(path) for path in files}
    if len(folders) > 1:
        return None
    own_paths = {card_path(prefix) for prefix in prefixes}
    if len(own_paths) == 1 and (path := next(iter(own_paths))).is_file():
        card = load_card(path)
        _check_files(card, path, files)
    else:
        names = {os.path.basename(path) for path in files}
        cards: dict[Path, DataCard] = {}
        for path in sorted(Path(folders.pop()).glob(f"*{CARD_SUFFIX}")):
            try:
                cards[path] = load_card(path)
            except (BadFileError, OSError):
                if path in own_paths:
                    raise
        found = [p for p, c in cards.items() if names <= {shard.file for shard in c.shards}]
        if not found:
            return None
        if len(found) > 1:
            raise ValueError(
                f"several data cards describe {file_pattern!r}: {', '.join(map(str, found))}. "
                "Keep one"
            )
        path, card = found[0], cards[found[0]]
    _check_contents(card, path, files)
    return _restrict(card, files)


def _restrict(card: DataCard, files: list[str]) -> DataCard:
    names = {os.path.basename(path) for path in files}
    shards = tuple(shard for shard in card.shards if shard.file in names)
    if shards == card.shards:
        return card
    return dataclasses.replace(
        card,
        shards=shards,
        num_images=sum(shard.num_records for shard in shards),
        fingerprint=make_fingerprint(shards, card.categories, card.annotations_sha256),
    )


def _check_files(card: DataCard, path: Path, files: list[str]) -> None:
    listed = {shard.file for shard in card.shards}
    strangers = [name for name in map(os.path.basename, files) if name not in listed]
    missing = [name for name in sorted(listed) if not (path.parent / name).is_file()]
    if strangers or missing:
        raise ValueError(
            f"{path} does not agree with its folder: {len(strangers)} matching files are not in "
            f"the card {strangers[:3]}, {len(missing)} files of the card do not exist "
            f"{missing[:3]}. Convert the data set again, or remove the files of another conversion"
        )


def _check_contents(card: DataCard, path: Path, files: list[str]) -> None:
    """Raises ValueError if a file is not the one that was converted."""
    expected = {shard.file: shard.content for shard in card.shards}
    changed = [
        file
        for file in files
        if (content := expected[os.path.basename(file)]) and content_of(file) != content
    ]
    if changed:
        raise ValueError(
            f"{path} does not describe {len(changed)} of its files, which were changed or "
            f"exchanged since they were converted: {changed[:3]}. Convert the data set again, "
            "or delete the card to have the records scanned"
        )


def _from_json(content: dict[str, Any]) -> DataCard:
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"expected format_version {FORMAT_VERSION}, got {version}")
    content.pop("has_masks", None)
    content["categories"] = tuple(Category(**entry) for entry in content["categories"])
    content["skipped_source_ids"] = tuple(content["skipped_source_ids"])
    resized = content.get("resized_images", {})
    content["resized_images"] = {key: tuple(size) for key, size in resized.items()}
    content["shards"] = tuple(RecordFile(**entry) for entry in content["shards"])
    class_ids = [category.class_id for category in content["categories"]]
    if class_ids != list(range(len(class_ids))):
        raise ValueError(f"expected class ids 0..{len(class_ids) - 1} in order, got {class_ids}")
    return DataCard(**content)
