"""EfficientDet as the engine sees it: data sets, losses, predictions, scores.

Only glue: the network is in `model`, targets and losses in `targets` and `losses`, detections in
`postprocess`, pixels in `input_pipeline` and `object_detection.input.preprocess`. Gradients are
joined over ranks by weight; the weight here is the number of positive anchors, so that the loss is
divided by the positives of the whole global batch (the reference divides by each rank's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from efficientdet import input_pipeline
from efficientdet.layers import drop_connect_seed
from efficientdet.losses import detection_losses
from efficientdet.model import build_model
from efficientdet.postprocess import postprocess
from efficientdet.settings import EfficientDetConfig
from efficientdet.targets import IGNORED_CLASS, Targets, assign_targets
from engine.ranks import distributed
from engine.task import Losses, Shard
from object_detection.boxes.anchors import generate_anchors
from object_detection.input import geometry as geometry_lib
from object_detection.input.example import HOST_ONLY
from object_detection.input.loader import resizes_on_host
from object_detection.input.preprocess import ground_truth_in_network_frame, to_network_input
from object_detection.metrics.coco import CocoEvaluator
from object_detection.metrics.set_scores import SetScores
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections

# A typical number of positives per image: brings the weights of ranks near 1, where float16 is
# at ease.
_POSITIVES_PER_IMAGE = 32.0


class EfficientDetTask:
    """Binds a configuration to data and a model.

    Args:
      config: the resolved configuration.
      class_map: channels of the model and what they mean.
      train_card: description of the training records; None where nothing is trained.
      eval_card: description of the validation records; None where nothing is evaluated.
      batch_norm: factory of batch-norm layers, or None for the plain ones.
      seed: of data order and augmentation.
    """

    loss_names = ("cls_loss", "box_loss", "box_iou_loss", "det_loss")

    def __init__(
        self,
        config: EfficientDetConfig,
        class_map: ClassMap,
        *,
        train_card: DataCard | None = None,
        eval_card: DataCard | None = None,
        batch_norm: Any = None,
        seed: int = 0,
    ):
        self.config, self.class_map = config, class_map
        self.train_card, self._eval_card, self._seed = train_card, eval_card, seed
        model = config.model
        self.model = build_model(
            model,
            num_classes=class_map.num_classes,
            batch_norm=batch_norm,
            remat=config.runtime.remat,
        )
        self.anchors = generate_anchors(
            model.image_size,
            min_level=model.min_level,
            max_level=model.max_level,
            num_scales=model.num_scales,
            aspect_ratios=model.aspect_ratios,
            anchor_scale=model.anchor_scale,
        )
        self.compute_dtype = tf.keras.mixed_precision.global_policy().compute_dtype
        self._scores = SetScores(
            config.eval.val_json_file,
            class_map,
            records=config.eval.val_file_pattern,
            card=eval_card,
            scorer=config.eval.coco_scorer,
            is_submission=bool(config.eval.testdev_dir),
            is_scored=not config.eval.skip_eval,
        )

    # ------------------------------------------------------------------ data

    @property
    def num_train_examples(self) -> int:
        """Images in the training records."""
        return self.train_card.num_images if self.train_card else 0

    @property
    def num_eval_examples(self) -> int:
        """Images of one evaluation."""
        return (
            min(self._eval_card.num_images, self.config.eval.eval_samples) if self._eval_card else 0
        )

    def train_dataset(self, *, shard: Shard, start_step: int) -> tf.data.Dataset:
        """Endless training batches; see `input_pipeline.train_dataset`."""
        return input_pipeline.train_dataset(
            self.config,
            self.train_card,
            self.class_map,
            shard=shard,
            seed=self._seed,
            start_position=start_step * self.config.train.batch_size,
            local_ranks=distributed.placement().local_size,
        )

    def eval_dataset(self, *, shard: Shard) -> tf.data.Dataset:
        """Validation batches; see `input_pipeline.eval_dataset`."""
        return input_pipeline.eval_dataset(
            self.config,
            self._eval_card,
            self.class_map,
            shard=shard,
            local_ranks=distributed.placement().local_size,
        )

    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Drops the strings."""
        return {k: v for k, v in batch.items() if k not in HOST_ONLY}

    # ------------------------------------------------------------------ device

    def network_input(
        self,
        images: tf.Tensor,
        geometry: tf.Tensor,
        *,
        resized_on_host: bool | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Turns uint8 canvases into normalised network input in the compute dtype."""
        if resized_on_host is None:
            resized_on_host = resizes_on_host(self.config.data.resize_on)
        model, data = self.config.model, self.config.data
        height, width = model.image_size
        return to_network_input(
            images,
            geometry,
            height=height,
            width=width,
            mean=model.mean_rgb,
            std=model.stddev_rgb,
            dtype=tf.as_dtype(self.compute_dtype),
            resized_on_host=resized_on_host,
            color_jitter=data.color_jitter if seed is not None else 0.0,
            seed=seed,
        )

    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Forward pass, targets and losses of one batch."""
        loss = self.config.loss
        images = self.network_input(
            batch["image"], batch["geometry"], seed=seed if training else None
        )
        if seed is None:
            outputs = self.model(images, training=training)
        else:
            with drop_connect_seed(seed):
                outputs = self.model(images, training=training)
        parts = detection_losses(
            outputs["class_logits"],
            outputs["box_deltas"],
            self._targets(batch, training=training),
            self.anchors,
            num_classes=self.class_map.num_classes,
            alpha=loss.alpha,
            gamma=loss.gamma,
            label_smoothing=loss.label_smoothing,
            delta=loss.delta,
            box_loss_weight=loss.box_loss_weight,
            iou_loss_type=loss.iou_loss_type or None,
            iou_loss_weight=loss.iou_loss_weight,
        )
        return self._weighted(parts, batch_size=images.shape[0])

    def _targets(self, batch: Mapping[str, tf.Tensor], *, training: bool) -> Targets:
        height, width = self.config.model.image_size
        gt_boxes, gt_classes = ground_truth_in_network_frame(
            batch["boxes"],
            batch["classes"],
            batch["is_crowd"],
            batch["geometry"],
            height=height,
            width=width,
            drop_crowd=self.config.data.skip_crowd_during_training or not training,
        )
        targets = assign_targets(
            self.anchors, gt_boxes, gt_classes, num_classes=self.class_map.num_classes
        )
        if training:
            return targets
        # Images that only fill up the last batch of a validation count for nothing.
        classes = tf.where(batch["valid"][:, tf.newaxis], targets.class_targets, IGNORED_CLASS)
        return targets._replace(class_targets=classes)

    def _weighted(self, parts: Any, *, batch_size: int) -> Losses:
        values = {name: getattr(parts, name) for name in self.loss_names}
        if self.config.loss.loss_normalizer == "rank":
            return Losses(values["det_loss"], values, tf.constant(1.0))
        # The parts are divided by n + 1; together all batches of a step are to be divided by
        # (sum of n) + 1.
        batches = distributed.size() * self.config.optim.gradient_accumulation
        count = parts.num_positives + 1.0 / batches
        factor = (parts.num_positives + 1.0) / count
        values = {name: value * factor for name, value in values.items()}
        return Losses(values["det_loss"], values, count / (_POSITIVES_PER_IMAGE * batch_size))

    def predict(self, batch: Mapping[str, tf.Tensor]) -> Detections:
        """Detections of one batch, in original pixels."""
        return self._detect(
            self.network_input(batch["image"], batch["geometry"]), batch["geometry"]
        )

    def detect_images(self, images: tf.Tensor) -> Detections:
        """Detections on whole images: uint8 [batch, height, width, 3], any height and width."""
        shape = tf.shape(images)
        size = tf.tile(tf.cast(shape[tf.newaxis, 1:3], tf.float32), [shape[0], 1])
        height, width = self.config.model.image_size
        geometry = geometry_lib.pack(geometry_lib.fit_inside(size, height=height, width=width))
        return self._detect(self.network_input(images, geometry, resized_on_host=False), geometry)

    def _detect(self, network_images: tf.Tensor, geometry: tf.Tensor) -> Detections:
        nms = self.config.nms_configs
        outputs = self.model(network_images, training=False)
        return postprocess(
            outputs["class_logits"],
            outputs["box_deltas"],
            self.anchors,
            geometry,
            num_classes=self.class_map.num_classes,
            network_size=self.config.model.image_size,
            max_nms_inputs=nms.max_nms_inputs,
            max_output_size=nms.max_output_size,
            nms_method=nms.method,
            iou_threshold=nms.iou_thresh,
            sigma=nms.sigma if nms.sigma is not None else 0.5,
            score_threshold=nms.score_thresh or 0.001,
            class_agnostic=nms.class_agnostic,
            pixel_offset=nms.pixel_offset,
            clip=nms.clip_boxes,
        )

    # ------------------------------------------------------------------ scores

    @property
    def evaluator(self) -> CocoEvaluator:
        """The ground truth, parsed at first use."""
        return self._scores.evaluator

    def check_ground_truth(self) -> None:
        """Scores the ground truth against itself; see `SetScores.check`."""
        self._scores.check(self._first_batch)

    def _first_batch(self) -> dict[str, np.ndarray] | None:
        batch = next(iter(self.eval_dataset(shard=Shard(0, 1))), None)
        return batch and {name: value.numpy() for name, value in batch.items()}

    def detection_rows(
        self, batch: Mapping[str, tf.Tensor], detections: Detections
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows for the scorer, see `detections_to_array`; indices of the images without padding."""
        known = {name: batch[name].numpy() for name in ("valid", "source_id")}
        fields = {name: value.numpy() for name, value in detections._asdict().items()}
        rows, images, _ = self._scores.rows(known, **fields)
        return rows, images

    def score(self, rows: np.ndarray, images: np.ndarray) -> dict[str, float]:
        """COCO's numbers; see `SetScores.score`."""
        data = self.config.data
        return self._scores.score(
            rows,
            images,
            is_limited=self.num_eval_examples < self._eval_card.num_images,
            most_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        )
