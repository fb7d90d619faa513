"""The sections of a report's page, each from numbers to HTML, with its charts and CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.metrics.coco import METRIC_NAMES
from object_detection.metrics.report import describe_metrics
from object_detection.metrics.set_scores import MASK_PREFIX
from object_detection.report import curves as curves_lib
from object_detection.report import history, page, pictures
from object_detection.report.charts import Line, bar_chart, draw_table, line_chart
from object_detection.report.curves import ClassCurves
from object_detection.report.matches import ERROR_KINDS, KIND_NAMES, Matches

_MOST_CLASSES_IN_TABLE = 25
_MOST_MISTAKES = 20
_MOST_LINES = 100
_ERROR_TEXTS = {
    "class": "in the right place, with the wrong class",
    "place": "of the right class, too far off",
    "both": "wrong class and too far off",
    "duplicate": "an object that a better detection found already",
    "background": "nothing there",
    "missed": "objects that no detection found or nearly found",
}
_CLASS_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax100")


def scores(
    metrics: Mapping[str, float], *, has_masks: bool, files: Path, max_detections: int = 100
) -> str:
    """COCO's twelve numbers, of boxes and, where there are any, of masks; `scores.csv`."""
    rows, descriptions = [], describe_metrics(max_detections)
    for name in METRIC_NAMES:
        row = [name, descriptions[name], float(metrics[name])]
        rows.append([*row, float(metrics[MASK_PREFIX + name])] if has_masks else row)
    write_csv(files / "scores.csv", ["number", "over", "boxes", "masks"], rows)
    half = len(rows) // 2  # precisions, then recalls
    head = ["", "over", "boxes, %"] + (["masks, %"] if has_masks else [])
    tables = [page.table(head, part, sort=False) for part in (rows[:half], rows[half:])]
    return page.cards(tables, "wide")


def course(records: Mapping[str, history.Records], current: Mapping[str, Any], files: Path) -> str:
    """Losses, learning rate and scores over the training; '' where no training is known.

    Args:
      records: of the run, by kind.
      current: epoch and metrics of this evaluation, which the run may not have recorded yet.
      files: folder for the charts.
    """
    steps = records.get("step", [])
    known = records.get("evaluation", [])
    earlier = [record for record in known if record.get("epoch") != current["epoch"]]
    losses = history.loss_lines(steps)
    rate = [history.line_of(steps, "learning_rate")] if losses else []
    scored = history.score_lines([*earlier, current]) if earlier else []
    validated = history.line_of(records.get("validation", []), "val_loss", over="epoch")
    charts = [
        line_chart(lines, files / f"{name}.png", title=title, labels=labels, with_points=points)
        for lines, name, title, labels, points in (
            (losses, "loss", "Loss", ("step", ""), False),
            (rate, "rate", "Learning rate", ("step", ""), False),
            (scored, "scores", "Scores", ("epoch", "%"), True),
            ([validated], "val_loss", "Validation loss", ("epoch", ""), False),
        )
        if any(len(line.x) > 1 for line in lines)
    ]
    return page.cards(charts) if charts else ""


