"""Which CUDA toolkit Horovod is built with."""

import os
import subprocess
from pathlib import Path

from stub_machine import write_executable

ROOT = Path(__file__).resolve().parents[2]


def test_the_cuda_toolkit_is_found_through_any_nvcc(tmp_path):
    real = tmp_path / "cuda-13.0"
    (real / "bin").mkdir(parents=True)
    nvcc = write_executable(real / "bin" / "nvcc", 'echo "#$ TOP=$(dirname "$0")/.." >&2\nexit 1')
    (tmp_path / "bin").mkdir()
    wrapper = write_executable(tmp_path / "bin" / "nvcc", f'exec {nvcc} "$@"')
    program = f"set -euo pipefail; source {ROOT}/scripts/setup/horovod.sh; cuda_home"
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def found() -> str:
        command = ["bash", "-c", program]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        return result.stdout.strip()

    assert found() == str(real)
    write_executable(wrapper, "exit 0")
    assert found() == "/usr/local/cuda"
