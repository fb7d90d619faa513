"""Times parts of a run alone: suppression of detections, COCO scoring, reduction of gradients.

python -m benchmarks.parts --part=suppression --batch_size=8 --objects_per_image=20
python -m benchmarks.parts --part=scoring --images=5000
mpirun -np 2 python -m benchmarks.parts --part=reduction --model_name=efficientdet-d0

Suppression. The logits are synthetic but shaped like a trained detector's: background everywhere,
and around each object a cluster of anchors that fire for its class, so that there is something to
suppress. Beside hard suppression stands TensorFlow's own, which runs on the CPU only and has no XLA
form; both get the same candidates and must pick the same scores.

Scoring: what rank 0 does once the detections are gathered, on synthetic ones of COCO val2017's
proportions. Every scorer that is installed gets the same rows; their twelve numbers must agree with
pycocotools' to the twelfth decimal.

Reduction. `flat` is what training does: one buffer, one allreduce. `grouped` reduces the real list
of variables as one Horovod group, `single` one after the other. Horovod's fusion threshold and
cycle time (HOROVOD_FUSION_THRESHOLD, HOROVOD_CYCLE_TIME) are read when it starts: set them to
compare.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

import numpy as np
from absl import flags

from benchmarks.model_flags import define_model_flags, flagged_config
from benchmarks.record import define_results_flag, finish
from engine.config.fields import ConfigError
from engine.start import cli

FLAGS = flags.FLAGS

_BACKGROUND_LOGIT, _PEAK_LOGIT = -5.0, 2.0
_SIZE = 640


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_enum("part", None, list(_PARTS), "What is timed.", required=True)
    define_model_flags(batch_size=8)
    flags.DEFINE_integer("num_classes", 80, "Class channels.")
    flags.DEFINE_integer("images", 1000, "Images that are scored.")
    flags.DEFINE_integer("objects_per_image", 7, "Objects of an image (COCO's mean is 7).")
    flags.DEFINE_integer("detections", 100, "Detections of an image that are scored.")
    flags.DEFINE_integer("runs", 20, "Timed calls of each kind.")
    flags.DEFINE_bool("use_xla", None, "Compile with XLA; none: where there is an accelerator.")
    define_results_flag("PART")


def main() -> int:
    """Times the part; returns the exit code."""
    row, said = _PARTS[FLAGS.part]()
    from engine.ranks import distributed

    if distributed.is_main():
        finish(row, results=FLAGS.results.replace("PART", FLAGS.part))
        print(json.dumps(said))
    return 0


def _time_all(actions: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the columns of the row, and the medians among them."""
    from benchmarks.timing import percentiles_ms, timed

    row = {}
    for name, action in actions.items():
        row[f"{name}_first_s"], seconds = timed(action, steps=FLAGS.runs)
        row |= percentiles_ms(name, seconds)
    return row, {name: value for name, value in row.items() if name.endswith("_median_ms")}


# ------------------------------------------------------------------------------ suppression


