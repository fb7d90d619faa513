"""Assembles a run: settings -> preflight -> data -> model -> restore or initialise -> loop. For every family.

`run_training` and `run_evaluation` are what train.py and eval.py call. A newcomer's trap: resuming (same
model_dir) and starting from weights (--pretrained_ckpt, --backbone_init) are different things; if there is
something to resume, initial weights are not read.
"""

import json
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf
import yaml

from engine import checkpoint, distributed, env
from engine.config import ConfigError, differences, to_dict
from engine.loop import Trainer
from engine.plan import StepPlan, make_plan
from engine.precision import policy_name
from engine.run_log import RunLog
from engine.step import TrainState, TrainStep
from engine.task import Task


class Family(Protocol):
    """What train.py needs of a model family beside its task. A module with these functions will do."""

    COMPARED_SECTIONS: tuple[str, ...]

    def validate(self, config: Any) -> None:
        """Raises ConfigError for settings that cannot work together."""

    def make_task(
        self,
        config: Any,
        *,
        description: Mapping[str, Any],
        training: bool,
        batch_norm: Any,
        seed: int,
    ) -> Task:
        """Binds data and model. description: of the checkpoint to continue or evaluate, {} for a new run."""

    def describe(self, task: Task) -> dict[str, Any]:
        """What a checkpoint must know of the task beside the configuration (class map, data)."""

    def load_initial_weights(self, config: Any, task: Task) -> list[str]:
        """Loads --backbone_init and --pretrained_ckpt into the model; returns lines for the log. Rank 0 only."""

    def load_weights(self, task: Task, prefix: str) -> list[str]:
        """Loads a checkpoint for evaluation; returns lines for the log. Rank 0 only."""

    def export(self, task: Task, folder: Path) -> None:
        """Writes the serving SavedModel with the weights now in the model."""

    def write_evaluation(
        self, task: Task, rows: Any, metrics: Mapping[str, float], *, folder: Path, epoch: int
    ) -> list[str]:
        """Writes detections and metrics; returns lines for the log. Rank 0 only."""


def run_training(config: Any, family: Family) -> int:
    """Trains; returns the exit code (see `engine.loop`).

    Raises:
      ConfigError, FileNotFoundError, ValueError, OSError: before any training step, naming the remedy.
    """
    train = config.train
    _require(config, "data.training_file_pattern", "train.model_dir")
    if _will_evaluate(config):
        _require(config, "eval.val_file_pattern", "eval.val_json_file")
    family.validate(config)
    place = start_process(config)
    folder = Path(train.model_dir)
    _on_main(lambda: _prepare_folder(folder, min_free_gb=config.runtime.min_free_gb))
    log = RunLog(folder, dll_name=train.log_filename, tensorboard=not train.benchmark)
    log.info(
        f"{place.size} rank(s), {place.device}, precision {policy_name(config.runtime)}, XLA {_uses_xla(config)}"
    )
    _check_ranks_agree(config)

    latest = None if train.benchmark else checkpoint.latest_resumable(folder)
    latest, stored = distributed.broadcast_object(
        (latest, checkpoint.read_metadata(latest) if latest else {})
    )
    seed = distributed.broadcast_object(_choose_seed(train.seed, stored))
    tf.keras.utils.set_random_seed(seed)
    batch_norm = _sync_batch_norm() if config.runtime.sync_bn and place.size > 1 else None
    task = family.make_task(
        config, description=stored, training=True, batch_norm=batch_norm, seed=seed
    )
    plan = make_plan(
        train, config.optim, num_examples=task.num_train_examples, num_ranks=place.size
    )
    _check_same_run(config, family, plan, stored, folder)
    dynamic = policy_name(config.runtime) == "mixed_float16"
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=dynamic)
    if latest:
        log.info(f"restoring {latest}")
    else:
        lines = _on_main(lambda: family.load_initial_weights(config, task))
        for line in lines or []:
            log.info(line)
    _on_main(
        lambda: (
            state.assign(checkpoint.load(latest, state.tensors()))
            if latest
            else state.restart_from_model()
        )
    )
    state.broadcast()
    half = config.runtime.fp16_compression
    step = TrainStep(
        task,
        state,
        config.optim,
        use_xla=config.runtime.use_xla and not train.debug,
        half_gradients=dynamic if half is None else half,
        seed=seed,
        compile_forward=batch_norm is None,
    )
    description = {
        "config": to_dict(config),
        "task": family.describe(task),
        "environment": env.report(),
        "global_batch_size": plan.global_batch_size,
        "num_ranks": place.size,
        "seed": seed,
    }
    _on_main(lambda: _write_description(folder, description))
    trained = sum(v.shape.num_elements() for v in state.trained)
    log.info(
        f"{config.model.name}: {trained:,} trained parameters, {task.num_train_examples} images, seed {seed}"
    )
    trainer = Trainer(
        task,
        state,
        step,
        plan,
        train=train,
        evaluation=config.eval,
        runtime=config.runtime,
        accumulation=config.optim.gradient_accumulation,
        log=log,
        description=description,
        export=lambda path: family.export(task, path),
        write_evaluation=lambda rows, metrics, epoch: family.write_evaluation(
            task, rows, metrics, folder=folder / "evaluation", epoch=epoch
        ),
        best=stored.get("best_ap"),
    )
    return trainer.run().exit_code


