"""Files of others: what must not be opened, what is too deep or too large, and how it is said."""

import os
import re

import h5py
import numpy as np
import pytest
from own_files import ROOT, own_files

from engine.files.weight_files import read_weight_file
from object_detection.coco.annotations import read_annotations
from object_detection.records.card import load_card
from outside_data import files


def laughs() -> str:
    lines = ["a: &a [ha, ha]"]
    lines += [f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghijk", "bcdefghijkl")]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 5_000,
        laughs(),
        laughs().replace("[", "[{<<: [").replace("]", "]}]"),
        "a: &a [*a]",
        "a: 2020-99-99",
        "a: " + "9" * 10_000,
        "? [a, {}]\n: 1",
        "a: !!python/object/apply:os.system ['true']",
        "\x00",
    ],
)
def test_yaml_that_is_none(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(files.BadFileError, match=r"recipe.yaml: not readable as YAML: .+\. Corr"):
        files.read_yaml(path)


@pytest.mark.parametrize(
    ("written", "number"),
    [("1e-4", 0.0001), ("-5E+2", -500.0), ("1.5e3", 1500.0), ("2_0", 20), ("e4", "e4")],
)
def test_yaml_numbers_need_no_point(tmp_path, written, number):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"rate: {written}\nrates: [{written}]\n")
    assert files.read_yaml(path) == {"rate": number, "rates": [number]}
    assert files.read_yaml(path, as_text=True) == {"rate": written, "rates": [written]}


@pytest.mark.parametrize("as_text", [False, True])
def test_yaml_with_a_key_twice_is_refused_by_its_line(tmp_path, as_text):
    path = tmp_path / "recipe.yaml"
    path.write_text("optim:\n  rate: 1\nseed: 2\noptim:\n  momentum: 3\n")
    with pytest.raises(files.BadFileError, match="recipe.yaml: .* 'optim' stands twice .* line 4"):
        files.read_yaml(path, as_text=as_text)


def test_yaml_with_aliases_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert files.read_yaml(path)["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 10_000, "{", "\x00"])
@pytest.mark.parametrize("read", [files.read_json, read_annotations, load_card])
def test_json_that_is_none(tmp_path, text, read):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="x.json") as error:
        read(path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("read", [files.read_json, files.read_yaml, files.read_text])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)
    for path in (tmp_path / "absent", "a\0b"):
        with pytest.raises(FileNotFoundError):
            read(path)


def test_a_disk_that_fails_is_told_with_the_file():
    with pytest.raises(OSError, match="error: '/proc/self/mem'"):
        files.read_file("/proc/self/mem")


def test_a_limit_of_bytes(tmp_path):
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(files.MOST_YAML_BYTES + 1)
    with pytest.raises(files.BadFileError, match=r"524,289 bytes, more than the 524,288"):
        files.read_yaml(path)


def h5_file(path, fill) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        file.create_group("conv").attrs["weight_names"] = [b"conv/kernel:0"]
        fill(file["conv"].create_group("conv"))


def external(group):
    group.create_dataset("kernel:0", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def external_link(group):
    group["kernel:0"] = h5py.ExternalLink("other.h5", "/x")


def soft_link(group):
    group["kernel:0"] = h5py.SoftLink("/elsewhere")


def virtual(group):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    group.create_virtual_dataset("kernel:0", layout)


def bomb(group):
    group.create_dataset("kernel:0", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize("fill", [external, external_link, soft_link, virtual, bomb])
def test_weights_lie_in_their_own_file(tmp_path, fill):
    h5_file(tmp_path / "w.h5", fill)
    with pytest.raises(files.BadFileError, match=r"w.h5: .*(refused|16 times)"):
        read_weight_file(tmp_path / "w.h5")


def test_weights_in_their_own_file_are_read(tmp_path):
    h5_file(tmp_path / "w.h5", lambda group: group.create_dataset("kernel:0", data=np.ones(3)))
    assert read_weight_file(tmp_path / "w.h5").arrays["conv/kernel"].sum() == 3


# Files of the run's own, of the machine, or of this project, read where they are written.
OWN_READERS = {
    "benchmarks": "what another benchmark has written",
    "scripts": "what the same script has written; lists of this project's requirements",
    "engine/start/run_lock.py": "/proc",
    "engine/ranks/distributed.py": "what ranks send one another",
    "engine/ranks/watch.py": "what ranks send one another",
    "engine/ranks/machine.py": "counters of the kernel",
    "engine/ranks/preflight.py": "regular files, to see whether they can be read",
    "engine/files/checkpoint.py": "what it has just written, to put it on the disk",
    "engine/log/event_file.py": "the pictures of an evaluation that has just ended",
    "engine/log/outside_loggers.py": "the page of an evaluation that has just ended",
    "object_detection/masks/rle.py": "PNG bytes, whose size is checked first",
    "object_detection/report/pictures.py": "pictures that it has drawn",
    "object_detection/report/history.py": "one line of limited length",
    "engine/files/zoo.py": "its own table, and files that it has fetched",
    "engine/files/checksums.py": "what it is about to write",
    "engine/run.py": "what it is about to write",
    "engine/config/fields.py": "a copy of its own settings",
    "engine/start/batch_size.py": "counters of the kernel, and what its own trials said",
    "object_detection/serve/run_script.py": "text of programs that run without this repository",
    "dataset/embedded/photos.py": "pictures of installed packages",
    "keras_choice": "descriptions of installed packages",
    "outside_data": "the door itself",
}
READING = re.compile(
    r"""\bjson\.loads?\(|\byaml\.\w*load\w*\(|\bpickle\.loads?\(|\bnp\.load\(|\.read_(?:text|bytes)\(
    |\bImage\.open\(|\bopen\([^)]*"r|\bopen\(\)|\bopen\((?:path|file|name)\)|\.open\("rb"\)""",
    re.VERBOSE,
)


def test_what_comes_from_others_is_read_through_one_door():
    raw = set()
    for path in own_files("**/*.py"):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(("tests/", ".")) or any(
            place == known or place.startswith(f"{known}/") for known in OWN_READERS
        ):
            continue
        lines = path.read_text().splitlines()
        raw |= {
            f"{place}:{n}: {line.strip()}"
            for n, line in enumerate(lines, 1)
            if READING.search(line)
        }
    assert raw == set(), "read it with outside_data.files, or say whose the file is"
