"""Functions that tests run as jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from medlight.errors import CaseError, UsageError


def echo(report: Any, **arguments: Any) -> dict[str, Any]:
    print("a line of output")
    return {**arguments, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd()}


def matmul(report: Any, size: int) -> tuple[int, float]:
    import torch

    torch.manual_seed(0)
    a = torch.randn(size, size)
    return torch.get_num_threads(), float((a @ a).sum())


def environment(report: Any, name: str) -> str | None:
    return os.environ.get(name)


def fail(report: Any, kind: str) -> None:
    if kind == "value":
        raise ValueError("no such luck\nsecond line")
    if kind == "usage":
        raise UsageError("key: wrong")
    if kind == "case":
        raise CaseError("a", "case a: unreadable")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), 9)
    if kind == "segv":
        os.kill(os.getpid(), 11)


def hungry(report: Any, gb: float, children: int = 0) -> None:
    block = b"x" * int(gb * 1e9)
    for _ in range(children):
        if os.fork() == 0:
            time.sleep(30)
    time.sleep(30)
    print(len(block))


def mapped(report: Any, file: str) -> float:
    """Touches every page of a mapped file, and then waits for a few looks of the watch."""
    import numpy as np

    total = float(np.memmap(file, dtype=np.uint8, mode="r")[::4096].sum())
    time.sleep(0.8)
    return total


def reports(report: Any, steps: int) -> list[bool]:
    answers = []
    for step in range(steps):
        answers.append(report(step, {"val/dice": step / 10}))
        if answers[-1]:
            break
    return answers


def sleeper(report: Any, pids: str) -> None:
    """Sleeps with a child of its own in another process group, both recorded in a file."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
