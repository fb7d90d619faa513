"""COCO metrics of detections: the evaluator, rows and files, the ground-truth self-check."""
