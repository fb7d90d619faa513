"""What is checked before a run starts, so that nothing fails hours later or on one rank only."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from engine.config.fields import ConfigError, differences, flatten, to_dict
from engine.config.settings import TrainConfig
from engine.files import checkpoint
from engine.files.description import read_description, read_metadata
from engine.optim.plan import StepPlan, stop_epoch
from engine.ranks import distributed, machine
from outside_data.files import BadFileError
from outside_data.system_errors import explained

# What a run keeps in its folder besides files.
_FOLDERS = ("train", "evaluation", "ema_weights", "emackpt-final", "model-final")
_FILES = ("run.lock", "metrics.jsonl", "config.yaml", "environment.json", "commands.txt")
# Settings that say when a run ends.
_LENGTHS = ("num_epochs", "stop_epoch", "training_mode", "train_minutes")


def require(config: Any, *names: str, without_eval: str = "") -> None:
    """Raises ConfigError unless each `section.field` has a value; names all that lack one.

    Where it names no data at all, that a folder of them would do is said too (`--data`).

    Args:
      without_eval: said too where a field of `eval` is missing: how to do without.
    """
    pairs = [name.split(".") for name in names]
    missing = {
        f"--{field}": section
        for section, field in pairs
        if not getattr(getattr(config, section), field)
    }
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        also = without_eval if "eval" in missing.values() else ""
        of_data = {f"--{field}" for section, field in pairs if section in ("data", "eval")}
        if of_data and of_data <= {*missing}:
            also = f", or --data=DIR, a folder with images and annotations (docs/data.md){also}"
        raise ConfigError(f"{', '.join(missing)} {verb} required{also}")


def prepare_folder(folder: Path, *, min_free_gb: float) -> None:
    """Makes a folder and tries to write into it. Rank 0 only.

    Raises:
      ConfigError: it cannot be written, has too little space, or something else in it has the name
        of a file or folder that a run writes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writing-probe"
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {explained(error)}; choose another folder "
            "(--model_dir, or --output_dir of an evaluation)"
        ) from error
    free = shutil.disk_usage(folder).free / 2**30
    if free < min_free_gb:
        raise ConfigError(
            f"{folder} has {free:.2f} GiB free, {min_free_gb:g} are wanted (--min_free_gb): free "
            "some space"
        )
    for path in folder.iterdir():
        if path.is_file() and path.name in _FOLDERS:
            what = "a file where a run keeps a folder"
        elif path.is_dir() and path.name in _FILES:
            what = "a folder where a run keeps a file"
        elif path.is_fifo() or path.is_socket():
            what = "a pipe, on which a run would wait for ever"
        else:
            continue
        raise ConfigError(f"{path} is {what}: move it away, or choose another --model_dir")


