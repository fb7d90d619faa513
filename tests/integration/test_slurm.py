"""The real submissions on a real Slurm of four nodes: training, signals, requeueing, failures.

`mini_slurm` brings the cluster up; DETECTION_TEST_CLUSTER names its folder (default:
shared/cluster beside the repository). Two kinds of ranks: train.py itself for what training must
show, and `rank_programs/counting.py` in its place where only the launcher and Slurm are asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from left_by_runs import tensors
from stub_machine import in_place_of_train
from tiny_runs import SMALLEST
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.multi]

CLUSTER = Path(os.environ.get("DETECTION_TEST_CLUSTER", ROOT.parent / "shared" / "cluster"))
TOOLS = ("slurmctld", "slurmd", "munged", "sinfo", "sbatch", "ip", "nsenter", "unshare")
CONVERGENCE = "slurm/convergence-AMP-32xV100-32G.sub"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
TINY = (
    *SMALLEST,
    "--seed=3",
    "--training_mode=train300",
    "--num_epochs=300",
    "--stop_epoch=25",
    "--checkpoint_period=300",
    "--console_seconds=0",
)
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


def missing() -> str:
    """Returns why there can be no cluster here, or ''."""
    if not (CLUSTER / "mini_slurm").is_file():
        return f"no mini_slurm in {CLUSTER}; name its folder with DETECTION_TEST_CLUSTER"
    lacking = [name for name in TOOLS if not shutil.which(name, path=PATH)]
    if lacking:
        return f"no Slurm here: {', '.join(lacking)} missing"
    return "" if os.geteuid() == 0 else "a cluster of several hosts on one machine needs root"


class Job:
    """A submitted job: its number, its output file, its results."""

    def __init__(self, cluster, number: str, output: Path, folder: Path):
        self.cluster, self.number, self.output, self.folder = cluster, number, output, folder

    def said(self) -> str:
        """Returns the output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_until_said(self, text: str, *, seconds: float = 300) -> None:
        """Waits for a text in the output."""
        self._wait(lambda: text in self.said(), f"never said {text!r}", seconds)

    def field(self, name: str) -> str:
        """Returns a field of `scontrol show job`; a controller that is busy is asked again."""
        for _ in range(10):
            shown = self.cluster.call("scontrol", "show", "job", self.number)
            found = re.search(rf"\b{name}=(\S*)", shown.stdout)
            if found:
                return found[1]
            time.sleep(3)
        raise AssertionError(f"scontrol tells no {name}: {shown.stdout}{shown.stderr}")

    def wait(self, state: str, *, seconds: float = 300) -> str:
        """Waits for a state of the job; returns all that it said."""
        ended = 0  # times in a row; a job that is queued again can look ended for a moment

        def has_come() -> bool:
            nonlocal ended
            now = self.field("JobState")
            ended = ended + 1 if now in ENDED else 0
            assert now == state or ended < 10, (
                f"{now}, not {state}; ranks: {self.ends()}; it said:\n{self.said()[-8000:]}"
            )
            return now == state

        self._wait(has_come, f"never {state}", seconds)
        return self.said()

    def ends(self) -> str:
        """Returns how the ranks ended: rank, host, code and time of each."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("logs/*/*.end")))

    def count(self) -> dict:
        """Returns what the counting ranks left."""
        return json.loads((self.folder / "count.json").read_text())

    def rank_process(self, rank: int) -> tuple[str, int]:
        """Returns (host, process id there) of a rank's last start."""
        record = max(self.folder.glob(f"logs/*/rank-{rank:05d}.start"))
        _, host, number, _ = record.read_text().split()
        return host, int(number)

    def _wait(self, test, what: str, seconds: float) -> None:
        def has_come():
            time.sleep(0.2)
            return test()

        wait_until(
            has_come,
            lambda: f"{what}; it is {self.field('JobState')} and said:\n{self.said()[-4000:]}",
            seconds=seconds,
        )


