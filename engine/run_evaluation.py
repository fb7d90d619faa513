"""Evaluates a checkpoint on one or several sets, for every family, on ranks that have joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from engine.config.fields import override
from engine.evaluation import Evaluator
from engine.family import Family
from engine.files import checksums
from engine.files.description import read_metadata
from engine.log.run_log import RunLog
from engine.ranks import distributed, watch
from engine.ranks.progress import COMPILE, HERE
from engine.start import out_of_memory, start_checks
from engine.start.process import chooses_xla, set_precision, watch_limits

_SPACE_FOR_RESULTS_GB = 0.05


def evaluate_checkpoint(
    configure: Callable[[Mapping[str, Any]], tuple[Family, Any]],
    *,
    find_checkpoint: Callable[[], str],
    output_dir: str,
    sets: Mapping[str, Mapping[str, Any]] | None,
    notes: Sequence[str] = (),
    conclude: Callable[[Mapping[str, float]], Sequence[str]] = lambda metrics: (),
) -> None:
    """Evaluates a checkpoint on one or several sets, one after the other.

    Args:
      configure: the checkpoint's description -> its family, configuration of this evaluation.
      find_checkpoint: returns the checkpoint's prefix; called on rank 0 only, as the other hosts
        need not see it.
      output_dir: where detections and metrics are written; '': beside the checkpoint.
      sets: name -> overrides of the configuration; each set's results go to a folder of its name.
        None: one set, as the configuration says.
      notes: lines for the log's beginning.
      conclude: metrics of a set -> lines for the log.

    Raises:
      FileNotFoundError: no checkpoint there; random weights are never evaluated.
    """

    def read() -> tuple[str, dict[str, Any]]:
        found = find_checkpoint()
        return found, read_metadata(found)

    prefix, stored = distributed.on_main(read)
    family, base = configure(stored)
    set_precision(base)
    folder, log = Path(output_dir or f"{prefix}-evaluation"), RunLog()
    for note in notes:
        log.info(note)
    with watch.watching(watch_limits(base.runtime)):
        for name, values in ({"": {}} if sets is None else sets).items():
            HERE.at(f"preparing an evaluation {name}", COMPILE)
            if name:
                log.info(f"data set {name}")
                tf.keras.backend.clear_session()  # of the set before
            metrics = _evaluate_set(
                override(base, values, source=name or "evaluation"),
                family,
                checkpoint_of=(prefix, stored),
                folder=folder / name,
                log=log,
            )
            for line in conclude(metrics) if metrics else ():
                log.info(f"{name}: {line}" if name else line)


def _evaluate_set(
    config: Any,
    family: Family,
    *,
    checkpoint_of: tuple[str, Mapping[str, Any]],
    folder: Path,
    log: RunLog,
) -> Mapping[str, float]:
    """Evaluates a checkpoint, given as (prefix, description), on one set; returns the metrics."""
    prefix, stored = checkpoint_of
    start_checks.require(config, "eval.val_file_pattern", "eval.val_json_file")
    family.validate(config)
    distributed.on_main(
        lambda: start_checks.prepare_folder(folder, min_free_gb=_SPACE_FOR_RESULTS_GB)
    )
    task = family.make_task(config, description=stored, training=False, batch_norm=None, seed=0)
    distributed.on_main(task.check_ground_truth)
    for line in distributed.on_main(lambda: family.load_weights(task, prefix)):
        log.info(line)
    if checksums.has_checksums(stored):
        log.info(f"{prefix} is as it was written: its checksums agree")
    distributed.broadcast_variables(task.model.variables)
    with out_of_memory.explained(config):
        metrics, rows = Evaluator(task, log, use_xla=chooses_xla(config))()
    epoch = int(stored.get("epoch", 0))
    for line in distributed.on_main(
        lambda: family.write_evaluation(task, rows, metrics, folder=folder, epoch=epoch)
    ):
        log.info(line)
    return metrics
