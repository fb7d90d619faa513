"""Which model family a model name belongs to; for train.py, eval.py and other commands.

TensorFlow is imported only with a family's code (`load`), not with its settings, so that --help
answers at once.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

import efficientdet.config
import efficientdet.settings
import maskrcnn.config
import maskrcnn.settings
from detector import finetune
from detector.request import Request
from engine.config.fields import ConfigError, look_up
from engine.start import cli
from maskrcnn.nvidia import command_line
from outside_data.text import clean_lines

if TYPE_CHECKING:  # they bring TensorFlow
    from detector.family import DetectorFamily
    from detector.task import DetectionTask
    from object_detection.check.anchor_fit import AnchorLayout

# The flags defined here belong to the program that asks for them.
flags.disclaim_key_flags()

CONFIG_CLASSES = (efficientdet.settings.EfficientDetConfig, maskrcnn.settings.MaskRcnnConfig)
"""The configurations of all families, for `cli.define_flags`."""

DEFAULT_MODEL = "efficientdet-d0"
_MODELS = {
    "efficientdet": efficientdet.config.MODEL_TABLE,
    "maskrcnn": maskrcnn.config.MODEL_TABLE,
}


def package_of(model_name: str) -> str:
    """Returns the package of a model; ConfigError for an unknown name, with the nearest."""
    packages = {name: package for package, table in _MODELS.items() for name in table}
    return look_up(model_name, packages, what="model_name")


def model_lines() -> list[str]:
    """Returns a line for each model: its name and its published input, as image_size reads it."""
    return [
        f"{name:<32} {'x'.join(map(str, reversed(row.image_size)))}"
        for table in _MODELS.values()
        for name, row in table.items()
    ]


def base_config(model_name: str) -> Any:
    """Returns the defaults of a model; ConfigError for an unknown name, with the nearest."""
    return _settings_of(model_name).base_config(model_name)


def _settings_of(model_name: str) -> Any:
    return importlib.import_module(f"{package_of(model_name)}.settings")


def with_preset(config: Any, name: str) -> Any:
    """Applies a preset to a configuration; ConfigError for one that the model's family lacks."""
    return _settings_of(config.model.name).with_preset(config, name)


def define_flags(*, training: bool) -> None:
    """Defines the flags of all families' settings for train.py, and the references' arguments."""
    if training:
        cli.define_flags(CONFIG_CLASSES)
    command_line.define_flags(training=training)


def training_request(
    pairs: Sequence[str], *, preset_name: str, recipe: str, hparams: str, num_ranks: int
) -> Request:
    """Returns what train.py's command line asks for; see `command_line.training_request`."""
    name = flags.FLAGS["model_name"]
    has_file = bool(flags.FLAGS.config_file)
    if recipe == finetune.NAME:
        recipe = functools.partial(_finetune, num_ranks)
    elif recipe and not os.path.exists(recipe):
        raise ConfigError(f"--recipe={recipe}: no such file, nor {finetune.NAME!r}")
    if has_file or package_of(name.value) == "maskrcnn":
        return command_line.training_request(
            pairs,
            model_name=name.value if name.present or not has_file else None,
            preset_name=preset_name,
            recipe=recipe,
            hparams=hparams,
            num_ranks=num_ranks,
        )
    refuse_references(name.value)
    cli.refuse_arguments(pairs)
    config = with_preset(base_config(name.value), preset_name)
    return Request(cli.resolve(config, recipe=recipe, hparams=hparams))


def chosen_recipe(values: flags.FlagValues) -> str:
    """Returns --recipe; if not given, finetune for EfficientDet on a data folder with weights."""
    if values["recipe"].present or values.preset or values.config_file or not values.data:
        return values.recipe
    if package_of(values.model_name) != "efficientdet":  # not measured for others
        return ""
    return finetune.NAME if values.backbone_init or values.pretrained_ckpt else ""


def _finetune(num_ranks: int, config: Any) -> dict[str, Any]:
    """Returns the overrides of `--recipe=finetune` for a run.

    Raises:
      ConfigError: the run starts from no weights, or nothing tells the size of its set.
    """
    from object_detection.records.card import find_card

    pattern = config.data.training_file_pattern
    card = find_card(pattern) if pattern else None
    if card is None:
        lack = "none is named: use --data or --training_file_pattern"
        if pattern:
            lack = f"{pattern} has no data card: convert it again, or use --data"
        raise ConfigError(f"--recipe={finetune.NAME} needs a training set's size, but {lack}")
    return _settings_of(config.model.name).finetune_settings(
        config, num_images=card.num_images, num_ranks=num_ranks
    )


def evaluation_request(
    pairs: Sequence[str], *, preset_name: str, batch_size: int | None, num_ranks: int
) -> Request:
    """Returns what eval.py's asks for; see `command_line.evaluation_request`."""
    if not command_line.given_arguments():
        cli.refuse_arguments(pairs)
        return Request(None)
    name = flags.FLAGS["model_name"]
    if name.present:
        refuse_references(name.value)
    return command_line.evaluation_request(
        pairs,
        model_name=name.value if name.present else maskrcnn.settings.MaskRcnnConfig().model.name,
        preset_name=preset_name,
        batch_size=batch_size,
        num_ranks=num_ranks,
    )


