"""Ranks: who we are, which device is ours, and the collectives. The only module that imports Horovod.

Every function has a single-process answer, so the rest of the code never asks whether Horovod is there.
Every rank must call every collective, in the same order. A newcomer's trap: a process that was started by a
launcher but cannot join the others must fail, never carry on as rank 0; `init` sees to that.
"""

import dataclasses
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.config import ConfigError

# Variables by which launchers say how many processes they started (Open MPI, horovodrun --gloo, Slurm's srun).
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "HOROVOD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

_hvd: Any = None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where this process runs. rank, local_rank: 0-based; device: name of the accelerator or 'cpu'."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: str = "cpu"
    host: str = ""


_placement = Placement(host=socket.gethostname())


def launched_size() -> int:
    """Returns the number of processes the launcher says it started; 1 without a launcher."""
    return max([int(os.environ.get(name) or 1) for name in _SIZE_VARIABLES])


def init(*, before_tensorflow: Callable[[int], None] | None = None) -> Placement:
    """Joins the other ranks and pins this process to its accelerator. Called once, before TensorFlow runs.

    Args:
      before_tensorflow: called with the number of ranks on this host before TensorFlow's devices are made.

    Raises:
      ConfigError: started with several ranks while Horovod is missing, does not load, or sees another number
        of ranks; or more ranks on this host than GPUs.
    """
    global _hvd, _placement
    expected = launched_size()
    if expected > 1:
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1800")
        _hvd = _import_horovod(expected)
        _hvd.init()
        if _hvd.size() != expected:
            raise ConfigError(
                f"the launcher started {expected} processes but Horovod sees {_hvd.size()}: the processes do not "
                "find each other. Under Slurm use srun --mpi=pmix (see srun --mpi=list), else mpirun or horovodrun."
            )
        _placement = Placement(
            _hvd.rank(),
            _hvd.size(),
            _hvd.local_rank(),
            _hvd.local_size(),
            "cpu",
            socket.gethostname(),
        )
    if before_tensorflow is not None:
        before_tensorflow(_placement.local_size)
    device = _pin_device()
    _placement = dataclasses.replace(_placement, device=device)
    return _placement


def _import_horovod(expected: int) -> Any:
    try:
        import horovod.tensorflow as hvd
    except (
        Exception
    ) as error:  # a Horovod built for another TensorFlow fails with several kinds of error
        raise ConfigError(
            f"{expected} processes were started but Horovod cannot be used with TensorFlow {tf.__version__}: "
            f"{type(error).__name__}: {error}. Build it against this TensorFlow with scripts/setup_env.sh, "
            "or start a single process."
        ) from error
    return hvd


