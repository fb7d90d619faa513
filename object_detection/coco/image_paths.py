"""Finds the files that a JSON's image names mean, and refuses those outside of the image folder.

A name is first taken as it stands. Only if there is no such file, what exporters do to names is
undone: Windows' separators, percent-encoding, URLs and upload paths, another case, another Unicode
form, folders too many or too few in front. What is found so must be the only file that fits, and
no other entry may mean it.
"""

from __future__ import annotations

import functools
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from object_detection.coco.listed import CocoImage, some
from outside_data.files import walk
from outside_data.picture_file import BadImageError, suffixes
from outside_data.text import clean
from path_names.spellings import UPLOAD_PREFIX, folded, spellings

_MOST_FILES = 3_000_000  # looked through for lost names
_SHOWN = 3

Parts = tuple[str, ...]


class Correction(NamedTuple):
    """An image found under another name, `name` within the folder; `kinds`: what was undone."""

    path: str
    name: str
    kinds: str


class FoundFiles(NamedTuple):
    """Where the images of a set lie, by source_id; each image is in `paths` or in `problems`.

    paths: of the files.
    problems: why there is none.
    corrections: of those in `paths` whose name in the JSON is not that of the file.
    """

    paths: Mapping[str, str]
    problems: Mapping[str, BadImageError]
    corrections: Mapping[str, Correction]

    def of(self, images: Sequence[CocoImage]) -> FoundFiles:
        """Returns what concerns some images."""
        ids = [image.source_id for image in images]
        return FoundFiles(*({i: part[i] for i in ids if i in part} for part in self))


def find_image_files(
    images: Sequence[CocoImage],
    image_dir: str | os.PathLike[str],
    *,
    follow_links: bool = False,
) -> FoundFiles:
    """Finds the files of images in the folder that their names are relative to.

    Nothing outside of it is given, except where links inside lead and `follow_links` is set.
    """
    folder = _ImageFolder(image_dir, follow_links=follow_links)
    paths: dict[str, str] = {}
    problems: dict[str, BadImageError] = {}
    missing: list[CocoImage] = []
    for image in images:
        try:
            path = folder.literal(image.file_name)
        except BadImageError as error:
            problems[image.source_id] = error
            continue
        if path is None:
            missing.append(image)
        else:
            paths[image.source_id] = path
    corrections = _correct(missing, folder, set(paths.values()), problems) if missing else {}
    paths |= {source_id: found.path for source_id, found in corrections.items()}
    return FoundFiles(paths, problems, corrections)


def _correct(
    missing: Sequence[CocoImage],
    folder: _ImageFolder,
    taken: set[str],
    problems: dict[str, BadImageError],
) -> dict[str, Correction]:
    """Returns the corrections of names without a file; adds the others to the problems."""
    found: dict[str, Correction] = {}
    names: dict[str, set[str]] = defaultdict(set)
    for image in missing:
        try:
            correction = folder.corrected(image.file_name)
            if correction.path in taken:
                raise folder.missing(image.file_name, f"{correction.path} is another entry's")
            found[image.source_id] = correction
            names[correction.path].add(image.file_name)
        except BadImageError as error:
            problems[image.source_id] = error
    for image in missing:
        path = found[image.source_id].path if image.source_id in found else ""
        if len(names[path]) > 1:
            del found[image.source_id]
            what = f"several entries could mean {path}: {some(sorted(names[path]), _SHOWN)}"
            problems[image.source_id] = folder.missing(image.file_name, what)
    return found


def base_name(name: str) -> str:
    """Returns the name of an image file without folders, the same for all spellings."""
    *_, (variant, _) = spellings(name)
    return folded((_parts(variant) or ("",))[-1])


