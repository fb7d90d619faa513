"""Lists the operations that TensorFlow can run on a GPU, for `test_gpu_programs`.

To be run with the GPU build of TensorFlow (the package `tensorflow`, not `tensorflow-cpu`), which
registers its kernels on a machine without a GPU as well:

    python tests/unit/gpu_kernels/make_table.py > tests/unit/gpu_kernels/tensorflow-VERSION.txt

One line an operation: its name, then for each attribute that limits the kernels the types allowed.
"""

from collections import defaultdict

import tensorflow as tf
from tensorflow.python.framework import kernels

_DEVICES = ("GPU", "DEFAULT")


def main() -> None:
    """Prints the table."""
    allowed: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for kernel in kernels.get_all_registered_kernels().kernel:
        if kernel.device_type not in _DEVICES or kernel.op.startswith("_"):
            continue
        types = allowed[kernel.op]
        for constraint in kernel.constraint:
            names = (tf.as_dtype(t).name for t in constraint.allowed_values.list.type)
            types[constraint.name].update(names)
    for op, types in sorted(allowed.items()):
        limits = (f"{name}={','.join(sorted(t))}" for name, t in sorted(types.items()) if t)
        print(" ".join([op, *limits]))


if __name__ == "__main__":
    main()
