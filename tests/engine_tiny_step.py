"""Training steps of the tiny task, one after the other, and the values they leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from engine_tiny_task import TinyTask

from engine.config.settings import OptimConfig
from engine.optim.plan import StepPlan
from engine.step import TrainStep
from engine.task import Shard
from engine.train_state import TrainState


def make_step(
    task: TinyTask,
    config: OptimConfig,
    plan: StepPlan,
    *,
    use_xla: bool = False,
    dynamic: bool = False,
    seed: int = 0,
    shards: Sequence[Shard] = (),
) -> TrainStep:
    """Makes the step and its state; `dynamic` is of the loss scale."""
    state = TrainState(task, config, plan, dynamic_loss_scale=dynamic)
    return TrainStep(
        task, state, config, use_xla=use_xla, half_gradients=False, seed=seed, shards=shards
    )


def run_steps(step: TrainStep, count: int, *, accumulation: int = 1) -> list[np.ndarray]:
    """Runs steps from where the state is; returns the numbers of each."""
    task, start = step._task, int(step.state.step) * accumulation
    data = iter(task.train_dataset(shard=Shard(0, 1), start_step=start))
    numbers = []
    for _ in range(count):
        batches = [task.device_batch(next(data)) for _ in range(accumulation)]
        numbers.append(step(batches).numpy())
    return numbers


def tensors_of(step: TrainStep) -> dict[str, np.ndarray]:
    """Returns checkpoint name -> value of all of the state."""
    return {name: value.numpy() for name, value in step.state.tensors().items()}
