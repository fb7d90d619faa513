"""Puts the weights of a file into a Mask R-CNN by the rules of `detector.weight_loading`.

Three things may differ from file to model without being an error: the number of classes (the
predictors then keep their values), the order of anchors, and where stage 5 stands (in the body, or
on RoI features). Conventions may not: weights demand a padding, a place of the stride and pixel
statistics, those of a detector also its anchors, box coding and RoIAlign, which `read_source` tells
before a model is built. Names are the matter of `weight_names`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from detector.weight_loading import (
    LoadReport,
    Translated,
    assign,
    pick_classes,
    variables_of,
    with_our_epsilon,
)
from engine.files.description import read_metadata
from engine.files.weight_files import WeightFile, read_weight_file
from maskrcnn.config import OUR_CONVENTIONS, Conventions, with_conventions
from maskrcnn.network.model import MaskRCNN
from maskrcnn.weights.foreign_names import TORCHVISION
from maskrcnn.weights.weight_names import (
    CLASS_PREDICTORS,
    OURS,
    batch_norm_epsilon,
    conventions_of_layout,
    layout_of,
    row_of_models,
    translate,
)

_STAGE5 = ("backbone/layer4/", "box_head/layer4/")
_COCO_IDS_AND_BACKGROUND = 91
_OF_BACKBONE = ("backbone/", _STAGE5[1])
_ALSO_EXPECTED = (
    ", or the names of NVIDIA's ResNet-50, torchvision, maskrcnn-benchmark, Detectron, Detectron2, "
    "mmdetection or matterport's Mask_RCNN"
)


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A weight file, who wrote it, and what it demands of the network."""

    file: WeightFile
    layout: str  # see weight_names; '' if unknown
    conventions: Conventions | None  # None: nothing is known of them


def _details(source: WeightSource) -> tuple[str, ...]:
    """Returns the lines of a report that tell who wrote a file and what it demands."""
    lines = [f"layout {source.layout}"]
    if source.conventions:
        padding, stride_in, mean, stddev, *of_detector = source.conventions
        lines.append(
            f"convention: padding {padding}, stride in {stride_in}, mean {_numbers(mean)}, "
            f"deviation {_numbers(stddev)} of RGB 0..255"
        )
        if None not in of_detector:
            anchors, coding, iou, roi_align, resampling = of_detector
            lines.append(
                f"convention: anchors {anchors}, coding offset {coding:g}, IoU offset {iou:g}, "
                f"RoIAlign {roi_align}, resampling {resampling}"
            )
    return tuple(lines)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def read_source(path: str | Path) -> WeightSource:
    """Reads a weight file and finds out what it demands, without a model.

    Args:
      path: any file that `read_weight_file` reads.

    Returns:
      What `load_backbone` and `load_detector` take in place of a path. Fill the configuration with
      its conventions (`config.with_conventions`) before the model is built.

    Raises:
      FileNotFoundError, ValueError: as of `read_weight_file`.
    """
    file = read_weight_file(path)
    layout = layout_of(file.arrays)
    if layout == OURS:
        conventions = _stored_conventions(read_metadata(file.path))
    else:
        conventions = conventions_of_layout(layout, file.arrays)
    return WeightSource(file, layout, conventions)


def has_coco_ids(source: WeightSource) -> bool:
    """Tells whether the classes of a file are COCO's category ids less 1, as torchvision's are."""
    scores = source.file.arrays.get("roi_heads.box_predictor.cls_score.bias", ())
    return source.layout == TORCHVISION and len(scores) == _COCO_IDS_AND_BACKGROUND


def _stored_conventions(metadata: Mapping[str, Any]) -> Conventions | None:
    """Returns the conventions that one of our checkpoints records, if it does."""
    model = metadata.get("config", {}).get("model", {})
    values = [model.get(name) for name in Conventions._fields]
    if not all(values[: len(OUR_CONVENTIONS.of_backbone())]):
        return None
    return Conventions(*(tuple(v) if isinstance(v, list) else v for v in values))


def load_backbone(model: MaskRCNN, source: str | Path | WeightSource) -> LoadReport:
    """Loads the body of a model from an ImageNet classifier or a detector; see `load_detector`.

    With a c4 body stage 5 goes to the box head.
    """
    wanted = {
        name: variable
        for name, variable in variables_of(model).items()
        if name.startswith(_OF_BACKBONE)
    }
    return _load(model, wanted, source, is_backbone=True)


