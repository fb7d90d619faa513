"""Learns a few real images by heart: the proof that the whole chain can reach AP 1 on own data.

    python scripts/overfit.py --data DIR --model maskrcnn

Trains and scores on the same few images, those with the fewest and largest objects. A low score
after a long run means that annotations, records or settings are wrong, which no amount of data will
mend.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# It puts the repository on the path.
from quickstart import format_scores, run, say, train_command, with_model

# isort: split
import ctrl_c

from engine.config.arguments import ArgumentParser
from object_detection.coco.annotations import (
    CocoAnnotations,
    read_annotations,
    read_scored,
    write_annotations,
)
from object_detection.coco.listed import CocoImage
from object_detection.convert.convert import convert
from object_detection.convert.prepare import Prepared
from object_detection.convert.splits import find_splits
from outside_data.system_errors import explained

_MOST_OBJECTS = 4
_LEAST_SHARE = 0.04  # of the image's area, for every object


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="COCO-format folder")
    parser.add_argument(
        "--model",
        default="efficientdet-lite0",
        help="model name; maskrcnn is maskrcnn-r50-fpn (default %(default)s)",
    )
    parser.add_argument("--output", default="overfit", help="folder (default %(default)s)")
    parser.add_argument("--split", help="where the images are from; default the first, train*")
    parser.add_argument("--images", type=int, default=4, help="how many (default %(default)s)")
    parser.add_argument(
        "--image_size", type=int, default=128, help="network input, pixels (default %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="Horovod ranks (default %(default)s)")
    parser.add_argument("flags", nargs="*", help="further flags for train.py, after --")
    return with_model(parser.parse_args())


def choose_images(annotations: CocoAnnotations, count: int) -> CocoAnnotations:
    """Returns the images with the fewest objects, all of them large, and their annotations.

    Raises:
      ValueError: there are too few such images.
    """

    def is_easy(image: CocoImage) -> bool:
        least = _LEAST_SHARE * (image.width or 0) * (image.height or 0)
        found = annotations.objects.get(image.source_id, ())
        return 1 <= len(found) <= _MOST_OBJECTS and all(
            a["bbox"][2] * a["bbox"][3] > least > 0 and not a["iscrowd"] for a in found
        )

    easy = [image.source_id for image in annotations.images if is_easy(image)]
    if len(easy) < count:
        raise ValueError(
            f"{len(easy)} images have 1 to {_MOST_OBJECTS} objects of more than {_LEAST_SHARE:.0%} "
            f"of the image each, expected {count}: ask for fewer with --images"
        )
    return annotations.subset(
        sorted(easy, key=lambda source_id: len(annotations.objects[source_id]))[:count]
    )


def main() -> None:
    """Chooses, converts, trains, and prints the scores."""
    args = parse_arguments()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    splits = find_splits(args.data)
    names = [args.split] if args.split else sorted(splits, key=lambda n: not n.startswith("train"))
    if names[0] not in splits:
        raise ValueError(f"no split {names[0]!r} in {args.data}; there are: {', '.join(splits)}")
    source, image_dir = splits[names[0]]
    output = Path(args.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    annotations = output / "instances_few.json"
    write_annotations(choose_images(read_scored(source), args.images), annotations)
    say(f"{args.images} images of {source}")
    for split in ("train", "eval"):
        convert(
            read_annotations(annotations),
            image_dir,
            output / "records" / split,
            num_shards=1,
            mask_format="bitpacked" if args.has_masks else None,
        )
    records = Prepared(output / "records", annotations, image_dir)
    batch = -(-args.images // args.ranks)
    sizes = (f"--batch_size={batch}", f"--eval_batch_size={args.images}")
    recipe = f"scripts/overfit_{args.family}.yaml"
    run(train_command(args, records, output / "run", recipe, *sizes))
    metrics = json.loads((output / "run" / "evaluation" / "metrics.json").read_text())
    print(f"RESULT model={args.model} images={args.images} {format_scores(metrics)}")


if __name__ == "__main__":
    try:
        ctrl_c.run(main)
    except (OSError, ValueError) as error:
        sys.exit(f"ERROR: {explained(error)}")
