"""Keys of the PyTorch reference's YAML files, their defaults, and where they go in our settings.

A key whose target is None depends on others and is translated in `pytorch_yaml`. Defaults are that
program's, not ours: a file that leaves the learning rate out asks for 0.001. Values must have the
default's type; an int may stand for a float.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.config.fields import ConfigError, nearest
from engine.config.recipe_yaml import literal
from maskrcnn.config import MSRA_MEAN_RGB


class Key(NamedTuple):
    """One key."""

    default: Any
    target: str | None = None  # section.field of ours


KEYS: dict[str, Key] = {
    "MODEL.RPN_ONLY": Key(False),
    "MODEL.MASK_ON": Key(False),
    "MODEL.WEIGHT": Key(""),
    "MODEL.BACKBONE.CONV_BODY": Key("R-50-C4"),
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": Key(2, "model.freeze_at"),
    "MODEL.BACKBONE.OUT_CHANNELS": Key(1024),
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": Key(1024),
    "MODEL.FPN.USE_GN": Key(False),
    "MODEL.FPN.USE_RELU": Key(False, "model.fpn_relu"),
    "MODEL.GROUP_NORM.DIM_PER_GP": Key(-1),
    "MODEL.GROUP_NORM.NUM_GROUPS": Key(32, "model.num_norm_groups"),
    "MODEL.GROUP_NORM.EPSILON": Key(1e-5, "model.gn_epsilon"),
    "MODEL.RESNETS.NUM_GROUPS": Key(1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": Key(64),
    "MODEL.RESNETS.STRIDE_IN_1X1": Key(True),
    "MODEL.RESNETS.TRANS_FUNC": Key("BottleneckWithFixedBatchNorm"),
    "MODEL.RESNETS.STEM_FUNC": Key("StemWithFixedBatchNorm"),
    "MODEL.RESNETS.RES5_DILATION": Key(1, "model.res5_dilation"),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": Key(256),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": Key(64),
    "MODEL.RPN.USE_FPN": Key(False),
    "MODEL.RPN.ANCHOR_SIZES": Key((32, 64, 128, 256, 512), "model.anchor_sizes"),
    "MODEL.RPN.ANCHOR_STRIDE": Key((16,)),
    "MODEL.RPN.ASPECT_RATIOS": Key((0.5, 1.0, 2.0)),
    "MODEL.RPN.STRADDLE_THRESH": Key(0.0, "rpn.rpn_straddle_thresh"),
    "MODEL.RPN.FG_IOU_THRESHOLD": Key(0.7, "rpn.rpn_positive_overlap"),
    "MODEL.RPN.BG_IOU_THRESHOLD": Key(0.3, "rpn.rpn_negative_overlap"),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": Key(256, "rpn.rpn_batch_size_per_im"),
    "MODEL.RPN.POSITIVE_FRACTION": Key(0.5, "rpn.rpn_fg_fraction"),
    "MODEL.RPN.PRE_NMS_TOP_N_TRAIN": Key(12000, "rpn.train_rpn_pre_nms_topn"),
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": Key(6000, "rpn.test_rpn_pre_nms_topn"),
    "MODEL.RPN.POST_NMS_TOP_N_TRAIN": Key(2000, "rpn.train_rpn_level_topn"),
    "MODEL.RPN.POST_NMS_TOP_N_TEST": Key(1000, "rpn.test_rpn_level_topn"),
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN": Key(2000),
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": Key(2000),
    "MODEL.RPN.NMS_THRESH": Key(0.7),
    "MODEL.RPN.MIN_SIZE": Key(0.0, "rpn.rpn_min_size"),
    "MODEL.RPN.RPN_HEAD": Key("SingleConvRPNHead"),
    "MODEL.ROI_HEADS.USE_FPN": Key(False),
    "MODEL.ROI_HEADS.FG_IOU_THRESHOLD": Key(0.5, "roi.fg_thresh"),
    "MODEL.ROI_HEADS.BG_IOU_THRESHOLD": Key(0.5, "roi.bg_thresh_hi"),
    "MODEL.ROI_HEADS.BBOX_REG_WEIGHTS": Key((10.0, 10.0, 5.0, 5.0)),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": Key(512, "roi.batch_size_per_im"),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": Key(0.25, "roi.fg_fraction"),
    "MODEL.ROI_HEADS.SCORE_THRESH": Key(0.05, "test.test_score_thresh"),
    "MODEL.ROI_HEADS.NMS": Key(0.5, "test.test_nms"),
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": Key(100, "test.test_detections_per_image"),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": Key("ResNet50Conv5ROIFeatureExtractor"),
    "MODEL.ROI_BOX_HEAD.PREDICTOR": Key("FastRCNNPredictor"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": Key(14, "model.box_resolution"),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": Key(0, "model.roi_sampling_ratio"),
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": Key((1.0 / 16,)),
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": Key(81),
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": Key(1024, "model.box_mlp_dim"),
    "MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM": Key(256, "model.box_conv_dim"),
    "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS": Key(4, "model.box_num_convs"),
    "MODEL.ROI_BOX_HEAD.USE_GN": Key(False),
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": Key("ResNet50Conv5ROIFeatureExtractor"),
    "MODEL.ROI_MASK_HEAD.PREDICTOR": Key("MaskRCNNC4Predictor"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": Key(14, "model.mask_resolution"),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": Key(0),
    "MODEL.ROI_MASK_HEAD.POOLER_SCALES": Key((1.0 / 16,)),
    "MODEL.ROI_MASK_HEAD.CONV_LAYERS": Key((256, 256, 256, 256), "model.mask_conv_dims"),
    "MODEL.ROI_MASK_HEAD.RESOLUTION": Key(14),
    "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR": Key(True),
    "MODEL.ROI_MASK_HEAD.USE_GN": Key(False),
    "MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD": Key(0.5, "test.mask_threshold"),
    "INPUT.MIN_SIZE_TRAIN": Key((800,)),
    "INPUT.MAX_SIZE_TRAIN": Key(1333),
    "INPUT.MIN_SIZE_TEST": Key(800),
    "INPUT.MAX_SIZE_TEST": Key(1333),
    "INPUT.PIXEL_MEAN": Key(MSRA_MEAN_RGB[::-1]),
    "INPUT.PIXEL_STD": Key((1.0, 1.0, 1.0)),
    "INPUT.TO_BGR255": Key(True),
    "DATASETS.TRAIN": Key(()),
    "DATASETS.TEST": Key(()),
    "DATALOADER.NUM_WORKERS": Key(4, "data.input_threads"),
    "DATALOADER.SIZE_DIVISIBILITY": Key(0),
    "SOLVER.MAX_ITER": Key(40000),
    "SOLVER.BASE_LR": Key(0.001, "optim.learning_rate"),
    "SOLVER.BIAS_LR_FACTOR": Key(2.0, "solver.bias_lr_factor"),
    "SOLVER.MOMENTUM": Key(0.9, "optim.momentum"),
    "SOLVER.WEIGHT_DECAY": Key(5e-4, "optim.weight_decay"),
    "SOLVER.WEIGHT_DECAY_BIAS": Key(0.0),
    "SOLVER.GAMMA": Key(0.1, "optim.lr_step_factor"),
    "SOLVER.STEPS": Key((30000,)),
    "SOLVER.WARMUP_FACTOR": Key(1.0 / 3),
    "SOLVER.WARMUP_ITERS": Key(500),
    "SOLVER.WARMUP_METHOD": Key("linear"),
    "SOLVER.CHECKPOINT_PERIOD": Key(2500),
    "SOLVER.IMS_PER_BATCH": Key(16),
    "SOLVER.ACCUMULATE_GRAD": Key(False),
    "SOLVER.ACCUMULATE_STEPS": Key(1),
    "TEST.IMS_PER_BATCH": Key(8),
    "TEST.EXPECTED_RESULTS": Key(()),
    "TEST.EXPECTED_RESULTS_SIGMA_TOL": Key(4.0),
    "OUTPUT_DIR": Key("."),
    "DTYPE": Key("float32"),
    "PER_EPOCH_EVAL": Key(False),
    "MIN_BBOX_MAP": Key(0.377),
    "MIN_MASK_MAP": Key(0.342),
}

# Accepted, of any value, because nothing here corresponds to them: their effect is always on, or
# they choose between parts of that program.
IGNORED = (
    *("MODEL.DEVICE", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.USE_GN"),
    *("MODEL.SHARE_FEATURES_DURING_TRAINING", "MODEL.ROI_MASK_HEAD.MLP_HEAD_DIM"),
    *("MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS", "DATALOADER.ASPECT_RATIO_GROUPING"),
    *("DATALOADER.HYBRID", "PATHS_CATALOG", "NHWC", "USE_TORCH_DDP", "SAVE_CHECKPOINT"),
)


class YamlValues:
    """Values of all keys, and which of them were given."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    def set(self, key: str, value: Any, *, source: str) -> None:
        """Gives a key a value.

        Raises:
          ConfigError: unknown key (names the nearest), or a value of another type.
        """
        if key in IGNORED:
            return
        if key not in KEYS:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, [*KEYS, *IGNORED])}")
        self._given[key] = _typed(value, KEYS[key].default, where=f"{source}: {key}")

    def __getitem__(self, key: str) -> Any:
        return self._given.get(key, KEYS[key].default)

    def is_given(self, key: str) -> bool:
        """Whether the key has a value of its own and not the default."""
        return key in self._given


def _typed(value: Any, default: Any, *, where: str) -> Any:
    """Returns the value in the default's type; text is read as a Python literal first."""
    if isinstance(value, str) and not isinstance(default, str):
        value = literal(value)
    # Written as a number or as a tuple, in training of several sizes.
    if where.endswith("MIN_SIZE_TRAIN") and isinstance(value, int):
        value = (value,)
    if isinstance(default, tuple):
        if isinstance(value, list):
            value = tuple(value)
        if default and isinstance(value, tuple):
            numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
            if not numbers:
                raise ConfigError(f"{where}: expected numbers as in {default}, got {value!r}")
    is_size = where.endswith("MIN_SIZE_TEST")
    if is_size and isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    kinds = (int, float) if isinstance(default, float) else type(default)
    is_stray_bool = isinstance(value, bool) and not isinstance(default, bool)
    if is_stray_bool or not isinstance(value, kinds):
        raise ConfigError(
            f"{where}: expected {type(default).__name__} as in {default!r}, got {value!r}"
        )
    return value
