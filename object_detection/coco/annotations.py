"""The one reader of COCO instances files, for conversion, self-check, evaluation and drawing alike.

What can be told is corrected, what cannot is dropped, what makes the rest doubtful is refused; each
correction and loss is a `Finding` (docs/data.md has the table). So what is given here is what is
trained on and what is scored.

Image ids are compared as text, so `7` in one place and `"7"` in another meet, and a data set may
use names as ids; that text is the record's `source_id`. Class ids are contiguous, in order of
category id, so that two splits listing the same categories in another order agree.
Boxes here are still COCO's `[x, y, width, height]` in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from object_detection.coco import values
from object_detection.coco.findings import MASK_PREFIX, Counts, Finding, describe_counts
from object_detection.coco.listed import (
    CocoCategory,
    CocoImage,
    entries_of,
    misspelt,
    no_list,
    read_categories,
    read_listed_images,
)
from object_detection.coco.objects import (
    CocoObject,
    ObjectReader,
    StatedBox,
    refuse_nothing_left,
    refuse_other_frames,
)
from outside_data.files import MOST_JSON_BYTES, BadFileError, parse_json, read_file, regular_file
from outside_data.whole_file import write_whole


@dataclasses.dataclass(frozen=True)
class CocoAnnotations:
    """A checked annotation file.

    Attributes:
      path: where it was read.
      sha256: hash of the file.
      images: in the file's order.
      categories: in order of class_id.
      objects: source_id to the annotations of that image; images without any are absent.
      findings: what was corrected and dropped.
      is_labelled: False for a mere list of images.
    """

    path: str
    sha256: str
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    objects: Mapping[str, Sequence[CocoObject]]
    findings: Sequence[Finding] = ()
    is_labelled: bool = True

    @property
    def num_objects(self) -> int:
        """Number of annotations, over all images."""
        return sum(map(len, self.objects.values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names, indexed by class_id."""
        return tuple(category.name for category in self.categories)

    @property
    def category_names(self) -> dict[int, str]:
        """category_id to name."""
        return {category.category_id: category.name for category in self.categories}

    def counts(self, *, with_masks: bool) -> Counts:
        """Returns the findings by kind; those about masks only where masks matter."""
        return Counts(
            finding
            for finding in self.findings
            if with_masks or not finding.what.startswith(MASK_PREFIX)
        )

    def describe_findings(self, *, with_masks: bool) -> list[str]:
        """Returns lines on what was dropped and corrected, [] if nothing was."""
        counts = self.counts(with_masks=with_masks)
        lines: list[str] = []
        for title in ("dropped", "corrected"):
            found = getattr(counts, title)
            lines += describe_counts(title, found, counts.examples) if found else ()
        return [f"{self.path}: {line}" if not line[0].isspace() else line for line in lines]

    def subset(self, source_ids: Iterable[str]) -> CocoAnnotations:
        """Returns the same data set with only the given images, in the original order."""
        kept = set(source_ids)
        return dataclasses.replace(
            self,
            images=tuple(image for image in self.images if image.source_id in kept),
            objects={key: value for key, value in self.objects.items() if key in kept},
            findings=[f for f in self.findings if not f.source_id or f.source_id in kept],
        )

    def to_coco(self) -> dict[str, Any]:
        """Returns a COCO instances dict that pycocotools scores without surprises.

        Annotation ids are renumbered from 1: pycocotools takes a ground truth of id 0 for
        unmatched, and keeps only one of two equal ids.
        """
        entries = [
            {key: value for key, value in entry.items() if value is not None}
            for objects in self.objects.values()
            for entry in objects
        ]
        return {
            "images": [
                {
                    "id": image.image_id,
                    "file_name": image.file_name,
                    **({"height": image.height, "width": image.width} if image.height else {}),
                }
                for image in self.images
            ],
            "categories": [
                {"id": c.category_id, "name": c.name, "supercategory": c.supercategory}
                for c in self.categories
            ],
            "annotations": [{**entry, "id": i} for i, entry in enumerate(entries, start=1)],
        }


