"""What is checked before a run starts, so that nothing fails hours later or on one rank only."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from engine.config.fields import ConfigError, differences, to_dict
from engine.files import checkpoint
from engine.optim.plan import StepPlan
from engine.ranks import distributed, machine


def require(config: Any, *names: str) -> None:
    """Raises ConfigError unless each `section.field` has a value; names all that lack one."""
    pairs = (name.split(".") for name in names)
    missing = [
        f"--{field}" for section, field in pairs if not getattr(getattr(config, section), field)
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} required")


def prepare_folder(folder: Path, *, min_free_gb: float) -> None:
    """Makes a folder, tries to write into it and clears up after an interrupted save. Rank 0 only.

    Raises:
      ConfigError: it cannot be written, or has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writing-probe"
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error}; choose another folder (--model_dir, or "
            "--output_dir of an evaluation)"
        ) from error
    free = shutil.disk_usage(folder).free / 2**30
    if free < min_free_gb:
        raise ConfigError(
            f"{folder} has {free:.2f} GiB free, {min_free_gb:g} are wanted (--min_free_gb): free "
            "some space"
        )
    checkpoint.remove_unfinished(folder)


def check_ranks_agree(config: Any) -> None:
    """Compares TensorFlow, code and settings of all ranks.

    Raises:
      engine.ranks.distributed.AgreedError: on all ranks; names rank, host and what differs.
    """
    mine = {
        "TensorFlow": tf.__version__,
        "code": machine.git_commit(),
        **{
            f"{section}.{name}": json.dumps(value)
            for section, fields in to_dict(config).items()
            for name, value in fields.items()
        },
    }
    everyone = distributed.all_gather_object((distributed.placement().host, mine))
    expected = everyone[0][1]
    for rank, (host, theirs) in enumerate(everyone):
        wrong = [f"{k}: {theirs[k]} and {expected[k]}" for k in mine if theirs[k] != expected[k]]
        if wrong:
            raise distributed.AgreedError(
                f"rank {rank} on {host} differs from rank 0: {'; '.join(wrong)}. Start all ranks "
                "from the same code with the same flags"
            )


def check_same_run(
    config: Any,
    stored: Mapping[str, Any],
    *,
    sections_compared: Sequence[str],
    plan: StepPlan,
    task: Mapping[str, Any],
) -> None:
    """Compares a run with the checkpoint in its folder.

    Args:
      config: of this run.
      stored: the checkpoint's description.
      sections_compared: of the configuration.
      plan: of this run.
      task: the family's description of this run's data.

    Raises:
      ConfigError: it is another run, and --allow_config_change was not given.
    """
    if config.train.allow_config_change:
        return
    changed = differences(config, stored["config"], sections_compared=sections_compared)
    numbers = {"global_batch_size": plan.global_batch_size}
    if config.train.seed is not None:
        numbers["seed"] = config.train.seed
    if not config.train.train_minutes:
        numbers |= {"total_steps": plan.total_steps, "warmup_steps": plan.warmup_steps}
    for name, ours in numbers.items():
        if stored[name] != ours:
            changed.append(f"{name}: {stored[name]} -> {ours}")
    for name, theirs in stored["task"].items():
        if task.get(name) != theirs:
            changed.append(f"{name}: {_short(theirs)} -> {_short(task.get(name))}")
    if changed:
        raise ConfigError(
            f"{config.train.model_dir} holds a run of another configuration: "
            f"{'; '.join(changed)}. Use its settings, another --model_dir, or "
            "--allow_config_change to go on from its step with the new ones"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
