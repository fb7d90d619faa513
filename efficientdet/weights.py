"""Puts the weights of a file into a model, strictly, and says what went where.

A load either succeeds as a whole or changes nothing. The one thing that may differ without being an
error is the class predictor of a detector with another number of classes. Kinds of file are the
matter of `engine.files.weight_files`, names that of `efficientdet.weight_names`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from efficientdet.heads import CLASS_PREDICTOR
from efficientdet.weight_names import BACKBONE_PREFIXES, Translated, blocks_of, translate
from engine.files.weight_files import WeightFile, read_weight_file

_VARIABLE_KINDS = (
    "kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
)
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What one load did."""

    path: str
    kind: str  # of file, see engine.files.weight_files
    num_averaged: int  # loaded values that are moving averages
    loaded: tuple[str, ...]  # variables of the model
    skipped: dict[str, str]  # name in the file -> why it was not used
    missing: dict[str, str]  # variable of the model -> why it kept its value

    def format_table(self) -> str:
        """Renders the report as a table by part, with examples of what was left out."""
        rows = [f"weights from {self.path} ({self.kind}, {self.num_averaged} averaged values)"]
        rows.append(f"  {'part':<12}{'loaded':>8}{'missing':>9}")
        parts = sorted({_part_of(name) for name in (*self.loaded, *self.missing)})
        for part in parts:
            loaded = sum(_part_of(name) == part for name in self.loaded)
            missing = sum(_part_of(name) == part for name in self.missing)
            rows.append(f"  {part:<12}{loaded:>8}{missing:>9}")
        rows += _format_examples("kept as initialised", self.missing)
        rows += _format_examples("not used from the file", self.skipped)
        return "\n".join(rows)


def _format_examples(title: str, reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    rows = [f"  {title}: {len(reasons)}"]
    rows += [f"    {name}: {reason}" for name, reason in list(reasons.items())[:_EXAMPLES]]
    if len(reasons) > _EXAMPLES:
        rows.append(f"    and {len(reasons) - _EXAMPLES} more")
    return rows


def _part_of(name: str) -> str:
    if name.startswith(BACKBONE_PREFIXES):
        return "backbone"
    if name.startswith(("resample_p", "fpn_cells/")):
        return "neck"
    return name.split("/")[0]


def load_backbone(
    model: tf.keras.Model,
    path: str | Path,
    *,
    prefer_average: bool = True,
    allow_partial: bool = False,
) -> LoadReport:
    """Loads the backbone of a model from an ImageNet classifier or a detector.

    Args:
      model: a detector or classifier of this package.
      path: any file that `read_weight_file` reads, of any layout in `weight_names`.
      prefer_average: take moving averages where the file has them.
      allow_partial: accept variables that are missing or of another shape.

    Returns:
      What was loaded, skipped and missing.

    Raises:
      ValueError: nothing matched, or the file is of another network; nothing was changed.
    """
    wanted = {
        name: variable
        for name, variable in _variables(model).items()
        if name.startswith(BACKBONE_PREFIXES)
    }
    return _load(
        wanted, read_weight_file(path), prefer_average=prefer_average, allow_partial=allow_partial
    )


def load_detector(
    model: tf.keras.Model,
    path: str | Path,
    *,
    prefer_average: bool = True,
    channel_map: Sequence[int] | None = None,
    allow_partial: bool = False,
) -> LoadReport:
    """Loads all variables of a model.

    Args:
      model: a detector or classifier of this package.
      path: one of our checkpoints, a checkpoint of NVIDIA's or google/automl's program, or any
        other file that `read_weight_file` reads.
      prefer_average: take moving averages where the file has them.
      channel_map: for each class of the model, the class channel of the file it continues; None
        if classes correspond one to one. See `raw_id_channel_map`.
      allow_partial: accept variables that are missing or of another shape.

    Returns:
      What was loaded, skipped and missing. With another class count and no `channel_map` the
      class predictor is missing and everything else is loaded.

    Raises:
      ValueError: nothing matched, or the file is of another network; nothing was changed.
    """
    return _load(
        _variables(model),
        read_weight_file(path),
        prefer_average=prefer_average,
        channel_map=channel_map,
        allow_partial=allow_partial,
    )


def raw_id_channel_map(category_ids: Sequence[int]) -> list[int]:
    """Maps our classes to a predictor whose channel k stands for category id k + 1.

    Both references train such a predictor (91 or 90 channels for the 80 classes of COCO).

    Args:
      category_ids: the dataset's category id of each class, in the order of class ids.

    Returns:
      The file's channel of each class, for `load_detector`.
    """
    return [category_id - 1 for category_id in category_ids]


def _variables(model: tf.keras.Model) -> dict[str, tf.Variable]:
    return {variable.name.removesuffix(":0"): variable for variable in model.variables}


def _load(
    wanted: Mapping[str, tf.Variable],
    file: WeightFile,
    *,
    prefer_average: bool,
    allow_partial: bool,
    channel_map: Sequence[int] | None = None,
) -> LoadReport:
    """Matches, checks everything, and only then assigns."""
    found, skipped = translate(file.arrays, blocks_of(wanted), prefer_average=prefer_average)
    if channel_map is not None:
        found = _select_classes(found, wanted, channel_map)
    missing: dict[str, str] = {}
    problems: list[str] = []
    for name, variable in wanted.items():
        shape = tuple(variable.shape)
        if name not in found:
            missing[name] = "not in the file"
            problems.append(f"{name} is not in the file")
        elif found[name].array.shape != shape:
            missing[name] = f"shape {shape} here, {found[name].array.shape} in the file"
            problems.append(f"{name}: {missing[name]}")
    dropped = _other_class_count(found, wanted)
    if dropped:
        problems = [text for text in problems if not text.startswith(f"{CLASS_PREDICTOR}/")]
        missing = {name: why for name, why in missing.items() if name not in dropped} | dropped
    loaded = [name for name in wanted if name in found and name not in missing]
    if not loaded:
        raise ValueError(_nothing_matched(file, wanted))
    problems += _unexpected(found, wanted)
    if problems and not allow_partial:
        raise ValueError(
            f"{file.path} ({file.kind}) holds weights of another network: {len(loaded)} of "
            f"{len(wanted)} variables match, but {'; '.join(problems[:_EXAMPLES])}"
            f"{' and others' if len(problems) > _EXAMPLES else ''}. Choose the model the file was "
            "made with."
        )
    for name in loaded:
        if not np.all(np.isfinite(found[name].array)):
            raise ValueError(f"{file.path}: {found[name].source} holds non-finite values.")
    for name in loaded:
        wanted[name].assign(found[name].array.astype(wanted[name].dtype.as_numpy_dtype))
    for name, value in found.items():
        if name not in wanted:
            skipped[value.source] = "no such variable in the model"
        elif name in missing:
            skipped[value.source] = missing[name]
    return LoadReport(
        path=file.path,
        kind=file.kind,
        num_averaged=sum(found[name].is_average for name in loaded),
        loaded=tuple(loaded),
        skipped=skipped,
        missing=missing,
    )


def _unexpected(found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable]) -> list[str]:
    """Names variables of the file that a model of this size would have, if it were this one."""
    parts = {_part_of(name) for name in wanted}
    return [
        f"{value.source} has no place in the model"
        for name, value in found.items()
        if name not in wanted
        and _part_of(name) in parts
        and (name.split("/")[-1] in _VARIABLE_KINDS or name.split("/")[-1].startswith("WSM"))
    ]


