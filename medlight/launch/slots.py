"""What jobs that run beside each other share: the machine's GPUs, how they look to Lightning, one word to stop."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import yaml

from medlight.config import Config


def devices(config: Config, slot: int) -> dict[str, str]:
    """The environment that gives a worker's slot its own GPUs, as many as the fit asks for."""
    import torch

    trainer = config.get("trainer", {})
    if trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    asked = trainer.get("devices", 1)
    each = len(asked) if isinstance(asked, list) else int(asked) if str(asked).isdigit() else 1
    mine = [known[(slot * each + index) % len(known)] for index in range(min(each, len(known)))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def threads(workers: int) -> int:
    """CPU threads of one of so many jobs: an equal share of the cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def pose_as_fit(config: Config, file: Path) -> None:
    """Make this process look like ``medlight fit`` of a configuration, which is written to a file.

    Lightning starts the other ranks of a distributed fit as the command in ``sys.argv``, which would otherwise be that
    of the sweep or the study.
    """
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    sys.argv = ["medlight", "fit", "-c", str(file)]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("medlight.cli.main")


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
