"""Turns variable names of other EfficientNet and EfficientDet programs into ours.

Three layouts are known here: ours (which is NVIDIA's backbone with google/automl's neck and heads),
google/automl's backbone and keras-applications; those of PyTorch programs are in `torch_names`.
Their patterns exclude one another, so a name is tried against all of them and no layout has to be
declared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from detector.weight_loading import Translated, prefer_averages
from efficientdet.weights.torch_names import torch_name

BACKBONE_PREFIXES = ("stem_", "stack_")
_ROOTS = (
    r"(?:stem_conv2d|stem_bn|stack_\d+/block_\d+|top_(?:conv2d|bn|logits)"
    r"|resample_p\d+|fpn_cells|(?:class|box)_net)/"
)
_OURS = re.compile(rf"^(?:(?:efficientdet|efficientnet)[^/]*/)*({_ROOTS}.+)$")
_AUTOML = re.compile(r"^(?:efficientdet[^/]*/)?efficientnet-[^/]+/(stem|head|blocks_(\d+))/(.+)$")
_APPLICATIONS_BLOCK = re.compile(r"^block(\d)([a-z])_(\w+)/(\w+)$")
# What names the average of a variable: ours, tf.train's and tensorflow-addons'.
_AVERAGE_PREFIX = "ema/"
_AVERAGE_SUFFIXES = ("/ExponentialMovingAverage", "/average")
_VALUE_PREFIX = "model/"
# Channels before the classifier of torchvision's largest network with the epsilon of PyTorch (B4).
_MOST_CHANNELS_OF_TORCH_EPSILON = 1792


def expansions_of(variable_names: Iterable[str]) -> dict[str, bool]:
    """Returns the blocks of a backbone, given our names of its variables.

    Returns:
      {stack_{i}/block_{j}: whether it has an expansion}, in order.
    """
    names = set(variable_names)
    blocks = {match[0] for name in names if (match := re.match(r"stack_\d+/block_\d+", name))}
    ordered = sorted(blocks, key=lambda block: [int(n) for n in re.findall(r"\d+", block)])
    return {block: f"{block}/expand_conv2d/kernel" in names for block in ordered}


def translate(
    arrays: Mapping[str, np.ndarray],
    expands: Mapping[str, bool],
    scopes: Mapping[tuple[str, ...], str],
) -> tuple[dict[str, Translated], dict[str, str]]:
    """Renames the arrays of a file to our names, and PyTorch arrays to TensorFlow's layout.

    Args:
      arrays: as read from the file.
      expands: of `expansions_of` the model that will receive them; gives flat block numbers their
        meaning.
      scopes: of `torch_names.scopes_of` for that model.

    Returns:
      {our name: array}, the average where a value has one, and {name in the file: why it has no
      place among ours}.
    """
    has_prefixes = any(name.startswith(_VALUE_PREFIX) for name in arrays)
    named: list[tuple[str, Translated]] = []
    unused: dict[str, str] = {}
    for source, array in _single_edges(arrays):
        base, is_average = _strip_copy(source)
        is_copy = source.startswith((_VALUE_PREFIX, _AVERAGE_PREFIX))
        if (has_prefixes and not is_copy) or source.endswith(".num_batches_tracked"):
            unused[source] = "training state"
            continue
        name = our_name(base, expands, scopes)
        if name is None:
            unused[source] = "not a variable of this network"
            continue
        if "." in base:
            array = _from_pytorch(array, name)
        named.append((name, Translated(array, source, is_average)))
    return prefer_averages(named, unused), unused


def is_of_automl(names: Iterable[str]) -> bool:
    """Tells whether these are names of a detector of google/automl, or of its port effdet."""
    names = _bare(names)
    if any(name.startswith("fpn.cell.") for name in names):
        return True
    return any(_AUTOML.match(n) for n in names) and any("class-predict" in n for n in names)


def layout_of(names: Iterable[str]) -> str:
    """Says whose names a file of another program has, and what its convolutions pad; '' if ours."""
    names = _bare(names)
    if any(name.startswith("fpn.cell.") for name in names):
        return "effdet (padding as TensorFlow's)"
    if padding_of(names):
        return "torchvision (padded symmetrically)"
    if "blocks.0.0.conv_dw.weight" in names:
        return (
            "timm (its tf_ files are padded as TensorFlow's; for its others set "
            "backbone_padding=symmetric)"
        )
    return "google/automl" if is_of_automl(names) else ""


def padding_of(names: Iterable[str]) -> str:
    """Returns how a file's program pads strided convolutions; '' where the names do not tell."""
    return "symmetric" if "features.1.0.block.0.0.weight" in _bare(names) else ""


