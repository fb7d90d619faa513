"""The documents say what is there: links, paths, flags, commands, ways back to old behaviour."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from own_files import own_files

from efficientdet.settings import base_config
from engine.config.fields import override, settings
from engine.config.recipe_yaml import parse_hparams
from maskrcnn.settings import MaskRcnnConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*own_files("*.md"), *own_files("docs/*.md")]

PAGES = (
    *("architecture", "coming_from", "data", "departures", "glossary", "inference"),
    *("maskrcnn", "maskrcnn_arguments", "performance", "reliability", "runs", "scaling", "stacks"),
    *("training", "troubleshooting"),
)

BENCHMARKS = tuple(
    path.stem for path in own_files("benchmarks/*.py") if "define_flags()" in path.read_text()
)

# Programs whose flags come out of the configuration: told by --helpfull.
CONFIGURED = ("train.py", "eval.py")
# Programs that the test has parse the documents' commands.
PARSED = (*CONFIGURED, "infer.py", "export.py", "dataset/create_coco_tfrecord.py")
# The TF2 reference's scripts for Mask R-CNN share their arguments.
TF2_SCRIPTS = {
    path.relative_to(ROOT).as_posix(): (path, path.with_name("tf2_command_line.py"))
    for path in own_files("scripts/maskrcnn/*.py")
}
# Every other program of a document -> the files that define its flags.
SOURCES = {
    **{name: (name, "families.py") for name in ("infer.py", "export.py")},
    "report.py": ("report.py",),
    **{name: (name,) for name in ("dataset/draw_examples.py", "dataset/get_coco.sh")},
    **{name: (name,) for name in ("dataset/get_coco2014.sh", "dataset/voc_to_coco.py")},
    **{name: ("dataset/check.py",) for name in ("dataset/check.py", "dataset.check")},
    **{
        f"dataset/{name}.py": (f"dataset/{name}.py", "dataset/commands.py")
        for name in ("convert", "create_coco_tfrecord")
    },
    "dataset/cityscapes_to_coco.py": ("dataset/cityscapes_to_coco.py",),
    **{name: (name,) for name in ("scripts/quickstart.py", "scripts/setup_env.sh")},
    "run_tests.sh": ("run_tests.sh",),
    "quickstart.sh": ("quickstart.sh", "scripts/quickstart.py"),
    "dataset.embedded.make_set": ("dataset/embedded/make_set.py",),
    **{
        f"benchmarks.{name}": (f"benchmarks/{name}.py", "benchmarks/model_flags.py")
        for name in BENCHMARKS
    },
    **{
        f"benchmarks/{name}.py": (f"benchmarks/{name}.py",)
        for name in ("run_exported", "compile_for_gpu")
    },
    **TF2_SCRIPTS,
}
PROGRAMS = (*CONFIGURED, *SOURCES)
# Flags of other programs that the running text mentions.
FOREIGN_FLAGS = {"--no-deps", "--allow-run-as-root", "--kill-on-bad-exit", "--help", "--gloo"}
FOREIGN_FLAGS |= {"--bind-to", "--ntasks-per-node"}
# The PyTorch reference's spellings, which are understood.
FOREIGN_FLAGS |= {"--config-file", "--skip-test", "--skip-eval", "--json-summary"}

# What the references' documents tell their users to start.
THEIR_PROGRAMS = {
    "EfficientDet-D0 for TensorFlow 2": (
        *("scripts/docker/build.sh", "scripts/docker/interactive.sh", "dataset/get_coco.sh"),
        *("dataset/create_coco_tfrecord.py", "train.py", "eval.py", "infer.py", "inspector.py"),
        *("scripts/D0/convergence-", "scripts/D0/evaluate-", "scripts/D0/training-benchmark-"),
        *("scripts/D0/inference-benchmark.sh", "scripts/D0/inference.sh", ".sub"),
    ),
    "Mask R-CNN for TensorFlow 2": (
        *("scripts/docker/build.sh", "scripts/docker/launch.sh"),
        *("dataset/download_and_preprocess_coco.sh", "scripts/download_weights.py"),
        *("scripts/train.py", "scripts/evaluate.py", "scripts/inference.py"),
        *("scripts/benchmark_training.py", "scripts/benchmark_inference.py"),
        *("main.py train", "main.py eval", "main.py infer"),
    ),
    "Mask R-CNN for PyTorch": (
        *("scripts/docker/build.sh", "scripts/docker/interactive.sh", "download_dataset.sh"),
        *("download_weights.sh", "verify_dataset.sh", "extract_dataset.sh", "scripts/train.sh"),
        *("scripts/eval.sh", "scripts/train_benchmark.sh", "scripts/inference.sh"),
        *("scripts/inference_benchmark.sh", "./train.sh", "test_fp16.sh", "test_fp32.sh"),
        *("tools/train_net.py", "tools/test_net.py", "convert_cityscapes_to_coco.py"),
        *("demo/webcam.py", "notebook"),
    ),
}

LINK = re.compile(r"\]\(([^)#\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*)")
FOLDERS = (
    *("benchmarks", "ctrl_c", "dataset", "detector", "docker", "docs", "efficientdet", "engine"),
    *("keras_choice", "maskrcnn", "object_detection", "outside_data", "path_names"),
    *("requirements", "ringdet", "scripts", "slurm", "tests"),
)
PATH = re.compile(
    rf"(?<![\w./-])(?:(?:{'|'.join(FOLDERS)})/[\w./*-]*|\w[\w./-]*\.(?:py|sh))(?![\w{{<])"
)


def ids(path: Path) -> str:
    return path.name


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def own_words(path: Path) -> str:
    """Returns what a document says of this repository: without the references' commands."""
    text = text_of(path)
    is_theirs = path.name == "coming_from.md"
    return re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.MULTILINE) if is_theirs else text


