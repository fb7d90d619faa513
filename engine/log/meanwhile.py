"""Signs of life while something takes long and cannot tell how far it is, as a compiler."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from engine.log.meters import format_duration

_EVERY_SECONDS = 30.0


@contextlib.contextmanager
def said_meanwhile(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says every half minute of a block that it still goes on.

    Args:
      say: takes the lines, in a thread; when it fails it is not called again.
      what: the work, as after 'still'.
    """
    ended, began = threading.Event(), time.monotonic()

    def work() -> None:
        with contextlib.suppress(OSError, ValueError):  # of a closed console or a lost folder
            while not ended.wait(_EVERY_SECONDS):
                say(f"still {what} after {format_duration(time.monotonic() - began)}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
