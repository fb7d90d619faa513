"""Arguments of NVIDIA's Mask R-CNN for PyTorch, and those that name files and data sets.

All are listed in docs/maskrcnn_arguments.md; `command_line` applies them. Only arguments that were
given count, so the defaults here are for --help.
"""

from __future__ import annotations

import dataclasses

from engine.config.fields import setting


@dataclasses.dataclass(frozen=True)
class FileArguments:
    """NVIDIA's Mask R-CNN for PyTorch: configuration files, data sets by name."""

    config_file: str = setting(
        "", "YAML file of NVIDIA's PyTorch program; KEY VALUE pairs may follow."
    )
    weights_dir: str = setting("weights", "Folder with the files of catalog:// weights.")
    data_catalog: str = setting(
        "", "YAML file of data sets: NAME: {images, annotations, records}; docs/data.md."
    )
    train_sets: tuple[str, ...] = setting(
        (), "Data sets to train on together; default: the YAML's DATASETS.TRAIN."
    )
    test_sets: tuple[str, ...] = setting(
        (), "Data sets to evaluate one by one; default: the YAML's DATASETS.TEST."
    )


@dataclasses.dataclass(frozen=True)
class PyTorchArguments:
    """NVIDIA's Mask R-CNN for PyTorch: arguments named otherwise than ours."""

    max_steps: int = setting(0, "SOLVER.MAX_ITER, above the file and the pairs; 0: theirs.")
    fp16: bool = setting(False, "--amp.")
    json_summary: str = setting("", "--log_filename.")
    infer_steps: int = setting(-1, "Batches to evaluate, of TEST.IMS_PER_BATCH images; -1: all.")


@dataclasses.dataclass(frozen=True)
class RefusedPyTorchArguments:
    """NVIDIA's arguments that are refused; the help text is the reason."""

    local_rank: str = setting(
        "", "Refused: ranks are started by mpirun, horovodrun or srun and know their place."
    )
    skip_checkpoint: bool = setting(False, "Refused: --benchmark saves nothing.")
