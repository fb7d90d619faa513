"""Compiles programs that `benchmarks/export_step.py` wrote for a GPU, on a machine without one.

python benchmarks/compile_for_gpu.py EXPORT [EXPORT ...] --kinds 12

Needs JAX with its CUDA plugin (`pip install "jax[cuda12]"`, in an environment of its own) and the
file memory_traffic.py beside this one; neither a GPU nor TensorFlow. Prints for each program the
memory that it takes, its kernels and what they read and write; kernels are not tuned, so nothing is
said of time. The last line for each program is JSON.
"""

import argparse
import gzip
import json
import os
import time
from pathlib import Path

from memory_traffic import by_kind, kernels

# What XLA asks of an H100 80 GB (SXM): NVIDIA's data sheet and the limits of compute capability 9.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compile_program(folder, target):
    """Returns the executable of an exported program for a GPU of that description."""
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies
    from jaxlib import xla_client

    topology = topologies.get_topology_desc("one", "cuda", topology="1x1x1", target_config=target)
    program = gzip.decompress((folder / "program.hlo.gz").read_bytes())
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(program))
    (device,) = topology.devices
    with mlir.make_ir_context():
        return device.client.compile(
            ir.Module.parse(text), xla_client.DeviceList((device,)), xla_client.CompileOptions()
        )


def describe(folder, target):
    """Compiles one program; returns its summary and its kernels."""
    import jax

    start = time.perf_counter()
    executable = compile_program(folder, target)
    seconds = time.perf_counter() - start
    (module,) = executable.hlo_modules()
    found = kernels(module.to_string())
    memory = executable.get_compiled_memory_stats()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    description = json.loads((folder / "program.json").read_text())
    summary = {
        "jax": jax.__version__,
        **{k: description[k] for k in ("kind", "model", "batch_size", "precision", "commit")},
        "compile_s": seconds,
        "kernels": sum(kernel.rounds for kernel in found),
        "traffic_gb": sum(kernel.rounds * kernel.num_bytes for kernel in found) / 1e9,
        "program_gb": (held - memory.alias_size_in_bytes) / 1e9,
    }
    return summary, found


def main():
    """Describes every program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="written by export_step.py")
    parser.add_argument("--target", type=Path, help="XLA's GpuTargetConfigProto (H100 80 GB)")
    parser.add_argument("--kinds", type=int, default=12, help="most kinds of kernels to list")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Tuning would need the GPU.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    import jax

    jax.config.update("jax_enable_x64", True)  # counters are 64-bit
    target = arguments.target.read_text() if arguments.target else _H100
    for folder in arguments.folders:
        summary, found = describe(folder, target)
        for kind, number, cost in by_kind(found)[: arguments.kinds]:
            print(f"{cost / 1e9:9.2f} GB {number:6d}  {kind}")
        print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
