"""Sets a process up for a run: ranks, threads, precision, compilation."""

from __future__ import annotations

import os
import sys
from typing import Any

import tensorflow as tf

from engine.config.fields import ConfigError
from engine.config.settings import RuntimeConfig
from engine.optim.precision import policy_name
from engine.ranks import distributed, machine, watch

_PROGRAM_CACHE = "tf_xla_persistent_cache_directory"


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

    Raises:
      ConfigError: see `_require_fresh_programs`.
    """
    if config.train.debug:
        return False
    has_gpu = bool(tf.config.get_visible_devices("GPU"))
    use_xla = has_gpu if config.runtime.use_xla is None else config.runtime.use_xla
    if use_xla:
        _require_fresh_programs(has_gpu)
    return use_xla


def _require_fresh_programs(has_gpu: bool) -> None:
    """Refuses TensorFlow's cache of compiled programs where it is known to change results.

    TensorFlow 2.19.1 on a CPU: a training step read back from it left the box loss out (lite0,
    128 x 128, the same seed; 2026-11-28). What it does on a GPU is not known.

    Raises:
      ConfigError: it is asked for on a CPU; on a GPU that is a warning.
    """
    if _PROGRAM_CACHE not in os.environ.get("TF_XLA_FLAGS", ""):
        return
    message = (
        f"TF_XLA_FLAGS has {_PROGRAM_CACHE}: programs that TensorFlow reads back from there were "
        "seen to compute other losses. Take it out"
    )
    if not has_gpu:
        raise ConfigError(message)
    print(f"WARNING: {message}, or compare the first losses", file=sys.stderr, flush=True)
