"""Writes one small set of images in the form of every annotation format."""

import base64
import csv
import json
from pathlib import Path

from PIL import Image
from samples import voc_xml, yolo_lines

SIZE = (40, 20)  # width, height
NAMES = ["cat", "dog", "bird"]
# split -> file stem -> [(class, x, y, width, height)]
TRUTH = {
    "train": {"a": [("cat", 1, 2, 10, 8), ("dog", 20, 5, 20, 15)], "b": []},
    "val": {"c": [("dog", 4, 4, 8, 4)]},
}


def write_images(root: Path, where: str = "{split}/{stem}.jpg") -> None:
    for split, images in TRUTH.items():
        for number, stem in enumerate(images):
            path = root / where.format(split=split, stem=stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE, (number * 40, 90, 20)).save(path)


def write_voc(root, *, shift=1):
    write_images(root)
    (root / "labels.txt").write_text("\n".join(NAMES))
    tool = "" if shift else "<source><database>Unknown</database></source>"
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
    more = f"<filename>old-name.png</filename>{tool}{size}"
    for split, images in TRUTH.items():
        for stem, objects in images.items():
            (root / split / f"{stem}.xml").write_text(voc_xml(objects, shift=shift, more=more))


def write_plain_voc(root):
    write_voc(root, shift=0)


def write_yolo(root, *, suffix=".jpg"):
    write_images(root, "images/{split}/{stem}" + suffix)
    for split, images in TRUTH.items():
        (root / "labels" / split).mkdir(parents=True)
        for stem, objects in images.items():
            (root / "labels" / split / f"{stem}.txt").write_text(yolo_lines(objects, NAMES, SIZE))
    (root / "data.yaml").write_text(
        "path: ../datasets/of_another_machine\ntrain: ../images/train\nval: images/val\n"
        "names: {0: cat, 1: dog, 2: bird}\n"
    )


def write_yolo_without_yaml(root):
    write_images(root)
    for split, images in TRUTH.items():
        for stem, objects in images.items():
            if objects:
                (root / split / f"{stem}.txt").write_text(yolo_lines(objects, NAMES, SIZE))
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")


def write_cvat(root):
    write_images(root)
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    nodes = ""
    for split, images in TRUTH.items():
        for stem, objects in images.items():
            shapes = "".join(
                f'<box label="{n}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
                for n, x, y, w, h in objects
            ) + '<points label="cat" points="1,1"/>' * (stem == "b")
            nodes += (
                f'<image name="{stem}.jpg" subset="{split}" width="{SIZE[0]}" height="{SIZE[1]}">'
                f"{shapes}</image>"
            )
    (root / "annotations.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{nodes}</annotations>"
    )


