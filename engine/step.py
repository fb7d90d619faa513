"""One training step: forward and backward, reduction over ranks, update. Plain functions of state.

forward_backward and update are each one compiled unit; the reduction between them is one allreduce
of the flat gradient (and one of the logged numbers, fused with it where dtypes agree). Finite check
and loss scale look at the reduced gradients, so all ranks decide alike. Gradients leave
forward_backward multiplied by the loss scale and by the batch's weight; the update divides by both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from engine.batches import image_shape, narrowed
from engine.config.settings import OptimConfig
from engine.ranks import distributed
from engine.start.compiled import compiled, is_compiled
from engine.task import Shard, Task
from engine.train_state import TrainState

# Numbers of one step, after the family's own loss names.
STEP_NAMES = ("loss", "reg_l2_loss", "gradient_norm", "learning_rate", "loss_scale", "skipped")


class TrainStep:
    """The compiled step of a task and its state; call it with a batch.

    Args:
      task: the model family.
      state: what the step reads and changes.
      config: optimizer settings.
      use_xla: compile forward+backward and update.
      half_gradients: reduce gradients in float16.
      seed: the run's seed; what is random on the device also depends on the step and the rank.
      shards: the shares of the data that this rank trains on, one batch (or `gradient_accumulation`
        of them) of each in a step; [] for the one of its own. Several stand for as many ranks: what
        is random is theirs, and batch-norm statistics are the mean of what theirs would be.
      compile_forward: False keeps collectives inside the forward pass possible (synchronised batch
        norm).
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
        shards: Sequence[Shard] = (),
        compile_forward: bool = True,
    ):
        self._task, self.state, self._config = task, state, config
        self._half = half_gradients
        ranks = [shard.rank for shard in shards] or [distributed.rank()]
        self._seeds = [(seed * 7919 + rank) % 2**31 for rank in ranks]
        self._statistics = [v for v in task.model.non_trainable_variables if v.dtype.is_floating]
        self.names = (*task.loss_names, *STEP_NAMES)
        self._use_xla, self._compiles_forward = use_xla, use_xla and compile_forward
        self.compiled_forward_backward = tf.function(
            self.forward_backward, autograph=False, jit_compile=self._compiles_forward or None
        )
        self.compiled_update = tf.function(
            self.update, autograph=False, jit_compile=use_xla or None
        )
        self._whole = tf.function(self._run, autograph=False)
        # A program keeps its name, by which a compiled one is found, only within a function.
        self._one_forward_backward = tf.function(
            lambda *inputs: self.compiled_forward_backward(*inputs), autograph=False
        )
        self._one_update = tf.function(
            lambda *inputs: self.compiled_update(*inputs), autograph=False
        )

    def __call__(self, batches: Sequence[Mapping[str, tf.Tensor]]) -> tf.Tensor:
        """Runs one step on `gradient_accumulation` batches of each share.

        Returns:
          The step's numbers, float32 [len(names)], in the order of `names`.
        """
        return self._whole(batches)

    def _run(self, batches: Sequence[Mapping[str, tf.Tensor]]) -> tf.Tensor:
        sums: list[tf.Tensor] = []
        accumulation = len(batches) // len(self._seeds)
        statistics = self._statistics if len(self._seeds) > 1 else []
        before, moved = [v.read_value() for v in statistics], []
        for k, batch in enumerate(batches):
            share, i = divmod(k, accumulation)
            if i == 0:  # each share begins with the statistics of the step before
                for variable, value in zip(statistics, before):
                    variable.assign(value)
            # int64, which is on the accelerator: an int32 would be copied to it by every step.
            place = tf.constant([accumulation, i, self._seeds[share]], tf.int64)
            parts = self.compiled_forward_backward(batch, place)
            sums = [a + b for a, b in zip(sums, parts)] if sums else parts
            if i == accumulation - 1:
                moved.append([v.read_value() for v in statistics])
        for variable, *values in zip(statistics, *moved):
            variable.assign(tf.add_n(values) / float(len(values)))
        return self.compiled_update(*self.reduce(sums))

    def programs(
        self, batches: Sequence[Mapping[str, tf.Tensor]]
    ) -> dict[str, Callable[[], list[tf.Tensor] | tf.Tensor]]:
        """Returns name -> a call of a program of the step, for batches of several shapes.

        Each call compiles the program that a step on such a batch takes, and changes the state as
        it pleases. There are no collectives in them.
        """
        place = tf.constant([1, 0, 0], tf.int64)
        calls: dict[str, Callable[[], list[tf.Tensor] | tf.Tensor]] = {}
        outputs: Sequence[tf.TensorSpec] = ()
        for batch in batches:
            traced = self._one_forward_backward.get_concrete_function(batch, place)
            outputs = traced.structured_outputs
            name = f"forward and backward of {image_shape(batch)}"
            calls[name] = functools.partial(self._one_forward_backward, batch, place)
        zeros = [tf.zeros(output.shape, output.dtype) for output in outputs]
        calls["update"] = functools.partial(self._one_update, *zeros)
        return calls

    def forward_backward(self, batch: Mapping[str, tf.Tensor], place: tf.Tensor) -> list[tf.Tensor]:
        """Runs the model on one batch.

        Args:
          batch: as `engine.batches.to_accelerator` gives it.
          place: int64 [3]: batches of a step, which of them this is, the seed of the share.

        Returns:
          Flat, weighted, scaled gradient [chunks, 128]; weighted losses and, last, the weight. All
          float32 and divided by the number of ranks.
        """
        accumulation, i, share_seed = tf.unstack(place)
        position = self.state.step * accumulation + i
        seed = tf.cast(tf.stack([position, share_seed]), tf.int32)
        with compiled(self._compiles_forward):
            return self._forward_backward(narrowed(batch), seed)

    def _forward_backward(self, batch: Mapping[str, tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
        state = self.state
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(state.trained)
            result = self._task.losses(batch, training=True, seed=seed)
            weight = tf.stop_gradient(tf.cast(result.weight, tf.float32))
            # Weighted before differentiating: gradients of synchronised batch norm cross the ranks.
            weighted = result.loss * weight * state.loss_scale.value
        gradients = tape.gradient(
            weighted, state.trained, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        numbers = [tf.cast(result.parts[name], tf.float32) for name in self._task.loss_names]
        numbers = tf.stack([*numbers, tf.cast(result.loss, tf.float32), 1.0]) * weight
        # Divided here and not after the reduction, which may travel in float16.
        share = 1.0 / distributed.size()
        return [state.layout.join(gradients) * share, numbers * share]

    def reduce(self, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sums over the ranks; the logged numbers always in float32."""
        return distributed.reduce_sum(parts, half=[self._half, False])

    def update(self, gradient: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Unscales, checks, clips, applies; a non-finite step changes only counters and scale.

        Args:
          gradient: [chunks, 128] sum over ranks of weighted, scaled gradients.
          numbers: sums over ranks of the weighted losses and, last, of the weights.

        Returns:
          The step's numbers, float32, in the order of `names`.
        """
        # Else what it makes of the weights alone is made, and kept, from the step's beginning.
        with tf.control_dependencies([gradient]), compiled(self._use_xla):
            return self._update(gradient, numbers)

    def _update(self, gradient: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        state, config, layout = self.state, self._config, self.state.layout
        is_sgd = config.optimizer == "sgd"
        # Nothing of a batch counts where none of its records can be read: all sums are 0.
        weight = tf.where(numbers[-1] > 0.0, numbers[-1], 1.0)
        means = numbers[:-1] / weight
        decayed = tf.constant([float(self._task.is_decayed(v)) for v in state.trained])
        decay = layout.spread(decayed) * config.weight_decay
        penalty = tf.constant(0.0)
        if is_sgd:  # decoupled decay is no part of the loss
            penalty = 0.5 * tf.reduce_sum(decay * tf.square(state.weights))
        with tf.control_dependencies([penalty]):  # one temporary of the weights' size at a time
            gradient = gradient / (state.loss_scale.value * weight)
        if is_sgd:
            with tf.control_dependencies([gradient]):
                gradient += decay * state.weights
        norms = layout.norms(gradient)
        norm = tf.norm(norms)
        finite = tf.math.is_finite(norm) & tf.reduce_all(tf.math.is_finite(means))
        rate = state.learning_rate()
        scale_used = state.loss_scale.value.read_value()

        def apply() -> tf.Tensor:
            if not is_sgd:
                state.weights.assign_sub(rate * decay * state.weights)
            factors = [float(self._task.learning_rate_factor(v)) for v in state.trained]
            clipping = clip_factors(norms, config.clip_gradients_norm)
            clipped = gradient * layout.spread(tf.constant(factors) * clipping)
            if is_sgd and config.momentum_follows_rate:
                state.rescale_momentum()
            state.optimizer.apply_gradients(
                [(clipped, state.weights)], experimental_aggregate_gradients=False
            )
            state.move_averages()
            return tf.constant(0.0)

        if is_compiled():  # a program with branches has the host wait for what they depend on
            before = [(v, v.read_value()) for v in state.moved_by_update()]
            apply()
            for variable, value in before:
                variable.assign(tf.where(finite, variable.read_value(), value))
            skipped = tf.cast(~finite, tf.float32)
        else:
            skipped = tf.cond(finite, apply, lambda: tf.constant(1.0))
        # Outside the condition: a branch that writes hundreds of variables compiles for minutes.
        for variable, value in zip(state.trained, layout.split(state.weights)):
            variable.assign(value)
        state.loss_scale.update(finite)
        state.step.assign_add(1)
        last = [means[-1] + penalty, penalty, norm, rate, scale_used, skipped]
        return tf.concat([means[:-1], tf.stack(last)], axis=0)


def clip_factors(norms: tf.Tensor, limit: float) -> tf.Tensor:
    """Clips each gradient to norm `limit`, then all of them to global norm `limit`.

    Args:
      norms: [n] norms of the gradients.
      limit: largest norm; 0 clips nothing.

    Returns:
      [n] what to multiply each gradient by, 0..1.
    """
    if not limit:
        return tf.ones_like(norms)
    each = limit / tf.maximum(norms, limit)
    return each * limit / tf.maximum(tf.norm(norms * each), limit)
