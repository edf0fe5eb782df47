"""Train, validate or test one experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medlight.cli.mends import add_on, mends
from medlight.cli.output import ready, write_json
from medlight.errors import UsageError

TAKES_OVERRIDES = True
EPILOG = """\
example:
  medlight fit -c experiments/hippocampus/fit.yaml --model.optimizer.lr=3e-4 --trainer.max_epochs 20
  medlight fit -c experiments/hippocampus/fit.yaml --resume
  medlight test RUN_ID

Any key of the configuration can be given as --dotted.path=VALUE; init_args may be left out of the path."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of fit, validate and test."""
    if parser.prog.endswith("fit"):
        parser.add_argument(
            "-c", "--config", action="append", required=True, metavar="FILE", help="YAML; later over earlier"
        )
        parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of this configuration")
        parser.add_argument(
            "--on-bad-case", choices=("error", "skip"), help="what to do with a case that can't be used"
        )
        add_on(parser)
    else:
        parser.add_argument("model", metavar="RUN|CKPT", help="a run (id, prefix or name) or a checkpoint file")
        parser.add_argument(
            "-c", "--config", action="append", default=[], metavar="FILE", help="needed for a checkpoint file"
        )
    parser.add_argument("--json", metavar="FILE", help="write the figures; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Run the chosen command."""
    from medlight.config import parse_overrides
    from medlight.launch.fit import quiet

    quiet()
    ready(args.json)
    overrides = parse_overrides(args.overrides)
    return _fit(args, overrides) if args.command == "fit" else _evaluate(args, overrides)


def _fit(args: argparse.Namespace, overrides: list[tuple[str, Any]]) -> int:
    from medlight.launch.fit import Launch, fit
    from medlight.launch.resolve import read

    if args.on_bad_case:
        overrides = [*overrides, ("data.on_bad_case", args.on_bad_case)]
    overrides = [*overrides, *((f"data.preparation.on.{key}", value) for key, value in mends(args.on).items())]
    result = fit(read(args.config, overrides), Launch(resume=args.resume))
    print(f"run {result.run_id}: {result.state}")
    if result.metrics:
        print("best epoch:")
        _show(result.metrics)
    if result.best_checkpoint:
        print(f"best checkpoint: {result.best_checkpoint}")
    _show_export(result.run_id)
    write_json(args.json, {"run_id": result.run_id, "state": result.state, "metrics": result.metrics})
    return 0


def _show_export(run_id: str) -> None:
    """Say what became of the export, where a callback made one."""
    from medlight.tracking import store

    tags = store.find_run(run_id).data.tags
    if "medlight.model" in tags:
        print(f"exported: {tags['medlight.model']} (medlight predict {run_id} IN OUT)")
    elif "medlight.export" in tags:
        print(f"export: {tags['medlight.export']}")


def _evaluate(args: argparse.Namespace, overrides: list[tuple[str, Any]]) -> int:
    from medlight.launch.fit import evaluate
    from medlight.launch.resolve import read
    from medlight.tracking import store

    if Path(args.model).suffix == ".ckpt":
        checkpoint, run_id = Path(args.model), None
        if not checkpoint.is_file():
            raise UsageError(f"{checkpoint}: no such file")
        if not args.config:
            raise UsageError("a checkpoint file needs its configuration: -c FILE")
    else:
        run_id = store.find_run(args.model).info.run_id
        checkpoint = store.best_checkpoint(run_id)
        args.config = args.config or [str(store.artifact(run_id, "config.yaml"))]
    figures = evaluate(read(args.config, overrides), checkpoint, args.command, run_id)
    _show(figures)
    write_json(args.json, {"run_id": run_id, "metrics": figures})
    return 0


def _show(metrics: dict[str, float]) -> None:
    width = max(map(len, metrics), default=0)
    for name in sorted(metrics):
        print(f"  {name:<{width}}  {metrics[name]:.4f}{' mm' if 'hd95' in name.split('/') else ''}")
