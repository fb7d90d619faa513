"""Checkpoints: name-based TensorFlow V2 files with a JSON beside them, written aside and renamed.

    model_dir/ckpt-00001200.{data-00000-of-00001,index,json}   all state, resumable
    model_dir/ckpt-final.*                                     the same at the end
    model_dir/ema_weights/emackpt-NN.*                         averaged weights of epoch NN in the model's slots
    model_dir/ema_weights/emackpt-best.*                       those of the best AP

Tensor names are `model/...`, `ema/...`, `momentum/...`, `state/...`. Loading reads tensors and JSON, never code.
The index file is renamed last: a prefix with an index is complete. A newcomer's trap: only rank 0 reads and
writes here; the others receive by broadcast.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from engine.config import ConfigError

_DATA, _INDEX, _META = ".data-00000-of-00001", ".index", ".json"
_NUMBERED = re.compile(r"^(?P<stem>.*-)(?P<number>\d+)$")


def save(
    prefix: str | Path, variables: Mapping[str, tf.Tensor], metadata: Mapping[str, Any]
) -> str:
    """Writes one checkpoint so that it appears whole or not at all. Rank 0 only.

    Args:
      prefix: path without extension; its folder is created.
      variables: name -> value.
      metadata: written as JSON beside the tensors.

    Returns:
      The prefix.

    Raises:
      OSError: the disk is full or the folder not writable; earlier checkpoints are untouched.
    """
    prefix = Path(prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    aside = prefix.parent / f".writing-{os.getpid()}-{prefix.name}"
    try:
        names = sorted(variables)
        values = [tf.convert_to_tensor(variables[name]) for name in names]
        needed = sum(v.shape.num_elements() * v.dtype.size for v in values) + (1 << 20)
        free = shutil.disk_usage(prefix.parent).free
        if free < needed:
            raise OSError(f"{free >> 20} MiB free, {needed >> 20} MiB needed")
        with tf.device("cpu:0"):
            tf.raw_ops.SaveV2(
                prefix=str(aside),
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=values,
            )
        Path(f"{aside}{_META}").write_text(json.dumps(metadata, indent=1, sort_keys=True))
        _require_written(aside)
        for suffix in (_DATA, _META, _INDEX):
            os.replace(f"{aside}{suffix}", f"{prefix}{suffix}")
    except (OSError, tf.errors.OpError) as error:
        for left in prefix.parent.glob(f"{aside.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        raise OSError(
            f"cannot write checkpoint {prefix}: {error}; free space or choose another --model_dir"
        ) from error
    return str(prefix)


def _require_written(prefix: Path) -> None:
    for suffix in (_DATA, _INDEX):
        if not Path(f"{prefix}{suffix}").is_file():
            raise OSError(f"TensorFlow did not write {prefix}{suffix}")


def exists(prefix: str | Path) -> bool:
    """True if `prefix` names a complete checkpoint."""
    return all(Path(f"{prefix}{suffix}").is_file() for suffix in (_DATA, _INDEX))


def numbered(folder: str | Path, stem: str) -> list[str]:
    """Returns the complete checkpoints `stem<number>` of a folder, lowest number first."""
    found = []
    for index in Path(folder).glob(f"{stem}*{_INDEX}"):
        prefix = str(index)[: -len(_INDEX)]
        match = _NUMBERED.match(prefix)
        if match and exists(prefix):
            found.append((int(match["number"]), prefix))
    return [prefix for _, prefix in sorted(found)]


def find(path: str | Path) -> str:
    """Returns the checkpoint prefix that `path` means: a prefix, or a folder's newest.

    In a folder the order is: averaged weights of the highest epoch, then resumable checkpoints, then ckpt-final.

    Raises:
      FileNotFoundError: nothing complete there; names what was looked for.
    """
    path = Path(path)
    if exists(path):
        return str(path)
    if path.is_dir():
        for folder, stem in (
            (path / "ema_weights", "emackpt-"),
            (path, "emackpt-"),
            (path, "ckpt-"),
        ):
            found = numbered(folder, stem)
            if found:
                return found[-1]
        for name in ("ckpt-final", "emackpt-best"):
            if exists(path / name):
                return str(path / name)
        state = tf.train.latest_checkpoint(str(path))
        if state and exists(state):
            return state
        raise FileNotFoundError(
            f"no complete checkpoint in {path} (looked for ema_weights/emackpt-N, emackpt-N, ckpt-N, ckpt-final)"
        )
    raise FileNotFoundError(
        f"no checkpoint at {path}: expected {path}{_INDEX} and {path}{_DATA}, or a folder"
    )


def latest_resumable(folder: str | Path) -> str | None:
    """Returns the newest `ckpt-<step>` of a run's folder, or None."""
    found = numbered(folder, "ckpt-")
    return found[-1] if found else None


def read_metadata(prefix: str | Path) -> dict[str, Any]:
    """Returns the JSON stored with a checkpoint; empty for one that we did not write."""
    path = Path(f"{prefix}{_META}")
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path}: not readable as JSON: {error}; the checkpoint's description is damaged"
        ) from error


def load(prefix: str, expected: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Reads a checkpoint that must hold exactly the expected names and shapes.

    Raises:
      ConfigError: names or shapes differ; lists the first of them.
    """
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    missing = sorted(set(expected) - set(shapes))
    extra = sorted(set(shapes) - set(expected))
    wrong = [
        f"{name}: {shapes[name]} in the file, {v.shape.as_list()} in the run"
        for name, v in expected.items()
        if name in shapes and list(shapes[name]) != v.shape.as_list()
    ]
    if missing or extra or wrong:
        raise ConfigError(
            f"{prefix} does not fit this run: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unexpected "
            f"{extra[:3]}, {len(wrong)} of another shape {wrong[:3]}. Use the configuration that wrote it, or start "
            "from its weights only with --pretrained_ckpt and a new --model_dir."
        )
    return {name: reader.get_tensor(name) for name in expected}


def prune(prefixes: Sequence[str], keep: int) -> None:
    """Deletes all but the last `keep` of the given checkpoints; 0 keeps all."""
    for prefix in prefixes[:-keep] if keep else []:
        for suffix in (_INDEX, _META, _DATA):
            Path(f"{prefix}{suffix}").unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Deletes what an interrupted save left behind. Rank 0 only, at the start of a run."""
    for base in (Path(folder), Path(folder) / "ema_weights"):
        for left in base.glob(".writing-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def write_pointer(folder: str | Path, prefix: str) -> None:
    """Writes TensorFlow's `checkpoint` file, so that its tools find the newest one too."""
    aside = Path(folder) / f".writing-{os.getpid()}-checkpoint"
    name = Path(prefix).name
    aside.write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    os.replace(aside, Path(folder) / "checkpoint")
