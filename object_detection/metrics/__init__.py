"""COCO metrics of detections: the evaluator, rows and files, the ground-truth self-check."""

from object_detection.metrics.coco import (
    CLASS_PREFIX,
    METRIC_NAMES,
    Categories,
    CocoEvaluator,
    Coverage,
)
from object_detection.metrics.detection_rows import (
    ROW_FIELDS,
    detections_to_array,
    empty_rows,
    rows_to_detections,
    write_detections_json,
)
from object_detection.metrics.ground_truth_check import GroundTruthCheck, check_ground_truth
from object_detection.metrics.report import CSV_HEADER, csv_line, format_metrics_table

__all__ = [
    "CLASS_PREFIX",
    "CSV_HEADER",
    "METRIC_NAMES",
    "ROW_FIELDS",
    "Categories",
    "CocoEvaluator",
    "Coverage",
    "GroundTruthCheck",
    "check_ground_truth",
    "csv_line",
    "detections_to_array",
    "empty_rows",
    "format_metrics_table",
    "rows_to_detections",
    "write_detections_json",
]
