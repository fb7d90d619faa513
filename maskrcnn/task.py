"""Mask R-CNN as the engine sees it: data sets, losses, predictions, scores.

Only glue: the forward passes are in `forward`, pixels in `input_pipeline` and
`object_detection.input.preprocess`, scores in `object_detection.metrics`. Gradients are joined over
ranks by weight; the weight here is the number of images, which joins losses that are means over
images (`losses`) to those of the whole global batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.optim.optimizers import is_decayed
from engine.ranks import distributed
from engine.task import Losses, MaskedRows, Shard
from maskrcnn import input_pipeline
from maskrcnn.config import with_our_conventions
from maskrcnn.network.model import build_model
from maskrcnn.nvidia.dllogger_names import DLLOGGER_NAMES
from maskrcnn.regions.forward import Forward, GroundTruth, valid_sizes
from maskrcnn.regions.losses import batch_weight
from maskrcnn.regions.postprocess import to_original
from maskrcnn.settings import MaskRcnnConfig
from object_detection.input import geometry as geometry_lib
from object_detection.input.canvases import Frames, best_frame, fit_size
from object_detection.input.example import HOST_ONLY
from object_detection.input.loader import resizes_on_host
from object_detection.input.preprocess import ground_truth_in_network_frame, to_network_input
from object_detection.masks.mask_paste import MaskRule, encode_masks
from object_detection.masks.rows import pack_mask
from object_detection.metrics.coco import CocoEvaluator
from object_detection.metrics.set_scores import SetScores
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.serve.detections import Detections, MaskDetections

_NO_SEED = (0, 0)


class MaskRcnnTask:
    """Binds a configuration to data and a model.

    Args:
      config: the resolved configuration, with the model's conventions filled in.
      class_map: channels of the model and what they mean.
      train_card: description of the training records; None where nothing is trained.
      eval_card: description of the validation records; None where nothing is evaluated.
      batch_norm: factory of trained batch-norm layers, or None for the plain ones.
      seed: of data order and augmentation.
    """

    dllogger_names = DLLOGGER_NAMES

    def __init__(
        self,
        config: MaskRcnnConfig,
        class_map: ClassMap,
        *,
        train_card: DataCard | None = None,
        eval_card: DataCard | None = None,
        batch_norm: Any = None,
        seed: int = 0,
    ):
        config = dataclasses.replace(config, model=with_our_conventions(config.model))
        self.config, self.class_map = config, class_map
        self.train_card, self._eval_card, self._seed = train_card, eval_card, seed
        self.model = build_model(
            config.model,
            num_classes=class_map.num_classes,
            batch_norm=batch_norm,
            remat=config.runtime.remat,
        )
        self._forward = Forward(config, self.model)
        self.loss_names = self._forward.loss_names
        self.has_masks = config.model.include_mask
        test = config.test
        self.mask_rule = (
            MaskRule(test.mask_threshold, test.mask_paste_convention) if self.has_masks else None
        )
        self.more_targets = {"mask_AP": config.test.target_mask_ap} if self.has_masks else {}
        self.compute_dtype = tf.keras.mixed_precision.global_policy().compute_dtype
        self._frames = input_pipeline.frames_of(config, [train_card, eval_card])
        self._scores = SetScores(
            config.eval.val_json_file,
            class_map,
            records=config.eval.val_file_pattern,
            card=eval_card,
            scorer=config.eval.coco_scorer,
            is_submission=bool(config.eval.testdev_dir),
            is_scored=not config.eval.skip_eval,
            has_masks=self.has_masks,
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
            frames=self._frames,
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
            frames=self._frames,
            shard=shard,
            local_ranks=distributed.placement().local_size,
        )

    def device_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Drops the strings."""
        return {k: v for k, v in batch.items() if k not in HOST_ONLY}

    # ------------------------------------------------------------------ solver

    def is_decayed(self, variable: tf.Variable) -> bool:
        """True for kernels and, if the solver says so, the scales of trained norms."""
        is_scale = variable.name.removesuffix(":0").endswith("/gamma")
        return is_decayed(variable) or (self.config.solver.decay_norm_scale and is_scale)

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
        images = self._network_input(batch, size, seed=seed if training else None)
        parts = self._forward.losses(
            images,
            self._ground_truth(batch, size),
            training=training,
            seed=tf.constant(_NO_SEED) if seed is None else seed,
        )
        weight = batch_weight(batch["valid"]) / float(images.shape[0])
        return Losses(tf.add_n(list(parts.values())), parts, weight)

    def predict(self, batch: Mapping[str, tf.Tensor]) -> Detections | MaskDetections:
        """Detections of one batch, in original pixels."""
        size = self._network_size(batch)
        return self._detect(self._network_input(batch, size), batch["geometry"])

    def detect_images(self, images: tf.Tensor) -> Detections | MaskDetections:
        """Detections on whole images: uint8 [batch, height, width, 3], any height and width."""
        shape = tf.shape(images)
        size = tf.cast(shape[1:3], tf.float32)

        def detect_in(frame: Frames) -> Detections | MaskDetections:
            height, width = frame.network_size
            fitted = geometry_lib.fit_inside(size, height=height, width=width)
            scale = geometry_lib.scaled_size_within(size, fit_size(size, frame)) / size
            geometry = geometry_lib.pack(fitted._replace(network_scale=scale))
            geometry = tf.tile(geometry[tf.newaxis], [shape[0], 1])
            batch = {"image": images, "geometry": geometry}
            return self._detect(
                self._network_input(batch, frame.network_size, resized_on_host=False), geometry
            )

        branches = [functools.partial(detect_in, frame) for frame in self._frames]
        if len(branches) == 1:
            return branches[0]()
        return tf.switch_case(best_frame(size, self._frames), branches)

    def _detect(self, images: tf.Tensor, geometry: tf.Tensor) -> Detections | MaskDetections:
        """Runs the network on its normalised input."""
        size = tuple(images.shape[1:3])
        places = geometry_lib.unpack(geometry)
        found, masks = self._forward.detect(
            images, valid_sizes(places.original_size, places.network_scale, size)
        )
        return to_original(
            found, geometry, network_width=size[1], masks=masks, pixel_offset=self._far_corner
        )

    @property
    def _far_corner(self) -> float:
        """What far corners lack to be edges: Detectron's boxes end at their last pixel."""
        return 1.0 if self.config.model.anchor_convention == "detectron" else 0.0

    def _network_size(self, batch: Mapping[str, tf.Tensor]) -> tuple[int, int]:
        """Returns the (height, width) of network input that a batch's canvas stands for."""
        networks = {frame.canvas_size: frame.network_size for frame in self._frames}
        return networks[tuple(batch["image"].shape[1:3])]

    def _network_input(
        self,
        batch: Mapping[str, tf.Tensor],
        size: tuple[int, int],
        *,
        resized_on_host: bool | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Turns uint8 canvases into normalised network input in the compute dtype."""
        model, data = self.config.model, self.config.data
        if resized_on_host is None:
            resized_on_host = resizes_on_host(data.resize_on)
        return to_network_input(
            batch["image"],
            batch["geometry"],
            height=size[0],
            width=size[1],
            mean=model.mean_rgb,
            std=model.stddev_rgb,
            dtype=tf.as_dtype(self.compute_dtype),
            resized_on_host=resized_on_host,
            color_jitter=data.color_jitter if seed is not None else 0.0,
            seed=seed,
        )

    def _ground_truth(self, batch: Mapping[str, tf.Tensor], size: tuple[int, int]) -> GroundTruth:
        """Moves the objects of a batch into the network's frame."""
        height, width = size
        boxes, classes = ground_truth_in_network_frame(
            batch["boxes"],
            batch["classes"],
            batch["is_crowd"],
            batch["geometry"],
            height=height,
            width=width,
            drop_crowd=False,
        )
        places = geometry_lib.unpack(batch["geometry"])
        frames = geometry_lib.original_to_network(batch["boxes"], places, network_width=width)
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
            image_sizes=valid_sizes(places.original_size, places.network_scale, size),
            is_counted=batch["valid"],
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
        self, batch: Mapping[str, tf.Tensor], detections: Detections | MaskDetections
    ) -> tuple[np.ndarray | MaskedRows, np.ndarray]:
        """Rows for the scorer with pasted masks; indices of the images without padding."""
        known = {name: batch[name].numpy() for name in ("valid", "source_id")}
        fields = {name: value.numpy() for name, value in detections._asdict().items()}
        masks = fields.pop("masks", None)
        rows, images, origins = self._scores.rows(known, **fields)
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
                **self.mask_rule._asdict(),
            )
            packed += map(pack_mask, encoded)
        return MaskedRows(rows, packed), images

    def score(self, found: np.ndarray | MaskedRows, images: np.ndarray) -> dict[str, float]:
        """COCO's numbers of boxes and, with the prefix `mask_`, masks; see `SetScores.score`."""
        data = self.config.data
        rows, masks = found if self.has_masks else (found, None)
        return self._scores.score(
            rows,
            images,
            masks=masks,
            is_limited=self.num_eval_examples < self._eval_card.num_images,
            most_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        )
