"""A run that continues on fewer ranks equals the one that was never broken."""

import numpy as np
import pytest

from engine.files.weight_files import read_weight_file

pytestmark = [pytest.mark.multi, pytest.mark.slow]

FLAGS = ("--num_epochs=4", "--heartbeat_seconds=0")


def test_fewer_ranks_train_what_more_would_have(start, tmp_path):
    runs = {}
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        flags = (*FLAGS, *(["--stop_epoch=2"] if name == "broken" else []))
        runs[name] = start(*flags, folder=tmp_path / name, STEP_SECONDS="0")
    assert [run.wait() for run in runs.values()] == [0, 0], runs["broken"].said()[-6000:]
    options = {"ranks": 1, "launcher": "plain", "folder": tmp_path / "broken"}
    refused = start(*FLAGS, STEP_SECONDS="0", **options)
    assert refused.wait() == 1
    assert "it ran on 2 rank(s), this is 1: --allow_rank_change" in refused.said()
    again = start(*FLAGS, "--allow_rank_change=True", STEP_SECONDS="0", **options)
    assert again.wait() == 0, again.said()[-6000:]
    assert "ranks: 2 -> 1" in again.said() and "work of 2 of the 2 that" in again.said()
    ours, theirs = (
        read_weight_file(str(run.model_dir / "ckpt-final")).arrays
        for run in (again, runs["unbroken"])
    )
    assert ours.keys() == theirs.keys() and ours["state/step"] == 24
    for tensor, expected in theirs.items():
        np.testing.assert_allclose(ours[tensor], expected, rtol=2e-5, atol=2e-6, err_msg=tensor)
