"""A model family around the tiny task, for whole runs: `run_training` with it takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine_tiny_task import TinyTask

from engine.config.fields import ConfigError, override, setting
from engine.config.settings import DataConfig, EvalConfig, OptimConfig, RuntimeConfig, TrainConfig
from engine.files.weight_files import read_weight_file


@dataclasses.dataclass(frozen=True)
class TinyModel:
    name: str = setting("tiny", "Its name.", flag=None)
    width: int = setting(7, "Not used.", flag=None)
    image_size: tuple[int, int] = setting((1, 4), "Not used.", flag=None)


@dataclasses.dataclass(frozen=True)
class Config:
    model: TinyModel = dataclasses.field(default_factory=TinyModel)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


class TinyFamily:
    """The family; notes what it is asked for."""

    COMPARED_SECTIONS = ("model", "optim")

    def __init__(self):
        self.initialised = self.checked = 0
        self.fingerprint = "abc"
        self.ground_truth_error = ""
        self.tasks: list[TinyTask] = []
        self.evaluations: list[dict] = []

    def validate(self, config) -> None:
        if config.model.width < 1:
            raise ConfigError(f"width={config.model.width}: expected at least 1")

    def make_task(self, config, *, description, training, batch_norm, seed) -> TinyTask:
        task = TinyTask(batch_size=config.train.batch_size)
        task.check_ground_truth = self._check_ground_truth
        self.tasks.append(task)
        return task

    def _check_ground_truth(self) -> None:
        self.checked += 1
        if self.ground_truth_error:
            raise ValueError(self.ground_truth_error)

    def describe(self, task) -> dict:
        return {"data": {"fingerprint": self.fingerprint}}

    def load_initial_weights(self, config, task) -> list[str]:
        self.initialised += 1
        task.model.get_layer("out").bias.assign([1.0, 2.0, 3.0])
        return ["loaded"]

    def load_weights(self, task, prefix) -> list[str]:
        arrays = read_weight_file(prefix).arrays
        for variable in task.model.variables:
            variable.assign(arrays[f"model/{variable.name.removesuffix(':0')}"])
        return [f"evaluating {prefix}"]

    def export(self, task, folder) -> None:
        Path(folder).mkdir(exist_ok=True)

    def write_evaluation(self, task, rows, metrics, *, folder, epoch) -> list[str]:
        self.evaluations.append({"folder": folder, "epoch": epoch, **metrics})
        return []


def config_of(folder: Path | str, **values) -> Config:
    """Returns the configuration of a run in a folder; `values` are settings by their names."""
    told = {
        **{"training_file_pattern": "train-*", "val_file_pattern": "val-*"},
        **{"val_json_file": "val.json", "model_dir": str(folder), "seed": 3},
        **{"batch_size": 4, "num_epochs": 2, "checkpoint_period": 1},
        **{"lr": 0.05, "lr_batch_size": 0, "moving_average_decay": 0.9},
        **{"amp": False, "set_num_threads": False, "min_free_gb": 0.0},
    }
    return override(Config(), told | values, source="test")
