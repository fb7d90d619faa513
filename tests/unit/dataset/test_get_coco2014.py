"""get_coco2014.sh against a small mirror: downloads, the minival merge, records, doing nothing."""

import functools
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from coco_mirror import fetch, instances, needs_curl
from PIL import Image

from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.catalog import choose, records_of, stock_catalog

ARCHIVES = {
    "MD5_ANNOTATIONS": "annotations/annotations_trainval2014.zip",
    "MD5_VAL": "zips/val2014.zip",
    "MD5_TRAIN": "zips/train2014.zip",
    "MD5_MINIVAL": "minival.tgz",
}
NUMBERS = {"train": (1, 2), "val": (3, 4, 5), "minival": (5,), "valminusminival": (3, 4)}

pytestmark = needs_curl


@pytest.fixture
def mirror(tmp_path):
    """A folder laid out as the servers."""
    root = tmp_path / "mirror"
    for folder in ("annotations", "zips"):
        (root / folder).mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 60, 30)).save(buffer, "JPEG")
    with zipfile.ZipFile(root / ARCHIVES["MD5_ANNOTATIONS"], "w") as archive:
        for split in ("train", "val"):
            archive.writestr(f"annotations/instances_{split}2014.json", instances(NUMBERS[split]))
    for split in ("train", "val"):
        with zipfile.ZipFile(root / "zips" / f"{split}2014.zip", "w") as archive:
            for number in NUMBERS[split]:
                archive.writestr(f"{split}2014/{number}.jpg", buffer.getvalue())
    with tarfile.open(root / "minival.tgz", "w:gz") as archive:
        for split in ("minival", "valminusminival"):
            data = instances(NUMBERS[split]).encode()
            member = tarfile.TarInfo(f"annotations/instances_{split}2014.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return root


def test_everything_then_nothing(mirror, tmp_path):
    folder = tmp_path / "coco"
    run = functools.partial(
        *(fetch, "get_coco2014.sh", str(folder)),
        **{"mirror": mirror, "archives": ARCHIVES, "NUM_SHARDS": "1", "NUM_THREADS": "1"},
        MINIVAL_URL=f"file://{mirror}/minival.tgz",
    )
    wrong = run(MD5_MINIVAL="0" * 32)
    assert wrong.returncode == 1 and "minival.tgz arrived with a wrong checksum" in wrong.stderr
    done = run()
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "records"]
    catalog = stock_catalog(str(folder))
    sets = choose(catalog, ["coco_2014_train", "coco_2014_valminusminival"])
    card = find_or_scan_card(records_of(sets, with_masks=True))
    assert (card.num_images, card.mask_format) == (4, "bitpacked")
    (minival,) = choose(catalog, ["coco_2014_minival"])
    assert find_or_scan_card(minival.records).num_images == 1
    assert Path(minival.annotations).is_file()
    again = run(COCO_URL="file:///nowhere")
    assert again.returncode == 0 and "nothing to do" in again.stderr
