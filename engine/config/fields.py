"""Typed configuration: what a run is told, from which source, and whether it can work.

Every setting is a field of a frozen dataclass and has its default there and nowhere else. A field
made by `setting` can be set in three ways that all mean the same: as a command-line flag, as a key
of `--hparams`, and as a key of a recipe file. Order of authority, weakest first: defaults, model
row, preset, recipe, `--hparams`, flags given on the command line.

A flag's default is shown by `--help`, but an absent flag never overrides a recipe. TensorFlow is
not imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
import re
import typing
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """A setting that cannot work; the message says what was expected, what came, what to do."""


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = "",
    key: str | None = None,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    auto: bool = False,
) -> Any:
    """Declares a field of a `Section`.

    Args:
      default: the default value; lists are given as tuples, MISSING: it must be given.
      help: one sentence with the unit.
      flag: flag name; '' means the field's own name, None means that there is no flag.
      key: second name accepted in `--hparams` and recipes (the references' spelling).
      choices: the words allowed; (): any. Help names those that the sentence does not.
      least, above, most, below: limits of a number, or of each number of a list; see `Limits`.
      auto: whether the flag of a number also takes the word auto, for its program to replace.
    """
    if any(word not in help for word in choices):
        help += f" One of {', '.join(word or repr(word) for word in choices)}."
    limits = Limits(least, above, most, below)
    if text := str(limits):
        help += f" {text.capitalize()}."
    names = {"help": help, "flag": flag, "key": key}
    allowed = {"choices": tuple(choices), "limits": limits, "auto": auto}
    return dataclasses.field(default=default, metadata=names | allowed)


class Limits(NamedTuple):
    """Limits of a number, each or none: `least` and `most` are allowed, `above` and `below` not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        """Returns whether a number is within them; NaN is within none."""
        holds = (operator.ge, operator.gt, operator.le, operator.lt)
        return all(limit is None or is_so(number, limit) for limit, is_so in zip(self, holds))

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:.10g} to {self.most:.10g}"
        words = ("at least", "more than", "at most", "less than")
        given = [f"{word} {limit:.10g}" for word, limit in zip(words, self) if limit is not None]
        return " and ".join(given)


class Section:
    """Base of the dataclasses that a configuration is made of: checks each value when it is made.

    Only what a field can know by itself is checked; rules between fields are the owner's.
    """

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that its field does not allow; names the nearest word."""
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            choices = field.metadata.get("choices")
            if choices and value not in choices:
                raise ConfigError(
                    f"{name}={value!r}: expected one of {choices}{nearest(str(value), choices)}"
                )
            limits = field.metadata.get("limits", Limits())
            if not all(map(limits.hold, _numbers(value))):
                raise ConfigError(f"{name}={value}: expected {limits}")


def _numbers(value: Any) -> Iterator[float]:
    """Yields the numbers of a value: one, those of a list or of a list of lists, or none."""
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif value is not None:
        yield value


def sections(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, section) of a configuration, (name, section class) of a configuration class."""
    hints = typing.get_type_hints(config) if isinstance(config, type) else {}
    for field in dataclasses.fields(config):
        yield field.name, hints[field.name] if hints else getattr(config, field.name)


def settings(config_class: type) -> dict[str, tuple[str, str]]:
    """Returns every accepted key -> (section, field): plain, `section.field`, second names."""
    keys: dict[str, tuple[str, str]] = {}
    for section, section_class in sections(config_class):
        for field in dataclasses.fields(section_class):
            place = (section, field.name)
            names = (field.name, field.metadata.get("key"), field.metadata.get("flag"))
            for key in filter(None, names):
                if keys.setdefault(key, place) != place:
                    raise ValueError(
                        f"two settings share the name {key!r}: {keys[key]} and {place}"
                    )
            keys[f"{section}.{field.name}"] = place
    return keys


def override(config: Any, values: Mapping[str, Any], *, source: str) -> Any:
    """Returns `config` with the given keys replaced.

    Args:
      config: a frozen dataclass of sections.
      values: key -> value; a mapping under a section's name is the same as dotted keys, and
        nothing under it is none of them.
      source: where the values come from, for messages.

    Raises:
      ConfigError: unknown key (names the nearest), a setting under two of its names, or a value of
        another type or out of range.
    """
    known = settings(type(config))
    named_by: dict[tuple[str, str], str] = {}
    changes: dict[str, dict[str, Any]] = {}
    empty = {name: {} for name, _ in sections(config) if name in values and values[name] is None}
    for key, value in flatten({**values, **empty}, known).items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, known)}")
        section, field = known[key]
        if (other := named_by.setdefault((section, field), key)) != key:
            raise ConfigError(f"{source}: {other} and {key} are the same setting: give it once")
        hint = typing.get_type_hints(type(getattr(config, section)))[field]
        changes.setdefault(section, {})[field] = convert(value, hint, where=f"{source}: {key}")
    try:
        replaced = {
            name: dataclasses.replace(getattr(config, name), **fields)
            for name, fields in changes.items()
        }
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return dataclasses.replace(config, **replaced)


