"""The training step against NumPy, and the properties that training rests on."""

import dataclasses

import engine_tiny_step
import numpy as np
import pytest
import tensorflow as tf
from engine_numpy_trainer import NumpyTrainer
from engine_tiny_step import run_steps, tensors_of
from engine_tiny_task import FOUR_EPOCHS, TinyTask
from weight_samples import values_of

from engine.config.fields import ConfigError
from engine.config.settings import OptimConfig
from engine.optim.optimizers import is_decayed
from engine.ranks import distributed
from engine.step import TrainStep, clip_factors
from engine.task import Losses, Shard

CONFIG = OptimConfig(
    momentum=0.9,
    lr_warmup_init=0.01,
    weight_decay=0.03,
    moving_average_decay=0.6,
    clip_gradients_norm=10.0,
)
PLAN = FOUR_EPOCHS._replace(warmup_steps=2)


def make_step(config=CONFIG, *, task=None, **options) -> TrainStep:
    return engine_tiny_step.make_step(task or TinyTask(), config, PLAN, **options)


def run(step: TrainStep, steps: int, *, accumulation: int = 1) -> list[dict]:
    """Runs steps; returns the numbers of each by name."""
    rows = run_steps(step, steps, accumulation=accumulation)
    return [dict(zip(step.names, row.tolist())) for row in rows]


def weights_of(step: TrainStep) -> dict[str, np.ndarray]:
    return values_of(step.state.model)


