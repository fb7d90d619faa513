"""Ctrl-C while a program still loads its modules: one line and code 130, in place of a stack.

The programs of this repository import it first. Modules take seconds to import, and an interrupt in
the midst of one may come out as any other error; nothing has begun then, so that the process can
end at once. Who imports a package from a program of their own is left alone, and so is a process
that was started to ignore interrupts. A module that is missing, mostly as the environment is not
active, is one line as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

INTERRUPTED = 130
# What programs of this repository are, or lie in.
_PROGRAMS = ("benchmarks", "dataset", "engine", "eval", "export", "infer", "object_detection")
_PROGRAMS += ("outside_data", "report", "ringdet", "scripts", "train")


def expect() -> None:
    """Has an interrupt, or an import that fails, end the process with one line, until `begun`."""
    sys.excepthook = _explain
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begun() -> None:
    """Has an interrupt be Python's exception again: the program has begun."""
    if sys.excepthook is _explain:
        sys.excepthook = sys.__excepthook__
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(program: Callable[[], Any]) -> None:
    """Runs what a program does once it is loaded; an interrupt ends it with one line."""
    begun()
    try:
        program()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _leave(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"ERROR: interrupted before the start\n")
    os._exit(INTERRUPTED)


def _explain(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError):
        print(
            f"ERROR: {sys.executable} has no module {error.name}: activate the environment (source "
            ".venv/bin/activate), which scripts/setup_env.sh makes",
            file=sys.stderr,
        )
    elif isinstance(error, ImportError) and error.name == "keras_choice":  # it says why
        print(f"ERROR: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, stack)


def _is_our_program() -> bool:
    """Whether Python was started for a program that lies beside this package.

    Others may lie there too: a user's in the repository, all that is installed in site-packages.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    started = getattr(sys.modules["__main__"], "__file__", None)
    if started:
        place = os.path.relpath(os.path.abspath(started), root).split(os.sep)
    else:  # python -m: the packages around a module are imported before it
        words = getattr(sys, "orig_argv", [])  # from Python 3.10 on
        is_module = sys.argv[:1] == ["-m"] and "-m" in words[:-1]
        place = words[words.index("-m") + 1].split(".") if is_module else [""]
    return place[0].removesuffix(".py") in _PROGRAMS


if _is_our_program():
    expect()
