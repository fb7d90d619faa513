"""Assembles a run: settings -> preflight -> data -> model -> restore or initialise -> loop.

`run_training` is what train.py calls, for every family. Resuming (same model_dir) and starting from
weights (--pretrained_ckpt, --backbone_init) are different things; if there is something to resume,
initial weights are not read.
"""

from __future__ import annotations

import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import yaml

from engine.config.fields import override, to_dict
from engine.family import Family
from engine.files import checkpoint
from engine.files.description import read_description
from engine.log.hooks import RunStart, make_hooks
from engine.log.outside_loggers import make_loggers
from engine.log.run_log import RunLog
from engine.loop import EXIT_DONE, Trainer
from engine.optim.plan import check_settings, make_plan, needs_evaluation_data
from engine.optim.precision import policy_name
from engine.optim.sync_batch_norm import SyncBatchNormalization
from engine.ranks import distributed, machine, watch
from engine.start import out_of_memory, run_lock, start_checks
from engine.start.process import chooses_xla, join_ranks, set_precision, watch_limits
from engine.step import TrainStep
from engine.task import Shard
from engine.train_state import TrainState
from outside_data.text import clean_lines
from outside_data.whole_file import write_whole

_DEBUG_SEED = 111111
# Settings that each share of the data keeps, whichever rank reads it.
_OF_A_SHARE = ("train.batch_size", "optim.gradient_accumulation")


def run_training(
    config: Any,
    family: Family,
    *,
    notes: Sequence[str] = (),
    conclude: Callable[[Mapping[str, float]], Sequence[str]] = lambda metrics: (),
) -> int:
    """Trains; returns the exit code (see `engine.loop`).

    Args:
      config: what the run is told.
      family: the model family.
      notes: lines for the log's beginning.
      conclude: the metrics of the last evaluation -> lines for the log's end.

    Raises:
      ConfigError, FileNotFoundError, ValueError, OSError: before any training step, naming the
        remedy; AgreedError where several ranks take part.
    """
    began = time.monotonic()
    train, runtime = config.train, config.runtime
    check_settings(train, config.data, config.eval)
    evaluates = needs_evaluation_data(train, config.eval)
    validation = ("eval.val_file_pattern", "eval.val_json_file") if evaluates else ()
    start_checks.require(
        config,
        *("train.model_dir", "data.training_file_pattern", *validation),
        without_eval="; --skip_test trains without a validation set",
    )
    family.validate(config)
    join_ranks(set_num_threads=runtime.set_num_threads, debug=train.debug)
    folder = Path(train.model_dir)
    with watch.watching(watch_limits(runtime), lambda: checkpoint.newest_resumable(folder)):
        distributed.on_main(
            lambda: start_checks.prepare_folder(folder, min_free_gb=runtime.min_free_gb)
        )
        with run_lock.held(folder, stale_seconds=runtime.lock_seconds, say=_say):
            return _train(config, family, notes=notes, conclude=conclude, began=began)


