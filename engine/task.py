"""What a model family owes the engine. The engine never asks which family it runs."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from engine.optim import optimizers


class Shard(NamedTuple):
    """One rank's share of a data set: `rank` of `size`."""

    rank: int
    size: int


class Losses(NamedTuple):
    """Result of a forward pass.

    loss: float32 scalar to differentiate, without weight decay.
    parts: named float32 scalars to log.
    weight: float32 scalar: how much this batch's mean counts when batches of several ranks are
      joined. A family that divides by a count gives the count, and joined gradients equal those of
      one large batch.
    """

    loss: tf.Tensor
    parts: Mapping[str, tf.Tensor]
    weight: tf.Tensor


class MaskedRows(NamedTuple):
    """Detections with masks.

    rows: float64 [n, 7] as of `Task.detection_rows`.
    masks: what the family made of each row's mask, as bytes.
    """

    rows: np.ndarray
    masks: Sequence[bytes]


class Task(abc.ABC):
    """A model family bound to a configuration and its data; what has a default may be left."""

    model: tf.keras.Model
    loss_names: Sequence[str]
    config: Any = None
    """The run's, with what only data or weights could tell filled in; a checkpoint records it.
    None: as the run was told."""

    has_masks: bool = False
    """Whether its rows are `MaskedRows`, which `score` takes."""

    evaluation_seconds: float = 0.0
    """Length of the last evaluation, without its scoring; the engine tells it."""

    more_targets: Mapping[str, float] = MappingProxyType({})
    """Metric -> least value: what else must be reached for target_ap to end a run."""

    dllogger_names: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Number -> names under which DLLogger's file has it as well: losses, those of
    `Throughput.recent_summary`, metrics, averages of the run."""

    def is_decayed(self, variable: tf.Variable) -> bool:
        """Whether weight decay acts on a variable."""
        return optimizers.is_decayed(variable)

    def learning_rate_factor(self, variable: tf.Variable) -> float:
        """Returns the factor of a variable's learning rate under SGD."""
        del variable
        return 1.0

    def in_other_shapes(self, batch: Mapping[str, tf.Tensor]) -> Sequence[Mapping[str, tf.Tensor]]:
        """Returns a training batch in every other shape that training may meet, any content."""
        del batch
        return []

    def draw_batch(self, batch: Mapping[str, tf.Tensor]) -> np.ndarray | None:
        """Draws a training batch for people to look at: uint8 [height, width, 3]; None: cannot."""
        del batch
        return None

    @property
    @abc.abstractmethod
    def num_train_examples(self) -> int:
        """Images of one epoch."""

    @property
    @abc.abstractmethod
    def num_eval_examples(self) -> int:
        """Images of one evaluation."""

    @abc.abstractmethod
    def train_dataset(self, *, shard: Shard, start_step: int) -> tf.data.Dataset:
        """Endless batches, continuing after `start_step` batches of this rank.

        A batch is a dict of tensors; `source_id` (string [batch]) names its images.
        """

    @abc.abstractmethod
    def eval_dataset(self, *, shard: Shard) -> tf.data.Dataset:
        """This rank's batches: each image once over all ranks.

        Batches as of `train_dataset`, of one size; `valid` (bool [batch]) is False for padding.
        Ranks may have different numbers of batches, or none.
        """

    @abc.abstractmethod
    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Drops what cannot go to the accelerator (strings)."""

    @abc.abstractmethod
    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Targets, forward pass and losses; compiled.

        seed: int32 [2], differs per step, batch and rank; None where nothing is random.
        """

    @abc.abstractmethod
    def predict(self, batch: Mapping[str, tf.Tensor]) -> Any:
        """Detections in original pixels; compiled."""

    @abc.abstractmethod
    def detection_rows(
        self, batch: Mapping[str, tf.Tensor], detections: Any
    ) -> tuple[Any, np.ndarray]:
        """Turns detections into what is gathered over ranks and scored; in a thread of its own.

        Returns:
          float64 [n, 7] rows: image index, x, y, width, height, score, class id, with masks as
          `MaskedRows`; and the int64 indices of the batch's images without padding.
        """

    @abc.abstractmethod
    def check_ground_truth(self) -> None:
        """Raises ValueError when annotations, records and class map do not meet; rank 0 only."""

    @abc.abstractmethod
    def score(self, rows: Any, images: np.ndarray) -> dict[str, float]:
        """Metrics of all rows over the given image indices; rank 0 only.

        {} where there is nothing to score against (a test split without annotations).
        """
