"""A few real photographs at a small size are learned by heart."""

import json

import pytest
from conftest import BACKBONE

from object_detection.data.coco_json import read_annotations
from object_detection.data.convert import convert

NUM_IMAGES = 4


@pytest.fixture
def few_photographs(detection_test_data, tmp_path):
    """Flags that name a set of four photographs with their 3 to 6 large objects each."""
    pass
