"""Times the reduction of a model's gradients over the ranks, in the ways it could be done.

mpirun -np 2 python -m benchmarks.allreduce --model_name=efficientdet-d0

`flat` is what training does: one buffer, one allreduce. `grouped` reduces the real list of
variables as one Horovod group, `single` one after the other. Horovod's fusion threshold and cycle
time (HOROVOD_FUSION_THRESHOLD, HOROVOD_CYCLE_TIME) are read when it starts: set them to compare.
"""

import json
import os

from absl import flags

from benchmarks.record import define_results_flag, finish
from engine.start import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_string("model_name", "efficientdet-d0", "Model whose variables are reduced.")
    flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
    flags.DEFINE_integer("num_classes", 80, "Class channels.")
    flags.DEFINE_integer("runs", 20, "Timed reductions of each kind.")
    define_results_flag("allreduce")


def main(argv: list[str]) -> int:
    """Times the reductions; returns the exit code."""
    cli.refuse_arguments(argv)
    import tensorflow as tf

    from benchmarks.timing import percentiles_ms, timed
    from efficientdet.network.model import build_model
    from efficientdet.settings import base_config
    from engine.config.fields import override
    from engine.config.recipe_yaml import parse_hparams
    from engine.optim.flat import FlatLayout
    from engine.ranks import distributed
    from engine.start.process import join_ranks

    config = override(base_config(FLAGS.model_name), parse_hparams(FLAGS.hparams), source="hparams")
    place = join_ranks(set_num_threads=True)
    model = build_model(config.model, num_classes=FLAGS.num_classes)
    shapes = [v.shape for v in model.trainable_variables]
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
    for name, action in actions.items():
        row[f"{name}_first_s"], seconds = timed(
            tf.function(action, autograph=False), steps=FLAGS.runs
        )
        row |= percentiles_ms(name, seconds)
    # Bytes that a ring allreduce moves through each rank.
    moved = 2 * megabytes * (place.size - 1) / place.size
    row["flat_megabytes_per_s"] = 1000.0 * moved / row["flat_median_ms"]
    if distributed.is_main():
        finish(row, results=FLAGS.results)
        print(json.dumps({k: v for k, v in row.items() if k.endswith("_median_ms")}))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
