"""Times post-processing alone: selection of candidates, suppression, and the whole.

python -m benchmarks.postprocess --model_name=efficientdet-d0 --batch_size=8

The logits are synthetic but shaped like a trained detector's: background everywhere, and around
each of `--objects_per_image` objects a cluster of anchors that fire for its class, so that there is
something to suppress. Beside hard suppression stands TensorFlow's own, which runs on the CPU only
and has no XLA form; both get the same candidates and must pick the same scores.
"""

import dataclasses
import json

import numpy as np
from absl import flags

from benchmarks.record import define_results_flag, finish
from engine.start import cli

FLAGS = flags.FLAGS

_BACKGROUND_LOGIT, _PEAK_LOGIT = -5.0, 2.0


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_string("model_name", "efficientdet-d0", "Model, for the anchors.")
    flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
    flags.DEFINE_integer("batch_size", 8, "Images per call.")
    flags.DEFINE_integer("num_classes", 80, "Class channels.")
    flags.DEFINE_integer("objects_per_image", 20, "Objects that anchors fire for.")
    flags.DEFINE_integer("runs", 20, "Timed calls of each part.")
    flags.DEFINE_bool("use_xla", None, "Compile with XLA; none: where there is an accelerator.")
    define_results_flag("postprocess")


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


def main(argv: list[str]) -> int:
    """Times the parts; returns the exit code."""
    cli.refuse_arguments(argv)
    import tensorflow as tf

    from benchmarks.timing import percentiles_ms, timed
    from efficientdet.postprocess import postprocess, select_candidates
    from efficientdet.settings import base_config
    from engine.config.fields import override
    from engine.config.recipe_yaml import parse_hparams
    from object_detection.boxes.anchors import generate_anchors
    from object_detection.boxes.box_coder import decode_boxes
    from object_detection.boxes.nms import batched_nms
    from object_detection.input import geometry

    config = override(base_config(FLAGS.model_name), parse_hparams(FLAGS.hparams), source="hparams")
    model, nms = config.model, config.nms_configs
    use_xla = FLAGS.use_xla
    if use_xla is None:
        use_xla = bool(tf.config.list_physical_devices("GPU"))
    anchors = generate_anchors(
        model.image_size,
        min_level=model.min_level,
        max_level=model.max_level,
        num_scales=model.num_scales,
        aspect_ratios=model.aspect_ratios,
        anchor_scale=model.anchor_scale,
    )
    logits, deltas = synthetic_outputs(
        anchors,
        batch_size=FLAGS.batch_size,
        num_classes=FLAGS.num_classes,
        objects=FLAGS.objects_per_image,
    )
    logits, deltas, anchors = map(tf.constant, (logits, deltas, anchors))
    # One level that holds all anchors: [batch, 1, A, channels].
    levels = {"class_logits": [logits[:, tf.newaxis]], "box_deltas": [deltas[:, tf.newaxis]]}
    size = tf.constant([model.image_size] * FLAGS.batch_size, tf.float32)
    places = geometry.pack(
        geometry.fit_inside(size, height=model.image_size[0], width=model.image_size[1])
    )
    settings = {"max_output_size": nms.max_output_size, "score_threshold": 0.001, "sigma": 0.5}

    def whole(method: str):
        return postprocess(
            levels["class_logits"],
            levels["box_deltas"],
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

    def suppress(method: str):
        return batched_nms(boxes, scores, classes, method=method, iou_threshold=None, **settings)[1]

    class_scores = tf.where(
        classes[..., tf.newaxis] == tf.range(FLAGS.num_classes), scores[..., tf.newaxis], 0.0
    )

    def tensorflow_suppress():
        return tf.image.combined_non_max_suppression(
            boxes[:, :, tf.newaxis],
            class_scores,
            max_output_size_per_class=nms.max_output_size,
            max_total_size=nms.max_output_size,
            iou_threshold=0.5,
            score_threshold=settings["score_threshold"],
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
    row = {
        "model": model.name,
        "batch_size": FLAGS.batch_size,
        "num_classes": FLAGS.num_classes,
        "objects_per_image": FLAGS.objects_per_image,
        "xla": use_xla,
        "score_difference": float(np.abs(ours - theirs).max()),
    }
    for name, action in compiled.items():
        row[f"{name}_first_s"], seconds = timed(action, steps=FLAGS.runs)
        row |= percentiles_ms(name, seconds)
    summary = {k: v for k, v in row.items() if k.endswith("_median_ms") or k == "score_difference"}
    finish(row, results=FLAGS.results)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
