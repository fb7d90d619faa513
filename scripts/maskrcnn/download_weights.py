"""Fetches the backbone that Mask R-CNN starts from: NVIDIA's ResNet-50 (NGC), or Detectron's R-50.

python scripts/maskrcnn/download_weights.py --save_dir /weights
python scripts/maskrcnn/download_weights.py --save_dir /weights --weights pytorch

An interrupted download goes on where it stopped; what is there is not fetched again. Detectron's
file has a known MD5 sum. NVIDIA publishes none: of its archive the sums of the files inside are
checked, and that the checkpoint is complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from tf2_command_line import BACKBONE_FOLDER, BACKBONE_PREFIX

_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights come from and where they go."""

    url: str
    file: str  # name of what is downloaded
    result: str  # folder or file inside --save_dir
    md5: str  # '': not known


SOURCES = {
    "tf2": Source(
        "https://api.ngc.nvidia.com/v2/models/nvidia/rn50_tf_amp_ckpt/versions/20.06.0/zip",
        f"{BACKBONE_FOLDER}.zip",
        BACKBONE_FOLDER,
        "",
    ),
    "pytorch": Source(
        "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl",
        "R-50.pkl",
        "R-50.pkl",
        "b19105fdd7baafb40480251377de18f2",
    ),
}


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--save_dir", type=Path, default=Path("/weights"), help="target folder")
    parser.add_argument(
        "--weights", choices=sorted(SOURCES), default="tf2", help="of which reference"
    )
    parser.add_argument("--download_url", help="another place of the same file")
    parser.add_argument("--md5", help="sum of the downloaded file, where it is known")
    return parser.parse_args()


def transfer(url: str, path: Path) -> None:
    """Continues a file with what is missing at its end.

    Raises:
      OSError: no connection, or the server refuses.
    """
    start = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # there is nothing beyond the end
            return
        raise
    with response:
        if getattr(response, "status", None) != 206:
            start = 0
        length = response.headers.get("Content-Length")
        with open(path, "ab" if start else "wb") as file:
            shutil.copyfileobj(response, file, _CHUNK_BYTES)
            size = file.tell()
    if length is not None and size < start + int(length):
        raise OSError(f"the connection ended after {size} of {start + int(length)} bytes")


def download(url: str, path: Path) -> None:
    """Downloads a file, by way of FILE.part.

    Raises:
      OSError: as of `transfer`, after several attempts.
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            transfer(url, part)
            break
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS or not part.exists():
                raise OSError(str(error)) from error
            print(f"{error}: attempt {attempt + 1} of {_ATTEMPTS}", flush=True)
            time.sleep(attempt)
    part.replace(path)


def check_md5(path: Path, expected: str) -> None:
    """Removes a file that has another sum.

    Raises:
      ValueError: it has.
    """
    digest = hashlib.md5()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        path.unlink()
        raise ValueError(
            f"{path} has the MD5 sum {digest.hexdigest()}, expected {expected}: it was removed, "
            "download it again"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the checkpoint; the folder is there only when it is complete.

    Raises:
      ValueError: the archive is damaged (it is removed) or holds no such checkpoint.
    """
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(aside)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(f"{archive} is damaged ({error}): removed, download it again") from error
    names = {path.name for path in aside.glob(f"{BACKBONE_PREFIX}*")}
    if f"{BACKBONE_PREFIX}.index" not in names or not any(".data-" in name for name in names):
        found = sorted(path.name for path in aside.iterdir())
        raise ValueError(f"{archive} holds no checkpoint {BACKBONE_PREFIX}, but {found}")
    aside.replace(folder)


def fetch(source: Source, save_dir: Path) -> Path:
    """Puts the weights into a folder; returns what to name as backbone.

    Raises:
      OSError, ValueError: what failed.
    """
    result, file = save_dir / source.result, save_dir / source.file
    is_archive = source.file != source.result
    backbone = result / BACKBONE_PREFIX if is_archive else result
    if result.exists():
        print(f"{result} is there already")
        return backbone
    save_dir.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        print(f"{source.url} -> {file}", flush=True)
        download(source.url, file)
    if source.md5:
        check_md5(file, source.md5)
    if is_archive:
        unpack(file, result)
        file.unlink()
    return backbone


def main() -> int:
    """Fetches the weights; returns the exit code."""
    arguments = parse_arguments()
    source = SOURCES[arguments.weights]
    if arguments.download_url:
        source = dataclasses.replace(source, url=arguments.download_url)
    if arguments.md5:
        source = dataclasses.replace(source, md5=arguments.md5)
    try:
        backbone = fetch(source, arguments.save_dir)
    except ValueError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"ERROR: {source.url}: {error}. Called again it goes on where it stopped. On a machine "
            f"without network: fetch the file elsewhere, put it at "
            f"{arguments.save_dir / source.file} and call this again.",
            file=sys.stderr,
        )
        return 1
    print(f"backbone: {backbone}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
