"""Pictures on their way into records: sizes, orientation, kinds of file, names, links."""

import errno
import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from samples import encoded, read_back

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.image_headers import inspect_image
from object_detection.convert.report import describe_conversion
from object_detection.convert.splits import find_image_dir
from object_detection.masks.rescale import is_same_shape, rescale_annotations, rescale_object
from object_detection.masks.rle import decode_mask
from object_detection.records import schema
from object_detection.records.card import load_card
from outside_data.picture_file import (
    BadImageError,
    PictureRules,
    open_picture,
    read_picture_header,
    read_regular_file,
    suffixes,
)

LINKS = PictureRules(follow_links=True)
ORIENTATION = 0x0112
TAGS = range(2, 9)
BOX = [4.0, 6.0, 20.0, 12.0]  # x, y, width, height
SQUARE = [[4.0, 6.0, 24.0, 6.0, 24.0, 18.0, 4.0, 18.0]]
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def smooth(height=30, width=40):
    """A picture without symmetry that survives JPEG."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 6, columns * 5, 255 - rows * 3 - columns * 2], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(picture, image_format="JPEG", *, tag=None, **options):
    if tag is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        options["exif"] = exif
    return encoded(picture, image_format, **{**KINDS.get(image_format, {}), **options})


def turned(picture, tag):
    """Returns a picture as viewers show it under an EXIF orientation."""
    tagged = picture.copy()
    tagged.getexif()[ORIENTATION] = tag
    return ImageOps.exif_transpose(tagged)


def half_jpeg(**options):
    whole = encode(smooth(120, 160), **options)
    return whole[: len(whole) * 3 // 5] + b"\xff\xd9"


@pytest.fixture
def convert_set(data, tmp_path):
    """Writes files and a JSON of one box an image, and converts them."""

    def run(files, *, names=None, size=(30, 40), **options):
        box = {"category_id": 3, "bbox": BOX, "area": 240.0, "segmentation": SQUARE}
        objects = [{"image_id": index, **box} for index in range(len(names or files))]
        annotations, folder = data(files, objects, names=names, size=size)
        return convert(annotations, folder, tmp_path / "out" / "train", **options)

    return run


def records(tmp_path):
    return read_back(f"{tmp_path}/out/train-*")


def box_px(record):
    """Returns x, y, width, height of the first box in pixels."""
    names = (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)
    x1, y1, x2, y2 = (record[name][0] for name in names)
    width, height = record[schema.WIDTH][0], record[schema.HEIGHT][0]
    return [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("stated", "actual", "same"),
    [
        ((15, 20), (30, 40), True),
        ((60, 80), (30, 40), True),
        ((333, 500), (1067, 1600), True),  # rounded
        ((480, 640), (479, 640), True),
        ((40, 30), (30, 40), False),
        ((30, 30), (30, 40), False),
        ((480, 640), (360, 640), False),
        ((1001, 1000), (1000, 1001), False),
    ],
)
def test_same_shape(stated, actual, same):
    assert is_same_shape(stated, actual) == is_same_shape(actual, stated) == same


def test_objects_of_a_smaller_json_are_scaled_and_counted(convert_set, tmp_path):
    conversion = convert_set({"a.jpg": encode(smooth(60, 80))}, mask_format="png")
    (record,) = records(tmp_path)
    np.testing.assert_allclose(box_px(record), np.multiply(BOX, 2), atol=1e-3)
    assert record[schema.AREA][0] == 4 * 240
    mask = np.asarray(Image.open(io.BytesIO(record[schema.MASK_PNG][0])))
    assert mask.shape == (60, 80)
    assert mask.sum() == pytest.approx(4 * 240, rel=0.02)
    what = "image: objects scaled from the JSON's size to the file's"
    assert conversion.card.corrected == {what: 1}
    assert "(a.jpg: 40x30 to 80x60)" in describe_conversion(conversion)
    # What is scored is scaled by the card.
    card = load_card(conversion.card_file)
    assert card.resized_images == {"0": (60, 80)}
    scored = rescale_annotations(read_annotations(tmp_path / "instances.json"), card.resized_images)
    (image,), (entry,) = scored.images, scored.objects["0"]
    assert (image.height, image.width) == (60, 80)
    assert entry["bbox"] == [8, 12, 40, 24]


def test_run_lengths_are_scaled():
    mask_api = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((30, 40), np.uint8)
    mask[6:18, 4:24] = 1
    rle = mask_api.encode(np.asfortranarray(mask))
    entry = {"bbox": BOX, "area": 240, "segmentation": {**rle, "counts": rle["counts"].decode()}}
    scaled = rescale_object(entry, (30, 40), (60, 80))["segmentation"]
    np.testing.assert_array_equal(decode_mask(scaled, 60, 80), mask.repeat(2, 0).repeat(2, 1))


def test_sizes_of_another_shape_are_refused_by_name(convert_set):
    files = {"good.jpg": encode(smooth()), "bad.jpg": encode(smooth(30, 60))}
    conversion = convert_set(files)
    assert conversion.card.dropped == {
        "box: its image was dropped": 1,
        "image: size of another shape than the JSON's": 1,
    }
    report = describe_conversion(conversion)
    assert "bad.jpg (image id 1)" in report
    assert "60x30 in the file, 40x30 in the JSON" in report


# ------------------------------------------------------------------ EXIF orientation


@pytest.mark.parametrize("image_format", KINDS)
@pytest.mark.parametrize("tag", TAGS)
def test_pixels_are_stored_or_upright_in_every_format(tag, image_format):
    stored = smooth()
    encoded = encode(stored, image_format, tag=tag)
    for upright, expected in ((False, stored), (True, turned(stored, tag))):
        picture = open_picture(encoded)
        assert (picture.height, picture.width, picture.orientation) == (30, 40, tag)
        found = np.asarray(picture.rgb(upright=upright), int)
        assert found.shape == np.asarray(expected).shape
        assert np.abs(found - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("image_format", KINDS)
@pytest.mark.parametrize("tag", [3, 6])
def test_exif_apply_stores_the_upright_picture(convert_set, tmp_path, tag, image_format):
    upright = smooth()
    lying = turned(upright, {3: 3, 6: 8}[tag])
    convert_set({"a": encode(lying, image_format, tag=tag)}, pictures=PictureRules("apply"))
    (record,) = records(tmp_path)
    pixels = tf.io.decode_image(record[schema.ENCODED][0], channels=3).numpy().astype(int)
    assert np.abs(pixels - np.asarray(upright)).mean() < 4
    np.testing.assert_allclose(box_px(record), BOX, atol=1e-3)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("side", [30, 40])
def test_exif_is_never_ignored_in_silence(convert_set, tag, side):
    """A JSON of the turned picture: refused if sizes tell, a warning if they do not."""
    picture = smooth(30, side)
    width, height = turned(picture, tag).size
    files = {"plain.jpg": encode(smooth(height, width)), "tagged.jpg": encode(picture, tag=tag)}
    report = describe_conversion(convert_set(files, size=(height, width)))
    assert "tagged.jpg" in report
    assert f"EXIF orientation {tag}" in report
    assert "--exif=apply" in report
    is_told = tag >= 5 and side == 40
    assert ("1 x image: EXIF orientation ignored" in report) != is_told
    assert ("1 x image: EXIF turns it to the JSON's shape" in report) == is_told


@pytest.mark.parametrize("policy", ["ignore", "apply"])
def test_json_of_the_stored_pixels_keeps_them(convert_set, tmp_path, policy):
    encoded = encode(smooth(), tag=6)
    conversion = convert_set({"a.jpg": encoded}, pictures=PictureRules(policy))
    (record,) = records(tmp_path)
    assert record[schema.ENCODED] == [encoded]
    np.testing.assert_allclose(box_px(record), BOX, atol=1e-3)
    assert ("not turned" in describe_conversion(conversion)) == (policy == "apply")


def test_exif_behind_the_pixels_of_a_png_is_seen(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    for picture in (smooth(), noise):
        whole = encode(picture, "PNG", tag=6)
        start = whole.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
        moved = whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:]
        assert open_picture(moved).orientation == 6
        (tmp_path / "a.png").write_bytes(moved)
        assert read_picture_header(tmp_path / "a.png").orientation == 6


@pytest.mark.parametrize("image_format", KINDS)
def test_the_header_of_a_large_picture_says_its_size_and_orientation(tmp_path, image_format):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    (tmp_path / "a").write_bytes(encode(Image.fromarray(pixels), image_format, tag=6))
    assert (tmp_path / "a").stat().st_size > 1 << 16
    picture = read_picture_header(tmp_path / "a")
    assert (picture.height, picture.width, picture.orientation) == (300, 400, 6)


# ------------------------------------------------------------------ kinds of file


def grey_16():
    return np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)


def pictures_of_all_kinds():
    grey = Image.fromarray(grey_16())
    colours = smooth()
    yield "grey 16 PNG", encode(grey, "PNG")
    yield "grey 16 TIFF", encode(grey, "TIFF")
    yield "big-endian TIFF", encode(Image.fromarray(grey_16().astype(">u2")), "TIFF")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"{mode} PNG", encode(colours.convert(mode), "PNG")
    for mode in ("CMYK", "L", "RGB"):
        yield f"{mode} JPEG", encode(colours.convert(mode))
    yield "CMYK TIFF", encode(colours.convert("CMYK"), "TIFF")
    frames = {"save_all": True, "append_images": [colours.rotate(180)]}
    for image_format in ("GIF", "TIFF", "PNG", "WEBP"):
        yield f"frames {image_format}", encode(colours, image_format, **frames)
    for image_format in ("BMP", "PPM", "JPEG2000", "TGA"):
        yield image_format, encode(colours, image_format)


@pytest.mark.parametrize(("kind", "encoded"), list(pictures_of_all_kinds()))
def test_training_and_inference_see_the_same(kind, encoded):
    file = inspect_image(encoded)
    assert file.size == (30, 40)
    if kind.endswith(("JPEG", "PNG")):  # stored as they are
        assert file.encoded == encoded and kind.lower().endswith(file.image_format)
        assert inspect_image(encoded + b"camera notes").encoded == encoded + b"camera notes"
    else:
        assert file.image_format == "png" and kind.endswith(file.converted_from)
    trained_on = tf.io.decode_image(file.encoded, channels=3, expand_animations=False).numpy()
    shown = np.asarray(open_picture(encoded).rgb(upright=False))
    assert np.abs(trained_on.astype(int) - shown).mean() < (3 if "JPEG" in kind else 0.01)
    if "16" in kind or "endian" in kind:
        np.testing.assert_array_equal(shown[..., 0], grey_16() >> 8)


def test_rgb_of_16_bits_shows_its_high_bytes():
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    encoded = tf.io.encode_png(pixels).numpy()
    np.testing.assert_array_equal(open_picture(encoded).rgb(upright=False), pixels >> 8)


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"restart_marker_blocks": 3}, {"progressive": True}, {"quality": 30}],
)
def test_damaged_jpegs_are_told_from_whole_ones(options):
    whole = encode(smooth(120, 160), **options)
    assert not open_picture(whole).is_damaged
    assert not open_picture(whole + b"camera notes").is_damaged
    assert open_picture(half_jpeg(**options)).is_damaged
    with pytest.raises(BadImageError, match="truncated"):
        open_picture(whole[: len(whole) // 2])


def test_damaged_jpegs_are_kept_counted_and_named(convert_set):
    conversion = convert_set({"a.jpg": half_jpeg(), "b.jpg": encode(smooth())})
    assert conversion.card.num_images == 2
    what = "image: damaged JPEG kept; what could not be decoded is grey"
    assert conversion.card.corrected[what] == 1
    assert f"1 x {what} (a.jpg)" in describe_conversion(conversion)


def test_bombs_are_refused_before_they_are_decoded(convert_set):
    buffer = io.BytesIO()
    Image.new("1", (20000, 12000)).save(buffer, "PNG")
    files = {"good.jpg": encode(smooth()), "huge.png": buffer.getvalue()}
    report = describe_conversion(convert_set(files))
    assert "huge.png (image id 1): too many pixels: 20000x12000, more than --max_image" in report
    conversion = convert_set({"good.jpg": encode(smooth()), "b.jpg": encode(smooth(60, 80))},
                             pictures=PictureRules(max_pixels=1300))  # fmt: skip
    assert conversion.card.num_images == 1


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(BadImageError, match="not a regular file"):
            read_regular_file(path)
    for path in (tmp_path, tmp_path / "none.jpg", tmp_path / ("long" * 100)):
        with pytest.raises(BadImageError, match="no such file"):
            read_regular_file(path)
    (tmp_path / "large.jpg").write_bytes(bytes(2 << 20))
    with pytest.raises(BadImageError, match="file too large"):
        read_regular_file(tmp_path / "large.jpg", max_pixels=100)


def test_a_file_that_the_system_refuses_is_not_said_to_be_missing(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadImageError, match="cannot be read: Too many open files"):
        read_regular_file("a.jpg")


def test_text_formats_and_documents_are_no_pictures():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5"} & suffixes()
    with pytest.raises(BadImageError, match="not an image"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "on_disk", "kinds"),
    [
        (r"images\a.jpg", "images/a.jpg", "backslashes"),
        (r"C:\data\images\a.jpg", "a.jpg", "backslashes, folders in front"),
        ("a%20(1).jpg", "a (1).jpg", "percent-encoding"),
        ("http://host:8080/data/up/a%20b.jpg?x=1", "a b.jpg",
         "URL, percent-encoding, folders in front"),
        ("/data/local-files/?d=set/a.jpg", "a.jpg", "URL, folders in front"),
        ("s3://bucket/set/a.jpg", "set/a.jpg", "URL"),
        ("a.JPG", "a.jpg", "upper and lower case"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg", "Unicode form"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg", "Unicode form"),
        ("/a.jpg", "a.jpg", "folders in front"),
        ("/home/someone/set/a.jpg", "set/a.jpg", "folders in front"),
        ("../set/a.jpg", "a.jpg", "folders in front"),
        ("a.jpg", "deep/er/a.jpg", "folders in front"),
        (" a.jpg\n", "a.jpg", "spaces around it"),
    ],
)  # fmt: skip
def test_names_of_exporters_are_found_and_counted(convert_set, tmp_path, name, on_disk, kinds):
    conversion = convert_set({on_disk: encode(smooth())}, names=[name])
    assert f"image: found under another name ({kinds})" in conversion.card.corrected
    assert records(tmp_path)[0][schema.FILE_NAME] == [name.encode()]
    found = tmp_path / "images" / on_disk
    assert find_image_dir(tmp_path / "instances.json", tmp_path) in found.parents


@pytest.mark.parametrize(
    "name",
    [
        *("./a.jpg", "sub/../a.jpg", 'a [1], it\'s "b" %20.jpg', "日本.jpg", "n" * 200 + ".jpg"),
        os.fsdecode(b"caf\xe9.jpg"),
    ],
)
def test_a_name_as_it_stands_comes_first(convert_set, tmp_path, name):
    on_disk = os.path.normpath(name)
    files = {on_disk: encode(smooth()), "other/" + on_disk.lower(): encode(smooth())}
    corrected = convert_set(files, names=[name]).card.corrected
    assert not [what for what in corrected if "name" in what]
    assert records(tmp_path)[0][schema.FILE_NAME] == [name.encode(errors="backslashreplace")]


@pytest.mark.parametrize(
    ("on_disk", "names", "said"),
    [
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "several files fit: a/1.jpg, b/1.jpg"),
        (["1.jpg", "1.png"], ["1"], "several files fit: 1.jpg, 1.png"),
        (["cam1/1.jpg"], ["cam2/1.jpg"], "looked for"),
        (["1.jpg"], ["cam1/1.jpg", "cam2/1.jpg"], "several entries could mean"),
        (["1.png"], ["1.jpg"], "there is 1.png"),
        (["cam1/1.jpg"], ["cam1/1.jpg", "1.jpg"], "another entry's"),
        ([], ["x" * 4000 + ".jpg"], "looked for"),
        ([], ["nul\0.jpg"], "looked for"),
    ],
)
def test_what_is_not_sure_is_not_found(convert_set, on_disk, names, said):
    good = ["good.jpg", "better.jpg"]
    files = {name: encode(smooth()) for name in [*on_disk, *good]}
    conversion = convert_set(files, names=[*good, *names])
    reasons = [reason for *_, reason in conversion.skipped_images]
    assert any(said in reason and reason.startswith("no such file") for reason in reasons)
    assert all(len(reason) < 700 for reason in reasons)


def test_no_image_at_all_is_an_error_that_leaves_the_old_set(convert_set, tmp_path):
    convert_set({"a.jpg": encode(smooth())})
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"none of the 1 images.*looked for .*b\\c\.jpg"):
        convert_set({"a.jpg": encode(smooth())}, names=[r"b\c.jpg"])
    with pytest.raises(ValueError, match=r"1 of 1 images .* more than half \(a.jpg: not an image"):
        convert_set({"a.jpg": b"<html>"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


# ------------------------------------------------------------------ what lies outside


def test_nothing_outside_of_the_folder_is_read(convert_set, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode(smooth()))
    names = ["good.jpg", "./good.jpg", "good.jpg", "../secret.jpg", str(secret), "/dev/null"]
    conversion = convert_set({"good.jpg": encode(smooth())}, names=names, pictures=LINKS)
    assert conversion.card.dropped["image: outside of the image folder"] == 3
    # The folder's own files by their absolute path are inside.
    inside = str(tmp_path / "images" / "good.jpg")
    assert convert_set({"good.jpg": encode(smooth())}, names=[inside]).card.num_images == 1


def test_links_are_followed_out_only_when_asked(convert_set, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.jpg").write_bytes(encode(smooth()))
    images = tmp_path / "images"
    images.mkdir()
    (images / "link.jpg").symlink_to(elsewhere / "a.jpg")
    (images / "folder").symlink_to(elsewhere)
    (images / "inside.jpg").symlink_to(images / "good.jpg")
    (images / "broken.jpg").symlink_to(images / "none.jpg")
    names = ["good.jpg", "./good.jpg", "inside.jpg", "link.jpg", "folder/a.jpg", "broken.jpg"]
    conversion = convert_set({"good.jpg": encode(smooth())}, names=names)
    assert conversion.card.dropped["image: a link that leads out of the image folder"] == 2
    assert "--follow_links" in describe_conversion(conversion)
    followed = convert_set({"good.jpg": encode(smooth())}, names=names, pictures=LINKS)
    assert followed.card.num_images == 5
    # The folder itself may be a link.
    (tmp_path / "alias").symlink_to(images)
    annotations = read_annotations(tmp_path / "instances.json")
    assert convert(annotations, tmp_path / "alias", tmp_path / "x" / "y").card.num_images == 3
