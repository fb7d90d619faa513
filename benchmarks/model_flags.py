"""The flags that say which model a benchmark runs and how, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags

import families
from engine.config.fields import override
from engine.config.recipe_yaml import parse_hparams

FLAGS = flags.FLAGS


def define_model_flags(*, batch_size: int) -> None:
    """Defines the flags, with that many images as default."""
    flags.DEFINE_string("model_name", "efficientdet-d0", "Model, where no checkpoint says it.")
    flags.DEFINE_string("preset", "", "Conventions of a reference, as in train.py.")
    flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
    flags.DEFINE_integer("batch_size", batch_size, "Images of a call, on each rank.")


def flagged_config(given: Mapping[str, Any]) -> Any:
    """Returns the configuration that the flags ask for; the settings `given` win."""
    return benchmark_config(FLAGS.model_name, FLAGS.preset, FLAGS.hparams, given=given)


def benchmark_config(
    model_name: str, preset: str = "", hparams: str = "", *, given: Mapping[str, Any]
) -> Any:
    """Returns the configuration of a model on images that the host has resampled.

    Args:
      model_name: of either family.
      preset: as `--preset` of train.py.
      hparams: as `--hparams` of train.py.
      given: settings of the benchmark, which win.

    Raises:
      ConfigError: an unknown name or key, with the nearest.
    """
    config = families.with_preset(families.base_config(model_name), preset)
    config = override(config, parse_hparams(hparams), source="--hparams")
    return override(config, {"resize_on": "host", **given}, source="flag")


def define_precision_flags() -> None:
    """Defines --amp and --use_xla."""
    flags.DEFINE_bool("amp", None, "mixed_float16; none: where there is an accelerator.")
    flags.DEFINE_bool("use_xla", None, "Compile with XLA; none: where there is an accelerator.")


def is_half() -> bool:
    """Whether --amp asks for mixed_float16; settled as for a training where it is not given."""
    from engine.config.settings import RuntimeConfig
    from engine.optim.precision import policy_name

    return policy_name(RuntimeConfig(amp=flags.FLAGS.amp)) == "mixed_float16"


def model_columns(config: Any, *, amp: bool, use_xla: bool) -> dict[str, Any]:
    """Returns the columns of a row that say what was run, and how."""
    return {
        "model": config.model.name,
        "image_size": "x".join(map(str, config.model.image_size)),
        "batch_size": FLAGS.batch_size,
        "precision": "mixed_float16" if amp else "float32",
        "xla": use_xla,
    }
