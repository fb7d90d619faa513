"""Which accelerator a process uses: one GPU per rank, pinned before TensorFlow starts it.

Under Slurm's device confinement every rank sees its own GPU as number 0, so that only the
hardware's identifier tells whether two ranks share one.
"""

import os

import tensorflow as tf

from engine.ranks import machine


def pin_gpu(local_rank: int) -> str:
    """Makes one GPU visible to this process; before TensorFlow creates its devices.

    Returns an identifier of that GPU, unique on its host; '' without a GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return ""
    index = local_rank % len(gpus)
    tf.config.experimental.set_memory_growth(gpus[index], True)
    tf.config.set_visible_devices(gpus[index], "GPU")
    return gpu_identity(index)


def accelerator() -> str:
    """Returns the TensorFlow device of this process's accelerator, '' without one."""
    return "GPU:0" if tf.config.get_visible_devices("GPU") else ""


def device_name() -> str:
    """Returns the name of this process's accelerator, 'cpu' without one."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "cpu"
    details = tf.config.experimental.get_device_details(gpus[0])
    return details.get("device_name", gpus[0].name)


def peak_memory_bytes() -> int:
    """Returns the most memory of its accelerator that this process has used; 0 without one."""
    device = accelerator()
    return int(tf.config.experimental.get_memory_info(device)["peak"]) if device else 0


def gpu_identity(index: int) -> str:
    """Returns the identifier of the `index`-th GPU that CUDA shows this process.

    CUDA_VISIBLE_DEVICES names GPUs by number or by identifier; nvidia-smi lists the identifiers
    that this process may use. Without nvidia-smi the number stands for the GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    chosen = visible.split(",")[index].strip() if visible else str(index)
    if not chosen.isdigit():
        return chosen
    known = machine.gpu_facts("uuid")
    return known[int(chosen)] if int(chosen) < len(known) else f"{visible}#{chosen}"
