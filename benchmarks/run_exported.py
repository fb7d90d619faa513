"""Compiles and times a program that `benchmarks/export_step.py` wrote, on the device JAX finds.

python benchmarks/run_exported.py EXPORT --runs 20

Needs JAX and NumPy only, neither TensorFlow nor this project. A training step is fed its own new
variables, so that the loss of the last step shows whether it trains. Where the exporter stored
expected numbers (--check), those of the first call are compared with them.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from jaxlib import xla_client


def load(folder):
    """Returns (description, serialised program, arguments in order)."""
    description = json.loads((folder / "program.json").read_text())
    with np.load(folder / "arguments.npz") as stored:
        arguments = [stored[name] for name in sorted(stored.files)]
    return description, (folder / "program.hlo").read_bytes(), arguments


def compile_program(program, device):
    """Compiles a serialised HloModuleProto for one device."""
    computation = xla_client.XlaComputation(program)
    module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
    devices = xla_client.DeviceList((device,))
    options = xla_client.CompileOptions()
    return device.client.compile_and_load(module, devices, options)


def run(executable, arguments, replaced):
    """Runs once; returns the outputs on the device and the arguments of the next call."""
    outputs = executable.execute(arguments)
    following = list(arguments)
    for output, argument in replaced.items():
        following[argument] = outputs[output]
    jax.block_until_ready(outputs)
    return outputs, following


def main():
    """Compiles, checks, times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="written by benchmarks/export_step.py")
    parser.add_argument("--runs", type=int, default=20, help="timed calls")
    parser.add_argument("--tolerance", type=float, default=0.02, help="largest relative difference")
    arguments = parser.parse_args()
    description, program, values = load(arguments.folder)
    jax.config.update("jax_enable_x64", True)  # counters are 64-bit
    device = jax.devices()[0]
    replaced = {int(k): v for k, v in description["replaced_arguments"].items()}
    start = time.perf_counter()
    executable = compile_program(program, device)
    compile_seconds = time.perf_counter() - start
    values = [jax.device_put(value, device) for value in values]
    outputs, values = run(executable, values, replaced)
    first = [np.asarray(output) for output in outputs[: len(outputs) - len(replaced)]]
    seconds = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        outputs, values = run(executable, values, replaced)
        seconds.append(time.perf_counter() - start)
    summary = {
        "device": device.device_kind,
        "jax": jax.__version__,
        **{k: description[k] for k in ("kind", "model", "batch_size", "precision", "commit")},
        "compile_s": compile_seconds,
        "median_ms": 1000 * float(np.median(seconds)),
        "p90_ms": 1000 * float(np.percentile(seconds, 90)),
        "images_per_s": description["batch_size"] / float(np.median(seconds)),
    }
    if description["kind"] == "train":
        last = np.asarray(outputs[0])
        for name, before, after in zip(description["outputs"], first[0], last):
            print(f"{name:<16} first {before:.6g}  after {arguments.runs + 1} steps {after:.6g}")
    expected = arguments.folder / "expected.npz"
    if expected.exists():
        with np.load(expected) as stored:
            wanted = [stored[name] for name in stored.files]
        differences = [
            np.linalg.norm(np.float64(a) - b) / max(np.linalg.norm(np.float64(b)), 1e-12)
            for a, b in zip(first, wanted)
        ]
        summary["largest_relative_difference"] = float(max(differences))
    print(json.dumps(summary))
    return int(summary.get("largest_relative_difference", 0.0) > arguments.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
