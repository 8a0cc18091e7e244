"""Fixtures of the data tests."""

from __future__ import annotations

import http.server
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cifar_stand_ins import CLASSES, FakeCifar, Handler, Server, md5, pickled_images, tar_bytes

from gafscope.data.cifar import CIFAR100


@pytest.fixture
def fake_cifar() -> FakeCifar:
    files = {
        "train": pickled_images(40, 0),
        "test": pickled_images(8, 1),
        "meta": pickle.dumps({"fine_label_names": ["a", "b", "c", "d"]}),
    }
    archive = tar_bytes({f"{CIFAR100.folder}/{name}": data for name, data in files.items()})
    layout = replace(
        CIFAR100,
        md5={name: md5(data) for name, data in files.items()},
        archive_md5=md5(archive),
        num_classes=CLASSES,
    )
    return FakeCifar(layout, files, archive)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    handler = type("OwnHandler", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()
