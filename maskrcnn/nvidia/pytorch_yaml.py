"""Reads the PyTorch reference's YAML files, with KEY VALUE pairs after them, as our settings.

    run = read_run("maskrcnn/configs/e2e_mask_rcnn_R_50_FPN_1x.yaml", ["SOLVER.BASE_LR", "0.02"],
                   num_ranks=8)

That program counts iterations and saves every 2500, ours counts epochs. So an "epoch" of such a run
is a stretch of iterations between two checkpoints, chosen so that the run's iterations are a whole
number of them; drops and warm-up keep their iterations exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError, flatten, nearest
from engine.config.recipe_yaml import read_yaml
from maskrcnn.config import BODY_STRIDES
from maskrcnn.nvidia import expected_results
from maskrcnn.nvidia.pytorch_yaml_keys import KEYS, YamlValues

# Images of COCO's training set with objects, which the reference's epochs count.
_COCO_TRAIN_IMAGES = 117266
_RECIPE_RANKS = 8  # of the recipes whose proposals are counted per rank
_PROPOSALS_PER_IMAGE = 1000

_RES5 = "ResNet50Conv5ROIFeatureExtractor"
_BOX_HEADS = {
    "FPN2MLPFeatureExtractor": "mlp",
    "FPNXconv1fcFeatureExtractor": "conv",
    _RES5: "res5",
}
_MASK_HEADS = {
    "MaskRCNNFPNFeatureExtractor": "fcn",
    _RES5: "res5",
}
_OF_DETECTRON2 = frozenset(("_BASE_", "VERSION"))
_BODIES = {
    f"{depth}-{body}": (depth.replace("-", "").lower(), body.lower())
    for depth in ("R-50", "R-101")
    for body in ("C4", "C5", "FPN")
}
_DTYPES = {
    "float32": "float32",
    "tf32": "float32",
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}
_NORMS = {"FixedBatchNorm": "frozen_bn", "GN": "group_norm"}
# How files of whole detectors begin: that program's, torchvision's, ours.
_DETECTORS = ("model_", "maskrcnn_", "fasterrcnn_", "ckpt-", "emackpt-", "last_checkpoint")
# catalog://ImageNetPretrained/<key>, and ids of whole detectors below catalog://Caffe2Detectron.
_CATALOG = "catalog://"
CATALOG_FILES: dict[str, str] = {
    "MSRA/R-50": "R-50.pkl",
    "MSRA/R-101": "R-101.pkl",
    "MSRA/R-50-GN": "R-50-GN.pkl",
    "MSRA/R-101-GN": "R-101-GN.pkl",
    "FAIR/20171220/X-101-32x8d": "X-101-32x8d.pkl",
}


@dataclasses.dataclass(frozen=True)
class YamlRun:
    """What a YAML file asks for."""

    model_name: str
    overrides: dict[str, Any]  # section.field -> value, for `settings.base_config(model_name)`
    train_sets: tuple[str, ...]  # names in the data-set catalog; concatenated
    test_sets: tuple[str, ...]  # evaluated one by one
    expected_results: tuple[Any, ...]  # [task, metric, [mean, deviation]] each
    sigma_tolerance: float  # deviations of the mean that still pass
    notes: tuple[str, ...]  # what is done differently here


def read_run(
    path: str | Path,
    pairs: Sequence[str] = (),
    *,
    num_ranks: int,
    weights_dir: str = "weights",
    num_examples: int = _COCO_TRAIN_IMAGES,
    is_training: bool = True,
) -> YamlRun:
    """Reads a YAML file and KEY VALUE pairs, which win over it.

    Args:
      path: of the file; '' for that program's defaults alone.
      pairs: KEY, VALUE, KEY, VALUE, ... as on the command line.
      num_ranks: processes that share `SOLVER.IMS_PER_BATCH`.
      weights_dir: folder with the files of `catalog://` weights.
      num_examples: training images, which only `PER_EPOCH_EVAL` needs.
      is_training: False: `SOLVER.IMS_PER_BATCH` is not shared and need not be divisible.

    Raises:
      ConfigError: an unknown key (names the nearest), a value of another type, or something that
        this program does not have.
      FileNotFoundError: there is no file at `path`.
    """
    values, content = YamlValues(), read_yaml(path) if path else {}
    if not _OF_DETECTRON2.isdisjoint(content):
        raise ConfigError(
            f"{path}: a file of Detectron2, expected one of NVIDIA's program or of "
            "maskrcnn-benchmark: use --model_name=maskrcnn-r50-fpn and flags in its place "
            "(docs/coming_from.md)"
        )
    for key, value in flatten(content).items():
        values.set(key, value, source=str(path))
    if len(pairs) % 2:
        raise ConfigError(f"expected KEY VALUE pairs after the options, {pairs[-1]!r} has no value")
    for key, value in zip(pairs[::2], pairs[1::2]):
        values.set(key, value, source="command line")
    model_name, overrides = _network(values)
    overrides |= {key.target: values[name] for name, key in KEYS.items() if key.target is not None}
    overrides |= _input(values) | _proposals(values, is_fpn=overrides["model.body"] == "fpn")
    shared = _require_shares(values, num_ranks, is_training=is_training)
    overrides |= _solver(values, shared=shared, num_examples=num_examples)
    overrides |= _weights(values["MODEL.WEIGHT"], weights_dir)
    if values.is_given("OUTPUT_DIR"):
        overrides["train.model_dir"] = values["OUTPUT_DIR"]
    expected_results.check_form(values["TEST.EXPECTED_RESULTS"])
    return YamlRun(
        model_name=model_name,
        overrides=overrides,
        train_sets=values["DATASETS.TRAIN"],
        test_sets=values["DATASETS.TEST"],
        expected_results=tuple(values["TEST.EXPECTED_RESULTS"]),
        sigma_tolerance=float(values["TEST.EXPECTED_RESULTS_SIGMA_TOL"]),
        notes=tuple(_notes(values)),
    )


def _chosen(values: YamlValues, key: str, options: Mapping[str, Any]) -> Any:
    """Translates a word.

    Raises:
      ConfigError: it is not among the options.
    """
    word = values[key]
    if word not in options:
        raise ConfigError(
            f"{key}={word!r}: expected one of {list(options)}{nearest(word, options)}"
        )
    return options[word]


def _network(values: YamlValues) -> tuple[str, dict[str, Any]]:
    """Returns the row of our table that comes nearest, and what differs from it."""
    depth, body = _chosen(values, "MODEL.BACKBONE.CONV_BODY", _BODIES)
    groups = (values["MODEL.RESNETS.NUM_GROUPS"], values["MODEL.RESNETS.WIDTH_PER_GROUP"])
    if groups == (32, 8) and depth == "r101":
        depth = "x101-32x8d"
    elif groups != (1, 64):
        raise ConfigError(
            f"MODEL.RESNETS.NUM_GROUPS, WIDTH_PER_GROUP={groups}: expected (1, 64), or (32, 8) "
            "with R-101"
        )
    norms = {f"BottleneckWith{word}": norm for word, norm in _NORMS.items()}
    norm = _chosen(values, "MODEL.RESNETS.TRANS_FUNC", norms)
    stems = {f"StemWith{word}": norm for word, norm in _NORMS.items()}
    if _chosen(values, "MODEL.RESNETS.STEM_FUNC", stems) != norm:
        raise ConfigError("MODEL.RESNETS.TRANS_FUNC and STEM_FUNC: expected the same norm in both")
    family = "maskrcnn" if values["MODEL.MASK_ON"] else "fasterrcnn"
    if values["MODEL.RPN_ONLY"]:
        family = "rpn"
    name = f"{family}-{depth}-{body}"
    overrides: dict[str, Any] = {
        "model.body": body,
        "model.norm": norm,
        "model.padding": "symmetric",
        "model.stride_in": "1x1" if values["MODEL.RESNETS.STRIDE_IN_1X1"] else "3x3",
    }
    for key, target in (
        ("MODEL.FPN.USE_GN", "fpn_norm"),
        ("MODEL.ROI_BOX_HEAD.USE_GN", "box_head_norm"),
        ("MODEL.ROI_MASK_HEAD.USE_GN", "mask_head_norm"),
    ):
        overrides[f"model.{target}"] = "group_norm" if values[key] else ""
    if family != "rpn":
        overrides["model.box_head"] = _chosen(
            values, "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR", _BOX_HEADS
        )
    if family == "maskrcnn":
        overrides["model.mask_head"] = _chosen(
            values, "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR", _MASK_HEADS
        )
    _check_fixed(values, body, family=family)
    channels = [
        values[key]
        for key in ("MODEL.BACKBONE.OUT_CHANNELS", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS")
        if values.is_given(key)
    ]
    if body == "fpn" and channels:
        overrides["model.fpn_num_filters"] = channels[0]
    ratios = values["MODEL.RPN.ASPECT_RATIOS"]
    if not ratios or min(ratios) <= 0:
        raise ConfigError(f"MODEL.RPN.ASPECT_RATIOS={ratios}: expected numbers above 0")
    if ratios != KEYS["MODEL.RPN.ASPECT_RATIOS"].default:
        overrides["model.aspect_ratios"] = tuple((r**-0.5, r**0.5) for r in ratios)
    if values.is_given("MODEL.ROI_BOX_HEAD.NUM_CLASSES"):
        overrides["data.num_classes"] = values["MODEL.ROI_BOX_HEAD.NUM_CLASSES"] - 1
    return name, overrides


def _check_fixed(values: YamlValues, body: str, *, family: str) -> None:
    """Raises ConfigError for values that contradict the body or that are the same for all here."""
    is_dilated = body == "c5" and values["MODEL.RESNETS.RES5_DILATION"] > 1
    strides = (16,) if is_dilated else BODY_STRIDES[body]
    expected: dict[str, Any] = {
        "MODEL.RPN.ANCHOR_STRIDE": strides,
        "MODEL.RPN.USE_FPN": body == "fpn",
        "MODEL.RPN.RPN_HEAD": "SingleConvRPNHead",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
        "MODEL.GROUP_NORM.DIM_PER_GP": -1,
        "SOLVER.WEIGHT_DECAY_BIAS": 0,
        "INPUT.TO_BGR255": True,
    }
    scales = tuple(1.0 / stride for stride in (strides[:4] if body == "fpn" else strides))
    if family != "rpn":
        expected |= {"MODEL.ROI_HEADS.USE_FPN": body == "fpn"}
        expected |= {"MODEL.ROI_BOX_HEAD.POOLER_SCALES": scales}
        predictor = "MODEL.ROI_BOX_HEAD.PREDICTOR"
        is_pooled = values["MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR"] == _RES5
        # That res5 goes with c4 only is said when all is known.
        if values.is_given(predictor) and (body == "c4" or not is_pooled):
            expected[predictor] = "FastRCNNPredictor" if is_pooled else "FPNPredictor"
    if family == "maskrcnn":
        expected["MODEL.ROI_MASK_HEAD.PREDICTOR"] = "MaskRCNNC4Predictor"
    if family == "maskrcnn" and not values["MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR"]:
        expected |= {"MODEL.ROI_MASK_HEAD.POOLER_SCALES": scales}
        expected |= {
            "MODEL.ROI_MASK_HEAD.RESOLUTION": 2 * values["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"],
            "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": values[
                "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"
            ],
        }
    for key, value in expected.items():
        if values[key] != value:
            raise ConfigError(f"{key}={values[key]!r}: expected {value!r} with this network")
    key, divisor = "DATALOADER.SIZE_DIVISIBILITY", min(strides[-1], 32)
    if values[key] and (values[key] < 0 or divisor % values[key]):
        raise ConfigError(
            f"{key}={values[key]}: expected 0 or a divisor of {divisor}: sides of this network's "
            "inputs are multiples of that"
        )


def _input(values: YamlValues) -> dict[str, Any]:
    mean, stddev = values["INPUT.PIXEL_MEAN"], values["INPUT.PIXEL_STD"]
    if len(mean) != 3 or len(stddev) != 3:
        raise ConfigError("INPUT.PIXEL_MEAN, PIXEL_STD: expected three numbers (B, G, R) each")
    weights = values["MODEL.ROI_HEADS.BBOX_REG_WEIGHTS"]
    if len(weights) != 4:
        raise ConfigError(f"MODEL.ROI_HEADS.BBOX_REG_WEIGHTS={weights}: expected (x, y, w, h)")
    sides = values["INPUT.MIN_SIZE_TRAIN"]
    if not sides or min(sides) < 1:
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN={sides}: expected one or more sizes, pixels")
    # Several short sides: images are scaled to any size between, within the largest's canvas.
    jitter = {"data.jitter_min": min(sides) / max(sides)} if len(set(sides)) > 1 else {}
    return {
        **jitter,
        "model.image_size": (max(sides), values["INPUT.MAX_SIZE_TRAIN"]),
        "model.mean_rgb": tuple(mean[::-1]),
        "model.stddev_rgb": tuple(stddev[::-1]),
        "roi.bbox_reg_weights": tuple(weights[index] for index in (1, 0, 3, 2)),
        "rpn.train_rpn_nms_threshold": values["MODEL.RPN.NMS_THRESH"],
        "rpn.test_rpn_nms_thresh": values["MODEL.RPN.NMS_THRESH"],
        "runtime.precision": _chosen(values, "DTYPE", _DTYPES),
    }


def _proposals(values: YamlValues, *, is_fpn: bool) -> dict[str, Any]:
    """Proposals per image; with an FPN that program counts them per rank in training."""
    if not is_fpn:
        train, test = "MODEL.RPN.POST_NMS_TOP_N_TRAIN", "MODEL.RPN.POST_NMS_TOP_N_TEST"
        return {
            "rpn.train_rpn_post_nms_topn": values[train],
            "rpn.test_rpn_post_nms_topn": values[test],
        }
    per_image = _PROPOSALS_PER_IMAGE
    if values.is_given("MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"):
        images = max(values["SOLVER.IMS_PER_BATCH"] // _RECIPE_RANKS, 1)
        per_image = max(values["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"] // images, 1)
    return {
        "rpn.train_rpn_post_nms_topn": per_image,
        "rpn.test_rpn_post_nms_topn": values["MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"],
    }


def _require_shares(values: YamlValues, num_ranks: int, *, is_training: bool) -> dict[str, int]:
    """Returns the images of one rank, by section of the batch."""
    shares = {}
    for section in ("SOLVER", "TEST"):
        key = f"{section}.IMS_PER_BATCH"
        sharing = num_ranks if is_training or section == "TEST" else 1
        if values[key] < 1 or values[key] % sharing:
            raise ConfigError(
                f"{key}={values[key]}: expected a multiple of the {num_ranks} ranks that share it"
            )
        shares[section] = values[key] // sharing
    return shares


def _solver(values: YamlValues, *, shared: Mapping[str, int], num_examples: int) -> dict[str, Any]:
    batch, total = values["SOLVER.IMS_PER_BATCH"], values["SOLVER.MAX_ITER"]
    if total < 1:
        raise ConfigError(f"SOLVER.MAX_ITER={total}: expected at least 1")
    accumulated = values["SOLVER.ACCUMULATE_STEPS"] if values["SOLVER.ACCUMULATE_GRAD"] else 1
    rate, warmup = values["SOLVER.BASE_LR"], values["SOLVER.WARMUP_ITERS"]
    overrides = {
        "train.batch_size": shared["SOLVER"],
        "eval.eval_batch_size": shared["TEST"],
        "optim.gradient_accumulation": accumulated,
        "optim.lr_batch_size": batch * accumulated,
        **_warmup(values, rate=rate, warmup=warmup),
        "optim.lr_decay_method": "stepwise",
        "solver.decay_norm_scale": True,
    }
    if values["PER_EPOCH_EVAL"]:
        per_epoch = -(-num_examples // (batch * accumulated))
        epochs = math.ceil(total / per_epoch)
        overrides |= {
            "eval.target_ap": values["MIN_BBOX_MAP"],
            "eval.eval_start": 1,
            "eval.eval_period": 1,
        }
        if values["MODEL.MASK_ON"]:
            overrides["test.target_mask_ap"] = values["MIN_MASK_MAP"]
    else:
        epochs = _stretches(total, period=values["SOLVER.CHECKPOINT_PERIOD"])
        per_epoch = -(-total // epochs)
        overrides |= {
            "train.num_examples_per_epoch": per_epoch * batch * accumulated,
            "eval.eval_start": epochs,
            "eval.eval_period": epochs,
        }
    return overrides | {
        "train.num_epochs": epochs,
        "train.checkpoint_period": 1,
        "optim.lr_warmup_epoch": warmup / per_epoch,
        "optim.lr_step_epochs": tuple(step / per_epoch for step in values["SOLVER.STEPS"]),
    }


def _warmup(values: YamlValues, *, rate: float, warmup: int) -> dict[str, Any]:
    """Returns the rate at iteration 0, and how it goes on."""
    factor = values["SOLVER.WARMUP_FACTOR"]
    starts = {
        "linear": rate * factor,
        "constant": rate * factor,
        # A slope per iteration, which may not start below 0.
        "mlperf_linear": max(rate - warmup * factor, 0.0),
    }
    is_constant = values["SOLVER.WARMUP_METHOD"] == "constant"
    return {
        "optim.lr_warmup_init": _chosen(values, "SOLVER.WARMUP_METHOD", starts),
        "optim.lr_warmup_method": "constant" if is_constant else "linear",
    }


def _stretches(total: int, *, period: int) -> int:
    """Divides a run into stretches of nearly `period` iterations, equal ones where possible."""
    if period < 1:
        raise ConfigError(f"SOLVER.CHECKPOINT_PERIOD={period}: expected at least 1")
    wanted = max(round(total / period), 1)
    near = [n for n in range(max(wanted // 2, 1), 2 * wanted + 1) if total % n == 0]
    return min(near, key=lambda n: abs(n - wanted)) if near else wanted


def _weights(weight: str, folder: str) -> dict[str, Any]:
    """Returns where weights come from: a backbone, or a whole detector."""
    if weight.startswith(("http://", "https://")):
        raise ConfigError(f"MODEL.WEIGHT={weight}: download the file and name its path")
    if not weight.startswith(_CATALOG):
        is_detector = Path(weight).name.startswith(_DETECTORS)
        return {"train.pretrained_ckpt" if is_detector else "train.backbone_init": weight}
    place = weight.removeprefix(_CATALOG)
    if place.startswith("Caffe2Detectron/"):
        return {"train.pretrained_ckpt": f"{folder}/{place.split('/')[-1]}.pkl"}
    key = place.removeprefix("ImageNetPretrained/")
    if key not in CATALOG_FILES:
        raise ConfigError(f"MODEL.WEIGHT={weight}: unknown{nearest(key, CATALOG_FILES)}")
    return {"train.backbone_init": f"{folder}/{CATALOG_FILES[key]}"}


def _notes(values: YamlValues) -> list[str]:
    """Says what a run does differently from that program."""
    notes = []
    sides = values["INPUT.MIN_SIZE_TRAIN"]
    train = (max(sides), values["INPUT.MAX_SIZE_TRAIN"])
    test = (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"])
    if len(set(sides)) > 1:
        notes.append(f"short sides are drawn from {min(sides)} to {max(sides)}, not from a list")
    if train != test:
        notes.append(f"images are tested at the training size {train}, not at {test}")
    if values.is_given("MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"):
        notes.append("proposals are chosen for each image, not among the images of a rank")
    return notes
