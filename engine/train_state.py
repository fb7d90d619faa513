"""Everything that the next training step depends on, and its way into checkpoints and to the ranks.

`weights` is the flat master copy of the trained weights; the update writes it back into the model.
Whoever changes the model's variables otherwise must call `restart_from_model`.
"""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from engine.config.settings import OptimConfig
from engine.optim import ema, optimizers, schedules
from engine.optim.flat import FlatLayout
from engine.optim.plan import StepPlan
from engine.optim.precision import LossScale
from engine.ranks import distributed
from engine.task import Task


class TrainState:
    """The state as variables: model, optimizer, loss scale (dynamic for float16), counters."""

    def __init__(
        self, task: Task, config: OptimConfig, plan: StepPlan, *, dynamic_loss_scale: bool
    ):
        self.model = task.model
        self._config, self._plan = config, plan
        self.step = _counter(0, "step")
        self.total_steps = _counter(plan.total_steps, "total_steps")
        self.warmup_steps = _counter(plan.warmup_steps, "warmup_steps")
        self.loss_scale = LossScale(config.loss_scale, dynamic=dynamic_loss_scale)
        self.trained = optimizers.trained_variables(
            task.model.trainable_variables, freeze_expression=config.var_freeze_expr
        )
        optimizers.freeze_batch_norm(task.model, trained=self.trained)
        trained_ids = {id(v) for v in self.trained}
        # Batch-norm statistics and frozen weights: averaged like the trained ones.
        self.others = [
            v for v in task.model.variables if id(v) not in trained_ids and v.dtype.is_floating
        ]
        self.layout = FlatLayout([v.shape for v in self.trained])
        self.others_layout = FlatLayout([v.shape for v in self.others])
        self.weights = tf.Variable(self.layout.join(self.trained), trainable=True, name="weights")
        self.optimizer = optimizers.build_optimizer(
            config, self.learning_rate, weights=self.weights
        )
        self.averaging = bool(config.moving_average_decay)
        self.average = (
            tf.Variable(self.weights.read_value(), trainable=False, name="average")
            if self.averaging
            else None
        )
        self.others_average = tf.Variable(
            self.others_layout.join(self.others), trainable=False, name="others_average"
        )

    def learning_rate(self, *, steps_ago: int = 0) -> tf.Tensor:
        """Returns the rate of the present step, or of one before, float32 scalar."""
        return schedules.learning_rate_at(
            self.step - steps_ago,
            self._config,
            self._plan,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
        )

    def rescale_momentum(self) -> None:
        """Makes SGD's momentum as if all its gradients had the rate of this step.

        Keras multiplies gradients by the rate as they enter it. Those of a rate of 0 are lost.
        """
        change = tf.math.divide_no_nan(self.learning_rate(), self.learning_rate(steps_ago=1))
        for buffer in optimizers.slots(self.optimizer, self.weights).values():
            buffer.assign(buffer * change)

    def move_averages(self) -> None:
        """Moves the averages of all weights towards them, after each update of the optimizer."""
        if not self.averaging:
            return
        decay = ema.decay_of_update(
            self.optimizer.iterations, limit=self._config.moving_average_decay
        )
        ema.move_average(self.average, self.weights, decay)
        ema.move_average(self.others_average, self.others_layout.join(self.others), decay)

    def moved_by_update(self) -> list[tf.Variable]:
        """Returns what an update changes that is not skipped, and no other."""
        averages = [self.average, self.others_average] if self.averaging else []
        slots = optimizers.slots(self.optimizer, self.weights).values()
        return [self.weights, self.optimizer.iterations, *slots, *averages]

    def counters(self) -> dict[str, tf.Variable]:
        """Returns checkpoint name -> scalar variable."""
        named = {
            "state/step": self.step,
            "state/total_steps": self.total_steps,
            "state/warmup_steps": self.warmup_steps,
            "state/iterations": self.optimizer.iterations,
        }
        if self.loss_scale.dynamic:
            named["state/loss_scale"] = self.loss_scale.value
            named["state/loss_scale_good_steps"] = self.loss_scale.good_steps
        return named

    def buffers(self) -> dict[str, tf.Variable]:
        """Returns the flat buffers beside the weights by name: ema; momentum, or m and v."""
        averages = {"ema": self.average} if self.averaging else {}
        return averages | optimizers.slots(self.optimizer, self.weights)

    def averages(self) -> dict[str, tf.Tensor]:
        """Returns variable name -> averaged value; the plain value where nothing is averaged."""
        values = {_name(v): v.read_value() for v in self.model.variables}
        if self.averaging:
            averaged = self.layout.split(self.average)
            averaged += self.others_layout.split(self.others_average)
            values |= zip(map(_name, [*self.trained, *self.others]), averaged)
        return values

    def tensors(self) -> dict[str, tf.Tensor]:
        """Returns checkpoint name -> value of all of the state."""
        named = {f"model/{_name(v)}": v.read_value() for v in self.model.variables}
        if len(named) != len(self.model.variables):
            raise AssertionError("two model variables share a name")
        for buffer, variable in self.buffers().items():
            pieces = self.layout.split(variable)
            named |= {f"{buffer}/{_name(v)}": p for v, p in zip(self.trained, pieces)}
        if self.averaging:
            pieces = self.others_layout.split(self.others_average)
            named |= {f"ema/{_name(v)}": p for v, p in zip(self.others, pieces)}
        return named | {name: v.read_value() for name, v in self.counters().items()}

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Undoes `tensors`."""
        for variable in self.model.variables:
            variable.assign(values[f"model/{_name(variable)}"])
        for buffer, variable in self.buffers().items():
            pieces = [values[f"{buffer}/{_name(v)}"] for v in self.trained]
            variable.assign(self.layout.join(pieces))
        if self.averaging:
            pieces = [values[f"ema/{_name(v)}"] for v in self.others]
            self.others_average.assign(self.others_layout.join(pieces))
        for name, counter in self.counters().items():
            counter.assign(values[name])
        self.weights.assign(self.layout.join(self.trained))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Gives back the state bit for bit after a block; the host holds it meanwhile."""
        values = {name: value.numpy() for name, value in self.tensors().items()}
        try:
            yield
        finally:
            self.assign(values)

    def restart_from_model(self) -> None:
        """Makes master weights and averages equal to the model's variables, after a load."""
        self.weights.assign(self.layout.join(self.trained))
        self.others_average.assign(self.others_layout.join(self.others))
        if self.averaging:
            self.average.assign(self.weights)

    def broadcast(self) -> None:
        """Gives every rank the state of rank 0."""
        named = {**self.buffers(), **self.counters()}
        distributed.broadcast_variables(
            [
                *self.model.variables,
                self.weights,
                self.others_average,
                *[named[name] for name in sorted(named)],
            ]
        )

    def equalise(self) -> None:
        """Makes batch-norm statistics and their averages the mean over ranks.

        Exact: statistics move linearly, so averaging them now or later gives the same mean.
        """
        statistics = [v for v in self.model.non_trainable_variables if v.dtype.is_floating]
        distributed.average_variables([*statistics, self.others_average])

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averages into the model for a block; then restores the weights bit for bit."""
        weights = [v.read_value() for v in self.model.variables]
        averages = self.averages()
        try:
            for variable in self.model.variables:
                variable.assign(averages[_name(variable)])
            yield
        finally:
            for variable, value in zip(self.model.variables, weights):
                variable.assign(value)


def _counter(value: int, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, dtype=tf.int64, name=name)


def _name(variable: tf.Variable) -> str:
    return variable.name.removesuffix(":0")