def classes(
    matches: Matches,
    class_curves: Sequence[ClassCurves],
    class_scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    least_score: float,
    files: Path,
) -> str:
    """AP and so on of each class with its counts; `classes.csv`.

    Args:
      matches, class_curves: of the evaluation.
      class_scores: '' and, where there are masks, 'mask_' -> class -> COCO's numbers.
      least_score: of the detections counted.
      files: folder for the CSV.
    """
    images = [
        len(np.unique(matches.object_image[matches.object_class == k]))
        for k in range(len(matches.names))
    ]
    shown = np.bincount(
        matches.found_class[matches.score >= least_score], minlength=len(matches.names)
    )
    boxes, masks = class_scores[""], class_scores.get(MASK_PREFIX, {})
    head = ["class", "objects", "images", "detections", *_CLASS_COLUMNS]
    head += [f"mask {name}" for name in ("AP", "AP50")] if masks else []
    head += ["precision", "recall", "F1", "best score"]
    rows = []
    for k, curve in enumerate(class_curves):
        row: list[Any] = [curve.name, curve.num_objects, images[k], int(shown[k])]
        row += [float(boxes[curve.name][name]) for name in _CLASS_COLUMNS]
        if masks:
            row += [float(masks[curve.name][name]) for name in ("AP", "AP50")]
        best = curve.best
        rows.append([*row, best.precision, best.recall, best.f1, best.score])
    write_csv(files / "classes.csv", head, rows)
    rows = [[*row, page.plain(score)] for *row, score in rows]
    text = page.paragraph(
        f"In percent; a click on a column's name sorts. Detections: those that score "
        f"{least_score:.2f} or more. Precision, recall and F1 at the class's own best score."
    )
    bars = [i for i, name in enumerate(head) if name in ("AP", "AP50", "mask AP")]
    return text + page.cards([page.table(head, rows, bars=bars)], "wide")


def curves(
    whole: ClassCurves, class_curves: Sequence[ClassCurves], *, iou: float, files: Path
) -> str:
    """Precision over recall, and precision, recall and F1 over the score; `curves.csv`."""
    measured = [curve for curve in class_curves if curve.num_objects]
    mean = np.mean([curve.precision for curve in measured], axis=0)
    recalls, thresholds = curves_lib.RECALLS, curves_lib.THRESHOLDS
    best = whole.best
    several = len(measured) > 1
    # Lines of more classes say nothing and make the page heavy.
    drawn = measured if len(measured) <= _MOST_LINES else []
    lines = [Line(f"mean, {100 * mean.mean():.1f}", recalls, mean)] if several else []
    lines += [
        Line(f"{curve.name}, {100 * curve.ap:.1f}", recalls, curve.precision) for curve in drawn
    ]
    f1_lines = [Line(whole.name, thresholds, whole.f1)]
    f1_lines += [Line(curve.name, thresholds, curve.f1) for curve in drawn] if several else []
    trade = [
        Line("precision", thresholds, whole.precisions),
        Line("recall", thresholds, whole.recalls),
    ]
    charts = [
        line_chart(
            lines,
            files / "precision_recall.png",
            title=f"Precision over recall (AP at IoU {iou:g})",
            labels=("recall", "precision"),
            limits=(0, 1.03),
        ),
        line_chart(
            f1_lines,
            files / "f1.png",
            title="F1 over least score",
            labels=("least score", "F1"),
            limits=(0, 1.03),
            mark=(best.score, best.f1, f"F1 {best.f1:.2f} at {best.score:.2f}"),
        ),
        line_chart(
            trade,
            files / "precision_and_recall.png",
            title="Precision and recall over least score",
            labels=("least score", ""),
            limits=(0, 1.03),
        ),
    ]
    head = ["least score", "precision", "recall", "F1", *[f"F1 of {c.name}" for c in class_curves]]
    columns = [thresholds, whole.precisions, whole.recalls, whole.f1, *[c.f1 for c in class_curves]]
    write_csv(files / "f1.csv", head, np.array(columns).T.tolist())
    head = ["recall", "mean", *[c.name for c in class_curves]]
    columns = [recalls, mean, *[c.precision for c in class_curves]]
    write_csv(files / "precision_recall.csv", head, np.array(columns).T.tolist())
    text = (
        f"At IoU {iou:g}. F1 of all detections together is largest for a least score of "
        f"{best.score:.2f}: there {page.percent(best.precision)}% of the detections are right, and "
        f"{page.percent(best.recall)}% of the objects are found."
    )
    return page.paragraph(text) + page.cards(charts)


