"""A sweep's pictures: how the best value came about, and which parameters mattered."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

log = logging.getLogger("medlight.sweeps")
BEFORE_IMPORTANCE = 3  # complete trials; fewer say nothing


def draw(study: optuna.Study, metrics: list[str], folder: Path) -> list[Path]:
    """Draw history.png and importance.png (with several objectives also front.png) for a study's complete trials.

    What Optuna can't draw from these trials (one parameter value, equal results) is left out with a log line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as draws

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    wanted: dict[str, Any] = {"history": draws.plot_optimization_history}
    if len(complete) >= BEFORE_IMPORTANCE:
        wanted["importance"] = draws.plot_param_importances
    if len(metrics) == 1:
        files = [_save(plot, study, folder / f"{name}.png", target_name=metrics[0]) for name, plot in wanted.items()]
        return [file for file in files if file]
    files = [
        _save(plot, study, folder / f"{name}-{index}.png", target_name=metric, target=lambda t, i=index: t.values[i])
        for index, metric in enumerate(metrics)
        for name, plot in wanted.items()
    ]
    if len(metrics) <= 3:
        files.append(_save(draws.plot_pareto_front, study, folder / "front.png", target_names=metrics))
    return [file for file in files if file]


def _save(plot: Any, study: optuna.Study, file: Path, **more: Any) -> Path | None:
    from matplotlib import pyplot

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plot(study, **more)
            pyplot.savefig(file, dpi=120, bbox_inches="tight")
    except (ValueError, RuntimeError, ImportError) as error:
        log.info("no %s: %s", file.name, error)
        return None
    finally:
        pyplot.close("all")
    return file
