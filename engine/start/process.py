"""Sets a process up for a run: ranks, threads, precision, compilation."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine.config.settings import RuntimeConfig
from engine.optim.precision import policy_name
from engine.ranks import distributed, machine, watch


def watch_limits(runtime: RuntimeConfig) -> watch.Limits:
    """Returns how long a rank may be silent, and stay at one place."""
    return watch.Limits(
        heartbeat=runtime.heartbeat_seconds,
        step=runtime.stall_seconds,
        compile=runtime.compile_seconds,
        evaluate=runtime.evaluation_seconds,
    )


def join_ranks(*, set_num_threads: bool, debug: bool = False) -> distributed.Placement:
    """Joins the ranks; before TensorFlow runs anything.

    Args:
      set_num_threads: share the host's cores among its ranks.
      debug: run eagerly, check numbers, log devices.
    """

    def set_up_tensorflow(local_size: int) -> None:
        if set_num_threads:
            threads = machine.cores_per_rank(local_size)
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
        if debug:
            tf.debugging.set_log_device_placement(True)
            tf.config.run_functions_eagerly(True)
            tf.debugging.enable_check_numerics()

    return distributed.init(before_tensorflow=set_up_tensorflow)


def set_precision(config: Any) -> None:
    """Sets the Keras policy of this process."""
    tf.keras.mixed_precision.set_global_policy(policy_name(config.runtime))


def chooses_xla(config: Any) -> bool:
    """Settles `use_xla`: by itself only where there is an accelerator.

    XLA's CPU compiler takes minutes for these networks and gains nothing there.
    """
    if config.train.debug:
        return False
    use_xla = config.runtime.use_xla
    return bool(tf.config.get_visible_devices("GPU")) if use_xla is None else use_xla
