"""One rank and two: the same gradient at equal global batch, and a run that ranks share."""

import numpy as np
import pytest
from commands import mpirun, python

PROGRAM = "tests/integration/rank_programs/one_step.py"
# Largest relative difference of the gradient. Synchronised layers add in another order than one
# large batch does, and then a near tie in a max-pooling window is decided differently: downstream
# of it the gradients agree to 3e-5, upstream to 2e-3. Without synchronisation they are unlike.
CASES = {"synchronised": 5e-3, "by rank": 2e-5}


@pytest.fixture(scope="module")
def steps(tiny_set, tmp_path_factory):
    """Results of the program: number of ranks -> name -> array."""
    folder = tmp_path_factory.mktemp("steps")
    pattern = f"{tiny_set.records}/train-*.tfrecord"
    python(PROGRAM, pattern, folder / "1.npz").require_success()
    mpirun(2, PROGRAM, pattern, folder / "2.npz").require_success()
    return {ranks: np.load(folder / f"{ranks}.npz") for ranks in (1, 2)}


def relative_difference(ours, theirs):
    """Returns |ours - theirs| / |theirs|, both taken as one vector."""
    ours, theirs = np.float64(ours), np.float64(theirs)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_two_ranks_is_that_of_one(steps, case):
    one, two = (steps[ranks][f"{case}/gradient"] for ranks in (1, 2))
    assert np.linalg.norm(one) > 0.1
    assert relative_difference(two, one) < CASES[case]


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("case", CASES)
def test_first_update_of_two_ranks_is_that_of_one(steps, case):
    one, two = (steps[ranks][f"{case}/update"] for ranks in (1, 2))
    assert relative_difference(two, one) < 5 * CASES[case]
    numbers = [steps[ranks][f"{case}/numbers"] for ranks in (1, 2)]
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.multi
def test_synchronised_statistics_are_those_of_the_global_batch(steps):
    one, two = (steps[ranks]["synchronised/statistics"] for ranks in (1, 2))
    assert relative_difference(two, one) < 1e-5


@pytest.mark.slow
@pytest.mark.multi
def test_gradient_that_travels_in_half_precision_is_close(steps):
    full, half = (steps[2][f"by rank/{what}"] for what in ("gradient", "half"))
    assert 0 < relative_difference(half, full) < 2e-3
