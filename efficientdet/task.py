"""EfficientDet as the engine sees it: losses and predictions; the rest is in `detector.task`.

Only glue: the network is in `model`, targets and losses in `targets` and `losses`, detections in
`postprocess`. Gradients are joined over ranks by weight; the weight here is the number of positive
anchors, so that the loss is divided by the positives of the whole global batch (the reference
divides by each rank's own).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from detector.task import DetectionTask
from efficientdet.losses import detection_losses
from efficientdet.network.layers import drop_connect_seed
from efficientdet.network.model import build_model
from efficientdet.postprocess import decode_all, postprocess
from efficientdet.settings import EfficientDetConfig
from efficientdet.targets import IGNORED_CLASS, Targets, assign_targets
from engine.ranks import distributed
from engine.task import Losses
from object_detection.augment.mixing import Scenes
from object_detection.boxes.anchors import generate_anchors
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections

# A typical number of positives per image: brings the weights of ranks near 1, where float16 is
# at ease.
_POSITIVES_PER_IMAGE = 32.0


class EfficientDetTask(DetectionTask):
    """Binds a configuration to data and a model; arguments as of `DetectionTask`."""

    stages = ("heads", "boxes", "detections")
    loss_names = ("cls_loss", "box_loss", "box_iou_loss", "det_loss")
    build_model = staticmethod(build_model)

    def __init__(self, config: EfficientDetConfig, class_map: ClassMap, **options: Any):
        super().__init__(config, class_map, **options)
        model = config.model
        self.network_sizes = (model.image_size,)
        self.anchors = generate_anchors(
            model.image_size,
            min_level=model.min_level,
            max_level=model.max_level,
            num_scales=model.num_scales,
            aspect_ratios=model.aspect_ratios,
            anchor_scale=model.anchor_scale,
        )

    @property
    def score_threshold(self) -> float:
        """Least score of a detection."""
        return self.config.nms_configs.least_score

    # ------------------------------------------------------------------ device

    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Forward pass, targets and losses of one batch."""
        size = self.config.model.image_size
        scenes = self.scenes(batch, size=size, training=training, seed=seed)
        images = scenes.images
        with drop_connect_seed(seed):
            outputs = self.model(images, training=training)
        parts = detection_losses(
            outputs["class_logits"],
            outputs["box_deltas"],
            self._targets(batch, scenes, training=training),
            self.anchors,
            num_classes=self.class_map.num_classes,
            settings=self.config.loss,
        )
        return self._weighted(parts, batch_size=images.shape[0])

    def _targets(
        self, batch: Mapping[str, tf.Tensor], scenes: Scenes, *, training: bool
    ) -> Targets:
        targets = assign_targets(
            self.anchors, scenes.boxes, scenes.classes, num_classes=self.class_map.num_classes
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

    def run_stage(self, images: tf.Tensor, stage: str) -> dict[str, tf.Tensor]:
        """Adds to the base's the stages without suppression: `heads` and `boxes`."""
        if stage == "detections":
            return super().run_stage(images, stage)
        outputs = self.model(self.normalised(images), training=False)
        heads = {
            f"{kind}_{level}": value
            for kind, values in outputs.items()
            for level, value in enumerate(values, self.config.model.min_level)
        }
        return heads if stage == "heads" else self.decode_heads(heads)

    def decode_heads(self, heads: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Turns the stage `heads` into the stage `boxes`."""
        levels = range(self.config.model.min_level, self.config.model.max_level + 1)
        return decode_all(
            *([heads[f"{kind}_{n}"] for n in levels] for kind in ("class_logits", "box_deltas")),
            self.anchors,
            num_classes=self.class_map.num_classes,
        )

    def _detect(self, network_images: tf.Tensor, geometry: tf.Tensor) -> Detections:
        nms = self.config.nms_configs
        most = self.config.eval.most_detections(nms.max_output_size)
        outputs = self.model(network_images, training=False)
        return postprocess(
            outputs["class_logits"],
            outputs["box_deltas"],
            self.anchors,
            geometry,
            num_classes=self.class_map.num_classes,
            network_size=self.config.model.image_size,
            nms=dataclasses.replace(nms, max_output_size=most),
        )
