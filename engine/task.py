"""What a model family owes the engine. The engine never asks which family it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf


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


class Task(Protocol):
    """A model family bound to a configuration and its data.

    A task may also have
      config: the run's configuration, with what only data or weights could tell filled in; a
        checkpoint records it;
      is_decayed(variable): whether weight decay acts on it; else `optimizers.is_decayed`;
      learning_rate_factor(variable): of SGD, else 1;
      has_masks = True: its rows are `MaskedRows`, which `score` takes;
      more_targets: metric -> least value, what else must be reached for target_ap to end a run;
      dllogger_names: number -> names under which DLLogger's file has it as well: losses, those of
        `Throughput.recent_summary`, metrics, averages of the run.
    """

    model: tf.keras.Model
    loss_names: Sequence[str]

    @property
    def num_train_examples(self) -> int:
        """Images of one epoch."""

    @property
    def num_eval_examples(self) -> int:
        """Images of one evaluation."""

    def train_dataset(self, *, shard: Shard, start_step: int) -> tf.data.Dataset:
        """Endless batches, continuing after `start_step` batches of this rank.

        A batch is a dict of tensors; `source_id` (string [batch]) names its images.
        """

    def eval_dataset(self, *, shard: Shard) -> tf.data.Dataset:
        """This rank's batches: each image once over all ranks.

        Batches as of `train_dataset`, of one size; `valid` (bool [batch]) is False for padding.
        Ranks may have different numbers of batches, or none.
        """

    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Drops what cannot go to the accelerator (strings)."""

    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Targets, forward pass and losses; compiled.

        seed: int32 [2], differs per step, batch and rank; None where nothing is random.
        """

    def predict(self, batch: Mapping[str, tf.Tensor]) -> Any:
        """Detections in original pixels; compiled."""

    def detection_rows(
        self, batch: Mapping[str, tf.Tensor], detections: Any
    ) -> tuple[Any, np.ndarray]:
        """Turns detections into what is gathered over ranks and scored; in a thread of its own.

        Returns:
          float64 [n, 7] rows: image index, x, y, width, height, score, class id, with masks as
          `MaskedRows`; and the int64 indices of the batch's images without padding.
        """

    def check_ground_truth(self) -> None:
        """Raises ValueError when annotations, records and class map do not meet; rank 0 only."""

    def score(self, rows: Any, images: np.ndarray) -> dict[str, float]:
        """Metrics of all rows over the given image indices; rank 0 only.

        {} where there is nothing to score against (a test split without annotations).
        """
