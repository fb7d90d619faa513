"""Times COCO scoring: the whole of what rank 0 does once the detections are gathered.

python -m benchmarks.evaluation --images=5000

Ground truth and detections are synthetic, of COCO val2017's proportions: 80 classes, 7 objects and
`--detections` detections an image. Every scorer that is installed gets the same rows; their twelve
numbers must agree with pycocotools' to the twelfth decimal.
"""

import json
import time

import numpy as np
from absl import flags

from benchmarks.record import define_results_flag, finish
from engine.start import cli

FLAGS = flags.FLAGS

_SIZE = 640


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_integer("images", 1000, "Images.")
    flags.DEFINE_integer("objects", 7, "Objects in an image.")
    flags.DEFINE_integer("detections", 100, "Detections in an image.")
    flags.DEFINE_integer("num_classes", 80, "Classes.")
    define_results_flag("evaluation")


def synthetic_set(
    *, images: int, objects: int, detections: int, num_classes: int
) -> tuple[dict, np.ndarray]:
    """Returns ground truth as a COCO dictionary, and rows of `object_detection.metrics`.

    The first detections of an image are its objects, moved a little; the others lie anywhere.
    """
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.8 * _SIZE, [images, objects, 2])
    boxes = np.concatenate([corner, rng.uniform(8, 0.2 * _SIZE, corner.shape)], axis=-1)
    classes = rng.integers(0, num_classes, [images, objects])
    annotations = [
        {
            "id": 1 + i * objects + j,
            "image_id": i + 1,
            "category_id": int(classes[i, j]) + 1,
            "bbox": boxes[i, j].tolist(),
            "area": float(boxes[i, j, 2:].prod()),
            "iscrowd": 0,
        }
        for i in range(images)
        for j in range(objects)
    ]
    dataset = {
        "images": [
            {"id": i + 1, "file_name": f"{i + 1}.jpg", "width": _SIZE, "height": _SIZE}
            for i in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(num_classes)],
    }
    found = np.zeros([images, detections, 7])
    found[..., 0] = np.arange(images)[:, np.newaxis]
    anywhere = rng.uniform(8, 0.5 * _SIZE, [images, detections, 4])
    near = boxes + rng.normal(0, 6, boxes.shape)
    found[..., 1:5] = anywhere
    found[:, :objects, 1:5] = np.maximum(near, 1.0)[:, :detections]
    found[..., 5] = rng.uniform(0, 0.6, [images, detections])
    found[:, :objects, 5] = rng.uniform(0.2, 1.0, [images, objects])[:, :detections]
    found[..., 6] = rng.integers(0, num_classes, [images, detections])
    found[:, :objects, 6] = classes[:, :detections]
    return dataset, found.reshape(-1, 7)


def main(argv: list[str]) -> int:
    """Times the scorers; returns the exit code."""
    cli.refuse_arguments(argv)
    from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
    from object_detection.metrics.scorer import SCORERS

    dataset, rows = synthetic_set(
        images=FLAGS.images,
        objects=FLAGS.objects,
        detections=FLAGS.detections,
        num_classes=FLAGS.num_classes,
    )
    row = {"images": FLAGS.images, "detections": len(rows)}
    numbers = {}
    for name in reversed(SCORERS):
        try:
            start = time.perf_counter()
            evaluator = CocoEvaluator(dataset, scorer=name)
            metrics = evaluator.evaluate(rows)
            seconds = time.perf_counter() - start
        except ImportError:
            row |= {f"{name}_s": None, f"{name}_difference": None}
            continue
        numbers[name] = np.array([metrics[metric] for metric in METRIC_NAMES])
        difference = np.abs(numbers[name] - numbers["pycocotools"]).max()
        row |= {f"{name}_s": seconds, f"{name}_difference": float(difference)}
    row["AP"] = float(numbers["pycocotools"][0])
    finish(row, results=FLAGS.results)
    print(json.dumps(row))
    return 0 if all(row[f"{name}_difference"] < 1e-12 for name in numbers) else 1


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
