"""One fit: from a configuration to a recorded run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from medlight.callbacks import (
    CaseTable,
    Checkpoint,
    FiniteLoss,
    Freeze,
    Pruning,
    RunRecord,
    StepSeed,
    Throughput,
    ValidationImages,
)
from medlight.config import Config, get_path, nearest
from medlight.errors import InterruptedFitError, MedlightError, UsageError
from medlight.launch import settle, weights
from medlight.launch.blame import bad_argument
from medlight.launch.lengths import check_first_validation
from medlight.launch.precision import Choice
from medlight.launch.resolve import check_names, parse, plain
from medlight.prepare import Splitter
from medlight.tasks import checkpoint as checkpoints
from medlight.tasks import pretrained
from medlight.tracking import store
from medlight.tracking.logger import MLflowLogger, is_rank_zero
from medlight.tracking.manifest import config_digest

Report = Callable[[int, dict[str, float]], bool]


@dataclass(frozen=True)
class Launch:
    """What surrounds a fit: whose child it is, what it is called, and whom it tells of its progress.

    split: takes the place of the configuration's own.
    """

    kind: str = "fit"
    study: str | None = None
    name: str | None = None
    parent: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    report: Report | None = None
    split: Splitter | None = None


@dataclass(frozen=True)
class FitResult:
    """How a fit ended; ``metrics`` are those of its best epoch."""

    run_id: str
    state: str
    metrics: dict[str, float]
    best_checkpoint: Path | None


def fit(config: Config, launch: Launch | None = None) -> FitResult:
    """Train what a configuration describes, and record it as one MLflow run.

    Raises: UsageError where the configuration is wrong, before there is a run, but for what can't be told before there
        are batches; CaseError for unusable scans.
    """
    launch = launch or Launch()
    cli = parse(config)
    resolved = dict(plain(cli.config))
    study = launch.study or resolved["study"] or "medlight"
    name = launch.name or resolved["name"] or study
    if is_rank_zero():
        store.deliver_leftovers()
    digest = config_digest(resolved)
    previous = _resumed(study, name, digest) if launch.resume else None
    recorded = previous.data.tags if previous else None
    task, data, trainer_args, choice = _checked(cli, resolved, launch.kind != "trial", launch.split, recorded)
    tags = {**launch.tags, "medlight.config_digest": digest, **settle.tags(choice)}
    run_id = previous.info.run_id if previous else os.environ.get("MEDLIGHT_RUN_ID")
    pruning = Pruning(launch.report)
    checkpoint = Checkpoint(monitor=task.monitor, mode=task.mode)
    callbacks: list[L.Callback] = [
        StepSeed(resolved["seed_everything"]),
        RunRecord(resolved),
        CaseTable(),
        ValidationImages(),
        Throughput(),
        FiniteLoss(),
        pruning,
        checkpoint,
    ]
    trainer = _trainer(trainer_args, callbacks, choice)
    _check_ranks(trainer, data)
    check_first_validation(trainer, task, data)
    if launch.kind != "trial":
        _say_precision(resolved, choice)
    logger = MLflowLogger(study, name, kind=launch.kind, parent=launch.parent, tags=tags, run_id=run_id)
    trainer.loggers = [logger, *trainer.loggers]
    with _shared_with_ranks(logger.run_id, choice):
        start = _last_checkpoint(logger) if previous else None
        L.seed_everything(resolved["seed_everything"], workers=True, verbose=False)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=start, weights_only=True if start else None)
        except SystemExit:  # Lightning's end of a fit after Ctrl-C or SIGTERM
            _raise_if_terminated(trainer)
            raise InterruptedFitError("interrupted; the same command with --resume goes on") from None
        except MisconfigurationException as error:  # what can't be told before there are batches
            raise UsageError(f"trainer: {' '.join(str(error).split())}") from error
    _raise_if_terminated(trainer)
    state = "pruned" if pruning.pruned else "complete"
    if pruning.pruned:
        logger.set_tags({"medlight.state": state})
        logger.flush()
    best = Path(checkpoint.best_model_path) if checkpoint.best_model_path else None
    return FitResult(logger.run_id, state, dict(checkpoint.best_metrics), best)


def check(config: Config) -> tuple[Any, Any]:
    """Build what a fit is made of and refuse all that it would refuse before it makes a run; task and data.

    The precision is not probed. Raises: as `fit`.
    """
    cli = parse({**config, "precision": "32-true", "channels_last": False})
    task, data, trainer_args, choice = _checked(cli, dict(plain(cli.config)), tell=False)
    trainer = _trainer(trainer_args, [], choice)
    _check_ranks(trainer, data)
    check_first_validation(trainer, task, data)
    return task, data


def _checked(
    cli: Any,
    resolved: Config,
    tell: bool,
    split: Splitter | None = None,
    recorded: Mapping[str, str] | None = None,
) -> tuple[Any, Any, dict[str, Any], Choice]:
    """Task, data, the Trainer's arguments and the precision, once they are found to go together.

    tell, split: see `_build`. recorded: the tags of the run that is gone on with.
    """
    check_names(resolved)
    initial = _initial_weights(resolved)
    task, data, trainer_args = _build(cli, tell, split)
    _take_weights(task, initial)
    _check_metrics(task, trainer_args)
    _check_validation(task, data)
    if hasattr(task, "check_training_data"):
        task.check_training_data(data)
    if hasattr(task, "check_callbacks"):
        task.check_callbacks(trainer_args.get("callbacks") or [])
    choice = settle.settle(resolved, task, data, recorded)
    _build_network(task, resolved)
    _check_frozen(task, trainer_args)
    _say_weights(task, tell)
    _check_optimizers(task, resolved["trainer"])
    return task, data, trainer_args, choice


def resolve_precision(config: Config) -> Config:
    """Return a configuration in which ``precision`` and ``channels_last`` are settled for this machine."""
    cli = parse(config)
    resolved = dict(plain(cli.config))
    task, data, _ = _build(cli)
    _take_weights(task, _initial_weights(resolved))
    choice = settle.settle(resolved, task, data)
    return {**config, "precision": choice.precision, "channels_last": choice.channels_last}


def evaluate(
    config: Config, checkpoint: Path, stage: str, run_id: str | None = None, split: Splitter | None = None
) -> dict[str, float]:
    """Measure a checkpoint on the ``validate`` or ``test`` cases; with a run, test figures are added to it."""
    cli = parse(config)
    resolved = dict(plain(cli.config))
    checkpoints.read(checkpoint)
    task, data, trainer_args = _build(cli, split=split)
    if "pretrained" in task.hparams:
        task.hparams["pretrained"] = None  # the checkpoint has its own weights
    _check_cases(data, "val" if stage == "validate" else "test")
    choice = settle.settle({**resolved, "precision": "32-true", "channels_last": False}, task, data)
    callbacks: list[L.Callback] = [StepSeed(resolved["seed_everything"])]
    logger: MLflowLogger | None = None
    if run_id and stage == "test":
        logger = MLflowLogger(resolved["study"] or "medlight", resolved["name"] or "test", run_id=run_id)
        callbacks.append(CaseTable())
    trainer_args["callbacks"] = []
    trainer = _trainer(trainer_args, callbacks, choice)
    trainer.loggers = [logger] if logger else []
    run = trainer.validate if stage == "validate" else trainer.test
    figures = run(task, datamodule=data, ckpt_path=str(checkpoint), verbose=False, weights_only=True)
    return dict(figures[0]) if figures else {}


def quiet() -> None:
    """Leave Lightning's and MLflow's chatter out of the terminal."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning|monai|torch|torchio|mlflow")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _build(cli: Any, tell: bool = True, split: Splitter | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """Build task and data, and let the task know the data before any run is made.

    tell: name the cases that were left out or mended; a trial, whose output is kept, doesn't. split: see `Launch`.
    """
    L.seed_everything(cli.config["seed_everything"], workers=True, verbose=False)
    task, data, trainer_args = cli.build()
    if split is not None and hasattr(data, "splitter"):
        data.splitter = split
    data.prepare_data()
    data.setup("fit")
    if tell:
        _say_left_out(data)
    if hasattr(task, "take_data"):
        task.take_data(data.signature())
    return task, data, trainer_args


def _build_network(task: Any, resolved: Config) -> None:
    """Build the network now, so that one that does not fit the data is refused before a run is made.

    Strategies that shard the parameters build it themselves, later.
    """
    L.seed_everything(resolved["seed_everything"], workers=True, verbose=False)
    strategy = resolved["trainer"]["strategy"]
    if isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp")):
        task.configure_model()


def _initial_weights(resolved: Config) -> Any:
    """What ``pretrained`` means, as a file with its digest; None where the model has none."""
    try:
        return get_path(weights.resolve(resolved), pretrained.KEY)
    except KeyError:
        return None


def _take_weights(task: Any, initial: Any) -> None:
    """Hand them to the task; what is recorded stays as it was written, the same on every machine."""
    if initial is not None:
        task.hparams["pretrained"] = initial


def _say_weights(task: Any, tell: bool) -> None:
    """Tell how much of the network began with weights from a file."""
    report = getattr(task, "pretrained_report", None)
    if report is not None and tell and is_rank_zero():
        print(f"weights   {report.line()}", file=sys.stderr)


def _say_precision(resolved: Config, choice: Choice) -> None:
    """Tell what ``auto`` came to: two runs with different ones are not to be compared unawares."""
    if "auto" in (resolved["precision"], resolved["channels_last"]) and is_rank_zero():
        layout = ", channels last" if choice.channels_last else ""
        print(f"precision {choice.precision}{layout} ({choice.reason})", file=sys.stderr)


def _check_frozen(task: Any, trainer_args: dict[str, Any]) -> None:
    """Refuse to freeze what is not there, where the network is built already."""
    for index, callback in enumerate(trainer_args.get("callbacks") or []):
        if isinstance(callback, Freeze) and getattr(task, "network", None) is not None:
            try:
                callback.check(task)
            except UsageError as error:
                raise UsageError(f"trainer.callbacks[{index}]: {error}") from error


def _check_metrics(task: Any, trainer_args: dict[str, Any]) -> None:
    """Refuse a monitor that the task does not log."""
    if not hasattr(task, "logged_metrics"):
        return
    names = task.logged_metrics()
    wanted = [("model.monitor", task.monitor)]
    scheduler = getattr(task.hparams, "scheduler", None) or {}
    wanted += [("model.init_args.scheduler.monitor", scheduler["monitor"])] if "monitor" in scheduler else []
    for index, callback in enumerate(trainer_args.get("callbacks") or []):
        monitor = getattr(callback, "monitor", None)
        wanted += [(f"trainer.callbacks[{index}].init_args.monitor", monitor)] if monitor else []
    for key, metric in wanted:
        if metric not in names:
            raise UsageError(f"{key}: {type(task).__name__} does not log {metric!r}{nearest(metric, names)}")


def _check_optimizers(task: Any, trainer: Config) -> None:
    """Refuse an optimiser or a schedule that can't be built; of a wrong type, name the argument."""
    if not hasattr(task, "check_optimizers"):
        return
    no_steps = trainer["max_steps"] == -1 and (trainer["max_epochs"] == -1 or _only_timed(trainer))
    try:
        task.check_optimizers(endless=no_steps)
    except UsageError as error:
        for name in ("optimizer", "scheduler"):
            spec = task.hparams.get(name)
            said = bad_argument(spec, f"model.{name}") if spec else None
            if said:
                raise UsageError(said) from error
        raise


def _only_timed(trainer: Config) -> bool:
    return trainer["max_epochs"] is None and trainer["max_time"] is not None


def _check_validation(task: Any, data: Any) -> None:
    """Refuse a fit whose best epoch can't be told."""
    monitor = str(getattr(task, "monitor", ""))
    if monitor.startswith("val/"):
        _check_cases(data, "val", f", by which the best epoch is chosen ({monitor})")


def _check_cases(data: Any, part: str, why: str = "") -> None:
    name = "validation" if part == "val" else part
    if not getattr(data, "prepared", {part: True}).get(part):
        raise UsageError(f"data.split: no {name} cases{why}; give the split some, e.g. data.split.{part}=0.2")


def _check_ranks(trainer: L.Trainer, data: Any) -> None:
    """Refuse ranks that would have nothing to validate."""
    count, ranks = len(getattr(data, "prepared", {}).get("val") or []), trainer.world_size
    if 0 < count < ranks:
        raise UsageError(f"trainer.devices: {ranks} ranks, but {count} validation cases; take at most {count}")


def _say_left_out(data: Any) -> None:
    """Name the cases that were skipped or mended, where people look."""
    if not is_rank_zero():
        return
    for bad in getattr(data, "bad", []):
        print(f"left out  {bad.reason}", file=sys.stderr)
    for name, notes in getattr(data, "mended", {}).items():
        print(f"mended    {name}: {'; '.join(notes)}", file=sys.stderr)


def _trainer(args: dict[str, Any], callbacks: list[L.Callback], choice: Choice) -> L.Trainer:
    """Build the Trainer with the configuration's own loggers; ours joins once nothing can be refused any more."""
    own = args.get("logger") or []
    extra = own if isinstance(own, list) else [own] if own is not True else []
    bar = args["enable_progress_bar"]
    arguments = {
        **args,
        "precision": choice.precision,
        "logger": extra or False,
        "callbacks": [*(args.get("callbacks") or []), *callbacks],
        "use_distributed_sampler": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": sys.stderr.isatty() if bar is None else bar,
        "enable_model_summary": bool(args["enable_model_summary"]),
    }
    try:
        return L.Trainer(**arguments)
    except Exception as error:  # of any kind: a missing package, a division by zero
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error


def _resumed(study: str, name: str, digest: str) -> Any:
    """The one run that ``--resume`` means; on other ranks, the one that rank zero has taken up."""
    if "MEDLIGHT_RUN_ID" in os.environ:
        return store.find_run(os.environ["MEDLIGHT_RUN_ID"])
    runs = store.unfinished(study, name, digest)
    if not runs:
        raise UsageError(
            f"--resume: no unfinished run of study {study!r}, name {name!r} with this configuration; start it without"
        )
    alive = [run.info.run_id for run in runs if store.is_alive(run)]
    if alive:
        raise UsageError(f"--resume: run {alive[0]} is still running; stop it first")
    if len(runs) > 1:
        listed = ", ".join(run.info.run_id for run in runs)
        raise UsageError(f"--resume: several unfinished runs ({listed}); delete those not wanted, or give another name")
    return runs[0]


def _last_checkpoint(logger: MLflowLogger) -> Path | None:
    """Where a resumed run goes on; ``None`` where it was stopped before its first checkpoint, and starts over."""
    local = logger.local_dir / "checkpoints" / "last.ckpt"
    if local.is_file() or logger.is_local:
        return local if local.is_file() else None
    try:
        return store.artifact(logger.run_id, "checkpoints/last.ckpt")
    except MedlightError:
        return None


@contextmanager
def _shared_with_ranks(run_id: str, choice: Choice) -> Iterator[None]:
    """Tell the processes that Lightning starts for the other ranks which run and precision are theirs."""
    shared = {"MEDLIGHT_RUN_ID": run_id, **settle.environment(choice)}
    os.environ.update(shared)
    try:
        yield
    finally:
        for key in shared:
            os.environ.pop(key, None)


def _raise_if_terminated(trainer: L.Trainer) -> None:
    if trainer.received_sigterm:
        raise InterruptedFitError("stopped by SIGTERM; the same command with --resume goes on")
