"""A hub on loopback that gives the files of one folder, as the library asks for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """Answers for the files in ``folder``, and notes the files that were asked for."""

    def __init__(self, folder: Path, asked: list[str], *args: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/"):
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                for f in sorted(self.folder.iterdir())
            ]
            about = {"id": "own/er", "sha": COMMIT, "siblings": []}
            data = json.dumps(tree if "/tree/" in path else about).encode()
        else:
            file = self.folder / path.rpartition("/")[2]
            self.asked.append(file.name)
            if not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub of which ``own/er`` is ``folder``; names of the files that it is asked for."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder, asked)) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(hf_api.api, "endpoint", url)
        yield asked
        server.shutdown()
        thread.join(10)
