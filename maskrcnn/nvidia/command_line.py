"""What the commands are told beside our own settings: the references' arguments, files and sets.

Flags of both NVIDIA programs, YAML files of the PyTorch one with KEY VALUE pairs, and data sets by
name, turned into one configuration. Weakest first: the model's defaults, `--preset`, the YAML file,
KEY VALUE pairs, named data sets, `--recipe`, `--hparams`, flags. TensorFlow is not imported. The
YAML's batch sizes are of all ranks together, so the number of ranks must be known here; the
launcher says it before the ranks have joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from detector.request import Request
from engine.config.fields import ConfigError, from_dict, override, to_dict
from engine.start import cli
from maskrcnn.nvidia import expected_results
from maskrcnn.nvidia.pytorch import (
    FileArguments,
    PyTorchArguments,
    RefusedPyTorchArguments,
)
from maskrcnn.nvidia.pytorch_yaml import YamlRun, read_run
from maskrcnn.nvidia.tf2 import (
    RefusedTf2Arguments,
    Tf2Arguments,
    learning_rate_note,
    tf2_overrides,
)
from maskrcnn.settings import MaskRcnnConfig, base_config, with_preset

flags.disclaim_key_flags()

_ALL_IMAGES = 2**31 - 1
_REFUSED = (RefusedTf2Arguments, RefusedPyTorchArguments)
_TRAINING = (FileArguments, Tf2Arguments, PyTorchArguments, *_REFUSED)
_EVALUATION = {
    FileArguments: ("config_file", "weights_dir", "data_catalog", "test_sets"),
    Tf2Arguments: ("data_dir", "eval_file", "xla"),
    PyTorchArguments: ("fp16", "infer_steps"),
}


def define_flags(*, training: bool) -> None:
    """Defines the flags of train.py, or those of eval.py."""
    for arguments in _TRAINING:
        if training or arguments in _EVALUATION:
            only = None if training else _EVALUATION[arguments]
            cli.define_fields(arguments, only=only)


def given_arguments() -> list[str]:
    """Returns the names of the flags of this module that were given."""
    return [name for arguments in _TRAINING for name in cli.given_fields(arguments)]


@dataclasses.dataclass(frozen=True)
class YamlRequest(Request):
    """A request that a YAML file of the PyTorch program is part of."""

    run: YamlRun = None  # always given; the fields before it have defaults

    def conclude(self, metrics: Mapping[str, float]) -> list[str]:
        """Compares metrics with the YAML's expected results; returns lines for the log."""
        return expected_results.compare(
            metrics, self.run.expected_results, sigma_tolerance=self.run.sigma_tolerance
        )

    def checkpoint_places(self) -> list[str]:
        """Returns where the YAML says that weights are: its run's folder, its detector's file."""
        overrides = self.run.overrides
        places = [overrides.get(key, "") for key in ("train.model_dir", "train.pretrained_ckpt")]
        return [place for place in places if place]

    def description(self, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a checkpoint's description with the YAML's settings of testing in it.

        Args:
          stored: as it is; {} for weights of others: then the YAML's network is theirs.

        Raises:
          ConfigError: the checkpoint and the YAML are of different models.
        """
        if not stored:
            return {"config": to_dict(self.config)}
        config = from_dict(MaskRcnnConfig, stored["config"])
        if config.model.name != self.run.model_name:
            raise ConfigError(
                f"the YAML file describes {self.run.model_name}, but the checkpoint is "
                f"{config.model.name}: evaluate it with the file it was trained with"
            )
        of_testing = {
            key: value
            for key, value in self.run.overrides.items()
            if key.startswith(("test.", "rpn.test_"))
        }
        of_testing["runtime.precision"] = self.config.runtime.precision  # --amp is above DTYPE
        return {**stored, "config": to_dict(override(config, of_testing, source="config_file"))}


def training_request(
    pairs: Sequence[str],
    *,
    model_name: str | None,
    preset_name: str,
    recipe: str | Callable[[Any], Mapping[str, Any]],
    hparams: str,
    num_ranks: int,
) -> Request:
    """Returns the configuration that train.py's command line asks for.

    Args:
      pairs: what follows the flags: KEY, VALUE, ...
      model_name: as `--model_name`; None: not given, the YAML file says it.
      preset_name, recipe, hparams: as the flags.
      num_ranks: processes that will train.

    Raises:
      ConfigError, ValueError, FileNotFoundError: what was expected, what came, what to do.
    """
    _refuse()
    run, base = _base(pairs, model_name=model_name, preset_name=preset_name, num_ranks=num_ranks)
    train_sets, test_sets = _sets(run, base, is_training=True)
    base = override(base, train_sets, source="data sets")
    if test_sets:
        base = override(base, next(iter(test_sets.values())), source="data sets")
    if run is not None and "eval.target_ap" in run.overrides:
        base = _with_real_epochs(base, pairs, num_ranks=num_ranks)
    config = cli.resolve(base, recipe=recipe, hparams=hparams)
    tf2 = cli.given_fields(Tf2Arguments)
    if train_sets or test_sets or run is not None:
        tf2.pop("data_dir", None)  # the catalog's folder
    notes = list(run.notes) if run is not None else []
    if tf2 or preset_name == "nvidia_tf2":
        config = _with_tf2_arguments(config, tf2, num_ranks=num_ranks)
        notes.append(learning_rate_note(config, num_ranks=num_ranks))
    return _request(config, notes, test_sets, run)


def evaluation_request(
    pairs: Sequence[str],
    *,
    model_name: str,
    preset_name: str,
    batch_size: int | None,
    num_ranks: int,
) -> Request:
    """Returns what eval.py's command line asks for beside the checkpoint's own description.

    Args:
      pairs: what follows the flags: KEY, VALUE, ...
      model_name: as `--model_name`, for weights without a description.
      preset_name: as `--preset`, likewise.
      batch_size: images per rank and step; None: the YAML's, else the default.
      num_ranks: processes that will evaluate.

    Raises:
      ConfigError, ValueError, FileNotFoundError: what was expected, what came, what to do.
    """
    run, base = _base(
        pairs,
        model_name=None if cli.given_fields(FileArguments).get("config_file") else model_name,
        preset_name=preset_name,
        num_ranks=num_ranks,
        is_training=False,
    )
    if batch_size is not None:
        base = override(base, {"eval.eval_batch_size": batch_size}, source="flag")
    test_sets = _sets(run, base, is_training=False)[1]
    more = _of_evaluation(base, num_ranks=num_ranks, is_named=bool(test_sets))
    given = cli.given_flags(MaskRcnnConfig)
    more = {key: value for key, value in more.items() if key not in given}
    test_sets = {name: {**values, **more} for name, values in (test_sets or {"": {}}).items()}
    return _request(base, run.notes if run is not None else (), test_sets, run)


def _request(
    config: MaskRcnnConfig,
    notes: Sequence[str],
    test_sets: Mapping[str, Mapping[str, Any]],
    run: YamlRun | None,
) -> Request:
    if run is None:
        return Request(config, tuple(notes), test_sets)
    return YamlRequest(config, tuple(notes), test_sets, run)


def _refuse() -> None:
    """Raises ConfigError for an argument that is refused; says why."""
    for arguments in _REFUSED:
        for name in cli.given_fields(arguments):
            reason = arguments.__dataclass_fields__[name].metadata["help"]
            raise ConfigError(f"--{name}: {reason}")


def _base(
    pairs: Sequence[str],
    *,
    model_name: str | None,
    preset_name: str,
    num_ranks: int,
    **options: Any,
) -> tuple[YamlRun | None, MaskRcnnConfig]:
    """Returns the YAML's run, None without one, and the configuration below recipe and flags."""
    run = _read_run(pairs, num_ranks=num_ranks, **options)
    name = model_name
    if run is not None:
        name = model_name or run.model_name
        if name != run.model_name:
            raise ConfigError(
                f"--model_name={name}, but the YAML file and its pairs describe {run.model_name}: "
                "leave --model_name out"
            )
    base = with_preset(base_config(name), preset_name)
    if run is not None:
        base = override(base, run.overrides, source="config_file")
    torch, above = cli.given_fields(PyTorchArguments), {}
    if "fp16" in torch:
        above["runtime.amp"] = torch["fp16"]
    if above or "runtime.amp" in cli.given_flags(MaskRcnnConfig):
        above["runtime.precision"] = ""
    if torch.get("json_summary"):
        above["train.log_filename"] = torch["json_summary"]
    return run, override(base, above, source="flag")


def _read_run(pairs: Sequence[str], *, num_ranks: int, **options: Any) -> YamlRun | None:
    path = cli.given_fields(FileArguments).get("config_file", "")
    steps = cli.given_fields(PyTorchArguments).get("max_steps", 0)
    if not path:
        cli.refuse_arguments(pairs)
        if steps > 0:
            raise ConfigError("--max_steps overrides SOLVER.MAX_ITER of a --config_file: name one")
        return None
    above = ["SOLVER.MAX_ITER", str(steps)] if steps > 0 else []
    return read_run(
        path,
        [*pairs, *above],
        num_ranks=num_ranks,
        weights_dir=flags.FLAGS.weights_dir,
        **options,
    )


def _sets(
    run: YamlRun | None, base: MaskRcnnConfig, *, is_training: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns overrides of the training sets, and of each test set by name."""
    from object_detection.records import catalog as catalogs  # not for --help

    files, given = cli.given_fields(FileArguments), cli.given_flags(MaskRcnnConfig)
    train_names = files.get("train_sets", run.train_sets if run is not None else ())
    test_names = files.get("test_sets", run.test_sets if run is not None else ())
    if "data.training_file_pattern" in given or not is_training:
        train_names = ()
    is_tested = not (given.get("train.skip_test") or given.get("train.benchmark"))
    if "eval.val_file_pattern" in given or not is_tested:
        test_names = ()
    if not (train_names or test_names):
        return {}, {}
    folder = cli.given_fields(Tf2Arguments).get("data_dir", "")
    catalog = catalogs.read_catalog(files.get("data_catalog", ""), folder)
    with_masks = base.model.include_mask
    train = {}
    if train_names:
        chosen = catalogs.choose(catalog, map(str, train_names))
        pattern = catalogs.records_of(chosen, with_masks=with_masks)
        train["data.training_file_pattern"] = pattern
    return train, {
        entry.name: {
            "eval.val_file_pattern": catalogs.records_of([entry], with_masks=with_masks),
            "eval.val_json_file": given.get("eval.val_json_file", entry.annotations),
            "eval.eval_samples": given.get("eval.eval_samples", _ALL_IMAGES),
        }
        for entry in catalogs.choose(catalog, map(str, test_names))
    }


def _with_real_epochs(
    base: MaskRcnnConfig, pairs: Sequence[str], *, num_ranks: int
) -> MaskRcnnConfig:
    """Translates the YAML again for the training set's own number of images."""
    from object_detection.records.card_builder import find_or_scan_card  # brings NumPy

    given = cli.given_flags(MaskRcnnConfig)
    pattern = given.get("data.training_file_pattern") or base.data.training_file_pattern
    if not pattern:
        return base
    num_examples = find_or_scan_card(pattern).num_images
    run = _read_run(pairs, num_ranks=num_ranks, num_examples=num_examples)
    lengths = {
        key: value
        for key, value in run.overrides.items()
        if key.startswith(("optim.lr_", "train.num_epochs"))
    }
    return override(base, lengths, source="config_file")


def _with_tf2_arguments(
    config: MaskRcnnConfig, tf2: Mapping[str, Any], *, num_ranks: int
) -> MaskRcnnConfig:
    """Applies arguments of the TensorFlow 2 program, which stand beside our flags, not above."""
    batch_size = tf2.get("train_batch_size", config.train.batch_size)
    global_batch = batch_size * num_ranks * config.optim.gradient_accumulation
    overrides = tf2_overrides(tf2, global_batch_size=global_batch)
    twice = sorted(set(overrides) & set(cli.given_flags(MaskRcnnConfig)))
    if twice:
        raise ConfigError(
            f"{', '.join(twice)}: given by our flag and by an argument of NVIDIA's TensorFlow 2 "
            f"program ({', '.join(f'--{name}' for name in tf2)}): leave one out"
        )
    return override(config, overrides, source="argument")


def _of_evaluation(base: MaskRcnnConfig, *, num_ranks: int, is_named: bool) -> dict[str, Any]:
    """Returns the overrides of every test set."""
    torch, tf2 = cli.given_fields(PyTorchArguments), cli.given_fields(Tf2Arguments)
    more = {}
    if "data_dir" in tf2 and not is_named:
        more["eval.val_file_pattern"] = str(Path(tf2["data_dir"]) / "val*.tfrecord")
    if "eval_file" in tf2:
        more["eval.val_json_file"] = tf2["eval_file"]
    if "xla" in tf2:
        more["runtime.use_xla"] = tf2["xla"]
    if "fp16" in torch:
        more |= {"runtime.precision": "", "runtime.amp": torch["fp16"]}
    if torch.get("infer_steps", -1) > 0:
        more["eval.eval_samples"] = torch["infer_steps"] * base.eval.eval_batch_size * num_ranks
    return more
