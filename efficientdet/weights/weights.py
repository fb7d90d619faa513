"""Puts the weights of a file into an EfficientDet by the rules of `detector.weight_loading`.

The one thing that may differ without being an error is the class predictor of a detector with
another number of classes. Names are the matter of `efficientdet.weights.weight_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from detector.weight_loading import (
    LoadReport,
    Translated,
    assign,
    first_part,
    pick_classes,
    variables_of,
    with_our_epsilon,
)
from efficientdet.network.heads import CLASS_PREDICTOR
from efficientdet.weights.torch_names import scopes_of
from efficientdet.weights.weight_names import (
    BACKBONE_PREFIXES,
    batch_norm_epsilon,
    expansions_of,
    is_of_automl,
    layout_of,
    padding_of,
    translate,
)
from engine.files.description import read_metadata
from engine.files.weight_files import read_weight_file
from object_detection.input.geometry import BILINEAR

COCO_ID_COUNTS = (90, 91)
"""Class counts of files whose channels are COCO's category ids less 1."""

_VARIABLE = re.compile(r"/((\w+_)?kernel|bias|gamma|beta|moving_(mean|variance)|WSM[^/]*)$")


def _part_of(name: str) -> str:
    if name.startswith(BACKBONE_PREFIXES):
        return "backbone"
    if name.startswith(("resample_p", "fpn_cells/")):
        return "neck"
    return first_part(name)


class Conventions(NamedTuple):
    """What weights demand beside shapes; "" where nothing tells.

    Attributes:
      resampling: how the images of the training were resized.
      padding: of the backbone's strided convolutions.
    """

    resampling: str = ""
    padding: str = ""

    @classmethod
    def of_stored(cls, description: Mapping[str, Any]) -> Conventions:
        """Takes them from the description of one of our checkpoints."""
        model = description["config"]["model"]
        return cls(model.get("resampling", ""), model.get("backbone_padding", ""))


def conventions_of(path: str | Path) -> Conventions:
    """Returns what the weights of a file demand.

    Args:
      path: of one of our checkpoints, which records it, or of another program's weights:
        google/automl's names are those of networks trained with plain bilinear resizing.
        torchvision's are padded symmetrically; timm's names do not tell.
    """
    stored = read_metadata(path)
    if stored:
        return Conventions.of_stored(stored)
    names = read_weight_file(path).arrays
    return Conventions(BILINEAR if is_of_automl(names) else "", padding_of(names))


def load_backbone(model: tf.keras.Model, path: str | Path, *, padding: str = "") -> LoadReport:
    """Loads the backbone of a model from an ImageNet classifier or a detector.

    Args:
      model: a detector of this package.
      path: any file that `read_weight_file` reads, of any layout in `weight_names`.
      padding: of the model's backbone, which tells timm's files apart.

    Returns:
      What was loaded, skipped and missing.

    Raises:
      ValueError: nothing matched, or the file is of another network; nothing was changed.
    """
    wanted = {
        name: variable
        for name, variable in variables_of(model).items()
        if name.startswith(BACKBONE_PREFIXES)
    }
    return _load(model, wanted, path, padding=padding)


def load_detector(
    model: tf.keras.Model,
    path: str | Path,
    *,
    channels: Sequence[int] | None = None,
    coco_channels: Sequence[int] | None = None,
) -> LoadReport:
    """Loads all variables of a model.

    Args:
      model: a detector of this package.
      path: one of our checkpoints, a checkpoint of NVIDIA's or google/automl's program, or any
        other file that `read_weight_file` reads.
      channels: for each class of the model, the class channel of the file it continues, -1 if it
        is new and keeps its values; None if classes correspond one to one.
      coco_channels: taken as `channels` where the file has another class count than the model, one
        of `COCO_ID_COUNTS`: COCO's category ids less 1, as google/automl and NVIDIA number them.

    Returns:
      What was loaded, skipped and missing. With another class count and no `channels` the class
      predictor is missing and everything else is loaded.

    Raises:
      ValueError: nothing matched, or the file is of another network; nothing was changed.
    """
    return _load(model, variables_of(model), path, channels, coco_channels)


def _load(
    model: tf.keras.Model,
    wanted: Mapping[str, tf.Variable],
    path: str | Path,
    channels: Sequence[int] | None = None,
    coco_channels: Sequence[int] | None = None,
    *,
    padding: str = "",
) -> LoadReport:
    file = read_weight_file(path)
    found, skipped = translate(file.arrays, expansions_of(wanted), scopes_of(wanted))
    epsilon = model.get_layer("stem_bn").epsilon
    theirs = batch_norm_epsilon(file.arrays, padding=padding)
    found = with_our_epsilon(found, theirs=theirs, ours=epsilon)
    num_ours, num_theirs = _class_counts(found, wanted)
    if channels is None and num_ours != num_theirs and num_theirs in COCO_ID_COUNTS:
        channels = coco_channels
    if channels is not None:
        found = _select_classes(found, wanted, channels)
    layout = layout_of(file.arrays)
    return assign(
        file,
        found,
        wanted,
        kept=_of_other_classes(found, wanted),
        skipped=skipped,
        part_of=_part_of,
        is_known=lambda name: bool(_VARIABLE.search(name)),
        details=(f"layout {layout}",) if layout else (),
    )


def _class_counts(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable]
) -> tuple[float, float]:
    """Returns how many classes the model and the file have; (0, 0) where either has no head."""
    name = f"{CLASS_PREDICTOR}/bias"
    if name not in wanted or name not in found:
        return 0, 0
    num_anchors = wanted["box_net/box-predict/bias"].shape[0] // 4
    return wanted[name].shape[0] / num_anchors, found[name].array.shape[0] / num_anchors


def _of_other_classes(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable]
) -> dict[str, str]:
    """Returns the class predictor's variables, with the reason, if the file has other classes."""
    ours, theirs = _class_counts(found, wanted)
    if ours == theirs:
        return {}
    reason = f"{ours:g} classes here, {theirs:g} in the file"
    return {name: reason for name in wanted if name.startswith(f"{CLASS_PREDICTOR}/")}


def _select_classes(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable], channels: Sequence[int]
) -> dict[str, Translated]:
    """Picks the channels of the model's classes out of the file's class predictor."""
    num_anchors = wanted["box_net/box-predict/bias"].shape[0] // 4
    names = [f"{CLASS_PREDICTOR}/{kind}" for kind in ("kernel", "pointwise_kernel", "bias")]
    return {**found} | {
        name: pick_classes(found[name], wanted[name], channels, groups=num_anchors)
        for name in names
        if name in found and name in wanted
    }
