"""The scripts of Mask R-CNN: which there are, and the commands that they become, by dry runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launcher_machine import Machine, flags_of, in_job
from own_files import own_files

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS_FOLDER = ROOT / "scripts" / "maskrcnn"
CONFIGS = ROOT / "maskrcnn" / "configs"
SCRIPTS = [path.name for path in own_files("scripts/maskrcnn/*.sh")]
SUBMISSIONS = [path.name for path in own_files("slurm/maskrcnn-*.sub")]
NVIDIA_WEIGHTS = "/workspace/checkpoints/rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp"
DETECTRON_WEIGHTS = "/workspace/checkpoints/R-50.pkl"

# Of the references: precision, hardware, whose -> recipe and images per GPU.
DOCUMENTED = {
    "AMP-A100-80G-tf2": ("tf2_coco_8xa100_amp", 4),
    "TF32-A100-80G-tf2": ("tf2_coco_8xa100_tf32", 4),
    "AMP-V100-16G-tf2": ("tf2_coco_8xv100_amp", 4),
    "FP32-V100-16G-tf2": ("tf2_coco_8xv100_fp32", 2),
    "AMP-A100-80G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x", 12),
    "TF32-A100-80G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x", 12),
    "AMP-V100-32G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x", 12),
    "FP32-V100-32G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x", 12),
    "AMP-V100-16G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x_2019", 4),
    "FP32-V100-16G-pytorch": ("e2e_mask_rcnn_R_50_FPN_1x_2019", 4),
}
OURS = {"AMP-H100-80G": ("coco_8xh100_amp", 12), "AMP-H200-141G": ("coco_8xh200_amp", 16)}
ALL = {**DOCUMENTED, **OURS}


def script_of(kind, run):
    """Returns the name of a script: runs of a fixed number of GPUs name it."""
    precision, rest = run.split("-", 1)
    return f"{kind}-{precision}-{'' if kind == 'training-benchmark' else '8x'}{rest}.sh"


@pytest.fixture
def machine(tmp_path):
    """One host with Open MPI and 8 GPUs."""
    machine = Machine(tmp_path)
    machine.folder = "scripts/maskrcnn"
    machine.add("mpirun")
    machine.add("nvidia-smi", 'for i in 0 1 2 3 4 5 6 7; do echo "GPU $i: x"; done')
    return machine


# -------------------------------------------------------------------------- which scripts there are


def test_the_documented_scripts_are_there():
    kinds = ("convergence", "evaluate", "training-benchmark")
    expected = {script_of(kind, run) for kind in kinds for run in ALL}
    expected |= {f"inference-benchmark-{whose}.sh" for whose in ("tf2", "pytorch")}
    expected |= {"inference.sh", "inference-val2017.sh"}
    expected |= {
        f"stability-{run}-pytorch.sh"
        for run in ("AMP-8xV100-16G", "FP32-8xV100-16G", "AMP-8xA100-80G")
    }
    assert set(SCRIPTS) == expected
    assert set(SUBMISSIONS) == {
        f"maskrcnn-{kind}-{precision}-32xV100-32G.sub"
        for kind in kinds
        for precision in ("AMP", "FP32")
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_a_header_and_a_handful_of_lines(name):
    lines = (SCRIPTS_FOLDER / name).read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert len(code) <= 5, code
    assert '"$@"' in code[-1]
    head = "\n".join(line for line in lines if line.startswith("#"))
    whose = {"tf2": "The TF2 reference reports", "pytorch": "The PyTorch reference reports"}
    reference = whose.get(name.removesuffix(".sh").split("-")[-1])
    if reference:
        assert reference in head
    elif name.startswith(("convergence", "evaluate", "training")):
        assert "Ours, not from the references" in head and "reports" not in head
    assert not re.search(r"--(lr|momentum|num_epochs|warmup)", "\n".join(code))
    assert os.access(SCRIPTS_FOLDER / name, os.X_OK)


# ---------------------------------------------------------------------------- the commands


def check_conventions(given, run):
    """Checks what follows from whose recipe a run has."""
    recipe, batch = ALL[run]
    if run.endswith("-pytorch"):
        assert given["config_file"] == f"{CONFIGS}/{recipe}.yaml" and "recipe" not in given
        assert "model_name" not in given, "the file says it"
        assert int(given["batch_size"]) == batch
        assert given["preset"] == "nvidia_pytorch"
    else:
        assert given["recipe"] == f"{CONFIGS}/{recipe}.yaml" and "config_file" not in given
        assert given["model_name"] == "maskrcnn-r50-fpn"
        assert "batch_size" not in given
        settings = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
        assert settings["train"]["batch_size"] == batch
        assert settings["runtime"]["amp"] == run.startswith("AMP")
        assert given["preset"] == ("nvidia_tf2" if run.endswith("-tf2") else "")


@pytest.mark.parametrize("run", ALL)
def test_convergence(machine, run):
    name = script_of("convergence", run)
    command = machine.dry(name, "--lr=9")
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "8"] and f"{ROOT}/train.py" in command
    assert command[-1] == "--lr=9"
    check_conventions(given, run)
    assert given["model_dir"] == f"{machine.results}/maskrcnn-{name.removesuffix('.sh')}"
    assert given["training_file_pattern"] == "/workspace/coco/train-*"
    assert given["val_file_pattern"] == "/workspace/coco/val-*"
    assert given["val_json_file"] == "/workspace/coco/annotations/instances_val2017.json"
    if run.endswith("-pytorch"):
        assert given["backbone_init"] == DETECTRON_WEIGHTS
        assert ("--amp" in command) == run.startswith("AMP") != ("--noamp" in command)
    else:
        assert given["backbone_init"] == NVIDIA_WEIGHTS
        assert not {"--amp", "--noamp"} & set(command), "the recipe says it"


@pytest.mark.parametrize("run", ALL)
def test_evaluate_uses_the_references_batch(machine, run):
    command = machine.dry(script_of("evaluate", run), CKPT="/runs/ckpt-final")
    given = flags_of(command)
    assert f"{ROOT}/eval.py" in command and given["ckpt_path"] == "/runs/ckpt-final"
    assert given["model_name"] == "maskrcnn-r50-fpn"
    assert given["batch_size"] == ("1" if run.endswith("-pytorch") else "8")
    assert ("--amp" in command) == run.startswith("AMP") != ("--noamp" in command)


@pytest.mark.parametrize("run", ALL)
def test_training_benchmark(machine, run):
    name = script_of("training-benchmark", run)
    command = machine.dry(name, NGPU="1", BS="3")
    given = flags_of(command)
    assert command[0].endswith("rank.sh") and "--benchmark" in command
    assert given["batch_size"] == "3" and given["num_epochs"] == "1"
    steps = {"16G-pytorch": "3665"}.get(run[-11:], "500" if run.endswith("-pytorch") else "200")
    assert given["benchmark_steps"] == steps
    assert f"Times {steps} training steps" in (SCRIPTS_FOLDER / name).read_text()
    assert given.get("log_warmup_steps") == (None if run.endswith("-pytorch") else "100")
    # There are no weights here, and speed does not need them, whatever a PyTorch file names.
    assert given.get("backbone_init") == ("" if run.endswith("-pytorch") else None)


def test_a_benchmark_takes_a_backbone_that_is_there(machine, tmp_path):
    (tmp_path / "weights.index").touch()
    name = script_of("training-benchmark", "AMP-A100-80G-tf2")
    given = flags_of(machine.dry(name, BACKBONE_CKPT=str(tmp_path / "weights")))
    assert given["backbone_init"] == f"{tmp_path}/weights"


@pytest.mark.parametrize(("whose", "batch"), [("tf2", "6"), ("pytorch", "1")])
def test_inference_benchmark(machine, whose, batch):
    name = f"inference-benchmark-{whose}.sh"
    command = machine.dry(name, "--bm_runs=3")
    given = flags_of(command)
    assert "benchmarks.inference" in command and "--amp" in command
    assert (given["model_name"], given["preset"]) == ("maskrcnn-r50-fpn", f"nvidia_{whose}")
    assert (given["batch_size"], given["warmup_runs"], given["bm_runs"]) == (batch, "100", "3")
    command = machine.dry(name, BS="24", AMP="False", CKPT="/run", IMAGE_PATH="/val/*.jpg")
    given = flags_of(command)
    assert given["batch_size"] == "24" and "--noamp" in command
    assert (given["model_dir"], given["image_path"]) == ("/run", "/val/*.jpg")


def test_inference(machine):
    given = flags_of(machine.dry("inference.sh", MODEL_DIR="/run", IMAGE_PATH="/photos"))
    assert (given["model_dir"], given["image_path"]) == ("/run", "/photos")
    assert (given["model_name"], given["preset"]) == ("maskrcnn-r50-fpn", "")
    command = machine.dry("inference-val2017.sh", CKPT="/run")
    assert f"{ROOT}/eval.py" in command and "--skip_eval" in command
    assert command[0].endswith("rank.sh"), "one GPU"


def test_variables(machine):
    variables = {"MODEL_DIR": "/m", "DATA_DIR": "/d", "checkpointdir": "/c", "AMP": "False"}
    command = machine.dry(script_of("convergence", "AMP-A100-80G-pytorch"), NGPU="4", **variables)
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "4"] and "--noamp" in command
    assert given["batch_size"] == "12", "each GPU keeps its images"
    assert given["model_dir"] == "/m" and given["training_file_pattern"] == "/d/train-*"
    assert given["backbone_init"] == "/c/R-50.pkl"
    command = machine.dry(script_of("convergence", "AMP-A100-80G-tf2"), PRESET="", BS="2")
    assert flags_of(command)["preset"] == "" and flags_of(command)["batch_size"] == "2"


def test_what_is_missing_or_wrong_is_said(machine, tmp_path):
    result = machine.run(script_of("evaluate", "AMP-A100-80G-tf2"), DRY_RUN="1")
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


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_submissions(machine, name):
    machine.add_slurm()
    command = machine.dry(f"slurm/{name}", **in_job(nodes=4), CKPT="/run")
    assert command[0] == "srun" and {"--ntasks=32", "--nodes=4"} <= set(command)
    text = (ROOT / "slurm" / name).read_text()
    twin = (ROOT / "slurm" / name.removeprefix("maskrcnn-")).read_text()
    headers = [re.findall(r"^#SBATCH.*", t, re.MULTILINE) for t in (text, twin)]
    assert headers[0] == headers[1] and f"sbatch -N 4 slurm/{name}" in text
    result = machine.run(f"slurm/{name}", RINGDET_ROOT=str(ROOT), CKPT="/run")
    assert result.returncode == 2 and f"sbatch -N 4 slurm/{name}" in result.stderr


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
SCORES = """#!/bin/bash
for word; do case $word in --model_dir=*) run=${word#*=} ;; --seed=*) seed=${word#*=} ;; esac; done
[ "$seed" != "$STOP_AT" ] || exit 75
mkdir -p "$run/evaluation"
printf '{\\n "epoch": 2,\\n "AP": 0.37%s,\\n "AP50": 0.6,\\n "mask_AP": 0.34%s\\n}' $seed $seed \
  >"$run/evaluation/metrics.json"
: >"$run/ckpt-final.index"
"""
STABILITY = "stability-AMP-8xV100-16G-pytorch.sh"


def test_stability_composes_a_run_for_each_seed(machine):
    result = machine.run(STABILITY, "--num_epochs=2", DRY_RUN="1")
    commands = [line for line in result.stdout.splitlines() if line.startswith("mpirun")]
    assert result.returncode == 0 and len(commands) == 5
    folder = machine.results / "maskrcnn-convergence-AMP-8xV100-16G-pytorch"
    for seed, command in enumerate(commands, start=1):
        given = flags_of(shlex.split(command))
        assert given["seed"] == str(seed) and given["num_epochs"] == "2"
        assert given["model_dir"] == f"{folder}-seed-{seed}"
    result = machine.run(STABILITY, "--seed=3")
    assert result.returncode == 2 and "set SEEDS" in result.stderr


def test_stability_reports_and_goes_on_where_it_stopped(machine, tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(SCORES)
    stand_in.chmod(0o755)
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