def _pin_device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    index = _placement.local_rank % len(gpus)
    place = (_placement.host, os.environ.get("CUDA_VISIBLE_DEVICES", ""), index)
    places = all_gather_object(place)
    if len(set(places)) < len(places):
        raise ConfigError(
            f"host {_placement.host}: {_placement.local_size} ranks share {len(gpus)} visible GPU(s); start at most "
            "one rank per GPU (CUDA_VISIBLE_DEVICES and the launcher's -np or --ntasks-per-node decide)."
        )
    tf.config.experimental.set_memory_growth(gpus[index], True)
    tf.config.set_visible_devices(gpus[index], "GPU")
    return tf.config.experimental.get_device_details(gpus[index]).get(
        "device_name", gpus[index].name
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


def reduce_sum(
    tensors: Sequence[tf.Tensor], *, half: Sequence[bool] | None = None
) -> list[tf.Tensor]:
    """Sums each tensor over the ranks in one grouped allreduce; usable in eager code and in a `tf.function`.

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
    sent = [tf.cast(t, tf.float16) if h else t for t, h in zip(tensors, half, strict=True)]
    received: list[Any] = [None] * len(sent)
    # One fused group per dtype: Horovod does not fuse different dtypes.
    for dtype in dict.fromkeys(t.dtype for t in sent):
        places = [i for i, t in enumerate(sent) if t.dtype == dtype]
        sums = _hvd.grouped_allreduce([sent[i] for i in places], op=_hvd.Sum)
        for i, total in zip(places, sums, strict=True):
            received[i] = tf.cast(total, tensors[i].dtype)
    return received


def reduce_mean_in_graph(tensor: tf.Tensor) -> tf.Tensor:
    """Averages one tensor over the ranks, differentiably (for synchronised batch norm)."""
    return tensor if _placement.size == 1 else _hvd.allreduce(tensor, op=_hvd.Average)


def average_variables(variables: Sequence[tf.Variable]) -> None:
    """Replaces each variable by its mean over the ranks."""
    if _placement.size == 1 or not variables:
        return
    totals = reduce_sum([v.read_value() for v in variables])
    for variable, total in zip(variables, totals, strict=True):
        variable.assign(total / tf.cast(_placement.size, total.dtype))


def broadcast_variables(variables: Sequence[tf.Variable]) -> None:
    """Gives every rank the values of rank 0."""
    if _placement.size > 1:
        _hvd.broadcast_variables(variables, root_rank=0)


def broadcast_object(value: Any) -> Any:
    """Returns rank 0's value on every rank."""
    return _hvd.broadcast_object(value, root_rank=0) if _placement.size > 1 else value


def all_gather_object(value: Any) -> list[Any]:
    """Returns the values of all ranks, in rank order. They travel by pickle between our own processes."""
    if _placement.size == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
    lengths = _hvd.allgather(tf.constant([len(data)], tf.int64)).numpy()
    joined = _hvd.allgather(tf.constant(data)).numpy().tobytes()
    ends = np.cumsum(lengths)
    return [pickle.loads(joined[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def gather_rows(rows: np.ndarray) -> np.ndarray | None:
    """Joins every rank's rows on rank 0, as one array.

    Goes through mpi4py when MPI started the ranks (one Gatherv of raw memory), else through Horovod.

    Args:
      rows: [n, ...] of one dtype; n may differ between ranks and may be 0.

    Returns:
      [sum of n, ...] in rank order on rank 0, None on the other ranks.
    """
    if _placement.size == 1:
        return rows
    if _hvd.mpi_enabled() and _hvd.mpi_threads_supported():
        return _gather_rows_mpi(rows)
    joined = _hvd.allgather(tf.constant(rows)).numpy()
    return joined if is_main() else None


def _gather_rows_mpi(rows: np.ndarray) -> np.ndarray | None:
    from mpi4py import MPI

    rows = np.ascontiguousarray(rows)
    counts = MPI.COMM_WORLD.gather(rows.shape[0], root=0)
    if not is_main():
        MPI.COMM_WORLD.Gatherv(rows.view(np.uint8).reshape(-1), None, root=0)
        return None
    row_bytes = rows.itemsize * int(np.prod(rows.shape[1:]))
    joined = np.empty((sum(counts), *rows.shape[1:]), rows.dtype)
    sizes = [n * row_bytes for n in counts]
    MPI.COMM_WORLD.Gatherv(
        rows.view(np.uint8).reshape(-1),
        [joined.view(np.uint8).reshape(-1), sizes, None, MPI.BYTE],
        root=0,
    )
    return joined


def barrier() -> None:
    """Waits until every rank has come here."""
    if _placement.size > 1:
        _hvd.allreduce(tf.zeros([1]), op=_hvd.Sum).numpy()


def run_guarded(main: Callable[[], int]) -> None:
    """Runs a rank's main and ends the process; an exception ends all ranks, with host, rank and reason.

    Args:
      main: returns the exit code.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    except SystemExit:
        raise
    except BaseException as error:
        expected = isinstance(error, (ConfigError, FileNotFoundError, ValueError, OSError))
        if not expected or os.environ.get("RINGDET_TRACEBACK"):
            traceback.print_exc()
        where = f"rank {_placement.rank} of {max(_placement.size, launched_size())} on {_placement.host}"
        print(f"ERROR ({where}): {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if launched_size() > 1:
            _abort_all()
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def _abort_all() -> None:
    """Ends this process at once so that the launcher ends the others; Horovod's shutdown would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _hvd is not None and _hvd.is_initialized() and _hvd.mpi_enabled():
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)
    os._exit(1)
