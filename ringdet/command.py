"""The command `ringdet`: one name for all programs, with their own flags.

ringdet train --data=photos --model_dir=runs/mine
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from engine.config.fields import nearest
from ringdet.own_packages import ROOT
from ringdet.programs import PROGRAMS


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes the program that the first word names; returns the exit code if it comes back.

    Args:
      argv: the words after `ringdet`; None: of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    name, *rest = words
    if name not in PROGRAMS:
        print(f"ERROR: unknown command {name!r}{nearest(name, PROGRAMS)}", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        return 2
    path = str(ROOT / PROGRAMS[name].path)
    sys.argv = [path, *rest]
    sys.path.insert(0, str(ROOT))  # as Python does for a program that lies there
    runpy.run_path(path, run_name="__main__")
    return 0


def _usage() -> str:
    lines = [f"  {name:<11} {program.purpose}" for name, program in PROGRAMS.items()]
    return "\n".join(
        ["Usage: ringdet COMMAND [flags]", "", *lines, "", "ringdet COMMAND --help lists its flags"]
    )
