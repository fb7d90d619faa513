"""Ranks with one process, what launchers say, and GPUs that are shared."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.ranks import devices, distributed


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in distributed._SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_placement", distributed.Placement(host="here"))


def test_a_single_process_has_an_answer_to_everything():
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    tensors = [tf.constant([1.0, 2.0]), tf.constant(3, tf.int32)]
    for before, after in zip(tensors, distributed.reduce_sum(tensors, half=[True, False])):
        np.testing.assert_array_equal(before, after)
    rows = np.ones([2, 3])
    assert distributed.gather_rows(rows) is rows
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    variable = tf.Variable([1.0])
    distributed.average_variables([variable])
    distributed.broadcast_variables([variable])
    distributed.barrier()
    assert variable.numpy() == [1.0]


def test_on_main_alone_gives_result_and_error():
    assert distributed.on_main(lambda: 5) == 5
    with pytest.raises(KeyError):
        distributed.on_main(lambda: {}["missing"])


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, 8),
        ({"HOROVOD_SIZE": "2"}, 2),
        ({"PMI_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "32"}, 32),
        # mpirun starts its daemons by srun, one a node: its own word counts.
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": ""}, 1),
    ],
)
def test_what_launchers_say(environment, size, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched_size() == size


def test_a_launched_process_without_horovod_does_not_carry_on_alone(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ConfigError, match=r"2 processes were started but Horovod cannot be used"):
        distributed.init()


class FakeHorovod:
    """A Horovod whose ranks did not find each other."""

    def init(self) -> None:
        pass

    def size(self) -> int:
        return 1


def test_ranks_that_do_not_find_each_other(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setattr(distributed, "_import_horovod", lambda expected: FakeHorovod())
    with pytest.raises(ConfigError, match="started 4 processes but Horovod sees 1.*--mpi=pmix"):
        distributed.init()


class TestGpus:
    def pin(self, monkeypatch, *, visible="", uuids=("GPU-a", "GPU-b"), local_rank=0) -> str:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(devices.machine, "gpu_facts", lambda name: list(uuids))
        return devices.gpu_identity(local_rank)

    def test_identity_by_number_by_name_and_by_default(self, monkeypatch):
        assert self.pin(monkeypatch, local_rank=1) == "GPU-b"
        assert self.pin(monkeypatch, visible="1,0", local_rank=0) == "GPU-b"
        assert self.pin(monkeypatch, visible="GPU-x,GPU-y", local_rank=1) == "GPU-y"

    def test_confined_ranks_see_their_own_gpu_as_number_0(self, monkeypatch):
        assert self.pin(monkeypatch, visible="0", uuids=["GPU-c"]) == "GPU-c"
        assert self.pin(monkeypatch, visible="0", uuids=["GPU-d"]) == "GPU-d"

    def test_without_nvidia_smi_the_number_stands_for_the_gpu(self, monkeypatch):
        first = self.pin(monkeypatch, visible="2,3", uuids=[], local_rank=0)
        assert first == self.pin(monkeypatch, visible="2,3", uuids=[], local_rank=0)
        assert first != self.pin(monkeypatch, visible="2,3", uuids=[], local_rank=1)

    def test_two_ranks_on_one_gpu_are_refused(self, monkeypatch):
        placement = distributed.Placement(rank=0, size=3, local_size=2, host="here")
        monkeypatch.setattr(distributed, "_placement", placement)
        everyone = [("here", "GPU-a"), ("here", "GPU-a"), ("there", "GPU-a")]
        monkeypatch.setattr(distributed, "all_gather_object", lambda value: everyone)
        with pytest.raises(ConfigError, match=r"host here: 2 ranks share 1 GPU\(s\)"):
            distributed._require_own_gpu("GPU-a")
        everyone[1] = ("here", "GPU-b")
        distributed._require_own_gpu("GPU-a")
        everyone[:] = [("here", "")] * 3  # no GPUs: any number of ranks
        distributed._require_own_gpu("")
