"""Which CUDA toolkit Horovod is built with."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_cuda_toolkit_is_found_through_any_nvcc(tmp_path):
    real = tmp_path / "cuda-13.0"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "nvcc").write_text('#!/bin/sh\necho "#$ TOP=$(dirname "$0")/.." >&2\nexit 1\n')
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    for file in (wrapper, real / "bin" / "nvcc"):
        file.chmod(0o755)
    program = f"set -euo pipefail; source {ROOT}/scripts/setup/horovod.sh; cuda_home"
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def found() -> str:
        command = ["bash", "-c", program]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        return result.stdout.strip()

    assert found() == str(real)
    wrapper.write_text("#!/bin/sh\nexit 0\n")
    assert found() == "/usr/local/cuda"