def _nothing_matched(file: WeightFile, wanted: Mapping[str, tf.Variable]) -> str:
    expected = ", ".join(f"{name} {tuple(wanted[name].shape)}" for name in list(wanted)[:_EXAMPLES])
    present = ", ".join(
        f"{name} {array.shape}" for name, array in list(file.arrays.items())[:_EXAMPLES]
    )
    return (
        f"{file.path} ({file.kind}): none of its {len(file.arrays)} arrays fits the model. "
        f"Expected for example {expected}; found for example {present}."
    )


def _predictor_sizes(wanted: Mapping[str, tf.Variable]) -> tuple[int, int] | None:
    """Returns (anchors per cell, classes) of a detector, None of anything else."""
    bias = wanted.get(f"{CLASS_PREDICTOR}/bias")
    box_bias = wanted.get("box_net/box-predict/bias")
    if bias is None or box_bias is None:
        return None
    num_anchors = box_bias.shape[0] // 4
    return num_anchors, bias.shape[0] // num_anchors


def _other_class_count(
    found: Mapping[str, Translated], wanted: Mapping[str, tf.Variable]
) -> dict[str, str]:
    """Returns the class predictor's variables, with the reason, if the file has other classes."""
    sizes = _predictor_sizes(wanted)
    bias = found.get(f"{CLASS_PREDICTOR}/bias")
    if sizes is None or bias is None or bias.array.shape[0] == sizes[0] * sizes[1]:
        return {}
    reason = f"{sizes[1]} classes here, {bias.array.shape[0] / sizes[0]:g} in the file"
    return {name: reason for name in wanted if name.startswith(f"{CLASS_PREDICTOR}/")}


def _select_classes(
    found: Mapping[str, Translated],
    wanted: Mapping[str, tf.Variable],
    channel_map: Sequence[int],
) -> dict[str, Translated]:
    """Picks the channels of the model's classes out of the file's class predictor."""
    sizes = _predictor_sizes(wanted)
    if sizes is None or len(channel_map) != sizes[1]:
        raise ValueError(
            f"channel_map has {len(channel_map)} entries; expected one for each of the model's "
            f"{sizes[1] if sizes else 0} classes."
        )
    selected = dict(found)
    for variable in ("kernel", "pointwise_kernel", "bias"):
        name = f"{CLASS_PREDICTOR}/{variable}"
        if name not in found:
            continue
        array = found[name].array
        by_anchor = array.reshape(*array.shape[:-1], sizes[0], -1)  # channels are anchor-major
        if min(channel_map) < 0 or max(channel_map) >= by_anchor.shape[-1]:
            raise ValueError(
                f"channel_map names channels {min(channel_map)}..{max(channel_map)}, but the file "
                f"has {by_anchor.shape[-1]} classes."
            )
        picked = by_anchor[..., list(channel_map)].reshape(*array.shape[:-1], -1)
        selected[name] = found[name]._replace(array=picked)
    return selected
