import os

import pytest

from outside_data.whole_file import write_whole


def test_a_file_that_fails_is_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_whole(path, "first, with é")
    assert path.read_bytes() == "first, with é".encode()

    def full(*_):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, "second")
    assert os.listdir(tmp_path) == ["metrics.json"] and path.read_text() == "first, with é"
    write_whole(path, "third")
    assert path.read_text() == "third"
