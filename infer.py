"""Draws what a trained detector finds on images and videos, and writes it as JSON.

python infer.py --image_path=PHOTOS --model_dir=RUN --output_dir=OUT
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

import families
from engine.config.fields import ConfigError
from engine.start import cli
from object_detection.coco.listed import some
from outside_data.picture_file import MAX_PIXELS
from outside_data.text import clean, clean_lines, counted
from outside_data.whole_file import write_whole

if TYPE_CHECKING:  # they bring TensorFlow
    import numpy as np

    from object_detection.serve.inference import Prediction

flags.DEFINE_string("image_path", "", "Image or video file, folder of images, or glob.")
flags.DEFINE_string("image_list", "", "Text file with one path per line, instead of image_path.")
flags.DEFINE_string("annotations", "", "COCO annotations to draw beside the detections.")
flags.DEFINE_integer(
    "worst",
    0,
    "With annotations: draw only so many images, those with the most errors; 0: all.",
    lower_bound=0,
)
flags.DEFINE_string(
    "output_dir", "", "Folder for annotated images and detections.json; made if need be."
)
families.define_checkpoint_flags()
flags.DEFINE_string(
    "saved_model_dir", "", "Exported model to use; with --model_dir it is exported there first."
)
flags.DEFINE_float(
    "min_score_thresh", 0.4, "Least score drawn and written.", lower_bound=0, upper_bound=1
)
flags.DEFINE_integer("max_boxes_to_draw", 100, "Most objects drawn on an image.", lower_bound=0)
flags.DEFINE_bool("draw_boxes", True, "Draw boxes around masks too.")
flags.DEFINE_enum(
    "heat_map",
    "none",
    ["none", "probability", "score"],
    "Draw NAME-heat.png too, of models with masks: score times probability of the mask, or the "
    "score inside the mask.",
)
flags.DEFINE_enum(
    "exif",
    "ignore",
    ["ignore", "apply"],
    "Use the pixels as stored, or turned by their EXIF orientation: as in the conversion of the "
    "training set.",
)
flags.DEFINE_integer(
    "max_image_pixels",
    MAX_PIXELS,
    "Height times width beyond which an image is left out undecoded.",
    lower_bound=1,
)
flags.DEFINE_bool("debug", False, "Run eagerly.")
FLAGS = flags.FLAGS

EXIT_SOME_LEFT_OUT = 3  # the others were written
_NAME_BYTES = 200
_RESULTS = ("-detections.png", "-detections.mp4", "-heat.png", "contact-sheet.png")
_SHOWN = 3
# Images on the contact sheet.
_SHEET_IMAGES = 16


def intent() -> str:
    """Checks the flags; returns what is about to be done."""
    if not FLAGS.output_dir:
        raise ConfigError("--output_dir is required")
    if bool(FLAGS.image_path) == bool(FLAGS.image_list):
        raise ConfigError(
            "give either --image_path (file, folder or glob) or --image_list (text file)"
        )
    if not (FLAGS.model_dir or FLAGS.saved_model_dir):
        raise ConfigError("give --model_dir (a checkpoint) or --saved_model_dir (an export)")
    given = FLAGS.preset or FLAGS.hparams or FLAGS["model_name"].present
    if not FLAGS.model_dir and given:
        raise ConfigError(
            f"{FLAGS.saved_model_dir}, an export, keeps its settings: leave --model_name, --preset "
            "and --hparams out, or name the checkpoint with --model_dir"
        )
    if FLAGS.worst and not FLAGS.annotations:
        raise ConfigError("--worst needs --annotations, to know what is wrong")
    source = FLAGS.image_path or FLAGS.image_list
    return f"detecting on {source} with {FLAGS.model_dir or FLAGS.saved_model_dir}"


def main() -> int:
    """Runs the detector over the images; returns the exit code."""
    import tensorflow as tf
    from PIL import Image

    from object_detection.draw.visualize import contact_sheet
    from object_detection.serve import image_files, inference, videos

    tf.config.run_functions_eagerly(FLAGS.debug)
    if FLAGS.image_list:
        given = image_files.read_image_list(FLAGS.image_list)
    else:
        given = image_files.find_images(FLAGS.image_path)
    output = Path(FLAGS.output_dir)
    drawn = [path for path in given if is_drawing(Path(path), output)]
    if drawn and len(drawn) < len(given):
        print(f"left out, as an earlier run wrote them: {some(drawn, _SHOWN)}", flush=True)
        given = [path for path in given if path not in drawn]
    films = [path for path in given if videos.is_video(path)]
    paths = [path for path in given if not videos.is_video(path)]
    if films and (FLAGS.annotations or FLAGS.heat_map != "none"):
        raise ConfigError(
            f"{films[0]} is a video: --annotations and --heat_map are for images, leave them out"
        )
    truth = inference.AnnotatedImages(FLAGS.annotations) if FLAGS.annotations else None
    mask_rule = None
    if FLAGS.model_dir:
        task = families.flagged_task()
        detector, class_map = inference.detector_of(task.detect_images), task.class_map
        mask_rule = task.mask_rule
        if FLAGS.saved_model_dir:
            families.load(task.config.model.name).export(task, Path(FLAGS.saved_model_dir))
    if FLAGS.saved_model_dir:
        detector, class_map, mask_rule = inference.saved_model_detector(FLAGS.saved_model_dir)
    output.mkdir(parents=True, exist_ok=True)
    how = {
        "detector": detector,
        "class_map": class_map,
        "min_score": FLAGS.min_score_thresh,
        "mask_rule": mask_rule,
    }
    predict = functools.partial(
        inference.predict_files, exif=FLAGS.exif, max_pixels=FLAGS.max_image_pixels, **how
    )

    def drawing(found: Prediction) -> np.ndarray:
        return inference.draw(
            found.image,
            found.objects,
            class_map,
            with_masks=found.masks is not None,
            max_objects=FLAGS.max_boxes_to_draw,
            with_boxes=FLAGS.draw_boxes,
        )

    def target_of(path: str, ending: str) -> Path:
        """Names a result, those of equal names in several folders cat, cat-2, ..."""
        # Within the 255 bytes that file systems have for a name.
        stem = os.fsencode(Path(path).stem)[:_NAME_BYTES].decode("utf-8", "surrogateescape")
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10**6))) if n not in names)
        names.add(name)
        return output / f"{name}{ending}"

    def show(picture: np.ndarray) -> None:
        """Keeps the first pictures for the contact sheet: all of them may be more than fit."""
        if len(sheet) < _SHEET_IMAGES:
            sheet.append(picture)

    sheet, unreadable, noted, names = [], [], [], set()
    num_films = num_images = 0
    with kept(output / "detections.json") as written:
        for film in films:
            target = target_of(film, "-detections.mp4")
            frames = (
                inference.predict_pixels(path=name, image=frame, **how)
                for name, frame in videos.named_frames(film)
            )
            try:
                show(draw_film(film, target, frames, drawing, written))
            except (ValueError, FileNotFoundError) as error:
                unreadable.append(str(error))
                continue
            num_films += 1
        shown = paths
        if FLAGS.worst:
            for found in predict(paths=paths, unreadable=unreadable, noted=noted):
                written += found.entries(truth)
            shown = truth.worst_files(written, paths, count=FLAGS.worst)
            print(f"drawing the {len(shown)} worst of {len(paths)} images", flush=True)
        aside = {"unreadable": [], "noted": []} if FLAGS.worst else {}
        for found in predict(paths=shown, **{"unreadable": unreadable, "noted": noted, **aside}):
            target = target_of(found.path, "-detections.png")
            drawn = drawing(found)
            if truth:
                drawn = truth.beside(found, drawn, class_map, with_boxes=FLAGS.draw_boxes)
            Image.fromarray(drawn).save(target)
            if FLAGS.heat_map != "none":
                heat = inference.draw_heat(found, weigh_by=FLAGS.heat_map)
                name = target.name.replace("-detections.png", "-heat.png")
                Image.fromarray(heat).save(output / name)
            show(drawn)
            num_images += 1
            if not FLAGS.worst:
                written += found.entries(truth)
            objects = counted(len(found.objects), "object")
            print(f"{clean(found.path)}: {objects} -> {clean(target)}", flush=True)
        for note in noted:
            print(f"WARNING: {clean_lines(note)}", flush=True)
        for problem in unreadable:
            print(f"WARNING: left out: {clean_lines(problem)}", flush=True)
        if len(unreadable) == len(given):
            raise ValueError(f"none of the {len(given)} images could be read: {unreadable[0]}")
    if sheet:
        Image.fromarray(contact_sheet(sheet, 2 if truth else 4)).save(output / "contact-sheet.png")
    counts = f"{counted(num_films, 'video')}, " if films else ""
    counts += counted(num_images, "image")
    print(f"{counts}; detections.json and contact-sheet.png are in {output}")
    if unreadable:
        print(f"{len(unreadable)} of {len(given)} images were left out, see the warnings above")
        return EXIT_SOME_LEFT_OUT
    return 0


@contextlib.contextmanager
def kept(path: Path) -> Iterator[list[dict]]:
    """Yields a list that is written as JSON at the end; an early end leaves NAME.partial.json.

    The limit of a batch job, SIGTERM, is an interrupt.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    partial = path.with_suffix(".partial.json")
    entries: list[dict] = []
    try:
        yield entries
    except BaseException:
        if entries:
            write_whole(partial, json.dumps(entries, indent=1))
            count = counted(len(entries), "object")
            print(f"WARNING: ended early: {clean(partial)} has the {count} until then", flush=True)
        raise
    write_whole(path, json.dumps(entries, indent=1))
    partial.unlink(missing_ok=True)


def is_drawing(path: Path, output: Path) -> bool:
    """Whether a picture or film is called as results are, and lies where they go."""
    is_there = os.path.realpath(path.parent) == os.path.realpath(output)
    return is_there and path.name.endswith(_RESULTS)


def draw_film(
    film: str,
    target: Path,
    frames: Iterator[Prediction],
    drawing: Callable[[Prediction], np.ndarray],
    entries: list[dict],
) -> np.ndarray:
    """Writes a video of drawn frames; returns the first of them.

    Args:
      film: its path.
      target: of the result.
      frames: what was found on each frame.
      drawing: draws it.
      entries: becomes longer by what was found.

    Raises:
      ValueError: it is not readable, or has no frame; nothing is left of it.
    """
    from object_detection.serve import videos

    first, found = None, []
    with videos.written(target, rate=videos.frame_rate(film)) as take:
        for frame in frames:
            drawn = drawing(frame)
            take(drawn)
            first = drawn if first is None else first
            found += frame.entries()
        if first is None:
            raise ValueError(f"{film} is a video without a frame")
    entries += found
    print(f"{clean(film)}: {counted(len(found), 'object')} -> {clean(target)}", flush=True)
    return first


if __name__ == "__main__":
    cli.run_app(main, intent=intent)
