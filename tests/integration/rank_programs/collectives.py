"""Run on several ranks: every collective, and training steps that must equal one large batch.

Each check raises on the rank where it fails; rank 0 says `PASSED name` after all ranks have come
through it.
"""

import traceback
from unittest import mock

import numpy as np
import tensorflow as tf
from engine_numpy_trainer import NumpyTrainer, loss_and_gradients
from engine_tiny_task import TinyTask

from engine.config.settings import OptimConfig
from engine.evaluation import Evaluator, Validator
from engine.log.run_log import RunLog
from engine.optim.plan import StepPlan
from engine.optim.sync_batch_norm import SyncBatchNormalization
from engine.ranks import distributed, guard
from engine.step import TrainStep
from engine.task import Shard
from engine.train_state import TrainState

PLAN = StepPlan(
    learning_rate=0.2,
    global_batch_size=8,
    steps_per_epoch=3,
    total_steps=12,
    warmup_steps=0,
    stop_epoch=4,
)
OPTIM = OptimConfig(
    weight_decay=0.03,
    moving_average_decay=0.6,
    clip_gradients_norm=1.5,
    loss_scale=16.0,  # gradients here are large for float16
)


def check_gather_rows() -> None:
    rank, size = distributed.rank(), distributed.size()
    for counts in (range(size), [3] * size, [0] * size, [0] * (size - 1) + [5]):
        for dtype, columns in ((np.float64, (7,)), (np.int64, ()), (np.float32, (2, 3))):
            parts = [np.full((n, *columns), 10 * r + 1, dtype) for r, n in enumerate(counts)]
            joined = distributed.gather_rows(parts[rank])
            if rank == 0:
                assert joined.dtype == dtype
                np.testing.assert_array_equal(joined, np.concatenate(parts))
            else:
                assert joined is None


def check_rows_that_are_too_large_to_send_at_once() -> None:
    with mock.patch.object(distributed, "_PIECE_BYTES", 11):
        check_gather_rows()


def check_objects() -> None:
    rank, size = distributed.rank(), distributed.size()
    mine = {"rank": rank, "text": "x" * (1000 * rank)}
    everyone = distributed.all_gather_object(mine)
    assert [e["rank"] for e in everyone] == list(range(size))
    assert [len(e["text"]) for e in everyone] == [1000 * r for r in range(size)]
    assert distributed.broadcast_object(("from", rank)) == ("from", 0)


