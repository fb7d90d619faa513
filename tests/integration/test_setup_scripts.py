"""The set-up scripts: what they say before anything is installed, on machines made of stubs.

Each test gives the script a PATH that holds the usual small tools and nothing else, then adds a
Python, a compiler or a uv that answers as the case needs. The real installation is what
`./run_tests.sh` itself goes through.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_files import own_files
from stub_machine import StubMachine

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "scripts" / "setup_env.sh"
TOOLS = (
    "awk basename bash cat chmod cut date df dirname env find flock getconf grep head id ln mkdir "
    "mktemp mv nproc rm sed setsid sh sha256sum sleep sort tail timeout touch tr uname wc"
).split()
PYTHON_STUB = """\
case "$1" in
  -c) echo {version} ;;
  *) echo "no module named venv" >&2; exit 1 ;;
esac
"""


class Machine(StubMachine):
    """Stubs, a home, and a folder for the environment."""

    def __init__(self, folder: Path):
        super().__init__(folder, TOOLS)
        self.venv = folder / "venv"
        self.home = folder / "home"
        self.home.mkdir()

    def add_python(self, version: str, name: str = "python3") -> Path:
        """Puts a Python into PATH that tells its version and can do nothing else."""
        return self.add(name, PYTHON_STUB.format(version=version))

    def set_up(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs setup_env.sh on this machine."""
        return subprocess.run(
            ["bash", str(SETUP), "--venv", str(self.venv), *arguments],
            env={"PATH": str(self.bin), "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    """A machine with Python 3.11 and a compiler that accepts everything."""
    machine = Machine(tmp_path)
    machine.add_python("3.11.7")
    machine.add("g++", "exit 0")
    return machine


def assert_fails(result: subprocess.CompletedProcess, *words: str) -> None:
    """Checks for a failure explained in one paragraph with the words."""
    assert result.returncode == 1, result.stdout + result.stderr
    message = result.stderr.strip().split("\n\n")[-1]
    assert message.startswith("setup_env.sh: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def shell_scripts() -> tuple:
    """Returns all shell scripts of the repository."""
    by_name = own_files("**/*.sh", "slurm/*.sub", "scripts/launch/*")
    return (*by_name, ROOT / ".ci" / "run")


def test_shell_scripts_pass_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck comes with scripts/setup_env.sh --extra dev")
    result = subprocess.run(
        [shellcheck, *shell_scripts()], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_commands_can_be_run():
    for path in (ROOT / "quickstart.sh", ROOT / "run_tests.sh", SETUP, ROOT / ".ci" / "run"):
        assert os.access(path, os.X_OK), path


@pytest.mark.parametrize("name", ["quickstart.sh", "run_tests.sh", "scripts/setup_env.sh"])
def test_help_answers_without_installing(machine, name):
    result = subprocess.run(
        ["bash", str(ROOT / name), "--help"],
        env={"PATH": str(machine.bin), "RINGDET_VENV": str(machine.venv)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: ")
    assert not machine.venv.exists()


def test_help_of_the_quick_start_names_all_options():
    defined = re.findall(
        r'add_argument\(\s*"(--\w+)"', (ROOT / "scripts/quickstart.py").read_text()
    )
    said = (ROOT / "quickstart.sh").read_text()
    assert len(defined) > 10 and [option for option in defined if option not in said] == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--extras", "dev"], "--extras"),
        (["--extra", "deb"], "dev, eval and export"),
        (["--device", "tpu"], "cpu or gpu"),
        (["--mpi"], "needs a value"),
    ],
)
def test_wrong_arguments_are_named(machine, arguments, word):
    result = machine.set_up(*arguments)
    assert result.returncode == 2
    assert word in result.stderr
    assert not machine.venv.exists()


def test_missing_compiler(machine):
    (machine.bin / "g++").unlink()
    assert_fails(machine.set_up(), "no C++ compiler found", "sudo apt-get install g++")
    assert not (machine.venv / "bin").exists()


def test_compiler_that_does_not_compile(machine):
    machine.add("g++", "echo 'fatal error: optional: No such file' >&2; exit 1")
    assert_fails(machine.set_up(), "does not build", "fatal error: optional")


def test_no_python(machine):
    (machine.bin / "python3").unlink()
    assert_fails(machine.set_up(), "no Python found", "sudo apt-get install python3.11")


def test_too_new_python_without_network(machine):
    machine.add_python("3.13.1")
    assert_fails(
        machine.set_up(),
        "python3 is 3.13.1",
        "needs Python 3.10, 3.11 or 3.12",
        "pyenv install 3.11",
    )


def test_too_new_python_and_uv_that_cannot_download(machine):
    machine.add_python("3.13.1")
    machine.add("uv", "echo '  cause: dns error' >&2; exit 2")
    assert_fails(machine.set_up(), "uv could not download 3.11 (cause: dns error)", "--python PATH")


def test_uv_brings_a_python(machine, tmp_path):
    machine.add_python("3.13.1")
    brought = machine.add_python("3.11.9", name="from-uv")
    machine.add(
        "uv",
        f'if [ "$2" = install ]; then touch {tmp_path}/installed; exit 0; fi\n'
        f"[ -e {tmp_path}/installed ] && echo {brought}",
    )
    result = machine.set_up()
    assert f"creating the environment with {brought} (3.11.9)" in result.stdout


def test_a_shim_that_does_not_start_is_passed_over(machine):
    machine.add("python3.11", "echo 'command not found' >&2; exit 127")
    machine.add_python("3.10.4", name="python3.10")
    assert "python3.10 (3.10.4)" in machine.set_up().stdout


@pytest.mark.parametrize(
    ("version", "stack", "words"),
    [
        ("3.12.0", "old", ("is Python 3.12.0", "2.15.1", "3.9, 3.10 or 3.11")),
        ("3.9.18", "new", ("is Python 3.9.18", "2.19.1", "3.10, 3.11 or 3.12")),
    ],
)
def test_wished_python_of_a_wrong_version(machine, version, stack, words):
    path = machine.add_python(version, name="other")
    assert_fails(machine.set_up("--python", str(path), "--stack", stack), *words)


@pytest.mark.parametrize(
    ("pythons", "ngc", "expected"),
    [
        (["3.12.4"], "", "new"),
        (["3.10.4"], "", "new"),
        (["3.9.18"], "", "old"),
        (["3.10.12"], "24.03-tf2", "old"),
    ],
)
def test_which_stack(machine, pythons, ngc, expected):
    for version in pythons:
        machine.add_python(version, "python" + ".".join(version.split(".")[:2]))
    machine.add_python(pythons[0])  # whose answer stands for TensorFlow being 2.15
    machine.set_up(NVIDIA_TENSORFLOW_VERSION=ngc)
    assert f"stack={expected} " in (machine.venv / "setup.log").read_text()


def test_python_without_venv(machine):
    assert_fails(machine.set_up(), "cannot make a virtual environment", "python3-venv")


def test_little_disk(machine):
    machine.add("df", "echo header; echo /dev/x 1000 900 100 90% /")
    assert_fails(machine.set_up(), "only 100 MB are free", "--venv DIR")


def test_system_mpi_asked_for_and_not_there(machine):
    assert_fails(machine.set_up("--mpi", "system"), "mpicxx and mpirun", "libopenmpi-dev")


def test_the_mpi_of_an_active_environment_is_not_the_systems(machine, tmp_path):
    """It would be gone with that environment, and found only while it is active."""
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    for name, says in (("mpicxx", "exit 0"), ("mpirun", "echo sum=3")):
        machine.add(name, says).rename(other / "bin" / name)
    path = f"{other}/bin:{machine.bin}"
    assert "MPI: the system's" in machine.set_up(PATH=path).stdout
    (other / "pyvenv.cfg").write_text("home = /usr/bin")
    assert "MPI: Open MPI as a Python package" in machine.set_up(PATH=path).stdout
    assert_fails(machine.set_up("--mpi", "system", PATH=path), "mpicxx and mpirun")


def test_unwritable_folder(machine, tmp_path):
    (tmp_path / "file").write_text("")
    machine.venv = tmp_path / "file" / "venv"
    assert_fails(machine.set_up(), "cannot write to", "--venv DIR")


def test_a_folder_that_is_no_environment_is_not_emptied(machine):
    machine.venv.mkdir()
    precious = machine.venv / "thesis.tex"
    precious.write_text("years of work")
    assert_fails(machine.set_up(), "is not a virtual environment")
    assert precious.read_text() == "years of work"


def test_a_half_made_environment_is_made_anew(machine):
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "pyvenv.cfg").write_text("home = /nowhere")
    (machine.venv / "bin" / "python").write_text("cut off")
    result = machine.set_up()
    assert "making it anew" in result.stdout
    assert not (machine.venv / "bin" / "python").exists()


def finish(machine: Machine, *, extras: tuple = (), stack: str = "new") -> None:
    """Makes what a finished set-up leaves, so far as the quick check looks at it."""
    (machine.venv / "bin").mkdir(parents=True)
    state = machine.venv / ".ringdet"
    state.mkdir()
    for name in ("python", "mpirun"):
        stub = machine.add("finished", PYTHON_STUB.format(version="3.11.7"))
        shutil.copy(stub, machine.venv / "bin" / name)
    identity = ["python=3.11.7", "device=cpu", "mpi=pip", f"venv={machine.venv}", f"stack={stack}"]
    identity.append(f"mpirun={machine.venv}/bin/mpirun")
    (state / "identity").write_text("\n".join(identity) + "\n")
    (state / "horovod").write_text("key\n")
    for stamp, locks in {
        "packages": ["cpu", "build", "mpi"],
        **{f"extra-{name}": [name] for name in extras},
    }.items():
        content = b"".join(
            (ROOT / "requirements" / stack / f"{lock}.txt").read_bytes() for lock in locks
        )
        (state / stamp).write_text(hashlib.sha256(content).hexdigest()[:16] + "\n")


@pytest.mark.parametrize("stack", ["old", "new"])
def test_a_finished_environment_answers_at_once(machine, stack):
    finish(machine, extras=("dev",), stack=stack)
    started = time.monotonic()
    result = machine.set_up("--extra", "dev")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Environment is ready" in result.stdout
    assert f"{stack} stack" in result.stdout
    assert time.monotonic() - started < 5  # 0.3 s alone; pip would take longer
    assert not (machine.venv / "setup.log").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: (state / "packages").write_text("another lock\n"),
        lambda state: (state / "extra-dev").unlink(),
        lambda state: (state / "horovod").unlink(),
        lambda state: (state.parent / "bin" / "python").unlink(),
        lambda state: (state / "identity").write_text("venv=/before/it/was/moved\n"),
    ],
)
def test_an_outdated_environment_is_not_called_ready(machine, change):
    finish(machine, extras=("dev",))
    change(machine.venv / ".ringdet")
    assert "Environment is ready" not in machine.set_up("--extra", "dev").stdout


def test_a_second_set_up_waits_for_the_first(machine):
    machine.venv.mkdir()
    with subprocess.Popen(["flock", str(machine.venv / ".setup-lock"), "sleep", "2"]):
        time.sleep(0.5)
        assert "is running: waiting" in machine.set_up().stdout


@pytest.mark.slow
def test_unreachable_package_index(machine):
    (machine.bin / "python3").unlink()
    (machine.bin / "python3").symlink_to(Path(sys.executable).resolve())
    result = machine.set_up(
        PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0", PIP_CONFIG_FILE="/dev/null"
    )
    assert_fails(
        result, "could not be downloaded", "PIP_INDEX_URL", "what is already there is kept"
    )


def unmet(requirements: str, tmp_path: Path, **environment: str) -> list:
    """Runs unmet_requirements.py in this Python."""
    path = tmp_path / "lock.txt"
    path.write_text(requirements)
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "setup" / "unmet_requirements.py"), str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


def test_unmet_requirements(tmp_path):
    requirements = f"""# a lock file
pytest=={pytest.__version__}   # in place
pytest==0.0.1
surely-not-installed==1.0
also-not-installed==1.0 ; python_version < '3'
"""
    assert unmet(requirements, tmp_path) == ["pytest==0.0.1", "surely-not-installed==1.0"]


@pytest.mark.parametrize(("size", "expected"), [(6, []), (7, ["cutoff==1.0"])])
def test_a_package_with_a_truncated_file_is_unmet(tmp_path, size, expected):
    site = tmp_path / "site"
    (site / "cutoff-1.0.dist-info").mkdir(parents=True)
    (site / "cutoff-1.0.dist-info" / "METADATA").write_text("Name: cutoff\nVersion: 1.0\n")
    (site / "cutoff-1.0.dist-info" / "RECORD").write_text(f"cutoff.py,sha256=x,{size}\n")
    (site / "cutoff.py").write_text("x = 1\n")
    assert unmet("cutoff==1.0", tmp_path, PYTHONPATH=str(site)) == expected


XLA_LINE = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'
OTHER_LINE = XLA_LINE.replace("xla_mpi_ops", "mpi_ops")


@pytest.mark.parametrize(
    ("stack", "sources", "expected"),
    [
        ("new", OTHER_LINE + XLA_LINE, OTHER_LINE),
        ("old", OTHER_LINE + XLA_LINE, OTHER_LINE + XLA_LINE),
        ("new", OTHER_LINE, None),
    ],
)
def test_what_is_taken_out_of_horovod(tmp_path, stack, sources, expected):
    folder = tmp_path / "horovod-0.28.1" / "horovod" / "tensorflow"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(sources)
    shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "horovod-0.28.1")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    program = f"""
      stack={stack} venv={tmp_path}/venv state={tmp_path}/state log=/dev/null
      fail() {{ echo "setup_env.sh: $1" >&2; exit 1; }}
      run_logged() {{ cp {tmp_path}/packed.tar.gz "$state/source/horovod-0.28.1.tar.gz"; }}
      source {ROOT}/scripts/setup/horovod.sh
      unpack_horovod && cat "$(horovod_source)/horovod/tensorflow/CMakeLists.txt"
    """
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    if expected is None:
        assert_fails(result, "not the one line that names xla_mpi_ops.cc", "--stack old")
    else:
        assert result.stdout == expected, result.stderr


def pins(stack: str, name: str) -> dict:
    """Returns {(package, marker): version} of a lock file; fails on a line that pins nothing."""
    found = {}
    for line in (ROOT / "requirements" / stack / name).read_text().splitlines():
        text = line.split("#")[0].strip()
        if text:
            match = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z-]+\])?==([^ ;]+)(?: ; (.+))?", text)
            assert match, f"{name}: {line}"
            found[match[1], match[3]] = match[2]
    return found


@pytest.mark.parametrize(("stack", "tensorflow"), [("old", "2.15.1"), ("new", "2.19.1")])
def test_lock_files_agree(stack, tensorflow):
    cpu = pins(stack, "cpu.txt")
    assert cpu["tensorflow-cpu", None] == pins(stack, "gpu.txt")["tensorflow", None] == tensorflow
    assert ("tensorflow", None) not in cpu  # each overwrites the files of the other
    for name in ("gpu.txt", "dev.txt", "eval.txt", "export.txt", "build.txt"):
        versions = {package: set() for package, _ in cpu}
        for (package, _), version in cpu.items():
            versions[package].add(version)
        for (package, _), version in pins(stack, name).items():
            if package in versions:
                assert version in versions[package], f"{name}: {package}"


@pytest.mark.parametrize("stack", ["old", "new"])
@pytest.mark.parametrize("name", ["cpu", "gpu", "dev", "eval", "export", "build", "mpi"])
def test_every_direct_requirement_is_locked(name, stack):
    def text_of(path: Path) -> str:
        lines = path.read_text().splitlines()
        included = [path.parent / line[3:] for line in lines if line.startswith("-r ")]
        return "\n".join([*lines, *map(text_of, included)])

    own = ROOT / "requirements" / stack / f"{name}.in"
    text = text_of(own if own.exists() else ROOT / "requirements" / f"{name}.in")
    direct = re.findall(r"^([A-Za-z][\w-]*)", text, flags=re.MULTILINE)
    assert direct
    assert {package.lower().replace("_", "-") for package in direct} <= {
        package for package, _ in pins(stack, f"{name}.txt")
    }
