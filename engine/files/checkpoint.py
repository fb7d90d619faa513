"""Checkpoints: name-based TensorFlow V2 files with a JSON beside them, written aside and renamed.

    model_dir/ckpt-00001200.{data-00000-of-00001,index,json}   all state, resumable
    model_dir/ckpt-final.*                                     the same at the end
    model_dir/ema_weights/emackpt-NN.*                         averaged weights of epoch NN
    model_dir/ema_weights/emackpt-best.*                       those of the best AP
    model_dir/ckpt-best.*                                      the same of a run without averages
    model_dir/{checkpoint,last_checkpoint}                     names of the newest

Tensor names are `model/...`, `ema/...`, `momentum/...`, `state/...`; averaged weights are stored
under `model/...`. Loading reads tensors and JSON, never code. The index file is renamed last: a
prefix with an index is complete. Only rank 0 reads and writes here; the others receive by
broadcast.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.files import checksums, zoo
from engine.files.description import META, read_description, remedy
from outside_data.files import BadFileError, expecting, read_text
from outside_data.whole_file import write_whole
from path_names.plain_path import plain_path

_DATA, _INDEX = ".data-00000-of-00001", ".index"
_FINAL = "ckpt-final"
_TF_POINTER, _POINTER = "checkpoint", "last_checkpoint"
_RESUMABLE_FILE = re.compile(r"^(?P<stem>ckpt-(?P<number>\d+))\.(index|json|data-\d+-of-\d+)$")
# What follows the prefix in the names of a checkpoint's files beside its index.
_PART = re.compile(r"\.(json|data-\d+-of-\d+)$")
_READ_ERRORS = (tf.errors.OpError, RuntimeError, IndexError)
# Files being written, and files being replaced: an interrupted save is cleared up or undone.
_ASIDE, _REPLACED = ".writing-", ".replaced-"


def save(prefix: str | Path, tensors: Mapping[str, tf.Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes one checkpoint so that it appears whole or not at all. Rank 0 only.

    Args:
      prefix: path without extension; its folder is created. A checkpoint already there is replaced.
      tensors: name -> value.
      metadata: written as JSON beside the tensors.

    Returns:
      The prefix.

    Raises:
      OSError: the disk is full or the folder not writable; whatever was there is untouched.
    """
    prefix = Path(prefix)
    aside = prefix.with_name(f"{_ASIDE}{os.getpid()}-{prefix.name}")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        _write(aside, tensors, metadata)
        _put_in_place(aside, prefix)
    except (OSError, tf.errors.OpError) as error:
        _remove(prefix.parent.glob(f"{aside.name}*"))
        raise OSError(
            f"cannot write checkpoint {prefix}: {error}; free space or choose another --model_dir"
        ) from error
    return str(prefix)


def _write(aside: Path, tensors: Mapping[str, tf.Tensor], metadata: Mapping[str, Any]) -> None:
    names = sorted(tensors)
    with tf.device("cpu:0"):
        values = [tf.convert_to_tensor(tensors[name]) for name in names]
        needed = sum(v.shape.num_elements() * v.dtype.size for v in values) + (1 << 20)
        free = shutil.disk_usage(aside.parent).free
        if free < needed:
            raise OSError(f"{free >> 20} MiB free, {needed >> 20} MiB needed")
        tf.raw_ops.SaveV2(
            prefix=str(aside),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=values,
        )
    files = {suffix: Path(f"{aside}{suffix}") for suffix in (_DATA, _INDEX)}
    text = json.dumps(checksums.sealed(metadata, files), indent=1, sort_keys=True)
    Path(f"{aside}{META}").write_text(text, encoding="utf-8")
    for suffix in (_DATA, META, _INDEX):
        with open(f"{aside}{suffix}", "rb") as file:
            os.fsync(file.fileno())  # on the disk before it gets its name


