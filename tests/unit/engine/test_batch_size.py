"""--batch_size=auto: the search, with made-up memory; what machines tell of theirs."""

import pytest
from absl import flags

from engine.config.fields import ConfigError
from engine.config.settings import TrainConfig
from engine.start import batch_size, cli

GIB = 2.0**30


class Device:
    """Takes `base` + `each` bytes for every image; says nothing of what does not fit."""

    def __init__(self, base, each, limit, *, surprise=1.0):
        self.base, self.each, self.limit, self.surprise = base, each, limit, surprise
        self.tried, self.said = [], []

    def measure(self, batch):
        self.tried.append(batch)
        used = self.base + self.each * batch * (self.surprise if batch > 8 else 1.0)
        return used if used <= self.limit else None

    def largest(self):
        return batch_size.largest_batch(self.measure, self.limit, say=self.said.append)


def test_the_batch_fills_most_of_the_memory_in_three_trials():
    device = Device(2 * GIB, 0.25 * GIB, 40 * GIB)
    assert device.largest() == 128  # 0.85 of 40 GiB hold 128 images
    assert device.tried == [4, 8, 128]
    assert "128 images take 34.00 GiB of 40.00 GiB" in device.said[-1]


def test_a_batch_that_takes_more_than_foretold_is_made_smaller():
    device = Device(2 * GIB, 0.25 * GIB, 40 * GIB, surprise=1.3)
    found = device.largest()
    assert 80 <= found < 128
    assert device.base + 1.3 * device.each * found <= 0.85 * device.limit


def test_small_trials_may_foretell_nothing():
    """As on a CPU, where a process takes as much for 4 tiny images as for 8."""
    device = Device(2 * GIB, 0.0, 10 * GIB)
    flat = device.measure
    device.measure = lambda batch: flat(batch) if batch <= 8 else 0.1 * GIB * batch
    assert 64 <= device.largest() <= 84


def test_where_nothing_larger_fits_the_second_trial_is_the_answer():
    device = Device(2 * GIB, 0.25 * GIB, 40 * GIB, surprise=100.0)
    assert device.largest() == 8
    # 0.85 * 128, then the geometric mean with 8, in fours.
    assert device.tried == [4, 8, 128, 108, 28, 12]


@pytest.mark.parametrize(("each", "expected"), [(1.5, 4), (3.0, 2), (5.5, 1)])
def test_small_memory_holds_few_images(each, expected):
    assert Device(1 * GIB, each * GIB, 10 * GIB).largest() == expected


def test_where_not_one_image_fits_it_says_so():
    with pytest.raises(ConfigError, match=r"not even one image fits into 10.00 GiB"):
        Device(1 * GIB, 9 * GIB, 10 * GIB).largest()


def test_batches_have_a_bound():
    assert Device(0, 1, 80 * GIB).largest() == 512


@pytest.mark.parametrize(
    ("limit", "usage", "idle"),
    [
        ("memory.max", "memory.current", "inactive_file"),  # control groups of version 2
        *(
            (f"{place}limit_in_bytes", f"{place}usage_in_bytes", "total_inactive_file")
            for place in ("memory/memory.", "memory.")  # and of version 1
        ),
    ],
)
def test_free_memory_is_that_of_the_machine_within_its_container(tmp_path, limit, usage, idle):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   2048 kB\n")
    control = tmp_path / "cgroup"
    assert batch_size.free_memory(tmp_path, control) == 2048 * 1024
    (control / limit).parent.mkdir(parents=True)
    for unlimited in ("max\n", "9223372036854771712\n"):
        (control / limit).write_text(unlimited)
        (control / usage).write_text("1024\n")
        assert batch_size.free_memory(tmp_path, control) == 2048 * 1024
    (control / limit).write_text(f"{1 << 20}\n")
    assert batch_size.free_memory(tmp_path, control) == (1 << 20) - 1024
    statistics = (control / limit).parent / "memory.stat"
    statistics.write_text(f"inactive_anon 7\n{idle} 1000\nactive_file 9\n")
    assert batch_size.free_memory(tmp_path, control) == (1 << 20) - 24


def test_the_memory_is_that_of_the_smallest_gpu_or_what_is_free(monkeypatch):
    said = ["81559 MiB", "40960 MiB"]
    monkeypatch.setattr(batch_size.machine, "gpu_facts", lambda fact: said)
    monkeypatch.setattr(batch_size, "free_memory", lambda: 7 * GIB)
    assert batch_size.device_memory() == (True, 40 * GIB)
    for unknown in ([], ["[N/A]"], ["81559 MiB", ""]):
        said = unknown
        assert batch_size.device_memory() == (False, 7 * GIB)
    monkeypatch.setattr(batch_size, "free_memory", lambda: next(iter(())))
    with pytest.raises(ConfigError, match="does not tell its free memory .*give a number"):
        batch_size.device_memory()


def test_a_trial_that_the_system_ends_did_not_fit_the_machine(tmp_path, monkeypatch, capfd):
    program = tmp_path / "train.py"
    program.write_text(
        "import os, sys\n"
        "os.write(1, b'\\xff is no text\\n')\n"
        "if '--batch_size=4' not in sys.argv:\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(batch_size, "device_memory", lambda: (False, 10 * GIB))
    assert batch_size.find([str(program)], records="", num_ranks=1) == 4
    assert "8 images take more than there is of 10.00 GiB" in capfd.readouterr().out
    program.write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(batch_size, "device_memory", lambda: (True, 10 * GIB))
    with pytest.raises(ConfigError, match="trial with 4 images failed"):
        batch_size.find([str(program)], records="", num_ranks=1)


def test_several_ranks_are_told_what_to_do():
    with pytest.raises(ConfigError, match="4 ranks were started.*--benchmark"):
        batch_size.find(["train.py"], records="", num_ranks=4)


def test_the_flag_takes_a_number_or_auto():
    values = flags.FlagValues()
    cli.define_fields(TrainConfig, flag_values=values)
    values(["train.py", "--batch_size=auto"])
    assert values.batch_size == 0
    values(["train.py", "--batch_size=12"])
    assert values.batch_size == 12
    for wrong in ("most", "0", "-4"):
        with pytest.raises(flags.IllegalFlagValueError):
            values(["train.py", f"--batch_size={wrong}"])


def test_trials_are_processes_that_say_how_much_they_took(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(batch_size, "device_memory", lambda: (True, 10 * GIB))
    program = tmp_path / "train.py"
    program.write_text(
        "import re, sys\n"
        "batch = int(re.findall(r'--batch_size=(\\d+)', ' '.join(sys.argv))[-1])\n"
        "assert '--benchmark' in sys.argv and '--data_records=here' in sys.argv\n"
        "print(f'1 s/step peak memory {1 + batch / 8:.2f} GiB')\n"
        "sys.exit('the GPU is out of memory' if batch > 48 else 0)\n"
    )
    arguments = [str(program), "--batch_size=auto"]
    assert batch_size.find(arguments, records="here", num_ranks=1) == 48
    assert "60 images take more than there is" in capfd.readouterr().out
    program.write_text("print('1 s/step, without a peak')\n")
    with pytest.raises(ConfigError, match="lists a GPU, but the trial did not use it"):
        batch_size.find(arguments, records="", num_ranks=1)
    program.write_text("import sys\nsys.exit('no such set')\n")
    with pytest.raises(ConfigError, match="trial with 4 images failed:\nno such set"):
        batch_size.find(arguments, records="", num_ranks=1)
