"""Writes and reads what the two stacks exchange: checkpoints of a whole state, and exports.

    python stack_exchange.py write FOLDER read FOLDER OUTPUT.npz read FOLDER OUTPUT.npz

`write` makes, for each family, a checkpoint of a small network after one update and its export.
`read` runs both on one image; with the outputs it writes all values of the state that it restored.
One start does any number of them, in order.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import keras_choice  # noqa: F401  (before TensorFlow)

import tensorflow as tf
from one_step import MODELS, SETTINGS

import families
from detector.task import DetectionTask
from engine.config.fields import override, to_dict
from engine.files import checkpoint
from engine.optim.plan import StepPlan
from engine.train_state import TrainState
from object_detection.records.class_map import ClassMap

CLASSES = ClassMap(2, {0: (3, "cat"), 1: (8, "dog")})
PLAN = StepPlan(
    learning_rate=0.01,
    global_batch_size=1,
    steps_per_epoch=4,
    total_steps=8,
    warmup_steps=0,
    stop_epoch=2,
)


def make(family: str) -> tuple[DetectionTask, TrainState]:
    """Builds the task and its state."""
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(3)
    settings = dict(SETTINGS[family])
    if family == "maskrcnn":
        settings |= {"test_detections_per_image": 5, "test_score_thresh": 0.0}
        settings |= {"moving_average_decay": 0.9}
    config = override(families.base_config(MODELS[family]), settings, source="test")
    description = {"config": to_dict(config), "task": {"class_map": CLASSES.to_dict()}}
    task = families.load(config.model.name).make_task(
        config, description=description, training=False, batch_norm=None, seed=3
    )
    return task, TrainState(task, task.config.optim, PLAN, dynamic_loss_scale=False)


def write(folder: Path) -> None:
    """Writes checkpoint and export of each family."""
    for family in SETTINGS:
        task, state = make(family)
        gradient = tf.random.stateless_normal(state.weights.shape, seed=[1, 2])
        # Padding of the flat buffer is zero.
        gradient = state.layout.join(state.layout.split(gradient))
        state.optimizer.apply_gradients([(0.1 * gradient, state.weights)])
        for variable, value in zip(state.trained, state.layout.split(state.weights)):
            variable.assign(value)
        state.move_averages()
        description = {"config": to_dict(task.config), "task": {"class_map": CLASSES.to_dict()}}
        checkpoint.save(folder / family / "ckpt-00000001", state.tensors(), description)
        families.load(task.config.model.name).export(task, folder / family / "export")


def read(folder: Path, output: Path) -> None:
    """Runs what is in the folder; writes the numbers."""
    found = {}
    image = np.random.default_rng(0).integers(0, 255, [1, 50, 70, 3]).astype(np.uint8)
    for family in SETTINGS:
        prefix = str(folder / family / "ckpt-00000001")
        task = families.load_task(prefix, model_name="", preset_name="", hparams="")
        exported = tf.saved_model.load(str(folder / family / "export"))
        for kind, outputs in (
            ("checkpoint", task.detect_images(tf.constant(image))),
            ("export", exported(tf.constant(image))),
        ):
            for i, tensor in enumerate(tf.nest.flatten(outputs)):
                found[f"{family}/{kind}/{i}"] = tensor.numpy()
        _, state = make(family)
        state.assign(checkpoint.load(prefix, state.tensors()))
        found |= {f"{family}/state/{name}": t.numpy() for name, t in state.tensors().items()}
    np.savez(output, **found)


def main(arguments: list[str]) -> None:
    """Does what the command line says."""
    while arguments:
        action, folder, *arguments = arguments
        if action == "write":
            write(Path(folder))
        else:
            output, *arguments = arguments
            read(Path(folder), Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