def refuse_references(model_name: str) -> None:
    """Raises ConfigError if the model is no Mask R-CNN, but a flag of Mask R-CNN's was given."""
    own = cli.given_names(type(base_config(model_name)))
    given = command_line.given_arguments()
    given += [n for c in CONFIG_CLASSES for n in cli.given_names(c) if n not in own]
    if given and package_of(model_name) != "maskrcnn":
        raise ConfigError(
            f"--{given[0]} is for Mask R-CNN, but model_name={model_name}: name a model such as "
            f"--model_name=maskrcnn-r50-fpn, or use the flags of EfficientDet (docs/training.md)"
        )


def data_notes(config: Any) -> list[str]:
    """Returns what the data cards of a training warn of; nothing where there are none."""
    from object_detection.check.card_faults import card_faults
    from object_detection.records.card import find_card

    patterns = config.data.training_file_pattern, config.eval.val_file_pattern
    try:
        trained, scored = (find_card(pattern) if pattern else None for pattern in patterns)
    except (ValueError, OSError):  # the run says what is wrong with its records
        return []
    if trained is None:
        return []
    limit = config.data.max_instances_per_image
    layout = anchor_layout(config.model)
    faults = card_faults(trained, scored, layout, max_instances=limit)
    return [f"WARNING {fault}" for fault in faults]


def anchor_layout(model: Any) -> AnchorLayout | None:
    """Returns the anchors of a model at its network size, for the data check.

    Args:
      model: the model section of a configuration of any family; None of one without anchors.
    """
    import numpy as np

    from object_detection.check.anchor_fit import AnchorLayout

    described = _settings_of(model.name).anchor_sides(model)
    if described is None:
        return None
    strides, sides, scale = described
    aspects = np.array(model.aspect_ratios, np.float64)  # (width, height)
    shapes = [np.concatenate([aspects * side for side in of_level]) for of_level in sides]
    return AnchorLayout(strides, shapes, (min(model.image_size), max(model.image_size)), scale)


def load(model_name: str) -> DetectorFamily:
    """Imports the family of a model: what `engine.run` takes as such."""
    return importlib.import_module(f"{package_of(model_name)}.family").FAMILY


def define_checkpoint_flags() -> None:
    """Defines --model_dir, also called --ckpt_path, and what else tells which model it holds."""
    flags.DEFINE_string("model_dir", "", "Checkpoint prefix, or the folder of a run.")
    flags.DEFINE_alias("ckpt_path", "model_dir")
    flags.DEFINE_enum("which", "best", ["best", "last"], "Which checkpoint of a run's folder.")
    flags.DEFINE_string(
        "model_name", DEFAULT_MODEL, "Model; where the checkpoint says it, it must agree."
    )
    flags.DEFINE_string(
        "preset", "", "Conventions of a checkpoint without a description, as in train.py."
    )
    flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")


def flagged_task(*, input_size: str = "") -> DetectionTask:
    """Builds the model of the checkpoint that those flags name; see `load_task`."""
    values = flags.FLAGS
    return load_task(
        values.model_dir,
        which=values.which,
        model_name=values.model_name,
        preset_name=values.preset,
        hparams=values.hparams,
        input_size=input_size,
    )


def load_task(
    path: str,
    *,
    model_name: str,
    preset_name: str,
    hparams: str,
    which: str = "best",
    input_size: str = "",
) -> DetectionTask:
    """Builds the model of a checkpoint with its weights, ready to detect, and says which it took.

    Args:
      path: checkpoint prefix, or the folder of a run.
      model_name: as `--model_name`; where the checkpoint says it, it must agree if given.
      preset_name: as `--preset`, for checkpoints without a description.
      hparams: as `--hparams`.
      which: as `--which`.
      input_size: of the network, as a setting's text; "": the checkpoint's.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: the checkpoint and what is asked for do not fit.
    """
    from engine.files import checkpoint  # with it TensorFlow
    from engine.files.description import describe, read_metadata

    prefix = checkpoint.find(path, which=which)
    stored = read_metadata(prefix)
    print(clean_lines(f"taking {prefix}{describe(stored)}"), flush=True)
    known = str(stored["config"]["model"]["name"]) if stored else model_name
    if model_name not in (known, DEFAULT_MODEL, ""):
        raise ConfigError(f"--model_name={model_name}, but the checkpoint is {known}")
    family = load(known)
    for warning in family.overruled(stored, preset_name=preset_name):
        print(clean_lines(f"WARNING: {warning}"), flush=True)
    config = family.config_of_description(
        stored, model_name=model_name, preset_name=preset_name, hparams=hparams
    )
    if input_size:
        config = family.with_input_size(config, input_size)
    return family.load_task(prefix, config=config)
