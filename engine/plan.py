"""Derives batch, learning rate and lengths of a run in one place, and the epochs where things happen."""

import math
from typing import NamedTuple

from engine.config import ConfigError, nearest
from engine.settings import EvalConfig, OptimConfig, TrainConfig

MODES = ("train", "traineval", "train300")
# The reference's conventions (its training modes): evaluation from epoch 200 on, a stop at 300 or at 75%.
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

    def describe(self, config: OptimConfig) -> str:
        """One line for the log."""
        how = f"{config.learning_rate:g} as given"
        if config.lr_batch_size:
            how = f"{config.learning_rate:g} per {config.lr_batch_size} images"
        return (
            f"global batch {self.global_batch_size}, learning rate {self.learning_rate:g} ({how}), "
            f"{self.steps_per_epoch} steps per epoch, warm-up {self.warmup_steps} steps, schedule over "
            f"{self.total_steps} steps, stop after epoch {self.stop_epoch}"
        )


def scaled_learning_rate(
    learning_rate: float, *, lr_batch_size: int, global_batch_size: int
) -> float:
    """Returns the rate for the global batch: linear scaling (arXiv 1706.02677, section 2.1); 0 means as it is."""
    return learning_rate * global_batch_size / lr_batch_size if lr_batch_size else learning_rate


def make_plan(
    train: TrainConfig, optim: OptimConfig, *, num_examples: int, num_ranks: int
) -> StepPlan:
    """Computes the plan of a run.

    Args:
      train: settings of the run.
      optim: settings of the optimizer.
      num_examples: images of an epoch, unless `num_examples_per_epoch` says otherwise.
      num_ranks: processes that take part.

    Raises:
      ConfigError: a number that cannot work.
    """
    if train.training_mode not in MODES:
        raise ConfigError(
            f"training_mode={train.training_mode!r} is unknown{nearest(train.training_mode, MODES)}"
        )
    for name, value in (("batch_size", train.batch_size), ("num_epochs", train.num_epochs),
                        ("gradient_accumulation", optim.gradient_accumulation)):  # fmt: skip
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1")
    global_batch = train.batch_size * num_ranks * optim.gradient_accumulation
    steps_per_epoch = math.ceil((train.num_examples_per_epoch or num_examples) / global_batch)
    stop = 1 if train.benchmark else stop_epoch(train)
    if train.benchmark:
        steps_per_epoch = train.benchmark_steps
    return StepPlan(
        learning_rate=scaled_learning_rate(
            optim.learning_rate, lr_batch_size=optim.lr_batch_size, global_batch_size=global_batch
        ),
        global_batch_size=global_batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=int(train.num_epochs * steps_per_epoch),
        warmup_steps=int(optim.lr_warmup_epoch * steps_per_epoch),
        stop_epoch=stop,
    )


def stop_epoch(train: TrainConfig) -> int:
    """Returns the last epoch: --stop_epoch, else the rule of the training mode.

    `train` ends at the first epoch beyond 75% of num_epochs; every mode ends at epoch 300 at the latest.
    """
    if train.stop_epoch:
        return min(train.stop_epoch, train.num_epochs)
    last = min(train.num_epochs, _STOP)
    if train.training_mode == "train":
        last = min(last, math.floor(_TRAIN_SHARE * train.num_epochs) + 1)
    return last


def evaluates_after(epoch: int, train: TrainConfig, evaluation: EvalConfig) -> bool:
    """True if an evaluation follows `epoch` (1-based) during training."""
    if train.benchmark or (train.training_mode != "traineval" and not evaluation.eval_start):
        return False
    period = evaluation.eval_period or train.checkpoint_period
    start = evaluation.eval_start or (_EVAL_START if stop_epoch(train) >= _EVAL_START else 1)
    return epoch >= start and epoch % period == 0


def evaluates_at_end(train: TrainConfig) -> bool:
    """True if an evaluation follows the last epoch, should that epoch have had none."""
    return not train.benchmark and (
        train.training_mode != "train300" or train.num_epochs < _EVAL_START
    )
