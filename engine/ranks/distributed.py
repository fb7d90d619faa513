"""Ranks: who we are, and the collectives. The only module that imports Horovod.

Every function has a single-process answer, so the rest of the code never asks whether Horovod is
there. Every rank must call every collective, in the same order. A process that was started by a
launcher but cannot join the others must fail, never carry on as rank 0; `init` sees to that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.ranks import devices

# How launchers say the number of processes they started, nearest launcher first: Open MPI,
# horovodrun --gloo, MPICH and PMI-2, Slurm's srun. mpirun's own daemons may be started by srun.
_GLOO_SECONDS = "HOROVOD_GLOO_TIMEOUT_SECONDS"
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "HOROVOD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# MPI counts what is sent at once in 32 bits.
_PIECE_BYTES = 1 << 30

_T = TypeVar("_T")

_hvd: Any = None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where this process runs. rank, local_rank: 0-based; device: accelerator's name or 'cpu'."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: str = "cpu"
    host: str = ""


_placement = Placement(host=socket.gethostname())


class AgreedError(RuntimeError):
    """Raised on every rank alike; rank 0 speaks for all. Its cause, if any, is the real error."""


def launched_size() -> int:
    """Returns the number of processes the launcher says it started; 1 without a launcher."""
    given = (os.environ.get(name, "") for name in _SIZE_VARIABLES)
    return next((int(value) for value in given if value.isdigit()), 1)


def init(*, before_tensorflow: Callable[[int], None] | None = None) -> Placement:
    """Joins the other ranks, pins this process to its GPU. Called once, before TensorFlow runs.

    Args:
      before_tensorflow: called with the number of ranks on this host before TensorFlow makes its
        devices.

    Raises:
      ConfigError: started with several ranks while Horovod is missing, does not load, or sees
        another number of ranks; or more ranks on this host than GPUs.
    """
    global _hvd, _placement
    expected = launched_size()
    if expected > 1:
        # A rank that the others wait for is named after a minute; after half an hour all end.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1800")
        # horovodrun has Gloo give up after 30, before the watch can say which rank is frozen.
        if os.environ.get(_GLOO_SECONDS, "30") == "30":
            os.environ[_GLOO_SECONDS] = os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"]
        hvd = _import_horovod(expected)
        hvd.init()
        if hvd.size() != expected:
            raise ConfigError(
                f"the launcher started {expected} processes but Horovod sees {hvd.size()}: the "
                "processes do not find each other. Under Slurm use srun --mpi=pmix (see srun "
                "--mpi=list), else mpirun or horovodrun."
            )
        _hvd = hvd
        _placement = dataclasses.replace(
            _placement,
            rank=hvd.rank(),
            size=hvd.size(),
            local_rank=hvd.local_rank(),
            local_size=hvd.local_size(),
        )
    if before_tensorflow is not None:
        before_tensorflow(_placement.local_size)
    gpu = devices.pin_gpu(_placement.local_rank)
    _placement = dataclasses.replace(_placement, device=devices.device_name())
    _require_own_gpu(gpu)
    return _placement


def _import_horovod(expected: int) -> Any:
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # built for another TensorFlow, it fails in several ways
        raise ConfigError(
            f"{expected} processes were started but Horovod cannot be used with TensorFlow "
            f"{tf.__version__}: {type(error).__name__}: {error}. Build it against this TensorFlow "
            "with scripts/setup_env.sh, or start a single process."
        ) from error
    return hvd


def _require_own_gpu(gpu: str) -> None:
    """Raises ConfigError if another rank of this host has the same GPU."""
    everyone = all_gather_object((_placement.host, gpu))
    if gpu and everyone.count((_placement.host, gpu)) > 1:
        visible = len({g for host, g in everyone if host == _placement.host})
        raise ConfigError(
            f"host {_placement.host}: {_placement.local_size} ranks share {visible} GPU(s); start "
            "at most one rank per GPU (CUDA_VISIBLE_DEVICES and the launcher's -np or "
            "--ntasks-per-node decide)."
        )


def placement() -> Placement:
    """Returns this process's place among the ranks."""
    return _placement


def rank() -> int:
    """Returns this process's rank, 0-based."""
    return _placement.rank


def size() -> int:
    """Returns the number of ranks."""
    return _placement.size


def is_main() -> bool:
    """True on rank 0, which alone writes files and logs."""
    return _placement.rank == 0


def on_main(action: Callable[[], _T]) -> _T:
    """Runs an action on rank 0 and returns its result on every rank.

    Raises:
      AgreedError: on every rank when the action fails, so that none waits for ever; on rank 0
        with the cause. A single process gets the exception itself.
    """
    if _placement.size == 1:
        return action()
    failure, result = None, None
    if is_main():
        try:
            result = action()
        except Exception as error:
            failure = error
    failed, result = broadcast_object((failure is not None, result))
    if failed:
        raise AgreedError("rank 0 failed") from failure
    return result


