"""A few real photographs at a small size are learned by heart."""

import pytest

NUM_IMAGES = 4


@pytest.fixture
def few_photographs(detection_test_data, tmp_path):
    """Flags that name a set of four photographs with their 3 to 6 large objects each."""
    pass
