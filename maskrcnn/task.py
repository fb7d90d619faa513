"""Mask R-CNN as the engine sees it: losses and predictions; the rest is in `detector.task`.

Only glue: the forward passes are in `regions.forward`. Gradients are joined over
ranks by weight; the weight here is the number of images, which joins losses that are means over
images (`losses`) to those of the whole global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from detector.task import DetectionTask
from engine.task import Losses
from maskrcnn.config import with_our_conventions
from maskrcnn.network.model import build_model
from maskrcnn.nvidia.dllogger_names import DLLOGGER_NAMES
from maskrcnn.regions.forward import Forward, GroundTruth
from maskrcnn.regions.postprocess import to_original
from maskrcnn.settings import MaskRcnnConfig
from object_detection.input import geometry as geometry_lib
from object_detection.input.geometry import Frames
from object_detection.input.preprocess import ground_truth_in_network_frame
from object_detection.masks.mask_paste import MaskRule
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections, MaskDetections

_NO_SEED = (0, 0)


class MaskRcnnTask(DetectionTask):
    """Binds a configuration to data and a model; arguments as of `DetectionTask`.

    Conventions of the model that the configuration leaves open are ours.
    """

    dllogger_names = DLLOGGER_NAMES
    build_model = staticmethod(build_model)

    def __init__(self, config: MaskRcnnConfig, class_map: ClassMap, **options: Any):
        config = dataclasses.replace(config, model=with_our_conventions(config.model))
        test, has_masks = config.test, config.model.include_mask
        rule = MaskRule(test.mask_threshold, test.mask_paste_convention)
        super().__init__(config, class_map, mask_rule=rule if has_masks else None, **options)
        self._forward = Forward(config, self.model)
        self.loss_names = self._forward.loss_names
        self.more_targets = {"mask_AP": test.target_mask_ap} if has_masks else {}
        self.network_sizes = config.model.canvas_sizes
        self.side_limits = config.model.image_size
        self._frames = super().frames(self.train_card, self.eval_card)

    def frames(self, *cards: DataCard | None) -> Sequence[Frames]:
        """The same for all records: the largest image of all bounds the canvases."""
        del cards
        return self._frames

    @property
    def score_threshold(self) -> float:
        """Least score of a detection."""
        return self.config.test.test_score_thresh

    # ------------------------------------------------------------------ solver

    def is_decayed(self, variable: tf.Variable) -> bool:
        """True for kernels and, if the solver says so, the scales of trained norms."""
        is_scale = variable.name.removesuffix(":0").endswith("/gamma")
        return super().is_decayed(variable) or (self.config.solver.decay_norm_scale and is_scale)

    def learning_rate_factor(self, variable: tf.Variable) -> float:
        """Returns the solver's factor for biases, the shifts of norms among them."""
        is_bias = variable.name.removesuffix(":0").endswith(("/bias", "/beta"))
        return self.config.solver.bias_lr_factor if is_bias else 1.0

    # ------------------------------------------------------------------ device

    def losses(
        self, batch: Mapping[str, tf.Tensor], *, training: bool, seed: tf.Tensor | None = None
    ) -> Losses:
        """Forward pass, targets and losses of one batch."""
        size = self._network_size(batch)
        images = self.network_input(
            batch["image"], batch["geometry"], size=size, seed=seed if training else None
        )
        parts = self._forward.losses(
            images,
            self._ground_truth(batch, size),
            training=training,
            seed=tf.constant(_NO_SEED) if seed is None else seed,
        )
        weight = tf.reduce_mean(tf.cast(batch["valid"], tf.float32))
        return Losses(tf.add_n(list(parts.values())), parts, weight)

    def _detect(self, images: tf.Tensor, geometry: tf.Tensor) -> Detections | MaskDetections:
        """Runs the network on its normalised input."""
        size = tuple(images.shape[1:3])
        places = geometry_lib.unpack(geometry)
        found, masks = self._forward.detect(images, geometry_lib.ends_in_network(places, size))
        return to_original(
            found, geometry, network_width=size[1], masks=masks, pixel_offset=self._far_corner
        )

    @property
    def _far_corner(self) -> float:
        """What far corners lack to be edges: Detectron's boxes end at their last pixel."""
        return 1.0 if self.config.model.anchor_convention == "detectron" else 0.0

    def _network_size(self, batch: Mapping[str, tf.Tensor]) -> tuple[int, int]:
        networks = {frame.canvas_size: frame.network_size for frame in self._frames}
        return networks[tuple(batch["image"].shape[1:3])]

    def _ground_truth(self, batch: Mapping[str, tf.Tensor], size: tuple[int, int]) -> GroundTruth:
        """Moves the objects of a batch into the network's frame."""
        boxes, classes = ground_truth_in_network_frame(batch, size, drop_crowd=False)
        places = geometry_lib.unpack(batch["geometry"])
        frames = geometry_lib.original_to_network(batch["boxes"], places, network_width=size[1])
        boxes -= tf.constant([0.0, 0.0, self._far_corner, self._far_corner])
        is_crowd = batch["is_crowd"]
        keeps_crowds = not self.config.data.skip_crowd_during_training
        return GroundTruth(
            boxes=tf.where(is_crowd[..., tf.newaxis], 0.0, boxes),
            classes=tf.where(is_crowd, -1, classes),
            crowds=tf.where(is_crowd[..., tf.newaxis], boxes, 0.0) if keeps_crowds else None,
            packed_masks=batch.get("masks"),
            mask_frames=frames,
            is_mirrored=places.flip > 0.5,
            image_sizes=geometry_lib.ends_in_network(places, size),
            is_counted=batch["valid"],
        )
