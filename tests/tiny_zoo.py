"""A zoo of one's own: a table in a folder, and a server on this machine that has its file, at a
plain address or as the Hugging Face Hub does (``HF_ENDPOINT``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

COMMIT = "c" * 40
"""What the server says that a model of the Hub is at."""


def write_table(home: Path, **models: dict[str, Any]) -> Path:
    """A table under ``CODETR_HOME=home``."""
    path = home / "zoo/mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"source": "me", "models": models}))
    return path


class Server(ThreadingHTTPServer):
    """``files`` by path; ``asked`` counts requests; ``cut``: send only so many bytes of a file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: int | None = None

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def _begin(self) -> bytes | None:
        """The header of the answer; the content, if it is here."""
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return content

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        content = self._begin()
        if content is None:
            return
        try:
            self.wfile.write(content[: self.server.cut])
        except ConnectionError:  # whoever only wanted the size has gone
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