class Cluster:
    """Four nodes n1..n4 with 8 pretended GPUs each."""

    def __init__(self, folder: Path, *options: str):
        self.folder, self.state = folder, folder / "state"
        self.options = options
        self.jobs = 0

    def mini_slurm(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Runs a command of mini_slurm."""
        verb, *rest = words
        command = [sys.executable, CLUSTER / "mini_slurm", verb, self.state, *rest]
        environment = {**os.environ, "PATH": PATH}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )

    def call(self, *command: str, node: str = "head", **variables: str):
        """Runs a command as if logged in on a node."""
        words = ["exec", self.state, "--node", node, "--", *command]
        return subprocess.run(
            [sys.executable, CLUSTER / "mini_slurm", *words],
            cwd=ROOT,
            env={**os.environ, "PATH": PATH, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def submit(
        self, script: str, *flags: str, nodes: int | str, tasks: int = 1, **variables: str
    ) -> Job:
        """Submits a script of the repository with so many tasks on each node."""
        self.jobs += 1
        folder = self.folder / f"run-{self.jobs}"
        output = self.folder / f"run-{self.jobs}.out"
        variables = {"MODEL_DIR": str(folder), "PREFLIGHT": "0", **variables}
        variables = {"RESULTS_DIR": str(self.folder), **variables}
        sbatch = ["sbatch", "--parsable", f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
        result = self.call(*sbatch, f"--output={output}", script, *flags, **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        return Job(self, result.stdout.strip(), output, Path(variables["MODEL_DIR"]))


def stub_option(folder: Path) -> list:
    """Returns the option that loads the stand-in for Pyxis; [] where it cannot be compiled."""
    source, plugin = CLUSTER / "spank_stub.c", folder / "spank_stub.so"
    if not source.is_file() or not Path("/usr/include/slurm/spank.h").exists():
        return []
    record = folder / "containers"
    record.mkdir()
    compiled = subprocess.run(["cc", "-shared", "-fPIC", "-o", plugin, source], timeout=60)
    return ["--spank", f"{plugin}:record={record}"] if compiled.returncode == 0 else []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing():
        pytest.skip(missing())
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(folder, *stub_option(folder))
    up = cluster.mini_slurm("up", *cluster.options)
    assert up.returncode == 0, up.stdout + up.stderr
    yield cluster
    cluster.mini_slurm("down")


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """The variables of the counting ranks."""
    program = ROOT / "tests/integration/rank_programs/counting.py"
    return {**in_place_of_train(tmp_path_factory.mktemp("python"), program), "LAST_STEP": "60"}


def expected_total(ranks: int, last_step: int) -> int:
    """Returns what so many ranks count to without a break."""
    return ranks * (ranks + 1) // 2 * last_step * (last_step + 1) // 2


# ------------------------------------------------------------------------------ counting ranks


@pytest.mark.parametrize("script", [CONVERGENCE, "slurm/maskrcnn-convergence-AMP-32xV100-32G.sub"])
def test_four_nodes_count_together(cluster, counting, script):
    job = cluster.submit(script, nodes=4, **counting, STEP_SECONDS="0.02")
    said = job.wait("COMPLETED")
    assert job.count() == {
        "step": 60,
        "total": expected_total(4, 60),
        "resumed_at": [],
        "hosts": ["n1", "n2", "n3", "n4"],
    }
    assert "4 ranks instead of the documented 32: the learning rate follows" in said


def test_preempted_job_is_queued_again_and_counts_on(cluster, counting):
    job = cluster.submit(CONVERGENCE, nodes=2, **counting)
    job.wait_until_said("step 10\n")
    cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until_said("is in the queue again")
    said = job.wait("COMPLETED")
    assert job.field("Restarts") == "1"
    assert job.count()["total"] == expected_total(2, 60)
    assert len(job.count()["resumed_at"]) == 1
    # One file holds both lives of the job.
    assert said.index("stopped at step") < said.index("counted")


@pytest.mark.parametrize("chain", ["0", "1"])
def test_a_time_limit_is_chained_on_request(cluster, counting, chain):
    # Any time is close to the limit under this margin.
    variables = {"TIME_LIMIT_MARGIN": "1000000", "CHAIN": chain, "STEP_SECONDS": "0.05"}
    job = cluster.submit(CONVERGENCE, nodes=1, **counting, **variables)
    job.wait_until_said("step 10\n")
    cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    said = job.wait("COMPLETED" if chain == "1" else "FAILED")
    if chain == "1":
        assert job.count()["total"] == expected_total(1, 60)
    else:
        assert "the time limit ended the job" in said
        assert job.field("ExitCode") == "75:0"


def test_cancelled_job_saves_and_stays_cancelled(cluster, counting):
    job = cluster.submit(CONVERGENCE, nodes=2, **{**counting, "LAST_STEP": "1000"})
    job.wait_until_said("step 10\n")
    cluster.call("scancel", job.number)
    job.wait("CANCELLED")
    end = time.monotonic() + 20
    while job.count()["step"] % 5 == 0 and time.monotonic() < end:
        time.sleep(0.2)
    assert "stopped at step" in job.said()
    assert job.field("Restarts") == "0"


def test_a_killed_rank_ends_the_job_and_is_named(cluster, counting):
    job = cluster.submit(CONVERGENCE, nodes=3, **{**counting, "LAST_STEP": "1000"})
    job.wait_until_said("step 10\n")
    host, wrapper = job.rank_process(1)
    assert host == "n2"
    kill = f"kill -KILL $(cat /proc/{wrapper}/task/{wrapper}/children)"
    cluster.call("bash", "-c", kill, node=host)
    said = job.wait("FAILED", seconds=60)
    assert "rank 1 on n2 was killed by signal 9 (KILL)" in said, said + job.ends()
    assert job.field("ExitCode") == "137:0"


def test_containers_get_the_documented_mounts(cluster, counting, tmp_path):
    if not cluster.options:
        pytest.skip("no Pyxis, and its stand-in cannot be compiled here (libslurm-dev, gcc)")
    image = tmp_path / "image.sqsh"
    image.write_text("an image")
    for name in ("data", "checkpoints"):
        (tmp_path / name).mkdir()
    folders = {"datadir": f"{tmp_path}/data", "checkpointdir": f"{tmp_path}/checkpoints"}
    variables = {**folders, "CONTAINER_IMAGE": str(image), "STEP_SECONDS": "0.01"}
    job = cluster.submit(CONVERGENCE, nodes=2, **counting, **variables)
    job.wait("COMPLETED")
    records = [p.read_text() for p in (cluster.folder / "containers").glob(f"{job.number}.*")]
    assert sorted(re.findall(r"host=(n\d)", "".join(records))) == ["n1", "n2"]
    for record in records:
        assert f"container-image={image}" in record
        assert f"{tmp_path}/data:/workspace/coco:ro" in record
        assert f"{tmp_path}/checkpoints:/workspace/checkpoints:ro" in record
        assert f"{ROOT}:{ROOT}" in record and "no-container-entrypoint" in record


def test_without_pmix_mpirun_starts_the_ranks_of_the_job(cluster, counting):
    variables = {"LAUNCHER": "mpirun", "STEP_SECONDS": "0.05"}
    job = cluster.submit(CONVERGENCE, nodes=2, **counting, **variables)
    job.wait_until_said("step 10\n")
    cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    job.wait("COMPLETED")
    assert job.count()["total"] == expected_total(2, 60)
    assert job.field("Restarts") == "1"


def test_a_lost_node_is_replaced_and_the_job_counts_on(cluster, counting):
    job = cluster.submit(CONVERGENCE, nodes=2, **{**counting, "LAST_STEP": "80"})
    job.wait_until_said("step 10\n")
    lost = job.count()["hosts"][1]
    cluster.mini_slurm("kill", lost)
    try:
        job.wait("COMPLETED", seconds=150)
    finally:
        cluster.mini_slurm("revive", lost)
    assert lost not in job.count()["hosts"]
    assert job.count()["total"] == expected_total(2, 80)
    assert job.count()["resumed_at"]


# ------------------------------------------------------------------------------ faults


@pytest.fixture
def faulty(tmp_path):
    """The variables of a training of the tiny family."""
    return {
        **in_place_of_train(tmp_path, ROOT / "tests/faults/tiny_run.py"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        **{"STEP_SECONDS": "0.1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"},
    }


@pytest.mark.nightly
@pytest.mark.parametrize(("launcher", "frozen"), [("srun", 0), ("srun", 1), ("horovodrun", 1)])
def test_a_frozen_rank_is_named_and_ends_the_job(cluster, faulty, launcher, frozen):
    flags = ("--num_epochs=1000", "--checkpoint_period=1", "--heartbeat_seconds=8")
    job = cluster.submit(CONVERGENCE, *flags, nodes=2, LAUNCHER=launcher, **faulty)
    job.wait_until_said("saved ")
    host, _ = job.rank_process(frozen)
    (process,) = job.folder.glob(f"logs/*/rank-{frozen:05d}.child")
    cluster.call("kill", "-STOP", process.read_text().strip(), node=host)
    said = job.wait("FAILED", seconds=120)
    assert f"rank {frozen} of 2 on {host} is frozen or cut off: no sign of life for" in said
    assert f"launch.sh: {launcher} ended with code" in said or "ended with code 1" in said


@pytest.mark.nightly
def test_a_job_that_comes_back_with_fewer_nodes_continues_the_same_training(cluster, faulty):
    flags = ("--num_epochs=12", "--checkpoint_period=1")
    job = cluster.submit(CONVERGENCE, *flags, nodes="1-2", tasks=2, MIN_NODES="1", **faulty)
    job.wait_until_said("saved ")
    assert job.field("NumNodes") == "2", "not all nodes were free"
    others = "nodename=n2,n3,n4"
    cluster.call("scontrol", "update", others, "state=drain", "reason=test")
    try:
        cluster.call("scancel", "--batch", "--signal=USR1", job.number)
        said = job.wait("COMPLETED")
    finally:
        cluster.call("scontrol", "update", others, "state=resume")
    assert job.field("Restarts") == "1" and job.field("NumNodes") == "1"
    assert "ranks: 4 -> 2" in said and "work of 2 of the 4 that" in said


# ------------------------------------------------------------------------------ training


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Compares the final states of two runs bit for bit.

    Each save replaces batch-norm statistics by their mean over the ranks, so those of a run with
    one save more are rounded once more. No training step reads them.
    """
    ours, theirs = tensors(ours / "ckpt-final"), tensors(theirs / "ckpt-final")
    assert set(ours) == set(theirs) and ours["state/step"] == theirs["state/step"] > 0
    statistics = {name for name in ours if "/moving_" in name}
    exact = set(ours) - statistics
    assert len(exact) > 100
    assert [name for name in exact if ours[name].tobytes() != theirs[name].tobytes()] == []
    for name in statistics:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.nightly  # every day shows that a preempted job counts on and that resuming is exact
def test_training_on_two_nodes_goes_on_exactly_after_a_preemption(cluster, tiny_set):
    data = (*tiny_set.flags, *TINY)
    unbroken = cluster.submit(CONVERGENCE, *data, nodes=2, PREFLIGHT="1")
    said = unbroken.wait("COMPLETED", seconds=900)
    assert "preflight: 2 rank(s) on 2 host(s): n1, n2" in said
    assert "preflight: passed" in said and "GB/s" in said
    broken = cluster.submit(CONVERGENCE, *data, nodes=2)
    broken.wait_until_said(" step 10/", seconds=600)
    cluster.call("scancel", "--batch", "--signal=USR1", broken.number)
    said = broken.wait("COMPLETED", seconds=900)
    assert broken.field("Restarts") == "1"
    assert "continuing at step" in said
    assert_same_training(broken.folder, unbroken.folder)