def write_labelme(root):
    write_images(root)
    (root / "labels.txt").write_text("__ignore__\n" + "\n".join(NAMES))
    for split, images in TRUTH.items():
        for stem, objects in images.items():
            shapes = [
                {"label": n, "points": [[x + w, y], [x, y + h]], "shape_type": "rectangle"}
                for n, x, y, w, h in objects
            ]
            content = {"version": "5", "shapes": shapes, "imagePath": f"..\\{split}\\{stem}.jpg"}
            content |= {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
            (root / split / f"{stem}.json").write_text(json.dumps(content))


def write_labelme_with_pictures_inside(root):
    write_labelme(root)
    for path in (root / "train/a.jpg", root / "val/c.jpg"):
        content = json.loads(path.with_suffix(".json").read_text())
        content["imageData"] = base64.b64encode(path.read_bytes()).decode()
        path.with_suffix(".json").write_text(json.dumps(content))
        path.unlink()


def write_label_studio(root):
    write_images(root)
    for split, images in TRUTH.items():
        tasks = []
        for stem, objects in images.items():
            result = [
                {
                    "type": "rectanglelabels",
                    "original_width": SIZE[0],
                    "original_height": SIZE[1],
                    "value": {
                        **{"x": 100 * x / SIZE[0], "y": 100 * y / SIZE[1]},
                        **{"width": 100 * w / SIZE[0], "height": 100 * h / SIZE[1]},
                        "rectanglelabels": [name],
                    },
                }
                for name, x, y, w, h in objects
            ]
            name = f"/data/local-files/?d=other%20place/{split}/{stem}.jpg"
            if stem == "c":
                name = "/data/upload/3/1a2b3c4d-c.jpg"
            tasks.append({"data": {"image": name}, "annotations": [{"result": result}]})
        (root / f"{split}.json").write_text(json.dumps(tasks))


def write_label_studio_by_task(root):
    """One file for each task, or for each annotation: as storage that is synchronised gets them."""
    write_label_studio(root)
    for path in [*root.glob("*.json")]:
        (root / "labels" / path.stem).mkdir(parents=True)
        for number, task in enumerate(json.loads(path.read_text())):
            (annotation,) = task.pop("annotations")
            by_task = {"annotations": [annotation], **task}
            content = {**annotation, "task": task} if number else by_task
            name = f"{number}" if number else "0.json"
            (root / "labels" / path.stem / name).write_text(json.dumps(content))
        path.unlink()


def write_createml(root, *, image="image", annotations="annotations"):
    write_images(root)
    for split, images in TRUTH.items():
        entries = [
            {
                image: f"{stem}.jpg",
                annotations: [
                    {
                        "label": name,
                        "coordinates": dict(zip("xy", (x + w / 2, y + h / 2)), width=w, height=h),
                    }
                    for name, x, y, w, h in objects
                ],
            }
            for stem, objects in reversed(images.items())
        ]
        (root / split / "_annotations.createml.json").write_text(json.dumps(entries))


def write_createml_of_apple(root):
    write_createml(root, image="imagefilename", annotations="annotation")


def via_images(split):
    """Returns VGG Image Annotator's images of a split."""
    return {
        f"{stem}.jpg{len(stem)}": {
            "filename": f"{stem}.jpg",
            "size": len(stem),
            "regions": [
                {
                    "shape_attributes": {"name": "rect", "x": x, "y": y, "width": w, "height": h},
                    "region_attributes": {"type": name},
                }
                for name, x, y, w, h in objects
            ],
            "file_attributes": {},
        }
        for stem, objects in TRUTH[split].items()
    }


def write_via(root):
    """As version 1 wrote them: regions under their numbers."""
    write_images(root)
    for split in TRUTH:
        images = via_images(split)
        for entry in images.values():
            entry["regions"] = {str(i): region for i, region in enumerate(entry["regions"])}
        (root / split / "via_region_data.json").write_text(json.dumps(images))


def write_via_project(root):
    write_images(root)
    for split in TRUTH:
        project = {"_via_settings": {"ui": {}}, "_via_img_metadata": via_images(split)}
        (root / f"{split}.json").write_text(json.dumps({**project, "_via_attributes": {}}))


def write_supervisely(root):
    """Corners of rectangles are pixels that belong to them."""
    write_images(root, "{split}/img/{stem}.jpg")
    classes = [{"title": name, "shape": "rectangle", "color": "#F00000"} for name in NAMES]
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for split, images in TRUTH.items():
        (root / split / "ann").mkdir()
        for stem, objects in images.items():
            listed = [
                {
                    "classTitle": name,
                    "geometryType": "rectangle",
                    "points": {"exterior": [[x, y], [x + w - 1, y + h - 1]], "interior": []},
                }
                for name, x, y, w, h in objects
            ]
            size = {"width": SIZE[0], "height": SIZE[1]}
            content = {"description": "", "tags": [], "size": size, "objects": listed}
            (root / split / "ann" / f"{stem}.jpg.json").write_text(json.dumps(content))


def write_retinanet(root):
    write_images(root)
    for split, images in TRUTH.items():
        lines = [
            f"{split}/{stem}.jpg,{x},{y},{x + w},{y + h},{name}"
            for stem, objects in images.items()
            for name, x, y, w, h in objects
        ]
        empty = [f"{split}/{stem}.jpg,,,,," for stem, objects in images.items() if not objects]
        (root / f"{split}.csv").write_text("\n".join([*empty, *lines]))
    (root / "classes.csv").write_text("dog,1\ncat,0\nbird,2\n")


def write_open_images(root):
    write_images(root)
    for split, images in TRUTH.items():
        with (root / f"{split}-annotations-bbox.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"])
            for stem, objects in images.items():
                for n, x, y, w, h in objects:
                    xs, ys = (x / SIZE[0], (x + w) / SIZE[0]), (y / SIZE[1], (y + h) / SIZE[1])
                    rows.writerow([stem, f"/m/{n}", *xs, *ys, 0])
    lines = [f"/m/{name},{name}" for name in NAMES]
    (root / "class-descriptions-boxable.csv").write_text("\n".join(lines))
