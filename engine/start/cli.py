"""Command-line flags made from configuration classes, and the configuration made from them.

Here is only the translation; what each setting means stands at its field. Only flags that were
really given count (`present`), so that a recipe is not overridden by another flag's default.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging as python_logging
import math
import os
import re
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import ctrl_c

from absl import app, flags, logging

from engine.config import fields as config_lib
from engine.config import recipe_yaml as hparams_lib
from engine.config.arguments import with_home
from outside_data.system_errors import explained
from outside_data.text import clean_lines

_HELP_WIDTH = 100

# The flags defined here belong to the program that asks for them: so its --help lists them.
flags.disclaim_key_flags()

# Flag -> title of its group in --help.
_GROUPS: dict[str, str] = {}
# Setting -> its flag, None where it has none.
_FLAG_OF: dict[str, str | None] = {}
# What Python says of a text that is no number.
_NO_NUMBER = re.compile(r"invalid literal for (int)\(\) with base 10: |could not convert.*float: ")
_HELP = ("--help", "-help", "-h", "-?")


def define_flags(
    config_classes: Sequence[type],
    *,
    only: Container[str] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines one flag per setting of the given configuration classes; shared settings once.

    Args:
      config_classes: configurations of the model families.
      only: the flags to define; None: all.
      flag_values: where the flags are defined. A flag already defined there is left as it is.
    """
    for config_class in config_classes:
        for _, section in config_lib.sections(config_class):
            define_fields(section, only=only, flag_values=flag_values)


