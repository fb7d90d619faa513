"""The scripts of the documented runs, of both families: what they say, the commands they become."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from launcher_machine import Machine, flags_of, in_job
from own_files import own_files

ROOT = Path(__file__).resolve().parents[2]
# The one table of runs: its page's chapters, EfficientDet's and Mask R-CNN's.
PAGE = (ROOT / "docs" / "runs.md").read_text()
CHAPTERS = dict(zip(("D0", "maskrcnn"), PAGE.split("\n## Mask R-CNN\n")))
RUN = re.compile(r"^\| `((?:AMP|TF32|FP32)-[\w-]+)`(, Slurm)? \| (.*) \|$", re.MULTILINE)
ROW = re.compile(r"^\| `(scripts/[\w./-]+)` \| (.*) \|$", re.MULTILINE)
NO_RUNS = {f"scripts/maskrcnn/{name}.py" for name in ("download_weights", "tf2_command_line")}
KINDS = ("convergence", "evaluate", "training-benchmark")


def read_tables() -> dict[str, list[str]]:
    """Returns what the tables say of each script, by its path: its recipe first."""
    rows = dict(ROW.findall(PAGE))
    for folder, chapter in CHAPTERS.items():
        prefix = "maskrcnn-" if folder == "maskrcnn" else ""
        for run, is_slurm, cells in RUN.findall(chapter):
            for kind in KINDS:
                name = f"{kind}-{run.replace('8x', '') if kind == KINDS[2] else run}"
                path = f"slurm/{prefix}{name}.sub" if is_slurm else f"scripts/{folder}/{name}.sh"
                rows[path] = cells
    return {path: cells.split(" | ") for path, cells in rows.items()}


ROWS = read_tables()
SCRIPTS = [path for path in ROWS if path.endswith(".sh")]
SUBMISSIONS = [path for path in ROWS if path.endswith(".sub")]


def whose(path: str) -> str:
    """Returns whose run a script is: tf2, pytorch, nvidia (D0's reference) or '' (ours)."""
    end = Path(path).stem.split("-")[-1]
    if end in ("tf2", "pytorch"):
        return end
    return "nvidia" if "maskrcnn" not in path and not re.search("H100|H200", path) else ""


def sampled(kind: str) -> list:
    """Returns the scripts of a kind; of those alike but for the hardware the first every day."""
    found, seen = [], set()
    for path in SCRIPTS:
        if Path(path).name.startswith(kind):
            alike = ("maskrcnn" in path, whose(path), "-1x" in path)
            found.append(pytest.param(path, marks=[pytest.mark.nightly] * (alike in seen)))
            seen.add(alike)
    return found


# -------------------------------------------------------------------------- which scripts there are


def test_the_tables_name_every_script_and_no_other():
    there = {f"scripts/D0/{p.name}" for p in own_files("scripts/D0/*.sh")}
    there |= {f"scripts/maskrcnn/{p.name}" for p in own_files("scripts/maskrcnn/*.??")}
    there |= {f"slurm/{p.name}" for p in own_files("slurm/*.sub")}
    assert set(ROWS) == there - NO_RUNS


def test_the_tables_have_the_references_runs_and_ours():
    ours = {"AMP-8xH100-80G", "AMP-8xH200-141G", "AMP-32xV100-32G", "FP32-32xV100-32G"}
    d0 = {"AMP-8xA100-80G", "TF32-8xA100-80G", "AMP-8xV100-32G", "FP32-8xV100-32G"}
    tf2 = {"AMP-8xA100-80G", "TF32-8xA100-80G", "AMP-8xV100-16G", "FP32-8xV100-16G"}
    pytorch = tf2 | {"AMP-8xV100-32G", "FP32-8xV100-32G"}
    masks = {f"{run}-tf2" for run in tf2} | {f"{run}-pytorch" for run in pytorch}
    found = {folder: [run for run, *_ in RUN.findall(text)] for folder, text in CHAPTERS.items()}
    assert {folder: set(runs) for folder, runs in found.items()} == {
        "D0": d0 | ours,
        "maskrcnn": masks | ours,
    }
    assert [len(runs) for runs in found.values()] == [8, 14], "each stands once"


def test_the_scripts_besides_are_there():
    expected = {f"D0/evaluate-{p}-32xV100-32G" for p in ("AMP", "FP32")}
    expected |= {f"D0/training-benchmark-{p}-1xA100-80G" for p in ("AMP", "TF32")}
    expected |= {f"{f}/inference" for f in CHAPTERS} | {"D0/inference-benchmark"}
    names = ("inference-benchmark-tf2", "inference-benchmark-pytorch", "inference-val2017")
    names += ("stability-AMP-8xV100-16G-pytorch", "stability-FP32-8xV100-16G-pytorch")
    names += ("stability-AMP-8xA100-80G-pytorch",)
    expected |= {f"maskrcnn/{name}" for name in names}
    paths = [path for path, _ in ROW.findall(PAGE) if path.endswith(".sh")]
    assert sorted(paths) == sorted(f"scripts/{name}.sh" for name in expected)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_is_a_header_and_a_handful_of_lines(path):
    lines = (ROOT / path).read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert len(code) <= 3, code
    assert '"$@"' in code[-1]
    head = "\n".join(line for line in lines if line.startswith("#"))
    names = {"tf2": "TF2 reference", "pytorch": "PyTorch reference", "nvidia": "reference"}
    if whose(path) and not path.endswith("D0/inference.sh"):
        assert f"What the {names[whose(path)]} reports: docs/runs.md." in head
    elif Path(path).name.startswith(KINDS):
        assert "Ours, not from the references" in head and "reports" not in head
    assert not re.search(r"--(lr|momentum|num_epochs|warmup)", "\n".join(code))
    if Path(path).name.startswith(KINDS):
        gpus = re.search(r"-(\d+)x", path)
        assert f"--recipe {ROWS[path][0]} --gpus {gpus[1] if gpus else 8} " in code[-1]
    assert os.access(ROOT / path, os.X_OK)


def test_figures_of_a_run_stand_in_the_table_alone():
    figure = re.compile(r"\b0\.3\d\d|[\d.]+ (hours|images/s)|BS=\d+: ")
    recipes = own_files("efficientdet/configs/*.yaml", "maskrcnn/configs/[ct]*.yaml")
    for path in (*(ROOT / script for script in ROWS), *recipes):
        head = path.read_text().split("exec ")[0].split("optim:")[0]
        assert not figure.search(head), path


def test_the_page_on_scaling_follows_from_the_table():
    shares = re.compile(
        r"^\| (EfficientDet-D0|Mask R-CNN) `([\w-]+)` \| ([\d.]+) \|$", re.MULTILINE
    )
    found = shares.findall((ROOT / "docs" / "scaling.md").read_text())
    assert len(found) == 6
    for family, run, share in found:
        folder = "maskrcnn" if family == "Mask R-CNN" else "D0"
        cells = ROWS[f"scripts/{folder}/convergence-{run}.sh"]
        if folder == "maskrcnn":
            one, _, eight = re.search(r"\*\*: (\S+), (\S+), ([\d.]+)", cells[4]).groups()
        else:
            one, eight = cells[3:5]
        assert float(share) == pytest.approx(float(eight) / 8 / float(one), abs=0.005)


@pytest.mark.parametrize("family", ["D0", "maskrcnn"])
@pytest.mark.parametrize("kind", [*KINDS, "inference-benchmark", "inference."])
def test_a_run_of_each_kind_is_marked_as_run(family, kind):
    marks = [cells[-1] for path, cells in ROWS.items() if f"scripts/{family}/{kind}" in path]
    assert any(mark.startswith("run") for mark in marks)


def test_the_reference_s_path_of_a_submission_leads_to_ours():
    for path in (ROOT / "scripts" / "D0").glob("*.sub"):
        assert path.is_symlink() and path.resolve() == ROOT / "slurm" / path.name


# ---------------------------------------------------------------------------- the commands


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, gpus=8)


