"""Search architectures and hyper-parameters, one process a trial."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.output import ready, write_json
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from medlight.sweeps.rows import Row
    from medlight.sweeps.spec import Sweep

TAKES_OVERRIDES = True
EPILOG = """\
example:
  medlight sweep -c experiments/hippocampus/sweep.yaml --trials 12 --workers 2
  medlight sweep -c experiments/hippocampus/sweep.yaml --resume
  medlight sweep -c experiments/hippocampus/sweep.yaml --trainer.max_epochs=2 --data.batch_size 4
  medlight sweep status hippocampus-sweep

With `export: {to: [onnx, openvino], precision: [fp32, int8]}` in the sweep.yaml the best trial becomes a bundle, as by
medlight export. A key of the fit configuration can be given as --dotted.path=VALUE; it holds for every trial."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of sweep."""
    parser.add_argument("action", nargs="?", choices=("status",), help="show a sweep's trials instead of running one")
    parser.add_argument("sweep", nargs="?", metavar="NAME", help="with status: STUDY-NAME, or the sweep's name alone")
    parser.add_argument("-c", "--config", metavar="FILE", help="the sweep.yaml")
    parser.add_argument("--name", metavar="NAME", help="another name than the file's: a sweep of its own")
    parser.add_argument("--trials", type=int, metavar="N", help="how many trials in all")
    parser.add_argument("--workers", type=int, metavar="N", help="how many trials at the same time")
    parser.add_argument("--storage", metavar="URL", help="study in a database: postgresql://USER@HOST/DATABASE")
    parser.add_argument("--resume", action="store_true", help="go on with this sweep; what was interrupted runs again")
    parser.add_argument("--json", metavar="FILE", help="write the trials; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Run a sweep, or show one."""
    ready(args.json)
    if args.action == "status":
        return _status(args)
    if not args.config:
        raise UsageError("give a sweep.yaml by -c FILE, or `medlight sweep status NAME`")
    return _sweep(args)


def _sweep(args: argparse.Namespace) -> int:
    from medlight.config import parse_overrides
    from medlight.launch import workers
    from medlight.sweeps.spec import load

    changes = {key: getattr(args, key) for key in ("name", "trials", "workers", "storage")}
    console = _console(args.json == "-")
    workers.warm_up()  # imports while this process reads
    sweep = load(Path(args.config), parse_overrides(args.overrides), changes)

    from medlight.launch.fit import quiet
    from medlight.sweeps import show
    from medlight.sweeps import sweep as sweeps

    quiet()
    metrics = [objective.metric for objective in sweep.objectives]
    try:
        with show.Terminal(console, sweep.trials, metrics) as terminal:
            outcome = sweeps.run(sweep, terminal, resume=args.resume)
    except KeyboardInterrupt:
        raise MedlightError(
            f"sweep {sweep.full_name} was stopped; the same command with --resume goes on with it"
        ) from None
    console.print(show.table(outcome.rows, metrics, outcome.best))
    console.print(f"compare: medlight compare {outcome.run_id}", highlight=False, soft_wrap=True)
    _write(args.json, sweep.full_name, outcome.run_id, metrics, outcome.rows, outcome.best)
    if not outcome.best:
        console.print(f"no trial was completed; their output is in mlruns/logs/{sweep.full_name}", soft_wrap=True)
        return 1
    return _export(sweep, outcome.run_id) if sweep.export else 0


def _export(sweep: Sweep, run_id: str) -> int:
    """Export the best trial as ``medlight export`` does."""
    from medlight.cli import export

    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    words = [run_id, f"{sweep.full_name}-bundle"]
    for key, names in (sweep.export or {}).items():
        words += [f"--{key}", ",".join(names)]
    return export.run(parser.parse_args(words))


def _console(error: bool) -> Console:
    """The terminal; a file or a pipe takes wide lines."""
    from rich.console import Console

    console = Console(stderr=error)
    return console if console.is_terminal else Console(stderr=error, width=160)


def _status(args: argparse.Namespace) -> int:
    if not args.sweep:
        raise UsageError("give the sweep's name: medlight sweep status NAME")
    if args.overrides or args.config:
        raise UsageError("status takes a NAME, --storage and --json only")
    from medlight.sweeps import rows, show, study

    found = study.named(args.sweep, args.storage)
    metrics = list(found.user_attrs.get("metrics", []))
    trials, best = rows.rows(found), [trial.number for trial in rows.best(found)]
    console = _console(args.json == "-")
    console.print(show.table(trials, metrics, best))
    _write(args.json, found.study_name, str(found.user_attrs.get("run_id", "")), metrics, trials, best)
    return 0


def _write(target: str | None, name: str, run_id: str, metrics: list[str], trials: list[Row], best: list[int]) -> None:
    content: dict[str, Any] = {"sweep": name, "run_id": run_id, "metrics": metrics, "best": best}
    write_json(target, {**content, "trials": [row.to_dict() for row in trials]})
