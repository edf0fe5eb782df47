"""What runs in a sweep's worker processes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import yaml

from medlight.config import Config
from medlight.launch.workers import Reporter
from medlight.sweeps.spec import Objective, check_objectives


def prepare(configs: list[Config], objectives: tuple[Objective, ...], report: Reporter) -> Config:
    """Prepare the data, and check what only a built task knows.

    Args:
        configs: the configuration that the sweep starts from, then one for each other task that may be chosen.
        objectives: the sweep's.
        report: nobody is told.

    Returns: ``precision`` and ``channels_last``, settled once for every trial.
    Raises: UsageError for an objective that a task does not log; CaseError for unusable scans.
    """
    from medlight.launch.fit import quiet, resolve_precision
    from medlight.launch.resolve import parse

    quiet()
    for config in configs:
        task: Any
        data: Any
        task, data, _ = parse(config).build()
        data.prepare_data()
        data.setup("fit")
        if hasattr(task, "metric_names"):
            check_objectives(objectives, task.metric_names(data.signature()), type(task).__name__)
    settled = resolve_precision(configs[0])
    return {key: settled[key] for key in ("precision", "channels_last")}


def fit_trial(config: Config, launch: dict[str, Any], config_file: str, report: Reporter) -> dict[str, Any]:
    """Run one trial's fit; returns run id, state and the metrics of the best epoch.

    Lightning starts the other ranks of a distributed fit as the command in ``sys.argv``: that is made an ordinary
    ``medlight fit`` of the trial's configuration, which would otherwise be the sweep's own command.
    """
    from medlight.launch.fit import Launch, fit, quiet

    quiet()
    Path(config_file).write_text(yaml.safe_dump(config, sort_keys=False))
    sys.argv = ["medlight", "fit", "-c", config_file]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("medlight.cli.main")
    result = fit(config, Launch(kind="trial", report=report, **launch))
    return {"run_id": result.run_id, "state": result.state, "metrics": result.metrics}