def flatten(
    values: Mapping[str, Any], known: Container[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """Returns dotted key -> value of nested mappings; a mapping under a known key is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            flat.update(flatten(value, known, f"{name}."))
        else:
            flat[name] = value
    return flat


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns '; did you mean X?' with the known word nearest to `word`, the first of equals."""
    # A word that the known one contains is nearest: float16 is mixed_float16, not float32.
    likeness = {k: difflib.SequenceMatcher(None, word, k).ratio() + (word in k) for k in known}
    return f"; did you mean {max(likeness, key=likeness.get)!r}?" if likeness else ""


def look_up(name: str, table: Mapping[str, Any], *, what: str) -> Any:
    """Returns an entry of a table.

    Raises:
      ConfigError: it has none of that name; names the nearest. The empty name is never offered.
    """
    if name not in table:
        raise ConfigError(f"{what}={name!r} is unknown{nearest(name, filter(None, table))}")
    return table[name]


def without_none(hint: Any) -> Any:
    """Returns the type of an optional setting where it is given, any other type as it is."""
    options = typing.get_args(hint)
    return next(t for t in options if t is not type(None)) if type(None) in options else hint


def convert(value: Any, hint: Any, *, where: str) -> Any:
    """Converts `value` to the annotated type, accepting only what loses nothing.

    Optional settings take None and 'none'; text settings read None as ''. A size (int, int) is
    (height, width) as a pair, a square as a number, and WIDTHxHEIGHT as text. An aspect (float,
    float) is (width, height) as a pair, and a number is their ratio at area 1, as google/automl
    reads `1.0*2.0*0.5`.

    Raises:
      ConfigError: naming `where`, the expected type and what came.
    """
    if (inner := without_none(hint)) is not hint:
        is_none = value is None or (isinstance(value, str) and value.lower() == "none")
        return None if is_none else convert(value, inner, where=where)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(value, typing.get_args(hint), where=where)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint is str and (value is None or isinstance(value, str)):
        return value or ""
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _convert_tuple(value: Any, inner: tuple[Any, ...], *, where: str) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    if inner == (int, int):
        items = _height_width(value, items)
    if inner == (float, float) and isinstance(value, (int, float)) and value > 0:
        items = (math.sqrt(value), 1.0 / math.sqrt(value))
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(convert(item, inner[0], where=where) for item in items)
    if len(items) != len(inner):
        form = ", as 512 or WIDTHxHEIGHT" if inner == (int, int) else ""
        raise ConfigError(f"{where}: expected {len(inner)} values{form}, got {value!r}")
    return tuple(convert(item, hint, where=where) for item, hint in zip(items, inner))


def _height_width(value: Any, items: Any) -> Any:
    value = items[0] if len(items) == 1 else value  # a flag's list of one word
    if isinstance(value, str) and re.fullmatch(r"[0-9]+x[0-9]+", value):
        width, height = value.split("x")
        return int(height), int(width)
    return (value, value) if isinstance(value, int) else items


def to_dict(config: Any) -> dict[str, dict[str, Any]]:
    """Returns the configuration as nested dictionaries, tuples as lists, fit for YAML and JSON."""
    parts = {name: dataclasses.asdict(section) for name, section in sections(config)}
    return json.loads(json.dumps(parts))


def from_dict(config_class: type, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """Rebuilds a configuration from `to_dict`'s result; keys that no longer exist are errors.

    Errors name the file that the values are from, where they know it (`path`).
    """
    source = str(getattr(values, "path", "stored configuration"))
    return override(config_class(), values, source=source)


def differences(
    ours: Any,
    stored: Mapping[str, Mapping[str, Any]],
    *,
    sections_compared: Iterable[str],
    is_settled: bool = True,
) -> list[str]:
    """Lists 'section.field: stored -> ours' for the compared sections.

    Unless ours is settled, what it leaves open, for data or weights to say, is no difference.
    """
    old = flatten({section: stored.get(section, {}) for section in sections_compared})
    return [
        f"{key}: {old[key]!r} -> {value!r}"
        for key, value in flatten(to_dict(ours)).items()
        if old.get(key, value) != value and (is_settled or value not in ("", [], None))
    ]
