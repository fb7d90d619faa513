"""Ranks that count together: stands for train.py where only starts, signals and resuming matter.

Each step is a reduction over all ranks by MPI. Rank 0 keeps the count in --model_dir, every fifth
step and when asked to stop (code 75, as train.py), and goes on from there. LAST_STEP and
STEP_SECONDS say how far and how fast.
"""

import json
import os
import sys
import time
from pathlib import Path

from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from engine.ranks.stop_signals import StopSignals

SAVE_STEPS = 5


def main() -> int:
    world = MPI.COMM_WORLD
    folder = next(Path(a.split("=", 1)[1]) for a in sys.argv if a.startswith("--model_dir="))
    saved = folder / "count.json"
    state = {"step": 0, "total": 0, "resumed_at": []}
    if world.rank == 0 and saved.exists():
        state = json.loads(saved.read_text())
        state["resumed_at"].append(state["step"])
    state = world.bcast(state)
    hosts = world.allgather(os.uname().nodename)

    def save() -> None:
        if world.rank == 0:
            saved.with_suffix(".new").write_text(json.dumps({**state, "hosts": hosts}))
            saved.with_suffix(".new").rename(saved)
            (folder / f"ckpt-{state['step']:08d}.index").touch()

    with StopSignals() as signals:
        while state["step"] < int(os.environ["LAST_STEP"]):
            state["step"] += 1
            state["total"] += world.allreduce((world.rank + 1) * state["step"])
            time.sleep(float(os.environ.get("STEP_SECONDS", "0.1")))
            if world.allreduce(int(bool(signals.received))):
                save()
                print(f"stopped at step {state['step']}", flush=True)
                return 75
            if state["step"] % SAVE_STEPS == 0:
                save()
                if world.rank == 0:
                    print(f"step {state['step']}", flush=True)
    save()
    print("counted", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
