"""The download of Mask R-CNN's backbones, from a server of the test's own."""

import hashlib
import http.server
import io
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "maskrcnn" / "download_weights.py"
FOLDER = "rn50_tf_amp_ckpt_v20.06.0"
NAMES = ("nvidia_rn50_tf_amp.index", "nvidia_rn50_tf_amp.data-00000-of-00001")


def archive_of(names):
    """Returns the bytes of an archive of these files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in names:
            archive.writestr(name, name * 1000)
    return memory.getvalue()


class Server:
    """Serves `content` everywhere; with `breaks` it ends the next transfers in their middle."""

    def __init__(self, content):
        self.content, self.breaks, self.ranges = content, 0, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                rest = outer.content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if outer.breaks:
                    outer.breaks -= 1
                    rest = rest[: len(rest) // 2]
                self.wfile.write(rest)

            def log_message(self, *args):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server(archive_of(NAMES))
    yield server
    server.server.shutdown()
    server.server.server_close()


def call(folder, *flags):
    """Runs the script; returns the finished process."""
    return subprocess.run(
        [sys.executable, SCRIPT, "--save_dir", folder, *flags],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_checkpoint_is_unpacked_once(server, tmp_path):
    result = call(tmp_path / "w", "--download_url", server.url)
    assert result.returncode == 0, result.stderr
    assert f"backbone: {tmp_path}/w/{FOLDER}/nvidia_rn50_tf_amp\n" in result.stdout
    assert {path.name for path in (tmp_path / "w" / FOLDER).iterdir()} == set(NAMES)
    assert [path.name for path in (tmp_path / "w").iterdir()] == [FOLDER]
    result = call(tmp_path / "w", "--download_url", server.url)
    assert "is there already" in result.stdout and len(server.ranges) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = 1
    result = call(tmp_path, "--download_url", server.url)
    assert result.returncode == 0, result.stderr
    half = len(server.content) // 2
    assert server.ranges == [None, f"bytes={half}-"]
    assert f"the connection ended after {half}" in result.stdout


def test_an_earlier_part_is_used(server, tmp_path):
    part = tmp_path / f"{FOLDER}.zip.part"
    part.write_bytes(server.content[:100])
    assert call(tmp_path, "--download_url", server.url).returncode == 0
    assert server.ranges == ["bytes=100-"]
    # A complete one as well: the server has nothing beyond its end.
    other = tmp_path / "other"
    other.mkdir()
    (other / part.name).write_bytes(server.content)
    assert call(other, "--download_url", server.url).returncode == 0
    assert (other / FOLDER / NAMES[0]).exists()


def test_a_file_that_was_fetched_elsewhere_needs_no_network(tmp_path):
    (tmp_path / f"{FOLDER}.zip").write_bytes(archive_of(NAMES))
    result = call(tmp_path, "--download_url", "http://127.0.0.1:1/nothing")
    assert result.returncode == 0 and (tmp_path / FOLDER / NAMES[1]).exists()


def test_without_network_it_says_what_to_do(tmp_path):
    result = call(tmp_path, "--download_url", "http://127.0.0.1:1/nothing")
    assert result.returncode == 1
    assert f"put it at {tmp_path}/{FOLDER}.zip" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("content", [b"no archive", archive_of(["readme.txt"])])
def test_wrong_content_is_refused(tmp_path, content):
    (tmp_path / f"{FOLDER}.zip").write_bytes(content)
    result = call(tmp_path)
    assert result.returncode == 1 and not (tmp_path / FOLDER).exists()
    assert "is damaged" in result.stderr or "holds no checkpoint" in result.stderr


def test_the_sum_of_detectron_s_file_is_checked(server, tmp_path):
    flags = ("--weights", "pytorch", "--download_url", server.url)
    result = call(tmp_path, *flags)
    assert result.returncode == 1 and "expected b19105fdd7baafb40480251377de18f2" in result.stderr
    assert not list(tmp_path.iterdir()), "nothing that could pass for weights"
    md5 = hashlib.md5(server.content).hexdigest()
    result = call(tmp_path, *flags, "--md5", md5)
    assert result.returncode == 0 and f"backbone: {tmp_path}/R-50.pkl" in result.stdout