def define_fields(
    section: type,
    *,
    only: Container[str] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines one flag per setting of one dataclass, a group of --help; see `define_flags`."""
    hints = typing.get_type_hints(section)
    title = (section.__doc__ or section.__name__).strip().splitlines()[0]
    for field in dataclasses.fields(section):
        name, text = flag_name(field), field.metadata.get("help", "")
        for key in filter(None, (field.name, field.metadata.get("key"))):
            _FLAG_OF.setdefault(key, name)
        if name is None or not (only is None or name in only):
            continue
        if name not in flag_values:
            _define(name, field, hint=hints[field.name], flag_values=flag_values)
            _GROUPS[name] = title
        elif name in _GROUPS and text not in flag_values[name].help:  # another family's
            flag_values[name].help += f" {text}"


def flag_name(field: dataclasses.Field) -> str | None:
    """Returns the flag of a setting, or None where it has none."""
    if "flag" not in field.metadata or field.metadata["flag"] is None:
        return None
    return field.metadata["flag"] or field.name


def _define(
    name: str, field: dataclasses.Field, *, hint: Any, flag_values: flags.FlagValues
) -> None:
    default, text = field.default, field.metadata["help"]
    base = config_lib.without_none(hint)
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}.get(
        base, flags.DEFINE_string
    )
    if field.metadata["auto"]:
        define = functools.partial(flags.DEFINE, _IntegerOrAuto())
    elif typing.get_origin(base) is tuple:
        has_default = default is not dataclasses.MISSING
        define, default = flags.DEFINE_list, [str(v) for v in default] if has_default else None
    define(name, default, text, flag_values=flag_values)


class _IntegerOrAuto(flags.IntegerParser):
    """Reads a number from 1 on, and `auto` as 0."""

    def parse(self, argument: str | int) -> int:
        number = 0 if argument == "auto" else super().parse(argument)
        if argument != "auto" and isinstance(argument, str) and number < 1:
            raise ValueError("expected auto or a number of at least 1")
        return number


def given_flags(
    config_class: type, *, flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
    """Returns `section.field` -> value of the flags that were given on the command line."""
    return {
        f"{section}.{name}": value
        for section, section_class in config_lib.sections(config_class)
        for name, value in given_fields(section_class, flag_values=flag_values).items()
    }


def given_names(config_class: type) -> list[str]:
    """Returns the names of the flags of a configuration that were given on the command line."""
    flags_of = (
        flag_name(f) for _, s in config_lib.sections(config_class) for f in dataclasses.fields(s)
    )
    return [name for name in flags_of if name in flags.FLAGS and flags.FLAGS[name].present]


def given_fields(section: type, *, flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Returns field -> value of the flags of one dataclass that were given."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        name = flag_name(field)
        if name is not None and name in flag_values and flag_values[name].present:
            value = flag_values[name].value
            if isinstance(value, list):
                value = [hparams_lib.literal(v) for v in value]
            values[field.name] = value
    return values


def resolve(
    config: Any,
    *,
    recipe: str | Callable[[Any], Mapping[str, Any]],
    hparams: str,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Any:
    """Applies recipe, `--hparams` and flags to `config`, weakest first.

    Args:
      config: defaults with the model's row and the preset already applied.
      recipe: path of a YAML file or ''; or what makes overrides of the configuration that there is
        without them.
      hparams: text of `--hparams`.
      flag_values: parsed flags.

    Raises:
      engine.config.fields.ConfigError: unknown key or wrong type, naming its source.
    """
    if callable(recipe):
        without = resolve(config, recipe="", hparams=hparams, flag_values=flag_values)
        config = config_lib.override(config, recipe(without), source="--recipe")
    elif recipe:
        config = config_lib.override(config, hparams_lib.read_yaml(recipe), source=recipe)
    config = _with_hparams(config, hparams)
    given = given_flags(type(config), flag_values=flag_values)
    if "optim.learning_rate" in given and "optim.lr_batch_size" not in given:
        given["optim.lr_batch_size"] = 0
    return config_lib.override(config, given, source="flag")


def _with_hparams(config: Any, text: str) -> Any:
    values = hparams_lib.parse_hparams(text)
    return config_lib.override(config, values, source=hparams_lib.source_of(text))


def resolve_untrained(config: Any, *, hparams: str, batch_size: int) -> Any:
    """Applies `--hparams` and flags of a program that does not train; as of `resolve`.

    Its --batch_size, of each rank and step, is that of evaluation.
    """
    config = _with_hparams(config, hparams)
    overrides = given_flags(type(config))
    overrides.pop("train.batch_size", None)
    for name in ("precision", "image_size"):
        if name not in _GROUPS:  # export.py's are those of the file
            overrides = {k: v for k, v in overrides.items() if k.partition(".")[2] != name}
    overrides["eval.eval_batch_size"] = batch_size
    return config_lib.override(config, overrides, source="flag")


def refuse_arguments(words: Sequence[str]) -> None:
    """Raises ConfigError if there are words of the command line that are no flags."""
    if words:
        is_expanded = os.path.exists(words[0])
        raise config_lib.ConfigError(
            f"unexpected argument {words[0]!r}: everything is told by flags, as in --batch_size=8"
            + ("; quote a pattern, else the shell puts its files here" if is_expanded else "")
        )


def grouped_help(program: str, about: str, flag_values: flags.FlagValues) -> str:
    """Returns the answer to --help of a program, named as in `sys.argv[0]`, that does `about`.

    Its flags come in groups, each with its default.
    """
    key_flags = flag_values.get_key_flags_for_module(program)
    groups = {"This program": [flag for flag in key_flags if flag.name not in _GROUPS]}
    for name, title in _GROUPS.items():
        if name in flag_values:
            groups.setdefault(title, []).append(flag_values[name])
    parts = [about.strip()]
    for title, members in groups.items():
        if members:
            parts.append("\n".join([f"{title.rstrip('.')}:", *map(_help_entry, members)]))
    parts.append("Also: --help shows this, --helpfull every flag of every library.")
    return "\n\n".join(parts)


def _help_entry(flag: flags.Flag) -> str:
    name, default = flag.name, flag.default
    if flag.boolean:
        name, default = f"[no]{name}", {True: "on", False: "off"}.get(default)
    elif isinstance(default, list):
        default = ",".join(map(str, default))
    shown = "" if default in (None, "") else f" (default: {default})"
    lines = textwrap.wrap(f"{flag.help}{shown}", _HELP_WIDTH - 6, break_on_hyphens=False)
    return "\n".join([f"  --{name}", *(f"      {line}" for line in lines)])


def parse_flags(argv: Sequence[str], *, flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line; ends the process after --help (status 0) or a wrong flag (2).

    The references' spellings are understood: hyphens in the names of flags (--config-file), and
    lists of numbers separated by spaces (--learning_rate_values 0.01 0.001).

    Returns:
      The program's name and what is no flag.
    """
    if any(argument in _HELP for argument in argv[1:]):
        about = sys.modules["__main__"].__doc__ or ""
        show(grouped_help(argv[0], about, flag_values))
        sys.exit(0)
    try:
        words = flag_values(_in_our_spelling(argv, flag_values))
        _refuse_non_finite(flag_values)
        return words
    except SystemExit:  # --help was answered; absl would end with status 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        message = f"unknown flag --{error.flagname}{_meant(error.flagname, flag_values)}"
    except flags.Error as error:
        message = f"{error}{_nearest_word(str(error), flag_values)}"
        kinds = {"int": "expected a whole number, got ", None: "expected a number, got "}
        message = _NO_NUMBER.sub(lambda found: kinds[found[1]], message)
    print(f"ERROR: {clean_lines(message)}\nAll flags: python {argv[0]} --help", file=sys.stderr)
    sys.exit(2)


def _refuse_non_finite(flag_values: flags.FlagValues) -> None:
    """Raises IllegalFlagValueError for NaN and infinity, which absl takes within any limits."""
    for name in flag_values:
        value = flag_values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise flags.IllegalFlagValueError(f"flag --{name}={value}: expected a finite number")


def show(text: str) -> None:
    """Prints all that a call is for; whoever reads it may have seen enough (`| head`)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text, flush=True)


def _meant(name: str, flag_values: flags.FlagValues) -> str:
    """Returns what to write for a flag that there is not, which may be a setting's own name."""
    if name in _FLAG_OF and _FLAG_OF[name] is None and "hparams" in flag_values:
        return f"; write --hparams={name}=VALUE"
    if _FLAG_OF.get(name) in flag_values:
        return f"; did you mean {_FLAG_OF[name]!r}?"
    return config_lib.nearest(name, _own_names(flag_values))


def _own_names(flag_values: flags.FlagValues) -> list[str]:
    """Returns the flags that are not those of absl's modules, --log_dir and the like."""
    modules = flag_values.flags_by_module_dict()
    return [f.name for name in modules if not name.startswith("absl.") for f in modules[name]]


def _nearest_word(message: str, flag_values: flags.FlagValues) -> str:
    """Returns what `nearest` says of a value that absl refuses, '' for a flag of no fixed words."""
    name, _, rest = message.removeprefix("flag --").partition("=")
    flag = flag_values[name] if name in flag_values else None
    if not isinstance(flag, flags.EnumFlag):
        return ""
    return config_lib.nearest(rest.rpartition(": ")[0], flag.parser.enum_values)


def _in_our_spelling(argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Writes hyphens in names of flags as underscores, numbers after a list flag as one list.

    What is no flag, negative numbers among it, comes last.
    """
    spelled, plain, rest = [argv[0]], [], list(argv[1:])
    while rest:
        if not rest[0].startswith("-") or _is_number(rest[0]):
            plain.append(rest.pop(0))
            continue
        if rest[0] == "--":
            plain += rest[1:]
            break
        name, equals, value = with_home(rest.pop(0)).partition("=")
        if name.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
        flag = flag_values[name[2:]] if name[2:] in flag_values else None
        if equals or flag is None or flag.boolean:
            spelled.append(f"{name}{equals}{value}")
            continue
        values = [rest.pop(0)] if rest else []
        if isinstance(flag.parser, flags.ListParser):
            while values and rest and _is_number(rest[0]):
                values.append(rest.pop(0))
        spelled += [f"{name}={','.join(values)}"] if values else [name]
    return [*spelled, "--", *plain] if plain else spelled


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def prepare_console() -> None:
    """Has no program fail for what it prints.

    Closed streams, as of daemons, lead nowhere, and not into the file that is opened next;
    characters that the console lacks are escaped.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_app(
    main: Callable[..., int], *, intent: Callable[[], str] | None = None, takes_words: bool = False
) -> None:
    """Parses the command line and runs `main`; its failure ends all ranks with a reason.

    Args:
      main: returns the exit code.
      intent: of a program without ranks: checks the flags and returns what is about to be done,
        which is printed before TensorFlow is imported.
      takes_words: `main` takes the words that are no flags; else there must be none.
    """
    prepare_console()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow turns them on by itself on some CPUs only.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

    def guarded(argv: list[str]) -> None:
        # TensorFlow speaks of its own file formats through absl.
        logging.set_verbosity(logging.WARNING)
        # The form of the run's own lines.
        lines = python_logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        logging.get_absl_handler().setFormatter(lines)
        try:
            if not takes_words:
                refuse_arguments(argv[1:])
            if intent:
                print(f"{intent()}: starting TensorFlow", flush=True)
        except (config_lib.ConfigError, BrokenPipeError) as error:
            sys.exit(f"ERROR: {clean_lines(explained(error))}")
        from engine.ranks import guard  # brings TensorFlow, which --help does not wait for

        ctrl_c.begun()
        guard.run_guarded(functools.partial(main, argv[1:]) if takes_words else main)

    app.run(guarded, flags_parser=parse_flags)
