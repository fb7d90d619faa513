"""Records training steps with TensorFlow's profiler, for `benchmarks/profile_summary.py`."""

from __future__ import annotations

import shlex
from pathlib import Path

import tensorflow as tf

from engine.log.run_log import RunLog
from engine.ranks import distributed

# Steps of this process before the recording: compilation, caches, filling of buffers.
_FIRST = 10


class StepProfiler:
    """While entered, `before_step` starts and ends the recording; leaving ends it too.

    Args:
      folder: model_dir; the profile goes where its TensorBoard files are.
      steps: to record, on rank 0; 0: none.
      log: says where the profile is.
    """

    def __init__(self, folder: str | Path, *, steps: int, log: RunLog):
        self._folder, self._log = Path(folder) / "train", log
        self._steps = steps if distributed.is_main() else 0
        self._is_recording = False

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *failure: object) -> None:
        self._end()

    def before_step(self, done: int) -> None:
        """Looks whether a recording begins or ends here; `done`: steps of this process so far."""
        if self._steps and done == _FIRST:
            self._log.info(f"recording the next {self._steps} steps with the profiler")
            tf.profiler.experimental.start(str(self._folder))
            self._is_recording = True
        elif self._is_recording and done == _FIRST + self._steps:
            self._end()

    def _end(self) -> None:
        if not self._is_recording:
            return
        self._is_recording = False
        tf.profiler.experimental.stop()
        self._log.info(
            f"the profile is in {self._folder}/plugins/profile: open it with TensorBoard, or run "
            "python -m benchmarks.profile_summary "
            f"--model_dir={shlex.quote(str(self._folder.parent))}"
        )