class _ImageFolder:
    """A folder in which names are looked up."""

    def __init__(self, image_dir: str | os.PathLike[str], *, follow_links: bool):
        self._root = os.path.abspath(image_dir)
        self._real_root = os.path.realpath(image_dir)
        self._follows_links = follow_links
        self._real_folder = functools.lru_cache(maxsize=4096)(os.path.realpath)

    def literal(self, name: str) -> str | None:
        """Returns the path of a file of exactly that name, None if there is none.

        Raises:
          BadImageError: there is one, but it must not be read.
        """
        path = os.path.normpath(os.path.join(self._root, name))
        try:
            status = os.lstat(path)
        except PermissionError as error:
            raise BadImageError("no permission to read") from error
        except (OSError, ValueError):
            return None
        if not _is_below(path, self._root):
            raise BadImageError(
                "outside of the image folder",
                f"{clean(name)} is not in {self._root}: move or copy it there",
            )
        is_link = stat.S_ISLNK(status.st_mode)
        if not self._follows_links:
            real = (
                os.path.realpath(path)
                if is_link
                else os.path.join(self._real_folder(os.path.dirname(path)), os.path.basename(path))
            )
            if not _is_below(real, self._real_root):
                raise BadImageError(
                    "a link that leads out of the image folder", f"to {real} (--follow_links)"
                )
        if is_link:
            try:
                status = os.stat(path)
            except OSError:
                return None
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("not a regular file", path)
        return path

    def corrected(self, name: str) -> Correction:
        """Returns the only file that a name can mean.

        Raises:
          BadImageError: none or several do; says what was looked for.
        """
        readings = [(_parts(variant), kinds) for variant, kinds in spellings(name)]
        readings = [(parts, kinds) for parts, kinds in readings if parts]
        for parts, kinds in readings[:]:
            if (plain := UPLOAD_PREFIX.sub("", parts[-1])) != parts[-1]:
                readings.append(((*parts[:-1], plain), [*kinds, "prefix of an upload"]))
        found = [
            ({p: parts for p in self._by_name.get(folded(parts[-1]), ())}, kinds)
            for parts, kinds in readings
        ] + [
            (
                {p: (*parts[:-1], p[-1]) for p in self._by_stem.get(folded(parts[-1]), ())},
                [*kinds, "without ending"],
            )
            for parts, kinds in readings
            if os.path.splitext(parts[-1])[1].lower() not in suffixes()
        ]
        for wanted, kinds in found:
            likeness = {p: _likeness(parts, p) for p, parts in wanted.items() if _fits(parts, p)}
            if not likeness:
                continue
            best = max(likeness.values())
            there, *others = [p for p in likeness if likeness[p] == best]
            if others:
                raise self.missing(name, f"several files fit: {_named([there, *others])}")
            path = self.literal(os.path.join(*there))
            if path is not None:
                kinds += _differences(wanted[there], there)
                return Correction(path, "/".join(there), ", ".join(kinds or ["folders in front"]))
        stem = os.path.splitext(folded((_parts(name.replace("\\", "/")) or ("",))[-1]))[0]
        near = self._by_stem.get(stem, ())
        raise self.missing(name, f"there is {_named(near)}" if near else "")

    def missing(self, name: str, more: str) -> BadImageError:
        """Returns the error for a name without a file."""
        looked = f"looked for {clean(os.path.join(self._root, name), most=300)}"
        return BadImageError("no such file", f"{looked}; {more}" if more else looked)

    @functools.cached_property
    def _files(self) -> list[Parts]:
        files: list[Parts] = []
        for folder, _, names in walk(self._root, follow_links=self._follows_links):
            above = _parts(os.path.relpath(folder, self._root).replace(os.sep, "/"))
            files += [(*above, name) for name in names]
            if len(files) > _MOST_FILES:
                break
        return files

    @functools.cached_property
    def _by_name(self) -> Mapping[str, list[Parts]]:
        return _grouped(self._files, folded)

    @functools.cached_property
    def _by_stem(self) -> Mapping[str, list[Parts]]:
        return _grouped(self._files, lambda name: os.path.splitext(folded(name))[0])


def _grouped(files: Iterable[Parts], key: Callable[[str], str]) -> dict[str, list[Parts]]:
    groups: dict[str, list[Parts]] = defaultdict(list)
    for parts in files:
        groups[key(parts[-1])].append(parts)
    return groups


def _parts(name: str) -> Parts:
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _fits(wanted: Parts, there: Parts) -> bool:
    """Whether one path is the end of the other, but for case and Unicode form."""
    count = min(len(wanted), len(there))
    return list(map(folded, wanted[-count:])) == list(map(folded, there[-count:]))


def _likeness(wanted: Parts, there: Parts) -> tuple[int, bool, bool]:
    count = min(len(wanted), len(there))
    return count, len(wanted) == len(there), wanted[-count:] == there[-count:]


def _differences(wanted: Parts, there: Parts) -> list[str]:
    count = min(len(wanted), len(there))
    ours, theirs = "/".join(wanted[-count:]), "/".join(there[-count:])
    normal = [unicodedata.normalize("NFC", text) for text in (ours, theirs)]
    found = ["folders in front"] * (len(wanted) != len(there))
    found += ["Unicode form"] * ([ours, theirs] != normal and ours != theirs)
    return found + ["upper and lower case"] * (normal[0] != normal[1])


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _named(files: Iterable[Parts]) -> str:
    return some(sorted(map("/".join, files)), _SHOWN)