def recipe_of(path: str) -> tuple[Path, dict]:
    """Returns the recipe that the tables name for a script, and what it says."""
    family = "maskrcnn" if "maskrcnn" in path else "efficientdet"
    recipe = ROOT / family / "configs" / f"{ROWS[path][0]}.yaml"
    return recipe, yaml.safe_load(recipe.read_text())


def check_recipe(path: str, given: dict) -> None:
    """Checks what follows from whose recipe a script has."""
    recipe, settings = recipe_of(path)
    presets = {"tf2": "nvidia_tf2", "pytorch": "nvidia_pytorch", "nvidia": "nvidia", "": ""}
    assert given["preset"] == presets[whose(path)]
    if whose(path) == "pytorch":
        assert given["config_file"] == str(recipe) and "recipe" not in given
        assert "model_name" not in given, "the file says it"
        assert int(given["batch_size"]) == settings["SOLVER"]["IMS_PER_BATCH"] // 8
        return
    assert given["recipe"] == str(recipe) and "config_file" not in given
    assert given.get("model_name") == ("maskrcnn-r50-fpn" if "maskrcnn" in path else None)
    assert "batch_size" not in given
    assert settings["runtime"]["amp"] == ("-AMP-" in path)


BACKBONES = {
    "tf2": "rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp",
    "pytorch": "R-50.pkl",
    "nvidia": "efficientnet-b0-joc",
}


