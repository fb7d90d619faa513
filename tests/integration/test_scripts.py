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

# Families whose run is tried, D0's every day.
ALTERNATELY = ("D0", pytest.param("maskrcnn", marks=pytest.mark.nightly))
BENCHMARK = {
    "D0": (*SMALLEST, "--benchmark_steps=4"),
    "maskrcnn": (*TINY_MASK, "--benchmark_steps=4", "--log_warmup_steps=2"),
}
INFERENCE_BENCHMARK = {
    "D0": (*SMALLEST[:2], "--nouse_xla", "--bm_runs=2", "--warmup_runs=1"),
    "maskrcnn": (*TINY_MASK_MODEL, "--bm_runs=2", "--warmup_runs=1"),
}


def script_and_results(folder, family, run, reference=True):
    """Returns the script of a run, of Mask R-CNN the TF2 reference's, and where it writes."""
    if family == "D0":
        return f"scripts/D0/{run}.sh", folder / "results" / run
    run += "-tf2" if reference else ""
    return f"scripts/maskrcnn/{run}.sh", folder / "results" / f"maskrcnn-{run}"


@pytest.fixture(scope="module")
def trained(folder):
    """The run of the convergence script on two CPU ranks: its folder, and what it said."""
    script, run = script_and_results(folder, "D0", "convergence-AMP-8xA100-80G")
    flags = ("--num_epochs=1", "--checkpoint_period=1", "--eval_batch_size=4", "--seed=3")
    result = start(folder, script, *SMALLEST, *flags, NGPU="2", PREFLIGHT="1")
    return run, result.require_success().output


@pytest.fixture(scope="module")
def trained_with_masks(folder):
    """Likewise that of a TF2 recipe's convergence script."""
    script, run = script_and_results(folder, "maskrcnn", "convergence-AMP-8xA100-80G")
    flags = (*TINY_MASK, "--eval_batch_size=4", "--num_epochs=1", "--noreport")
    return run, start(folder, script, *flags, NGPU="2").require_success().output


@pytest.fixture
def run_of(request):
    """The folder of the trained run of a family."""
    names = {"D0": "trained", "maskrcnn": "trained_with_masks"}
    return lambda family: request.getfixturevalue(names[family])[0]


@pytest.mark.slow
@pytest.mark.multi
def test_convergence_runs_on_cpu_ranks(trained):
    run, said = trained
    assert "preflight: passed" in said and "GB/s" in said
    assert "2 rank(s), cpu" in said
    # 2.2 for the documented 1600 images; here the global batch is 4.
    assert "learning rate 0.0055 (2.2 per 1600 images)" in said
    assert (run / "ckpt-final.index").exists() and (run / "emackpt-final").is_dir()
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["epoch"] == 1
    ends = [p.read_text().split() for p in sorted(run.glob("logs/*/rank-*.end"))]
    assert [(end[0], end[2]) for end in ends] == [("0", "0"), ("1", "0")] * 2


@pytest.mark.slow
@pytest.mark.multi
def test_convergence_of_a_tf2_recipe_runs_on_cpu_ranks(trained_with_masks):
    run, said = trained_with_masks
    # 0.04 for the documented 32 images; here the global batch is 4.
    assert "learning rate 0.005 (0.04 per 32 images)" in said
    assert (run / "ckpt-final.index").exists()
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["epoch"] == 1 and {"AP", "mask_AP"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("family", ALTERNATELY)  # two ranks and masks: test_maskrcnn.py
def test_evaluate_gives_the_score_of_the_training(folder, run_of, family):
    script, results = script_and_results(folder, family, "evaluate-AMP-8xA100-80G")
    run = run_of(family)
    flags = ("--noamp", "--nouse_xla", "--batch_size=4", "--noreport")
    start(folder, script, *flags, CKPT=str(run), NGPU="2").require_success()
    ours = json.loads((results / "metrics.json").read_text())
    theirs = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert ours == (theirs if family == "D0" else pytest.approx(theirs, abs=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("family", ALTERNATELY)
def test_training_benchmark_gives_the_throughput(folder, family):
    script, results = script_and_results(folder, family, "training-benchmark-AMP-A100-80G")
    result = start(folder, script, *BENCHMARK[family], NGPU="1").require_success()
    assert "done: 4 steps" in result.output
    assert "avg_fps_training" in (results / "time_log.txt").read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ALTERNATELY)
def test_inference_draws(folder, run_of, family):
    script, results = script_and_results(folder, family, "inference", reference=False)
    start(folder, script, MODEL_DIR=str(run_of(family))).require_success()
    assert (results / "img1-detections.png").exists()
    assert (results / "detections.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ALTERNATELY)
def test_inference_benchmark_gives_percentiles(folder, family):
    script, results = script_and_results(folder, family, "inference-benchmark")
    start(folder, script, *INFERENCE_BENCHMARK[family], BS="2", AMP="False").require_success()
    assert "latency_ms_p99" in (results / "inference.csv").read_text()
    logged = (results / "infer-benchmark.log").read_text()
    assert "inference_fps" in logged and "latency_90" in logged


# ---------------------------------------------------------------------- of Mask R-CNN alone


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
def test_inference_of_the_set_writes_masks_without_scores(folder, run_of):
    script = "scripts/maskrcnn/inference-val2017.sh"
    flags = ("--noamp", "--nouse_xla", "--batch_size=4")
    start(folder, script, *flags, CKPT=str(run_of("maskrcnn"))).require_success()
    results = folder / "results" / "maskrcnn-inference-val2017"
    found = json.loads((results / "segm.json").read_text())
    assert found and all("segmentation" in entry for entry in found)
    written = results / "metrics.json"
    assert not written.exists() or "AP" not in json.loads(written.read_text())


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


def test_weights_of_mask_rcnn_are_where_its_scripts_look(tmp_path):
    variables = {"DATA": str(tmp_path), "RESULTS": str(tmp_path), "checkpointdir": str(tmp_path)}
    command = dry("interactive.sh", "nvidia-smi", **variables).stdout
    assert f"-v {tmp_path}:/workspace/checkpoints:ro " in command
    assert " -t " not in command and command.endswith("effdet_tf2:latest nvidia-smi\n")
    both = dry("interactive.sh", **variables, CKPT=str(tmp_path))
    assert both.returncode == 2 and "leave BACKBONE_CKPT and CKPT out" in both.stderr


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