def confusion(matches: Matches, *, least_score: float, files: Path) -> str:
    """What objects were taken for; `confusion.csv` and `confusion.png`."""
    counts = matches.confusion(least_score)
    names = [*matches.names, "background"]
    write_csv(
        files / "confusion.csv",
        ["annotated as / detected as", *names],
        ([name, *row] for name, row in zip(names, counts.tolist())),
    )
    draw_table(counts, names, files / "confusion.png", title="Confusion")
    text = page.paragraph(
        f"Detections that score {least_score:.2f} or more, at IoU {matches.iou:g}. Rows are what "
        "is annotated, columns what was detected; the last row is background taken for objects, "
        "the last column objects that were missed. Shades are shares of a row."
    )
    if len(names) <= _MOST_CLASSES_IN_TABLE:
        return text + page.cards([page.confusion_table(counts, names)], "wide")
    mixed = counts.copy()
    np.fill_diagonal(mixed, 0)
    order = np.argsort(-mixed, axis=None, kind="stable")[:_MOST_MISTAKES]
    places = np.stack(np.unravel_index(order, counts.shape), axis=1).tolist()
    rows = [[names[r], names[c], int(mixed[r, c])] for r, c in places if mixed[r, c]]
    more = page.paragraph(
        f"The most frequent of {len(names) - 1} classes; all are in {files.name}/confusion.csv and "
        f"{files.name}/confusion.png."
    )
    return text + more + page.cards([page.table(["annotated", "detected", "times"], rows)], "wide")


def errors(matches: Matches, *, least_score: float, files: Path) -> str:
    """Kinds of errors: how many, and what AP each costs; `errors.csv`."""
    ap, gains, gain_missed = curves_lib.costs_of_errors(matches)
    counts = curves_lib.counts_of_errors(matches, least_score)
    missed = int(curves_lib.missed_objects(matches, least_score).sum())
    rows = [[KIND_NAMES[kind], counts[kind], gains[kind]] for kind in ERROR_KINDS]
    rows.append(["missed", missed, gain_missed])
    write_csv(files / "errors.csv", ["kind", "count", "AP gained without"], rows)
    chart = bar_chart(
        [row[0] for row in rows],
        [100 * row[2] for row in rows],
        files / "errors.png",
        title="AP gained without errors of a kind",
        label=f"percentage points; AP at IoU {matches.iou:g} is {100 * ap:.1f}",
    )
    shown = [[name, _ERROR_TEXTS[name], count, float(gain)] for name, count, gain in rows]
    head = ["kind", "means", "count", "AP gain"]
    text = page.paragraph(
        "Kinds of errors as TIDE (Bolya et al., 2020) tells them apart. Gains are over all "
        "detections and do not add up; counts are of detections that score "
        f"{least_score:.2f} or more."
    )
    return text + page.cards([chart, page.table(head, shown, sort=False)], "wide")


def worst(drawn: Sequence[pictures.Picture], *, num_bad: int, least_score: float) -> str:
    """The worst images, truth beside detections."""
    if not num_bad:
        return page.paragraph("No image has an error at this score.")
    if not drawn:
        return page.paragraph(
            "No pictures: neither records nor images were found, or none was asked for."
        )
    key = page.key(
        [
            ("right, or found", pictures.RIGHT_COLOR),
            ("wrong", pictures.WRONG_COLOR),
            ("missed", pictures.MISSED_COLOR),
            ("crowd region, counts for nothing", pictures.CROWD_COLOR),
        ]
    )
    text = page.paragraph(
        f"{len(drawn)} of {num_bad} images with errors, the worst first: annotated objects on the "
        f"left, detections that score {least_score:.2f} or more on the right, with the kind of "
        "error behind the class."
    )
    figures = []
    for picture in drawn:
        result = picture.result
        said = f"{result.right} right, {result.wrong} wrong, {result.missed} missed"
        pair = page.image(picture.truth, f"{picture.name}: annotated objects")
        pair += page.image(picture.found, f"{picture.name}: detections")
        figures.append(
            f"<figure><figcaption><b>{page.escape(picture.name)}</b> "
            f'<span class="faint">{said}</span></figcaption><div class="pair">{pair}</div></figure>'
        )
    return text + key + page.cards(figures, "wide")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; numbers with 6 digits, nothing for NaN."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            writer.writerow([_written(value) for value in row])


def _written(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
