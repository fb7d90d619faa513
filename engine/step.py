"""One training step: forward and backward, reduction over ranks, update. Three functions of (state, batch).

forward_backward and update are each one compiled unit; the reduction between them is one allreduce of the
flat gradient (and one of the logged numbers, fused with it where dtypes agree). Finite check and loss scale look at the reduced gradients, so all
ranks decide alike. A newcomer's trap: gradients leave forward_backward multiplied by the loss scale and by
the batch's weight; the update divides by both.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from engine import distributed, optimizers, schedules
from engine.ema import AveragingOptimizer
from engine.flat import FlatLayout
from engine.settings import OptimConfig
from engine.plan import StepPlan
from engine.precision import LossScale
from engine.task import Task

# Numbers of one step, after the family's own loss names.
STEP_NAMES = ("loss", "reg_l2_loss", "gradient_norm", "learning_rate", "loss_scale", "skipped")


class TrainState:
    """Everything that the next step depends on, as variables: model, optimizer, loss scale, counters.

    `weights` is the flat master copy of the trained weights; the update writes it back into the model.
    """

    def __init__(
        self, task: Task, config: OptimConfig, plan: StepPlan, *, dynamic_loss_scale: bool
    ):
        self.model = task.model
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64, name="step")
        self.total_steps = tf.Variable(
            plan.total_steps, trainable=False, dtype=tf.int64, name="total_steps"
        )
        self.warmup_steps = tf.Variable(
            plan.warmup_steps, trainable=False, dtype=tf.int64, name="warmup_steps"
        )
        self.loss_scale = LossScale(config.loss_scale, dynamic=dynamic_loss_scale)
        self.trained = optimizers.trained_variables(
            task.model.trainable_variables, freeze_expression=config.var_freeze_expr
        )
        trained_ids = {id(v) for v in self.trained}
        self.others = [v for v in task.model.variables if id(v) not in trained_ids]
        self.layout = FlatLayout([v.shape for v in self.trained])
        self.others_layout = FlatLayout([v.shape for v in self.others])
        self.weights = tf.Variable(self.layout.join(self.trained), trainable=True, name="weights")
        self._config, self._plan = config, plan
        self.optimizer = optimizers.build_optimizer(
            config, self.learning_rate, weights=self.weights
        )
        self.averaging = isinstance(self.optimizer, AveragingOptimizer)
        self.others_average = tf.Variable(
            self.others_layout.join(self.others), trainable=False, name="others_average"
        )

    def learning_rate(self) -> tf.Tensor:
        """Returns the rate of the present step, float32 scalar."""
        config = self._config
        return schedules.learning_rate_at(
            self.step,
            self.total_steps,
            method=config.lr_decay_method,
            base=self._plan.learning_rate,
            warmup_init=config.lr_warmup_init,
            warmup_steps=self.warmup_steps,
            drop_shares=[
                e * self._plan.steps_per_epoch / self._plan.total_steps
                for e in config.lr_step_epochs
            ],
            drop_factor=config.lr_step_factor,
            power=config.lr_poly_power,
        )

    def counters(self) -> dict[str, tf.Variable]:
        """Returns checkpoint name -> scalar variable."""
        named = {
            f"state/{name}": getattr(self, name) for name in ("step", "total_steps", "warmup_steps")
        }
        named["state/iterations"] = self.optimizer.iterations
        if self.loss_scale.dynamic:
            named["state/loss_scale"] = self.loss_scale.value
            named["state/loss_scale_good_steps"] = self.loss_scale.good_steps
        return named

    def buffers(self) -> dict[str, tf.Variable]:
        """Returns the optimizer's flat buffers by name: ema, momentum, m, v."""
        return optimizers.slots(self.optimizer, self.weights)

    def averages(self) -> dict[str, tf.Tensor]:
        """Returns variable name -> averaged value; the plain values where nothing is averaged."""
        if not self.averaging:
            return {_name(v): v.read_value() for v in self.model.variables}
        values = dict(
            zip(map(_name, self.trained), self.layout.split(self.buffers()["ema"]), strict=True)
        )
        others = self.others_layout.split(self.others_average)
        return values | dict(zip(map(_name, self.others), others, strict=True))

    def tensors(self) -> dict[str, tf.Tensor]:
        """Returns checkpoint name -> value of all of the state, one tensor per model variable and buffer."""
        named = {f"model/{_name(v)}": v.read_value() for v in self.model.variables}
        if len(named) != len(self.model.variables):
            raise AssertionError("two model variables share a name")
        for buffer, variable in self.buffers().items():
            pieces = self.layout.split(variable)
            named |= {f"{buffer}/{_name(v)}": p for v, p in zip(self.trained, pieces, strict=True)}
        if self.averaging:
            named |= {f"ema/{name}": value for name, value in self.averages().items()}
        return named | {name: v.read_value() for name, v in self.counters().items()}

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Undoes `tensors`."""
        for variable in self.model.variables:
            variable.assign(values[f"model/{_name(variable)}"])
        for buffer, variable in self.buffers().items():
            variable.assign(
                self.layout.join([values[f"{buffer}/{_name(v)}"] for v in self.trained])
            )
        if self.averaging:
            self.others_average.assign(
                self.others_layout.join([values[f"ema/{_name(v)}"] for v in self.others])
            )
        for name, counter in self.counters().items():
            counter.assign(values[name])
        self.weights.assign(self.layout.join(self.trained))

    def restart_from_model(self) -> None:
        """Makes master weights and averages equal to the model's variables, after weights were loaded into it."""
        self.weights.assign(self.layout.join(self.trained))
        self.others_average.assign(self.others_layout.join(self.others))
        if self.averaging:
            self.buffers()["ema"].assign(self.weights)

    def broadcast(self) -> None:
        """Gives every rank the state of rank 0."""
        variables = [*self.model.variables, self.weights, self.others_average]
        variables += [v for _, v in sorted(self.buffers().items())] + [
            v for _, v in sorted(self.counters().items())
        ]
        distributed.broadcast_variables(variables)

    def equalise(self) -> None:
        """Makes batch-norm statistics and their averages the mean over ranks.

        Exact: statistics move linearly, so averaging them now or later gives the same mean.
        """
        statistics = [v for v in self.others if v.dtype.is_floating]
        distributed.average_variables([*statistics, self.others_average])

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averages into the model for the length of a block; leaving it restores the weights bit for bit."""
        trained = [v.read_value() for v in self.model.variables]
        averages = self.averages()
        try:
            for variable in self.model.variables:
                variable.assign(averages[_name(variable)])
            yield
        finally:
            for variable, value in zip(self.model.variables, trained, strict=True):
                variable.assign(value)


def _name(variable: tf.Variable) -> str:
    return variable.name.removesuffix(":0")


class TrainStep:
    """The compiled step of a task and its state; call it with a batch.

    Args:
      task: the model family.
      state: what the step reads and changes.
      config: optimizer settings.
      use_xla: compile forward+backward and update.
      half_gradients: reduce gradients in float16.
      seed: the run's seed; what is random on the device also depends on the step and the rank.
      compile_forward: False keeps collectives inside the forward pass possible (synchronised batch norm).
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        config: OptimConfig,
        *,
        use_xla: bool,
        half_gradients: bool,
        seed: int = 0,
        compile_forward: bool = True,
    ):
        self._task, self.state, self._config = task, state, config
        self._half = half_gradients
        self._seed = (seed * 7919 + distributed.rank()) % 2**31
        self.names = (*task.loss_names, *STEP_NAMES)
        self._forward_backward = tf.function(
            self.forward_backward,
            autograph=False,
            jit_compile=(use_xla and compile_forward) or None,
        )
        self._update = tf.function(self.update, autograph=False, jit_compile=use_xla or None)
        self._whole = tf.function(self._run, autograph=False)

    def __call__(self, batches: Sequence[Mapping[str, tf.Tensor]]) -> tf.Tensor:
        """Runs one step on `gradient_accumulation` batches; returns the step's numbers, float32 [len(names)]."""
        return self._whole(batches)

    def _run(self, batches: Sequence[Mapping[str, tf.Tensor]]) -> tf.Tensor:
        sums: list[tf.Tensor] | None = None
        for i, batch in enumerate(batches):
            position = self.state.step * len(batches) + i
            seed = tf.stack([tf.cast(position, tf.int32), self._seed])
            parts = self._forward_backward(batch, seed)
            sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
        return self._update(*self.reduce(sums))

    def forward_backward(self, batch: Mapping[str, tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns [flat, weighted, scaled gradient; weighted losses and, last, the weight], float32."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.state.trained)
            result = self._task.losses(batch, training=True, seed=seed)
            scaled = result.loss * self.state.loss_scale.value
        gradients = tape.gradient(scaled, self.state.trained)
        gradients = [
            tf.zeros_like(v) if g is None else g
            for g, v in zip(gradients, self.state.trained, strict=True)
        ]
        weight = tf.cast(result.weight, tf.float32) / float(distributed.size())
        numbers = [tf.cast(result.parts[name], tf.float32) for name in self._task.loss_names]
        numbers = tf.stack([*numbers, tf.cast(result.loss, tf.float32), 1.0])
        return [self.state.layout.join(gradients) * weight, numbers * weight]

    def reduce(self, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sums over the ranks; the logged numbers always in float32."""
        return distributed.reduce_sum(parts, half=[self._half, False])

    def update(self, gradient: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Unscales, checks, clips, applies; returns the step's numbers.

        Args:
          gradient: [chunks, 128] sum over ranks of weighted, scaled gradients.
          numbers: sums over ranks of the weighted losses and, last, of the weights.
        """
        state, config, layout = self.state, self._config, self.state.layout
        weight = numbers[-1]
        means = numbers[:-1] / weight
        decay = (
            layout.spread(tf.constant([float(optimizers.is_decayed(v)) for v in state.trained]))
            * config.weight_decay
        )
        penalty = 0.5 * tf.reduce_sum(decay * tf.square(state.weights))
        gradient = gradient / (state.loss_scale.value * weight)
        if config.optimizer == "sgd":
            gradient += decay * state.weights
        norms = layout.norms(gradient)
        norm = tf.norm(norms)
        finite = tf.math.is_finite(norm) & tf.reduce_all(tf.math.is_finite(means))
        rate = state.learning_rate()
        scale_used = state.loss_scale.value.read_value()

        def apply() -> tf.Tensor:
            if config.optimizer == "adamw":
                state.weights.assign_sub(rate * decay * state.weights)
            clipped = gradient * layout.spread(clip_factors(norms, config.clip_gradients_norm))
            state.optimizer.apply_gradients(
                [(clipped, state.weights)], experimental_aggregate_gradients=False
            )
            if state.averaging:
                state.optimizer.average_towards(
                    state.others_average, state.others_layout.join(state.others)
                )
            return tf.constant(0.0)

        skipped = tf.cond(finite, apply, lambda: tf.constant(1.0))
        # Outside the condition: a branch that writes hundreds of variables compiles for minutes.
        for variable, value in zip(state.trained, layout.split(state.weights), strict=True):
            variable.assign(value)
        state.loss_scale.update(finite)
        state.step.assign_add(1)
        total = means[-1] + penalty
        return tf.concat(
            [means[:-1], tf.stack([total, penalty, norm, rate, scale_used, skipped])], axis=0
        )


def clip_factors(norms: tf.Tensor, limit: float) -> tf.Tensor:
    """Returns what to multiply each gradient by: clip each to norm `limit`, then all to global norm `limit`.

    Args:
      norms: [n] norms of the gradients.
      limit: largest norm; 0 clips nothing.

    Returns:
      [n] factors in 0..1.
    """
    if not limit:
        return tf.ones_like(norms)
    each = limit / tf.maximum(norms, limit)
    return each * limit / tf.maximum(tf.norm(norms * each), limit)
