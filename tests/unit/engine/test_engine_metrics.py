"""Meters on the host."""

import pytest

from engine.metrics import Stopwatch, Throughput, format_duration


def test_throughput_leaves_out_the_first_step():
    meter = Throughput(images_per_step=8)
    meter.add(100.0, 50.0)  # compilation
    assert (meter.count, meter.measured_steps) == (1, 0)
    assert meter.images_per_second() == meter.average_images_per_second() == 0.0
    assert meter.wait_share() == meter.average_wait_share() == 0.0
    meter.add(1.0, 0.25)
    meter.add(3.0, 0.75)
    assert (meter.count, meter.measured_steps) == (3, 2)
    assert meter.average_step_seconds() == 2.0
    assert meter.average_images_per_second() == 4.0
    assert meter.average_wait_share() == 0.25


def test_recent_figures_forget_and_averages_do_not():
    meter = Throughput(images_per_step=1, warmup_steps=0, window=2)
    for seconds in (10.0, 1.0, 1.0):
        meter.add(seconds, 0.5)
    assert meter.images_per_second() == 1.0
    assert meter.wait_share() == 0.5
    assert meter.average_step_seconds() == 4.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (185, "3m05s"), (3720, "1h02m"), (-5, "0s")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_stopwatch_runs():
    watch = Stopwatch()
    assert 0.0 <= watch.seconds() <= watch.seconds() < 60.0
