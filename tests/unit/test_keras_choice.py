"""Keras 2 on every TensorFlow; Keras 3 is refused with the way out."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import keras_choice

import pytest
import tensorflow as tf
from own_files import own_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.both_stacks
def test_keras_is_2_here():
    assert getattr(tf.keras, "__version__", "2.").startswith("2.")
    assert tf.keras.optimizers.legacy.SGD is not None


@pytest.mark.parametrize(
    ("tensorflow", "before", "after"),
    [
        ("2.15.1", {}, {}),
        ("2.15.1", {"TF_USE_LEGACY_KERAS": "1"}, {}),
        ("2.15.0+nv24.3", {}, {}),
        ("", {}, {}),
        ("2.19.1", {}, {"TF_USE_LEGACY_KERAS": "1"}),
        ("2.19.1", {"TF_USE_LEGACY_KERAS": "True"}, {"TF_USE_LEGACY_KERAS": "1"}),
        ("3.0.0", {}, {"TF_USE_LEGACY_KERAS": "1"}),
    ],
)
def test_the_variable_is_set_where_it_is_needed(tensorflow, before, after):
    environment = dict(before)
    keras_choice.choose_keras(environment, tensorflow=tensorflow, has_tf_keras=True)
    assert environment == after


def test_keras_3_is_refused():
    with pytest.raises(ImportError, match=r"TensorFlow 2.19.1 .* pip install 'tf_keras==2.19.\*'"):
        keras_choice.choose_keras({}, tensorflow="2.19.1", has_tf_keras=False)
    with pytest.raises(ImportError, match="TF_USE_LEGACY_KERAS=0 asks for Keras 3"):
        keras_choice.choose_keras(
            {"TF_USE_LEGACY_KERAS": "0"}, tensorflow="2.19.1", has_tf_keras=True
        )
    with pytest.raises(ImportError, match=r"Keras 3\.15\.1 here"):
        keras_choice.refuse_keras_3("3.15.1")
    keras_choice.refuse_keras_3("2.15.0")


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow-rocm", "tf-nightly", "a-fork"])
@pytest.mark.parametrize("lists_modules", [True, False])
def test_whatever_provides_tensorflow_tells_its_version(tmp_path, monkeypatch, name, lists_modules):
    folder = tmp_path / f"{name.replace('-', '_')}-2.99.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.99.1\n")
    if lists_modules:
        (folder / "top_level.txt").write_text("tensorflow\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    is_known = lists_modules or name == "tensorflow"
    assert keras_choice.version_of_module("tensorflow") == ("2.99.1" if is_known else "")


def version_tests(source):
    """Lists the lines on which a program decides something by a version."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        decision = node if isinstance(node, ast.Compare) else getattr(node, "test", None)
        for part in ast.walk(decision) if decision else ():
            if getattr(part, "attr", "") in ("__version__", "version_info", "VERSION"):
                found.add(part.lineno)
    return sorted(found)


def test_a_question_for_a_version_is_found():
    assert version_tests("import tf\nif tf.__version__.startswith('2.15'):\n  pass") == [2]
    assert version_tests("old = sys.version_info < (3, 10)") == [1]
    assert version_tests("print(tf.__version__)") == []


def test_nothing_else_asks_for_versions():
    ours = [path.relative_to(ROOT) for path in own_files("**/*.py")]
    sources = {path: (ROOT / path).read_text() for path in ours if path.parts[0] != "tests"}
    assert len(sources) > 100
    asking = {path for path, source in sources.items() if version_tests(source)}
    knowing = {path.parts[0] for path, source in sources.items() if "tf_keras" in source}
    assert asking == set() and knowing == {"keras_choice"}


@pytest.mark.parametrize(
    ("backend", "is_kept"),
    [
        ("module://no_such_package.backend_inline", False),
        ("module://json.tool", True),  # a module that is there
        ("Agg", True),
        ("", True),
    ],
)
def test_the_backend_of_a_notebook_is_kept_only_where_it_is(backend, is_kept):
    environment = {"MPLBACKEND": backend}
    keras_choice.drop_missing_backend(environment)
    assert environment == ({"MPLBACKEND": backend} if is_kept else {})


def test_a_report_is_drawn_in_a_process_that_a_notebook_started():
    backend = "module://matplotlib_inline.backend_inline"
    subprocess.run(
        [sys.executable, "-c", "import object_detection.report.charts, dataset.embedded.things"],
        **{"cwd": ROOT, "check": True, "env": {**os.environ, "MPLBACKEND": backend}},
    )
