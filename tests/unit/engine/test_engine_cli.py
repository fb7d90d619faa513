"""Flags: made from settings, only those given count, and an answer without TensorFlow."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from engine.config.arguments import ArgumentParser
from engine.config.fields import ConfigError, override, setting
from engine.start import cli

ROOT = Path(__file__).resolve().parents[3]
# Every flag of the reference's train.py and eval.py.
TRAIN_FLAGS = (
    "training_mode training_file_pattern val_file_pattern val_json_file model_name model_dir "
    "batch_size eval_batch_size num_examples_per_epoch num_epochs benchmark benchmark_steps "
    "use_fake_data use_xla amp set_num_threads log_filename log_steps lr_tb "
    "enable_map_parallelization checkpoint_period pretrained_ckpt backbone_init hparams lr "
    "warmup_value warmup_epochs seed debug time_history validate testdev_dir eval_samples"
).split()
EVAL_FLAGS = (
    "val_file_pattern val_json_file ckpt_path eval_samples model_name batch_size only_this_epoch "
    "enable_map_parallelization amp hparams"
).split()
INFER_FLAGS = (
    "image_path output_dir model_dir model_name hparams debug saved_model_dir min_score_thresh"
).split()


@dataclasses.dataclass(frozen=True)
class Optim:
    learning_rate: float = setting(0.1, "A rate.", flag="lr")
    lr_batch_size: int = setting(64, "Its batch.")
    steps: tuple[float, ...] = setting((1.0, 2.0), "Numbers.")
    on: bool = setting(True, "A switch.")
    maybe: bool | None = setting(None, "An optional switch.")
    seed: int | None = setting(None, "An optional number.")
    hidden: int = setting(0, "Not a flag.", flag=None)


@dataclasses.dataclass(frozen=True)
class Config:
    optim: Optim = dataclasses.field(default_factory=Optim)


def resolve(*argv: str, base=Optim(), recipe="", hparams="") -> Optim:
    values = flags.FlagValues()
    cli.define_flags([Config], flag_values=values)
    values(["program", *argv])
    return cli.resolve(Config(base), recipe=recipe, hparams=hparams, flag_values=values).optim


def test_defaults_without_flags():
    assert resolve() == Optim()


def test_flags_of_every_type():
    given = resolve("--lr_batch_size=8", "--steps=5,6.5", "--noon", "--maybe", "--seed=3")
    assert given == Optim(lr_batch_size=8, steps=(5.0, 6.5), on=False, maybe=True, seed=3)


def test_a_setting_without_flag_has_none():
    with pytest.raises(flags.UnrecognizedFlagError):
        resolve("--hidden=1")


def test_order_of_authority(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim:\n  lr_batch_size: 3\n  steps: [3]\n  seed: 3\n")
    base = Optim(lr_batch_size=2, steps=(2.0,), seed=2, hidden=2)
    hparams = "steps=4,seed=4"
    given = resolve("--seed=5", base=base, recipe=str(recipe), hparams=hparams)
    assert (given.hidden, given.lr_batch_size, given.steps, given.seed) == (2, 3, (4.0,), 5)


def test_a_derived_recipe_sees_what_is_told_besides_and_yields_to_it():
    def derived(config):
        return {"lr_batch_size": 10 * config.optim.seed, "seed": 99, "steps": [7]}

    given = resolve("--seed=5", recipe=derived, hparams="steps=4")
    assert (given.lr_batch_size, given.seed, given.steps) == (50, 5, (4.0,))


def test_an_absent_flag_does_not_override_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.7\n")
    assert resolve(recipe=str(recipe)).learning_rate == 0.7


def test_lr_as_a_flag_is_used_as_it_is():
    assert resolve("--lr=2.2").lr_batch_size == 0
    assert resolve("--lr=2.2", "--lr_batch_size=32").lr_batch_size == 32
    assert resolve(hparams="learning_rate=2.2").lr_batch_size == 64


def test_arguments_that_are_no_flags_are_refused():
    cli.refuse_arguments([])
    with pytest.raises(ConfigError, match="unexpected argument 'batch_size=8'"):
        cli.refuse_arguments(["batch_size=8"])
    with pytest.raises(ConfigError, match="'/': .*; quote a pattern, else the shell puts its"):
        cli.refuse_arguments(["/"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--lr_batch_sise=3", "unknown flag --lr_batch_sise; did you mean 'lr_batch_size'?"),
        ("--zzz", "unknown flag --zzz; did you mean '"),
        ("--hidden=3", "unknown flag --hidden; write --hparams=hidden=VALUE"),
        ("--learning_rate=3", "unknown flag --learning_rate; did you mean 'lr'?"),
        ("--seed=abc", "flag --seed=abc: expected a whole number, got 'abc'"),
        ("--seed=1.5", "flag --seed=1.5: expected a whole number, got '1.5'"),
        ("--lr=abc", "flag --lr=abc: expected a number, got 'abc'"),
        ("--share=nan", "flag --share=nan: expected a finite number"),
        ("--lr=-inf", "flag --lr=-inf: expected a finite number"),
        ("--format=tflit", "one of <onnx|tflite|savedmodel>; did you mean 'tflite'?"),
        ("--format=: x: saved", "one of <onnx|tflite|savedmodel>; did you mean 'savedmodel'?"),
    ],
)
def test_a_wrong_flag_ends_with_status_2(argument, words, capsys):
    values = flags.FlagValues()
    cli.define_flags([Config], flag_values=values)
    words_of = ["onnx", "tflite", "savedmodel"]
    flags.DEFINE_enum("format", "onnx", words_of, "What is written.", flag_values=values)
    flags.DEFINE_float("share", 0.5, "A limit.", 0.0, 1.0, flag_values=values)
    flags.DEFINE_string("hparams", "", "Settings.", flag_values=values)
    with pytest.raises(SystemExit) as end:
        cli.parse_flags(["program.py", argument], flag_values=values)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ERROR: ") and words in said and "program.py --help" in said


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("train.py", TRAIN_FLAGS),
        ("eval.py", EVAL_FLAGS),
        ("infer.py", INFER_FLAGS),
        ("export.py", ["model_dir", "saved_model_dir"]),
    ],
)
def test_help_lists_the_flags_at_once(script, expected):
    start = time.monotonic()
    result = run(script, "--help")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 10  # 0.5 s alone; TensorFlow would add several seconds
    shown = {
        line.strip().removeprefix("--").removeprefix("[no]").split(":")[0]
        for line in result.stdout.splitlines()
        if line.startswith("  --")
    }
    assert set(expected) - shown == set()


def test_a_program_whose_flags_say_all_refuses_words():
    result = run("export.py", "RUN")
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR: unexpected argument 'RUN': everything is told by flags")


def test_help_is_in_groups():
    shown = run("train.py", "--help").stdout
    titles = [line for line in shown.splitlines() if line.endswith(":") and line[:1].strip()]
    assert titles[0] == "This program:" and len(titles) > 8
    runtime = shown.split("Precision, compilation, processes:")[1].split("\n\n")[0]
    assert "--[no]amp" in runtime and "--model_dir" not in runtime
    assert "(default: 300)" in shown
    flags_of_nvidia = [title for title in titles if title.startswith("NVIDIA's")]
    assert len(flags_of_nvidia) == 4  # files and data sets, TF2, PyTorch, what is refused


def test_models_are_listed():
    import families

    lines = families.model_lines()
    assert ["efficientdet-d0", "512x512"] in [line.split() for line in lines]
    name, size = next(line.split() for line in lines if line.startswith("maskrcnn-r50-fpn "))
    typed = override(families.base_config(name), {"image_size": size}, source="test")
    assert typed == families.base_config(name)


def test_help_does_not_load_tensorflow():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print('loaded', sorted({'tensorflow', 'numpy', 'horovod'} & set(sys.modules)))"
    )
    result = run("-c", code)
    assert result.stdout.splitlines()[-1] == "loaded []"


def test_warnings_have_the_form_of_the_other_lines(commands, tmp_path):
    (tmp_path / "program.py").write_text(
        "import logging, sys\nfrom engine.start import cli\n"
        "cli.run_app(lambda: logging.getLogger('any').warning('mind the %s', 'gap') or 0)"
    )
    said = commands.run(str(tmp_path / "program.py")).errors
    assert re.search(r"^\d\d:\d\d:\d\d WARNING mind the gap$", said, re.MULTILINE), said


def test_the_references_spellings():
    values = flags.FlagValues()
    cli.define_flags([Config], flag_values=values)
    argv = ["program.py", "--lr-batch-size", "8", "--steps", "5", "6.5", "--noon", "A.B", "-1"]
    assert cli.parse_flags([*argv, "--seed=3"], flag_values=values) == ["program.py", "A.B", "-1"]
    given = cli.given_fields(Optim, flag_values=values)
    assert given == {"lr_batch_size": 8, "steps": [5, 6.5], "on": False, "seed": 3}


def test_a_home_folder_is_meant_where_shells_leave_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    values = flags.FlagValues()
    flags.DEFINE_string("model_dir", "", "", flag_values=values)
    parser = ArgumentParser()
    parser.add_argument("--data")
    for word, meant in (("~/runs/a=b", "/home/ann/runs/a=b"), ("a~/b", "a~/b"), ("./~/x", "./~/x")):
        assert cli.parse_flags(["p.py", f"--model_dir={word}"], flag_values=values) == ["p.py"]
        assert values.model_dir == parser.parse_args([f"--data={word}"]).data == meant


def test_small_programs_name_the_nearest_option(capsys):
    parser = ArgumentParser(prog="program")
    parser.add_argument("--exif")
    parser.add_argument("-m", "--model", choices=["a"])
    parser.add_argument("--minutes", type=float)
    assert parser.parse_args(["--minutes=-2.5e1"]).minutes == -25.0
    for argument, says in (
        ("--minutes=nan", "argument --minutes: expected a finite number, got 'nan'"),
        ("--minutes=-inf", "argument --minutes: expected a finite number, got '-inf'"),
        ("--minutes=two", "argument --minutes: expected a finite number, got 'two'"),
        ("--exiff=apply", "unrecognized arguments: --exiff=apply; did you mean '--exif'?"),
        ("--modle", "unrecognized arguments: --modle; did you mean '--model'?"),
        ("-x", "unrecognized arguments: -x\n"),
        ("--model=b", "invalid choice: 'b'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([argument])
        assert says in capsys.readouterr().err


PRINTING = """
import sys
from engine.start import cli
cli.prepare_console()
assert sys.stdin.read() == ""
with open(sys.argv[1], "w", encoding="utf-8") as file:
    print("printed", "\u00e9", flush=True)
    print("wrong", file=sys.stderr, flush=True)
    file.write("written")
"""


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_what_is_printed_into_closed_streams_goes_nowhere(tmp_path, closed):
    command = f'exec "$@" {closed}'
    words = [sys.executable, "-c", PRINTING, str(tmp_path / "file")]
    done = subprocess.run(
        ["sh", "-c", command, "sh", *words], cwd=ROOT, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "written"


def test_what_the_console_cannot_show_is_escaped(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, str(tmp_path / "file")],
        **{"cwd": ROOT, "stdin": subprocess.DEVNULL, "capture_output": True, "check": True},
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout == b"printed \\xe9\n"
