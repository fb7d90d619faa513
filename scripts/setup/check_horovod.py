"""Shows that the installed Horovod fits this TensorFlow, this MPI and mpi4py.

Started with two ranks under mpirun by scripts/setup_env.sh. A Horovod built against another
TensorFlow fails at the import; one built against another MPI than mpi4py's sees one rank twice.
Ends with a status other than 0 on any disagreement.
"""

import os
import sys

import keras_choice  # noqa: F401  (before TensorFlow)

import horovod
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf


def check_reduction(device: str, *, rank: int, size: int) -> None:
    """Reduces two tensors together and compares with the sum known beforehand."""
    with tf.device(device):
        tensors = [tf.fill([1000], float(rank + 1)), tf.range(7, dtype=tf.float32) * (rank + 1)]
        sums = hvd.grouped_allreduce(tensors, op=hvd.Sum)
    factor = size * (size + 1) / 2
    np.testing.assert_array_equal(sums[0].numpy(), np.full([1000], factor, np.float32))
    np.testing.assert_array_equal(sums[1].numpy(), np.arange(7, dtype=np.float32) * factor)


def main() -> None:
    """Checks ranks, reductions and object gathering, and prints one line on rank 0."""
    hvd.init()
    rank, size = hvd.rank(), hvd.size()
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_size() != 2 or size != 2:
        sys.exit(f"expected 2 ranks; Horovod sees {size}, mpi4py {MPI.COMM_WORLD.Get_size()}")
    ranks = MPI.COMM_WORLD.allgather({"rank": rank})
    if [entry["rank"] for entry in ranks] != [0, 1]:
        sys.exit(f"mpi4py and Horovod number the ranks differently: {ranks}")
    if not hvd.gloo_built():
        sys.exit("Horovod was built without Gloo")
    if os.environ.get("RINGDET_NEED_NCCL") == "1" and not hvd.nccl_built():
        sys.exit("Horovod was built without NCCL although a GPU and nvcc are here")

    # NCCL wants a GPU of its own for each rank.
    gpus = tf.config.list_physical_devices("GPU")
    has_own_gpu = len(gpus) >= size
    tf.config.set_visible_devices([gpus[hvd.local_rank()]] if has_own_gpu else [], "GPU")
    check_reduction("/cpu:0", rank=rank, size=size)
    if has_own_gpu:
        check_reduction("/gpu:0", rank=rank, size=size)
    if rank == 0:
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
        versions = f"TensorFlow {tf.__version__}, Horovod {horovod.__version__}, {library}"
        print(f"{versions}, {len(gpus)} GPUs")


if __name__ == "__main__":
    main()
