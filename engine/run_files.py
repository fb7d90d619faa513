"""What a training run writes into its folder besides its logs: checkpoints and the final model.

Every method is for all ranks: statistics are made equal first, rank 0 writes, the others wait.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.config.settings import TrainConfig
from engine.files import checkpoint
from engine.log.run_log import RunLog
from engine.ranks import distributed
from engine.ranks.progress import EVALUATE, HERE, SAVE
from engine.train_state import TrainState


class RunFiles:
    """Saves the state of a run.

    Args:
      state, train, log: of the run.
      description: stored with every checkpoint (configuration, data, environment).
      export: writes the final SavedModel to a folder, with the weights then in the model.
    """

    def __init__(
        self,
        state: TrainState,
        train: TrainConfig,
        *,
        log: RunLog,
        description: Mapping[str, Any],
        export: Callable[[Path], None],
    ):
        self._state, self._train, self._log = state, train, log
        self._description, self._export = description, export
        self._folder = Path(train.model_dir)
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """True if so much time has passed since the last save that another is wanted."""
        minutes = (time.monotonic() - self._saved_at) / 60.0
        return 0 < self._train.checkpoint_minutes < minutes

    def save(self, progress: Mapping[str, Any]) -> None:
        """Writes a resumable checkpoint; `progress` becomes part of its description."""
        prefix = self._folder / f"ckpt-{int(self._state.step):08d}"
        HERE.at(f"saving {prefix}", SAVE)
        self._state.equalise()

        def write() -> None:
            checkpoint.save(prefix, self._state.tensors(), {**self._description, **progress})
            checkpoint.write_pointer(self._folder, str(prefix))
            saved = checkpoint.numbered(self._folder, "ckpt-")
            checkpoint.prune(saved, self._train.keep_checkpoints)
            self._log.info(f"saved {prefix}")

        distributed.on_main(write)
        self._saved_at = time.monotonic()
        self._log.flush()

    def save_averages(self, epoch: int, progress: Mapping[str, Any]) -> None:
        """Writes the averaged weights of an epoch; nothing where no average is kept."""
        if not self._state.averaging:
            return
        self._state.equalise()

        def write() -> None:
            prefix = self._folder / "ema_weights" / f"emackpt-{epoch:02d}"
            self._write_weights(prefix, progress)
            checkpoint.write_pointer(prefix.parent, str(prefix))
            saved = checkpoint.numbered(prefix.parent, "emackpt-")
            checkpoint.prune(saved, self._train.keep_checkpoints)

        distributed.on_main(write)

    def save_best(self, progress: Mapping[str, Any]) -> None:
        """Writes the weights that were evaluated: averages, or plain ones where there are none."""
        self._state.equalise()
        name = "ema_weights/emackpt-best" if self._state.averaging else "ckpt-best"
        distributed.on_main(lambda: self._write_weights(self._folder / name, progress))

    def _write_weights(self, prefix: Path, progress: Mapping[str, Any]) -> None:
        tensors = {f"model/{name}": value for name, value in self._state.averages().items()}
        checkpoint.save(prefix, tensors, {**self._description, **progress})

    def write_final(self, progress: Mapping[str, Any]) -> None:
        """Writes ckpt-final and the SavedModel with the averaged weights."""
        HERE.at("writing ckpt-final and the exported model", EVALUATE)
        self._state.equalise()

        def write() -> None:
            description = {**self._description, **progress}
            checkpoint.save(self._folder / "ckpt-final", self._state.tensors(), description)
            name = "emackpt-final" if self._state.averaging else "model-final"
            with self._state.averaged_weights():
                self._export(self._folder / name)

        distributed.on_main(write)
