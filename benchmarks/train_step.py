"""Times the training step on synthetic batches: forward+backward, reduction, update, and the whole.

python -m benchmarks.train_step --model_name=efficientdet-d0 --batch_size=8
mpirun -np 2 python -m benchmarks.train_step ...     # the reduction over two ranks

Every part is waited for, so the parts may add up to more than the whole; `update` includes the
reduction. First calls, which trace and compile, are reported apart.
"""

import json
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from engine import cli

flags.DEFINE_string("model_name", "efficientdet-d0", "Model.")
flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
flags.DEFINE_integer("batch_size", 8, "Images per rank.")
flags.DEFINE_integer("num_classes", 80, "Class channels.")
flags.DEFINE_integer("boxes_per_image", 7, "Boxes in each synthetic image (COCO's mean is 7).")
flags.DEFINE_integer("steps", 20, "Timed repetitions of each part.")
flags.DEFINE_bool("amp", True, "mixed_float16; float32 otherwise.")
flags.DEFINE_bool("use_xla", None, "Compile with XLA; none: where there is an accelerator.")
flags.DEFINE_string("results", "benchmarks/results/train_step.csv", "CSV to append to; '': none.")
FLAGS = flags.FLAGS

PARTS = ("forward_backward", "reduce", "update", "whole")


def synthetic_batch(task: object, *, batch_size: int, boxes_per_image: int) -> dict:
    """Returns a device batch of noise with random boxes, in the layout of HostExamples."""
    import tensorflow as tf

    from object_detection import geometry

    height, width = task.config.model.image_size
    rows = task.config.data.max_instances_per_image
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [[height * 0.7, width * 0.7]], [batch_size, rows, 2])
    sizes = rng.uniform(8, [[height * 0.3, width * 0.3]], [batch_size, rows, 2])
    has_box = np.arange(rows) < boxes_per_image
    classes = rng.integers(0, task.class_map.num_classes, [batch_size, rows])
    boxes = np.concatenate([corners, corners + sizes], axis=-1) * has_box[:, None]
    size = tf.constant([[height, width]] * batch_size, tf.float32)
    noise = rng.integers(0, 256, [batch_size, height, width, 3])
    return {
        "image": tf.constant(noise, tf.uint8),
        "geometry": geometry.pack(geometry.fit_inside(size, height=height, width=width)),
        "boxes": tf.constant(boxes, tf.float32),
        "classes": tf.constant(np.where(has_box, classes, -1), tf.int32),
        "is_crowd": tf.zeros([batch_size, rows], tf.bool),
        "areas": tf.constant(np.prod(sizes, axis=-1) * has_box, tf.float32),
        "valid": tf.ones([batch_size], tf.bool),
        "record_index": tf.range(batch_size, dtype=tf.int64),
    }


def timed(action: Callable[[], object], *, steps: int) -> tuple[float, np.ndarray]:
    """Returns (seconds of the first call, seconds of each later call [steps])."""
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        result = action()
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            tensor.numpy()
        seconds.append(time.perf_counter() - start)
    return seconds[0], np.array(seconds[1:])


def main(argv: list[str]) -> int:
    """Times the step; returns the exit code."""
    cli.refuse_arguments(argv)
    import tensorflow as tf

    from benchmarks.record import append_row, circumstances, print_table
    from efficientdet.settings import base_config
    from efficientdet.task import EfficientDetTask
    from engine import distributed
    from engine.config import override
    from engine.hparams import parse_hparams
    from engine.plan import make_plan
    from engine.run import chooses_xla, join_ranks, set_precision
    from engine.step import TrainStep
    from engine.train_state import TrainState
    from object_detection.class_map import ClassMap

    config = override(base_config(FLAGS.model_name), parse_hparams(FLAGS.hparams), source="hparams")
    given = {"batch_size": FLAGS.batch_size, "amp": FLAGS.amp, "use_xla": FLAGS.use_xla}
    config = override(config, given, source="flag")
    place = join_ranks(set_num_threads=True)
    set_precision(config)
    use_xla = chooses_xla(config)
    class_map = ClassMap(
        FLAGS.num_classes, {i: (i + 1, f"class {i}") for i in range(FLAGS.num_classes)}
    )
    build_start = time.perf_counter()
    task = EfficientDetTask(config, class_map)
    build_seconds = time.perf_counter() - build_start
    plan = make_plan(config.train, config.optim, num_examples=120000, num_ranks=place.size)
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=FLAGS.amp)
    step = TrainStep(task, state, config.optim, use_xla=use_xla, half_gradients=FLAGS.amp)
    batch = synthetic_batch(
        task, batch_size=FLAGS.batch_size, boxes_per_image=FLAGS.boxes_per_image
    )
    seed = tf.constant([0, 0])
    parts: list = []

    def forward_backward() -> list:
        parts[:] = step.compiled_forward_backward(batch, seed)
        return parts

    actions = {
        "forward_backward": forward_backward,
        "reduce": lambda: step.reduce(parts),
        "update": lambda: step.compiled_update(*step.reduce(parts)),
        "whole": lambda: step([batch]),
    }
    row: dict = {}
    if distributed.is_main():
        row = {
            **circumstances(),
            "model": config.model.name,
            "image_size": "x".join(map(str, config.model.image_size)),
            "ranks": place.size,
            "batch_size": FLAGS.batch_size,
            "precision": "mixed_float16" if FLAGS.amp else "float32",
            "xla": use_xla,
            "data": "synthetic",
            "steps": FLAGS.steps,
            "build_s": build_seconds,
        }
    for part in PARTS:
        first, seconds = timed(actions[part], steps=FLAGS.steps)
        row[f"{part}_first_s"] = first
        for name, q in (("p10", 10), ("median", 50), ("p90", 90)):
            row[f"{part}_{name}_ms"] = 1000.0 * float(np.percentile(seconds, q))
    images = FLAGS.batch_size * place.size
    row["images_per_s"] = 1000.0 * images / row["whole_median_ms"]
    if distributed.is_main():
        print_table(row)
        if FLAGS.results:
            append_row(FLAGS.results, row)
        print(json.dumps({k: row[k] for k in ("images_per_s", "whole_median_ms")}))
    return 0


if __name__ == "__main__":
    cli.run_app(main)
