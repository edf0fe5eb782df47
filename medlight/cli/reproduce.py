"""Run a study folder, and say whether what was published or claimed came out."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.output import ready, write_json
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.reproduce.expected import Study

EPILOG = """\
example:
  medlight reproduce experiments/medmnist --budget quick
  medlight reproduce experiments/medmnist --seeds 3 --workers 2
  medlight reproduce --list
  medlight reproduce --list experiments --markdown docs/reproductions.md

What is in MLflow already (same configuration, data, code, initial weights) is not run again; what was interrupted goes
on.
Only a full budget gives verdicts; they are written to results.md and results.json beside the study's expected.yaml."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of reproduce."""
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="the study's folder; with --list, that of all studies"
    )
    parser.add_argument(
        "--budget", choices=("quick", "full"), default="full", help="quick: a smoke run (default: full)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds of each variant (default: the study's)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="how many runs at the same time (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="show every study with its state and last verdicts")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="with --list: write them as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the results; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Run a study, or list all."""
    ready(args.json)
    if args.list:
        return _list(args)
    if args.markdown:
        raise UsageError("--markdown goes with --list; a study's own results.md is written by itself")
    if not args.folder:
        raise UsageError("give a study's folder, or --list")
    for name in ("seeds", "workers"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name} {number}: write a whole number of at least 1")
    from medlight.launch import workers
    from medlight.reproduce import expected

    study = expected.read(Path(args.folder))
    workers.warm_up((*workers.PRELOAD, "medlight.reproduce.job"))  # imports while this process reads
    return _reproduce(args, study)


def _reproduce(args: argparse.Namespace, study: Study) -> int:
    from medlight.launch.fit import quiet
    from medlight.reproduce import run as runs
    from medlight.reproduce.progress import Terminal
    from medlight.reproduce.record import StudyRun
    from medlight.reproduce.report import results
    from medlight.tracking import store

    quiet()
    asked = args.seeds or study.seeds
    with runs.alone(study):
        outcomes = runs.prepared(study, args.budget, max(asked, study.seeds), args.workers)
        store.deliver_leftovers()
        runs.settle_known(study, outcomes)
        parent = StudyRun(study, args.budget)
        terminal = Terminal(asked=asked)
        try:
            runs.Runs(study, args.budget, outcomes, asked, parent.run_id, args.workers, terminal).run()
            found = results(study, args.budget, outcomes, max(asked, study.seeds), _command(args), parent.run_id)
        except BaseException as error:
            parent.stopped(type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise MedlightError(f"study {study.name} was stopped; the same command goes on with it") from None
            raise
        files = parent.finish(found)
    _show(found, files, study.folder / "results.md", sys.stderr if args.json == "-" else sys.stdout)
    write_json(args.json, found)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _command(args: argparse.Namespace) -> str:
    """The command that makes these results, for those who read them."""
    words = ["medlight", "reproduce", args.folder, "--budget", args.budget]
    words += ["--seeds", str(args.seeds)] if args.seeds else []
    return shlex.join([*words, "--workers", str(args.workers)])


def _show(found: dict[str, Any], files: list[Path], committed: Path, stream: Any) -> None:
    from medlight.compare.text import console
    from medlight.reproduce import markdown

    out = console(stream)
    if out.is_terminal:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        for name in markdown.HEAD:
            table.add_column(name, overflow="fold")
        for row in found["verdicts"]:
            table.add_row(*(escape(cell.replace("**", "")) for cell in markdown.cells(row)))
        out.print(table)
    else:
        for row in found["verdicts"]:
            print("\t".join(cell.replace("**", "") for cell in markdown.cells(row)), file=stream)
    for each in files:
        print(f"written: {each}", file=stream)
    if found["budget"] == "full" and committed not in files:
        print(f"kept: {committed}, which is of more finished runs", file=stream)


def _list(args: argparse.Namespace) -> int:
    from medlight.cli.table import show
    from medlight.reproduce import listing

    ready(args.markdown, "--markdown")
    root = Path(args.folder or "experiments")
    studies = listing.listed(root)
    if args.markdown:
        command = shlex.join(["medlight", "reproduce", "--list", str(root), "--markdown", str(args.markdown)])
        args.markdown.write_text(listing.page(studies, args.markdown, command), encoding="utf-8")
    if args.json != "-":
        rows = []
        for each in studies:
            state = f"running; {each.state}" if each.running else each.state
            name = each.study.name if each.study else each.folder.name
            rows.append([name, state, each.verdict, str(each.results.get("date", "–"))])
        show(("study", "state", "verdicts", "last run"), rows)
    write_json(args.json, [each.to_dict() for each in studies])
    for each in studies:
        if each.broken:
            print(each.broken, file=sys.stderr)
    return 0
