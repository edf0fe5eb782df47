"""What jobs that run beside each other share: the machine's GPUs, and one word to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