def assert_same(left: dict, right: dict, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("optimizer", "clip", "follows_rate"),
    [
        ("sgd", 10.0, False),
        ("sgd", 1.5, False),
        ("sgd", 1.5, True),
        ("adamw", 1.5, False),
        ("adamw", 0.0, True),
    ],
)
def test_several_steps_equal_numpy(optimizer, clip, follows_rate):
    config = dataclasses.replace(
        CONFIG,
        optimizer=optimizer,
        momentum_follows_rate=follows_rate,
        clip_gradients_norm=clip,
        momentum=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-2,
    )
    task = TinyTask()
    step = make_step(config, task=task)
    expected = NumpyTrainer(
        weights_of(step),
        optimizer=optimizer,
        weight_decay=config.weight_decay,
        clip=clip,
        momentum=0.8,
        beta2=0.95,
        epsilon=1e-2,
        average_decay=0.6,
        follows_rate=follows_rate,
    )
    data = iter(task.train_dataset(shard=Shard(0, 1), start_step=0))
    for _ in range(8):
        batch = next(data)
        numbers = dict(zip(step.names, step([task.device_batch(batch)]).numpy().tolist()))
        found = expected.update(
            {name: batch[name].numpy() for name in ("x", "y", "weight")}, numbers["learning_rate"]
        )
        for name, value in found.items():
            assert numbers[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    state = step.state
    assert_same(weights_of(step), expected.weights, rtol=2e-5, atol=2e-6)
    averages = {name: value.numpy() for name, value in state.averages().items()}
    assert_same(averages, expected.averages, rtol=2e-5, atol=2e-6)
    kept = expected.first
    if optimizer == "sgd" and follows_rate:  # ours is Keras', whatever the rule
        kept = {name: -numbers["learning_rate"] * value for name, value in kept.items()}
    buffers = {"momentum": kept} if optimizer == "sgd" else {"m": kept}
    if optimizer == "adamw":
        buffers["v"] = expected.second
    for buffer, by_name in buffers.items():
        pieces = state.layout.split(state.buffers()[buffer])
        names = [v.name.removesuffix(":0") for v in state.trained]
        assert_same({n: p.numpy() for n, p in zip(names, pieces)}, by_name, rtol=2e-4, atol=2e-6)


def test_numbers_of_a_step_by_hand():
    step = make_step()
    first, second, third = run(step, 3)
    assert [n["learning_rate"] for n in (first, second, third)] == pytest.approx(
        [0.01, 0.105, 0.2], rel=1e-6
    )
    assert first["loss"] == pytest.approx(first["square_loss"] + first["reg_l2_loss"])
    assert (first["loss_scale"], first["skipped"]) == (1.0, 0.0)
    assert int(step.state.step) == int(step.state.optimizer.iterations) == 3


def test_gradients_are_those_of_the_loss():
    """Not of its weight; and 0 by what it does not depend on."""

    class OfTheBias(TinyTask):
        def losses(self, batch, *, training, seed=None):
            bias = tf.convert_to_tensor(self.model.get_layer("out").bias)
            loss = tf.reduce_sum(tf.square(bias - 1.0))
            parts = {"square_loss": loss, "mean_output": loss}
            return Losses(loss, parts, 1.0 + tf.reduce_sum(tf.square(bias)))

    step = make_step(dataclasses.replace(CONFIG, weight_decay=0.0), task=OfTheBias())
    expected = weights_of(step)
    expected["out/bias"] = expected["out/bias"] - 0.01 * 2.0 * (expected["out/bias"] - 1.0)
    run(step, 1)
    assert_same(weights_of(step), expected, rtol=1e-6)


def test_what_is_summed_over_ranks_is_divided_by_them(monkeypatch):
    """Before it travels, for float16 ends at 65504."""
    step = make_step()
    batch = next(iter(step._task.train_dataset(shard=Shard(0, 1), start_step=0)))
    place = tf.constant([1, 0, 0], tf.int64)
    alone = step.forward_backward(step._task.device_batch(batch), place)
    assert float(alone[1][-1]) == pytest.approx(batch["weight"].numpy().sum())
    monkeypatch.setattr(distributed, "size", lambda: 4)
    for part, whole in zip(step.forward_backward(step._task.device_batch(batch), place), alone):
        np.testing.assert_allclose(part, whole / 4.0, rtol=1e-6)


def test_a_batch_gets_its_types_back_in_the_program():
    class Typed(TinyTask):
        def losses(self, batch, **options):
            self.types = {name: value.dtype for name, value in batch.items()}
            return super().losses(batch, **options)

    task = Typed()
    batch = task.device_batch(next(iter(task.train_dataset(shard=Shard(0, 1), start_step=0))))
    travelled = {"index": tf.zeros([4], tf.int64), "valid": tf.ones([4], tf.int8)}
    make_step(task=task)([{**batch, **travelled}])
    assert (task.types["index"], task.types["valid"]) == (tf.int32, tf.bool)
    assert task.types["x"] == tf.float32


def test_collectives_in_the_forward_pass_keep_it_from_being_compiled():
    state = make_step().state
    options = {"use_xla": True, "half_gradients": False, "compile_forward": False}
    step = TrainStep(TinyTask(), state, CONFIG, **options)
    assert step.compiled_forward_backward._jit_compile is None
    assert step.compiled_update._jit_compile is True


def test_clipping_by_hand():
    # (30, 40) is clipped to (3, 4)-like norm 10 each; two gradients of norm 10 have global 14.14.
    factors = clip_factors(tf.constant([50.0, 20.0, 0.0]), 10.0).numpy()
    np.testing.assert_allclose(factors, [0.2 / 2**0.5, 0.5 / 2**0.5, 1.0 / 2**0.5], rtol=1e-6)
    np.testing.assert_array_equal(clip_factors(tf.constant([3.0, 4.0]), 10.0), [1.0, 1.0])
    np.testing.assert_array_equal(clip_factors(tf.constant([3e5, 4e5]), 0.0), [1.0, 1.0])


@pytest.mark.parametrize(
    ("optimizer", "batch_norm"), [("sgd", tf.keras.layers.BatchNormalization), ("adamw", None)]
)
def test_xla_changes_nothing(optimizer, batch_norm):
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    found = []
    for use_xla in (False, True):
        task = TinyTask(batch_norm=batch_norm, noise=0.1)
        step = make_step(config, task=task, use_xla=use_xla, dynamic=True)
        for program in (step.compiled_forward_backward, step.compiled_update):
            assert program._jit_compile == (use_xla or None)
        found.append((run(step, 5), tensors_of(step)))
    for plain, compiled in zip(found[0][0], found[1][0]):
        assert compiled == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert_same(found[1][1], found[0][1], rtol=1e-4, atol=2e-6)


def test_loss_scaling_changes_nothing_while_all_is_finite():
    states = []
    for dynamic in (False, True):
        step = make_step(dynamic=dynamic)
        run(step, 4)
        states.append({n: v for n, v in tensors_of(step).items() if "scale" not in n})
    assert_same(*states, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("use_xla", [False, True])
def test_a_skipped_update_leaves_everything_but_counters_and_scale(optimizer, use_xla):
    """And but the statistics, which the forward pass moves; their averages stay."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, poison=9)  # the third batch
    step = make_step(config, task=task, use_xla=use_xla, dynamic=True)
    good = run(step, 2)
    before = tensors_of(step)
    (bad,) = run(step, 1)
    after = tensors_of(step)
    assert [n["skipped"] for n in (*good, bad)] == [0.0, 0.0, 1.0]
    assert not np.isfinite(bad["loss"])
    assert (bad["loss_scale"], after["state/loss_scale"]) == (32768.0, 16384.0)
    assert after["state/step"] == before["state/step"] + 1
    unchanged = set(before) - {"state/step", "state/loss_scale", "state/loss_scale_good_steps"}
    unchanged -= {"model/hidden_bn/moving_mean", "model/hidden_bn/moving_variance"}
    assert {"state/iterations", "ema/hidden_bn/moving_mean"} <= unchanged
    for name in unchanged:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    (again,) = run(step, 1)
    assert again["skipped"] == 0.0 and np.isfinite(again["loss"])


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("sgd", {}),
        ("adamw", {}),
        ("sgd", {"momentum": 0.0}),
        ("adamw", {"moving_average_decay": 0}),
    ],
)
def test_what_an_update_changes_is_what_a_skipped_one_restores(optimizer, changes):
    """Else a compiled update keeps what it made of gradients that are no numbers."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer, **changes)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(config, task=task, use_xla=True, dynamic=True)
    state = step.state
    inputs = tf.TensorSpec(state.weights.shape), tf.TensorSpec([len(task.loss_names) + 2])
    graph = step.compiled_update.get_concrete_function(*inputs).graph
    variables = {inside.name: id(handle) for handle, inside in graph.captures}
    written = {
        variables[handle.name]
        for operation in graph.get_operations()
        for handle in operation.inputs
        if handle.dtype == tf.resource and operation.type != "ReadVariableOp"
    }
    whatever = [*state.trained, state.step, state.loss_scale.value, state.loss_scale.good_steps]
    assert written == {id(v.handle) for v in [*state.moved_by_update(), *whatever]}


@pytest.mark.parametrize("use_xla", [False, True])
def test_one_number_that_is_none_skips_an_update(use_xla):
    """A logged one, the loss, or one of the gradient; the weights would decay else."""
    step = make_step(use_xla=use_xla, dynamic=True)
    start, weights = tf.zeros(step.state.weights.shape), step.state.weights.numpy()
    skipped = []
    for place, bad in ((0, np.inf), (1, np.nan), (2, -np.inf), (None, np.nan), (None, -np.inf)):
        numbers, gradient = np.float32([1.0, 2.0, 3.0, 4.0]), start.numpy()
        (gradient[0] if place is None else numbers)[place or 0] = bad
        row = step.compiled_update(gradient, numbers).numpy()
        skipped.append(row[step.names.index("skipped")])
        np.testing.assert_array_equal(step.state.weights, weights)
    assert skipped == [1.0] * 5
    assert float(step.state.loss_scale.value) == 2.0**15 / 2**5
    row = step.compiled_update(start, tf.constant([1.0, 2.0, 3.0, 4.0])).numpy()
    assert row[step.names.index("skipped")] == 0.0
    assert not np.array_equal(step.state.weights, weights)


def test_a_batch_of_which_nothing_counts_has_no_gradient():
    """As of a training whose batch is one image, and that cannot be read."""
    step = make_step(dataclasses.replace(CONFIG, weight_decay=0.0))
    before = weights_of(step)
    numbers = step.compiled_update(tf.zeros(step.state.weights.shape), tf.zeros(4)).numpy()
    row = dict(zip(step.names, numbers.tolist()))
    assert (row["loss"], row["gradient_norm"], row["skipped"]) == (0.0, 0.0, 0.0)
    assert int(step.state.step) == 1
    assert_same(weights_of(step), before)


def test_overflow_of_the_scaled_loss_is_found_out():
    config = dataclasses.replace(CONFIG, loss_scale=2.0**127)
    step = make_step(config, dynamic=True)
    numbers = run(step, 1)[0]
    assert numbers["skipped"] == 1.0
    assert np.isfinite(numbers["loss"]) and not np.isfinite(numbers["gradient_norm"])


def test_accumulated_batches_equal_one_large_batch():
    found, accumulation = [], 3
    for size, parts in ((4 * accumulation, 1), (4, accumulation)):
        task = TinyTask(batch_size=size)
        step = make_step(task=task)
        found.append((run(step, 4, accumulation=parts), weights_of(step)))
    for whole, accumulated in zip(found[0][0], found[1][0]):
        assert accumulated == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert_same(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)


def test_frozen_variables_stay_and_do_not_decay():
    config = dataclasses.replace(CONFIG, var_freeze_expr="hidden/")
    step = make_step(config)
    before = weights_of(step)
    numbers = run(step, 3)
    after = weights_of(step)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("hidden/"), name
    penalty = 0.5 * 0.03 * np.square(before["out/kernel"]).sum()
    assert numbers[0]["reg_l2_loss"] == pytest.approx(penalty, rel=1e-5)


@pytest.mark.parametrize(
    ("expression", "frozen"),
    [
        ("hidden", {"kernel", "gamma", "beta", "moving_mean", "moving_variance"}),
        ("hidden_bn", {"gamma", "beta", "moving_mean", "moving_variance"}),
        ("(hidden_bn/gamma|idden)", {"gamma"}),  # "idden" begins no name
    ],
)
def test_statistics_stay_where_scale_and_shift_are_frozen(expression, frozen):
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(dataclasses.replace(CONFIG, var_freeze_expr=expression), task=task)
    before = weights_of(step)
    run(step, 2)
    same = {name for name, value in weights_of(step).items() if np.array_equal(value, before[name])}
    assert {name.split("/")[1] for name in same} == frozen
    assert all(name.startswith("hidden") for name in same)


def test_kernels_decay_and_nothing_else():
    kernels = ("kernel", "a/kernel", "a/depthwise_kernel", "a/pointwise_kernel", "a/weight")
    others = ("a/bias", "a/gamma", "kernel/beta", "a/WSM_1", "weight/moving_mean")
    for name in (*kernels, *others):
        assert is_decayed(tf.Variable(0.0, name=name)) == (name in kernels), name


def test_a_family_may_give_variables_rates_and_decay_of_their_own():
    class Ruled(TinyTask):
        def learning_rate_factor(self, variable):
            return 2.0 if variable.name.startswith("out/") else 1.0

        def is_decayed(self, variable):
            return variable.name.startswith("out/bias")

    config = dataclasses.replace(CONFIG, clip_gradients_norm=0.0)
    changes = []
    for task in (TinyTask(), Ruled()):
        step = make_step(dataclasses.replace(config, weight_decay=0.0), task=task)
        before = weights_of(step)
        run(step, 1)
        changes.append({name: value - before[name] for name, value in weights_of(step).items()})
    for name, change in changes[0].items():
        factor = 2.0 if name.startswith("out/") else 1.0
        np.testing.assert_allclose(changes[1][name], factor * change, rtol=1e-5, atol=1e-7)
    step = make_step(config, task=Ruled())
    bias = weights_of(step)["out/bias"]
    numbers = run(step, 1)
    assert numbers[0]["reg_l2_loss"] == pytest.approx(0.5 * 0.03 * np.square(bias).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("hiden", "matches no variable; names start with: hidden, out"),
        (".*", "matches every variable"),
        ("(", "is not a regular expression"),
    ],
)
def test_freeze_expressions_that_cannot_be_meant(expression, words):
    with pytest.raises(ConfigError, match=words):
        make_step(dataclasses.replace(CONFIG, var_freeze_expr=expression))


def test_randomness_follows_seed_and_step():
    def losses(seed: int, skip: int = 0) -> list[float]:
        task = TinyTask(batch_size=24, noise=1.0)  # the same batch at every step
        config = dataclasses.replace(CONFIG, weight_decay=0.0)
        step = make_step(config, task=task, seed=seed)
        step.state.step.assign(skip)
        return [n["square_loss"] for n in run(step, 1)]

    first = losses(1)
    assert first == losses(1)
    assert first != losses(2)
    assert first != losses(1, skip=1)


def test_a_step_on_several_shares_is_that_of_as_many_ranks():
    """Each has its own noise and begins with the statistics of the step before."""
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.5)
    task.model.counter = tf.Variable(7, dtype=tf.int64, trainable=False)  # no statistic
    shards = [Shard(rank, 2) for rank in (0, 1)]
    step = make_step(task=task, seed=5, shards=shards)
    data = [iter(task.train_dataset(shard=shard, start_step=0)) for shard in shards]
    statistics = [v for v in task.model.non_trainable_variables if v.dtype.is_floating]
    for number in range(2):
        parts = [[task.device_batch(next(share)) for _ in range(2)] for share in data]
        before, ends, results = [v.numpy() for v in statistics], [], []

        def begin(values=before):
            for variable, value in zip(statistics, values):
                variable.assign(value)

        for shard, batches in zip(shards, parts):
            begin()
            for i, batch in enumerate(batches):
                seed = tf.constant([2 * number + i, 5 * 7919 + shard.rank])
                results.append(task.losses(batch, training=True, seed=seed))
            ends.append([v.numpy() for v in statistics])
        begin()
        numbers = dict(zip(step.names, step([*parts[0], *parts[1]]).numpy().tolist()))
        losses, weights = ([float(getattr(r, of)) for r in results] for of in ("loss", "weight"))
        assert numbers["square_loss"] == pytest.approx(np.average(losses, weights=weights))
        for variable, *values in zip(statistics, *ends):
            np.testing.assert_allclose(variable, np.mean(values, axis=0), rtol=1e-5)


def test_without_averages_and_momentum():
    config = dataclasses.replace(CONFIG, moving_average_decay=0.0, momentum=0.0)
    step = make_step(config)
    run(step, 2)
    assert step.state.buffers() == {}
    assert_same({n: v.numpy() for n, v in step.state.averages().items()}, weights_of(step))


def test_the_step_is_traced_once():
    step = make_step()
    run(step, 3)
    assert step._whole.experimental_get_tracing_count() == 1
    assert step.compiled_update.experimental_get_tracing_count() == 1
