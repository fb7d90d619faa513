"""What one stack writes, the other reads: checkpoints, exports, the state of a run.

RINGDET_OTHER_VENV names the environment of the other stack; without it nothing is to be compared.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, run_from_scratch

PROGRAM = ROOT / "tests" / "integration" / "rank_programs" / "stack_exchange.py"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """(writer, reader) -> name -> array; each is 'this' or 'other'."""
    venv = os.environ.get("RINGDET_OTHER_VENV")
    if not venv:
        pytest.skip("RINGDET_OTHER_VENV does not name the environment of the other stack")
    pythons = {"this": sys.executable, "other": Path(venv).resolve() / "bin" / "python"}
    folder = tmp_path_factory.mktemp("stacks")

    def read(writer, reader):
        return ["read", folder / writer, folder / f"{writer}-{reader}.npz"]

    for stack, actions in (
        ("this", ["write", folder / "this", *read("this", "this")]),
        ("other", ["write", folder / "other", *read("other", "other"), *read("this", "other")]),
        ("this", read("other", "this")),
    ):
        run_from_scratch([pythons[stack], PROGRAM, *actions]).require_success()
    return {tuple(path.stem.split("-")): dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.slow
@pytest.mark.both_stacks
@pytest.mark.parametrize("writer", ["this", "other"])
def test_what_one_stack_writes_the_other_reads(outputs, writer):
    ours, theirs = outputs[writer, "this"], outputs[writer, "other"]
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for family in ("efficientdet", "maskrcnn"):
        assert f"{family}/export/0" in ours
        assert any(name.startswith(f"{family}/state/ema/") for name in ours)
    for name, value in ours.items():
        if "/state/" in name:
            np.testing.assert_array_equal(theirs[name], value, err_msg=name)
        else:
            size = np.abs(value).max()
            np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-5 * size, err_msg=name)
