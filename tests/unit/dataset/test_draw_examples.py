"""The command that draws training examples: all sheets are written, and errors are said."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from object_detection.data import schema
from object_detection.data.tfrecord_file import write_records

SHEETS = {"train", "eval", "flip", "scale", "crop", "color"}


def write_set(folder):
    """Three images of noise with a box each."""
    records = []
    for i in range(3):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (48, 72, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        record = schema.encode_record(
            buffer.getvalue(),
            image_format="jpeg",
            height=48,
            width=72,
            source_id=str(i),
            file_name=f"{i}.jpg",
            boxes=np.array([[5, 10, 30, 60]], np.float32),
            category_ids=[9],
            category_names=["thing"],
            is_crowd=[0],
            areas=[1250.0],
        )
        records.append(record)
    write_records(folder / "set-00000-of-00001.tfrecord", records)


def run(repository, *arguments):
    command = [sys.executable, str(repository / "dataset" / "draw_examples.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_all_sheets_are_written(repository, tmp_path):
    write_set(tmp_path)
    done = run(
        repository,
        f"--records={tmp_path}/set-*",
        f"--output_dir={tmp_path}/sheets",
        "--image_size=64",
        "--num_rows=1",
    )
    assert done.returncode == 0, done.stderr
    sheets = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "sheets").iterdir()}
    assert set(sheets) == SHEETS
    for name, sheet in sheets.items():
        assert sheet.std() > 10, name
        assert str(tmp_path / "sheets" / f"{name}.png") in done.stdout


@pytest.mark.slow
def test_records_that_are_not_there_are_named(repository, tmp_path):
    done = run(repository, f"--records={tmp_path}/nothing-*")
    assert done.returncode == 1
    assert f"{tmp_path}/nothing-*" in done.stderr
    assert "Traceback" not in done.stderr
