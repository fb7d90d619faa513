"""Lists of class names that annotation tools put beside the labels."""

from __future__ import annotations

from object_detection.formats.folder import DataFolder

_NAMES = ("classes.txt", "labels.txt", "obj.names", "_darknet.labels", "labelmap.txt")
_NO_CLASSES = frozenset(("__ignore__", "_background_", "background"))


def read_class_list(folder: DataFolder, *names: str) -> list[str]:
    """Returns the class names of the first list that is there, in order; [] if there is none.

    CVAT's `labelmap.txt` has a colour and more behind each name; its heading starts with `#`.

    Args:
      folder: of the data set.
      *names: file names of lists; default all that are known.
    """
    for wanted in names or _NAMES:
        suffix = "." + wanted.rsplit(".", 1)[-1]
        for path in folder.files(suffix):
            if path.name == wanted:
                lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
                if wanted == "labelmap.txt":
                    lines = [line.split(":")[0] for line in lines if not line.startswith("#")]
                return [line for line in lines if line and line not in _NO_CLASSES]
    return []
