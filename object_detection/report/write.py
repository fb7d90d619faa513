"""Writes the report of an evaluation: `report.html`, and the folder `report/` with PNGs and CSVs.

`evaluation.json` beside it holds what the report needs beyond the detections and the metrics, so
that `report.py` can make the report again, with other settings.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from object_detection.coco.annotations import CocoAnnotations, read_scored
from object_detection.coco.listed import some
from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.metrics.detection_rows import read_detections_json
from object_detection.metrics.scorer import DEFAULT_MAX_DETECTIONS
from object_detection.metrics.set_scores import MASK_PREFIX, SetScores
from object_detection.records.card import DataCard
from object_detection.report import history, page, pictures, sections
from object_detection.report.curves import curves_of
from object_detection.report.matches import Matches, match
from outside_data.files import expecting, read_json
from outside_data.whole_file import write_whole

PAGE, FILES, ABOUT = "report.html", "report", "evaluation.json"

# Of a data card, what the page shows.
_CARD_FIELDS = (
    *("split", "num_images", "num_instances", "num_crowd", "num_images_without_boxes"),
    *("max_boxes_per_image", "min_height", "max_height", "min_width", "max_width"),
    *("mask_format", "annotations_file", "dropped", "corrected", "fingerprint"),
)

# Of what `about_evaluation` says, that which a report cannot do without.
_ABOUT_TYPES = {
    **{"model": str, "annotations": str, "records": str, "epoch": int},
    **{"image_ids": (list, type(None)), "class_scores": dict, "settings": dict, "cards": dict},
}


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What a report is to show.

    score: least score of the detections that are counted and drawn; 0: where F1 is largest.
    iou: least overlap of a detection with the object it found.
    num_images: most images drawn.
    images: folder of the images, where the records are not at hand.
    """

    score: float = 0.0
    iou: float = 0.5
    num_images: int = 16
    images: str = ""

    def __post_init__(self):
        if not 0 <= self.score < 1 or not 0.1 < self.iou <= 1 or self.num_images < 0:
            raise ValueError(
                "a report needs a score from 0 to below 1, an IoU above 0.1 up to 1 and a number "
                f"of images, got {self.score}, {self.iou}, {self.num_images}"
            )


