"""The command lines, YAML files, log names and results of both NVIDIA references."""
