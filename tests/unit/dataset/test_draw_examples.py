"""The command that draws training examples: all sheets are written, and errors are said."""

import numpy as np
import pytest
from PIL import Image
from samples import encoded, record

from object_detection.records import schema
from object_detection.records.tfrecord_file import write_records

SHEETS = {"train", "eval", "flip", "scale", "crop", "translate", "color"}
SHEETS |= {"mosaic", "mixup", "autoaugment"}


def write_set(folder, *, with_masks=False, with_damage=False):
    """Three images of noise with a box each, and a mask that fills its left half.

    Damage is one more record, the first, whose image cannot be decoded.
    """
    mask = np.zeros((schema.MASK_SIZE, schema.MASK_SIZE), np.uint8)
    mask[:, : schema.MASK_SIZE // 2] = 1
    records = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 72, 3), np.uint8)
        image = {"image": encoded(pixels, "JPEG"), "image_format": "jpeg"}
        masks = [np.packbits(mask).tobytes()] if with_masks else None
        records.append(record(str(i), (48, 72), [[5, 10, 30, 60]], masks=masks, **image))
        if with_damage and i == 0:
            image["image"] = b"\xff\xd8\xffnothing"
            records.insert(0, record("bad", (48, 72), [[5, 10, 30, 60]], masks=masks, **image))
    write_records(folder / "set-00000-of-00001.tfrecord", records)


PROGRAM = "dataset/draw_examples.py"


def sheets_of(commands, folder, *flags):
    """Returns the sheets, and what was said."""
    output = f"--output_dir={folder}/sheets"
    done = commands.run(PROGRAM, output, "--num_rows=1", *flags).require_success()
    paths = (folder / "sheets").iterdir()
    return {path.stem: np.asarray(Image.open(path)) for path in paths}, done


@pytest.mark.slow
def test_all_sheets_of_a_run_are_written(commands, tmp_path):
    write_set(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "model: {name: efficientdet-lite0, image_size: [128, 256]}\n"
        f"data: {{training_file_pattern: '{tmp_path}/set-*', jitter_min: 0.9, jitter_max: 1.1}}\n"
    )
    sheets, done = sheets_of(commands, tmp_path, f"--model_dir={tmp_path}")
    assert "drawing what training sees" in done.output
    assert set(sheets) == SHEETS
    # Two columns of 320 pixels: the network's input, twice as wide as high, fills half of a cell.
    assert sheets["flip"].shape[0] < 320 < 640 < sheets["flip"].shape[1]
    for name, sheet in sheets.items():
        assert sheet.std() > 10, name


@pytest.mark.slow
def test_masks_are_drawn_and_mirrored_with_the_image(commands, tmp_path):
    write_set(tmp_path, with_masks=True, with_damage=True)
    records = f"--records={tmp_path}/set-*"
    sheets, done = sheets_of(commands, tmp_path, records, "--image_size=64")
    assert set(sheets) == SHEETS
    assert "set-00000-of-00001.tfrecord, record 0 is left out" in done.errors
    flip = sheets["flip"].astype(float)
    # Two pictures of 320 pixels side by side: the tint moves from the left to the right half of
    # the box, x 10..60 of 72, and takes most of the noise's contrast.
    top = flip.shape[0] - 320 - 40
    rows = slice(top + 60, top + 100)
    stored, mirrored = flip[rows, 12:332], flip[rows, 344:664]

    def contrast(picture, x):
        centre = round(x * 320 / 72)
        return picture[:, centre - 20 : centre + 20].std(axis=(0, 1)).mean()

    assert contrast(stored, 22) < 0.75 * contrast(stored, 48)
    assert contrast(mirrored, 72 - 22) < 0.75 * contrast(mirrored, 72 - 48)


def test_records_that_are_not_there_are_named(commands, tmp_path):
    done = commands.run(PROGRAM, f"--records={tmp_path}/nothing-*")
    assert done.code == 1
    assert f"{tmp_path}/nothing-*" in done.errors
    assert "Traceback" not in done.errors
    done = commands.run(PROGRAM)
    assert done.code == 2 and "expected --records='DATA/train-*' or --model_dir=RUN" in done.errors


def test_records_without_a_picture_are_named(commands, tmp_path):
    image = {"image": b"\xff\xd8\xffnothing", "image_format": "jpeg"}
    bad = record("bad", (48, 72), [[5, 10, 30, 60]], **image)
    write_records(tmp_path / "set-00000-of-00001.tfrecord", [bad])
    done = commands.run(PROGRAM, f"--records={tmp_path}/set-*", f"--output_dir={tmp_path}/sheets")
    (error,) = (line for line in done.errors.splitlines() if line.startswith("error: "))
    assert done.code == 1 and "record 0 cannot be used: bad.png (image_id=bad)" in error
    assert "Traceback" not in done.errors
