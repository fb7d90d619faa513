"""Reads overrides: the references' `--hparams` text and YAML recipes.

Only syntax; which keys and types are right is `engine.config.fields.override`'s matter. `x*y*z` is
a list, so a value that holds a star of its own is written in quotes.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError
from outside_data import files

_YAML = (".yaml", ".yml")


def parse_hparams(text: str) -> dict[str, Any]:
    """Reads the references' override syntax.

    '' gives nothing; 'a=1,b.c=x*y' gives {'a': 1, 'b.c': ['x', 'y']}; the name of a YAML file is
    read as a mapping. Commas inside brackets or quotes belong to the value, and so does any second
    '='.

    Raises:
      ConfigError: for text of another form.
      FileNotFoundError: for a YAML file that does not exist.
    """
    text = text.strip()
    if not text:
        return {}
    if _names_file(text):
        return read_yaml(text)
    values: dict[str, Any] = {}
    for part in _split_outside_brackets(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--hparams: expected key=value[,key=value...] or FILE.yaml, got {part!r}"
            )
        values[name.strip()] = _value(value.strip())
    return values


def source_of(text: str) -> str:
    """Returns what messages call the origin of `--hparams`: the YAML file, or the flag."""
    return text.strip() if _names_file(text.strip()) else "--hparams"


def _names_file(text: str) -> bool:
    return text.endswith(_YAML) and ("=" not in text or Path(text).is_file())


def _value(text: str) -> Any:
    items = text.split("*")
    if len(items) > 1 and all(items) and text[0] not in "'\"[({":
        return [literal(item) for item in items]
    return literal(text)


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def literal(text: str) -> Any:
    """Reads a Python literal, true or false; any other text stays text."""
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
      BadFileError: when the file does not hold a mapping.
    """
    if files.regular_file(path) is None:
        raise FileNotFoundError(f"no configuration file at {path}")
    values = files.read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise files.BadFileError(
            f"{path}: expected a mapping of settings, got {type(values).__name__}"
        )
    return values
