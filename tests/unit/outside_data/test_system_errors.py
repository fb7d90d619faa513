"""What is said where the operating system refuses a file, and by the commands that are refused."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from outside_data.system_errors import explained

ROOT = Path(__file__).resolve().parents[3]
# Root without the right to pass over modes; others have none to lose.
PLAIN = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
MODES_COUNT = pytest.mark.skipif(
    subprocess.run(["/bin/sh", "-c", " ".join([*PLAIN, "true"])], check=False).returncode != 0,
    reason="root may not give up its rights here",
)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device: free some space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "Read-only file system: name a folder elsewhere"),
        (errno.ENOTDIR, "a part of this path is a file"),
        (errno.EISDIR, "this is a folder"),
        (errno.EEXIST, "something else has this name"),
        (errno.ENAMETOOLONG, "a shorter one"),
        (errno.ELOOP, "leads back to itself"),
        (errno.EMFILE, "`ulimit -n`"),
        (errno.EIO, "`dmesg`"),
        (errno.ESTALE, "file server fails"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number, says):
    said = explained(OSError(number, os.strerror(number), "/data/a\x1b[31m"))
    assert said.startswith("/data/a\\x1b[31m: ") and says in said


def test_a_disk_that_fills_while_an_open_file_is_written_says_what_to_do():
    with pytest.raises(OSError) as caught, open("/dev/full", "w", buffering=1) as file:
        file.write("line\n")
    assert explained(caught.value).startswith("No space left on device: free some space")


@pytest.mark.parametrize(
    "error",
    [OSError("only words"), ValueError("5"), OSError(5, "no file"), OSError(5, "numbered", 77)],
)
def test_errors_of_no_file_stay_as_they_are(error):
    assert explained(error) == str(error)


def test_a_name_that_is_no_utf8_is_shown_with_what_to_do():
    with pytest.raises(UnicodeEncodeError) as caught:
        os.fsdecode(b"/data/caf\xe9").encode()
    said = explained(caught.value)
    assert said.startswith("/data/caf\\udce9: a name that is no utf-8") and "rename it" in said


def test_a_refused_folder_is_named_not_what_was_to_be_made_in_it(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed/a/b"))
    said = explained(error)
    assert f"no permission for {tmp_path}/closed/a/b: {tmp_path}/closed is " in said
    assert "with mode dr-x------" in said and "chmod" in said


@pytest.fixture
def closed(tmp_path):
    """A folder and a file that nobody may use."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "closed").mkdir()
    (tmp_path / "file.json").write_text("{}")
    folders = (tmp_path / "closed", tmp_path / "data" / "closed")
    for path in (*folders, tmp_path / "file.json"):
        path.chmod(0)
    yield tmp_path
    for path in folders:
        path.chmod(0o700)


NIGHTLY = pytest.mark.nightly


@MODES_COUNT
@pytest.mark.parametrize(
    ("command", "blames"),
    [
        ("-m dataset.check {0}/closed", "closed"),
        ("-m dataset.convert {0}/data --output_dir={0}/out", "data/closed"),
        ("train.py --data=testdata --model_dir={0}/closed/run", "closed/run-data"),
        pytest.param("train.py --data={0}/data --model_dir={0}/run", "data/closed", marks=NIGHTLY),
        pytest.param(
            "train.py --model_dir={0}/run --recipe={0}/file.json --skip_test "
            "--training_file_pattern=testdata/*",
            "file.json",
            marks=NIGHTLY,
        ),
        pytest.param(
            "train.py --model_dir={0}/run --training_file_pattern={0}/closed/train-* --skip_test",
            "closed",
            marks=NIGHTLY,
        ),
        pytest.param(
            "infer.py --model_dir={0}/closed --image_path=testdata/img1.jpg --output_dir={0}/out",
            "closed/",
            marks=NIGHTLY,
        ),
    ],
)
def test_commands_name_what_they_may_not_use(closed, command, blames):
    words = [word.format(closed) for word in command.split()]
    done = subprocess.run(
        [*PLAIN, sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (1, 2)
    assert f"no permission for {closed}/{blames}" in done.stderr, done.stderr
    assert "with mode " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["-m dataset.check --help", "eval.py --help", "-m dataset.check {0}/none"]
)
def test_commands_end_quietly_where_nobody_reads_on(tmp_path, command):
    reading, writing = os.pipe()
    os.close(reading)
    words = [word.format(tmp_path) for word in command.split()]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr, done.stderr


@MODES_COUNT
@pytest.mark.parametrize("name", ["lost+found", ".Trash-1000"])
def test_a_folder_of_the_file_system_is_passed_over(closed, name):
    (closed / "data" / "closed").rename(closed / "data" / name)
    program = (
        "from pathlib import Path; from object_detection.convert.splits import _folders;"
        "from outside_data.files import walk;"
        "print(list(walk('.', follow_links=False)), list(_folders(Path(), depth=2)))"
    )
    done = subprocess.run(
        [*PLAIN, sys.executable, "-c", program],
        cwd=closed / "data",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    (closed / "data" / name).rename(closed / "data" / "closed")
    assert done.stdout.strip() == f"[('.', ['{name}'], [])] [PosixPath('.')]", done.stderr
