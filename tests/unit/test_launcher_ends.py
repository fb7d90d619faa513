"""How the launcher starts and ends ranks, which are harmless here, and what it then tells."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launcher_machine import Machine, in_job
from stub_machine import write_executable
from waiting import is_running, wait_until

ROOT = Path(__file__).resolve().parents[2]
D0 = ROOT / "scripts" / "D0"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path, gpus=8)


# PYTHON names it: it stands for the interpreter and gets `train.py` and all flags.
RANK = 'echo "rank speaks: $1"'


# Starts two ranks as Open MPI does, and has one speak for their failure.
MPIRUN = """
while [ "${1##*/}" != rank.sh ]; do shift; done
for rank in 0 1; do OMPI_COMM_WORLD_RANK=$rank OMPI_COMM_WORLD_LOCAL_RANK=$rank "$@" & done
code=0
wait -n || code=$?
wait -n || code=$?
exit $code
"""


def start(machine, tmp_path, body, **variables):
    """Starts the convergence script with a stand-in for Python; returns the process."""
    stand_in = write_executable(tmp_path / "python", f"{RANK}\n{body}")
    variables = {"PYTHON": str(stand_in), "NGPU": "1", "PREFLIGHT": "0", **variables}
    environment = machine.environment(**variables)
    return subprocess.Popen(
        ["/bin/bash", str(D0 / "convergence-AMP-8xA100-80G.sh")],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path_pattern, folder):
    """Waits for a file; returns it."""

    def look():
        return next(folder.glob(path_pattern), None)

    return wait_until(look, lambda: f"no {path_pattern} in {folder}", seconds=20)


@pytest.mark.parametrize("code", [0, 1, 75, 7])
def test_exit_codes_are_kept(machine, tmp_path, code):
    process = start(machine, tmp_path, f"exit {code}")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"rank speaks: {ROOT}/train.py" in output
    log = next(machine.results.glob("*/logs/*/rank-00000.log"))
    assert f"rank speaks: {ROOT}/train.py" in log.read_text()
    assert ("ended with code" in errors) == (code in (1, 7))


def test_a_failing_rank_is_told_with_its_last_lines(machine, tmp_path):
    process = start(machine, tmp_path, 'echo "ERROR: disk full" >&2; exit 3')
    errors = process.communicate(timeout=60)[1]
    host = os.uname().nodename
    assert f"rank 0 on {host} ended with code 3" in errors and "  | ERROR: disk full" in errors


def test_the_reason_of_a_failure_is_told_though_many_lines_follow(machine, tmp_path):
    body = "echo 'ERROR (rank 0 of 1 on a): disk full' >&2; seq 100 >&2; exit 1"
    errors = start(machine, tmp_path, body).communicate(timeout=60)[1]
    shown = [line[4:] for line in errors.splitlines() if line.startswith("  | ")]
    assert shown == ["ERROR (rank 0 of 1 on a): disk full", "...", *map(str, range(81, 101))]


def test_a_killed_rank_is_told(machine, tmp_path):
    process = start(machine, tmp_path, "kill -KILL $$")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 137
    assert "was killed by signal 9 (KILL)" in errors and "memory runs out" in errors


@pytest.mark.parametrize(("failures", "code"), [(1, 0), (9, 139)])
def test_a_stumble_of_open_mpi_is_tried_again(machine, tmp_path, failures, code):
    body = (
        f"echo >>{tmp_path}/starts\n"
        f"[ $(wc -l <{tmp_path}/starts) -gt {failures} ] && exit 0\n"
        "echo 'libmpi.so.40(mca_pml_ob1_recv_frag_callback_match+0x95)[0x7fd9]' >&2\n"
        "echo 'libmpi.so.40(ompi_mpi_init+0x425)[0x7fd9]' >&2\n"
        "kill -SEGV $$"
    )
    process = start(machine, tmp_path, body)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code, errors
    assert errors.count("starting the ranks again") == min(failures, 2)
    assert len((tmp_path / "starts").read_text().splitlines()) == min(failures + 1, 3)


def test_any_other_failure_is_not_tried_again(machine, tmp_path):
    process = start(machine, tmp_path, f"echo >>{tmp_path}/starts; kill -SEGV $$")
    assert "starting the ranks again" not in process.communicate(timeout=60)[1]
    assert process.returncode == 139
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


@pytest.mark.parametrize("code", [0, 3])
def test_logs_that_do_not_answer_do_not_hold_up_the_end(machine, tmp_path, code):
    machine.add("ls", 'case $1 in */logs/*) exec sleep 100 ;; esac; exec /bin/ls "$@"')
    process = start(machine, tmp_path, f"echo what it said; exit {code}")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code and "what it said" in output
    assert f"ended with code {code}, and {machine.results}/" in errors
    assert "does not answer: its file system is down" in errors


def start_stoppable(machine, tmp_path, when_asked):
    """Starts a rank that ends only on request, with code 75; returns once it is under way."""
    body = (
        f"trap '{when_asked}; exit 75' USR1; trap 'exit 99' TERM INT; : >{tmp_path}/ready\n"
        "for ((i = 0; i < 600; i++)); do sleep 0.1; done"
    )
    process = start(machine, tmp_path, body)
    wait_for("ready", tmp_path)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_become_one_request_to_stop(machine, tmp_path, number):
    process = start_stoppable(machine, tmp_path, "echo asked")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "asked" in output and "the same command continues" in errors


@pytest.fixture
def heard_hang_ups():
    """Under nohup too, whose ignored signal is handed down to what is started."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard_hang_ups")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_ranks_are_asked_to_stop_though_nobody_hears_the_launcher(machine, tmp_path, number):
    process = start_stoppable(machine, tmp_path, f": >{tmp_path}/asked")
    process.stdout.close()
    process.stderr.close()
    process.send_signal(number)
    wait_for("asked", tmp_path)
    assert process.wait(timeout=60) == (75 if number == signal.SIGHUP else -signal.SIGKILL)


