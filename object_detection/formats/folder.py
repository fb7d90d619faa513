"""The files of a data folder by kind, its lists of classes, and how annotations name its images.

Annotations name images in many ways: with the path of another machine, with backslashes, as a URL,
percent-encoded, without or with another extension. A name is looked up from the most exact reading
to the loosest, and has to lead to one file.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from outside_data.files import open_as_utf8, read_text, walk
from outside_data.picture_file import suffixes
from path_names.spellings import UPLOAD_PREFIX, folded, spellings

_IMAGE_SUFFIXES = suffixes()
_HEAD_BYTES = 65536
_MADE_HERE = (".preparing", "imported.json", "last_checkpoint")
_MAX_DEPTH = 6
_SPLIT_NAME = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|eval|dev)([-_]?\d{1,4})?", re.I
)
_CLASS_LISTS = ("classes.txt", "labels.txt", "obj.names", "_darknet.labels", "labelmap.txt")
NO_CLASSES = frozenset(("__ignore__", "_background_", "background"))


class DataFolder:
    """The files under a folder, found once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Walks the folder; hidden ones are left out, and what was made of the data in it.

        Raises:
          FileNotFoundError: there is no such folder.
        """
        self.root = Path(root)
        if ".." in self.root.parts:
            self.root = self.root.resolve()
        require_folder(self.root)
        self._by_suffix: dict[str, list[Path]] = defaultdict(list)
        for folder, subfolders, names in walk(self.root, follow_links=True):
            depth = len(Path(folder).relative_to(self.root).parts)
            if depth and is_made_here(folder):
                subfolders.clear()
                continue
            visible = sorted(name for name in subfolders if not name.startswith("."))
            subfolders[:] = visible if depth < _MAX_DEPTH else []
            for name in sorted(names):
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file():  # no pipes
                    self._by_suffix[path.suffix.lower()].append(path)
        self.images = sorted(p for suffix in _IMAGE_SUFFIXES for p in self._by_suffix[suffix])
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            self._by_name[folded(path.name)].append(path)
            self._by_stem[folded(path.stem)].append(path)

    def files(self, *suffixes: str) -> list[Path]:
        """Returns the files with one of the suffixes (".xml"), sorted."""
        return sorted(path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))

    def split_of(self, *paths: Path) -> str:
        """Returns the split that a file's folders, or else its name, speak of; "all" if none.

        Of several files the first that speaks of one counts.
        """
        for path in paths:
            *folders, name = path.relative_to(self.root).parts
            for word in (*reversed(folders), *re.split(r"[-_.]", Path(name).stem)):
                if _SPLIT_NAME.fullmatch(word):
                    return word
        return "all"

    def find_image(self, *names: str, near: Path) -> Path:
        """Returns the image file that an annotation means; none outside of the folder.

        Args:
          *names: what may name it, best first: a path, a file name, a stem, a URL.
          near: the annotation file. Of several images of a name the one that shares most of its
            path is meant.

        Raises:
          FileNotFoundError: no image has any of the names.
          ValueError: two images would do equally.
        """
        for name in names:
            readings = _readings(name)
            for reading in readings:
                for base in (near.parent, self.root):
                    path = Path(os.path.normpath(base / reading))
                    is_image = path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()
                    if is_image and path.is_relative_to(os.path.normpath(self.root)):
                        return path
            for table, key in ((self._by_name, _file_name), (self._by_stem, _stem)):
                for reading in readings:
                    found = table.get(folded(key(reading)))
                    if found:
                        return self._nearest(found, reading, near)
        raise FileNotFoundError(
            f"{near}: no image {' or '.join(filter(None, names))!r} in {self.root} or the folders "
            f"below it ({len(self.images)} images): put the images there"
        )

    def _nearest(self, found: list[Path], reading: str, near: Path) -> Path:
        def likeness(path: Path) -> tuple[int, int, int]:
            same_end = _num_common(_upwards(path.as_posix()), _upwards(reading))
            same_start = _num_common(path.parts, near.parts)
            same_split = int(self.split_of(path) == self.split_of(near))
            return same_end, same_split, same_start

        best = max(map(likeness, found))
        left = [path for path in found if likeness(path) == best]
        if len(left) > 1:
            raise ValueError(
                f"{near}: {reading!r} may be {left[0]} or {left[1]}: give the images names of "
                "their own, or write their folders into the annotations"
            )
        return left[0]


def require_folder(path: Path) -> None:
    """Raises FileNotFoundError where there is no such folder; of a file it says what to name."""
    if path.is_file():
        is_archive = zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
        advice = "unpack it and name" if is_archive else f"name {path.parent}, or"
        raise FileNotFoundError(f"{path} is a file: {advice} the folder with the annotations")
    if not path.is_dir():
        raise FileNotFoundError(f"no data folder {path} (looked from {os.getcwd()})")


def is_made_here(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds records that were made of data, or a training's checkpoints."""
    return any(os.path.exists(os.path.join(folder, mark)) for mark in _MADE_HERE)


