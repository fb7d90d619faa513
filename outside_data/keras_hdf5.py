"""Reads the weights of a Keras `.h5` file in a process of its own.

On some damaged files the HDF5 library never returns, or crashes. So it is loaded only by a child,
which knows nothing but this file, has a limit of computing time and of memory, and sends the arrays
back: whatever the library does there, the caller gets arrays or a `BadFileError`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from outside_data.expansion import FREE_BYTES, MOST_EXPANSION, Budget
from outside_data.files import BadFileError, open_file
from outside_data.text import clean

VARIABLE = "RINGDET_HDF5_SECONDS"
MOST_SECONDS = 20
"""Of computing, unless VARIABLE says otherwise; 256 MiB, compressed, take 3."""

_LIBRARY_BYTES = 256 << 20  # memory that the library may have besides the arrays
_SAVE_AGAIN = "Save the weights with model.save_weights('name.h5')"
_DAMAGED = (
    "the file is damaged, or made to do harm. Copy or download it again, or take the same weights "
    "as safetensors or .pth"
)


def read_keras_hdf5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file that Keras wrote, by the names of its variables, without `:0`.

    Entries that are no numbers are left out.

    Raises:
      OSError: there is no such file, or it is none that may be read.
      BadFileError: it is damaged, was not written by Keras, leads to other files, or would become
        far larger than it is.
    """
    with open_file(path, most=None):
        pass
    seconds = _most_seconds()
    ended = subprocess.run(
        [sys.executable, "-m", __spec__.name, os.path.abspath(path), str(seconds)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BadFileError(f"{clean(path)}: {_how_it_ended(ended.returncode, seconds, said)}")
    head, _, data = ended.stdout.partition(b"\n")
    answer = json.loads(head)
    if isinstance(answer, str):
        raise BadFileError(f"{clean(path)}: {answer}")
    arrays, position = {}, 0
    for name, dtype, shape in answer:
        flat = np.frombuffer(data, dtype, math.prod(shape), position)
        position += flat.nbytes
        arrays[name] = flat.reshape(shape)
    return arrays


def _most_seconds() -> int:
    text = os.environ.get(VARIABLE, str(MOST_SECONDS))
    if not (text.isdecimal() and int(text)):
        raise ValueError(f"{VARIABLE}={clean(text)}: expected a number of seconds, at least 1")
    return int(text)


def _how_it_ended(code: int, seconds: int, said: str) -> str:
    if code == -signal.SIGXCPU:
        return (
            f"the HDF5 library had not read it after {seconds} s of computing ({VARIABLE}): "
            f"{_DAMAGED}"
        )
    if code < 0:
        return f"the HDF5 library crashed on it ({signal.Signals(-code).name}): {_DAMAGED}"
    return f"the process that reads HDF5 failed: {clean(said)}"


def _main(path: str, seconds: str) -> None:
    """Writes what a file holds to the standard output; in the child.

    One line of JSON, the reason why it is not read, or [[name, dtype, shape], ...] of the arrays,
    whose bytes follow one after another.
    """
    import h5py  # noqa: F401  (before the limits: an error of it is not one of the file)

    size = os.path.getsize(path)
    # Threads of NumPy's algebra have memory already, on large machines much.
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    memory = used + _LIBRARY_BYTES + 2 * (MOST_EXPANSION * size + FREE_BYTES)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(seconds)),
        (resource.RLIMIT_DATA, memory),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))
    arrays: dict[str, np.ndarray] = {}
    try:
        arrays = _arrays_of(path, Budget(size))
        answer: Any = [[name, values.dtype.str, values.shape] for name, values in arrays.items()]
    except _RefusedError as error:
        answer = str(error)
    except Exception as error:
        answer = (
            "expected weights as Keras saves them; found something else "
            f"({type(error).__name__}: {clean(error)})"
        )
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    for values in arrays.values():
        sys.stdout.buffer.write(values.tobytes())


class _RefusedError(Exception):
    """Why a file is not read, and what to do."""


def _arrays_of(path: str, budget: Budget) -> dict[str, np.ndarray]:
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        root = _own_object(file, "model_weights") if "model_weights" in file else file
        if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
            raise _RefusedError(
                "HDF5 without the attribute layer_names. Expected a file written by "
                "model.save_weights('name.h5') or model.save('name.h5')"
            )
        for layer in _texts(root.attrs, "layer_names", budget):
            group = _own_object(root, layer)
            for name in _texts(group.attrs, "weight_names", budget):
                values = _own_object(group, name)
                if values.dtype.kind in "biuf":
                    budget.take(values.nbytes)
                    arrays[name.removesuffix(":0")] = np.asarray(values)
    return arrays


def _own_object(group: Any, name: str) -> Any:
    """Returns what a name means in a file; refuses links and data outside of it."""
    import h5py

    for part in name.strip("/").split("/"):
        link = group.get(part, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _RefusedError(
                f"{clean(name)} is a link ({type(link).__name__}), which may lead to another file: "
                f"refused. {_SAVE_AGAIN}"
            )
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise _RefusedError(f"{clean(name)} has its data in another file: refused. {_SAVE_AGAIN}")
    return group


def _texts(attributes: Any, name: str, budget: Budget) -> list[str]:
    """Reads a list of texts that Keras splits over `name0`, `name1`, ... when it is long."""
    parts = [name]
    if name not in attributes:
        parts = itertools.takewhile(
            attributes.__contains__, (f"{name}{index}" for index in itertools.count())
        )
    values: list[Any] = []
    for part in parts:
        stated = attributes.get_id(part)
        budget.take(math.prod(stated.shape) * stated.dtype.itemsize)
        values.extend(attributes[part])
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


if __name__ == "__main__":
    _main(*sys.argv[1:])
