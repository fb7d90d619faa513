"""Reads weight files of other programs, and ours, as named NumPy arrays.

Which names a model needs, and how foreign layouts are turned into ours, is the model's business
(`efficientdet/weights/`); here a file becomes `{name: array}` and nothing is executed from it.
What surprises a newcomer: an object-based TensorFlow checkpoint stores its variables under paths of
Python attributes; the names used here are the variables' own, which it also records.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import checksums, zoo
from engine.files.description import read_metadata
from engine.files.numpy_pickle import read_numpy_pickle
from engine.files.restricted_pickle import read_torch_file
from engine.files.safetensors_file import is_safetensors, read_safetensors
from outside_data.files import BadFileError, open_file
from outside_data.keras_hdf5 import read_keras_hdf5
from outside_data.text import clean
from path_names.plain_path import plain_path

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# The number that PyTorch's older container begins with; other pickles are Detectron's.
_LEGACY_TORCH_HEAD = b"\x80\x02\x8a\x0a"
# Where training programs keep the state dict of the model inside a PyTorch file; its average first.
_AVERAGES = ("state_dict_ema", "model_ema")
_STATE_DICT_KEYS = (*_AVERAGES, "state_dict", "model", "model_state_dict")
# Where Detectron keeps its arrays inside a pickle.
_BLOB_KEYS = ("blobs", "model")

TF_NAME_BASED = "tf_name_based"
TF_OBJECT_BASED = "tf_object_based"
SAVED_MODEL = "saved_model"
KERAS_H5 = "keras_h5"
TORCH = "torch"
NUMPY_PICKLE = "numpy_pickle"
SAFETENSORS = "safetensors"
# Of DataParallel, torch.compile, and Lightning or effdet's bench.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """Content of one weight file.

    `arrays` maps variable names, without `:0`, to values. Optimizer slots are named
    `<variable>/<slot>`, for example `stem_conv2d/kernel/average`.
    """

    path: str
    kind: str  # one of the constants of this module
    arrays: dict[str, np.ndarray]
    note: str = ""  # which of several sets of weights it is


def read_weight_file(path: str | Path) -> WeightFile:
    """Reads a weight file of any supported kind, recognised by its content.

    Args:
      path: prefix of a TensorFlow checkpoint (name-based or object-based; its `.index` file may be
        named too), a folder with checkpoints (the latest is read), a SavedModel folder, a Keras
        `.h5` file, a PyTorch state dict, safetensors, or a pickle of NumPy arrays (Detectron's
        `.pkl`).

    Returns:
      The arrays by name. Text and non-numeric entries are left out.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: what is there is of no supported kind, damaged, or holds no arrays.
    """
    path = Path(path)
    if path.is_dir():
        content = _read_folder(path)
    elif path.is_file() and path.suffix != ".index" and ".data-" not in path.name:
        content = _read_single_file(path)
    else:
        prefix = _checkpoint_prefix(path)
        content = _read_checkpoint(prefix)
    if not content.arrays:
        raise BadFileError(f"{path}: a {content.kind} file without a single array.")
    return content


def weights_path(text: str) -> str:
    """Returns the file that `--backbone_init` names.

    `pip:NAME` is the weight file that an installed package carries, `zoo:NAME` one of
    `engine.files.zoo`.

    Raises:
      FileNotFoundError: the package is not installed or holds no weight file; or as of
        `zoo.local_path`.
    """
    if not text.startswith("pip:"):
        return zoo.local_path(text)
    package = text.removeprefix("pip:")
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"--backbone_init={text}: install it with pip install {package}"
        ) from error
    found = [f for f in files if f.suffix in (".pth", ".pt", ".h5", ".safetensors")]
    if not found:
        raise FileNotFoundError(
            f"--backbone_init={text}: the package holds no .pth, .pt, .h5 or .safetensors file"
        )
    return str(found[0].locate())


def _checkpoint_prefix(path: Path, *, named_by: str = "") -> Path:
    from engine.files import checkpoint

    prefix = path
    if path.suffix == ".index":
        prefix = path.with_suffix("")
    elif ".data-" in path.name:
        prefix = path.with_name(path.name.split(".data-")[0])
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise FileNotFoundError(
            f"No weights at {path}: neither a file nor a folder, and the checkpoint index {index} "
            f"is missing{named_by}. Published weights are zoo:NAME (train.py --list_zoo)."
        )
    if not checkpoint.exists(prefix):
        raise BadFileError(
            f"{prefix}: incomplete: {prefix}.data-00000-of-00001 is missing or not a regular file. "
            "Copy or download the checkpoint again"
        )
    return prefix


def _read_folder(path: Path) -> WeightFile:
    from engine.files import checkpoint  # brings TensorFlow

    if (path / "saved_model.pb").is_file():
        prefix = path / "variables" / "variables"
        return dataclasses.replace(
            _read_checkpoint(_checkpoint_prefix(prefix)), path=str(path), kind=SAVED_MODEL
        )
    latest = checkpoint.pointed(path)
    if latest is None:
        raise FileNotFoundError(
            f"{path}: neither a SavedModel (saved_model.pb) nor a folder with a checkpoint "
            "(a file named `checkpoint` that points to one). Name a checkpoint prefix instead."
        )
    named_by = f"; the file {path / 'checkpoint'} names it, and it is not in that folder either"
    return _read_checkpoint(_checkpoint_prefix(Path(latest), named_by=named_by))


def _read_single_file(path: Path) -> WeightFile:
    with open_file(path, most=None) as stream:
        head = stream.read(9)
    if head.startswith(_HDF5_MAGIC):
        return WeightFile(str(path), KERAS_H5, read_keras_hdf5(path))
    if is_safetensors(head):
        return WeightFile(str(path), SAFETENSORS, _unwrapped(read_safetensors(path)))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "model.weights.h5" in names:
            raise BadFileError(
                f"{path}: the .keras format is not read; save with model.save_weights('name.h5')."
            )
        if names and all(name.endswith(".npy") for name in names):
            raise BadFileError(
                f"{path}: NumPy's .npz is not read; save the arrays with "
                "safetensors.numpy.save_file, or a dictionary of them with pickle.dump"
            )
    elif not head:
        raise BadFileError(f"{path}: the file is empty. Copy or download it again")
    elif not head.startswith(b"\x80"):
        raise BadFileError(
            f"{path}: not a weight file. Expected a TensorFlow checkpoint prefix, a SavedModel "
            f"folder, a Keras .h5 file, a PyTorch state dict, safetensors or a pickle of arrays; "
            f"the file begins with {head!r}.{_advice(path, head)}"
        )
    elif not head.startswith(_LEGACY_TORCH_HEAD):
        content = read_numpy_pickle(path)
        arrays = _arrays_in(content, _BLOB_KEYS, path=path, expected="a dict of arrays")
        return WeightFile(str(path), NUMPY_PICKLE, arrays)
    return _read_torch(path)


def _advice(path: Path, head: bytes) -> str:
    """Says what a file without weights may be, by its first bytes; "" where they do not tell."""
    if head.lstrip()[:2].lower() in (b"<!", b"<h"):
        return " A web page: the download did not give the file itself"
    if head == b"version h":
        return " A pointer of Git LFS: fetch the file itself with git lfs pull"
    if head.startswith(b"PK"):
        return " A PyTorch file that was cut short: copy or download it again"
    if tarfile.is_tarfile(path):
        return " An archive: unpack it and name what is in it"
    return ""


def _read_checkpoint(prefix: Path) -> WeightFile:
    import tensorflow as tf

    description = read_metadata(prefix)
    try:
        checksums.require_same_files(prefix, description)
    except BadFileError as error:
        raise BadFileError(
            f"{error}. Copy the checkpoint again, or name another of its folder"
        ) from error
    try:
        with plain_path(prefix) as plain:
            reader = tf.train.load_checkpoint(plain)
            names = reader.get_variable_to_shape_map()
            if _OBJECT_GRAPH_KEY in names:
                arrays = _object_based_arrays(reader)
                return WeightFile(str(prefix), TF_OBJECT_BASED, arrays)
            arrays = {
                name: reader.get_tensor(name)
                for name, dtype in reader.get_variable_to_dtype_map().items()
                if dtype != tf.string
            }
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        raise BadFileError(
            f"{prefix}: damaged TensorFlow checkpoint ({clean(error, most=500)}). Copy or "
            "download it again"
        ) from None
    return WeightFile(str(prefix), TF_NAME_BASED, arrays)


def _object_based_arrays(reader: Any) -> dict[str, np.ndarray]:
    """Reads variables under their own names, and slots under `<variable>/<slot>`."""
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_OBJECT_GRAPH_KEY))
    dtypes = reader.get_variable_to_dtype_map()
    slot_names = {}
    for node in graph.nodes:
        for slot in node.slot_variables:
            original = graph.nodes[slot.original_variable_node_id]
            if original.attributes:
                full_name = original.attributes[0].full_name
                slot_names[slot.slot_variable_node_id] = f"{full_name}/{slot.slot_name}"
    arrays: dict[str, np.ndarray] = {}
    for index, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            if key not in dtypes or dtypes[key] == tf.string:
                continue
            name = slot_names.get(index) or attribute.full_name or key
            # Two variables may share a name; the path of attributes never repeats.
            arrays[name if name not in arrays else key] = reader.get_tensor(key)
    return arrays


def _read_torch(path: Path) -> WeightFile:
    whole = read_torch_file(path)
    arrays = _arrays_in(whole, _STATE_DICT_KEYS, path=path, expected="a PyTorch state dict")
    average = next((key for key in _AVERAGES if isinstance(whole.get(key), dict)), None)
    note = f"of the checkpoint the averaged weights are taken, its {average!r}" if average else ""
    return WeightFile(str(path), TORCH, _unwrapped(arrays), note)


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes off what stands before PyTorch names of a network that is part of a larger one."""
    return {_WRAPPERS.sub("", name): value for name, value in arrays.items()}


def _arrays_in(
    content: Any, keys: Sequence[str], *, path: Path, expected: str
) -> dict[str, np.ndarray]:
    """Returns the arrays of numbers as far inside dictionaries as the keys, in their order, lead.

    Raises:
      BadFileError: there is no dictionary.
    """
    for key in keys:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadFileError(f"{path}: expected {expected}, got a {type(content).__name__}.")
    return {
        str(key): value
        for key, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind != "S"
    }
