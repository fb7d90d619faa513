"""Typed configuration: what a run is told, from which source, and whether it can work.

Every setting is a field of a frozen dataclass and has its default there and nowhere else. A field made by
`setting` can be set in three ways that all mean the same: as a command-line flag, as a key of `--hparams`,
and as a key of a recipe file. Order of authority, weakest first: defaults, model row, preset, recipe,
`--hparams`, flags given on the command line.

A newcomer's trap: a flag's default is shown by `--help`, but an absent flag never overrides a recipe.
TensorFlow is not imported here, so that `--help` answers at once.
"""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """A setting that cannot work; the message says what was expected, what came and what to do."""


def setting(default: Any, help: str, *, flag: str | None = "", key: str | None = None) -> Any:
    """Declares a field.

    Args:
      default: the default value; lists are given as tuples.
      help: one sentence with the unit.
      flag: flag name; '' means the field's own name, None means that there is no flag.
      key: second name accepted in `--hparams` and recipes (the references' spelling).
    """
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, "key": key})


Section = Any  # any frozen dataclass made of settings


def sections(config: Any) -> Iterator[tuple[str, Section]]:
    """Yields (section name, section) of a configuration or of a configuration class."""
    for field in dataclasses.fields(config):
        if isinstance(config, type):
            yield field.name, _section_type(config, field.name)
        else:
            yield field.name, getattr(config, field.name)


def _section_type(config_class: type, name: str) -> type:
    return typing.get_type_hints(config_class)[name]


def settings(config_class: type) -> dict[str, tuple[str, str]]:
    """Returns every accepted key -> (section, field): plain, `section.field`, and second names."""
    keys: dict[str, tuple[str, str]] = {}
    for section, section_class in sections(config_class):
        for field in dataclasses.fields(section_class):
            place = (section, field.name)
            for key in {
                field.name,
                field.metadata.get("key"),
                field.metadata.get("flag") or None,
            } - {None}:
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
      values: key -> value; a nested mapping under a section's name is the same as dotted keys.
      source: where the values come from, for messages.

    Raises:
      ConfigError: unknown key (names the nearest) or a value of another type.
    """
    known = settings(type(config))
    changes: dict[str, dict[str, Any]] = {}
    for key, value in _flatten(values, known).items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, known)}")
        section, field = known[key]
        hint = typing.get_type_hints(type(getattr(config, section)))[field]
        changes.setdefault(section, {})[field] = convert(value, hint, where=f"{source}: {key}")
    replaced = {
        name: dataclasses.replace(getattr(config, name), **kw) for name, kw in changes.items()
    }
    return dataclasses.replace(config, **replaced)


def _flatten(
    values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            flat.update(_flatten(value, known, f"{name}."))
        else:
            flat[name] = value
    return flat


def nearest(word: str, known: Any) -> str:
    """Returns '; did you mean X?' for the nearest known word, or a short list of what there is."""
    words = [str(w) for w in known]
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of: {', '.join(sorted(w for w in words if '.' not in w)[:40])}"


def convert(value: Any, hint: Any, *, where: str) -> Any:
    """Converts `value` to the annotated type, accepting only what loses nothing.

    Raises:
      ConfigError: naming `where`, the expected type and what came.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or value in ("none", "None"):
            return None
        inner = [t for t in typing.get_args(hint) if t is not type(None)][0]
        return convert(value, inner, where=where)
    if origin is tuple:
        inner = typing.get_args(hint)
        items = value if isinstance(value, (list, tuple)) else (value,)
        if inner == (int, int):
            items = _height_width(value, items)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(convert(v, inner[0], where=where) for v in items)
        if len(items) != len(inner):
            raise ConfigError(f"{where}: expected {len(inner)} values, got {value!r}")
        return tuple(convert(v, t, where=where) for v, t in zip(items, inner, strict=True))
    if hint is bool and isinstance(value, bool):
        return value
    if (
        hint is int
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value == int(value)
    ):
        return int(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint in (Any, dict) or (origin is dict and isinstance(value, Mapping)):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _height_width(value: Any, items: Any) -> Any:
    """Reads a size: 512 is a square, '1920x1280' is WIDTHxHEIGHT, a pair is (height, width)."""
    if isinstance(value, str) and value.count("x") == 1 and value.replace("x", "").isdigit():
        width, height = value.split("x")
        return int(height), int(width)
    return (value, value) if isinstance(value, int) else items


def parse_hparams(text: str) -> dict[str, Any]:
    """Reads the references' override syntax.

    '' gives nothing; 'a=1,b.c=x*y' gives {'a': 1, 'b.c': ['x', 'y']}; a name ending in .yaml is read as a
    mapping. Commas inside brackets or quotes belong to the value, and so does any second '='.

    Raises:
      ConfigError: for text of another form.
      FileNotFoundError: for a YAML file that does not exist.
    """
    text = text.strip()
    if not text:
        return {}
    if text.endswith((".yaml", ".yml")):
        return read_yaml(text)
    values: dict[str, Any] = {}
    for part in _split_outside_brackets(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--hparams: expected key=value[,key=value...] or FILE.yaml, got {part!r}"
            )
        items = [_literal(v) for v in value.split("*")] if "*" in value else _literal(value)
        values[name.strip()] = items
    return values


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def _literal(text: str) -> Any:
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping (a recipe).

    Raises:
      FileNotFoundError: naming the path.
      ConfigError: when the file does not hold a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def to_dict(config: Any) -> dict[str, dict[str, Any]]:
    """Returns the configuration as plain nested dictionaries (tuples as lists), fit for YAML and JSON."""
    return {name: _plain(dataclasses.asdict(section)) for name, section in sections(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def from_dict(config_class: type, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """Rebuilds a configuration from `to_dict`'s result; keys that no longer exist are errors."""
    return override(config_class(), values, source="stored configuration")


def differences(
    ours: Any, stored: Mapping[str, Mapping[str, Any]], *, sections_compared: tuple[str, ...]
) -> list[str]:
    """Lists 'section.field: stored -> ours' for the compared sections."""
    mine = to_dict(ours)
    lines = []
    for section in sections_compared:
        old = stored.get(section, {})
        for key, value in mine[section].items():
            if key in old and old[key] != value:
                lines.append(f"{section}.{key}: {old[key]!r} -> {value!r}")
    return lines
