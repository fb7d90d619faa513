"""What a GPU would refuse or spoil, seen in the traced graphs of both families without a GPU.

A CPU runs all of these silently: variables that TensorFlow keeps in host memory, operations without
a GPU kernel, constants beyond the range of half precision.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import precision
import pytest
import tensorflow as tf

import families
from benchmarks.synthetic import numbered_class_map, synthetic_batch
from detector.task import DetectionTask
from efficientdet.network.backbone import SCALINGS, Scaling
from engine.config.fields import override
from engine.evaluation import Validator
from engine.log.run_log import RunLog
from engine.optim.plan import make_plan
from engine.step import TrainStep
from engine.train_state import TrainState

# Of the version that is installed: the stacks differ in it.
TABLE = Path(__file__).parent / "gpu_kernels" / f"tensorflow-{tf.__version__}.txt"
# Of these TensorFlow has variables in GPU memory; int32 and strings stay with the host.
GPU_VARIABLES = {tf.float16, tf.bfloat16, tf.float32, tf.int64}
HALF = {tf.float16, tf.bfloat16}
# Of XLA only; parts of both families are written for compiled steps (`engine/start/compiled.py`).
BARRIER = "XlaOptimizationBarrier"

# The published input sizes, on which the number of pixels depends; the least channels, and of
# blocks one of each kind.
NARROW = {
    "efficientdet-d0": {
        **{"backbone_name": "tiny", "fpn_num_filters": 8},
        **{"fpn_cell_repeats": 1, "box_class_repeats": 1},
    },
    "maskrcnn-r50-fpn": {
        "model.backbone_width": 8,
        "model.backbone_repeats": [2, 1, 1, 1],
        "model.fpn_num_filters": 16,
        "model.box_mlp_dim": 32,
        "model.mask_conv_dims": [8],
        "model.mask_deconv_dim": 8,
        "data.max_instances_per_image": 4,
    },
}


class Program(NamedTuple):
    """A traced function."""

    name: str
    graph: tf.Graph


def make_task(model_name: str) -> DetectionTask:
    changes = {**NARROW[model_name], "resize_on": "device"}
    config = override(families.base_config(model_name), changes, source="test")
    return families.load(model_name).new_task(config, class_map=numbered_class_map(4))


def programs(model_name: str) -> tuple[Program, ...]:
    """Traces what runs on the device: step, update, prediction and validation."""
    with precision.policy("mixed_float16"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="overflow encountered")
        return tuple(_traced(make_task(model_name)))


def _traced(task: DetectionTask) -> Iterator[Program]:
    config = task.config
    plan = make_plan(config.train, config.optim, num_examples=100, num_ranks=1)
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=True)
    step = TrainStep(task, state, config.optim, use_xla=True, half_gradients=True)
    canvas = task.frames(None)[0].canvas_size
    batch = synthetic_batch(task, batch_size=1, boxes_per_image=2, canvas_size=canvas)
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in batch.items()}
    place = tf.TensorSpec([3], tf.int64)
    gradient = tf.TensorSpec(state.weights.shape, tf.float32)
    numbers = tf.TensorSpec([len(task.loss_names) + 2], tf.float32)
    predict = tf.function(task.predict, autograph=False)
    validate = Validator(task, RunLog(), use_xla=False)._losses.compiled
    for name, function, arguments in (
        ("forward_backward", step.compiled_forward_backward, (specs, place)),
        ("update", step.compiled_update, (gradient, numbers)),
        ("predict", predict, (specs,)),
        ("validate", validate, (specs,)),
    ):
        yield Program(name, function.get_concrete_function(*arguments).graph)
    travels_as = {tf.int32: tf.int64, tf.bool: tf.int8}
    on_device = {
        name: tf.TensorSpec(spec.shape, travels_as.get(spec.dtype, spec.dtype))
        for name, spec in specs.items()
    }
    yield Program("whole", step._whole.get_concrete_function([on_device]).graph)


def nodes_of(graph: tf.Graph) -> Iterator[object]:
    """Yields the nodes of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def host_variables(program: Program) -> set[str]:
    """Returns the variables that a program touches and TensorFlow keeps in host memory."""
    return {
        f"{program.name}: {v.name} is {v.dtype.name}"
        for v in program.graph.variables
        if v.dtype not in GPU_VARIABLES
    }


