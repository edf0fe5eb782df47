"""Runs a sweep of a test target, as a process that can be killed: SWEEP.yaml TARGET [resume] [storage URL]."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from medlight.sweeps import study, sweep
from medlight.sweeps.show import Terminal
from medlight.sweeps.spec import load


def main(file: str, target: str, resume: str = "", storage: str = "") -> None:
    study.HEARTBEAT, study.SILENT = 1, 3
    read = load(Path(file), [], {"storage": storage or None})
    with Terminal(Console(), read.trials, [each.metric for each in read.objectives]) as terminal:
        sweep.run(read, terminal, resume=bool(resume), target=f"tests.sweeps.targets.{target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
