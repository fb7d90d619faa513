"""The scripts of docs/runs.md: one of each kind really runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, run_from_scratch
from tiny_runs import SMALLEST, SMALLEST_MASK

TINY_MASK_MODEL = (f"{SMALLEST_MASK},canvases=[[96,128]]", "--nouse_xla")
TINY_MASK = (*TINY_MASK_MODEL, "--noamp", "--batch_size=2", "--backbone_init=", "--seed=5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_set) -> Path:
    """A folder with the documented layout of data, and room for results."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "results").mkdir()
    (folder / "coco" / "annotations").mkdir(parents=True)
    for path in tiny_set.records.iterdir():
        (folder / "coco" / path.name).symlink_to(path)
    shutil.copy(tiny_set.annotations, folder / "coco/annotations/instances_val2017.json")
    return folder


def start(folder, script, *flags, **variables):
    """Runs a script as a user does; returns how it ended."""
    environment = {
        "DATA_DIR": str(folder / "coco"),
        "RESULTS_DIR": str(folder / "results"),
        "datadir": str(folder / "coco"),
        "checkpointdir": str(folder),
        **variables,
    }
    interpreter = sys.executable if script.endswith(".py") else "bash"
    command = [interpreter, ROOT / script, *flags]
    return run_from_scratch(command, environment=environment, timeout=900)


# ---------------------------------------------------------------------------- one of each kind


@pytest.fixture(scope="module")
def trained(folder):
    """The run of the convergence script on two CPU ranks."""
    flags = (
        *SMALLEST,
        "--num_epochs=1",
        "--checkpoint_period=1",
        "--eval_batch_size=4",
        "--seed=3",
    )
    script = "scripts/D0/convergence-AMP-8xA100-80G.sh"
    return start(folder, script, *flags, NGPU="2", PREFLIGHT="1").require_success()


@pytest.mark.slow
@pytest.mark.multi
def test_convergence_runs_on_cpu_ranks(folder, trained):
    run = folder / "results" / "convergence-AMP-8xA100-80G"
    assert "preflight: passed" in trained.output and "GB/s" in trained.output
    assert "2 rank(s), cpu" in trained.output
    # 2.2 for the documented 1600 images; here the global batch is 4.
    assert "learning rate 0.0055 (2.2 per 1600 images)" in trained.output
    assert (run / "ckpt-final.index").exists() and (run / "emackpt-final").is_dir()
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["epoch"] == 1
    ends = [p.read_text().split() for p in sorted(run.glob("logs/*/rank-*.end"))]
    assert [(end[0], end[2]) for end in ends] == [("0", "0"), ("1", "0")] * 2


@pytest.mark.slow
@pytest.mark.multi
def test_evaluate_gives_the_score_of_the_training(folder, trained):
    script = "scripts/D0/evaluate-AMP-8xA100-80G.sh"
    run = folder / "results" / "convergence-AMP-8xA100-80G"
    flags = ("--noamp", "--nouse_xla", "--batch_size=4")
    start(folder, script, *flags, CKPT=str(run), NGPU="2").require_success()
    ours = folder / "results" / "evaluate-AMP-8xA100-80G" / "metrics.json"
    theirs = run / "evaluation" / "metrics.json"
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


@pytest.mark.slow
def test_training_benchmark_gives_the_throughput(folder):
    script = "scripts/D0/training-benchmark-AMP-A100-80G.sh"
    result = start(folder, script, *SMALLEST, "--benchmark_steps=4", NGPU="1").require_success()
    assert "done: 4 steps" in result.output
    log = folder / "results" / "training-benchmark-AMP-A100-80G" / "time_log.txt"
    assert "avg_fps_training" in log.read_text().splitlines()[-1]


@pytest.mark.slow
def test_inference_draws(folder, trained):
    run = folder / "results" / "convergence-AMP-8xA100-80G"
    start(folder, "scripts/D0/inference.sh", MODEL_DIR=str(run)).require_success()
    results = folder / "results" / "inference"
    assert (results / "img1-detections.png").exists()
    assert (results / "detections.json").exists()


