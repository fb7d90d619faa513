"""A data folder of one test, and how it is read."""

from PIL import Image

from object_detection.coco.annotations import read_annotations
from object_detection.convert.prepare import coco_splits

SIZE = (40, 20)  # width, height
NAMES = ["cat", "dog"]
BOXES = [("cat", 1, 2, 10, 8), ("dog", 20, 5, 20, 15)]  # class, x, y, width, height


def plain(boxes=BOXES):
    """Returns boxes as `Folder.read` does, none of a crowd."""
    return [(*box, False) for box in boxes]


class Folder:
    """A data folder in the making."""

    def __init__(self, root):
        self.root = root
        self.lines = []

    def write(self, name, content=""):
        """Writes a text file, or a picture if nothing is given for one."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content or path.suffix.lower() not in (".jpg", ".png"):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            Image.new("RGB", SIZE, (len(name) * 10 % 255, 90, 20)).save(path)

    def splits(self):
        return coco_splits(self.root, f"{self.root}-work", report=self.lines.append)

    def read(self):
        """Returns split to image to (class, x, y, width, height, crowd)."""
        result = {}
        for split, (path, _) in self.splits().items():
            listed = read_annotations(path)
            result[split] = {
                image.file_name: [
                    (
                        listed.category_names[entry["category_id"]],
                        *(round(side, 1) for side in entry["bbox"]),
                        bool(entry["iscrowd"]),
                    )
                    for entry in listed.objects.get(image.source_id, ())
                ]
                for image in listed.images
            }
        return result

    @property
    def said(self):
        return "\n".join(self.lines)