@functools.cache
def flags_of(program: str) -> frozenset[str]:
    """Returns the flags of a program; of an absl boolean x also nox."""
    if program in CONFIGURED:
        call = [sys.executable, program, "--helpfull"]
        text = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
        plain = re.findall(r"--(?:\[no\])?([A-Za-z]\w*)", text)
        return frozenset(plain) | {f"no{name}" for name in re.findall(r"--\[no\](\w+)", text)}
    found = set()
    for path in SOURCES[program]:
        text = text_of(ROOT / path)
        if Path(path).suffix == ".sh":
            found.update(FLAG.findall(text))
        if "define_results_flag(" in text:
            found.add("results")
        found.update(re.findall(r'(?:DEFINE_\w+\(\s*"|add_argument\(\s*"--)(\w+)"', text))
        found.update(re.findall(r"(\w+): \w+ = setting\(", text))
        switches = re.findall(r'DEFINE_bool\(\s*"(\w+)"|(\w+): bool = setting\(', text)
        found.update(f"no{''.join(names)}" for names in switches)
    return frozenset(found)


def shell_commands(text: str) -> list[list[str]]:
    """Returns the words of each command in the bash blocks, continuation lines joined."""
    commands = []
    for language, block in FENCE.findall(text):
        if language == "bash":
            lines = block.replace("\\\n", " ").splitlines()
            commands += [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [words for words in commands if words]


def split_at_program(words: list[str]) -> tuple[str | None, list[str]]:
    """Returns the program of this repository that a command starts, and its arguments."""
    for i, word in enumerate(words):
        name = word.removeprefix("./")
        if name in PROGRAMS:
            return name, words[i + 1 :]
    return None, []


def unknown_flags(text: str) -> list[str]:
    """Lists the flags that the program they stand with, or failing that any program, lacks."""
    wrong = []
    for words in shell_commands(text):
        program, arguments = split_at_program(words)
        for argument in arguments if program else ():
            flag = FLAG.match(argument)
            if flag and flag[1] not in flags_of(program):
                wrong.append(f"{program} --{flag[1]}")
    prose = FENCE.sub("", text)
    for span in re.findall(r"`([^`\n]+)`", prose):
        try:
            words = shlex.split(span)
        except ValueError:
            words = span.split()
        program, _ = split_at_program(words)
        names = [program] if program else list(PROGRAMS)
        for flag in FLAG.findall(span):
            if f"--{flag}" not in FOREIGN_FLAGS and not any(flag in flags_of(n) for n in names):
                wrong.append(f"--{flag} in `{span}`")
    return wrong


@functools.cache
def file_names() -> frozenset[str]:
    """Returns the names of all Python files and scripts of the repository."""
    return frozenset(path.name for path in own_files("**/*.py", "**/*.sh"))


def missing_paths(text: str) -> list[str]:
    """Lists the paths of this repository that a document names and that are not there."""
    missing = []
    for found in PATH.findall(text):
        name = found.rstrip(".,:;*/")
        is_bare_name = "/" not in name and name in file_names()
        if not is_bare_name and not list(ROOT.glob(f"{name}*")):
            missing.append(found)
    return missing


def test_the_documents_are_there():
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    expected = {f"docs/{name}.md" for name in PAGES}
    assert expected | {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} == names


@pytest.mark.parametrize("reference", THEIR_PROGRAMS)
def test_every_command_of_a_reference_has_its_like(reference):
    text = text_of(ROOT / "docs/coming_from.md")
    section = text.split(f"\n## {reference}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (?!There|---)([^|]+) \| ([^|]+) \|", section, re.MULTILINE)
    theirs = "\n".join(there for there, _ in rows)
    assert [name for name in THEIR_PROGRAMS[reference] if name not in theirs] == []
    assert all(there.strip() and here.strip() for there, here in rows)


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(path):
    targets = [t for t in LINK.findall(text_of(path)) if not t.startswith(("http://", "https://"))]
    assert [t for t in targets if not (path.parent / t).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_paths_exist(path):
    assert missing_paths(own_words(path)) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_flags_exist(path):
    assert unknown_flags(own_words(path)) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_parse(path):
    """Values too: the flags of each command are parsed by the command itself."""
    wrong = []
    for words in shell_commands(text_of(path)):
        program, arguments = split_at_program(words)
        if program in PARSED and "--helpfull" not in arguments:
            call = [sys.executable, program, *arguments, "--only_check_args"]
            run = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120)
            if run.returncode:
                wrong.append(f"{shlex.join(words)}: {run.stderr[-300:]}")
    assert wrong == []


def test_every_way_back_is_a_setting():
    """The hyperparameters that bring an old behaviour back are taken by one of the families."""
    text = text_of(ROOT / "docs/departures.md")
    configs = [base_config("efficientdet-d1"), MaskRcnnConfig()]
    given = [parse_hparams(span) for span in re.findall(r"`--hparams=([^`]+)`", text)]
    assert len(given) >= 10
    for values in given:
        config = next(c for c in configs if set(values) <= set(settings(type(c))))
        assert override(config, values, source="") != config, values


def test_licence_is_apache_2():
    text = text_of(ROOT / "LICENSE")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text and "The Ringdet authors" in text


def test_no_path_of_a_private_machine():
    """Looks at what git holds: rows that a benchmark appends for its user are no concern of it."""
    private = r"(^|[^A-Za-z0-9_.-])/(work|root|tmp/plan)([^A-Za-z0-9_-]|$)"
    run = subprocess.run(
        ["git", "grep", "--cached", "-I", "-n", "-E", private],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if run.returncode > 1:
        pytest.skip("not a git working tree")
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nmpirun -np 8 --bind-to none python train.py --lr=1 --no_such=1\n```", 1),
        ("```bash\npython eval.py --lr=1\n```", 1),
        ("```bash\npython train.py --noamp \\\n  --batch_size=4\n```", 0),
        ("text with `--no_such_flag`", 1),
        ("text with `eval.py --only_this_epoch=4` and `--notime_history`", 0),
    ],
)
def test_the_search_sees_wrong_flags(text, expected):
    assert len(unknown_flags(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see `engine/nothing.py`", 1),
        ("see `engine/loop.py`, `engine/` and train.py.", 0),
        ("run no_such_command.sh", 1),
        ("`docs/images/none.jpg`", 1),
    ],
)
def test_the_search_sees_missing_paths(text, expected):
    assert len(missing_paths(text)) == expected
