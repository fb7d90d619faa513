"""What a program answers to --help: its flags in groups, each with its default."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from absl import flags

_WIDTH = 100


def help_text(
    about: str, own: Sequence[flags.Flag], groups: Mapping[str, Sequence[flags.Flag]]
) -> str:
    """Returns the text of --help: what the program does, its own flags, then title -> flags."""
    parts = [about.strip()]
    for title, members in {"This program": own, **groups}.items():
        if members:
            parts.append("\n".join([f"{title.rstrip('.')}:", *map(_entry, members)]))
    parts.append("Also: --help shows this, --helpfull every flag of every library.")
    return "\n\n".join(parts)


def _entry(flag: flags.Flag) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, "") else f" (default: {_shown(flag)})"
    lines = textwrap.wrap(f"{flag.help}{default}", _WIDTH - 6, break_on_hyphens=False)
    return "\n".join([f"  {name}", *(f"      {line}" for line in lines)])


def _shown(flag: flags.Flag) -> str:
    if flag.boolean:
        return "on" if flag.default else "off"
    if isinstance(flag.default, list):
        return ",".join(map(str, flag.default))
    return str(flag.default)
