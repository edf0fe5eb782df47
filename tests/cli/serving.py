"""``medlight ui`` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OUTSIDE = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


@contextmanager
def serving(root: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """Start it in a folder; yields the URL it printed, the process, and the file of what it says. Ends with Ctrl-C."""
    environment = {name: value for name, value in os.environ.items() if name not in _OUTSIDE}
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.txt"
        with said.open("wb") as stream:
            command = [sys.executable, "-m", "medlight", "ui", *arguments]
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield _url(process, said), process, said
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(30)


def _url(process: subprocess.Popen[bytes], said: Path) -> str:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        found = re.search(r"MLflow UI: (\S+)", said.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"medlight ui did not come up: {said.read_text()}")