def head_of(path: Path) -> bytes:
    """Returns the first bytes of a file's text in UTF-8, from its first sign on."""
    with open_as_utf8(path, most=None) as file:
        return file.read(_HEAD_BYTES).lstrip(b"\xef\xbb\xbf \r\n\t")


def plain_name(name: str) -> str:
    """Returns the file name in what may be a path of another machine or a URL."""
    *_, (reading, _) = spellings(name)
    return _file_name(reading)


def is_labelme(head: bytes) -> bool:
    """Whether a file that begins so is LabelMe's; a picture in it may come before its shapes."""
    marks = (b'"shapes"', b'"imageData"', b'"imagePath"')
    return head.startswith(b"{") and any(mark in head for mark in marks)


def read_class_list(folder: DataFolder, *names: str, is_numbered: bool = False) -> list[str]:
    """Returns the class names of the first list that is there, in order; [] if there is none.

    `names` are the lists' file names, by default all that are known. CVAT's `labelmap.txt` has a
    colour and more behind each name; its heading starts with `#`. Where the lines are the classes'
    numbers (`is_numbered`) none is left out.

    Raises:
      ValueError: a line between numbered ones is empty, or two lists number otherwise.
    """
    for wanted in names or _CLASS_LISTS:
        suffix = "." + wanted.rsplit(".", 1)[-1]
        lists = {p: _class_lines(p) for p in folder.files(suffix) if p.name == wanted}
        if not lists:
            continue
        if not is_numbered:
            first = next(iter(lists.values()))
            return [line for line in first if line and line not in NO_CLASSES]
        longest = max(lists, key=lambda path: len(lists[path]))
        for path, lines in lists.items():
            if "" in lines:
                raise ValueError(
                    f"{path} line {lines.index('') + 1} is empty, and the lines are the numbers of "
                    "the classes: write the name there, or remove the line"
                )
            if lines != lists[longest][: len(lines)]:
                raise ValueError(
                    f"{path} and {longest} number the classes differently: number them alike in "
                    "all labels, and keep one list"
                )
        return lists[longest]
    return []


def _class_lines(path: Path) -> list[str]:
    """Returns the lines of a list of classes, without empty ones at its end."""
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if path.name == "labelmap.txt":
        lines = [line.split(":")[0] for line in lines if not line.startswith("#")]
    return lines


def _readings(name: str) -> list[str]:
    """Returns the paths that a name may stand for, most literal first."""
    readings = [name, *(text for text, _ in spellings(name))]
    readings += [UPLOAD_PREFIX.sub("", _file_name(reading)) for reading in readings]
    return list(dict.fromkeys(reading for reading in readings if reading))


def _file_name(reading: str) -> str:
    return reading.rstrip("/").rsplit("/", 1)[-1]


def _stem(reading: str) -> str:
    name = Path(_file_name(reading))
    return name.stem if name.suffix.lower() in _IMAGE_SUFFIXES else name.name


def _upwards(path: str) -> list[str]:
    return [_stem(path), *path.split("/")[-2::-1]]


def _num_common(parts: Iterable[str], others: Iterable[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(parts, others)))
