"""What runs in the worker processes of a study."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from medlight.config import Config
from medlight.errors import MedlightError, UsageError
from medlight.launch.slots import pose_as_fit
from medlight.launch.workers import Reporter


def inspect(variants: list[str], configs: list[Config], report: Reporter) -> list[dict[str, Any]]:
    """Prepare the data of several fits, check all that can be before a run, say what only built tasks and data know.

    Args:
        variants: their names, for errors.
        configs: as many.
        report: nobody is told.

    Returns: for each ``digest`` (of the data), ``metrics`` (names that will be logged), ``tested`` (whether there are
    test figures to be had), ``monitor``.
    Raises: UsageError for data or arguments that can't be used.
    """
    from medlight.launch.fit import quiet

    quiet()
    found = []
    for variant, config in zip(variants, configs, strict=True):
        try:
            found.append(_inspected(config))
        except MedlightError as error:
            raise UsageError(f"variant {variant}: {error}") from None
    return found


def _inspected(config: Config) -> dict[str, Any]:
    from medlight.launch.fit import check
    from medlight.tracking.manifest import data_fingerprint

    task, data = check(config)
    metrics = list(task.logged_metrics()) if hasattr(task, "logged_metrics") else []
    has_cases = bool(getattr(data, "prepared", {"test": True}).get("test"))
    return {
        "digest": data_fingerprint(data)["digest"],
        "metrics": metrics,
        "tested": has_cases and any(name.startswith("test/") for name in metrics),
        "monitor": str(getattr(task, "monitor", "")),
    }


def fit_and_test(
    config: Config,
    launch: dict[str, Any],
    config_file: str,
    fitted: str | None,
    tested: bool,
    minutes: float,
    report: Reporter,
) -> dict[str, Any]:
    """Train one variant with one seed, and measure its best checkpoint on the test cases.

    Args:
        config: resolved.
        launch: fields of `medlight.launch.fit.Launch`.
        config_file: where the configuration is written for the other ranks of a distributed fit.
        fitted: a run that was trained to its end before; it is only measured.
        tested: whether there are test cases to measure.
        minutes: what an earlier, interrupted part of this run took.
        report: gets each validation.

    Returns: ``run_id`` and ``minutes`` (all parts of the run together).
    """
    from medlight.launch.fit import Launch, evaluate, fit, quiet
    from medlight.tracking import store

    quiet()
    start = time.monotonic()
    pose_as_fit(config, Path(config_file))
    run_id = fitted or fit(config, Launch(kind="fit", report=report, **launch)).run_id
    if tested:
        try:
            evaluate(config, store.best_checkpoint(run_id), "test", run_id)
        except UsageError as error:  # the fit itself took this configuration
            raise MedlightError(f"test of run {run_id}: {error}") from None
    total = minutes + (time.monotonic() - start) / 60
    store.client().set_tag(run_id, "medlight.minutes", f"{total:.3f}")
    return {"run_id": run_id, "minutes": total}
