"""COCO metrics as text: the csv line of the reference and a table for people."""

from __future__ import annotations

from collections.abc import Mapping

from object_detection.metrics.coco import CLASS_PREFIX, METRIC_NAMES
from outside_data.text import clean

CSV_HEADER = "epoch,AP,AP50,AP75,APs,APm,APl"

_DESCRIPTIONS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "area below 32x32",
    "APm": "area 32x32 to 96x96",
    "APl": "area above 96x96",
    "ARmax1": "1 detection per image",
    "ARmax10": "10 detections per image",
    "ARs": "area below 32x32",
    "ARm": "area 32x32 to 96x96",
    "ARl": "area above 96x96",
}
"""What COCO's numbers are over."""

# Columns of the class table, filled downwards in order of the category ids.
_CLASS_COLUMNS = 3


def describe_metrics(max_detections: int = 100) -> dict[str, str]:
    """Returns over what each of COCO's numbers is.

    Args:
      max_detections: of an image and class that were scored.
    """
    return {**_DESCRIPTIONS, "ARmax100": f"{max_detections} detections per image"}


def csv_line(epoch: int, metrics: Mapping[str, float]) -> str:
    """Returns `epoch,AP,AP50,AP75,APs,APm,APl`, the six in percent with 2 decimals.

    A value that could not be measured (-1) stays -1.00, so that the columns keep their meaning.
    """
    values = [metrics[name] for name in CSV_HEADER.split(",")[1:]]
    percents = [value if value < 0 else 100.0 * value for value in values]
    return ",".join([str(epoch), *(f"{percent:.2f}" for percent in percents)])


def format_metrics_table(
    metrics: Mapping[str, float], *, title: str = "", max_detections: int = 100
) -> str:
    """Returns the 12 numbers, then AP per class by name, in percent; `-` where unmeasured.

    Args:
      metrics: fractions, as `CocoEvaluator.evaluate` returns them.
      title: a first line, for instance the data set and the number of images.
      max_detections: of an image and class that were scored.
    """
    lines = [title] if title else []
    descriptions = describe_metrics(max_detections)
    precisions, recalls = METRIC_NAMES[:6], METRIC_NAMES[6:]
    for left, right in zip(precisions, recalls):
        lines.append(
            f"  {left:<5}{_percent(metrics[left])}  {descriptions[left]:<22}"
            f"{right:<9}{_percent(metrics[right])}  {descriptions[right]}"
        )
    classes = [
        (clean(name.removeprefix(CLASS_PREFIX)), value)
        for name, value in metrics.items()
        if name.startswith(CLASS_PREFIX)
    ]
    if classes:
        lines += ["  AP per class", *_class_lines(classes)]
    return "\n".join(lines)


def _class_lines(classes: list[tuple[str, float]]) -> list[str]:
    num_lines = -(-len(classes) // _CLASS_COLUMNS)
    width = max(len(name) for name, _ in classes)
    lines = []
    for i in range(num_lines):
        cells = [f"{name:<{width}} {_percent(value)}" for name, value in classes[i::num_lines]]
        lines.append("    " + "    ".join(cells))
    return lines


def _percent(fraction: float) -> str:
    return f"{'-':>6}" if fraction < 0 else f"{100.0 * fraction:6.2f}"