def about_evaluation(
    scores: SetScores,
    *,
    model: str,
    epoch: int,
    settings: Mapping[str, Any],
    train_card: DataCard | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Returns what a report must know beyond detections and metrics, for JSON.

    Args:
      scores: has just scored the detections.
      model: name of the model.
      epoch: of the weights, 0 where unknown.
      settings: the configuration, as nested dictionaries.
      train_card: of the training records, where they are known.
      seconds: that the detector took for all images; 0: not known.
    """
    cards = {"training": train_card, "evaluation": scores.card}
    return {
        "model": model,
        "epoch": epoch,
        "seconds": round(seconds, 1),
        "annotations": scores.annotations,
        "records": scores.records,
        "image_ids": scores.scored_image_ids,
        "class_scores": scores.class_scores(),
        "max_detections": scores.max_detections,
        "settings": settings,
        "cards": {
            name: {field: getattr(card, field) for field in _CARD_FIELDS}
            for name, card in cards.items()
            if card
        },
    }


def write_report(
    folder: Path,
    about: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    *,
    options: ReportOptions,
    truth: CocoAnnotations | None = None,
) -> Path:
    """Writes the report of an evaluation into its folder.

    Args:
      folder: of the evaluation.
      about: as of `about_evaluation`.
      detections: COCO's result entries.
      metrics: of the detections.
      options: what to show.
      truth: the annotations, where they are read already.

    Returns:
      The path of the page.
    """
    began = time.monotonic()
    truth = read_scored(truth or about["annotations"])
    matches = match(truth, detections, iou=options.iou, image_ids=about["image_ids"])
    scored = set.intersection(*map(set, about["class_scores"].values()))
    if not scored.issuperset(matches.names):
        raise ValueError(
            f"{about['annotations']} has classes that this evaluation did not score: "
            f"{some([name for name in matches.names if name not in scored])}. Give the annotations "
            f"it was made with; without its {ABOUT} it is scored once more"
        )
    files = folder / FILES
    if files.is_dir():  # of an earlier report
        shutil.rmtree(files)
    files.mkdir(parents=True)
    write_whole(folder / ABOUT, json.dumps(about, indent=1))
    whole, class_curves = curves_of(matches)
    # Where nothing is right, F1 is largest for no detection at all: then all are shown.
    least = options.score or (whole.best.score if whole.best.f1 > 0 else 0.0)
    run = history.find_run([folder, *itertools.islice(folder.resolve().parents, 3)])
    records = history.read_records(run) if run else {}
    has_objects = whole.num_objects > 0
    bad = pictures.worst_images(matches, least, len(matches.images))
    sections.write_csv(
        files / "images.csv",
        ["image", "right", "wrong", "missed"],
        ([matches.images[r.image].image_id, r.right, r.wrong, r.missed] for r in bad),
    )
    drawn = _draw(bad, matches, about, detections, least=least, options=options)
    for number, picture in enumerate(drawn, start=1):
        (files / f"worst-{number:02d}.jpg").write_bytes(picture.side_by_side())
    place = {"least_score": least, "files": files}
    has_masks = MASK_PREFIX in about["class_scores"]
    current = {"epoch": about["epoch"], **metrics}
    most = about.get("max_detections", DEFAULT_MAX_DETECTIONS[-1])
    content = [
        ("scores", "Scores", _tiles(metrics, matches, whole.best, has_masks=has_masks)
         + sections.scores(
             metrics, has_masks=has_masks, files=files, max_detections=most)),
        ("training", "Training", sections.course(records, current, files)),
        ("classes", "Classes",
         sections.classes(matches, class_curves, about["class_scores"], **place)),
        ("curves", "Curves",
         has_objects and sections.curves(whole, class_curves, iou=options.iou, files=files)),
        ("confusion", "Confusion", sections.confusion(matches, **place)),
        ("errors", "Errors", has_objects and sections.errors(matches, **place)),
        ("images", "Worst images", sections.worst(drawn, num_bad=len(bad), least_score=least)),
        ("about", "About",
         _about(about, run, num_images=len(matches.images), steps=records.get("step", []))),
    ]  # fmt: skip
    title = f"{about['model']} on {Path(about['annotations']).name}"
    subtitle = f"epoch {about['epoch']}, " if about["epoch"] else ""
    subtitle += f"{len(matches.images)} images, {time.strftime('%Y-%m-%d %H:%M')}"
    foot = f"made in {time.monotonic() - began:.1f} s; charts and tables are in {FILES}/"
    target = folder / PAGE
    write_whole(target, page.page(title, subtitle, content, foot))
    return target


def _draw(
    bad: Sequence[pictures.ImageResult],
    matches: Matches,
    about: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    least: float,
    options: ReportOptions,
) -> list[pictures.Picture]:
    chosen = bad[: options.num_images]
    wanted = [matches.images[result.image] for result in chosen]
    try:
        if options.images:
            pixels = pictures.pixels_of_files(Path(options.images), wanted)
        else:
            pixels = pictures.pixels_of_records(about["records"], wanted)
    except FileNotFoundError:  # an evaluation may be looked at where its records are not
        return []
    return list(
        pictures.draw_results(chosen, matches, detections, least_score=least, pixels=pixels)
    )


def _tiles(metrics: Mapping[str, float], matches: Matches, best: Any, *, has_masks: bool) -> str:
    names = ["AP", "AP50", *([f"{MASK_PREFIX}AP", f"{MASK_PREFIX}AP50"] if has_masks else [])]
    shown = [(name.replace("_", " "), page.percent(metrics[name])) for name in names]
    shown += [("best F1", page.percent(best.f1)), ("at least score", page.plain(best.score))]
    shown += [("images", f"{len(matches.images):,}")]
    return page.tiles([*shown, ("objects", f"{int((~matches.is_crowd).sum()):,}")])


def _about(
    about: Mapping[str, Any], run: Path | None, *, num_images: int, steps: history.Records
) -> str:
    parts = [("Settings", about["settings"])]
    parts += [(f"Data card of the {name} records", card) for name, card in about["cards"].items()]
    if run and (run / "environment.json").is_file():
        parts.append(("Machine of the training", read_json(run / "environment.json")))
    facts = [["annotations", about["annotations"]], ["records", about["records"]]]
    facts += [["run", str(run)]] if run else []
    if about.get("seconds"):
        facts.append(["speed of the evaluation", f"{num_images / about['seconds']:.1f} images/s"])
    if speed := history.median_speed(steps):
        facts.append(["speed of the training", f"{speed:.1f} images/s"])
    text = page.table(["", ""], [fact for fact in facts if fact[1]], sort=False)
    for name, values in parts:
        if values:
            text += page.folded(name, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return page.cards([text], "wide")


def read_evaluation(
    folder: Path, *, annotations: str = "", records: str = ""
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, float]]:
    """Returns what `about_evaluation` stored, the detections, and the metrics of an evaluation.

    One without the first is scored once more, which needs `annotations`.

    Args:
      folder: of the evaluation.
      annotations, records: in place of those that it names.

    Raises:
      FileNotFoundError: there is no evaluation, or its annotations are not where they were.
      BadFileError: its files hold something else.
    """
    for name in ("detections.json", "metrics.json"):
        if not (folder / name).is_file():
            below = folder / "evaluation"  # of a run's folder
            is_below = (below / name).is_file()
            advice = f"name {below}" if is_below else "expected a folder that eval.py wrote"
            raise FileNotFoundError(f"no {name} in {folder}: {advice}")
    detections = read_detections_json(folder / "detections.json")
    path = folder / "metrics.json"
    wanted = "the scores of an evaluation, AP among them; evaluate again"
    with expecting(path, wanted):
        metrics = {name: value + 0 for name, value in read_json(path).items()}
    if (folder / ABOUT).is_file():
        what = f"what an evaluation wrote; without {ABOUT} it is scored once more"
        with expecting(folder / ABOUT, what):
            about = dict(read_json(folder / ABOUT))
            for name, kind in _ABOUT_TYPES.items():
                if not isinstance(about[name], kind):
                    raise TypeError(f"{name} is a {type(about[name]).__name__}")
            for prefix in {"", *about["class_scores"]}:
                for numbers in about["class_scores"][prefix].values():
                    _require_scores(numbers)
    elif annotations:
        about = _scored_again(folder, annotations, detections, metrics)
    else:
        raise FileNotFoundError(
            f"no {ABOUT} in {folder}: name the annotations with --annotations to score it again"
        )
    with expecting(path, wanted):
        for prefix in about["class_scores"]:
            _require_scores(metrics, prefix)
    about["annotations"] = annotations or about["annotations"]
    about["records"] = records or about["records"]
    return about, detections, metrics


def _require_scores(numbers: Mapping[str, Any], prefix: str = "") -> None:
    """Raises LookupError, TypeError or ValueError unless COCO's twelve numbers are there."""
    for name in METRIC_NAMES:
        float(numbers[prefix + name])


def _scored_again(
    folder: Path,
    annotations: str,
    detections: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    kinds = {"": "bbox"}
    if any("segmentation" in entry for entry in detections[:1]):
        kinds[MASK_PREFIX] = "segm"
    class_scores = {}
    most = metrics.get("max_detections", DEFAULT_MAX_DETECTIONS[-1])
    for prefix, kind in kinds.items():
        evaluator = CocoEvaluator(annotations, iou_type=kind)
        evaluator.evaluate(detections, max_detections=(1, 10, most))
        class_scores[prefix] = evaluator.class_scores
    return {
        "model": folder.resolve().name,
        "epoch": int(metrics.get("epoch", 0)),
        "annotations": annotations,
        "records": "",
        "image_ids": None,
        "class_scores": class_scores,
        "max_detections": most,
        "settings": {},
        "cards": {},
    }
