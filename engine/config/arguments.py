"""Command lines of small programs, whose mistakes name the nearest option that there is."""

from __future__ import annotations

import argparse
from typing import NoReturn

from engine.config.fields import nearest

_UNKNOWN = "unrecognized arguments: "


class ArgumentParser(argparse.ArgumentParser):
    """As argparse's; of an unknown option it says the nearest one."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        first = message.removeprefix(_UNKNOWN).split("=")[0].split(" ")[0]
        if message.startswith(_UNKNOWN) and first.startswith("--"):
            options = [o for action in self._actions for o in action.option_strings]
            message += nearest(first, [option for option in options if option.startswith("--")])
        super().error(message)
