"""Writes the XLA program of a training step or of inference, without needing an accelerator.

python -m benchmarks.export_step --kind=train --batch_size=128 --output_dir=EXPORT
python benchmarks/run_exported.py EXPORT      # where JAX and a device are

The program is the one that a machine with a GPU gets: it resizes the images too. The folder then
holds `program.hlo.gz` (a serialised HloModuleProto), `program.json` (what it is, its arguments,
which outputs are the new values of which arguments) and `arguments.npz` (what of the arguments, a
synthetic batch and random weights, has to be stored: see `program_arguments`). The training step is
forward, losses, backward and update of one rank in one program. With --check the step is also run
here, plainly, and its numbers are stored for comparison.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.model_flags import define_model_flags, flagged_config
from benchmarks.program_arguments import describe, draw_normal, join_rows
from engine.config.fields import ConfigError
from engine.start import cli

FLAGS = flags.FLAGS

# Variables of fewer elements are stored as they are.
_LEAST_NOISE = 4096
# Images of the synthetic batch that differ.
_DISTINCT_IMAGES = 4
_ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}")


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_enum("kind", "train", ["train", "inference"], "Which program.")
    define_model_flags(batch_size=128)
    flags.DEFINE_integer("num_classes", 80, "Class channels.")
    flags.DEFINE_integer("boxes_per_image", 7, "Boxes in each synthetic image.")
    flags.DEFINE_integer(
        "canvas_size", 640, "Side in pixels of the images that the program resizes (COCO's: 640)."
    )
    flags.DEFINE_bool("amp", True, "mixed_float16; float32 otherwise.")
    flags.DEFINE_bool("check", False, "Run the program here and store its numbers; small sizes.")
    flags.DEFINE_string("output_dir", "", "Folder to write into; made if need be.")


def aliases(hlo_text: str) -> dict[int, int]:
    """Returns output -> argument that it replaces, from the first line of a module's text."""
    header = hlo_text[: hlo_text.index("\n")]
    _, _, listed = header.partition("input_output_alias={")
    listed, _, _ = listed.partition("entry_computation_layout")
    return {int(output): int(argument) for output, argument in _ALIAS.findall(listed)}


def without_copies(program: bytes) -> bytes:
    """Returns a serialised HloModuleProto whose copies are reshapes to the same shape.

    XLA inserts copies of the values that variables get. JAX's way to a GPU goes through StableHLO,
    which knows none.
    """
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto.FromString(program)
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.opcode == "copy":
                instruction.opcode = "reshape"
    return module.SerializeToString()


def randomise(variables: Sequence[Any]) -> dict[int, dict]:
    """Gives kernels reproducible noise of the spread they have; returns id(handle) -> description.

    Only what is far from constant; scales, shifts and statistics stay.
    """
    described: dict[int, dict] = {}
    for seed, variable in enumerate(variables):
        value = variable.numpy()
        mean, deviation = float(value.mean()), float(value.std())
        if value.size >= _LEAST_NOISE and deviation > 1e-6:
            normal = [seed, mean, deviation]
            variable.assign(draw_normal(value.shape, seed=seed, mean=mean, deviation=deviation))
            described[id(variable.handle)] = {"normal": normal}
    return described


def write_program(
    function: object,
    arguments: tuple,
    folder: Path,
    *,
    facts: dict,
    described: Mapping[int, dict],
    joined: Sequence[Sequence[Any]],
    repeats: int,
) -> None:
    """Writes program, arguments and description of a compiled `tf.function`.

    Args:
      function: made with `jit_compile=True`.
      arguments: of the call.
      folder: where to write.
      facts: what the description says beside the arguments.
      described: id(handle) -> how `program_arguments` makes a variable.
      joined: lists of variables of which flat buffers may be joined.
      repeats: how often the rows of the arguments repeat.
    """
    import tensorflow as tf

    from engine.optim.flat import CHUNK

    compiler_ir = function.experimental_get_compiler_ir(*arguments)
    program = without_copies(compiler_ir(stage="hlo_serialized"))
    concrete = function.get_concrete_function(*arguments)
    values = [tensor.numpy() for tensor in tf.nest.flatten(arguments)]
    num_given = len(values)
    made: list[dict] = [{} for _ in values]
    index_of: dict[int, int] = {}
    for captured in concrete.captured_inputs:
        index_of[id(captured)] = len(values)
        made.append(described.get(id(captured), {}))
        if captured.dtype == tf.resource:
            # A variable; not every one is listed in the function's `variables`.
            (held,) = captured._handle_data.shape_and_type
            captured = tf.raw_ops.ReadVariableOp(resource=captured, dtype=held.dtype)
        values.append(captured.numpy())
    buffers = [(v, join_rows([x.numpy() for x in v], CHUNK)) for v in map(list, joined) if v]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.hlo.gz").write_bytes(gzip.compress(program, 6))
    listed, stored = [], {}
    for index, (tensor, value) in enumerate(zip(concrete.inputs, values)):
        entry, kept = made[index], None
        for variables, buffer in buffers:
            indices = [index_of.get(id(v.handle)) for v in variables]
            if None not in indices and np.array_equal(value, buffer):
                entry = {"join": [indices, CHUNK]}
        if not entry:
            entry, kept = describe(value, repeats=repeats if index < num_given else 1)
        if kept is not None:
            stored[str(index)] = kept
        shape = {"name": tensor.name, "shape": list(value.shape), "dtype": str(value.dtype)}
        listed.append({**shape, **entry})
    np.savez_compressed(folder / "arguments.npz", **stored)
    replaced = aliases(compiler_ir(stage="hlo"))
    description = {**facts, "replaced_arguments": replaced, "arguments": listed}
    (folder / "program.json").write_text(json.dumps(description, indent=1))


