"""The table of docs/runs.md: every script of it is composed, and one of each kind really runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, run_from_scratch

RUNS = (ROOT / "docs" / "runs.md").read_text()
ROW = re.compile(r"^\| `((?:scripts/D0|slurm)/[\w.-]+)` \|(.*)\|$", re.MULTILINE)
ROWS = {path: [cell.strip() for cell in cells.split("|")] for path, cells in ROW.findall(RUNS)}

# As small as a detector can be, with a backbone that is left alone.
TINY = (
    "--model_name=efficientdet-lite0",
    "--hparams=image_size=64,max_level=5,fpn_num_filters=8,fpn_cell_repeats=1,"
    "box_class_repeats=1,num_scales=1",
    "--var_freeze_expr=(stem|stack_)",
    "--max_instances_per_image=8",
    "--noamp",
    "--nouse_xla",
    "--batch_size=2",
    "--num_examples_per_epoch=0",
    "--backbone_init=",
)


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
    command = ["bash", ROOT / script, *flags]
    return run_from_scratch(command, environment=environment, timeout=900)


# ---------------------------------------------------------------------------- the table


def test_the_table_names_every_script_and_no_other():
    there = {f"scripts/D0/{p.name}" for p in (ROOT / "scripts/D0").glob("*.sh")}
    there |= {f"slurm/{p.name}" for p in (ROOT / "slurm").glob("*.sub")}
    assert set(ROWS) == there


@pytest.mark.parametrize("script", ROWS)
def test_every_script_of_the_table_composes_its_command(folder, script):
    variables = {"DRY_RUN": "1", "CKPT": "/run", "MODEL_DIR": "/run", "NGPU": "8"}
    result = start(folder, script, "--lr=0.5", **variables).require_success()
    command = shlex.split(result.output.splitlines()[-1])
    assert command[-1] == "--lr=0.5"
    recipes = [word for word in command if word.startswith("--recipe=")]
    if recipes:
        assert Path(recipes[0]).stem == ROWS[script][0], "the table names another recipe"


def test_the_head_of_a_script_and_the_table_report_the_same():
    for script, cells in ROWS.items():
        head = (ROOT / script).read_text().split("set -e")[0]
        for number in re.findall(r"AP (0\.3\d+)", head):
            assert number in cells, script
        if "convergence" in script and "ours" not in cells:
            assert f"{cells[2]} hours" in head, script


def test_a_run_of_each_kind_is_marked_as_run():
    for kind in (
        "convergence",
        "evaluate",
        "training-benchmark",
        "inference-benchmark",
        "inference.",
    ):
        marks = [cells[-1] for path, cells in ROWS.items() if path.split("/")[-1].startswith(kind)]
        assert any(mark.startswith("run") for mark in marks), kind


# ---------------------------------------------------------------------------- one of each kind


@pytest.fixture(scope="module")
def trained(folder):
    """The run of the convergence script on two CPU ranks."""
    flags = (*TINY, "--num_epochs=1", "--checkpoint_period=1", "--eval_batch_size=4", "--seed=3")
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
    result = start(folder, script, *TINY, "--benchmark_steps=4", NGPU="1").require_success()
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
    flags = (*TINY[:2], "--nouse_xla", "--bm_runs=2", "--warmup_runs=1")
    script = "scripts/D0/inference-benchmark.sh"
    start(folder, script, *flags, BS="2", AMP="False").require_success()
    results = folder / "results" / "inference-benchmark"
    assert "latency_ms_p99" in (results / "inference.csv").read_text()
    assert "inference_fps" in (results / "infer-benchmark.log").read_text()


# ---------------------------------------------------------------------------- docker


def dry(script, **variables):
    """Runs a script of docker/ dry; returns the finished process."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    command = ["bash", ROOT / "docker" / script]
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
    assert "FROM python:3.11" in (ROOT / "docker" / "Dockerfile.cpu").read_text()
    installed = re.findall(r"pip install.*", gpu)
    assert len(installed) == 1 and "--constraint" in installed[0]


def test_dockerfiles_pass_hadolint():
    hadolint = shutil.which("hadolint")
    if not hadolint:
        pytest.skip("no hadolint")
    files = sorted((ROOT / "docker").glob("Dockerfile*"))
    result = subprocess.run([hadolint, *files], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