@pytest.mark.parametrize(("refusals", "said"), [(2, "is in the queue again"), (9, "submit the")])
def test_a_busy_controller_is_asked_again_to_requeue(machine, tmp_path, refusals, said):
    machine.add_slurm(mpi="none")
    machine.add(
        "scontrol",
        f'[ "$1" = requeue ] || exit 0; echo >>{tmp_path}/asked\n'
        f"[ $(wc -l <{tmp_path}/asked) -gt {refusals} ]",
    )
    body = f"trap 'exit 75' USR1; : >{tmp_path}/ready\nwhile :; do sleep 0.1; done"
    variables = {**in_job(nodes=1, tasks=1), "REQUEUE_RETRY_SECONDS": "0.1"}
    process = start(machine, tmp_path, body, **variables)
    wait_for("ready", tmp_path)
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=60)[1]
    assert said in errors and process.returncode == 75, errors
    assert len((tmp_path / "asked").read_text().splitlines()) == min(refusals + 1, 5)


@pytest.mark.parametrize(
    ("saved", "said"),
    [("00000012", "is in the queue again"), ("00000009", "submit it with more --time")],
)
def test_a_chain_of_jobs_ends_where_one_comes_no_further(machine, tmp_path, saved, said):
    machine.add_slurm(mpi="none")
    machine.add("squeue", "echo 10:00 9:00")
    run = tmp_path / "run"
    run.mkdir()
    (run / "ckpt-00000009.index").touch()
    variables = {"CHAIN": "1", "MODEL_DIR": str(run)}
    save = f": >{run}/ckpt-{saved}.index"
    body = f"trap '{save}; exit 75' USR1; : >{tmp_path}/ready\nwhile :; do sleep 0.1; done"
    process = start(machine, tmp_path, body, **in_job(nodes=1, tasks=1), **variables)
    wait_for("ready", tmp_path)
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=60)[1]
    assert said in errors and process.returncode == 75, errors


def test_a_signal_before_the_rank_can_answer_means_start_again(machine, tmp_path):
    process = start(machine, tmp_path, f": >{tmp_path}/ready; exec sleep 30")
    wait_for("ready", tmp_path)
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "stopped on request (code 75)" in errors and "after a save" not in errors


def test_a_second_signal_ends_the_ranks(machine, tmp_path):
    body = (
        f"trap 'echo asked' USR1; : >{tmp_path}/ready\n"
        "for ((i = 0; i < 600; i++)); do sleep 0.1; done"
    )
    process = start(machine, tmp_path, body)
    wait_for("ready", tmp_path)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 137


def wait_until_gone(pids, seconds=20):
    wait_until(
        lambda: not any(map(is_running, pids)),
        lambda: f"still there: {list(filter(is_running, pids))}",
        seconds=seconds,
    )


@pytest.mark.parametrize("launcher", ["plain", "mpirun", "horovodrun"])
def test_ranks_of_a_killed_launcher_stop_as_after_a_signal(machine, tmp_path, launcher):
    variable = "HOROVOD_" if launcher == "horovodrun" else "OMPI_COMM_WORLD_"
    stub = MPIRUN.replace("OMPI_COMM_WORLD_", variable).replace('"$@" &', '"$@" & pids+=" $!";')
    machine.add(launcher, f"trap 'kill -USR1 $pids' USR1\n{stub.partition('code=0')[0]}wait; wait")
    body = f"trap 'echo asked; exit 75' USR1; : >{tmp_path}/ready-$$\nwhile :; do sleep 0.1; done"
    ranks = 1 if launcher == "plain" else 2
    process = start(machine, tmp_path, body, NGPU=str(ranks), LAUNCHER=launcher)
    ready = wait_until(
        lambda: found if len(found := list(tmp_path.glob("ready-*"))) == ranks else None,
        lambda: f"{ranks} ranks never started",
    )
    process.kill()
    wait_until_gone([int(path.name.removeprefix("ready-")) for path in ready])
    _, errors = process.communicate(timeout=30)
    assert "the launcher was killed: the ranks are asked to finish" in errors
    ends = [p.read_text().split()[2] for p in machine.results.glob("*/logs/*/*.end")]
    assert ends == ["75"] * ranks


