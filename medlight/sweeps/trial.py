"""What runs in a sweep's worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medlight.config import Config
from medlight.launch.slots import pose_as_fit
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
    """Run one trial's fit; returns run id, state and the metrics of the best epoch."""
    from medlight.launch.fit import Launch, fit, quiet

    quiet()
    pose_as_fit(config, Path(config_file))
    result = fit(config, Launch(kind="trial", report=report, **launch))
    return {"run_id": result.run_id, "state": result.state, "metrics": result.metrics}
