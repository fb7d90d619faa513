"""Published weights: `zoo:NAME` and download_weights.py, from a server of the test's own."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import python
from file_server import FileServer

import families
from engine.config.fields import ConfigError
from engine.files import checkpoint, zoo
from engine.files.weight_files import weights_path

FOLDER = "rn50_tf_amp_ckpt_v20.06.0"
NAMES = ("nvidia_rn50_tf_amp.index", "nvidia_rn50_tf_amp.data-00000-of-00001")


def archive_of(names):
    """Returns the bytes of an archive of these files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in names:
            archive.writestr(name, name * 1000)
    return memory.getvalue()


def packed(prefix):
    """Returns the bytes of an archive with a checkpoint of this prefix."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for suffix in (".index", ".data-00000-of-00001", ".meta"):
            info = tarfile.TarInfo(prefix + suffix)
            info.size = 9
            archive.addfile(info, io.BytesIO(b"checkpoin"))
    return memory.getvalue()


@pytest.fixture
def server():
    with FileServer(archive_of(NAMES)) as server:
        yield server


def call(folder, *flags):
    return python("scripts/maskrcnn/download_weights.py", "--save_dir", folder, *flags, timeout=60)


def test_the_checkpoint_is_unpacked_once(server, tmp_path):
    result = call(tmp_path / "w", "--download_url", server.url)
    result.require_success()
    assert f"backbone: {tmp_path}/w/{FOLDER}/nvidia_rn50_tf_amp\n" in result.output
    assert {path.name for path in (tmp_path / "w" / FOLDER).iterdir()} == set(NAMES)
    assert [path.name for path in (tmp_path / "w").iterdir()] == [FOLDER]
    result = call(tmp_path / "w", "--download_url", server.url)
    assert "is there already" in result.output and len(server.seen) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = 1
    result = call(tmp_path, "--download_url", server.url)
    result.require_success()
    half = len(server.content) // 2
    assert [asked for _, asked in server.seen] == [None, f"bytes={half}-"]
    assert f"the connection ended after {half}" in result.output


@pytest.mark.parametrize("name", ["effdet/tf_efficientdet_d0", "automl/efficientdet-d0"])
def test_who_comes_second_waits_for_the_first(server, tmp_path, capsys, name):
    server.pause = 0.3
    if name.startswith("automl"):
        server.content = packed("model")
    entry = dataclasses.replace(zoo.entries()[name], url=server.url, sha256="", md5="")
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: zoo.fetch(entry, tmp_path / "zoo"), range(3)))
    assert len(paths) == len(server.seen) == 1
    assert "waiting for another process that fetches" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.lock"))
    if name.startswith("effdet"):
        assert paths.pop().read_bytes() == server.content


@pytest.mark.parametrize("has_sum", [True, False])
def test_weights_in_a_folder_that_cannot_be_written(tmp_path, has_sum):
    entry = dataclasses.replace(zoo.entries()["effdet/tf_efficientdet_d0"], sha256="")
    (tmp_path / entry.file).write_bytes(b"weights")
    (tmp_path / f".{entry.file}.lock").mkdir()  # cannot be opened, by root either
    if has_sum:
        (tmp_path / f"{entry.file}.sha256").write_text(hashlib.sha256(b"weights").hexdigest())
    else:
        (tmp_path / f"{entry.file}.sha256").mkdir()
    assert zoo.fetch(entry, tmp_path) == tmp_path / entry.file


def test_an_earlier_part_is_used(server, tmp_path):
    part = tmp_path / f"{FOLDER}.zip.part"
    part.write_bytes(server.content[:100])
    assert call(tmp_path, "--download_url", server.url).code == 0
    assert [asked for _, asked in server.seen] == ["bytes=100-"]
    # A complete one as well: the server has nothing beyond its end.
    other = tmp_path / "other"
    other.mkdir()
    (other / part.name).write_bytes(server.content)
    assert call(other, "--download_url", server.url).code == 0
    assert (other / FOLDER / NAMES[0]).exists()


def test_a_file_that_was_fetched_elsewhere_needs_no_network(tmp_path):
    (tmp_path / f"{FOLDER}.zip").write_bytes(archive_of(NAMES))
    result = call(tmp_path, "--download_url", "http://127.0.0.1:1/nothing")
    assert result.code == 0 and (tmp_path / FOLDER / NAMES[1]).exists()


def test_without_network_it_says_what_to_do(tmp_path):
    result = call(tmp_path, "--download_url", "http://127.0.0.1:1/nothing")
    assert result.code == 1
    assert f"put it at {tmp_path}/{FOLDER}.zip" in result.errors
    assert "Traceback" not in result.errors


@pytest.mark.parametrize("content", [b"no archive", archive_of(["readme.txt"])])
def test_wrong_content_is_refused(tmp_path, content):
    (tmp_path / f"{FOLDER}.zip").write_bytes(content)
    result = call(tmp_path)
    assert result.code == 1 and not (tmp_path / FOLDER).exists()
    assert "is damaged" in result.errors or "holds no checkpoint" in result.errors


def test_the_sum_of_detectron_s_file_is_checked(server, tmp_path):
    flags = ("--weights", "pytorch", "--download_url", server.url)
    result = call(tmp_path, *flags)
    assert result.code == 1 and "expected b19105fdd7baafb40480251377de18f2" in result.errors
    assert not list(tmp_path.iterdir()), "nothing that could pass for weights"
    md5 = hashlib.md5(server.content).hexdigest()
    result = call(tmp_path, *flags, "--md5", md5)
    assert result.code == 0 and f"backbone: {tmp_path}/R-50.pkl" in result.output


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """A cache of its own; the table's files are at the test's server, or nowhere."""
    table = zoo.entries()

    def use(url=server.url, **changes):
        moved = {n: dataclasses.replace(e, url=url, **changes) for n, e in table.items()}
        monkeypatch.setattr(zoo, "entries", lambda: moved)
        zoo._of_cache.cache_clear()

    monkeypatch.setenv("RINGDET_CACHE", str(tmp_path))
    use()
    yield use
    zoo._of_cache.cache_clear()


def test_the_table_names_models_and_places():
    table = zoo.entries()
    assert len({(name.split("/")[0], e.file) for name, e in table.items()}) == len(table)
    for entry in table.values():
        assert families.package_of(entry.model) in ("efficientdet", "maskrcnn")
        assert entry.url.startswith("https://") and entry.licence
        assert entry.part in ("detector", "backbone")
    assert table["effdet/tf_efficientdet_d0"].sha256 == "f153e0cf"
    lines = zoo.lines()
    assert len(lines) == 1 + len(table)
    assert any("zoo:detectron/R-50 " in line and "md5 b19105fd" in line for line in lines)


def test_zoo_fetches_once_and_notices_a_change(cache, server, tmp_path):
    with pytest.raises(ValueError, match="SHA-256 sum .* expected f153e0cf: it was removed"):
        checkpoint.find("zoo:effdet/tf_efficientdet_d0")
    cache(sha256=hashlib.sha256(server.content).hexdigest()[:8])
    path = checkpoint.find("zoo:effdet/tf_efficientdet_d0")
    assert path == f"{tmp_path}/zoo/effdet/tf_efficientdet_d0_34-f153e0cf.pth"
    assert checkpoint.newest_or_path("zoo:effdet/tf_efficientdet_d0") == path
    assert len(server.seen) == 2, "once wrong, once right"
    cache("http://127.0.0.1:1/nothing", sha256="")
    assert weights_path("zoo:effdet/tf_efficientdet_d0") == path
    zoo._of_cache.cache_clear()
    Path(path).write_bytes(b"another")
    with pytest.raises(ValueError, match="expected [0-9a-f]{64}: it was removed"):
        weights_path("zoo:effdet/tf_efficientdet_d0")


def test_zoo_says_what_to_fetch_where_there_is_no_network(cache, server, tmp_path):
    cache("http://127.0.0.1:1/nothing")
    place = tmp_path / "zoo" / "detectron" / "R-50.pkl"
    for find in (checkpoint.find, checkpoint.newest_or_path, weights_path):
        with pytest.raises(FileNotFoundError, match=f"fetch it elsewhere and put it at {place}"):
            find("zoo:detectron/R-50")
    cache("http://127.0.0.1:1/nothing", md5="")
    place.write_bytes(b"fetched elsewhere")
    assert weights_path("zoo:detectron/R-50") == str(place)
    with pytest.raises(ConfigError, match="'detectron/R50' is unknown; did you mean 'detectron/R-"):
        weights_path("zoo:detectron/R50")


@pytest.mark.parametrize("member", ["efficientdet-d0/model", "../model"])
def test_archives_are_unpacked_within_their_folder(cache, server, tmp_path, member):
    server.content = packed(member)
    folder = tmp_path / "zoo" / "automl"
    if ".." in member:
        with pytest.raises(ValueError, match="'../model.index' would leave its folder"):
            checkpoint.find("zoo:automl/efficientdet-d0")
        assert not list(folder.iterdir())
        return
    found = checkpoint.find("zoo:automl/efficientdet-d0")
    assert found == str(folder / "efficientdet-d0" / "efficientdet-d0" / "model")
    assert [path.name for path in folder.iterdir()] == ["efficientdet-d0"]