def _put_in_place(aside: Path, prefix: Path) -> None:
    """Renames the files of `aside`; until all are there, what was there before can be restored."""
    replaced = prefix.with_name(f"{_REPLACED}{prefix.name}")
    for suffix in (_INDEX, _DATA, META):
        if Path(f"{prefix}{suffix}").exists():
            os.replace(f"{prefix}{suffix}", f"{replaced}{suffix}")
    try:
        for suffix in (_DATA, META, _INDEX):
            os.replace(f"{aside}{suffix}", f"{prefix}{suffix}")
    except OSError:
        _settle(replaced)
        raise
    _settle(replaced)


def _settle(replaced: Path) -> None:
    """Ends a replacement: the old files go if the new checkpoint is complete, else come back."""
    prefix = replaced.with_name(replaced.name.removeprefix(_REPLACED))
    complete = Path(f"{prefix}{_INDEX}").is_file()
    for suffix in (META, _DATA, _INDEX):
        old = Path(f"{replaced}{suffix}")
        if old.exists() and complete:
            old.unlink()
        elif old.exists():
            os.replace(old, f"{prefix}{suffix}")


def _remove(paths: Any) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Clears up what an interrupted save left behind. Rank 0 only, at the start of a run."""
    for base in (Path(folder), Path(folder) / "ema_weights"):
        _remove([*base.glob(f"{_ASIDE}*"), *base.glob(".*.part")])  # `write_whole` names the latter
        for index in base.glob(f"{_REPLACED}*{_INDEX}"):
            _settle(index.with_suffix(""))


def exists(prefix: str | Path) -> bool:
    """True if `prefix` names a complete checkpoint, ours or one of several data files."""
    prefix = Path(prefix)
    data = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    # TensorFlow would wait for the writer of a pipe.
    return bool(data) and all(path.is_file() for path in (Path(f"{prefix}{_INDEX}"), *data))


def numbered(folder: str | Path, stem: str) -> list[str]:
    """Returns the complete checkpoints `stem<number>` of a folder, lowest number first."""
    found = []
    for index in Path(folder).glob(f"{stem}*{_INDEX}"):
        number, prefix = index.name[len(stem) : -len(_INDEX)], str(index)[: -len(_INDEX)]
        if number.isdecimal() and exists(prefix):
            found.append((int(number), prefix))
    return [prefix for _, prefix in sorted(found)]


def newest_resumable(folder: str | Path) -> str:
    """Returns the newest complete `ckpt-<step>` of a run's folder, else ckpt-final, else ''."""
    final = Path(folder) / _FINAL
    return next(reversed(numbered(folder, "ckpt-")), str(final) if exists(final) else "")


def find(path: str | Path, *, which: str = "best") -> str:
    """Returns what `path` means: a checkpoint's prefix, one in a folder, a pointer's, or a file.

    In a folder the order is: the best by the run's evaluations, then averaged weights of the
    highest epoch, then resumable checkpoints, then ckpt-final, then what TensorFlow's `checkpoint`
    file points to. The path of a file `last_checkpoint` means what it names. Any other file is
    taken as weights of another program (`engine.files.weight_files`), as is `zoo:NAME`, which is
    fetched if need be (`engine.files.zoo`). Each file of a checkpoint names it as its prefix does.

    Args:
      path: of a checkpoint or a folder.
      which: "best", or "last" to take the best only where there is no other.

    Raises:
      FileNotFoundError: nothing complete there; names what was looked for.
    """
    path = Path(zoo.local_path(str(path)).removesuffix(_INDEX))
    if path.is_file() and exists(prefix := _PART.sub("", str(path))):
        return prefix
    if path.name == _POINTER and path.is_file():
        path = path.parent / read_text(path).strip()
    if exists(path):
        return str(path)
    if path.is_file():
        return str(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {path}: expected {path}{_INDEX} and {path}{_DATA}, a folder, or a "
            "weight file of another program"
        )
    averages = path / "ema_weights"
    best = (averages / "emackpt-best", path / "emackpt-best", path / "ckpt-best")
    if which == "best":
        for prefix in filter(exists, best):
            return str(prefix)
    for folder, stem in ((averages, "emackpt-"), (path, "emackpt-"), (path, "ckpt-")):
        found = numbered(folder, stem)
        if found:
            return found[-1]
    for prefix in filter(exists, (path / _FINAL, *best)):
        return str(prefix)
    latest = pointed(path)
    if latest and exists(latest):
        return latest
    is_export = (path / "saved_model.pb").is_file()
    raise FileNotFoundError(
        f"no complete checkpoint in {path} (looked for ema_weights/emackpt-N, emackpt-N, ckpt-N, "
        "ckpt-final, emackpt-best, ckpt-best and a file named checkpoint)"
        + ("; it is an exported model, for infer.py's --saved_model_dir" if is_export else "")
    )


