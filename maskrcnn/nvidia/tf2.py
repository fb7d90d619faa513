"""Arguments of NVIDIA's Mask R-CNN for TensorFlow 2, translated into our settings.

`Tf2Arguments` has those whose names differ from ours, `RefusedTf2Arguments` those refused, and why;
`--finetune_bn`, `--momentum`, `--seed`, `--amp` and others are settings of the same name. All of
them are listed in docs/maskrcnn_arguments.md. That program multiplies its learning rates by the
batch of one rank, which is right for eight ranks only; here the rate of eight ranks is kept for any
number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.config.fields import ConfigError, setting
from maskrcnn.settings import MaskRcnnConfig

# Ranks for which the program's learning rates are right.
_RANKS = 8


@dataclasses.dataclass(frozen=True)
class Tf2Arguments:
    """NVIDIA's Mask R-CNN for TensorFlow 2: arguments named otherwise than ours, its defaults."""

    train_batch_size: int = setting(4, "Images per rank and step: --batch_size.")
    epochs: int = setting(12, "Epochs in all: --num_epochs.")
    steps_per_epoch: int = setting(0, "Optimizer steps of an epoch; 0: by the data.")
    learning_rate_values: tuple[float, ...] = setting(
        (0.01, 0.001, 0.0001),
        "Rates per image of a rank, meant for eight ranks; --lr per image is an eighth.",
    )
    learning_rate_boundaries: tuple[float, ...] = setting(
        (0.3, 8.0, 10.0), "Epochs where the warm-up ends and where each further value begins."
    )
    init_learning_rate: float = setting(0.0, "Rate at step 0, scaled as the values.")
    l2_weight_decay: float = setting(1e-4, "--weight_decay.")
    backbone_checkpoint: str = setting("", "--backbone_init.")
    data_dir: str = setting(
        "",
        "Folder with train*.tfrecord and val*.tfrecord; with named data sets: the folder that the "
        "catalog's paths are relative to.",
    )
    eval_file: str = setting("", "--val_json_file.")
    use_synthetic_data: bool = setting(False, "--use_fake_data.")
    log_file: str = setting("mrcnn-dlll.json", "--log_filename.")
    log_every: int = setting(100, "--log_steps.")
    xla: bool = setting(False, "--use_xla.")
    eagerly: bool = setting(False, "--debug.")


@dataclasses.dataclass(frozen=True)
class RefusedTf2Arguments:
    """NVIDIA's arguments that are refused; the help text is the reason."""

    log_graph: bool = setting(False, "Refused: it does nothing in that program either.")
    log_tensorboard: str = setting(
        "", "Refused: TensorBoard's files are always written, into --model_dir."
    )
    verbose: bool = setting(False, "Refused: there is no more to say; --debug checks numbers.")


_RENAMED = {
    "train_batch_size": "train.batch_size",
    "epochs": "train.num_epochs",
    "l2_weight_decay": "optim.weight_decay",
    "backbone_checkpoint": "train.backbone_init",
    "eval_file": "eval.val_json_file",
    "use_synthetic_data": "train.use_fake_data",
    "log_file": "train.log_filename",
    "log_every": "train.log_steps",
    "xla": "runtime.use_xla",
    "eagerly": "train.debug",
}


def tf2_overrides(given: Mapping[str, Any], *, global_batch_size: int) -> dict[str, Any]:
    """Translates arguments of the TensorFlow 2 program into our settings.

    Args:
      given: name -> value of the arguments given on the command line.
      global_batch_size: images per optimizer step over all ranks.

    Returns:
      `section.field` -> value.

    Raises:
      ConfigError: values that our schedule cannot express.
    """
    overrides = {_RENAMED[name]: value for name, value in given.items() if name in _RENAMED}
    if "data_dir" in given:
        overrides["data.training_file_pattern"] = f"{given['data_dir']}/train*.tfrecord"
        overrides["eval.val_file_pattern"] = f"{given['data_dir']}/val*.tfrecord"
    if "steps_per_epoch" in given:
        overrides["train.num_examples_per_epoch"] = given["steps_per_epoch"] * global_batch_size
    return overrides | _tf2_schedule(given, global_batch_size=global_batch_size)


def _tf2_schedule(given: Mapping[str, Any], *, global_batch_size: int) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    values = given.get("learning_rate_values", ())
    boundaries = given.get("learning_rate_boundaries", ())
    if values and boundaries and len(values) != len(boundaries):
        raise ConfigError(
            f"learning_rate_values has {len(values)} and learning_rate_boundaries "
            f"{len(boundaries)} entries: expected equally many"
        )
    if values:
        is_zero_early = 0.0 in values[:-1]
        factors = () if is_zero_early else [b / a for a, b in zip(values, values[1:])]
        if is_zero_early or any(abs(factor - factors[0]) > 1e-6 for factor in factors):
            raise ConfigError(
                f"learning_rate_values={values}: expected a constant factor between one and the "
                "next; use --hparams=lr_step_factor and lr_step_epochs"
            )
        overrides["optim.learning_rate"] = values[0] / _RANKS
        overrides["optim.lr_batch_size"] = 1
        if factors:
            overrides["optim.lr_step_factor"] = factors[0]
    if boundaries:
        overrides["optim.lr_warmup_epoch"] = boundaries[0]
        overrides["optim.lr_step_epochs"] = tuple(boundaries[1:])
    if "init_learning_rate" in given:
        init = given["init_learning_rate"] * global_batch_size / _RANKS
        overrides["optim.lr_warmup_init"] = init
    return overrides


def learning_rate_note(config: MaskRcnnConfig, *, num_ranks: int) -> str:
    """Says how the learning rate of `num_ranks` processes differs from that program's."""
    optim, images = config.optim, config.train.batch_size * config.optim.gradient_accumulation
    per_image = optim.learning_rate / (optim.lr_batch_size or images * num_ranks)
    ours, theirs = per_image * images * num_ranks, per_image * images * _RANKS
    compared = "the same"
    if num_ranks != _RANKS:
        times = max(num_ranks, _RANKS) / min(num_ranks, _RANKS)
        compared = f"{times:g} times too {'high' if num_ranks < _RANKS else 'low'}"
    return (
        f"learning rate {ours:g}: {per_image:g} per image of the global batch of "
        f"{images * num_ranks}. NVIDIA's program multiplies by the {images} images of one "
        f"rank, whatever their number: {theirs:g}, {compared} on {num_ranks} rank(s)"
    )