def start_process(config: Any) -> distributed.Placement:
    """Joins the ranks, sets threads and precision. Called once per process, before TensorFlow runs."""
    place = distributed.init(before_tensorflow=lambda local_size: _set_threads(config, local_size))
    tf.keras.mixed_precision.set_global_policy(policy_name(config.runtime))
    if config.train.debug:
        tf.config.run_functions_eagerly(True)
        tf.debugging.enable_check_numerics()
    return place


def _set_threads(config: Any, local_size: int) -> None:
    if not config.runtime.set_num_threads:
        return
    threads = env.cores_per_rank(local_size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))


def _uses_xla(config: Any) -> str:
    return "on" if config.runtime.use_xla else "off"


def _will_evaluate(config: Any) -> bool:
    return not config.train.benchmark and (
        config.train.training_mode != "train300" or config.train.num_epochs < 200
    )


def _require(config: Any, *names: str) -> None:
    for name in names:
        section, field = name.split(".")
        if not getattr(getattr(config, section), field):
            raise ConfigError(f"--{field} is required")


def _on_main(action: Any) -> Any:
    """Runs an action on rank 0; its exception is raised on every rank, so that none waits for ever."""
    result, problem = None, ""
    if distributed.is_main():
        try:
            result = action()
        except (ConfigError, OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}" if distributed.size() > 1 else ""
            if not problem:
                raise
    problem, result = distributed.broadcast_object((problem, result))
    if problem:
        raise ConfigError(problem)
    return result


def _prepare_folder(folder: Path, *, min_free_gb: float) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writing-probe"
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"model_dir={folder} cannot be written: {error}; choose another --model_dir"
        ) from error
    free = shutil.disk_usage(folder).free / 2**30
    if free < min_free_gb:
        raise ConfigError(
            f"model_dir={folder} has {free:.2f} GB free, {min_free_gb:g} are wanted (--min_free_gb); free some space"
        )
    checkpoint.remove_unfinished(folder)


def _check_ranks_agree(config: Any) -> None:
    mine = (tf.__version__, env.git_commit(), json.dumps(to_dict(config), sort_keys=True))
    everyone = distributed.all_gather_object((distributed.placement().host, mine))
    for rank, (host, theirs) in enumerate(everyone):
        for what, ours, other in zip(
            ("TensorFlow", "code", "settings"), everyone[0][1], theirs, strict=True
        ):
            if ours != other:
                raise ConfigError(
                    f"rank {rank} on {host} has another {what} than rank 0: {other[:200]} and {ours[:200]}"
                )


def _choose_seed(given: int | None, stored: Mapping[str, Any]) -> int:
    if given is not None:
        return given
    return stored["seed"] if "seed" in stored else random.SystemRandom().randrange(2**31)


def _check_same_run(
    config: Any, family: Family, plan: StepPlan, stored: Mapping[str, Any], folder: Path
) -> None:
    if not stored or config.train.allow_config_change:
        return
    changed = differences(config, stored["config"], sections_compared=family.COMPARED_SECTIONS)
    if stored["global_batch_size"] != plan.global_batch_size:
        changed.append(f"global batch: {stored['global_batch_size']} -> {plan.global_batch_size}")
    if changed:
        raise ConfigError(
            f"{folder} holds a run of another configuration: {'; '.join(changed)}. Use its settings, another "
            "--model_dir, or --allow_config_change to go on from its step with the new ones"
        )


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(description["config"], sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(description["environment"], indent=1))
    with (folder / "commands.txt").open("a") as file:
        file.write(" ".join(sys.argv) + "\n")


def _sync_batch_norm() -> Any:
    from engine.sync_batch_norm import SyncBatchNormalization

    return SyncBatchNormalization


def run_evaluation(config: Any, family: Family, *, ckpt_path: str, output_dir: str) -> int:
    """Evaluates a checkpoint; returns the exit code.

    Args:
      config: settings given for this evaluation (data and batch); the model's come from the checkpoint.
      family: the model family.
      ckpt_path: checkpoint prefix or a folder holding one.
      output_dir: where detections and metrics are written.

    Raises:
      FileNotFoundError: no checkpoint there; random weights are never evaluated.
    """
    from engine.evaluation import Evaluator

    _require(config, "eval.val_file_pattern", "eval.val_json_file")
    prefix = checkpoint.find(ckpt_path)
    stored = checkpoint.read_metadata(prefix)
    family.validate(config)
    start_process(config)
    folder = Path(output_dir or f"{prefix}-evaluation")
    _on_main(lambda: _prepare_folder(folder, min_free_gb=0.05))
    log = RunLog()
    task = family.make_task(config, description=stored, training=False, batch_norm=None, seed=0)
    for line in _on_main(lambda: family.load_weights(task, prefix)) or []:
        log.info(line)
    distributed.broadcast_variables(task.model.variables)
    metrics, rows = Evaluator(task, log, use_xla=config.runtime.use_xla)()
    epoch = int(stored.get("epoch", 0))
    for line in (
        _on_main(lambda: family.write_evaluation(task, rows, metrics, folder=folder, epoch=epoch))
        or []
    ):
        log.info(line)
    return 0