def batch_norm_epsilon(arrays: Mapping[str, np.ndarray], *, padding: str) -> float | None:
    """Returns what the file's program adds to variances, if another number than ours.

    torchvision: 1e-5 up to B4, 1e-3 for the larger. timm: 1e-5, and 1e-3 in its tf_ files.

    Args:
      arrays: of the file.
      padding: of the model that receives them: what tells timm's files apart.
    """
    if padding == "symmetric" and "conv_stem.weight" in _bare(arrays):
        return 1e-5
    heads = [array for name, array in arrays.items() if _bare([name]) == {"features.8.0.weight"}]
    return 1e-5 if heads and len(heads[0]) <= _MOST_CHANNELS_OF_TORCH_EPSILON else None


def _bare(names: Iterable[str]) -> set[str]:
    return {_strip_copy(name)[0] for name in names}


def _strip_copy(name: str) -> tuple[str, bool]:
    """Splits off what marks a moving average, or the value in one of our checkpoints."""
    if name.startswith(_AVERAGE_PREFIX):
        return name[len(_AVERAGE_PREFIX) :], True
    for suffix in _AVERAGE_SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)], True
    return name.removeprefix(_VALUE_PREFIX), False


def _single_edges(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays; those of effdet's fusion weights one by one, as variables are here."""
    for name, array in arrays.items():
        if name.endswith(".edge_weights") and array.ndim == 1:
            yield from ((f"{name}.{i}", np.asarray(weight)) for i, weight in enumerate(array))
        else:
            yield name, array


def our_name(
    name: str, expands: Mapping[str, bool], scopes: Mapping[tuple[str, ...], str]
) -> str | None:
    """Translates one name; None if it is of no known layout."""
    if match := _OURS.match(name):
        return match[1]
    if match := _AUTOML.match(name):
        return _from_automl(match, expands)
    if "." in name:
        return torch_name(name, expands=expands, scopes=scopes)
    return _from_applications(name)


def _from_automl(match: re.Match[str], expands: Mapping[str, bool]) -> str | None:
    part, block_number, rest = match.groups()
    layer, _, variable = rest.rpartition("/")
    if layer.endswith("depthwise_conv2d"):
        kind, index = "depthwise", 0
    elif found := re.match(r"^(se/conv2d|conv2d|\w*batch_normalization|dense)(?:_(\d+))?$", layer):
        kind, index = found[1], int(found[2] or 0)
        kind = "bn" if kind.endswith("batch_normalization") else kind
    else:
        return None
    if block_number is None:
        prefix = "stem" if part == "stem" else "top"
        ours = {"conv2d": f"{prefix}_conv2d", "bn": f"{prefix}_bn", "dense": f"{prefix}_logits"}
        return f"{ours[kind]}/{variable}" if kind in ours else None
    if int(block_number) >= len(expands):
        return f"stack_?/block_{block_number}/{rest}"
    block = list(expands)[int(block_number)]
    expand = ["expand"] if expands[block] else []
    ours_by_kind = {
        "depthwise": ["depthwise_conv2d"],
        "se/conv2d": ["se_reduce_conv2d", "se_expand_conv2d"],
        "conv2d": [f"{step}_conv2d" for step in [*expand, "project"]],
        "bn": [f"{step}_bn" for step in [*expand, "depthwise", "project"]],
    }
    layers = ours_by_kind.get(kind, [])
    return f"{block}/{layers[index]}/{variable}" if index < len(layers) else None


def _from_pytorch(array: np.ndarray, name: str) -> np.ndarray:
    """Moves the axes of a PyTorch array to where TensorFlow has them."""
    if array.ndim == 4:  # [out, in, h, w]; of depthwise kernels [channels, 1, h, w]
        return array.transpose(2, 3, 0, 1) if "depthwise" in name else array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


_APPLICATIONS_TOP = {
    "stem_conv": "stem_conv2d",
    "top_conv": "top_conv2d",
    "predictions": "top_logits",
}
_APPLICATIONS_BLOCK_LAYERS = {
    "expand_conv": "expand_conv2d",
    "expand_bn": "expand_bn",
    "dwconv": "depthwise_conv2d",
    "bn": "depthwise_bn",
    "se_reduce": "se_reduce_conv2d",
    "se_expand": "se_expand_conv2d",
    "project_conv": "project_conv2d",
    "project_bn": "project_bn",
}


def _from_applications(name: str) -> str | None:
    if match := _APPLICATIONS_BLOCK.match(name):
        stage, letter, layer, variable = match.groups()
        if layer not in _APPLICATIONS_BLOCK_LAYERS:
            return None
        block = f"stack_{int(stage) - 1}/block_{ord(letter) - ord('a')}"
        return f"{block}/{_APPLICATIONS_BLOCK_LAYERS[layer]}/{variable}"
    layer, _, variable = name.partition("/")
    return f"{_APPLICATIONS_TOP[layer]}/{variable}" if layer in _APPLICATIONS_TOP else None