def check_on_main() -> None:
    assert distributed.on_main(distributed.rank) == 0
    try:
        distributed.on_main(lambda: 1 // 0)
    except distributed.AgreedError as error:
        assert isinstance(error.__cause__, ZeroDivisionError) == distributed.is_main()
    else:
        raise AssertionError("the failure of rank 0 was lost")
    assert distributed.on_main(lambda: "and on") == "and on"


def check_broadcast_variables() -> None:
    rank = distributed.rank()
    variables = [tf.Variable([1.0 + rank, 2.0]), tf.Variable(5 + rank, dtype=tf.int64)]
    distributed.broadcast_variables(variables)
    np.testing.assert_array_equal(variables[0], [1.0, 2.0])
    assert int(variables[1]) == 5


def check_reduce_sum() -> None:
    rank, size = distributed.rank(), distributed.size()
    total = size * (size + 1) // 2
    tensors = [
        tf.fill([5], float(rank + 1)),
        tf.constant([[rank + 1]], tf.int32),
        tf.constant(1.5 * (rank + 1), tf.float64),
        tf.fill([3, 2], (rank + 1) / 3.0),
    ]
    expected = [np.full([5], total), [[total]], 1.5 * total, np.full([3, 2], total / 3.0)]
    half = [False, False, False, True]

    def reduce(*values):
        return distributed.reduce_sum(values, half=half)

    for function in (reduce, tf.function(reduce), tf.function(reduce)):
        for before, after, value in zip(tensors, function(*tensors), expected):
            assert before.dtype == after.dtype
            np.testing.assert_allclose(after, value, rtol=1e-3 if value is expected[3] else 1e-6)


def check_average_variables() -> None:
    rank, size = distributed.rank(), distributed.size()
    variables = [tf.Variable([float(rank), 2.0]), tf.Variable(np.float64(rank))]
    distributed.average_variables(variables)
    np.testing.assert_allclose(variables[0], [(size - 1) / 2, 2.0])
    np.testing.assert_allclose(variables[1], (size - 1) / 2)
    distributed.average_variables([])


def check_sync_batch_norm() -> None:
    """The local part of a synchronised layer equals that part of Keras' layer on all images."""
    rank, size = distributed.rank(), distributed.size()
    for shape in ((6 * size, 4, 5, 3), (8 * size, 7)):
        rng = np.random.default_rng(7)
        everything = rng.normal(1.0, 2.0, shape).astype(np.float32)
        target = rng.normal(size=shape).astype(np.float32)
        affine = rng.uniform(0.5, 2.0, [2, shape[-1]])
        mine = slice(rank * shape[0] // size, (rank + 1) * shape[0] // size)

        def run(layer, inputs, target):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = layer(inputs, training=True)
                loss = tf.reduce_sum(tf.square(outputs - target))
            return [outputs, *tape.gradient(loss, [inputs, layer.gamma, layer.beta])]

        whole = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
        part = SyncBatchNormalization(momentum=0.9, epsilon=1e-3)
        for layer in (whole, part):
            layer.build([None, *shape[1:]])
            layer.gamma.assign(affine[0])
            layer.beta.assign(affine[1])
        outputs, by_input, by_gamma, by_beta = run(whole, tf.constant(everything), target)
        in_graph = tf.function(lambda x, y: run(part, x, y))  # noqa: B023
        found = in_graph(tf.constant(everything[mine]), tf.constant(target[mine]))
        np.testing.assert_allclose(found[0], outputs[mine], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], by_input[mine], rtol=1e-3, atol=1e-3)
        sums = distributed.reduce_sum(found[2:])
        np.testing.assert_allclose(sums[0], by_gamma, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(sums[1], by_beta, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(part.moving_mean, whole.moving_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(part.moving_variance, whole.moving_variance, rtol=1e-4)


def make_step(task: TinyTask, *, half: bool = False, use_xla: bool = False) -> TrainStep:
    state = TrainState(task, OPTIM, PLAN, dynamic_loss_scale=half)
    return TrainStep(
        task,
        state,
        OPTIM,
        use_xla=use_xla,
        half_gradients=half,
        compile_forward=not isinstance(task.model.layers[2], SyncBatchNormalization),
    )


def global_batch(task: TinyTask, number: int, size: int) -> dict[str, np.ndarray]:
    """The examples that all ranks have in one step, `size` in all."""
    indices = (number * size + np.arange(size)) % task.num_train_examples
    return {name: values[indices] for name, values in task.examples.items()}


def batches_of(task: TinyTask):
    shard = Shard(distributed.rank(), distributed.size())
    return iter(task.train_dataset(shard=shard, start_step=0))


def check_gradients_equal_one_rank() -> None:
    """Joined gradients are those of the global batch in NumPy, to 1e-5 of their norm."""
    task = TinyTask()
    step = make_step(task)
    state = step.state
    weights = {v.name.removesuffix(":0"): v.numpy().astype(np.float64) for v in state.trained}
    data = batches_of(task)
    for number in range(3):
        batch = task.device_batch(next(data))
        parts = step.forward_backward(batch, tf.constant([1, 0, 0], tf.int64))
        gradient, numbers = step.reduce(parts)
        loss, expected = loss_and_gradients(weights, global_batch(task, number, 8))
        weight = float(numbers[-1])
        for variable, piece in zip(state.trained, state.layout.split(gradient / weight)):
            wanted = expected[variable.name.removesuffix(":0")]
            assert np.linalg.norm(piece - wanted) <= 1e-5 * np.linalg.norm(wanted), variable.name
        np.testing.assert_allclose(numbers[0] / weight, loss, rtol=1e-5)


def check_training_equals_one_rank() -> None:
    """Several whole steps on all ranks are those of NumPy on the global batch."""
    for half, use_xla, tolerance in ((False, True, 2e-5), (True, False, 5e-3)):
        task = TinyTask()
        step = make_step(task, half=half, use_xla=use_xla)
        weights = {v.name.removesuffix(":0"): v.numpy() for v in step.state.trained}
        expected = NumpyTrainer(
            weights, optimizer="sgd", weight_decay=0.03, clip=1.5, momentum=0.9, average_decay=0.6
        )
        data = batches_of(task)
        first = task.device_batch(next(batches_of(task)))
        parts = step.reduce(step.forward_backward(first, tf.constant([1, 0, 0], tf.int64)))
        in_half = [np.array_equal(part, part.numpy().astype(np.float16)) for part in parts]
        assert in_half == [half, False], "not the gradient alone travels in float16, if asked to"
        for number in range(5):
            numbers = dict(zip(step.names, step([task.device_batch(next(data))]).numpy()))
            found = expected.update(global_batch(task, number, 8), numbers["learning_rate"])
            np.testing.assert_allclose(numbers["loss"], found["loss"], rtol=tolerance)
        for variable in step.state.trained:
            wanted = expected.weights[variable.name.removesuffix(":0")]
            np.testing.assert_allclose(variable, wanted, rtol=tolerance, atol=tolerance)
        everyone = distributed.all_gather_object(step.state.weights.numpy().tobytes())
        assert len(set(everyone)) == 1, "ranks hold different weights"


def check_training_with_sync_batch_norm_equals_one_rank() -> None:
    """A network with batch norm too, whatever each rank's batch weighs."""
    task = TinyTask(batch_norm=SyncBatchNormalization)
    step = make_step(task)
    whole = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, batch_size=8)
    variables = whole.model.trainable_variables
    data = batches_of(task)
    for number in range(3):
        batch = task.device_batch(next(data))
        gradient, numbers = step.reduce(
            step.forward_backward(batch, tf.constant([1, 0, 0], tf.int64))
        )
        everything = global_batch(task, number, 8)
        with tf.GradientTape() as tape:
            loss = whole.losses(everything, training=True).loss
        pieces = step.state.layout.split(gradient / numbers[-1])
        for variable, wanted, piece in zip(variables, tape.gradient(loss, variables), pieces):
            error = np.linalg.norm(piece - wanted)
            assert error <= 2e-5 * np.linalg.norm(wanted), f"{variable.name}: {error}"
    for name in ("moving_mean", "moving_variance"):
        ours, theirs = (getattr(t.model.get_layer("hidden_bn"), name) for t in (task, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def check_statistics_are_made_equal() -> None:
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(task)
    data = batches_of(task)
    for _ in range(2):
        step([task.device_batch(next(data))])
    layer = task.model.get_layer("hidden_bn")
    before = distributed.all_gather_object(layer.moving_mean.numpy())
    averages = distributed.all_gather_object(step.state.averages()["hidden_bn/moving_mean"].numpy())
    assert not np.allclose(before[0], before[1])
    step.state.equalise()
    np.testing.assert_allclose(layer.moving_mean, np.mean(before, axis=0), rtol=1e-6, atol=1e-7)
    found = step.state.averages()["hidden_bn/moving_mean"]
    np.testing.assert_allclose(found, np.mean(averages, axis=0), rtol=1e-6, atol=1e-7)


def check_state_is_broadcast() -> None:
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(task, half=True)
    state = step.state
    values = {name: value.numpy() for name, value in state.tensors().items()}
    rank = distributed.rank()
    state.assign({name: value + value.dtype.type(rank) for name, value in values.items()})
    state.broadcast()
    for name, value in state.tensors().items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)
    np.testing.assert_array_equal(state.weights, state.layout.join(state.trained))


def check_evaluation() -> None:
    """Every example once, also where a rank has none or the last batch is partial."""
    for count in (1, 7, 8, 24):
        task = TinyTask(num_examples=count)
        metrics, rows = Evaluator(task, RunLog(), use_xla=False)()
        outputs = task.model(task.examples["x"]).numpy()
        errors = np.square(outputs - task.examples["y"]).sum(axis=1)
        np.testing.assert_allclose(metrics["AP"], 1 / (1 + errors.mean()), rtol=1e-5)
        assert (rows is None) == (distributed.rank() > 0)
        losses = Validator(task, RunLog(), use_xla=False)()
        weight = task.examples["weight"]
        expected = (errors * weight).sum() / weight.sum()
        np.testing.assert_allclose(losses["val_loss"], expected, rtol=1e-5)


def main() -> int:
    """Runs every check on all ranks."""
    distributed.init()
    checks = {name: value for name, value in globals().items() if name.startswith("check_")}
    failed = False
    for name, check in checks.items():
        problem = ""
        try:
            check()
        except Exception:
            problem = traceback.format_exc()
        problems = distributed.all_gather_object(problem)
        for rank, text in enumerate(problems):
            if text and distributed.is_main():
                print(f"FAILED {name} on rank {rank}\n{text}", flush=True)
        if not any(problems) and distributed.is_main():
            print(f"PASSED {name}", flush=True)
        failed |= any(problems)
    return int(failed)


if __name__ == "__main__":
    guard.run_guarded(main)