def pointed(folder: Path) -> str | None:
    """Returns the prefix that TensorFlow's file `checkpoint` of a folder names, None for none.

    A path of another machine means the checkpoint of that name in the folder, if it is there.
    """
    path = folder / _TF_POINTER
    if not path.is_file():
        return None
    with expecting(path, "text that names a checkpoint; name the checkpoint itself instead"):
        # `latest_checkpoint` would complain of files that are not there in lines of its own.
        state = tf.train.get_checkpoint_state(str(folder))
        prefix = (state and state.model_checkpoint_path) or None
    beside = folder / re.split(r"[/\\]", prefix)[-1] if prefix else folder
    return str(beside) if prefix and not exists(prefix) and exists(beside) else prefix


def find_any(paths: Sequence[str], *, which: str) -> str:
    """Returns what the first of some paths means, see `find`.

    Raises:
      FileNotFoundError: none of them is there; says what was looked for.
    """
    problems = []
    for path in paths:
        try:
            return find(path, which=which)
        except FileNotFoundError as error:
            problems.append(str(error))
    raise FileNotFoundError("; ".join(problems))


def newest_or_path(path: str) -> str:
    """Returns the newest checkpoint of a run's folder, or the file of `zoo:NAME`.

    Any other path is returned as it is.
    """
    path = zoo.local_path(path)
    try:
        return find(path)
    except FileNotFoundError:
        return path


def averaged(folder: str, epoch: int) -> str:
    """Returns the averaged checkpoint of an epoch in a run's folder.

    Raises:
      FileNotFoundError: it is not there; lists those that are.
    """
    for base in (Path(folder) / "ema_weights", Path(folder)):
        if exists(base / f"emackpt-{epoch:02d}"):
            return str(base / f"emackpt-{epoch:02d}")
    found = [Path(p).name for p in numbered(Path(folder) / "ema_weights", "emackpt-")]
    raise FileNotFoundError(
        f"no emackpt-{epoch:02d} in {folder}; there are: {', '.join(found) or 'none'}"
    )


