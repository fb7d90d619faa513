"""Arguments of the Python scripts of NVIDIA's Mask R-CNN for TF2, turned into a launcher's call.

The scripts beside this file have that program's names, arguments and defaults; each is one call of
`scripts/launch.sh`, into which this process turns. What they do not know goes to our program, which
takes that program's other arguments too. `--batch_size` is for each GPU, and `--gpus` left out
means all of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHER = Path(__file__).resolve().parents[1] / "launch.sh"
BACKBONE_FOLDER = "rn50_tf_amp_ckpt_v20.06.0"
BACKBONE_PREFIX = "nvidia_rn50_tf_amp"


def parse(
    description: str,
    *,
    mode: str,
    batch_size: int | None = None,
    gpus: int | None = None,
    may_skip_eval: bool = False,
) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments that are known here, and the flags of our program.

    A task of a Slurm step that has to leave the start of a training to the first one ends here.

    Args:
      description: of the script, for --help.
      mode: train or eval; says which of that program's batch sizes is meant.
      batch_size: the default; None: it must be given.
      gpus: the default; None: there is no such argument.
      may_skip_eval: whether there is `--no_eval`.
    """
    parser = argparse.ArgumentParser(
        description=f"{description.splitlines()[0]} Other flags go to our program; DRY_RUN=1 "
        "prints its command.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--batch_size",
        f"--{mode}_batch_size",
        type=int,
        default=batch_size,
        required=batch_size is None,
        help="images per GPU",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--no_xla", action="store_true", help="do not compile with XLA")
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("DATA_DIR", "/data"),
        help="records (train-*, val-*) and annotations/",
    )
    parser.add_argument(
        "--model_dir",
        default=os.environ.get("MODEL_DIR", "/results"),
        help="folder of the run; what is evaluated may also be one checkpoint",
    )
    parser.add_argument(
        "--weights_dir", default="/weights", help="where download_weights.py has put the backbone"
    )
    parser.add_argument("--backbone_checkpoint", help="another backbone")
    parser.add_argument("--eval_file", help="other annotations than those in data_dir")
    if gpus is not None:
        parser.add_argument(
            "--gpus", type=int, default=gpus, help="number of GPUs; 0: all visible ones"
        )
    if mode == "train":
        parser.add_argument(
            "--slurm_lock",
            action="store_true",
            help="of the tasks of a Slurm step only the first starts the run, the others end at "
            "once",
        )
    if may_skip_eval:
        parser.add_argument("--no_eval", action="store_true", help="do not evaluate at the end")
    arguments, flags = parser.parse_known_args()
    if mode == "train" and arguments.slurm_lock and os.environ.get("SLURM_PROCID", "0") != "0":
        sys.exit()
    return arguments, ["--skip_test", *flags] if may_skip_eval and arguments.no_eval else flags


def visible_gpus() -> int:
    """Returns the number of GPUs that a run would see, at least 1."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return max(len([name for name in chosen.split(",") if name.strip()]), 1)
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return 1
    return max(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()), 1)


def launch(
    kind: str,
    arguments: argparse.Namespace,
    more_flags: Sequence[str],
    **variables: str,
) -> None:
    """Becomes the launcher; does not return.

    Args:
      kind: of run, as scripts/launch.sh names it.
      arguments: as the script has parsed them. gpus: 0 or none: as NGPU or a Slurm job says, else
        all that are visible.
      more_flags: for our program.
      **variables: of the launcher, beside those that all scripts set.
    """
    script, gpus = Path(sys.argv[0]).stem, getattr(arguments, "gpus", 0)
    precision = "amp" if arguments.amp else "tf32"
    backbone = f"{arguments.weights_dir}/{BACKBONE_FOLDER}/{BACKBONE_PREFIX}"
    settings = {
        "BS": str(arguments.batch_size),
        "AMP": str(arguments.amp),
        "DATA_DIR": arguments.data_dir,
        "BACKBONE_CKPT": arguments.backbone_checkpoint or backbone,
        "RESULTS_DIR": os.environ.get("RESULTS_DIR", arguments.model_dir),
        "PRESET": os.environ.get("PRESET", "nvidia_tf2"),
        **variables,
    }
    if gpus:
        settings["NGPU"] = str(gpus)
    command = ["bash", str(LAUNCHER), "maskrcnn", kind, "--name", script, "--gpus"]
    command += [str(gpus or visible_gpus()), "--recipe", f"tf2_coco_8xa100_{precision}", "--"]
    if arguments.no_xla:
        command.append("--nouse_xla")
    if arguments.eval_file:
        command.append(f"--val_json_file={arguments.eval_file}")
    command += more_flags
    told = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    print(" ".join([*told, shlex.join(command)]), file=sys.stderr, flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "MODEL_DIR"}
    os.execvpe(command[0], command, {**environment, **settings})