@pytest.mark.parametrize("path", sampled("convergence"))
def test_convergence(machine, path):
    command = machine.dry(path, "--lr=9")
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "8"] and f"{ROOT}/train.py" in command
    assert command[-1] == "--lr=9"
    check_recipe(path, given)
    family = "maskrcnn-" if "maskrcnn" in path else ""
    assert given["model_dir"] == f"{machine.results}/{family}{Path(path).stem}"
    assert given["training_file_pattern"] == "/workspace/coco/train-*"
    assert given["val_file_pattern"] == "/workspace/coco/val-*"
    assert given["val_json_file"] == "/workspace/coco/annotations/instances_val2017.json"
    ours = "tf2" if family else "nvidia"
    backbone = BACKBONES[whose(path) or ours]
    assert given["backbone_init"] == f"/workspace/checkpoints/{backbone}"
    flags = {"--amp", "--noamp"} & set(command)
    expected = {"--amp" if "AMP" in path else "--noamp"}
    assert flags == (expected if whose(path) == "pytorch" else set()), "else the recipe says it"


@pytest.mark.parametrize("path", sampled("evaluate"))
def test_evaluate_has_batch_and_precision_of_the_recipe(machine, path):
    command = machine.dry(path, CKPT="/runs/emackpt-300", NGPU="8")
    given = flags_of(command)
    assert f"{ROOT}/eval.py" in command and given["ckpt_path"] == "/runs/emackpt-300"
    assert given.get("model_name") == ("maskrcnn-r50-fpn" if "maskrcnn" in path else None)
    batch = {"tf2": 8, "pytorch": 1, "": 8}
    if "D0" in path:
        batch = {whose(path): recipe_of(path)[1]["train"]["batch_size"]}
    assert int(given["batch_size"]) == batch[whose(path)]
    assert ("--amp" in command) == ("AMP" in path) != ("--noamp" in command)


@pytest.mark.parametrize("path", sampled("training-benchmark"))
def test_training_benchmark(machine, path):
    command = machine.dry(path, NGPU="2", BS="3")
    given = flags_of(command)
    assert "--benchmark" in command and given["num_epochs"] == "1" and given["batch_size"] == "3"
    steps = "3665" if path.endswith("16G-pytorch.sh") else "500"
    steps = steps if "D0" in path or whose(path) == "pytorch" else "200"
    assert given["benchmark_steps"] == steps
    assert f"Times {steps} training steps" in (ROOT / path).read_text()
    assert given.get("log_warmup_steps") == ("100" if steps == "200" else None)
    # There are no weights here, and speed does not need them, whatever a PyTorch file names.
    assert given.get("backbone_init") == ("" if whose(path) == "pytorch" else None)
    if "-1x" in path:
        assert command[0].endswith("rank.sh"), "one process, whatever NGPU says"
        assert given["enable_map_parallelization"] == "False"
    else:
        assert command[:3] == ["mpirun", "-np", "2"]


def test_a_benchmark_takes_a_backbone_that_is_there(machine, tmp_path):
    (tmp_path / "weights.index").touch()
    path = "scripts/maskrcnn/training-benchmark-AMP-A100-80G-tf2.sh"
    given = flags_of(machine.dry(path, BACKBONE_CKPT=str(tmp_path / "weights")))
    assert given["backbone_init"] == f"{tmp_path}/weights"


@pytest.mark.parametrize(
    ("name", "model", "preset", "batch", "warm_up"),
    [
        ("D0/inference-benchmark", "efficientdet-d0", None, "8", None),
        ("maskrcnn/inference-benchmark-tf2", "maskrcnn-r50-fpn", "nvidia_tf2", "6", "100"),
        ("maskrcnn/inference-benchmark-pytorch", "maskrcnn-r50-fpn", "nvidia_pytorch", "1", "100"),
    ],
)
def test_inference_benchmark(machine, name, model, preset, batch, warm_up):
    command = machine.dry(f"scripts/{name}.sh", "--bm_runs=3")
    given = flags_of(command)
    assert "benchmarks.inference" in command and "--amp" in command
    assert command[-1] == "--bm_runs=3" and given["model_name"] == model
    found = (given.get("preset"), given["batch_size"], given.get("warmup_runs"))
    assert found == (preset, batch, warm_up)
    variables = {"BS": "24", "AMP": "False", "CKPT": "/run", "IMAGE_PATH": "/val/*.jpg"}
    command = machine.dry(f"scripts/{name}.sh", **variables)
    given = flags_of(command)
    assert given["batch_size"] == "24" and "--noamp" in command
    assert (given["model_dir"], given["image_path"]) == ("/run", "/val/*.jpg")


