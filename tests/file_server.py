"""A server of files for tests of downloads: with byte ranges or without, breaking off, slow."""

from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path


class FileServer(http.server.ThreadingHTTPServer):
    """Answers GET; `seen` is (path, range asked for) of each request.

    Args:
      content: a folder of files, or the one file that it has under any name.
      with_ranges: whether it knows `Range: bytes=N-`.
      breaks: how many transfers it ends in their middle.
      break_at: only those of this path.
    """

    def __init__(
        self,
        content: Path | bytes,
        *,
        with_ranges: bool = True,
        breaks: int = 0,
        break_at: str = "",
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.with_ranges = content, with_ranges
        self.breaks, self.break_at = breaks, break_at
        self.pause = 0.0  # seconds, after the first bytes of each answer
        self.seen: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.seen.append((self.path, asked))
        data = server.content
        if isinstance(data, Path):
            data = (data / self.path.lstrip("/")).read_bytes()
        start = int(asked[len("bytes=") : -1]) if asked and server.with_ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.breaks and server.break_at in ("", self.path):
            server.breaks -= 1
            data = data[: (start + len(data)) // 2]
        self.wfile.write(data[start : start + 9])
        time.sleep(server.pause)
        self.wfile.write(data[start + 9 :])

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""
