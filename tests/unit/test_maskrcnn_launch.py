"""What only Mask R-CNN's runs have: PyTorch recipes, seeds, the TF2 reference's own scripts."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launcher_machine import Machine, flags_of, in_job
from stub_machine import write_executable

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS_FOLDER = ROOT / "scripts" / "maskrcnn"
CONFIGS = ROOT / "maskrcnn" / "configs"
NVIDIA_WEIGHTS = "/workspace/checkpoints/rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp"


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, gpus=8)
    machine.folder = "scripts/maskrcnn"
    return machine


def test_what_is_missing_or_wrong_is_said(machine, tmp_path):
    result = machine.run("evaluate-AMP-8xA100-80G-tf2.sh", DRY_RUN="1")
    assert result.returncode == 2 and "CKPT is not set" in result.stderr
    assert "CKPT=" + str(machine.results / "maskrcnn-convergence-AMP-8xA100-80G-tf2") in (
        result.stderr
    )
    config = tmp_path / "e2e_mine.yaml"
    config.write_text("SOLVER:\n  IMS_PER_BATCH: 12\nTEST:\n  IMS_PER_BATCH: 8\n")
    call = ["maskrcnn", "convergence", "--recipe", str(config), "--gpus", "8"]
    result = machine.run("scripts/launch.sh", *call, DRY_RUN="1")
    assert result.returncode == 2
    assert "IMS_PER_BATCH: 12 of SOLVER is no multiple of the 8 GPUs" in result.stderr
    call[-1] = "4"
    command = machine.dry("scripts/launch.sh", *call)
    assert flags_of(command)["batch_size"] == "3"
    config.write_text("SOLVER:\n  BASE_LR: 0.02\nTEST:\n  IMS_PER_BATCH: 8\n")
    result = machine.run("scripts/launch.sh", *call, DRY_RUN="1")
    assert result.returncode == 2 and "has no SOLVER.IMS_PER_BATCH" in result.stderr


def test_a_container_gets_the_weights(machine):
    machine.add_slurm(options="--container-image")
    variables = {"CONTAINER_IMAGE": "x", "datadir": "/data"}
    name = "slurm/maskrcnn-convergence-AMP-32xV100-32G.sub"
    result = machine.run(name, DRY_RUN="1", **in_job(), **variables)
    assert result.returncode == 2
    assert "the folder that holds rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp" in result.stderr
    command = machine.dry(name, **in_job(), **variables, checkpointdir="/ckpt", BACKBONE_CKPT="/b")
    assert flags_of(command)["backbone_init"] == NVIDIA_WEIGHTS, "the place inside"


# ---------------------------------------------------------------------------- stability

# Stands for the interpreter: writes a run's last scores, which depend on the seed.
SCORES = """
for word; do case $word in --model_dir=*) run=${word#*=} ;; --seed=*) seed=${word#*=} ;; esac; done
[ "$seed" != "$STOP_AT" ] || exit 75
mkdir -p "$run/evaluation"
printf '{\\n "epoch": 2,\\n "AP": 0.37%s,\\n "AP50": 0.6,\\n "mask_AP": 0.34%s\\n}' $seed $seed \
  >"$run/evaluation/metrics.json"
: >"$run/ckpt-final.index"
"""
STABILITY = "stability-AMP-8xV100-16G-pytorch.sh"


def test_stability_reports_and_goes_on_where_it_stopped(machine, tmp_path):
    stand_in = write_executable(tmp_path / "python", SCORES)
    variables = {"PYTHON": str(stand_in), "NGPU": "1", "PREFLIGHT": "0", "SEEDS": "2 4 6"}
    result = machine.run(STABILITY, **variables, STOP_AT="6")
    assert result.returncode == 75 and "mean" not in result.stdout
    result = machine.run(STABILITY, **variables)
    assert result.returncode == 0, result.stderr
    report = result.stdout.splitlines()[-2:]
    # 0.372, 0.374, 0.376: the deviation is sqrt(8 / 3) thousandths.
    assert report[0] == "AP: 0.3720 0.3740 0.3760, mean 0.3740, deviation 0.0016"
    assert report[1] == "mask_AP: 0.3420 0.3440 0.3460, mean 0.3440, deviation 0.0016"
    assert result.stderr.count("logs of all ranks") == 1, "two runs were complete"


# ------------------------------------------------------------- the TF2 reference's own scripts


def start_python(machine, script, *flags, **variables):
    """Starts a script dry; returns the words of its command, and the finished process."""
    environment = machine.environment(DRY_RUN="1", **variables)
    del environment["RESULTS_DIR"]
    process = subprocess.run(
        [sys.executable, str(SCRIPTS_FOLDER / script), *flags],
        env=environment, cwd=machine.bin.parent, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = process.stdout.splitlines()
    return shlex.split(lines[-1]) if lines else [], process


def test_train_py(machine):
    command, process = start_python(machine, "train.py", "--epochs", "3", "--no_eval")
    assert process.returncode == 0, process.stderr
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "8"], "all GPUs"
    assert command[-3:] == ["--skip_test", "--epochs", "3"]
    assert given["recipe"] == f"{CONFIGS}/tf2_coco_8xa100_tf32.yaml" and "--noamp" in command
    assert given["batch_size"] == "4" and given["preset"] == "nvidia_tf2"
    assert given["model_dir"] == "/results"
    assert given["training_file_pattern"] == "/data/train-*"
    assert given["val_json_file"] == "/data/annotations/instances_val2017.json"
    assert given["backbone_init"] == ("/weights/rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp")


def test_train_py_with_everything(machine):
    flags = "--gpus 2 --batch_size 2 --amp --no_xla --data_dir /d --model_dir /m --weights_dir /w"
    more = ["--eval_file=/e.json", "--backbone_checkpoint", "/b"]
    command, process = start_python(machine, "train.py", *flags.split(), *more)
    assert process.returncode == 0, process.stderr
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "2"]
    assert {"--amp", "--nouse_xla"} <= set(command) and given["batch_size"] == "2"
    assert given["model_dir"] == "/m" and given["val_file_pattern"] == "/d/val-*"
    assert given["val_json_file"] == "/e.json" and given["backbone_init"] == "/b"
    assert "MODEL_DIR=/m" in process.stderr and "launch.sh maskrcnn convergence" in process.stderr


def test_without_gpus_the_job_or_the_visible_ones_count(machine):
    command, _ = start_python(machine, "train.py", CUDA_VISIBLE_DEVICES="0,1,2")
    assert command[:3] == ["mpirun", "-np", "3"]
    machine.add_slurm()
    command, _ = start_python(machine, "train.py", **in_job())
    assert "--ntasks=16" in command


def test_slurm_lock_leaves_one_task(machine):
    machine.add_slurm()
    for rank, starts in (("0", True), ("1", False)):
        step = {**in_job(), "SLURM_STEP_ID": "0", "SLURM_PROCID": rank}
        command, process = start_python(machine, "train.py", "--slurm_lock", **step)
        assert process.returncode == 0 and bool(command) == starts


@pytest.mark.parametrize("script", ["evaluate.py", "inference.py"])
def test_evaluate_py_and_inference_py(machine, script):
    command, process = start_python(machine, script, "--amp", "--eval_samples", "80")
    assert process.returncode == 0, process.stderr
    given = flags_of(command)
    assert command[0].endswith("rank.sh") and f"{ROOT}/eval.py" in command, "one GPU"
    assert given["ckpt_path"] == "/results" and given["batch_size"] == "8"
    assert given["output_dir"] == f"/results/{script.removesuffix('.py')}"
    assert ("--skip_eval" in command) == (script == "inference.py")
    assert "--amp" in command and command[-2:] == ["--eval_samples", "80"]


def test_benchmarks_need_a_batch_size(machine):
    for script in ("benchmark_training.py", "benchmark_inference.py"):
        _, process = start_python(machine, script)
        assert process.returncode == 2 and "--batch_size" in process.stderr


def test_benchmark_training_py(machine):
    command, _ = start_python(machine, "benchmark_training.py", "--batch_size", "2", "--gpus", "1")
    given = flags_of(command)
    assert command[0].endswith("rank.sh") and "--benchmark" in command
    assert (given["batch_size"], given["benchmark_steps"]) == ("2", "200")
    assert given["log_warmup_steps"] == "100"


def test_benchmark_inference_py(machine, tmp_path):
    command, _ = start_python(machine, "benchmark_inference.py", "--batch_size", "24", "--amp")
    given = flags_of(command)
    assert given["batch_size"] == "24" and given["warmup_runs"] == "100"
    assert "model_dir" not in given, "random weights"
    (tmp_path / "ckpt-00000009.index").touch()
    flags = ("--batch_size", "24", "--model_dir", str(tmp_path))
    command, _ = start_python(machine, "benchmark_inference.py", *flags)
    assert flags_of(command)["model_dir"] == str(tmp_path)
