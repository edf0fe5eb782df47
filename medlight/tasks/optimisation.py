"""Optimisers and learning-rate schedules by import path."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, SequentialLR

from medlight import config
from medlight.errors import UsageError
from medlight.tasks.groups import Parameters, check_groups, grouped

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
LENGTHS = ("total_iters", "T_max", "total_steps")
BESIDE = ("interval", "monitor", "warmup")


def check_scheduler(spec: Mapping[str, Any], key: str) -> None:
    """Raise UsageError where a scheduler's spec names an unknown class, argument or setting."""
    beside = {name: value for name, value in spec.items() if name not in ("class_path", "init_args")}
    for name in beside:
        if name not in BESIDE:
            valid = ("class_path", "init_args", *BESIDE)
            raise UsageError(f"{key}.{name}: no such setting of a scheduler{config.nearest(name, valid)}")
    if beside.get("interval", "step") not in ("step", "epoch"):
        raise UsageError(f"{key}.interval: {spec['interval']!r} is neither 'step' nor 'epoch'")
    config.check_spec(_bare(spec), key)
    if beside.get("warmup") and spec["class_path"].endswith("ReduceLROnPlateau"):
        raise UsageError(f"{key}.warmup: ReduceLROnPlateau can't be warmed up; leave warmup out")


def check_optimizer(spec: Mapping[str, Any], key: str) -> None:
    """Raise UsageError where an optimiser's spec names an unknown class, argument or setting."""
    config.check_spec(spec, key)
    check_groups(spec, key)


def build_optimizer(spec: Mapping[str, Any], parameters: Parameters) -> Optimizer:
    """Return the optimiser that a spec names; UsageError where it refuses its arguments.

    parameters: by name. spec: may carry ``groups`` and ``layer_decay`` (see `groups.grouped`); without them all
    parameters are one group.
    """
    built: Optimizer = _call(spec, list(parameters.values()))
    if not any(spec.get(name) for name in config.GROUPS):
        return built
    return _call(spec, grouped(spec, parameters, float(built.defaults.get("lr", 0.0))))


def build_scheduler(
    spec: Mapping[str, Any], optimizer: Optimizer, trainer: L.Trainer, monitor: str, mode: str
) -> dict[str, Any]:
    """Return Lightning's scheduler entry.

    spec: ``{class_path, init_args, interval, monitor, warmup}``. ``interval`` is "step" or "epoch": by default "step"
    for a schedule with a length (polynomial, cosine, one-cycle) and "epoch" for others. A length that is left out
    (total_iters, T_max, total_steps) is the length of the fit. ``warmup`` is a number of intervals over which the rate
    rises in a line to its full value before the schedule begins. ``monitor`` is for ReduceLROnPlateau, the task's own
    by default.
    """
    cls = config.import_class(spec["class_path"])
    names, _ = config.arguments(cls)
    written = dict(spec.get("init_args") or {})
    length = next((name for name in LENGTHS if name in names), None)
    if issubclass(cls, ReduceLROnPlateau):
        plateau = _call(spec, optimizer, mode=written.get("mode", mode))
        frequency = trainer.check_val_every_n_epoch or 1
        entry = {"scheduler": plateau, "monitor": spec.get("monitor") or monitor}
        return entry | {"interval": spec.get("interval", "epoch"), "frequency": frequency}
    interval = spec.get("interval") or ("step" if length else "epoch")
    warmup = int(spec.get("warmup") or 0)
    filled = {length: max(1, fit_length(trainer, interval) - warmup)} if length and length not in written else {}
    scheduler = _call(spec, optimizer, **filled)
    if warmup:
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        scheduler = SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
    return {"scheduler": scheduler, "interval": interval, "frequency": 1}


def rehearse(
    optimizer: Mapping[str, Any], scheduler: Mapping[str, Any] | None, parameters: Parameters, endless: bool
) -> None:
    """Build both as a fit of a thousand steps would, or of no end; UsageError that begins with the key to blame."""
    for name, value in config.flatten(optimizer.get("init_args") or {}).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"model.optimizer.{name}: {value} is no finite number")
    built = _blamed("model.optimizer", build_optimizer, optimizer, parameters)
    if scheduler is None:
        return
    length = math.inf if endless else 1000
    trainer: Any = SimpleNamespace(
        estimated_stepping_batches=length, num_training_batches=10, accumulate_grad_batches=1, check_val_every_n_epoch=1
    )
    _blamed("model.scheduler", _two_steps, scheduler, built, trainer)


def _rates(optimizer: Optimizer) -> set[float]:
    return {float(group["lr"]) for group in optimizer.param_groups}


def _two_steps(spec: Mapping[str, Any], optimizer: Optimizer, trainer: Any) -> None:
    """Build a schedule and step it: some look at their arguments only then."""
    rates = _rates(optimizer)
    scheduler = build_scheduler(spec, optimizer, trainer, "val/loss", "min")["scheduler"]
    if len(rates) > 1 and len(_rates(optimizer)) == 1:
        raise UsageError(
            f"{spec['class_path']} gives every group of parameters the same learning rate; mend: take another "
            "schedule, or leave the optimizer's groups and layer_decay out"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimiser has not stepped
        for _ in range(2):
            scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def _blamed(key: str, build: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return build(*arguments)
    except UsageError as error:
        raise error if str(error).startswith("trainer") else UsageError(f"{key}: {error}") from error
    except Exception as error:
        raise UsageError(f"{key}: {arguments[0]['class_path']}: {' '.join(str(error).split())}") from error


def fit_length(trainer: L.Trainer, interval: str) -> int:
    """Return the length of the fit in optimiser steps or epochs; UsageError where it has no end."""
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UsageError("trainer: a schedule needs an end: set max_epochs or max_steps")
    if interval == "step":
        return int(steps)
    batches = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return max(1, math.ceil(steps / batches))


def _bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in BESIDE}


def _call(spec: Mapping[str, Any], first: Any, **filled: Any) -> Any:
    """Call the class with what it works on first, its own arguments over those that were filled in."""
    written = {name: config.instantiate(value) for name, value in (spec.get("init_args") or {}).items()}
    try:
        return config.import_class(spec["class_path"])(first, **(filled | written))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{spec['class_path']}: {' '.join(str(error).split())}") from error
