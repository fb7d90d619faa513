"""What a set of records was made of, and what of it has changed since.

Files are compared by size and time of change: reading them again would take as long as converting
them. Only those that the records depend on count, whatever else lies beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from object_detection.coco.listed import some
from outside_data.files import BadFileError, read_json, regular_file
from outside_data.whole_file import write_whole

_MOST_BYTES = 2 << 30
_SHOWN = 3


class MadeOf(NamedTuple):
    """What records depend on.

    settings: name to value, anything that JSON can hold.
    files: path to [bytes, time of the last change in ns]; None: there is no such file.
    """

    settings: Mapping[str, Any]
    files: Mapping[str, Any]


def state(settings: Mapping[str, Any], paths: Iterable[str | os.PathLike[str]]) -> MadeOf:
    """Returns the settings and the state of the files, now."""
    return MadeOf(settings, {os.path.abspath(path): _state(path) for path in paths})


def save(made: MadeOf, path: Path) -> None:
    """Writes it beside the records."""
    write_whole(path, json.dumps(made._asdict()))


def load(path: Path) -> MadeOf | None:
    """Reads what `save` wrote; None where nothing is known."""
    if regular_file(path) is None:
        return None
    try:
        return MadeOf(**read_json(path, most=_MOST_BYTES))
    except (BadFileError, TypeError):
        return None


def differences(before: MadeOf, after: MadeOf) -> list[str]:
    """Says what is not the same; [] if all is."""
    lines = _changes(before.settings, after.settings)
    kinds: dict[str, list[str]] = {}
    for path in dict.fromkeys([*before.files, *after.files]):
        old, new = before.files.get(path), after.files.get(path)
        if old != new:
            what = "new" if old is None else "gone" if new is None else "of another size or time"
            kinds.setdefault(what, []).append(path)
    lines += [f"{len(paths):,} files are {k}: {some(paths, _SHOWN)}" for k, paths in kinds.items()]
    return lines


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> list[str]:
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _changes(old, new, f"{within}{key} ")
        elif old != new:
            lines.append(f"{within}{key} was {old!r}, is {new!r}")
    return lines


def _state(path: str | os.PathLike[str]) -> list[int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
