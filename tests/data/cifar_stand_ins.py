"""Small stand-ins for the official files, and a web server to fetch them from."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gafscope.data.cifar import CifarLayout

CLASSES = 4


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class FakeCifar:
    """Files of a tiny data set in CIFAR-100's form, and the layout that describes them."""

    layout: CifarLayout
    files: dict[str, bytes]
    archive: bytes

    def write(self, root: Path) -> Path:
        folder = root / self.layout.folder
        folder.mkdir(parents=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def pickled_images(count: int, seed: int) -> bytes:
    rows = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [index % CLASSES for index in range(count)]
    # Protocol 4 names the same three globals as the official Python 2 files.
    return pickle.dumps({"data": rows, "fine_labels": labels}, protocol=4)


@dataclass
class Server:
    """What the server offers, how it misbehaves, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut_after: int | None = None
    asked: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.state.asked.append(asked)
        data = self.state.files.get(self.path.lstrip("/"))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.state.ranges else 0
        if data is None:
            self.send_error(404)
            return
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.state.cut_after
        self.wfile.write(data[start:] if cut is None else data[start : start + cut])

    def log_message(self, *args: Any) -> None:
        pass