def main() -> int:
    """Exports; returns the exit code."""
    if not FLAGS.output_dir:
        raise ConfigError("--output_dir is required")
    import tensorflow as tf

    import families
    from benchmarks.record import circumstances
    from benchmarks.synthetic import numbered_class_map, synthetic_batch
    from engine.config.fields import override
    from engine.optim.plan import make_plan
    from engine.start.process import set_precision
    from engine.step import TrainStep
    from engine.train_state import TrainState
    from object_detection.input.accelerator import assume_accelerator

    side = FLAGS.canvas_size
    given = {"batch_size": FLAGS.batch_size, "amp": FLAGS.amp, "resize_on": "device"}
    given["canvas_size"] = side
    config = flagged_config(given)
    if hasattr(config.model, "canvases"):  # one program, of images in landscape
        config = override(config, {"canvases": [config.model.image_size]}, source="benchmark")
    set_precision(config)
    tf.keras.utils.set_random_seed(0)
    start = time.perf_counter()
    task = families.load(config.model.name).new_task(
        config, class_map=numbered_class_map(FLAGS.num_classes)
    )
    described = randomise(task.model.variables)
    distinct = min(_DISTINCT_IMAGES, FLAGS.batch_size)
    if FLAGS.batch_size % distinct:
        distinct = 1
    batch = synthetic_batch(
        task,
        batch_size=FLAGS.batch_size,
        boxes_per_image=FLAGS.boxes_per_image,
        canvas_size=(side, side),
        distinct=distinct,
    )
    joined: list = []
    if FLAGS.kind == "train":
        plan = make_plan(config.train, config.optim, num_examples=120000, num_ranks=1)
        state = TrainState(task, config.optim, plan, dynamic_loss_scale=FLAGS.amp)
        joined += [state.trained, state.others]
        steps = {
            use_xla: TrainStep(task, state, config.optim, use_xla=use_xla, half_gradients=False)
            for use_xla in (True, False)
        }
        place = tf.constant([1, 0, 0], tf.int64)
        outputs, arguments = list(steps[True].names), (batch, place)

        def program(batch: dict, place: tf.Tensor, *, use_xla: bool) -> tf.Tensor:
            step = steps[use_xla]
            return step.update(*step.forward_backward(batch, place))

    else:
        outputs, arguments = ["boxes", "scores", "classes", "num_valid"], (batch,)
        outputs += ["masks"] * getattr(task, "has_masks", False)

        def program(batch: dict, *, use_xla: bool) -> tuple:
            del use_xla
            return tuple(task.predict(batch))

    facts = {
        **circumstances(),
        "kind": FLAGS.kind,
        "model": config.model.name,
        "image_size": list(config.model.image_size),
        "batch_size": FLAGS.batch_size,
        "precision": "mixed_float16" if FLAGS.amp else "float32",
        "outputs": outputs,
    }
    folder = Path(FLAGS.output_dir)
    with assume_accelerator():
        write_program(
            tf.function(
                lambda *inputs: program(*inputs, use_xla=True), autograph=False, jit_compile=True
            ),
            arguments,
            folder,
            facts=facts,
            described=described,
            joined=joined,
            repeats=FLAGS.batch_size // distinct,
        )
        print(f"traced and exported in {time.perf_counter() - start:.0f} s: {folder}")
        if FLAGS.check:
            plain = tf.function(lambda *inputs: program(*inputs, use_xla=False), autograph=False)
            results = plain(*arguments)
            results = results if isinstance(results, tuple) else (results,)
            np.savez(folder / "expected.npz", *[result.numpy() for result in results])
            print(f"run here for comparison: {folder / 'expected.npz'}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
