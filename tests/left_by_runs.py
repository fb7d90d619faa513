"""What runs have left in their folders, read back: records of steps, the tensors of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def recorded(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    """Returns the records of one kind in a run's metrics.jsonl."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def time_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's time_log.txt, DLLogger's."""
    lines = (folder / "time_log.txt").read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def tensors(prefix: str | Path) -> dict[str, np.ndarray]:
    """Returns name -> value of a checkpoint."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def differing(ours: str | Path, theirs: str | Path) -> list[str]:
    """Returns the names of the tensors that are not the same bits in two checkpoints."""
    ours, theirs = tensors(ours), tensors(theirs)
    assert set(ours) == set(theirs)
    return sorted(name for name in ours if ours[name].tobytes() != theirs[name].tobytes())