def read_annotations(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    on_orphan: str = "stop",
    require_objects: bool = True,
) -> CocoAnnotations:
    """Reads and checks a COCO instances file.

    Args:
      source: the JSON file, or what it holds (left as it is).
      on_orphan: what to do with annotations whose image or category is not in the file: "stop"
        raises, "skip" leaves them out and counts them.
      require_objects: whether the file must have annotations; image lists such as
        image_info_test-dev2017.json have none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no COCO instances file, or not one of its objects is usable; says
        what is wrong and where.
    """
    annotations, _ = read_stated(
        source, on_orphan=on_orphan, require_objects=require_objects, refuses=True
    )
    return annotations


def read_stated(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    on_orphan: str = "skip",
    require_objects: bool = True,
    refuses: bool = False,
) -> tuple[CocoAnnotations, list[StatedBox]]:
    """Reads as `read_annotations`, and returns the boxes as the file has them too.

    Orphans and boxes of another form are refused only where `refuses` says so: what is wrong in a
    file can be looked for.
    """
    if on_orphan not in ("stop", "skip"):
        raise ValueError(f"on_orphan: expected 'stop' or 'skip', got {on_orphan!r}")
    path, content, digest = _load(source)
    findings: list[Finding] = []
    images = read_listed_images(content, path, findings)
    categories = read_categories(content, path, findings)
    entries = content.get("annotations")
    if entries is None and require_objects:
        found = "'annotations' is null" if "annotations" in content else "no 'annotations'"
        raise BadFileError(f"{path}: {found}: expected a COCO instances file{misspelt(content)}")
    objects: dict[str, list[CocoObject]] = {}
    stated: list[StatedBox] = []
    if entries is not None:
        if not isinstance(entries, list):
            raise no_list(content, "annotations", path)
        reader = ObjectReader(images, categories, findings)
        objects = reader.read(entries)
        if refuses:
            reader.refuse_orphans(path, len(entries), stop=on_orphan == "stop")
            refuse_other_frames(path, reader.stated)
            refuse_nothing_left(path, entries, objects, findings)
        stated = reader.stated
    return CocoAnnotations(
        path, digest, images, categories, objects, findings, is_labelled=entries is not None
    ), stated


def read_scored(
    source: str | os.PathLike[str] | Mapping[str, Any] | CocoAnnotations,
) -> CocoAnnotations:
    """Reads what detections are compared with: as `read_annotations`, orphans left out.

    A mere list of images will do, and what was read already is given back.
    """
    if isinstance(source, CocoAnnotations):
        return source
    return read_annotations(source, on_orphan="skip", require_objects=False)


def read_captions(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Reads a COCO captions file: source_id to the image's captions."""
    _, content, _ = _load(path)
    captions: dict[str, list[str]] = {}
    for entry in entries_of(content, "annotations", path):
        if "caption" not in entry:
            raise BadFileError(f"{path}: annotation without 'caption': expected a captions file")
        source_id = values.id_text(entry.get("image_id"))
        captions.setdefault(source_id, []).append(str(entry["caption"]))
    return captions


def read_images(path: str | os.PathLike[str]) -> tuple[CocoImage, ...]:
    """Reads only the image list of any COCO file (instances, captions, image_info)."""
    _, content, _ = _load(path)
    return read_listed_images(content, path, [])


def write_annotations(annotations: CocoAnnotations, path: str | os.PathLike[str]) -> None:
    """Writes annotations as a COCO instances file, aside and then renamed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(annotations.to_coco()))


def _load(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[str, Mapping[str, Any], str]:
    """Returns a name for messages, the content, and the file's hash."""
    if isinstance(source, Mapping):
        return "the annotations given", source, ""
    path = Path(source)
    if regular_file(path) is None:
        why = "it is a folder" if path.is_dir() else f"looked from {os.getcwd()}"
        raise FileNotFoundError(f"no annotation file {path} ({why})")
    data = read_file(path, most=MOST_JSON_BYTES)
    content = parse_json(data, path)
    if isinstance(content, dict):
        return str(path), content, hashlib.sha256(data).hexdigest()
    raise BadFileError(
        f"{path}: expected an object with images, annotations and categories, got a "
        f"{type(content).__name__}" + (" (of detections?)" if content else "")
    )
