"""What the tasks of all families do alike: data sets, network input, rows, scores.

A family's task adds the network, the losses and the detections; see `engine.task.Task` for what the
engine asks. Augmentation: scale, crop, flip and shift on the host
(`object_detection.input.crop_decode`), colour on the device (`object_detection.input.preprocess`),
as are images made of several (`object_detection.augment`). Batches of several canvases come in
shapes of their own, so that every canvas has a compiled step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.batches import iterate
from engine.ranks import distributed, machine
from engine.task import MaskedRows, Shard, Task
from object_detection.augment.mixing import Scenes
from object_detection.augment.scenes import DeviceAugmentation, make_scenes
from object_detection.draw.batches import draw_batch
from object_detection.draw.visualize import contact_sheet
from object_detection.input import geometry as geometry_lib
from object_detection.input.canvases import (
    best_frame,
    fit_size,
    frames_in_use,
    frames_of_networks,
)
from object_detection.input.datasets import (
    bytes_to_cache,
    evaluation_batches,
    records_of_card,
    training_batches,
    with_map_parallelization,
)
from object_detection.input.example import HOST_ONLY
from object_detection.input.geometry import ANTIALIASED, Frames
from object_detection.input.loader import Augmentation, Reading, resizes_on_host
from object_detection.input.preprocess import to_network_input
from object_detection.input.problems import InputProblems
from object_detection.masks.mask_paste import MaskRule, encode_masks
from object_detection.masks.rows import pack_mask
from object_detection.metrics.coco import CocoEvaluator
from object_detection.metrics.set_scores import SetScores
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.records.reader import RecordSet
from object_detection.records.reader import Shard as RecordShard
from object_detection.serve.detections import Detections, MaskDetections

# Examples of a batch that are drawn.
_MOST_DRAWN = 16


class DetectionTask(Task):
    """Binds a configuration to data and a model.

    Args:
      config: the resolved configuration.
      class_map: channels of the model and what they mean.
      train_card: description of the training records; None where nothing is trained.
      eval_card: description of the validation records; None where nothing is evaluated.
      batch_norm: factory of trained batch-norm layers, or None for the plain ones.
      seed: of data order and augmentation.
      mask_rule: how masks are pasted; None for a model without masks.
    """

    network_sizes: Sequence[tuple[int, int]]
    """(height, width) of each shape of network input, pixels; the first checks an export."""

    build_model: Callable[..., tf.keras.Model]
    """The family's, of the model section and num_classes, batch_norm and remat."""

    def __init__(
        self,
        config: Any,
        class_map: ClassMap,
        *,
        train_card: DataCard | None = None,
        eval_card: DataCard | None = None,
        batch_norm: Any = None,
        seed: int = 0,
        mask_rule: MaskRule | None = None,
    ):
        self.config, self.class_map = config, class_map
        self.model = self.build_model(
            config.model,
            num_classes=class_map.num_classes,
            batch_norm=batch_norm,
            remat=config.runtime.remat,
        )
        self.train_card, self.eval_card, self._seed = train_card, eval_card, seed
        self.mask_rule = mask_rule
        self.has_masks = mask_rule is not None
        self.compute_dtype = tf.keras.mixed_precision.global_policy().compute_dtype
        self.set_scores = SetScores(
            config.eval.val_json_file,
            class_map,
            records=config.eval.val_file_pattern,
            card=eval_card,
            scorer=config.eval.coco_scorer,
            is_submission=bool(config.eval.testdev_dir),
            is_scored=not config.eval.skip_eval,
            has_masks=self.has_masks,
            max_detections=config.eval.max_detections,
            score_threshold=self.score_threshold,
        )

    # ------------------------------------------------------------------ of a family

    @property
    def score_threshold(self) -> float:
        """Least score of a detection."""
        raise NotImplementedError

    side_limits: tuple[int, int] | None = None
    """Of images in the network, see `frames_of_networks`."""

    def frames(self, *cards: DataCard | None) -> Sequence[Frames]:
        """Returns the sizes of networks and canvases, and where images are resampled.

        Args:
          cards: of the records that are read; their largest image bounds the canvases.
        """
        known = [card for card in cards if card]
        sides = ([card.max_height for card in known], [card.max_width for card in known])
        side = self.config.data.canvas_size
        frames = frames_of_networks(
            self.network_sizes,
            side_limits=self.side_limits,
            resize_on_host=self._resizes_on_host(),
            canvas_size=(side, side) if side else None,
            largest_image=tuple(map(max, sides)) if known else None,
        )
        resampling = self.config.model.resampling or ANTIALIASED
        return tuple(frame._replace(resampling=resampling) for frame in frames)

    def _resizes_on_host(self) -> bool:
        return resizes_on_host(self.config.data.resize_on, self.config.model.resampling)

    def _network_size(self, batch: Mapping[str, tf.Tensor]) -> tuple[int, int]:
        """Returns the (height, width) of network input that a batch's canvas stands for."""
        del batch
        return self.network_sizes[0]

    def _detect(
        self, network_images: tf.Tensor, geometry: tf.Tensor
    ) -> Detections | MaskDetections:
        """Detections on normalised network input."""
        raise NotImplementedError

    # ------------------------------------------------------------------ detections

    def predict(self, batch: Mapping[str, tf.Tensor]) -> Detections | MaskDetections:
        """Detections of one batch, in original pixels."""
        geometry = batch["geometry"]
        images = self.network_input(batch["image"], geometry, size=self._network_size(batch))
        return self._detect(images, geometry)

    def detect_images(self, images: tf.Tensor) -> Detections | MaskDetections:
        """Detections on whole images: uint8 [batch, height, width, 3], any height and width."""
        shape, choices = tf.shape(images), self.frames()
        size = tf.cast(shape[1:3], tf.float32)

        def detect_in(frame: Frames) -> Detections | MaskDetections:
            limits = fit_size(size, frame)
            height, width = frame.network_size if limits is None else tf.unstack(limits)
            fitted = geometry_lib.fit_inside(size, height=height, width=width)
            geometry = tf.tile(geometry_lib.pack(fitted)[tf.newaxis], [shape[0], 1])
            fitted_images = self.network_input(
                images, geometry, size=frame.network_size, resized_on_host=False
            )
            return self._detect(fitted_images, geometry)

        branches = [functools.partial(detect_in, frame) for frame in choices]
        if len(branches) == 1:
            return branches[0]()
        return tf.switch_case(best_frame(size, choices), branches)

    # ------------------------------------------------------------------ for other runtimes

    stages: tuple[str, ...] = ("detections",)
    """What can be exported by itself, see `run_stage`."""

    def run_stage(self, images: tf.Tensor, stage: str) -> dict[str, tf.Tensor]:
        """Runs the model up to a stage, on images in the network's frame.

        Args:
          images: float32 [batch, height, width, 3], RGB, 0..255, as large as the first network.
          stage: of `stages`.

        Returns:
          Named outputs. `heads`: class_logits_N and box_deltas_N of each level N, as the network
          gives them; `boxes`: boxes [batch, A, 4] (y1, x1, y2, x2), pixels of the input, and scores
          [batch, A, classes] of all anchors; `detections`: boxes, scores, classes, num_valid and
          masks, see `Detections`, in pixels of the input.
        """
        if stage != "detections":
            raise ValueError(f"expected a stage of {self.stages}, got {stage!r}")
        height, width = self.network_sizes[0]
        size = tf.constant([[height, width]] * images.shape[0], tf.float32)
        geometry = geometry_lib.pack(geometry_lib.fit_inside(size, height=height, width=width))
        return self._detect(self.normalised(images), geometry)._asdict()

    def decode_heads(self, heads: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Turns the stage `heads` into the stage `boxes`."""
        raise NotImplementedError

    def normalised(self, images: tf.Tensor) -> tf.Tensor:
        """Turns pixels 0..255 that fill the network's frame into its input."""
        model = self.config.model
        mean, std = tf.constant(model.mean_rgb, tf.float32), tf.constant(model.stddev_rgb)
        return tf.cast((images - mean) / std, self.compute_dtype)

    # ------------------------------------------------------------------ data

    @property
    def num_train_examples(self) -> int:
        """Images in the training records."""
        return self.train_card.num_images if self.train_card else 0

    @property
    def num_eval_examples(self) -> int:
        """Images of one evaluation."""
        return (
            min(self.eval_card.num_images, self.config.eval.eval_samples) if self.eval_card else 0
        )

    def train_dataset(self, *, shard: Shard, start_step: int) -> tf.data.Dataset:
        """Endless training batches; see `datasets.training_batches`."""
        data, batch_size = self.config.data, self.config.train.batch_size
        card = self.train_card
        records = records_of_card(data.training_file_pattern, card)
        batches = training_batches(
            records,
            self._reading(records, card, batch_size=batch_size, with_masks=self.has_masks),
            augmentation=Augmentation(
                jitter=(data.jitter_min, data.jitter_max),
                flip_probability=0.5 if data.input_rand_hflip else 0.0,
                seed=self._seed,  # the same on every rank; ranks differ by their records
                translate=data.translate,
                mixing_end_epoch=data.mixing_end_epoch if data.mosaic or data.mixup else 0,
            ),
            shard=RecordShard(*shard),
            start_position=start_step * batch_size,
            drop_crowd=data.skip_crowd_during_training,
            shuffle_buffer=data.shuffle_buffer,
            cache_below_bytes=bytes_to_cache(data.cache_records),
            repeat_first_batch=self.config.train.use_fake_data,
        )
        return with_map_parallelization(batches, self.config.runtime.enable_map_parallelization)

    def eval_dataset(self, *, shard: Shard) -> tf.data.Dataset:
        """Each validation image once over all ranks; see `datasets.evaluation_batches`."""
        settings, card = self.config.eval, self.eval_card
        records = records_of_card(settings.val_file_pattern, card)
        # Only the validation losses need masks.
        with_masks = self.has_masks and self.config.train.validate
        reading = self._reading(
            records, card, batch_size=settings.eval_batch_size, with_masks=with_masks
        )
        batches = evaluation_batches(
            records, reading, shard=RecordShard(*shard), most_records=settings.eval_samples
        )
        return with_map_parallelization(batches, self.config.runtime.enable_map_parallelization)

    def _reading(
        self, records: RecordSet, card: DataCard, *, batch_size: int, with_masks: bool
    ) -> Reading:
        data, local_size = self.config.data, distributed.placement().local_size
        problems = InputProblems(
            records,
            max_bad_records=self._most_bad_records,
            max_instances=data.max_instances_per_image,
            on_overflow=data.on_overflow,
        )
        return Reading(
            batch_size=batch_size,
            frames=tuple(self.frames(card)),
            class_of_category=self.class_map.of_card(card),
            problems=problems,
            threads=data.input_threads or machine.cores_per_rank(local_size),
            prefetch_batches=data.prefetch_batches,
            with_masks=with_masks,
            png_masks=card.mask_format == "png",
            usual_size=(card.max_height, card.max_width),
        )

    @property
    def _most_bad_records(self) -> int:
        data = self.config.data
        return data.max_bad_records if data.on_bad_record == "skip" else 0

    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Drops the strings."""
        return {k: v for k, v in batch.items() if k not in HOST_ONLY}

    def in_other_shapes(self, batch: Mapping[str, tf.Tensor]) -> list[dict[str, tf.Tensor]]:
        """Returns a training batch with black images on every other canvas that images may need."""
        card = self.train_card
        if self.config.train.use_fake_data:
            return []
        frames = frames_in_use(
            self.frames(card),
            smallest=(card.min_height, card.min_width),
            largest=(card.max_height, card.max_width),
        )
        num_images, height, width, channels = batch["image"].shape
        return [
            {**batch, "image": tf.zeros([num_images, *frame.canvas_size, channels], tf.uint8)}
            for frame in frames
            if tuple(frame.canvas_size) != (height, width)
        ]

    def draw_batch(self, batch: Mapping[str, tf.Tensor]) -> np.ndarray:
        """Draws a training batch as the network sees it, with its boxes or masks."""
        some = {name: value[:_MOST_DRAWN] for name, value in batch.items()}
        size = tuple(batch["image"].shape[1:3])
        frames = next(f for f in self.frames(self.train_card) if tuple(f.canvas_size) == size)
        names = {k: name for k, (_, name) in self.class_map.categories.items()}
        captions = [f"image {source_id.decode()}" for source_id in some["source_id"].numpy()]
        pictures = draw_batch(some, names, frames, augmentation=self.augmentation)
        return contact_sheet(pictures, 4, captions, title="the first training batch")

    @property
    def augmentation(self) -> DeviceAugmentation:
        """What is random on the device in training."""
        data = self.config.data
        return DeviceAugmentation(data.color_jitter, data.mosaic, data.mixup, data.autoaugment)

    def scenes(
        self,
        batch: Mapping[str, tf.Tensor],
        *,
        size: tuple[int, int],
        training: bool,
        seed: tf.Tensor | None,
    ) -> Scenes:
        """Turns a batch into network input with its objects, augmented in training.

        Args:
          batch: as of `device_batch`.
          size: (height, width) of the network input.
          training: whether to augment.
          seed: of the augmentation, int32 [2]; None: none.
        """
        seed = seed if training else None
        return make_scenes(
            batch,
            None if seed is None else self.augmentation,
            network_input=functools.partial(
                self.network_input, batch["image"], batch["geometry"], size=size, seed=seed
            ),
            size=size,
            drop_crowd=self.config.data.skip_crowd_during_training or not training,
            seed=seed,
        )

    def network_input(
        self,
        images: tf.Tensor,
        geometry: tf.Tensor,
        *,
        size: tuple[int, int],
        resized_on_host: bool | None = None,
        seed: tf.Tensor | None = None,
        change: Callable[..., Any] | None = None,
    ) -> tf.Tensor:
        """Turns uint8 canvases into normalised network input in the compute dtype.

        Args:
          images: uint8 [batch, height, width, 3].
          geometry: of the batch, see `object_detection.input.geometry`.
          size: (height, width) of the network input.
          resized_on_host: whether the canvas is the network frame; None: as the settings say.
          seed: of colour jitter, int32 [2]; None: no jitter.
          change: see `to_network_input`.
        """
        model, data = self.config.model, self.config.data
        if resized_on_host is None:
            resized_on_host = self._resizes_on_host()
        return to_network_input(
            images,
            geometry,
            height=size[0],
            width=size[1],
            mean=model.mean_rgb,
            std=model.stddev_rgb,
            dtype=tf.as_dtype(self.compute_dtype),
            resized_on_host=resized_on_host,
            resampling=model.resampling or ANTIALIASED,
            color_jitter=data.color_jitter if seed is not None else 0.0,
            seed=seed,
            change=change,
        )

    # ------------------------------------------------------------------ scores

    @property
    def evaluator(self) -> CocoEvaluator:
        """The ground truth, parsed at first use."""
        return self.set_scores.evaluator

    def check_ground_truth(self) -> None:
        """Scores the ground truth against itself; see `SetScores.check`."""
        self.set_scores.check(self._first_batch)

    def _first_batch(self) -> dict[str, np.ndarray] | None:
        batch = next(iterate(self.eval_dataset(shard=Shard(0, 1))), None)
        return batch and {name: value.numpy() for name, value in batch.items()}

    def detection_rows(
        self, batch: Mapping[str, tf.Tensor], detections: Detections | MaskDetections
    ) -> tuple[np.ndarray | MaskedRows, np.ndarray]:
        """Rows for the scorer with pasted masks; indices of the images without padding."""
        known = {name: batch[name].numpy() for name in ("valid", "source_id")}
        fields = {name: value.numpy() for name, value in detections._asdict().items()}
        masks = fields.pop("masks", None)
        rows, images, origins = self.set_scores.rows(known, **fields)
        if not self.has_masks:
            return rows, images
        sizes = geometry_lib.unpack(batch["geometry"]).original_size.numpy().astype(int)
        packed: list[bytes] = []
        for example in dict.fromkeys(origins[:, 0].tolist()):
            slots = origins[origins[:, 0] == example, 1]
            height, width = sizes[example].tolist()
            encoded = encode_masks(
                masks[example, slots],
                fields["boxes"][example, slots],
                height=height,
                width=width,
                rule=self.mask_rule,
            )
            packed += map(pack_mask, encoded)
        return MaskedRows(rows, packed), images

    def score(self, found: np.ndarray | MaskedRows, images: np.ndarray) -> dict[str, float]:
        """COCO's numbers of boxes and, with the prefix `mask_`, masks; see `SetScores.score`."""
        rows, masks = found if self.has_masks else (found, None)
        return self.set_scores.score(
            rows,
            images,
            masks=masks,
            is_limited=self.num_eval_examples < self.eval_card.num_images,
            most_bad_records=self._most_bad_records,
        )
