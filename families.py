"""Which model family a model name belongs to; for train.py, eval.py and other commands.

TensorFlow is imported only with a family's code (`load`), not with its settings, so that --help
answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

import efficientdet.settings
import maskrcnn.settings
from engine.config import ConfigError, nearest

CONFIG_CLASSES = (efficientdet.settings.EfficientDetConfig, maskrcnn.settings.MaskRcnnConfig)
"""The configurations of all families, for `cli.define_flags`."""

_MODELS = {
    "efficientdet": efficientdet.settings.MODEL_TABLE,
    "maskrcnn": maskrcnn.settings.MODEL_TABLE,
}


def package_of(model_name: str) -> str:
    """Returns the package of a model's family.

    Raises:
      ConfigError: unknown name, with the nearest.
    """
    for package, table in _MODELS.items():
        if model_name in table:
            return package
    known = [name for table in _MODELS.values() for name in table]
    raise ConfigError(f"model_name={model_name!r} is unknown{nearest(model_name, known)}")


def base_config(model_name: str) -> Any:
    """Returns the defaults of a model.

    Raises:
      ConfigError: unknown name, with the nearest.
    """
    return importlib.import_module(f"{package_of(model_name)}.settings").base_config(model_name)


def preset(name: str, *, model_name: str) -> dict[str, Any]:
    """Returns the overrides of a preset for a model.

    Raises:
      ConfigError: the model's family has no such preset; names the nearest.
    """
    if package_of(model_name) == "maskrcnn":
        return maskrcnn.settings.preset(name, model_name=model_name)
    return efficientdet.settings.preset(name)


def load(model_name: str) -> Any:
    """Imports the family of a model: what `engine.run` takes as such."""
    return importlib.import_module(f"{package_of(model_name)}.family")


def load_task(path: str, *, model_name: str, preset_name: str, hparams: str) -> Any:
    """Builds the model of a checkpoint with its weights, ready to detect.

    Args:
      path: checkpoint prefix, or the folder of a run.
      model_name: as `--model_name`; where the checkpoint says it, it must agree if given.
      preset_name: as `--preset`, for checkpoints without a description.
      hparams: as `--hparams`.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: the checkpoint and what is asked for do not fit.
    """
    from engine import checkpoint  # with it TensorFlow

    stored = checkpoint.read_metadata(checkpoint.find(path))
    name = stored["config"]["model"]["name"] if stored else model_name
    config = load(name).config_of_description(
        stored, model_name=model_name, preset_name=preset_name, hparams=hparams
    )
    return _predict(name).load_task(path, config=config)


def new_task(config: Any) -> Any:
    """Builds a model of COCO's classes with random weights, to time it."""
    return _predict(config.model.name).new_task(config)


def _predict(model_name: str) -> Any:
    return importlib.import_module(f"{package_of(model_name)}.predict")
