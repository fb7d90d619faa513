"""Times the training step and its parts: forward+backward, reduction, update.

python -m benchmarks.train_step --model_name=efficientdet-d0 --batch_size=8
python -m benchmarks.train_step --model_name=maskrcnn-r50-fpn --batch_size=1 --noamp
python -m benchmarks.train_step --training_file_pattern='records/train-*'   # real input
mpirun -np 2 python -m benchmarks.train_step ...     # the reduction over two ranks

Batches are noise, the same each time, or come from records; the whole then waits for its input too.
The whole comes first, and the peak of memory is taken after it: its parts are programs of their
own. Every part is waited for, so the parts may add up to more than the whole; `update` includes the
reduction. First calls, which trace and compile, are reported apart.
"""

import itertools
import json
import time

from absl import flags

from benchmarks.model_flags import (
    define_model_flags,
    define_precision_flags,
    flagged_config,
    is_half,
    model_columns,
)
from benchmarks.record import define_results_flag, finish
from engine.start import cli

FLAGS = flags.FLAGS

_SUMMARY = ("images_per_s", "whole_median_ms", "whole_cpu_s", "peak_memory_gb")
PARTS = ("forward_backward", "reduce", "update")


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    define_model_flags(batch_size=8)
    flags.DEFINE_string("training_file_pattern", "", "Records to train on; '': synthetic batches.")
    flags.DEFINE_integer("num_classes", 80, "Class channels, with synthetic batches.")
    flags.DEFINE_integer("boxes_per_image", 7, "Boxes in each synthetic image (COCO's mean is 7).")
    flags.DEFINE_integer("steps", 20, "Timed repetitions of each part.")
    flags.DEFINE_bool("whole_only", False, "Leave out the parts.")
    define_precision_flags()
    define_results_flag("train_step")


def main() -> int:
    """Times the step; returns the exit code."""
    import tensorflow as tf

    import families
    from benchmarks.synthetic import numbered_class_map, synthetic_batch
    from benchmarks.timing import peak_memory_gb, percentiles_ms, timed
    from engine.batches import on_accelerator, to_accelerator
    from engine.optim.plan import make_plan
    from engine.ranks import distributed
    from engine.start.process import chooses_xla, join_ranks, set_precision
    from engine.step import TrainStep
    from engine.task import Shard
    from engine.train_state import TrainState

    records = FLAGS.training_file_pattern
    half = is_half()
    given = {"batch_size": FLAGS.batch_size, "amp": half, "use_xla": FLAGS.use_xla}
    if records:
        given |= {"training_file_pattern": records, "resize_on": "auto"}
    config = flagged_config(given)
    place = join_ranks(set_num_threads=True)
    set_precision(config)
    use_xla = chooses_xla(config)
    build_start = time.perf_counter()
    if records:
        task = families.load(config.model.name).make_task(
            config, description={}, training=True, batch_norm=None, seed=0
        )
    else:
        task = families.load(config.model.name).new_task(
            config, class_map=numbered_class_map(FLAGS.num_classes)
        )
    build_seconds = time.perf_counter() - build_start
    plan = make_plan(config.train, config.optim, num_examples=120000, num_ranks=place.size)
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=half)
    step = TrainStep(task, state, config.optim, use_xla=use_xla, half_gradients=half)
    if records:
        shard = Shard(place.rank, place.size)
        prepared = on_accelerator(task.train_dataset(shard=shard, start_step=0), task.device_batch)
        stream = (on_device for _, on_device in prepared)
    else:
        batch = synthetic_batch(
            task, batch_size=FLAGS.batch_size, boxes_per_image=FLAGS.boxes_per_image
        )
        stream = itertools.repeat(to_accelerator(batch))
    batch = next(stream)
    place_in_step = tf.constant([1, 0, 0], tf.int64)
    parts: list = []

    def forward_backward() -> list:
        parts[:] = step.compiled_forward_backward(batch, place_in_step)
        return parts

    actions = {
        "forward_backward": forward_backward,
        "reduce": lambda: step.reduce(parts),
        "update": lambda: step.compiled_update(*step.reduce(parts)),
        "whole": lambda: step([next(stream)]),
    }
    row = {
        **model_columns(config, amp=half, use_xla=use_xla),
        "ranks": place.size,
        "data": records or "synthetic",
        "steps": FLAGS.steps,
        "build_s": build_seconds,
    }

    def measure(part: str) -> None:
        row[f"{part}_first_s"], seconds = timed(actions[part], steps=FLAGS.steps)
        row.update(percentiles_ms(part, seconds))

    measure("whole")
    before = time.process_time()
    timed(actions["whole"], steps=FLAGS.steps - 1)
    row["whole_cpu_s"] = (time.process_time() - before) / FLAGS.steps
    row["peak_memory_gb"] = peak_memory_gb()
    images = FLAGS.batch_size * place.size
    row["images_per_s"] = 1000.0 * images / row["whole_median_ms"]
    for part in PARTS:
        if FLAGS.whole_only:  # the columns of the table stay
            row |= {f"{part}_first_s": "", **dict.fromkeys(percentiles_ms(part, [0.0]), "")}
        else:
            measure(part)
    if distributed.is_main():
        finish(row, results=FLAGS.results)
        print(json.dumps({k: row[k] for k in _SUMMARY}))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
