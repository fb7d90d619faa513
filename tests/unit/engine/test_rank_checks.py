"""The preflight of all ranks: what one rank finds, and how findings are joined."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from engine.ranks import distributed, machine, preflight

REPORT = {"python": "3.11", "packages": {}, "commit": "abc"}


@pytest.fixture
def data(tmp_path):
    """A folder with two record files and annotations."""
    for name in ("train-0", "train-1", "val.json"):
        (tmp_path / name).write_text("x" * 10)
    return tmp_path


def run(data, *flags):
    arguments = [f"--training_file_pattern={data}/train-*", f"--model_dir={data}/run"]
    return preflight.check(preflight.parse_arguments([*arguments, "--reduced_mb=0.1", *flags]))


def test_a_good_start_passes_and_says_the_bandwidth(data, capsys):
    assert run(data, f"--val_json_file={data}/val.json", "--hparams=a=1", "--noamp") == 0
    said = capsys.readouterr().out
    assert "allreduce of 0.1 MB" in said and "GB/s" in said
    assert said.endswith("preflight: passed\n")
    assert list((data / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--training_file_pattern=/nowhere/train-*", "no file matches /nowhere/train-*"),
        ("--val_json_file=/nowhere/val.json", "/nowhere/val.json does not exist (--val_json_file)"),
        ("--backbone_init=/nowhere/b0", "/nowhere/b0 does not exist (--backbone_init)"),
        ("--pretrained_ckpt=/nowhere/run", "/nowhere/run does not exist (--pretrained_ckpt)"),
        ("--min_free_gb=1e9", "less than 1e+09 GiB free"),
    ],
)
def test_problems_are_named_and_end_it(data, capsys, flag, words):
    with pytest.raises(distributed.AgreedError, match="1 problem"):
        run(data, flag)
    assert f"PROBLEM: {distributed.placement().host}: {words}" in capsys.readouterr().out.replace(
        f"{data}/run has ", ""
    )


def test_the_first_and_the_last_record_file_are_read(data):
    assert preflight.data_problems([f"{data}/train-*", ""]) == []
    for name in ("train-", "train-2"):
        (data / name).mkdir()
        (problem,) = preflight.data_problems([f"{data}/train-*"])
        assert problem.startswith(f"{data / name} cannot be read: ")
        (data / name).rmdir()


@pytest.mark.parametrize(
    ("size", "device", "build", "is_slow"),
    [
        (2, "gpu 0", ["MPI"], True),
        (2, "gpu 0", ["MPI", "NCCL"], False),
        (2, "cpu", ["MPI"], False),
        (1, "gpu 0", ["MPI"], False),
    ],
)
def test_ranks_on_gpus_want_nccl(data, capsys, monkeypatch, size, device, build, is_slow):
    place = dataclasses.replace(distributed.init(), size=size, device=device)
    monkeypatch.setattr(distributed, "init", lambda: place)
    monkeypatch.setattr(machine, "horovod_build", lambda: build)
    assert run(data) == 0
    assert ("built without NCCL" in capsys.readouterr().out) == is_slow


@pytest.mark.parametrize(("least", "is_enough"), [(2.9, True), (3.1, False)])
def test_free_space_is_counted_in_gib(data, capsys, monkeypatch, least, is_enough):
    usage = SimpleNamespace(free=3 * 1024**3)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    flags = "--model_dir=", f"--output_dir={data}/results", f"--min_free_gb={least}"
    with nullcontext() if is_enough else pytest.raises(distributed.AgreedError, match="1 problem"):
        assert run(data, *flags) == 0
    said = capsys.readouterr().out
    assert f"{data}/results has 3 GiB free" in said
    assert (f"{data}/results has less than {least} GiB free" in said) != is_enough


def test_the_fastest_reduction_after_the_first_counts(monkeypatch):
    taken, clock = [0.9, 0.004, 0.002, 0.003], [100.0]

    def reduce_sum(values):
        assert [value.shape for value in values] == [(500_000,)]  # 2 MB of float32
        clock.append(clock[-1] + taken.pop(0))
        return values

    monkeypatch.setattr(distributed, "reduce_sum", reduce_sum)
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[-1])
    assert preflight.reduction_seconds(2.0) == pytest.approx(0.002)


def test_drivers_of_gpus_are_compared(monkeypatch):
    gpus = ["NVIDIA A100, 535.1, 81920 MiB", "NVIDIA A100, 550.2, 81920 MiB"]
    monkeypatch.setattr(machine, "report", lambda: {**REPORT, "gpus": gpus})
    assert preflight.facts([])["GPU driver"] == "535.1, 550.2"


def test_the_last_of_two_equal_flags_counts():
    args = preflight.parse_arguments(["--model_dir=a", "--model_dir", "b", "--num_epochs=3"])
    assert args.model_dir == "b"


def test_a_folder_that_cannot_be_written(data):
    (data / "file").write_text("in the way")
    assert "cannot be written" in preflight.folder_problems(data / "file/run", min_free_gb=0)[0]


def test_a_folder_that_hosts_do_not_share(data, monkeypatch):
    monkeypatch.setattr(preflight, "_SECONDS_TO_SEE", 0.0)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    (data / "run").mkdir()
    problems = preflight.folder_problems(data / "run", min_free_gb=0)
    assert "is not the folder that rank 0 writes" in problems[0]


def test_weights_are_found_by_prefix_or_package(data):
    (data / "emackpt-300.index").write_text("")
    assert preflight.main_problems({"a": f"{data}/emackpt-300", "b": "pip:x", "c": ""}) == []


def test_ranks_that_differ_are_named():
    ours = {"numpy": "1.26.4", "code": "abc"}
    theirs = {"numpy": "1.26.3", "code": "abc", "hotcoco": "1.3"}
    problems = preflight.difference_problems([("n1", ours), ("n1", ours), ("n2", theirs)])
    assert problems == [
        "rank 2 on n2: numpy is 1.26.3, on rank 0 it is 1.26.4",
        "rank 2 on n2: hotcoco is 1.3, on rank 0 it is missing",
    ]


def test_the_size_of_the_data_is_compared(data):
    before = preflight.facts([f"{data}/train-*"])
    (data / "train-1").write_text("shorter")
    after = preflight.facts([f"{data}/train-*"])
    assert before[f"{data}/train-*"] == "2 files, 20 bytes"
    assert len(preflight.difference_problems([("n1", before), ("n2", after)])) == 1


def test_horovod_build_is_read_from_its_own_report(monkeypatch):
    class Run:
        stdout = "Available Controllers:\n    [X] MPI\n    [ ] CCL\nOperations:\n    [X] MPI\n"

    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **options: Run)
    assert machine.horovod_build() == ["MPI"]