@pytest.mark.parametrize(
    ("folder", "model", "preset"), [("D0", None, "nvidia"), ("maskrcnn", "maskrcnn-r50-fpn", "")]
)
def test_inference(machine, folder, model, preset):
    path = f"scripts/{folder}/inference.sh"
    given = flags_of(machine.dry(path, MODEL_DIR="/runs/a", IMAGE_PATH="/photos"))
    assert (given["model_dir"], given["image_path"]) == ("/runs/a", "/photos")
    assert (given.get("model_name"), given["preset"]) == (model, preset)
    given = flags_of(machine.dry(path, MODEL_DIR="/a"))
    assert given["image_path"] == f"{ROOT}/testdata/img1.jpg"


def test_inference_on_coco(machine):
    command = machine.dry("scripts/maskrcnn/inference-val2017.sh", CKPT="/run")
    assert f"{ROOT}/eval.py" in command and "--skip_eval" in command
    assert command[0].endswith("rank.sh"), "one GPU"


def test_all_submissions_ask_for_the_same():
    texts = {path: (ROOT / path).read_text() for path in SUBMISSIONS}
    assert len({tuple(re.findall("^#SBATCH.*", t, re.MULTILINE)) for t in texts.values()}) == 1
    for path, text in texts.items():
        assert f"sbatch -N 4 {path}" in text
        assert f"--recipe {ROWS[path][0]} --gpus 32 --nodes 4 " in text


@pytest.mark.parametrize("path", [path for path in SUBMISSIONS if "AMP" in path])
def test_submissions(machine, path):
    machine.add_slurm()
    command = machine.dry(path, "--lr=9", **in_job(nodes=4), CKPT="/run")
    assert command[0] == "srun" and {"--ntasks=32", "--nodes=4"} <= set(command)
    assert command[-1] == "--lr=9"
    if "evaluate" not in path:
        check_recipe(path, flags_of(command))
    result = machine.run(path, RINGDET_ROOT=str(ROOT), CKPT="/run")
    assert result.returncode == 2 and f"sbatch -N 4 {path}" in result.stderr


def test_variables_of_the_references(machine):
    given_to = {"MODEL_DIR": "/m", "DATA_DIR": "/d", "BACKBONE_CKPT": "/b", "AMP": "False"}
    path = "scripts/D0/convergence-AMP-8xV100-32G.sh"
    command = machine.dry(path, NGPU="4", BS="16", PRESET="", training_mode="train", **given_to)
    given = flags_of(command)
    assert command[:3] == ["mpirun", "-np", "4"] and "--noamp" in command
    assert given["model_dir"] == "/m" and given["backbone_init"] == "/b"
    assert given["training_file_pattern"] == "/d/train-*"
    assert given["training_mode"] == "train" and given["batch_size"] == "16"
    assert given["preset"] == ""
    path = "scripts/maskrcnn/convergence-AMP-8xA100-80G-pytorch.sh"
    command = machine.dry(path, NGPU="4", checkpointdir="/c", AMP="False")
    given = flags_of(command)
    assert given["batch_size"] == "12", "each GPU keeps its images"
    assert given["backbone_init"] == "/c/R-50.pkl" and "--noamp" in command
    path = "scripts/maskrcnn/convergence-AMP-8xA100-80G-tf2.sh"
    given = flags_of(machine.dry(path, PRESET="", BS="2"))
    assert given["preset"] == "" and given["batch_size"] == "2"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if "stability" in path])
def test_stability_composes_a_run_for_each_seed(machine, path):
    result = machine.run(path, "--num_epochs=2", DRY_RUN="1")
    commands = [line for line in result.stdout.splitlines() if line.startswith("mpirun")]
    assert result.returncode == 0 and len(commands) == 5
    folder = machine.results / f"maskrcnn-{Path(path).stem.replace('stability', 'convergence')}"
    for seed, command in enumerate(commands, start=1):
        given = flags_of(shlex.split(command))
        assert given["seed"] == str(seed) and given["num_epochs"] == "2"
        assert given["model_dir"] == f"{folder}-seed-{seed}"
    for told in (["--seed=3"], ["--seed", "3"]):
        result = machine.run(path, *told)
        assert result.returncode == 2 and "set SEEDS" in result.stderr