def check_ranks_agree(config: Any) -> None:
    """Compares TensorFlow, code and settings of all ranks.

    Raises:
      engine.ranks.distributed.AgreedError: on all ranks; names rank, host and what differs.
    """
    mine = {
        "TensorFlow": tf.__version__,
        "code": machine.git_commit(),
        **{name: json.dumps(value) for name, value in flatten(to_dict(config)).items()},
    }
    everyone = distributed.all_gather_object((distributed.placement().host, mine))
    expected = everyone[0][1]
    for rank, (host, theirs) in enumerate(everyone):
        wrong = [
            f"{name}: {theirs.get(name)} and {expected.get(name)}"
            for name in {**expected, **theirs}
            if theirs.get(name) != expected.get(name)
        ]
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
    """Compares a run with the checkpoint in its folder, which `stored` describes.

    `task` is the family's description of this run's data.

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
            + _about_ranks(stored, plan)
        )


def _about_ranks(stored: Mapping[str, Any], plan: StepPlan) -> str:
    is_same_batch = stored["global_batch_size"] == plan.global_batch_size
    if is_same_batch or stored["num_ranks"] == distributed.size():
        return ""
    return (
        f" (it ran on {stored['num_ranks']} rank(s), this is {distributed.size()}: "
        "--allow_rank_change keeps its global batch)"
    )


def finished_run(
    config: Any, stored: Mapping[str, Any], *, sections_compared: Sequence[str]
) -> str:
    """Returns how to go on from a run that has ended and written its end; '' for any other.

    `stored` describes the newest checkpoint of its folder. A run of other settings is left to
    `check_same_run`, which refuses it.
    """
    folder, train = Path(config.train.model_dir), config.train
    try:
        final = read_metadata(folder / "ckpt-final")
    except BadFileError:  # damaged: to be written again
        return ""
    is_exported = any((folder / name).is_dir() for name in ("emackpt-final", "model-final"))
    if final.get("step") != stored["step"] or not is_exported:
        return ""
    theirs = stored["config"]
    changed = differences(config, theirs, sections_compared=sections_compared, is_settled=False)
    is_other = changed or train.seed not in (None, stored["seed"])
    if stored["num_ranks"] == distributed.size():
        is_other = is_other or train.batch_size != theirs["train"]["batch_size"]
    if theirs["model"]["name"] != config.model.name or (is_other and not train.allow_config_change):
        return ""
    ours = to_dict(config)
    lengths = [("train", name) for name in _LENGTHS]
    lengths += [("eval", name) for name in ours["eval"] if "target" in name]
    is_same = all(final["config"][part].get(n) == ours[part][n] for part, n in lengths)
    if not is_same and (stored["epoch"] < stop_epoch(train) or train.train_minutes):
        return ""
    ap = f", AP {stored['metrics']['AP']:.4f}" if "AP" in stored.get("metrics", {}) else ""
    return (
        f"{folder} holds a run that is finished: epoch {stored['epoch']}, step {stored['step']}"
        f"{ap}; nothing is left to do. To train on: a larger --num_epochs (with "
        "--allow_config_change, as the schedule then spans it) or --stop_epoch. To start from its "
        f"weights: --pretrained_ckpt={shlex.quote(str(folder))} and a new --model_dir"
    )


def ranks_meant(train: TrainConfig) -> int:
    """Returns the ranks that settings for all ranks together are divided by.

    These are the launched ones; with --allow_rank_change those that the run in model_dir began
    with, so that a reference's global batch or rate means the same as then.
    """
    saved = checkpoint.newest_resumable(train.model_dir) if train.allow_rank_change else ""
    with contextlib.suppress(BadFileError):  # damaged: told when the run begins
        stored = read_description(saved) if saved else {}
        return int(stored.get("shares", stored.get("num_ranks", distributed.launched_size())))
    return distributed.launched_size()


def shares_of(config: Any, stored: Mapping[str, Any]) -> int:
    """Returns in how many shares the training data of a run are read: one for each of its ranks.

    With --allow_rank_change a continued run keeps its shares, and each rank has several.

    Raises:
      ConfigError: they cannot be dealt out evenly to the ranks of now.
    """
    ranks = distributed.size()
    shares = int(stored.get("shares", stored["num_ranks"])) if stored else ranks
    if shares == ranks or not config.train.allow_rank_change:
        return ranks
    if shares % ranks:
        fitting = [str(n) for n in range(1, shares + 1) if shares % n == 0]
        raise ConfigError(
            f"--allow_rank_change: the run in {config.train.model_dir} reads its data in {shares} "
            f"shares, which {ranks} rank(s) cannot share evenly: {', '.join(fitting)} ranks can"
        )
    if config.runtime.sync_bn:
        raise ConfigError(
            "--allow_rank_change does not go with --sync_bn: batch norm over all ranks has no "
            f"equal on fewer of them; use {shares} ranks"
        )
    return shares


def changes_since(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists what differs from the machine and software of a checkpoint; of both: descriptions."""

    def facts(description: Mapping[str, Any]) -> dict[str, Any]:
        environment = description.get("environment", {})
        gpus = sorted({gpu.split(",")[0] for gpu in environment.get("gpus", [])})
        return {
            "ranks": description.get("num_ranks"),
            "commit": environment.get("commit"),
            "Python": environment.get("python"),
            "GPUs": ", ".join(gpus) or "none",
            "cores": environment.get("cores"),
            "host": environment.get("host"),
            **environment.get("packages", {}),
        }

    before, after = facts(stored), facts(now)
    return [
        f"{name}: {before.get(name) or 'none'} -> {after.get(name) or 'none'}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