def reduce_sum(
    tensors: Sequence[tf.Tensor], *, half: Sequence[bool] | None = None
) -> list[tf.Tensor]:
    """Sums each tensor over the ranks by grouped allreduce; in eager code and in a `tf.function`.

    Args:
      tensors: the same shapes and dtypes, in the same order, on every rank.
      half: True where a tensor may travel as float16.

    Returns:
      The sums, with the dtypes of the arguments.
    """
    tensors = [tf.identity(t) for t in tensors]
    if _placement.size == 1:
        return tensors
    half = half or [False] * len(tensors)
    sent = [tf.cast(t, tf.float16) if h else t for t, h in zip(tensors, half)]
    received: list[Any] = [None] * len(sent)
    # One fused group per dtype: Horovod does not fuse different dtypes.
    for dtype in dict.fromkeys(t.dtype for t in sent):
        places = [i for i, t in enumerate(sent) if t.dtype == dtype]
        sums = _hvd.grouped_allreduce([sent[i] for i in places], op=_hvd.Sum)
        for i, total in zip(places, sums):
            received[i] = tf.cast(total, tensors[i].dtype)
    return received


def stack_in_graph(tensor: tf.Tensor) -> tf.Tensor:
    """Stacks one tensor of every rank, differentiably (for synchronised batch norm).

    Returns:
      [ranks, ...]: in rank order, the same on every rank.
    """
    if _placement.size == 1:
        return tensor[tf.newaxis]
    # A sum in which every rank fills its own row, because the gradient of an allgather needs a
    # second collective for the lengths.
    own_row = tf.one_hot(_placement.rank, _placement.size, dtype=tensor.dtype)
    rows = tf.tensordot(own_row, tensor, axes=0)
    return _hvd.allreduce(rows, op=_hvd.Sum)


def average_variables(variables: Sequence[tf.Variable]) -> None:
    """Replaces each floating-point variable by its mean over the ranks."""
    if _placement.size == 1 or not variables:
        return
    totals = reduce_sum([v.read_value() for v in variables])
    for variable, total in zip(variables, totals):
        variable.assign(total / tf.cast(_placement.size, total.dtype))


def broadcast_variables(variables: Sequence[tf.Variable]) -> None:
    """Gives every rank the values of rank 0."""
    if _placement.size > 1:
        _hvd.broadcast_variables(variables, root_rank=0)


def broadcast_object(value: _T) -> _T:
    """Returns rank 0's value on every rank. It travels by pickle between our own processes."""
    return _hvd.broadcast_object(value, root_rank=0) if _placement.size > 1 else value


def all_gather_object(value: _T) -> list[_T]:
    """Returns the values of all ranks, in rank order. They travel by pickle as above."""
    if _placement.size == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
    with tf.device("cpu:0"):
        lengths = _hvd.allgather(tf.constant([len(data)], tf.int64)).numpy()
        joined = _hvd.allgather(tf.constant(data)).numpy().tobytes()
    ends = np.cumsum(lengths)
    return [pickle.loads(joined[end - n : end]) for n, end in zip(lengths, ends)]


def gather_rows(rows: np.ndarray) -> np.ndarray | None:
    """Joins every rank's rows on rank 0, as one array.

    Goes through mpi4py when MPI started the ranks, as raw memory of any size, else through Horovod.

    Args:
      rows: [n, ...] of one dtype; n may differ between ranks and may be 0.

    Returns:
      [sum of n, ...] in rank order on rank 0, None on the other ranks.
    """
    if _placement.size == 1:
        return rows
    rows = np.ascontiguousarray(rows)
    mpi = _mpi()
    if mpi is not None:
        return _gather_rows_mpi(rows, mpi)
    with tf.device("cpu:0"):
        joined = _hvd.allgather(tf.constant(rows)).numpy()
    return joined if is_main() else None


def _mpi() -> Any:
    """Returns mpi4py's MPI if the ranks run under MPI and it is installed, else None."""
    if not (_hvd.mpi_enabled() and _hvd.mpi_threads_supported()):
        return None
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    return MPI


def _gather_rows_mpi(rows: np.ndarray, mpi: Any) -> np.ndarray | None:
    world = mpi.COMM_WORLD
    counts = world.gather(rows.shape[0], root=0)
    sent = rows.reshape(-1).view(np.uint8)
    if not is_main():
        for piece in _pieces(sent):
            world.Send(piece, dest=0)
        return None
    joined = np.concatenate([rows, np.empty((sum(counts[1:]), *rows.shape[1:]), rows.dtype)])
    ends = np.cumsum(counts)
    for source in range(1, len(counts)):
        received = joined[ends[source - 1] : ends[source]].reshape(-1).view(np.uint8)
        for piece in _pieces(received):
            world.Recv(piece, source=source)
    return joined


def _pieces(data: np.ndarray) -> list[np.ndarray]:
    return [data[i : i + _PIECE_BYTES] for i in range(0, len(data), _PIECE_BYTES)]


def barrier() -> None:
    """Waits until every rank has come here."""
    if _placement.size > 1:
        with tf.device("cpu:0"):
            _hvd.allreduce(tf.zeros([1]), op=_hvd.Sum).numpy()


def abort_all(code: int) -> NoReturn:
    """Ends this process at once, so that the launcher ends the others.

    An orderly end would wait: Horovod's shutdown is a collective too.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader has ended
            stream.flush()
    if _hvd is not None and _hvd.is_initialized():
        mpi = _mpi()
        if mpi is not None:
            mpi.COMM_WORLD.Abort(code)
    os._exit(code)
