"""From a data folder in any known format to the records that training and evaluation read.

What is made lies in one folder and is used again as long as its source is the same, annotations
and pictures alike. Several ranks may ask at once: the first makes it, the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from object_detection.check.anchor_fit import AnchorLayout
from object_detection.check.findings import Report
from object_detection.check.run import HOPELESS, check_splits
from object_detection.check.split_table import SplitTable
from object_detection.coco.annotations import read_annotations, write_annotations
from object_detection.convert import made_of
from object_detection.convert.convert import convert
from object_detection.convert.report import (
    ROWS_BY_DEFAULT,
    describe_conversion,
    progress_printer,
)
from object_detection.convert.splits import find_splits, make_split, split_distance
from object_detection.formats.folder import is_made_here
from object_detection.formats.importers import import_folder
from object_detection.records.card import card_path, find_card
from outside_data.files import MOST_JSON_BYTES, read_text
from outside_data.picture_file import DEFAULT_RULES, PictureRules
from outside_data.whole_file import write_whole

FOR_SCORES, FOR_CHOICES = ("test", "val"), ("val", "test")
"""Splits to evaluate on, by preference; a training chooses by its scores: test stays unseen."""
HELD_OUT_SHARE = 0.2
_NUM_SHARDS = 8
_MOST_FOLDERS_ABOVE = 3
_SOME_ANNOTATIONS = re.compile(r'"annotations"\s*:(?!\s*(null|\[\s*\]))')
_STAMP = "made_of.json"
_OF_EVALUATION = "evaluation"  # beside the records of a training, which stay as they are


class Prepared(NamedTuple):
    """Where the records are that were made of a data folder.

    Attributes:
      folder: holds `train-*` (for a training) and `eval-*` records with their cards.
      eval_json: the annotations of the held-out images.
      eval_images: their folder.
    """

    folder: Path
    eval_json: Path
    eval_images: Path

    @property
    def train_pattern(self) -> str:
        """Pattern of the training records."""
        return f"{self.folder}/train-*.tfrecord"

    @property
    def eval_pattern(self) -> str:
        """Pattern of the evaluation records."""
        return f"{self.folder}/eval-*.tfrecord"


def coco_splits(
    data_dir: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    *,
    format_name: str = "auto",
    voc_corners: str = "auto",
    report: Callable[[str], None] = print,
) -> dict[str, tuple[Path, Path]]:
    """Returns the splits of a data folder in any format: name to (COCO file, image folder).

    COCO files of another format are written to `work_dir`, and `report` takes lines on what was
    found. For format_name and voc_corners see `importers.import_folder`.

    Raises:
      FileNotFoundError, ValueError: no such folder or format, files that cannot be read.
    """
    imported = import_folder(data_dir, work_dir, format_name=format_name, voc_corners=voc_corners)
    if not imported.splits:
        return _coco_splits_below(Path(data_dir))
    report(f"annotations: {imported.format}, splits {', '.join(sorted(imported.splits))}")
    for what, count in imported.counts.items():
        report(f"  {count:,} x {what}")
    return imported.splits


def _coco_splits_below(root: Path) -> dict[str, tuple[Path, Path]]:
    """Finds COCO's splits in a folder, or in the one folder in it that has any (an archive's)."""
    try:
        return find_splits(root)
    except FileNotFoundError:
        for depth in range(1, _MOST_FOLDERS_ABOVE + 1):
            found = []
            for folder in sorted(root.glob("/".join("*" * depth))):
                with contextlib.suppress(FileNotFoundError):
                    is_data = folder.is_dir() and not is_made_here(folder)
                    found += [find_splits(folder)] if is_data else []
            if found:
                break
        if len(found) != 1:
            raise
        return found[0]


def training_split(
    splits: Mapping[str, tuple[Path, Path]], name: str | None = None
) -> tuple[Path, Path]:
    """Returns the split of that name, by default that for training; ValueError: no such.

    That is train*, else the first that is not for scores either.
    """

    def order(name: str) -> tuple[tuple[int, int], list[int]]:
        for_scores = [-split_distance(name, wanted)[0] for wanted in FOR_SCORES]
        return split_distance(name, "train"), for_scores

    return _named(splits, name or min(splits, key=order))


def _held_out_split(
    splits: Mapping[str, tuple[Path, Path]],
    train: tuple[Path, Path],
    name: str | None,
    names: Sequence[str],
    report: Callable[[str], None],
) -> tuple[Path, Path] | None:
    """Returns the split of that name, by default the first of `names`*, else any; None: none.

    By default a split without annotations, as of a competition, is passed over, and so is another
    one for training (`train_old`).
    """
    if name:
        return _named(splits, name)

    def likeness(name: str) -> list[tuple[int, int]]:
        return [split_distance(name, wanted) for wanted in (*names, "train")]

    for other in sorted(splits, key=likeness):
        *for_scores, (of_training, _) = likeness(other)
        is_for_training = of_training < 2 and all(place == 2 for place, _ in for_scores)
        if splits[other] == train or is_for_training:
            continue
        # Not parsed: every rank of every start asks, and annotations may have hundreds of MB.
        if _SOME_ANNOTATIONS.search(read_text(splits[other][0], most=MOST_JSON_BYTES)):
            return splits[other]
        report(f"{other} has no annotations: not evaluated")
    return None


def _named(splits: Mapping[str, tuple[Path, Path]], name: str) -> tuple[Path, Path]:
    if name not in splits:
        raise ValueError(f"no split {name!r}; there are: {', '.join(splits)}")
    return splits[name]


def prepare_records(
    data_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    with_masks: bool = False,
    only_eval: bool = False,
    train_split: str | None = None,
    eval_split: str | None = None,
    eval_names: Sequence[str] = FOR_SCORES,
    seed: int = 1,
    on_orphan: str = "stop",
    pictures: PictureRules = DEFAULT_RULES,
    layout: AnchorLayout | None = None,
    max_instances: int = ROWS_BY_DEFAULT,
    max_detections: int = 100,
    on_data_error: str = "stop",
    num_workers: int | None = None,
    report: Callable[[str], None] = print,
) -> Prepared:
    """Checks and converts the training and the held-out images of a folder, unless that is done.

    Where no split is for an evaluation, a fifth of the images is held out.

    Args:
      data_dir: in any format that is known.
      output_dir: gets `train-*`, `eval-*`, `instances_eval.json`.
      with_masks: whether records hold masks.
      only_eval: no `train-*`: all images of the held-out split, or of the only one. Where a
        training's records are, in a folder below them.
      train_split, eval_split: names; by default train*, and the first of `eval_names`* that has
        annotations.
      eval_names: `FOR_SCORES` or `FOR_CHOICES`.
      seed: of that cut.
      on_orphan: see `read_annotations`.
      layout: anchors to compare the boxes with, if any.
      max_instances, max_detections: see `check_splits`.
      on_data_error: "report" goes on where the check finds hopeless boxes; "stop" raises.
      num_workers: see `convert`.
      report: takes the lines of the conversions' reports.

    Raises:
      FileNotFoundError, ValueError, OSError: see `coco_splits` and `convert`.
    """
    folder = Path(output_dir)
    if only_eval and card_path(folder / "train").is_file():
        folder /= _OF_EVALUATION
    with _alone(folder) as output:
        splits = coco_splits(data_dir, output, report=report)
        train = training_split(splits, train_split)
        held_out = _held_out_split(splits, train, eval_split, eval_names, report)
        chosen = {} if only_eval else {"train": train}
        if only_eval or held_out:
            chosen["eval"] = held_out or train
        folders = {"eval": train[1], **{name: images for name, (_, images) in chosen.items()}}
        prepared = Prepared(output, output / "instances_eval.json", folders["eval"])
        settings = {
            "splits": {name: [*map(os.path.abspath, split)] for name, split in chosen.items()},
            **{"with_masks": with_masks, "seed": seed, "on_orphan": on_orphan},
            **pictures._asdict(),
        }
        if _is_made(prepared, folders, settings, report):
            report(f"records of {data_dir} are in {output}")
            return prepared
        stamp = output / _STAMP
        stamp.unlink(missing_ok=True)
        found, tables = check_splits(
            chosen,
            layout=layout,
            max_instances=max_instances,
            max_detections=max_detections,
            follow_links=pictures.follow_links,
            progress=lambda name: progress_printer(f"checking {name}"),
        )
        # Before they are read, so that what changes meanwhile is noticed next time.
        source = made_of.state(settings, _files_of(chosen, tables))
        del tables  # gigabytes for a large set, which is read again below
        write_whole(output / "check.json", json.dumps(found.to_json(), indent=1) + "\n")
        report(found.describe())
        if on_data_error == "stop":
            _refuse_hopeless(found, output / "check.json")
        names = {split: name for name, split in splits.items()}
        of_splits = ", ".join(f"{name} of split {names[split]}" for name, split in chosen.items())
        others = [name for split, name in names.items() if split not in chosen.values()]
        unused = f"; not used: {', '.join(others)}" if others else ""
        report(f"records: {data_dir} -> {output} ({of_splits}{unused})")
        sets = {n: read_annotations(path, on_orphan=on_orphan) for n, (path, _) in chosen.items()}
        if only_eval and not held_out:
            report("no split for an evaluation: all images are evaluated, those trained on as well")
        elif "eval" not in sets:
            report(f"no split for an evaluation: {HELD_OUT_SHARE:.0%} of the images are held out")
            sets["train"], sets["eval"] = make_split(sets["train"], HELD_OUT_SHARE, seed=seed)
        write_annotations(sets["eval"], prepared.eval_json)
        for name, listed in sets.items():
            result = convert(
                listed,
                folders[name],
                output / name,
                num_shards=_NUM_SHARDS,
                num_workers=num_workers,
                mask_format="bitpacked" if with_masks else None,
                pictures=pictures,
                progress=progress_printer(f"converting {name}"),
            )
            report(describe_conversion(result, rows=max_instances))
        made_of.save(source, stamp)
        return prepared


def _is_made(
    prepared: Prepared,
    names: Iterable[str],
    settings: Mapping[str, object],
    report: Callable[[str], None],
) -> bool:
    """Whether the records are there and what they were made of is the same; reports what is not."""
    known = made_of.load(prepared.folder / _STAMP)
    if known is None:
        return False
    changes = made_of.differences(known, made_of.state(settings, known.files))
    if not (prepared.eval_json.is_file() and all(_is_whole(prepared.folder / n) for n in names)):
        changes.append("they are not as they were written")
    if changes:
        report(f"records in {prepared.folder} are made anew: {'; '.join(changes)}")
    return not changes


def _files_of(
    chosen: Mapping[str, tuple[Path, Path]], tables: Mapping[str, SplitTable]
) -> Iterator[str | Path]:
    """Yields the files that records depend on: also those that are looked for and not there."""
    for name, (annotation_file, image_dir) in chosen.items():
        yield annotation_file
        if name in tables:
            images = tables[name].annotations.images
            for image, fact in zip(images, tables[name].facts):
                yield fact.path or os.path.join(image_dir, image.file_name)


def _is_whole(prefix: Path) -> bool:
    """Whether all records of a set are there, and nobody has changed them."""
    try:
        return find_card(f"{prefix}-*") is not None
    except (FileNotFoundError, ValueError):
        return False


def _refuse_hopeless(found: Report, path: Path) -> None:
    """Raises ValueError where training on the data is lost."""
    hopeless = [item for item in found.errors if item.code in HOPELESS]
    if hopeless:
        first = hopeless[0]
        example = f", for example {first.examples[0]}" if first.examples else ""
        raise ValueError(
            f"{first.split}: {first.what}{example}. {first.remedy}. All findings are in {path}; "
            "--on_data_error=report goes on all the same"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Makes a folder, and waits until no other process prepares in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".preparing", "w") as lock:
        # Some network file systems have no locks; ranks at once are unguarded there.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
