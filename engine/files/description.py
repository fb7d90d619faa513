"""The JSON beside a checkpoint: what a run says of itself, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.files import checksums
from outside_data.files import BadFileError, read_json

META = ".json"
# What the description of a run must hold to be continued.
_DESCRIBED = {
    **{"config": dict, "task": dict},
    **{name: int for name in ("step", "epoch", "seed", "num_ranks", "global_batch_size")},
}


def read_metadata(prefix: str | Path) -> dict[str, Any]:
    """Returns the JSON stored with a checkpoint; empty for one that we did not write.

    Raises:
      BadFileError: it is damaged.
      OSError: it cannot be read just now, or by this user; it may be whole.
    """
    path = Path(f"{prefix}{META}")
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except BadFileError as error:
        raise BadFileError(f"{error}; {remedy(prefix)}") from error
    if not isinstance(found, dict):
        raise BadFileError(
            f"{path}: expected a JSON object with the description of a checkpoint, found "
            f"{type(found).__name__}; {remedy(prefix)}"
        )
    checksums.require_sound(found, path=path)
    _require_types(found, path)
    return _Description.of(found, path)


def read_description(prefix: str | Path) -> dict[str, Any]:
    """Returns the JSON of a checkpoint that a run continues from.

    Raises:
      BadFileError: it is missing, damaged, or not of a run.
    """
    description = read_metadata(prefix)
    if not description:
        raise BadFileError(
            f"{prefix}{META} is missing, without which {prefix} cannot be continued; "
            f"{remedy(prefix)}"
        )
    for name in _DESCRIBED:
        description[name]
    return description


def describe(stored: Mapping[str, Any]) -> str:
    """Returns, for what `read_metadata` gave, say ` (epoch 7, AP 0.4130)`; '' where nothing is."""
    facts = [f"epoch {stored['epoch']}"] if stored.get("epoch") else []
    facts += [f"AP {stored['metrics']['AP']:.4f}"] if "AP" in stored.get("metrics", {}) else []
    return f" ({', '.join(facts)})" if facts else ""


def remedy(prefix: str | Path) -> str:
    """Returns what to do about a checkpoint whose description is of no use."""
    return f"delete {prefix}.* to use the one before it"


class _Description(dict):
    """What the JSON of a checkpoint says; a name that is not there is told as the file's fault."""

    path = Path()

    @classmethod
    def of(cls, values: Mapping[str, Any], path: Path) -> _Description:
        """Returns a description whose parts are such, too."""
        made = cls(
            (name, cls.of(value, path) if isinstance(value, dict) else value)
            for name, value in values.items()
        )
        made.path = path
        return made

    def __missing__(self, name: str) -> Any:
        raise BadFileError(
            f"{self.path}: expected {name!r} to be there: not the description of a run; "
            f"{remedy(str(self.path).removesuffix(META))}"
        )


def _require_types(found: Mapping[str, Any], path: Path) -> None:
    """Raises BadFileError where what is told of a checkpoint is of another type."""
    known = [(name, found, kind) for name, kind in [*_DESCRIBED.items(), ("metrics", dict)]]
    known.append(("metrics.AP", found.get("metrics", {}), (int, float)))
    config = found.get("config")
    if isinstance(config, dict):
        known += [(f"config.{section}", config, dict) for section in config]
    for name, holder, kind in known:
        key = name.rpartition(".")[2]
        if not isinstance(holder, dict) or key not in holder:
            continue
        if not isinstance(holder[key], kind) or isinstance(holder[key], bool):
            raise BadFileError(
                f"{path}: expected {name!r} to be {getattr(kind, '__name__', 'a number')}, found "
                f"{type(holder[key]).__name__}; {remedy(str(path).removesuffix(META))}"
            )
