"""What all unit tests share beside `tests/conftest.py`."""

import os

# LLVM's optimiser takes most of XLA's compile time on the CPU and changes no result here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
