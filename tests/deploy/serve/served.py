"""A bundle served on loopback, and clients that others wrote: curl, and dcmtk's storescu, storescp and echoscu."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medlight.deploy.runtime import Predictor
from medlight.deploy.serve.access import own_names
from medlight.deploy.serve.dicom import Listener
from medlight.deploy.serve.http import HttpServer, application
from medlight.deploy.serve.sending import Peer
from medlight.deploy.serve.spool import Spool
from medlight.deploy.serve.turns import Turns
from tests.data import fake_dicom
from tests.deploy.runtime import bundles

GRID = fake_dicom.Grid(shape=(20, 22, 12), spacing=(1.0, 1.1), step=2.5)
dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="no dcmtk: apt-get install dcmtk")


def tiny(folder: Path, **changes: Any) -> Path:
    """A bundle for scans of thick slices; what it finds is decided by their values alone."""
    data = {
        "preparation": {"spacing": [1.5, 1.5, 1.5]},
        "normalise": [{"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 800.0}}],
        "spacing_range": [[1.0, 1.0, 2.5], [1.0, 1.0, 2.5]],
    }
    return bundles.written(folder, bundles.bundle(3, changes.pop("window", [16, 16, 16]), **data | changes)).root


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert self.body.count(b"\n") == 1
        return str(self.json["error"])


def curl(url: str, *words: str | Path) -> Reply:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "60", "-D", "-", *map(str, words), url], capture_output=True, check=False
    )
    head, body = b"", done.stdout
    while body.startswith(b"HTTP/"):  # "100 Continue" comes first
        head, _, body = body.partition(b"\r\n\r\n")
    assert head, done.stderr
    first, *lines = head.decode().splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(first.split()[1]), headers, body)


@contextmanager
def http(predictor: Predictor, waiting: int = 8, **options: Any) -> Iterator[tuple[str, Turns]]:
    turns = Turns(waiting)
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(application(predictor, turns, **{"names": own_names("127.0.0.1"), **options}), listening)
    server.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", turns
    finally:
        turns.end()
        server.stop()
        listening.close()
        assert not server.alive


@contextmanager
def node(predictor: Predictor, spool: Path, archive: int, quiet: float = 0.5, **options: Any) -> Iterator[int]:
    """A listener; yields its port."""
    turns = Turns()
    kept = Spool(spool, options.pop("most", 1 << 30), quiet)
    listener = Listener(predictor, turns, kept, Peer("ARCHIVE", "127.0.0.1", archive), **options)
    port = listener.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        turns.end()
        listener.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def archive(folder: Path, port: int, *words: str) -> Iterator[None]:
    """dcmtk's storescp, which writes what it gets into a folder."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        ["storescp", "-aet", "ARCHIVE", "-od", folder, *words, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _answers(port))
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def echo(port: int, *words: str) -> int:
    return subprocess.run(["echoscu", *words, "127.0.0.1", str(port)], capture_output=True, check=False).returncode


def store(port: int, *paths: Path, words: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Send files, or all that a folder holds, in one association."""
    command = ["storescu", "-aec", "MEDLIGHT", "+sd", "+r", *words, "127.0.0.1", str(port), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def until(there: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = there()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def held(spool: Path) -> list[Path]:
    """Files of the spool."""
    found = (Path(folder) / name for folder, _, names in os.walk(spool) for name in names)
    return [path for path in found if path.name != ".lock"]
