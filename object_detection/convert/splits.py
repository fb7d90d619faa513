"""Finds the splits of a COCO-format directory, and makes one where there is only one.

A split is an annotation file and the folder its images lie in. COCO itself, folders exported by
labelling tools and hand-made ones all differ in where that folder is, so it is found by looking
for the file names that the annotations mention.
"""

from __future__ import annotations

import filecmp
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from object_detection.coco.annotations import CocoAnnotations, read_images
from object_detection.coco.image_paths import find_image_files
from object_detection.coco.listed import CocoImage, name_of_url
from object_detection.formats.folder import is_made_here, require_folder
from outside_data.files import MOST_JSON_BYTES, open_as_utf8, parse_json, read_json, walk

_ANNOTATION_PATTERNS = (
    "annotations/instances_*.json",
    "instances_*.json",
    "*/_annotations.coco.json",
    "annotations/*.json",
    "*.json",
    "*/*.json",
)
_ANY_JSON = _ANNOTATION_PATTERNS[-3:]
_WITHOUT_BOXES = re.compile(r"^(captions|image_info|panoptic|stuff|deploy)_|-card$")
_KEY_POINTS = "person_keypoints_"  # with boxes: read where there is nothing else
_BEFORE_SPLIT = re.compile(rf"^(instances_|lvis_v\d+_)?({_KEY_POINTS})?")
_FILE_NAME = re.compile(rb'"(file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)*")')
_PROBED_NAMES = 20
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
_OF_IMAGES = ("image", "img", "jpeg", "jpg", "photo", "pict", "pics")


def find_splits(data_dir: str | os.PathLike[str]) -> dict[str, tuple[Path, Path]]:
    """Finds every split of a COCO-format directory.

    Args:
      data_dir: folder with `annotations/instances_<split>.json` (or `instances_<split>.json`,
        `lvis_v1_<split>.json`, `<split>/_annotations.coco.json`) and the images anywhere up to two
        folders deep.

    Returns:
      Split name ("train2017", "val") to (annotation file, image folder), sorted by name.

    Raises:
      FileNotFoundError: no annotation file, or none of a split's images is found; says where it
        looked.
    """
    root = Path(data_dir)
    require_folder(root)
    for with_key_points, pattern in itertools.product((False, True), _ANNOTATION_PATTERNS):
        files = [
            path
            for path in _matching(root, pattern)
            if not _WITHOUT_BOXES.search(path.stem)
            and path.stem.startswith(_KEY_POINTS) == with_key_points
            and (path.parent == root or not is_made_here(path.parent))
        ]
        if pattern in _ANY_JSON:
            files = [path for path in files if not path.name.startswith(".") and _is_meant(path)]
        if files:
            names = [_split_name(path) for path in files]
            if len({*names}) < len(names):
                names = [f"{path.parent.name}_{name}" for path, name in zip(files, names)]
            places = (find_image_dir(path, root) for path in files)
            return dict(zip(names, zip(files, places)))
    found = (path for pattern in _ANY_JSON for path in _matching(root, pattern))
    others = [str(path.relative_to(root)) for path in found if _WITHOUT_BOXES.search(path.stem)]
    raise FileNotFoundError(
        f"{root} has no COCO annotations: expected one of {', '.join(_ANNOTATION_PATTERNS)} in it"
        + (f"; not read, as it has no boxes of objects: {others[0]}" if others else "")
    )


def _matching(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern.replace(".json", ".[jJ][sS][oO][nN]")))


def _is_meant(path: Path) -> bool:
    """Whether a JSON file may be annotations: it names images, or is broken."""
    if _first_file_names(path):
        return True
    content = read_json(path, most=MOST_JSON_BYTES)
    return isinstance(content, dict) and "images" in content


def find_image_dir(annotation_file: str | os.PathLike[str], data_dir: Path) -> Path:
    """Returns the folder in which the images of an annotation file lie.

    Of the folders with at least half as many of the first few file names as any has, the one named
    like the split (`val` for `val2017` will do) wins, as splits may use the same names; then the
    one with most of them, then the one nearest to the data folder, then one called images.

    Raises:
      FileNotFoundError: none has any of them.
      ValueError: the file names no image, or two folders would do equally, and hold other pictures.
    """
    names = _first_file_names(Path(annotation_file)) or [
        image.file_name for image in read_images(annotation_file)[:_PROBED_NAMES]
    ]
    split = _split_name(Path(annotation_file)).casefold()

    def likeness(folder: Path) -> int:
        parts = [part.casefold() for part in folder.relative_to(data_dir).parts]
        return 2 * (split in parts) or any(
            part.startswith(split) or split.startswith(part) or part in _words(split)
            for part in parts
        )

    def num_literal(folder: Path) -> int:
        return sum(os.path.isfile(folder / name) for name in names)

    def num_corrected(folder: Path) -> int:
        images = [CocoImage(str(i), i, name, None, None) for i, name in enumerate(names)]
        return len(find_image_files(images, folder, follow_links=True).paths)

    folders = list(_folders(data_dir, depth=2))
    for num_found in (num_literal, num_corrected):
        found = [(num_found(folder), folder) for folder in folders]
        most = max(count for count, _ in found)
        if most:
            ranks = {
                folder: (likeness(folder), count, -len(folder.parts), _is_of_images(folder))
                for count, folder in found
                if 2 * count >= most
            }
            best = [folder for folder, rank in ranks.items() if rank == max(ranks.values())]
            _refuse_other_pictures(annotation_file, best, names)
            return best[0]
    archives = [p for p in sorted(data_dir.iterdir()) if p.suffix.lower() in _ARCHIVES]
    advice = f"unpack {archives[0]}" if archives else "put them there, or correct the names"
    raise FileNotFoundError(
        f"{annotation_file}: none of its first {len(names)} images ({names[0]}, ...) exists in "
        f"{data_dir} or in the {len(folders) - 1} folders below it: {advice}"
    )