@pytest.mark.slow
def test_inference_benchmark_gives_percentiles(folder):
    flags = (*SMALLEST[:2], "--nouse_xla", "--bm_runs=2", "--warmup_runs=1")
    script = "scripts/D0/inference-benchmark.sh"
    start(folder, script, *flags, BS="2", AMP="False").require_success()
    results = folder / "results" / "inference-benchmark"
    assert "latency_ms_p99" in (results / "inference.csv").read_text()
    assert "inference_fps" in (results / "infer-benchmark.log").read_text()


# ---------------------------------------------------------------------- the same of Mask R-CNN


@pytest.fixture(scope="module")
def trained_with_masks(folder):
    """The run of a TF2 recipe's convergence script on two CPU ranks."""
    flags = (*TINY_MASK, "--eval_batch_size=4", "--num_epochs=1", "--noreport")
    script = "scripts/maskrcnn/convergence-AMP-8xA100-80G-tf2.sh"
    return start(folder, script, *flags, NGPU="2").require_success()


@pytest.fixture(scope="module")
def mask_run(folder, trained_with_masks) -> Path:
    """Its folder."""
    return folder / "results" / "maskrcnn-convergence-AMP-8xA100-80G-tf2"


@pytest.mark.slow
@pytest.mark.multi
def test_convergence_of_a_tf2_recipe_runs_on_cpu_ranks(mask_run, trained_with_masks):
    # 0.04 for the documented 32 images; here the global batch is 4.
    assert "learning rate 0.005 (0.04 per 32 images)" in trained_with_masks.output
    assert (mask_run / "ckpt-final.index").exists()
    metrics = json.loads((mask_run / "evaluation" / "metrics.json").read_text())
    assert metrics["epoch"] == 1 and {"AP", "mask_AP"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.multi
def test_evaluate_gives_the_mask_score_of_the_training(folder, mask_run):
    script = "scripts/maskrcnn/evaluate-AMP-8xA100-80G-tf2.sh"
    flags = ("--noamp", "--nouse_xla", "--batch_size=4")
    start(folder, script, *flags, CKPT=str(mask_run), NGPU="2").require_success()
    ours = folder / "results" / "maskrcnn-evaluate-AMP-8xA100-80G-tf2" / "metrics.json"
    theirs = mask_run / "evaluation" / "metrics.json"
    assert json.loads(ours.read_text()) == pytest.approx(json.loads(theirs.read_text()), abs=1e-6)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.multi
def test_convergence_of_a_pytorch_recipe_runs_on_cpu_ranks(folder):
    script = "scripts/maskrcnn/convergence-FP32-8xV100-16G-pytorch.sh"
    flags = (*TINY_MASK, "--num_epochs=1", "--num_examples_per_epoch=0")
    result = start(folder, script, *flags, "--eval_start=1", "--eval_period=1", NGPU="2")
    result.require_success()
    assert "learning rate 0.005 (0.04 per 32 images)" in result.output
    run = folder / "results" / "maskrcnn-convergence-FP32-8xV100-16G-pytorch"
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert {"AP", "mask_AP"} <= set(metrics)


@pytest.mark.nightly
@pytest.mark.slow
def test_training_benchmark_with_masks_gives_the_throughput(folder):
    script = "scripts/maskrcnn/training-benchmark-AMP-A100-80G-tf2.sh"
    flags = (*TINY_MASK, "--benchmark_steps=4", "--log_warmup_steps=2")
    result = start(folder, script, *flags, NGPU="1").require_success()
    assert "done: 4 steps" in result.output
    log = folder / "results" / "maskrcnn-training-benchmark-AMP-A100-80G-tf2" / "time_log.txt"
    assert "avg_fps_training" in log.read_text().splitlines()[-1]


@pytest.mark.nightly
@pytest.mark.slow
def test_inference_with_masks_draws(folder, mask_run):
    start(folder, "scripts/maskrcnn/inference.sh", MODEL_DIR=str(mask_run)).require_success()
    results = folder / "results" / "maskrcnn-inference"
    assert (results / "img1-detections.png").exists()
    assert (results / "detections.json").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_inference_of_the_set_writes_masks_without_scores(folder, mask_run):
    script = "scripts/maskrcnn/inference-val2017.sh"
    flags = ("--noamp", "--nouse_xla", "--batch_size=4")
    start(folder, script, *flags, CKPT=str(mask_run)).require_success()
    results = folder / "results" / "maskrcnn-inference-val2017"
    found = json.loads((results / "segm.json").read_text())
    assert found and all("segmentation" in entry for entry in found)
    written = results / "metrics.json"
    assert not written.exists() or "AP" not in json.loads(written.read_text())


@pytest.mark.nightly
@pytest.mark.slow
def test_inference_benchmark_with_masks_gives_percentiles(folder):
    flags = (*TINY_MASK_MODEL, "--bm_runs=2", "--warmup_runs=1")
    script = "scripts/maskrcnn/inference-benchmark-tf2.sh"
    start(folder, script, *flags, BS="2", AMP="False").require_success()
    results = folder / "results" / "maskrcnn-inference-benchmark-tf2"
    assert "latency_ms_p99" in (results / "inference.csv").read_text()
    assert "latency_90" in (results / "infer-benchmark.log").read_text()


@pytest.mark.slow
def test_train_py_takes_the_arguments_of_the_tf2_program(folder):
    run = folder / "results" / "as-the-reference"
    flags = (
        *("--gpus", "1", "--batch_size", "2", "--no_xla", "--no_eval"),
        *("--data_dir", folder / "coco", "--model_dir", run),
        *("--epochs", "1", "--log_every", "2", "--seed", "5"),
        *(TINY_MASK_MODEL[0], "--backbone_init="),
    )
    result = start(folder, "scripts/maskrcnn/train.py", *flags).require_success()
    assert "learning rate 0.0025 (0.04 per 32 images)" in result.output
    assert (run / "ckpt-final.index").exists() and not (run / "evaluation").exists()


# ---------------------------------------------------------------------------- docker


def dry(script, *arguments, **variables):
    """Runs a script of docker/ dry; returns the finished process."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    command = ["bash", ROOT / "docker" / script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_interactive_mounts_the_documented_folders(tmp_path):
    (tmp_path / "data").mkdir()
    variables = {"DATA": str(tmp_path / "data"), "RESULTS": str(tmp_path / "results")}
    command = dry("interactive.sh", **variables).stdout
    assert f"-v {tmp_path}/data:/workspace/coco " in command
    assert f"-v {tmp_path}/results:/workspace/results " in command
    assert "-p 6007:6007" in command and "--shm-size=30g" in command
    assert "effdet_tf2:latest" in command and "/workspace/checkpoints" not in command
    variables |= {"BACKBONE_CKPT": str(tmp_path / "data"), "CKPT": str(tmp_path / "data")}
    command = dry("interactive.sh", **variables, PORT="8888", name="a", DOCKER="mine").stdout
    assert f"{tmp_path}/data:/workspace/checkpoints/efficientnet-b0-joc:ro" in command
    assert f"{tmp_path}/data:/workspace/checkpoints/efficientdet-tf2" in command
    assert "-p 8888:8888" in command and "--name a" in command and command.endswith("mine\n")


def test_interactive_says_what_is_missing():
    assert "DATA is not set" in dry("interactive.sh").stderr
    assert "DATA=/nowhere does not exist" in dry("interactive.sh", DATA="/nowhere").stderr


def test_build_names_image_and_file():
    command = dry("build.sh").stdout
    assert f"docker build --rm -t effdet_tf2:latest -f {ROOT}/docker/Dockerfile" in command
    assert "enroot import -o x.sqsh dockerd://" in dry("build.sh", ENROOT_FILE="x.sqsh").stdout


def test_the_images_are_built_on_what_the_stack_says():
    gpu = (ROOT / "docker" / "Dockerfile").read_text()
    assert "FROM nvcr.io/nvidia/tensorflow:24.03-tf2-py3\n" in gpu
    cuda = (ROOT / "docker" / "Dockerfile.cuda").read_text()
    assert "FROM nvidia/cuda:12.5" in cuda and "--stack new --device gpu" in cuda
    assert "docker/Dockerfile.cuda " in dry("build.sh", "cuda").stdout
    assert "FROM python:3.11" in (ROOT / "docker" / "Dockerfile.cpu").read_text()
    installed = re.findall(r"pip install.*", gpu)
    assert len(installed) == 1 and "--constraint" in installed[0]
