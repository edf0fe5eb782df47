"""Trials without a network."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def number(launch: dict[str, Any]) -> int:
    return int(launch["tags"]["medlight.trial"])


def done(config: dict[str, Any], state: str = "complete") -> dict[str, Any]:
    """The nearer the learning rate to 0.01, the better."""
    lr = config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    return {"run_id": "", "state": state, "metrics": {"val/dice": 1 - abs(lr - 0.01), "val/loss": lr}}


def good(config: dict, launch: dict, config_file: str, report: Any) -> dict[str, Any]:
    return done(config)


def one_bad(config: dict, launch: dict, config_file: str, report: Any) -> dict[str, Any]:
    """Trial 1 raises, 2 is killed, 3 wants too much memory, 4 has no value."""
    match number(launch):
        case 1:
            raise RuntimeError("the network fell over\nat line two")
        case 2:
            os.kill(os.getpid(), 9)
        case 3:
            print(len(b"x" * int(3e9)))
            time.sleep(20)
        case 4:
            return {"run_id": "", "state": "complete", "metrics": {"val/dice": float("nan")}}
    return done(config)


def declining(config: dict, launch: dict, config_file: str, report: Any) -> dict[str, Any]:
    """Every trial reports less than the one before it."""
    for step in range(5):
        if report(step, {"val/dice": 1.0 - 0.1 * number(launch)}):
            Path(f"stopped-{number(launch)}").write_text(str(step))
            return done(config, "pruned")
    return done(config)


def timed(config: dict, launch: dict, config_file: str, report: Any) -> dict[str, Any]:
    start = time.monotonic()
    time.sleep(1.5)
    Path(f"time-{number(launch)}").write_text(f"{start} {time.monotonic()} {os.environ['OMP_NUM_THREADS']}")
    return done(config)


def slow(config: dict, launch: dict, config_file: str, report: Any) -> dict[str, Any]:
    """Long enough to be killed in; trials of a resumed sweep (file ``quick`` is there) are quick."""
    Path(f"pid-{number(launch)}").write_text(str(os.getpid()))
    if number(launch) >= 1 and not Path("quick").exists():
        time.sleep(600)
    return done(config)