def _is_of_images(folder: Path) -> bool:
    return folder.name.casefold().startswith(_OF_IMAGES)


def _refuse_other_pictures(
    annotation_file: str | os.PathLike[str], folders: Sequence[Path], names: Sequence[str]
) -> None:
    """Raises ValueError if files of the same name in several folders are not the same."""
    for name in names:
        paths = [folder / name for folder in folders if (folder / name).is_file()]
        for first, other in zip(paths, paths[1:]):
            if not filecmp.cmp(first, other, shallow=False):
                raise ValueError(
                    f"{annotation_file}: {name!r} may be {first} or {other}: write the folder into "
                    "the names of the images, or move one of the folders elsewhere"
                )


def make_split(
    annotations: CocoAnnotations, fraction: float, *, seed: int = 0
) -> tuple[CocoAnnotations, CocoAnnotations]:
    """Cuts a held-out part from a data set that has only one split.

    Which images are held out depends on the seed and the image ids alone, not on their order.
    Each class that occurs in two images or more is represented on both sides, rare ones first,
    as far as the sizes allow.

    Args:
      annotations: the whole set, two images at least.
      fraction: of the images to hold out, between 0 and 1.
      seed: another seed cuts differently.

    Returns:
      (the part to train on, the part held out).
    """
    num_images = len(annotations.images)
    if not 0 < fraction < 1 or num_images < 2:
        raise ValueError(
            f"{annotations.path}: cannot hold out a fraction {fraction} of {num_images} images: "
            "expected a fraction between 0 and 1 and at least 2 images; add images, or a split of "
            "its own for the evaluation, named val"
        )
    size = min(max(round(fraction * num_images), 1), num_images - 1)
    order = sorted(
        (image.source_id for image in annotations.images),
        key=lambda source_id: hashlib.sha256(f"{seed}:{source_id}".encode()).digest(),
    )
    classes = {
        source_id: {entry["category_id"] for entry in annotations.objects.get(source_id, ())}
        for source_id in order
    }
    remaining: dict[int, int] = {}
    for present in classes.values():
        for category in present:
            remaining[category] = remaining.get(category, 0) + 1

    held_out: dict[str, None] = {}
    represented: set[int] = set()

    def can_leave(source_id: str) -> bool:
        return all(remaining[category] > 1 for category in classes[source_id])

    def hold_out(source_id: str) -> None:
        held_out[source_id] = None
        represented.update(classes[source_id])
        for category in classes[source_id]:
            remaining[category] -= 1

    for category in sorted(remaining, key=lambda key: (remaining[key], key)):
        if category in represented or len(held_out) == size:
            continue
        chosen = (s for s in order if category in classes[s] and s not in held_out and can_leave(s))
        for source_id in list(chosen)[:1]:
            hold_out(source_id)
    # First images whose classes all remain in training, then, to reach the size, any.
    for willing in (can_leave, lambda _: True):
        for source_id in order:
            if len(held_out) < size and source_id not in held_out and willing(source_id):
                hold_out(source_id)
    return annotations.subset(s for s in order if s not in held_out), annotations.subset(held_out)


def split_distance(name: str, wanted: str) -> tuple[int, int]:
    """Sorts names of splits by how surely they mean `wanted`.

    First those that start so (`Train2017`), then those with a word that does (`cells_train`), of
    either the shortest first (`train` before `train_old`); then all others alike, (2, 0).
    """
    name = name.casefold()
    is_first, has_word = name.startswith(wanted), any(w.startswith(wanted) for w in _words(name))
    return (0 if is_first else 1, len(name)) if is_first or has_word else (2, 0)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name)


def _split_name(path: Path) -> str:
    if path.name == "_annotations.coco.json":
        return path.parent.name
    return _BEFORE_SPLIT.sub("", path.stem)


def _first_file_names(path: Path) -> list[str]:
    """Returns the first file names of an annotation file without parsing all of it."""
    names: list[str] = []
    urls: list[str] = []  # LVIS has no names
    tail = b""
    with open_as_utf8(path, most=MOST_JSON_BYTES) as file:
        while max(len(names), len(urls)) < _PROBED_NAMES and (chunk := file.read(1 << 20)):
            text = tail + chunk
            matches = list(_FILE_NAME.finditer(text))
            for match in matches:
                found = urls if match[1] == b"coco_url" else names
                found.append(parse_json(match[2], path))
            # A name cut in two by the end of the chunk is found again with the next one.
            tail = text[matches[-1].end() if matches else 0 :][-4096:]
    return (names or list(map(name_of_url, urls)))[:_PROBED_NAMES]


def _folders(root: Path, *, depth: int) -> Iterator[Path]:
    for folder, below, _ in walk(root, follow_links=True):
        path = Path(folder)
        yield path
        is_deep = len(path.relative_to(root).parts) == depth
        below[:] = [] if is_deep else sorted(n for n in below if not n.startswith("."))
