"""Derives batch, rate and lengths of a run in one place, and the epochs where things happen."""

import math
from typing import NamedTuple

from engine.config.fields import ConfigError
from engine.config.settings import DataConfig, EvalConfig, OptimConfig, TrainConfig

# Modes that evaluate while they train. All but `full` are the reference's, which end at epoch 300.
_EVALUATING_MODES = ("full", "traineval")
_EVAL_START = 200
_STOP = 300
_TRAIN_SHARE = 0.75


class StepPlan(NamedTuple):
    """Numbers that a run derives from its batch sizes. All lengths are in optimizer steps."""

    learning_rate: float
    global_batch_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    stop_epoch: int

    def describe(self, config: OptimConfig, *, train_minutes: float = 0.0) -> str:
        """One line for the log."""
        how = f"{config.learning_rate:g} as given"
        if config.lr_batch_size:
            how = f"{config.learning_rate:g} per {config.lr_batch_size} images"
        length = f"over {self.total_steps} steps, stop after epoch {self.stop_epoch}"
        if train_minutes:
            length = f"fitted to {train_minutes:g} minutes"
        return (
            f"global batch {self.global_batch_size}, learning rate {self.learning_rate:g} ({how}), "
            f"{self.steps_per_epoch} steps per epoch, warm-up {self.warmup_steps} steps, "
            f"schedule {length}"
        )


def check_settings(train: TrainConfig, data: DataConfig, evaluation: EvalConfig) -> None:
    """Checks rules between the settings of a run, without data and devices.

    Raises:
      ConfigError: settings that cannot work together.
    """
    if data.jitter_min > data.jitter_max:
        raise ConfigError(
            f"expected jitter_min <= jitter_max, got {data.jitter_min:g} and {data.jitter_max:g}"
        )
    if train.skip_test and evaluation.target_ap:
        raise ConfigError(
            f"--skip_test with target_ap={evaluation.target_ap:g}: a run that never evaluates "
            "cannot reach a target; leave one of them out"
        )
    epochs = range(1, stop_epoch(train) + 1)
    if evaluation.patience and not any(evaluates_after(e, train, evaluation) for e in epochs):
        raise ConfigError(
            f"patience={evaluation.patience}: no evaluation comes before the end of this run; set "
            "--eval_start and --eval_period"
        )


def make_plan(
    train: TrainConfig, optim: OptimConfig, *, num_examples: int, num_ranks: int
) -> StepPlan:
    """Computes the plan of a run with `num_examples` images, of which settings may take fewer.

    Raises:
      ConfigError: there is nothing to train on.
    """
    global_batch = train.batch_size * num_ranks * optim.gradient_accumulation
    steps_per_epoch = -(-(train.num_examples_per_epoch or num_examples) // global_batch)
    stop = stop_epoch(train)
    if train.benchmark:
        steps_per_epoch, stop = train.benchmark_steps, 1
    if not steps_per_epoch:
        raise ConfigError("the training records hold no image")
    rate = optim.learning_rate
    if optim.lr_batch_size:  # linear in the batch (arXiv 1706.02677, section 2.1)
        rate = rate * global_batch / optim.lr_batch_size
    return StepPlan(
        learning_rate=rate,
        global_batch_size=global_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=train.num_epochs * steps_per_epoch,
        warmup_steps=int(optim.lr_warmup_epoch * steps_per_epoch),
        stop_epoch=stop,
    )


def stop_epoch(train: TrainConfig) -> int:
    """Returns the last epoch: --stop_epoch, else the rule of the training mode.

    `full` trains num_epochs. The reference's modes end at epoch 300 at the latest, and `train` at
    the first epoch beyond 75% of num_epochs.
    """
    if train.stop_epoch:
        return min(train.stop_epoch, train.num_epochs)
    if train.training_mode == "full":
        return train.num_epochs
    last = min(train.num_epochs, _STOP)
    if train.training_mode == "train":
        last = min(last, math.floor(_TRAIN_SHARE * train.num_epochs) + 1)
    return last


def evaluates_after(epoch: int, train: TrainConfig, evaluation: EvalConfig) -> bool:
    """True if an evaluation follows `epoch` (1-based) during training."""
    if train.benchmark or train.skip_test:
        return False
    if train.training_mode not in _EVALUATING_MODES and not evaluation.eval_start:
        return False
    period = evaluation.eval_period or train.checkpoint_period
    start = evaluation.eval_start or (_EVAL_START if stop_epoch(train) >= _EVAL_START else 1)
    return epoch >= start and epoch % period == 0


def evaluates_at_end(train: TrainConfig) -> bool:
    """True if an evaluation follows the last epoch, should that epoch have had none."""
    return not (train.benchmark or train.skip_test) and (
        train.training_mode != "train300" or train.num_epochs < _EVAL_START
    )


def needs_evaluation_data(train: TrainConfig, evaluation: EvalConfig) -> bool:
    """True if the run reads the validation set at any time."""
    epochs = range(1, stop_epoch(train) + 1)
    return (
        evaluates_at_end(train)
        or any(evaluates_after(epoch, train, evaluation) for epoch in epochs)
        or (train.validate and not train.benchmark)
    )
