"""Command-line flags made from configuration classes, and the configuration made from them.

Here is only the translation; what each setting means stands at its field. A newcomer's trap: only flags that
were really given count (`present`), so that a recipe is not overridden by another flag's default.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from engine import config as config_lib


def define_flags(
    config_classes: Sequence[type],
    *,
    sections: Sequence[str] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines one flag per setting of the given configuration classes; shared settings once.

    Args:
      config_classes: configurations of the model families.
      sections: names of the sections that get flags; None: all.
      flag_values: where the flags are defined. A flag already defined there is left as it is.
    """
    for config_class in config_classes:
        for section_name, section in config_lib.sections(config_class):
            if sections is not None and section_name not in sections:
                continue
            hints = typing.get_type_hints(section)
            for field in dataclasses.fields(section):
                name = flag_name(field)
                if name is None or name in flag_values:
                    continue
                _define(name, field.default, hints[field.name], field.metadata["help"], flag_values)


def flag_name(field: dataclasses.Field) -> str | None:
    """Returns the flag of a setting, or None where it has none."""
    if "flag" not in field.metadata or field.metadata["flag"] is None:
        return None
    return field.metadata["flag"] or field.name


def _define(name: str, default: Any, hint: Any, text: str, flag_values: flags.FlagValues) -> None:
    options = [t for t in typing.get_args(hint) if t is not type(None)]
    base = options[0] if type(None) in typing.get_args(hint) else hint
    if base is bool:
        flags.DEFINE_bool(name, default, text, flag_values=flag_values)
    elif base is int:
        flags.DEFINE_integer(name, default, text, flag_values=flag_values)
    elif base is float:
        flags.DEFINE_float(name, default, text, flag_values=flag_values)
    elif typing.get_origin(base) is tuple:
        shown = [str(v) for v in default] if default is not None else None
        flags.DEFINE_list(name, shown, text, flag_values=flag_values)
    else:
        flags.DEFINE_string(name, default, text, flag_values=flag_values)


def given_flags(
    config_class: type, *, flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
    """Returns `section.field` -> value of the flags that were given on the command line."""
    values: dict[str, Any] = {}
    for section, section_class in config_lib.sections(config_class):
        for field in dataclasses.fields(section_class):
            name = flag_name(field)
            if name is not None and name in flag_values and flag_values[name].present:
                value = flag_values[name].value
                if isinstance(value, list):
                    value = [config_lib._literal(v) for v in value]
                values[f"{section}.{field.name}"] = value
    return values


def resolve(
    base: Any,
    *,
    preset: Mapping[str, Any],
    recipe: str,
    hparams: str,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Any:
    """Applies preset, recipe, `--hparams` and flags to `base`, weakest first.

    Args:
      base: defaults with the model's row already applied.
      preset: overrides of the chosen preset.
      recipe: path of a YAML file or ''.
      hparams: text of `--hparams`.
      flag_values: parsed flags.

    Raises:
      engine.config.ConfigError: unknown key or wrong type, naming its source.
    """
    config = config_lib.override(base, preset, source="preset")
    if recipe:
        config = config_lib.override(config, config_lib.read_yaml(recipe), source=recipe)
    config = config_lib.override(config, config_lib.parse_hparams(hparams), source="--hparams")
    given = given_flags(type(base), flag_values=flag_values)
    if "optim.learning_rate" in given and "optim.lr_batch_size" not in given:
        given["optim.lr_batch_size"] = 0
    return config_lib.override(config, given, source="flag")


def run_app(main: Callable[[list[str]], int]) -> None:
    """Parses the command line and runs `main`; unknown flags name the nearest, errors end all ranks."""
    flags.adopt_module_key_flags(sys.modules[__name__])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def guarded(argv: list[str]) -> None:
        from engine import distributed

        distributed.run_guarded(lambda: main(argv))

    app.run(guarded)
