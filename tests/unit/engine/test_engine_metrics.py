"""Meters on the host."""

import numpy as np
import pytest

from engine.log.meters import RunningMeans, Speed, Throughput, format_duration, renamed


def test_throughput_leaves_out_the_first_step():
    meter = Throughput(images_per_step=8, warmup_steps=1)
    meter.add(100.0, 50.0)  # compilation
    assert (meter.count, meter.measured_steps) == (1, 0)
    assert meter.recent() == meter.average() == (0.0, 0.0, 0.0)
    meter.add(1.0, 0.25)
    meter.add(3.0, 0.75)
    assert (meter.count, meter.measured_steps) == (3, 2)
    assert meter.average() == Speed(step_seconds=2.0, images_per_second=4.0, wait_share=0.25)


def test_a_compiled_step_is_not_measured():
    meter = Throughput(images_per_step=8, warmup_steps=1)
    for seconds, is_measured in ((9.0, True), (1.0, True), (70.0, False), (3.0, True)):
        meter.add(seconds, 0.0, is_measured=is_measured)
    assert (meter.count, meter.measured_steps, meter.average().step_seconds) == (4, 2, 2.0)


def test_recent_figures_forget_and_averages_do_not():
    meter = Throughput(images_per_step=1, warmup_steps=0, window=2)
    for seconds in (10.0, 1.0, 1.0):
        meter.add(seconds, 0.5)
    assert meter.recent() == Speed(step_seconds=1.0, images_per_second=1.0, wait_share=0.5)
    assert meter.average().step_seconds == 4.0


def test_the_summary_of_recent_steps():
    meter = Throughput(images_per_step=4, warmup_steps=0)
    assert set(meter.recent_summary().values()) == {0.0}
    seconds = np.linspace(1.0, 3.0, 21)
    for value in seconds.tolist():
        meter.add(value, 0.0)
    assert meter.recent_summary() == pytest.approx(
        {
            "images_per_second": 2.0,
            "step_seconds": 2.0,
            **{f"step_seconds_p{q}": np.percentile(seconds, q) for q in (50, 90, 95, 99)},
            "seconds": 42.0,
        }
    )


def test_running_means_are_those_of_the_finite_numbers():
    means = RunningMeans()
    for numbers in ([1.0, np.inf, np.nan], [2.0, 5.0, np.inf], [6.0, np.nan, -np.inf]):
        means.add(np.array(numbers, np.float32))
    assert means.count == 3
    assert means().tolist() == [3.0, 5.0, -np.inf]  # the last one where none is finite
    means.clear()
    means.add(np.array([0.1], np.float32))
    assert means.count == 1 and means().tolist() == [np.float32(0.1)]


def test_renaming_keeps_what_both_know():
    names = {"a": ("x", "y"), "b": ("z",)}
    assert renamed({"a": 1, "c": 2}, names) == {"x": 1, "y": 1}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (185, "3m05s"), (3720, "1h02m"), (-5, "0s")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