def load_detector(
    model: MaskRCNN,
    source: str | Path | WeightSource,
    *,
    channels: Sequence[int] | None = None,
) -> LoadReport:
    """Loads all variables of a model.

    Args:
      model: of `build_model`.
      source: a path, or what `read_source` made of it.
      channels: for each class of the model, the foreground class of the file, from 0, that
        it continues, -1 if it is new and keeps its values; None if classes correspond one to one.
        torchvision's classes are COCO's category ids less 1, see `has_coco_ids`, Detectron's the 80
        categories in order.

    Returns:
      What was loaded, skipped and missing. With another class count and no `channels` the
      class-specific predictors are missing and everything else is loaded.

    Raises:
      ValueError: nothing matched, the file is of another network, or it demands other conventions
        than the model's; nothing was changed.
    """
    return _load(model, variables_of(model), source, channels=channels)


def _load(
    model: MaskRCNN,
    wanted: Mapping[str, tf.Variable],
    source: str | Path | WeightSource,
    *,
    channels: Sequence[int] | None = None,
    is_backbone: bool = False,
) -> LoadReport:
    source = source if isinstance(source, WeightSource) else read_source(source)
    file = source.file
    if conventions := source.conventions:  # those of the model must be the same
        demanded = conventions.of_backbone() if is_backbone else conventions
        with_conventions(model.config, demanded, source=file.path)
    found, skipped = {}, {}
    if source.layout:
        found, skipped = translate(source.layout, file.arrays, model.config)
    found = _place_stage5(found, wanted)
    if is_backbone:
        others = [name for name in found if not name.startswith(_OF_BACKBONE)]
        skipped |= {found.pop(name).source: "not part of the backbone" for name in others}
    elif channels is not None:
        found = _select_classes(found, wanted, channels, num_classes=model.num_classes)
    theirs = batch_norm_epsilon(source.layout, file.arrays)
    found = with_our_epsilon(found, theirs=theirs, ours=model.config.bn_epsilon)
    row = row_of_models(source.layout, file.arrays)
    is_other = row and not model.config.name.endswith(f"-{row}")
    return assign(
        file,
        found,
        wanted,
        kept=_of_other_classes(found, wanted, num_classes=model.num_classes),
        skipped=skipped,
        hint=f"it is of --model_name=maskrcnn-{row} or fasterrcnn-{row}" if is_other else "",
        details=_details(source),
        also_expected=_ALSO_EXPECTED,
    )


def _place_stage5(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable]
) -> dict[str, Translated]:
    """Moves stage 5 of the body to the box head or back, to where the model has it."""
    placed = {}
    for name, value in found.items():
        for here, there in (_STAGE5, _STAGE5[::-1]):
            moved = there + name[len(here) :]
            if name.startswith(here) and name not in wanted and moved in wanted:
                name = moved
                break
        placed[name] = value
    return placed


def _of_other_classes(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable], *, num_classes: int
) -> dict[str, str]:
    """Returns the predictors' variables, with the reason, if the file has other classes."""
    bias = found.get("box_head/cls_score/bias")
    if bias is None or bias.array.size == num_classes + 1:
        return {}
    reason = f"{num_classes} classes here, {bias.array.size - 1} in the file"
    return {name: reason for name in wanted if name.startswith(CLASS_PREDICTORS)}


def _select_classes(
    found: Mapping[str, Translated],
    wanted: Mapping[str, tf.Variable],
    channels: Sequence[int],
    *,
    num_classes: int,
) -> dict[str, Translated]:
    """Picks the model's classes out of the file's predictors."""
    if len(channels) != num_classes:
        raise ValueError(
            f"channels has {len(channels)} entries; expected one for each of the "
            f"model's {num_classes} classes."
        )
    return {**found} | {
        name: pick_classes(
            value,
            wanted[name],
            channels,
            width=4 if "bbox_pred" in name else 1,
            has_background="cls_score" in name,
        )
        for name, value in found.items()
        if name in wanted and name.startswith(CLASS_PREDICTORS)
    }