def synthetic_outputs(
    anchors: np.ndarray, *, batch_size: int, num_classes: int, objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits [batch, anchors, classes] and deltas [batch, anchors, 4], both float32.

    An anchor fires for an object's class the more, the nearer it lies to the object and the more
    alike their sizes are.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(_BACKGROUND_LOGIT, 0.5, [batch_size, len(anchors), num_classes])
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    sizes = anchors[:, 2:] - anchors[:, :2]
    for image in logits:
        for chosen in rng.choice(len(anchors), objects, replace=False):
            distance = np.linalg.norm((centers - centers[chosen]) / sizes[chosen], axis=1)
            unlike = np.abs(np.log(sizes / sizes[chosen])).sum(axis=1)
            closeness = np.exp(-4 * distance - 2 * unlike)
            image[:, rng.integers(num_classes)] += (_PEAK_LOGIT - _BACKGROUND_LOGIT) * closeness
    deltas = rng.normal(0, 0.1, [batch_size, len(anchors), 4])
    return logits.astype(np.float32), deltas.astype(np.float32)


def suppression() -> tuple[dict[str, Any], dict[str, Any]]:
    """Times selection of candidates, suppression, and the whole.

    Raises:
      ConfigError: the model is not of EfficientDet.
    """
    if not FLAGS.model_name.startswith("efficientdet"):
        raise ConfigError(f"--model_name={FLAGS.model_name}: suppression is timed of EfficientDet")
    import tensorflow as tf

    from benchmarks.synthetic import numbered_class_map
    from efficientdet.postprocess import postprocess, select_candidates
    from efficientdet.task import EfficientDetTask
    from engine.start.process import chooses_xla
    from object_detection.boxes.box_coder import decode_boxes
    from object_detection.boxes.nms import batched_nms
    from object_detection.input import geometry

    config = flagged_config({"use_xla": FLAGS.use_xla})
    model, nms, use_xla = config.model, config.nms_configs, chooses_xla(config)
    anchors = EfficientDetTask(config, numbered_class_map(FLAGS.num_classes)).anchors
    logits, deltas = synthetic_outputs(
        anchors,
        batch_size=FLAGS.batch_size,
        num_classes=FLAGS.num_classes,
        objects=FLAGS.objects_per_image,
    )
    logits, deltas, anchors = map(tf.constant, (logits, deltas, anchors))
    size = tf.constant([model.image_size] * FLAGS.batch_size, tf.float32)
    places = geometry.pack(
        geometry.fit_inside(size, height=model.image_size[0], width=model.image_size[1])
    )
    settings = {
        "max_output_size": nms.max_output_size,
        "iou_threshold": None,
        "sigma": 0.5,
        "score_threshold": nms.least_score,
    }

    def whole(method: str):
        return postprocess(
            [logits[:, tf.newaxis]],  # one level that holds all anchors: [batch, 1, A, channels]
            [deltas[:, tf.newaxis]],
            anchors,
            places,
            num_classes=FLAGS.num_classes,
            network_size=model.image_size,
            nms=dataclasses.replace(nms, method=method),
        ).scores

    def select():
        return select_candidates([logits], max_candidates=nms.max_nms_inputs)

    best, classes, rows = select()
    boxes = decode_boxes(tf.gather(deltas, rows, batch_dims=1), tf.gather(anchors, rows))
    scores = tf.sigmoid(best)
    class_scores = tf.where(
        classes[..., tf.newaxis] == tf.range(FLAGS.num_classes), scores[..., tf.newaxis], 0.0
    )

    def suppress(method: str):
        return batched_nms(boxes, scores, classes, method=method, **settings)[1]

    def tensorflow_suppress():
        return tf.image.combined_non_max_suppression(
            boxes[:, :, tf.newaxis],
            class_scores,
            max_output_size_per_class=nms.max_output_size,
            max_total_size=nms.max_output_size,
            iou_threshold=0.5,
            score_threshold=nms.least_score,
            clip_boxes=False,
        )[1]

    actions = {
        "select": select,
        "hard": lambda: suppress("hard"),
        "gaussian": lambda: suppress("gaussian"),
        "whole_hard": lambda: whole("hard"),
        "whole_gaussian": lambda: whole("gaussian"),
    }
    compiled = {
        name: tf.function(action, autograph=False, jit_compile=use_xla or None)
        for name, action in actions.items()
    }
    compiled["tensorflow_hard"] = tf.function(tensorflow_suppress, autograph=False)
    ours, theirs = compiled["hard"]().numpy(), compiled["tensorflow_hard"]().numpy()
    agreement = {"score_difference": float(np.abs(ours - theirs).max())}
    row = {
        "model": model.name,
        "batch_size": FLAGS.batch_size,
        "num_classes": FLAGS.num_classes,
        "objects_per_image": FLAGS.objects_per_image,
        "xla": use_xla,
        **agreement,
    }
    columns, medians = _time_all(compiled)
    return {**row, **columns}, {**agreement, **medians}


# ------------------------------------------------------------------------------ scoring


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


def scoring() -> tuple[dict[str, Any], dict[str, Any]]:
    """Times every scorer that is installed.

    Raises:
      ValueError: one that gives other numbers than pycocotools.
    """
    from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
    from object_detection.metrics.scorer import SCORERS

    dataset, rows = synthetic_set(
        images=FLAGS.images,
        objects=FLAGS.objects_per_image,
        detections=FLAGS.detections,
        num_classes=FLAGS.num_classes,
    )
    row: dict[str, Any] = {"images": FLAGS.images, "detections": len(rows)}
    numbers = {}
    for name in reversed(SCORERS):
        try:
            start = time.perf_counter()
            metrics = CocoEvaluator(dataset, scorer=name).evaluate(rows)
            seconds = time.perf_counter() - start
        except ImportError:
            row |= {f"{name}_s": None, f"{name}_difference": None}
            continue
        numbers[name] = np.array([metrics[metric] for metric in METRIC_NAMES])
        difference = float(np.abs(numbers[name] - numbers["pycocotools"]).max())
        if difference >= 1e-12:
            raise ValueError(f"{name} differs from pycocotools by {difference}")
        row |= {f"{name}_s": seconds, f"{name}_difference": difference}
    row["AP"] = float(numbers["pycocotools"][0])
    return row, row


# ------------------------------------------------------------------------------ reduction


def reduction() -> tuple[dict[str, Any], dict[str, Any]]:
    """Times the reduction of a model's gradients over the ranks, in the ways it could be done."""
    import tensorflow as tf

    import families
    from benchmarks.synthetic import numbered_class_map
    from engine.optim.flat import FlatLayout
    from engine.ranks import distributed
    from engine.start.process import join_ranks

    config = flagged_config({})
    place = join_ranks(set_num_threads=True)
    classes = numbered_class_map(FLAGS.num_classes)
    task = families.load(config.model.name).new_task(config, class_map=classes)
    shapes = [v.shape for v in task.model.trainable_variables]
    layout = FlatLayout(shapes)
    tensors = [tf.random.normal(shape) for shape in shapes]
    flat = layout.join(tensors)

    def one_by_one() -> list[tf.Tensor]:
        # Each waits for the one before it, as gradients that arrive in order would.
        results = []
        for tensor in tensors:
            with tf.control_dependencies(results[-1:]):
                results += distributed.reduce_sum([tensor])
        return results

    actions = {
        "flat": lambda: distributed.reduce_sum([flat]),
        "flat_half": lambda: distributed.reduce_sum([flat], half=[True]),
        "grouped": lambda: distributed.reduce_sum(tensors),
        "single": one_by_one,
    }
    megabytes = 4e-6 * layout.num_chunks * flat.shape[1]
    row = {
        "model": config.model.name,
        "ranks": place.size,
        "tensors": len(shapes),
        "megabytes": megabytes,
        "fusion_threshold": os.environ.get("HOROVOD_FUSION_THRESHOLD", ""),
        "cycle_time_ms": os.environ.get("HOROVOD_CYCLE_TIME", ""),
    }
    columns, medians = _time_all(
        {name: tf.function(action, autograph=False) for name, action in actions.items()}
    )
    # Bytes that a ring allreduce moves through each rank.
    moved = 2 * megabytes * (place.size - 1) / place.size
    speed = {"flat_megabytes_per_s": 1000.0 * moved / columns["flat_median_ms"]}
    return {**row, **columns, **speed}, medians


_PARTS = {"suppression": suppression, "scoring": scoring, "reduction": reduction}

if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
