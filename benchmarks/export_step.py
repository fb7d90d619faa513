"""Writes the XLA program of a training step or of inference, without needing an accelerator.

python -m benchmarks.export_step --kind=train --batch_size=128 --output_dir=EXPORT
python benchmarks/run_exported.py EXPORT      # where JAX and a device are

The folder then holds `program.hlo` (a serialised HloModuleProto), `arguments.npz` (its arguments,
the synthetic batch and the initial variables) and `program.json` (what it is, its arguments, which
outputs are the new values of which arguments). The training step is forward, losses, backward and
update of one rank in one program. With --check the step is also run here, plainly, and its numbers
are stored for comparison.
"""

import json
import re
import time
from pathlib import Path

import numpy as np
from absl import flags

from engine import cli
from engine.config import ConfigError

FLAGS = flags.FLAGS

_ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}")


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_enum("kind", "train", ["train", "inference"], "Which program.")
    flags.DEFINE_string("model_name", "efficientdet-d0", "Model.")
    flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
    flags.DEFINE_integer("batch_size", 128, "Images.")
    flags.DEFINE_integer("num_classes", 80, "Class channels.")
    flags.DEFINE_integer("boxes_per_image", 7, "Boxes in each synthetic image.")
    flags.DEFINE_bool("amp", True, "mixed_float16; float32 otherwise.")
    flags.DEFINE_bool("check", False, "Run the program here and store its numbers; small sizes.")
    flags.DEFINE_string("output_dir", "", "Folder to write into; made if need be.")


def aliases(hlo_text: str) -> dict[int, int]:
    """Returns output -> argument that it replaces, from the first line of a module's text."""
    header = hlo_text[: hlo_text.index("\n")]
    _, _, listed = header.partition("input_output_alias={")
    listed, _, _ = listed.partition("entry_computation_layout")
    return {int(output): int(argument) for output, argument in _ALIAS.findall(listed)}


def write_program(function: object, arguments: tuple, folder: Path, *, facts: dict) -> None:
    """Writes program, arguments and description of a compiled `tf.function`.

    Args:
      function: made with `jit_compile=True`.
      arguments: of the call.
      folder: where to write.
      facts: what the description says beside the arguments.
    """
    import tensorflow as tf

    compiler_ir = function.experimental_get_compiler_ir(*arguments)
    program = compiler_ir(stage="hlo_serialized")
    concrete = function.get_concrete_function(*arguments)
    values = [tensor.numpy() for tensor in tf.nest.flatten(arguments)]
    for captured in concrete.captured_inputs:
        if captured.dtype == tf.resource:
            # A variable; not every one is listed in the function's `variables`.
            (held,) = captured._handle_data.shape_and_type
            captured = tf.raw_ops.ReadVariableOp(resource=captured, dtype=held.dtype)
        values.append(captured.numpy())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.hlo").write_bytes(program)
    np.savez(folder / "arguments.npz", **{f"{i:05d}": value for i, value in enumerate(values)})
    listed = [
        {"name": tensor.name, "shape": list(value.shape), "dtype": str(value.dtype)}
        for tensor, value in zip(concrete.inputs, values)
    ]
    replaced = aliases(compiler_ir(stage="hlo"))
    description = {**facts, "replaced_arguments": replaced, "arguments": listed}
    (folder / "program.json").write_text(json.dumps(description, indent=1))


def main(argv: list[str]) -> int:
    """Exports; returns the exit code."""
    cli.refuse_arguments(argv)
    if not FLAGS.output_dir:
        raise ConfigError("--output_dir is required")
    import tensorflow as tf

    import families
    from benchmarks.record import circumstances
    from benchmarks.synthetic import benchmark_config, numbered_class_map, synthetic_batch
    from engine.plan import make_plan
    from engine.run import set_precision
    from engine.step import TrainStep
    from engine.train_state import TrainState

    given = {"batch_size": FLAGS.batch_size, "amp": FLAGS.amp}
    config = benchmark_config(FLAGS.model_name, hparams=FLAGS.hparams, given=given)
    set_precision(config)
    tf.keras.utils.set_random_seed(0)
    start = time.perf_counter()
    task = families.new_task(config, class_map=numbered_class_map(FLAGS.num_classes))
    batch = synthetic_batch(
        task, batch_size=FLAGS.batch_size, boxes_per_image=FLAGS.boxes_per_image
    )
    if FLAGS.kind == "train":
        plan = make_plan(config.train, config.optim, num_examples=120000, num_ranks=1)
        state = TrainState(task, config.optim, plan, dynamic_loss_scale=FLAGS.amp)
        step = TrainStep(task, state, config.optim, use_xla=False, half_gradients=False)
        outputs, arguments = list(step.names), (batch, tf.constant([0, 0]))

        def program(batch: dict, seed: tf.Tensor) -> tf.Tensor:
            return step.update(*step.forward_backward(batch, seed))

    else:
        outputs, arguments = ["boxes", "scores", "classes", "num_valid"], (batch,)
        outputs += ["masks"] * getattr(task, "has_masks", False)

        def program(batch: dict) -> tuple:
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
    compiled = tf.function(program, autograph=False, jit_compile=True)
    write_program(compiled, arguments, folder, facts=facts)
    print(f"traced and exported in {time.perf_counter() - start:.0f} s: {folder}")
    if FLAGS.check:
        results = tf.function(program, autograph=False)(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        np.savez(folder / "expected.npz", *[result.numpy() for result in results])
        print(f"run here for comparison: {folder / 'expected.npz'}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
