"""What the commands of this folder share: how they end, what they write, flags of conversions."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctrl_c

from absl import app, flags

from engine.start import cli
from outside_data.system_errors import explained
from outside_data.text import clean_lines, counted
from outside_data.whole_file import write_whole

if TYPE_CHECKING:
    from outside_data.picture_file import PictureRules

# As if the signal of a closed pipe had ended it.
_NOT_READ = 128 + signal.SIGPIPE

# The flags belong to the program that asks for them: so its --help lists them.
flags.disclaim_key_flags()


def run(
    main: Callable[[list[str]], int], *, argument: str = "", interrupted: str = "interrupted"
) -> None:
    """Runs a command: unusable data end it with one line and status 1, a wrong call with 2.

    Args:
      main: takes the program's name and what is no flag, returns the exit status.
      argument: the one thing besides flags that has to be there; '': nothing may.
      interrupted: what is said after Ctrl-C or a request to end.
    """

    def guarded(argv: list[str]) -> int:
        if len(argv) != 1 + bool(argument):
            expected = argument or "flags only"
            came = shlex.join(argv[1:]) or "nothing"
            print(f"error: expected {expected}, got {came}; see --help", file=sys.stderr)
            return 2
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return main(argv)
        except BrokenPipeError:  # who reads what is printed has seen enough (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _NOT_READ
        except (ValueError, OSError, RuntimeError) as error:
            print(f"error: {clean_lines(explained(error))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            return ctrl_c.INTERRUPTED

    cli.prepare_console()
    ctrl_c.run(lambda: app.run(guarded, flags_parser=cli.parse_flags))


def write_coco(content: Mapping[str, Any], path: Path) -> None:
    """Writes a COCO data set, and says where it is and how much is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content))
    counts = [counted(len(content[f"{noun}s"]), noun) for noun in ("image", "annotation")]
    print(f"{path}: {', '.join(counts)}")


def define_conversion_flags() -> None:
    """Defines --include_masks, --num_threads, --on_orphan_annotation and those of pictures."""
    flags.DEFINE_bool("include_masks", False, "Store instance masks.")
    flags.DEFINE_integer(
        "num_threads",
        None,
        "Worker processes; default one for each core available.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "on_orphan_annotation",
        "stop",
        ["skip", "stop"],
        "What to do about COCO annotations whose image or category is not in the file.",
    )
    define_picture_flags()


def define_picture_flags() -> None:
    """Defines --exif, --max_image_pixels and --follow_links."""
    flags.DEFINE_enum(
        "exif",
        "ignore",
        ["ignore", "apply"],
        "In a conversion: store pixels as they are in the file, or turned by their EXIF "
        "orientation, unless the annotations' size is that of the stored pixels. As in infer.py.",
    )
    flags.DEFINE_integer(
        "max_image_pixels",
        None,
        "In a conversion: height times width beyond which an image counts as bad, undecoded; "
        "none: 64 million.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "follow_links", False, "In a conversion: read links that lead out of the image folder."
    )


def picture_rules() -> PictureRules:
    """Returns what the flags say."""
    # With it NumPy and Pillow, which --help does not wait for.
    from outside_data.picture_file import MAX_PIXELS, PictureRules

    values = flags.FLAGS
    most = values.max_image_pixels or MAX_PIXELS
    return PictureRules(values.exif, most, values.follow_links)