@pytest.mark.parametrize("stopped", [False, True])
def test_one_signal_ends_ranks_that_do_not_answer(machine, tmp_path, stopped):
    body = f"trap '' USR1 TERM; : >{tmp_path}/ready-$$\nwhile :; do sleep 0.1; done"
    process = start(machine, tmp_path, body, STOP_SECONDS="1")
    pid = int(wait_for("ready-*", tmp_path).name.removeprefix("ready-"))
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 14, errors
    assert "have not ended 1 s after they were asked to (STOP_SECONDS)" in errors
    wait_until_gone([pid], seconds=1)
    assert process.returncode == 137


def test_the_first_rank_to_fail_is_the_one_that_is_told(machine, tmp_path):
    machine.add("mpirun", MPIRUN)
    body = "[ $OMPI_COMM_WORLD_RANK = 1 ] && { echo 'disk full'; exit 4; }; sleep 0.5; exit 5"
    process = start(machine, tmp_path, body, NGPU="2")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "rank 1 on" in errors and "| disk full" in errors and "rank 0 on" not in errors
    assert "disk full" not in output, "only rank 0 speaks on the console"


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sleep 0.5; kill -KILL $$", "rank 1 on"),
        ("sleep 0.5; echo 'ERROR (rank 1 of 2 on a): disk full'; exit 1", "rank 1 on"),
        ("sleep 0.5; echo 'nothing to say'; exit 1", "rank 0 on"),
        ("sleep 3; kill -KILL $$", "rank 0 on"),
    ],
)
def test_a_rank_that_heard_of_a_death_is_not_its_cause(machine, tmp_path, end, told):
    machine.add("mpirun", MPIRUN)
    process = start(machine, tmp_path, f"[ $OMPI_COMM_WORLD_RANK = 0 ] && exit 14\n{end}", NGPU="2")
    errors = process.communicate(timeout=60)[1]
    assert [rank for rank in ("rank 0 on", "rank 1 on") if rank in errors] == [told], errors


def test_ranks_that_stopped_in_order_do_not_look_like_failures_to_mpirun(machine, tmp_path):
    machine.add("mpirun", MPIRUN.replace("exit $code", 'echo "mpirun saw $code"; exit $code'))
    process = start(machine, tmp_path, "exit 75", NGPU="2")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "mpirun saw 0" in output


def test_a_launcher_that_starts_nothing_is_told(machine, tmp_path):
    machine.add("mpirun", "echo 'no slots' >&2; exit 213")
    process = start(machine, tmp_path, "exit 0", NGPU="2")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 213
    assert "mpirun ended with code 213 before any rank had started" in errors


@pytest.mark.parametrize(
    ("nproc", "bind", "here", "expected"),
    [
        (8, "auto", "2", ["0,4,1,5", "2,6,3,7"]),
        (8, "auto", "4", ["0,4", "1,5"]),  # more ranks on this host than on others
        (8, "none", "2", ["", ""]),
        (4, "auto", "2", ["", ""]),  # the launcher has bound the ranks already
    ],
)
def test_ranks_share_the_cores(machine, tmp_path, nproc, bind, here, expected):
    machine.add("mpirun", MPIRUN)
    machine.add("nproc", f"echo {nproc}")
    machine.add("getconf", "echo 8")
    # Two NUMA nodes of two cores with two threads each, numbered as Linux does.
    table = "0,0,0 0,1,1 1,2,2 1,3,3 0,0,4 0,1,5 1,2,6 1,3,7".replace(" ", "\\n")
    machine.add("lscpu", f"printf '# NODE,CORE,CPU\\n{table}\\n'")
    machine.add("taskset", f"echo $2 >{tmp_path}/bound-$OMPI_COMM_WORLD_RANK")
    variables = {"BIND": bind, "OMPI_COMM_WORLD_LOCAL_SIZE": here}
    process = start(machine, tmp_path, "exit 0", NGPU="2", **variables)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    files = [tmp_path / f"bound-{rank}" for rank in (0, 1)]
    assert [f.read_text().strip() if f.exists() else "" for f in files] == expected


def test_ranks_of_horovodrun_are_asked_to_stop_one_by_one(machine, tmp_path):
    machine.add("horovodrun", MPIRUN.replace("OMPI_COMM_WORLD_", "HOROVOD_"))
    body = f"trap 'exit 75' USR1; : >{tmp_path}/ready-$HOROVOD_RANK\nwhile :; do sleep 0.1; done"
    process = start(machine, tmp_path, body, NGPU="2", LAUNCHER="horovodrun")
    for rank in (0, 1):
        wait_for(f"ready-{rank}", tmp_path)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    ends = sorted(p.read_text().split()[2] for p in machine.results.glob("*/logs/*/*.end"))
    assert ends == ["75", "75"]


def test_the_reason_is_told_where_the_launcher_was_faster_than_the_record_of_the_end(
    machine, tmp_path
):
    said = "ERROR (rank 0 of 2 on node7): rank 1 of 2 on node8 is frozen"
    process = start(machine, tmp_path, f"echo '{said}'; sleep 0.3; kill -KILL $PPID; sleep 9")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 137, errors
    assert f"ended with code 137: {said}" in errors and "without a word" not in errors
