"""Fetches the backbone that Mask R-CNN starts from: NVIDIA's ResNet-50 (NGC), or Detectron's R-50.

python scripts/maskrcnn/download_weights.py --save_dir /weights
python scripts/maskrcnn/download_weights.py --save_dir /weights --weights pytorch

The same as zoo:nvidia/rn50_tf_amp and zoo:detectron/R-50, into a folder of one's own. An
interrupted download goes on where it stopped; what is there is not fetched again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.config.arguments import ArgumentParser
from engine.files import zoo

_NAMES = {"tf2": "nvidia/rn50_tf_amp", "pytorch": "detectron/R-50"}


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--save_dir", type=Path, default=Path("/weights"), help="target folder")
    parser.add_argument(
        "--weights", choices=sorted(_NAMES), default="tf2", help="of which reference"
    )
    parser.add_argument("--download_url", help="another place of the same file")
    parser.add_argument("--md5", help="sum of the downloaded file, where it is known")
    return parser.parse_args()


def main() -> int:
    """Fetches the weights; returns the exit code."""
    arguments = parse_arguments()
    entry = zoo.entries()[_NAMES[arguments.weights]]
    given = {"url": arguments.download_url, "md5": arguments.md5}
    entry = dataclasses.replace(entry, **{name: value for name, value in given.items() if value})
    try:
        backbone = zoo.fetch(entry, arguments.save_dir)
    except ValueError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"ERROR: {entry.url}: {error}. Called again it goes on where it stopped. On a machine "
            f"without network: fetch the file elsewhere, put it at "
            f"{arguments.save_dir / entry.file} and call this again.",
            file=sys.stderr,
        )
        return 1
    print(f"backbone: {backbone}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
