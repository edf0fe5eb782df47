"""Precision and memory layout of a fit: settled once, recorded, and the same for resumes, ranks and trials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from medlight.config import Config
from medlight.launch.precision import Choice, Precision, choose

HANDED = "MEDLIGHT_PRECISION"


def settle(resolved: Config, task: Any, data: Any, recorded: Mapping[str, str] | None = None) -> Choice:
    """Return what the configuration says; where it says ``auto``, what was recorded, handed down or a probe finds.

    resolved: keys ``precision`` and ``channels_last``; either may be ``auto``.
    recorded: the tags of the run that is gone on with.
    The task's ``channels_last`` is set to the outcome.
    """
    precision, channels_last = resolved["precision"], resolved["channels_last"]
    choice = _handed(recorded or {})
    if choice is None and "auto" in (precision, channels_last):
        choice = _probe(resolved, task, data)
    if choice is None:
        choice = Choice(precision, bool(channels_last), "as configured")
    settled = Choice(
        choice.precision if precision == "auto" else precision,
        choice.channels_last if channels_last == "auto" else bool(channels_last),
        choice.reason,
    )
    if "channels_last" in task.hparams:
        task.hparams["channels_last"] = settled.channels_last
    return settled


def tags(choice: Choice) -> dict[str, str]:
    """What a run records of it."""
    return {
        "medlight.precision": choice.precision,
        "medlight.channels_last": str(choice.channels_last).lower(),
        "medlight.precision_reason": choice.reason,
    }


def environment(choice: Choice) -> dict[str, str]:
    """What the processes of other ranks are told."""
    return {HANDED: f"{choice.precision},{str(choice.channels_last).lower()}"}


def _handed(recorded: Mapping[str, str]) -> Choice | None:
    """What an earlier start of this run, or rank zero, has chosen."""
    text = os.environ.get(HANDED, "")
    if "medlight.precision" in recorded:
        text = f"{recorded['medlight.precision']},{recorded['medlight.channels_last']}"
    if not text:
        return None
    precision, channels_last = text.split(",")
    return Choice(cast(Precision, precision), channels_last == "true", "as before")


def _probe(resolved: Config, task: Any, data: Any) -> Choice:
    signature = data.signature()
    shape = (getattr(data, "batch_size", 1), len(signature["channels"]), *signature["patch_size"])
    return choose(task, shape, resolved["trainer"]["accelerator"])
