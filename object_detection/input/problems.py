"""Counts what is wrong with the records of a run, says it once, and stops at a limit.

The input pipeline calls in here only when something is wrong, so that nothing of it costs time
otherwise. Counts are per process, that is per rank.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import tensorflow as tf

from object_detection.input.example import ObjectRows
from object_detection.records.reader import RecordSet

_LOG = logging.getLogger(__name__)
# After so many messages of one kind only every hundredth is said.
_SPOKEN = 5


class BadInputError(ValueError):
    """The records cannot be used as asked; the message says which, why and what to do."""


class InputProblems:
    """The problems met so far.

    Args:
      records: the set, to name files.
      max_bad_records: so many different records may be undecodable, but no more than half of the
        set; one more ends the run.
      max_instances: rows for the boxes of an image.
      on_overflow: "truncate" or "error", for images with more boxes than rows.
      say: takes a message; default: this module's logger.
    """

    def __init__(
        self,
        records: RecordSet,
        *,
        max_bad_records: int,
        max_instances: int,
        on_overflow: str = "truncate",
        say: Callable[[str], None] = _LOG.warning,
    ):
        if on_overflow not in ("truncate", "error"):
            raise ValueError(f"on_overflow: expected 'truncate' or 'error', got {on_overflow!r}")
        self.bad_records: dict[int, str] = {}  # record_index -> reason
        self.images_over_limit: dict[int, int] = {}  # record_index -> boxes
        self.images_with_unusable_boxes: dict[int, int] = {}  # record_index -> boxes
        self.records = records
        self._say = say
        self._max_bad_records, self.max_instances = max_bad_records, max_instances
        self._on_overflow = on_overflow
        self._lock = threading.Lock()

    def bad_record(self, record_index: int, reason: str) -> None:
        """Counts a record that cannot be parsed or decoded.

        Raises:
          BadInputError: too many; for each batch anew, as of batches that are made at the same
            time the first to complain may never be used.
        """
        is_new = self._is_new(self.bad_records, record_index, reason)
        place = self._place(record_index)
        count = len(self.bad_records)
        if count > self._max_bad_records:
            raise BadInputError(
                f"{place} cannot be used: {reason}. More records are bad than the "
                f"{self._max_bad_records} allowed. Mend or leave out these records, or set "
                "on_bad_record=skip and raise max_bad_records"
            )
        if 2 * count > self.records.num_records:
            raise BadInputError(
                f"{place} cannot be used: {reason}. More than half of the "
                f"{self.records.num_records} records are bad: convert the data set again"
            )
        if is_new:
            self._speak(count, f"{place} is left out: {reason} (bad records so far: {count})")

    def too_many_boxes(self, record_index: int, source_id: str, num_boxes: int) -> None:
        """Counts an image with more boxes than rows.

        Raises:
          BadInputError: by policy; for each batch anew.
        """
        is_new = self._is_new(self.images_over_limit, record_index, num_boxes)
        fact = (
            f"max_instances_per_image={self.max_instances} but image_id={source_id} has "
            f"{num_boxes} boxes ({self._place(record_index)})"
        )
        if self._on_overflow == "error":
            raise BadInputError(
                f"{fact}: raise data.max_instances_per_image or set data.on_overflow=truncate"
            )
        if is_new:
            self._speak(len(self.images_over_limit), f"{fact}: its smallest boxes are left out")

    def unusable_boxes(self, record_index: int, source_id: str, num_boxes: int) -> None:
        """Counts an image with boxes that are not finite or have no area inside it."""
        if self._is_new(self.images_with_unusable_boxes, record_index, num_boxes):
            self._speak(
                len(self.images_with_unusable_boxes),
                f"image_id={source_id} has {num_boxes} boxes that are not finite or have no area "
                f"inside the image ({self._place(record_index)}): they are left out",
            )

    def unknown_category(self, record_index: int, source_id: str, category_id: int) -> None:
        """Raises BadInputError: an object is of no class of the model."""
        raise BadInputError(
            f"image_id={source_id} has an object of category id {category_id}, which the data card "
            f"does not list ({self._place(record_index)}): the card or the checkpoint belongs to "
            "another data set, or the records need converting again"
        )

    def complain_about_objects(
        self, rows: ObjectRows, *, record_indices: tf.Tensor, source_ids: tf.Tensor
    ) -> tf.Tensor:
        """Adds operations to a graph that report what is wrong with the objects of a batch.

        Args:
          rows: of the batch.
          record_indices: int64 [batch].
          source_ids: string [batch].

        Returns:
          A tensor; who depends on it has the report made. Nothing wrong costs no Python.
        """
        is_known = rows.unknown_category == tf.int64.min
        is_over = rows.num_usable > self.max_instances
        is_fine = is_known & ~is_over & (rows.num_unusable == 0)
        inputs = [
            rows.unknown_category, rows.num_usable, rows.num_unusable, record_indices, source_ids,
        ]  # fmt: skip

        def report(*columns):
            for category, num_usable, num_unusable, index, source_id in zip(
                *(column.numpy().tolist() for column in columns)
            ):
                name = source_id.decode()
                if category != tf.int64.min:
                    self.unknown_category(index, name, category)
                if num_usable > self.max_instances:
                    self.too_many_boxes(index, name, num_usable)
                if num_unusable > 0:
                    self.unusable_boxes(index, name, num_unusable)
            return 1

        return tf.cond(
            tf.reduce_all(is_fine),
            lambda: tf.constant(0),
            lambda: tf.py_function(report, inputs, tf.int32),
        )

    def summary(self) -> str:
        """Returns one line of counts, or '' when nothing was wrong."""
        counts = {
            "bad records left out": len(self.bad_records),
            "images with more boxes than rows": len(self.images_over_limit),
            "images with unusable boxes": len(self.images_with_unusable_boxes),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def _is_new(self, known: dict, record_index: int, value: object) -> bool:
        with self._lock:
            is_new = record_index not in known
            known[record_index] = value
            return is_new

    def _place(self, record_index: int) -> str:
        file, position = self.records.locate(record_index)
        return f"file {file}, record {position}"

    def _speak(self, count: int, message: str) -> None:
        if count <= _SPOKEN or count % 100 == 0:
            self._say(message)