def recover(folder: str | Path) -> tuple[str | None, list[str]]:
    """Finds the newest whole `ckpt-<step>` of a run's folder, else ckpt-final. Rank 0 only.

    Damaged and incomplete ones that are newer are renamed to `damaged-ckpt-<step>`, so that nothing
    takes them for the newest.

    Returns:
      Its prefix, None where nothing was ever saved; and what was found wrong with newer ones.

    Raises:
      ConfigError: something was saved, and nothing of it is whole.
    """
    folder = Path(folder)
    found = {-1: folder / _FINAL} if exists(folder / _FINAL) else {}  # it may be all that was kept
    for path in folder.glob("ckpt-*"):
        if match := _RESUMABLE_FILE.match(path.name):
            found[int(match["number"])] = folder / match["stem"]
    problems, chosen = [], None
    for number in sorted(found, reverse=True):
        try:
            require_whole(found[number])
        except BadFileError as error:
            problems.append(str(error))
            continue
        chosen = found.pop(number)
        for newer in [prefix for n, prefix in found.items() if n > number]:
            for path in folder.glob(f"{newer.name}.*"):
                os.replace(path, path.with_name(f"damaged-{path.name}"))
        break
    pointer = folder / _POINTER
    was_saved = pointer.is_file() or any(Path(f"{p}{_INDEX}").is_file() for p in found.values())
    if chosen is None and was_saved:
        if not problems:
            named = pointer.read_text(encoding="utf-8", errors="replace").strip()[:100]
            problems = [f"{pointer} names {named}, which is not there"]
        raise ConfigError(
            f"{folder} holds a run, and none of its checkpoints is whole: {'; '.join(problems)}. "
            "Bring one back from a copy; or choose another --model_dir; or, to begin at step 1, "
            f"delete {folder}/ckpt-* and {pointer}"
        )
    return str(chosen) if chosen else None, problems


def require_whole(prefix: str | Path) -> None:
    """Raises BadFileError unless a checkpoint can be continued: complete, and as it was written."""
    for suffix in (_INDEX, _DATA):
        if not Path(f"{prefix}{suffix}").is_file():
            raise BadFileError(f"{prefix} is incomplete: {prefix}{suffix} is missing")
    description = read_description(prefix)
    checksums.require_same_files(prefix, description)
    if not checksums.has_checksums(description):
        try:
            with plain_path(prefix) as plain:
                reader = tf.train.load_checkpoint(plain)
                for name in reader.get_variable_to_shape_map():
                    reader.get_tensor(name)
        except _READ_ERRORS as error:
            raise BadFileError(f"{prefix} is damaged: {error}") from error


def load(prefix: str, expected: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Reads a checkpoint that must hold exactly the expected names and shapes.

    Raises:
      ConfigError: names or shapes differ, the first of them are listed.
      BadFileError: the file is damaged.
    """
    try:
        with plain_path(prefix) as plain:
            reader = tf.train.load_checkpoint(plain)
            shapes = reader.get_variable_to_shape_map()
            _require_fit(prefix, shapes, expected)
            return {name: reader.get_tensor(name) for name in expected}
    except _READ_ERRORS as error:
        raise BadFileError(f"{prefix} is damaged: {error}; {remedy(prefix)}") from error


def _require_fit(
    prefix: str, shapes: Mapping[str, Sequence[int]], expected: Mapping[str, tf.Tensor]
) -> None:
    missing = sorted(set(expected) - set(shapes))
    extra = sorted(set(shapes) - set(expected))
    wrong = [
        f"{name}: {shapes[name]} in the file, {tensor.shape.as_list()} in the run"
        for name, tensor in expected.items()
        if name in shapes and list(shapes[name]) != tensor.shape.as_list()
    ]
    if missing or extra or wrong:
        raise ConfigError(
            f"{prefix} does not fit this run: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(wrong)} of another shape {wrong[:3]}. Use "
            "the configuration that wrote it, or start from its weights only with "
            "--pretrained_ckpt and a new --model_dir."
        )


def prune(prefixes: Sequence[str], keep: int) -> None:
    """Deletes all but the last `keep` of the given checkpoints; 0 keeps all."""
    for prefix in prefixes[:-keep] if keep else []:
        for suffix in (_INDEX, META, _DATA):
            Path(f"{prefix}{suffix}").unlink(missing_ok=True)


def write_pointer(folder: str | Path, prefix: str) -> None:
    """Names the newest checkpoint of a folder in two files, so that other tools find it too.

    `checkpoint` is TensorFlow's, `last_checkpoint` that of the PyTorch reference: one line, here
    relative to the folder, which may be moved.
    """
    name = Path(prefix).name
    paths = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    write_whole(Path(folder) / _TF_POINTER, paths)
    write_whole(Path(folder) / _POINTER, f"{name}\n")
