"""A model family of a few dense layers, for tests of the engine that need no detector.

Everything it computes is easy to repeat in NumPy: a two-layer network, a weighted mean of squared
errors, data drawn once from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from engine.optim.plan import StepPlan
from engine.task import Losses, Shard, Task

INPUTS, HIDDEN, OUTPUTS = 5, 7, 3
# Six steps each, without warm-up.
FOUR_EPOCHS = StepPlan(
    learning_rate=0.2,
    global_batch_size=4,
    steps_per_epoch=6,
    total_steps=24,
    warmup_steps=0,
    stop_epoch=4,
)


def make_examples(count: int) -> dict[str, np.ndarray]:
    """Returns inputs [count, 5], targets [count, 3] and weights [count] (0.5 to 4)."""
    rng = np.random.default_rng(3)
    return {
        "x": rng.normal(size=[count, INPUTS]).astype(np.float32),
        "y": rng.normal(size=[count, OUTPUTS]).astype(np.float32),
        "weight": rng.uniform(0.5, 4.0, size=[count]).astype(np.float32),
    }


def build_model(*, batch_norm: type | None) -> tf.keras.Model:
    """Builds dense -> [batch norm] -> tanh -> dense with weights of a fixed seed.

    Before batch norm there is no bias: its gradient would be nothing but rounding.
    """
    layers = tf.keras.layers
    inputs = tf.keras.Input([INPUTS])
    features = layers.Dense(HIDDEN, use_bias=batch_norm is None, name="hidden")(inputs)
    if batch_norm is not None:
        features = batch_norm(name="hidden_bn", momentum=0.9, epsilon=1e-3)(features)
    outputs = layers.Dense(OUTPUTS, name="out", dtype="float32")(tf.tanh(features))
    model = tf.keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if "bn" not in variable.name:
            variable.assign(rng.normal(size=variable.shape) * 0.5)
    return model


def _noise(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Numbers in -1..1 that depend on the seed; TensorFlow's own differ between XLA and not."""
    phase = tf.cast(seed[0] % 997, tf.float32) * 1.7 + tf.cast(seed[1] % 991, tf.float32) * 0.37
    positions = tf.reshape(tf.range(tf.reduce_prod(shape)), shape)
    return tf.sin(phase + 12.9898 * tf.cast(positions, tf.float32))


class TinyTask(Task):
    """The family.

    Args:
      batch_norm: layer class, or None for a network without batch norm.
      batch_size: per rank.
      num_examples: of an epoch; also evaluated.
      noise: strength of a random change of the targets, from the step's seed.
      poison: example whose target is not a number, or None.
    """

    loss_names = ("square_loss", "mean_output")

    def __init__(
        self,
        *,
        batch_norm: type | None = None,
        batch_size: int = 4,
        num_examples: int = 24,
        noise: float = 0.0,
        poison: int | None = None,
    ):
        self.model = build_model(batch_norm=batch_norm)
        self.examples = make_examples(num_examples)
        self._batch_size, self._noise = batch_size, noise
        if poison is not None:
            self.examples["y"][poison] = np.nan

    @property
    def num_train_examples(self) -> int:
        return len(self.examples["x"])

    @property
    def num_eval_examples(self) -> int:
        return len(self.examples["x"])

    def train_dataset(self, *, shard: Shard, start_step: int) -> tf.data.Dataset:
        """Examples in stored order, the ranks of a step side by side, over and over."""
        step = tf.data.Dataset.counter(start_step)
        offsets = np.arange(self._batch_size) + shard.rank * self._batch_size

        def batch(number: tf.Tensor) -> dict[str, tf.Tensor]:
            first = number * self._batch_size * shard.size
            return self._take((first + offsets) % self.num_train_examples)

        return step.map(batch)

    def eval_dataset(self, *, shard: Shard) -> tf.data.Dataset:
        """The rank's contiguous share; the last batch is filled with example 0."""
        count, size = self.num_eval_examples, self._batch_size
        mine = np.arange(count * shard.rank // shard.size, count * (shard.rank + 1) // shard.size)
        padded = np.concatenate([mine, np.full(-len(mine) % size, -1, int)]).reshape([-1, size])
        indices = tf.data.Dataset.from_tensor_slices(padded)
        return indices.map(lambda i: {**self._take(tf.maximum(i, 0)), "valid": i >= 0})

    def _take(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        taken = {name: tf.gather(values, indices) for name, values in self.examples.items()}
        return {**taken, "index": indices, "source_id": tf.strings.as_string(indices)}

    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: value for name, value in batch.items() if name != "source_id"}

    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Mean over examples of weight * squared error, by the sum of the weights."""
        outputs = self.model(batch["x"], training=training)
        targets = batch["y"]
        if seed is not None and self._noise:
            targets += self._noise * _noise(tf.shape(targets), seed)
        weight = batch["weight"]
        if "valid" in batch:
            weight *= tf.cast(batch["valid"], tf.float32)
        errors = tf.reduce_sum(tf.square(outputs - targets), axis=-1)
        total = tf.reduce_sum(weight)
        loss = tf.reduce_sum(weight * errors) / total
        mean_output = tf.reduce_sum(weight[:, None] * outputs) / total
        return Losses(loss, {"square_loss": loss, "mean_output": mean_output}, total)

    def predict(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return self.model(batch["x"], training=False)

    def detection_rows(
        self, batch: Mapping[str, tf.Tensor], detections: tf.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of index, three outputs, squared error and two zeros."""
        valid, index = batch["valid"].numpy(), batch["index"].numpy()
        outputs = detections.numpy().astype(np.float64)
        errors = np.square(outputs - batch["y"].numpy()).sum(axis=1)
        zeros = np.zeros(len(index))
        rows = np.column_stack([index, outputs, errors, zeros, zeros])
        return rows[valid], index[valid].astype(np.int64)

    def check_ground_truth(self) -> None:
        """Nothing to check."""

    def score(self, rows: np.ndarray, images: np.ndarray) -> dict[str, float]:
        """AP falls with the mean squared error; every example must be there once."""
        assert sorted(images.tolist()) == list(range(self.num_eval_examples))
        ap = 1.0 / (1.0 + rows[:, 4].mean())
        return {"AP": ap, "AP50": ap, "AP_/thing": ap}
