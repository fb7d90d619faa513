"""A small mirror of COCO's servers, and the scripts that fetch from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from commands import ROOT

needs_curl = pytest.mark.skipif(
    not shutil.which("bash") or not shutil.which("curl"), reason="needs bash and curl"
)


def instances(numbers: Iterable[int], file_name: str = "{}.jpg") -> str:
    """Returns the annotations of images: one person with a mask, a square, in each."""
    square = [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]
    person = {"category_id": 1, "bbox": [4, 4, 10, 10], "segmentation": square}
    content = {
        "images": [{"id": i, "file_name": file_name.format(i)} for i in numbers],
        "annotations": [{"id": i + 1, "image_id": i, **person} for i in numbers],
        "categories": [{"id": 1, "name": "person"}],
    }
    return json.dumps(content)


def fetch(
    script: str, *arguments: str, mirror: Path, archives: Mapping[str, str], **variables: str
) -> subprocess.CompletedProcess:
    """Runs a script of dataset/ against a mirror.

    Args:
      script: name of the script.
      arguments: of the script.
      mirror: folder of the mirror.
      archives: variable of a checksum -> archive in the mirror.
      variables: further ones, or others.
    """
    environment = {
        **os.environ,
        **{key: hashlib.md5((mirror / n).read_bytes()).hexdigest() for key, n in archives.items()},
        "COCO_URL": f"file://{mirror}",
        "PYTHON": sys.executable,
        "MIN_FREE_GB": "0",
        **variables,
    }
    command = ["bash", str(ROOT / "dataset" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
