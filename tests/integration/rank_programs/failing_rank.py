"""Run on several ranks: one of them fails in the way that the argument names."""

import os
import sys
import time

from engine.ranks import distributed, guard


def main() -> int:
    """Lets one rank fail while the others wait for it."""
    kind = sys.argv[1]
    if kind == "before joining":
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            raise ValueError("a wrong setting")
        time.sleep(60)
    distributed.init()
    if kind == "one rank" and distributed.rank() == 1:
        raise OSError("disk full on purpose")
    if kind == "rank 0 for all":
        distributed.on_main(lambda: open("/nonexistent/file"))
    distributed.barrier()
    distributed.barrier()
    print("nobody failed")
    return 0


if __name__ == "__main__":
    guard.run_guarded(main)