def _train(
    config: Any,
    family: Family,
    *,
    notes: Sequence[str],
    conclude: Callable[[Mapping[str, float]], Sequence[str]],
    began: float,
) -> int:
    """Trains, on ranks that have joined; see `run_training`."""
    train, runtime, place = config.train, config.runtime, distributed.placement()
    policy, evaluates = policy_name(runtime), needs_evaluation_data(train, config.eval)
    set_precision(config)
    use_xla = chooses_xla(config)
    folder = Path(train.model_dir)
    distributed.on_main(lambda: checkpoint.remove_unfinished(folder))
    log = RunLog(folder, dll_name=train.log_filename, tensorboard=not train.benchmark)
    xla = "on" if use_xla else "off"
    log.info(f"{place.size} rank(s), {place.device}, precision {policy}, XLA {xla}")
    log.info(f"training_mode: {train.training_mode}")
    for note in notes:
        log.info(note)
    start_checks.check_ranks_agree(config)

    latest, stored, problems = distributed.on_main(lambda: _resumable(config))
    for problem in problems:
        log.warn(f"{problem}: passed over")
    if stored:
        compared = family.COMPARED_SECTIONS
        finished = distributed.on_main(
            lambda: start_checks.finished_run(config, stored, sections_compared=compared)
        )
        if finished:
            log.info(finished)
            if (scores := folder / "evaluation" / "metrics.json").is_file():
                log.info(f"detections and metrics are in {scores.parent}")
            return EXIT_DONE
    shares = start_checks.shares_of(config, stored)
    per_rank = shares // place.size
    shards = [Shard(place.rank * per_rank + i, shares) for i in range(per_rank)]
    if per_rank > 1:
        # What the ranks were told may follow from their number.
        kept = {
            name: stored["config"][name.split(".")[0]][name.split(".")[1]] for name in _OF_A_SHARE
        }
        config = override(config, kept, source="checkpoint")
        train = config.train
        log.info(
            f"each rank does the work of {per_rank} of the {shares} that the run began with: the "
            "global batch, the order of the data and the schedule stay"
        )
    seed = distributed.broadcast_object(_choose_seed(config, stored))
    tf.keras.utils.set_random_seed(seed)
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    batch_norm = SyncBatchNormalization if runtime.sync_bn and place.size > 1 else None
    task = family.make_task(
        config, description=stored, training=True, batch_norm=batch_norm, seed=seed
    )
    # As a checkpoint records it: with what only the weights could tell filled in.
    config = config if task.config is None else task.config
    plan = make_plan(train, config.optim, num_examples=task.num_train_examples, num_ranks=shares)
    described = json.loads(json.dumps(family.describe(task)))
    if stored:
        start_checks.check_same_run(
            config, stored, sections_compared=family.COMPARED_SECTIONS, plan=plan, task=described
        )
    start = RunStart(config, folder, distributed.is_main(), stored)
    hooks = [*make_loggers(train.loggers, start), *make_hooks(train.hooks, start)]
    if evaluates:
        distributed.on_main(task.check_ground_truth)

    dynamic = policy == "mixed_float16"
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=dynamic)
    if latest:
        log.info(f"restoring {latest}, which is whole; initial weights are not read")

    def fill_state() -> list[str]:
        if latest:
            state.assign(checkpoint.load(latest, state.tensors()))
            return []
        lines = family.load_initial_weights(config, task)
        state.restart_from_model()
        return lines

    for line in distributed.on_main(fill_state):
        log.info(line)
    state.broadcast()
    if not train.train_minutes:
        state.total_steps.assign(plan.total_steps)
    state.warmup_steps.assign(plan.warmup_steps)

    half = runtime.fp16_compression
    step = TrainStep(
        task,
        state,
        config.optim,
        use_xla=use_xla,
        half_gradients=dynamic if half is None else half,
        seed=seed,
        shards=shards,
        compile_forward=batch_norm is None,
    )
    description = {
        "config": to_dict(config),
        "task": described,
        "environment": machine.report(),
        "global_batch_size": plan.global_batch_size,
        "total_steps": plan.total_steps,
        "warmup_steps": plan.warmup_steps,
        "num_ranks": place.size,
        "shares": shares,
        "seed": seed,
    }
    distributed.on_main(lambda: _write_description(folder, description))
    if stored and (changes := start_checks.changes_since(stored, description)):
        log.info(f"since the checkpoint: {'; '.join(changes)}")
    trained = sum(v.shape.num_elements() for v in state.trained)
    log.info(
        f"{config.model.name}: {trained:,} trained parameters, {task.num_train_examples} images, "
        f"seed {seed}"
    )
    trainer = Trainer(
        task,
        state,
        step,
        plan,
        config=config,
        use_xla=use_xla,
        compiles_ahead=use_xla and batch_norm is None and runtime.compile_ahead,
        log=log,
        description=description,
        export=lambda path: family.export(task, path),
        write_evaluation=lambda rows, metrics, epoch: family.write_evaluation(
            task, rows, metrics, folder=folder / "evaluation", epoch=epoch
        ),
        resumed=stored,
        began=began,
        hooks=hooks,
        shards=shards,
    )
    with out_of_memory.explained(config):
        result = trainer.run()
    if result.exit_code == EXIT_DONE and result.metrics:
        for line in conclude(result.metrics):
            log.info(line)
    return result.exit_code


def _resumable(config: Any) -> tuple[str | None, dict[str, Any], list[str]]:
    """Returns the checkpoint to continue from, its description, what is wrong with newer ones.

    (None, {}, ...) for a new run.
    """
    latest, problems = None, []
    if not config.train.benchmark:
        latest, problems = checkpoint.recover(config.train.model_dir)
    return latest, read_description(latest) if latest else {}, problems


def _say(text: str) -> None:
    """Says something before there is a log; on rank 0."""
    print(clean_lines(text), flush=True)


def _choose_seed(config: Any, stored: Mapping[str, Any]) -> int:
    if config.train.seed is not None:
        return config.train.seed
    if config.train.debug:
        return _DEBUG_SEED
    return stored["seed"] if stored else random.SystemRandom().randrange(2**31)


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    write_whole(folder / "config.yaml", yaml.safe_dump(description["config"], sort_keys=False))
    write_whole(folder / "environment.json", json.dumps(description["environment"], indent=1))
    with (folder / "commands.txt").open("a", encoding="utf-8", errors="replace") as file:
        file.write(shlex.join(sys.argv) + "\n")
