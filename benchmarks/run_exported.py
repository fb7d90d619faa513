"""Compiles and times programs that `benchmarks/export_step.py` wrote, on the device JAX finds.

python benchmarks/run_exported.py EXPORT [EXPORT ...] --runs 20

Needs JAX and NumPy and the file program_arguments.py beside this one, neither TensorFlow nor the
rest of the project. A training step is fed its own new variables, so that the loss of the last step
shows whether it trains. Where the exporter stored expected numbers (--check), those of the first
call are compared with them. --profile records some calls; `python -m benchmarks.profile_summary
--model_dir=DIR` sums them up. The last line for each program is JSON.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import jax
import numpy as np
from jaxlib import xla_client
from program_arguments import rebuild

_PROFILED_RUNS = 3


def load(folder):
    """Returns (description, serialised program, arguments in order)."""
    description = json.loads((folder / "program.json").read_text())
    with np.load(folder / "arguments.npz") as stored:
        arguments = rebuild(description["arguments"], stored)
    return description, gzip.decompress((folder / "program.hlo.gz").read_bytes()), arguments


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


def measure(folder, *, runs, profile):
    """Compiles, checks and times one program; returns what to print of it."""
    description, program, values = load(folder)
    device = jax.devices()[0]
    replaced = {int(k): v for k, v in description["replaced_arguments"].items()}
    start = time.perf_counter()
    executable = compile_program(program, device)
    compile_seconds = time.perf_counter() - start
    values = [jax.device_put(value, device) for value in values]
    outputs, values = run(executable, values, replaced)
    first = [np.asarray(output) for output in outputs[: len(outputs) - len(replaced)]]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        outputs, values = run(executable, values, replaced)
        seconds.append(time.perf_counter() - start)
    if profile:
        with jax.profiler.trace(str(profile)):
            for _ in range(_PROFILED_RUNS):
                outputs, values = run(executable, values, replaced)
    if description["kind"] == "train":
        last = np.asarray(outputs[0])
        for name, before, after in zip(description["outputs"], first[0], last):
            print(f"{name:<20} first {before:.6g}  last {after:.6g}")
    quantiles = {f"p{q}_ms": 1000 * float(np.percentile(seconds, q)) for q in (90, 95, 99)}
    memory = executable.get_compiled_memory_stats()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    summary = {
        "device": device.device_kind,
        "jax": jax.__version__,
        **{k: description[k] for k in ("kind", "model", "batch_size", "precision", "commit")},
        "compile_s": compile_seconds,
        "median_ms": 1000 * float(np.median(seconds)),
        **quantiles,
        "images_per_s": description["batch_size"] / float(np.median(seconds)),
        "program_gb": (held - memory.alias_size_in_bytes) / 1e9,
    }
    expected = folder / "expected.npz"
    if expected.exists():
        with np.load(expected) as stored:
            wanted = [stored[name] for name in stored.files]
        differences = [
            np.linalg.norm(np.float64(a) - b) / max(np.linalg.norm(np.float64(b)), 1e-12)
            for a, b in zip(first, wanted)
        ]
        summary["largest_relative_difference"] = float(np.max(differences))
    return summary


def main():
    """Measures every program; the exit code is 1 if one differs from its expected numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="written by export_step.py")
    parser.add_argument("--runs", type=int, default=20, help="timed calls")
    parser.add_argument("--tolerance", type=float, default=0.02, help="largest relative difference")
    parser.add_argument("--profile", type=Path, help="record some calls into DIR/<name of EXPORT>")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # counters are 64-bit
    worst = 0.0
    for folder in arguments.folders:
        profile = arguments.profile and arguments.profile / folder.name
        summary = measure(folder, runs=arguments.runs, profile=profile)
        worst = np.maximum(worst, summary.get("largest_relative_difference", 0.0))
        print(json.dumps(summary), flush=True)
    return int(not worst <= arguments.tolerance)  # also of NaN


if __name__ == "__main__":
    raise SystemExit(main())
