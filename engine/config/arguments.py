"""Command lines of small programs, whose mistakes name the nearest option that there is."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.config.fields import nearest

_UNKNOWN = "unrecognized arguments: "


def with_home(word: str) -> str:
    """Returns a word of a command line with the home folder for the `~` of `--name=~/place`.

    Shells put it there in words that begin with `~` only: the others would make a folder `~`.
    """
    name, equals, value = word.partition("=")
    is_option = equals and name.startswith("-") and value.startswith("~/")
    return f"{name}={os.path.expanduser(value)}" if is_option else word


def finite(text: str) -> float:
    """Reads a number; raises ArgumentTypeError for none, NaN and infinity."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


class ArgumentParser(argparse.ArgumentParser):
    """As argparse's, with `finite` for float.

    Of an unknown option it says the nearest one, and it knows `=~/`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", float, finite)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Reads the words of a command line, by default this process's."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        first = message.removeprefix(_UNKNOWN).split("=")[0].split(" ")[0]
        if message.startswith(_UNKNOWN) and first.startswith("--"):
            options = [o for action in self._actions for o in action.option_strings]
            message += nearest(first, [option for option in options if option.startswith("--")])
        super().error(message)