@functools.cache
def gpu_kernels() -> dict[str, dict[str, set[str]]]:
    """Returns operation -> attribute -> types that a kernel for GPUs allows."""
    table = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        op, *limits = line.split(" ")
        pairs = (limit.split("=") for limit in limits)
        table[op] = {name: set(types.split(",")) for name, types in pairs}
    return table


def without_gpu_kernel(program: Program) -> set[str]:
    """Returns the operations of a program that only a CPU can run, with their types."""
    functions = {f.signature.name for f in program.graph.as_graph_def().library.function}
    found = set()
    for node in nodes_of(program.graph):
        if node.op in functions or (program.name, node.op) == ("forward_backward", BARRIER):
            continue
        limits = gpu_kernels().get(node.op)
        if limits is None:
            found.add(f"{program.name}: {node.op}")
            continue
        for name, types in limits.items():
            if name not in node.attr or not node.attr[name].type:
                continue
            given = tf.as_dtype(node.attr[name].type).name
            if given not in types:
                found.add(f"{program.name}: {node.op} of {name}={given}")
    return found


def overflowed_constants(program: Program) -> set[str]:
    """Returns the constants in half precision that are not finite."""
    found = set()
    for node in nodes_of(program.graph):
        if node.op == "Const" and tf.as_dtype(node.attr["dtype"].type) in HALF:
            values = tf.make_ndarray(node.attr["value"].tensor).astype(np.float32)
            if not np.isfinite(values).all():
                found.add(f"{program.name}: {node.name}")
    return found


def waited_for(program: Program) -> set[str]:
    """Returns the branches and loops of a program, for each of which the host waits."""
    waits = {"If", "StatelessIf", "While", "StatelessWhile"}
    return {f"{program.name}: {node.op}" for node in nodes_of(program.graph) if node.op in waits}


def copied_by_the_step(program: Program) -> set[str]:
    """Returns the tensors between compiled programs that TensorFlow keeps in host memory."""
    return {
        f"{program.name}: {tensor.name} is {tensor.dtype.name}"
        for operation in program.graph.get_operations()
        for tensor in operation.outputs
        if tensor.dtype not in GPU_VARIABLES | {tf.uint8, tf.int8, tf.resource}
    }


@pytest.mark.parametrize("model_name", NARROW)
def test_a_gpu_can_run_it(model_name, monkeypatch):
    monkeypatch.setitem(SCALINGS, "tiny", Scaling(0.25, 0.3))
    *found, whole = programs(model_name)
    step = [program for program in found if program.name in ("forward_backward", "update")]
    # Loops of matching and suppression, short and at the step's beginning.
    assert set().union(*map(waited_for, step)) == {"forward_backward: StatelessWhile"}
    assert copied_by_the_step(whole) == set()
    assert set().union(*map(host_variables, found)) == set()
    assert set().union(*map(without_gpu_kernel, found)) == set()
    assert set().union(*map(overflowed_constants, found)) == set()
    with_barriers = [p.name for p in found if BARRIER in {node.op for node in nodes_of(p.graph)}]
    assert with_barriers == ["forward_backward"]


def test_the_checks_see_what_they_are_for():
    counter = tf.Variable(0, dtype=tf.int32, name="counter")

    @tf.function(autograph=False)
    def function(pixels, masks):
        counter.assign_add(1)
        half = tf.constant(np.inf, tf.float16, name="too_large") * tf.cast(pixels, tf.float16)
        return tf.gather(masks, [0]), tf.io.decode_raw("ab", tf.uint8), half

    specs = [tf.TensorSpec([4], tf.float32), tf.TensorSpec([4], tf.uint8)]
    program = Program("step", function.get_concrete_function(*specs).graph)
    assert host_variables(program) == {"step: counter:0 is int32"}
    found = without_gpu_kernel(program)
    assert {"step: GatherV2 of Tparams=uint8", "step: DecodeRaw"} <= found
    assert overflowed_constants(program) == {"step: too_large"}
    assert any(line.endswith("is int32") for line in copied_by_the_step(program))


def test_branches_and_loops_are_seen():
    @tf.function(autograph=False)
    def function(value):
        value = tf.cond(value > 0.0, lambda: value, lambda: -value)
        return tf.while_loop(lambda v: v < 9.0, lambda v: [v * 2.0], [value])

    graph = function.get_concrete_function(tf.TensorSpec([], tf.float32)).graph
    found = waited_for(Program("step", graph))
    assert found == {"step: StatelessIf", "step: StatelessWhile"}
