"""The frame around a rank's main: a failure on one rank ends all, with host, rank and reason.

A rank that simply raises leaves the others waiting in a collective, and Horovod's own shutdown
waits for them too; so a failing rank ends its process at once.
"""

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable

import tensorflow as tf

from engine.config.fields import ConfigError
from engine.ranks import distributed
from outside_data.files import BadFileError
from outside_data.system_errors import explained
from outside_data.text import clean_lines

# Set to see the stack of errors that are normally explained by their message alone.
_TRACEBACK = "RINGDET_TRACEBACK"
_EXPLAINED = (ConfigError, MemoryError, OSError, ValueError, distributed.AgreedError)
_FAILED, _INTERRUPTED = 1, 130
_SYSTEM_ERRORS = {os.strerror(number): number for number in errno.errorcode}
_OF_FILE = re.compile(rf"(?:.*\}}\}} )?([^;]+); ({'|'.join(map(re.escape, _SYSTEM_ERRORS))})")
# What a rank that has nothing to add gives rank 0 to say why and to end all of them.
_SECONDS_FOR_MAIN = 20.0


def run_guarded(main: Callable[[], int]) -> None:
    """Runs a rank's main and ends the process; an exception ends all ranks.

    Args:
      main: returns the exit code.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        code = _end_all("interrupted", code=_INTERRUPTED)
    except Exception as error:
        if isinstance(error, distributed.AgreedError) and not distributed.is_main():
            time.sleep(_SECONDS_FOR_MAIN)
        code = _end_all(_describe(error), code=_FAILED)
    sys.stdout.flush()
    sys.exit(code)


def as_system_error(error: Exception) -> Exception:
    """Returns TensorFlow's error about a file as the system's, any other as it is.

    To TensorFlow a full disk is a resource that is exhausted, as the memory of a device is.
    """
    said = _OF_FILE.match(error.message) if isinstance(error, tf.errors.OpError) else None
    return OSError(_SYSTEM_ERRORS[said[2]], said[2], said[1]) if said else error


def _describe(error: Exception) -> str:
    if isinstance(error, distributed.AgreedError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    error = as_system_error(error)
    hint = ""
    if not isinstance(error, _EXPLAINED) or os.environ.get(_TRACEBACK):
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        print(clean_lines("".join(lines)), file=sys.stderr)
    elif not isinstance(error, (BadFileError, ConfigError, OSError)):
        hint = f" ({_TRACEBACK}=1 shows where)"
    return f"{type(error).__name__}: {explained(error)}{hint}"


def say_error(reason: str) -> None:
    """Says why this rank ends, in the form that scripts/launch.sh looks for."""
    place = distributed.placement()
    where = f"rank {place.rank} of {_ranks()} on {place.host}"
    print(f"ERROR ({where}): {clean_lines(reason)}", file=sys.stderr, flush=True)


def _ranks() -> int:
    return max(distributed.placement().size, distributed.launched_size())


def _end_all(reason: str, *, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody may be there to hear it; the others wait
        say_error(reason)
    if _ranks() > 1:
        distributed.abort_all(code)
    return code
