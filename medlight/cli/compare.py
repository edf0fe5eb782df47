"""compare runs or a sweep: table, paired tests, HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medlight.cli.output import ready, write_json

EPILOG = """\
example:
  medlight compare hippocampus-sweep --html compare.html
  medlight compare 3f2a91c0 77be01d4 --metric val/dice/anterior --json -

A RUN is a run id, the start of one (4 letters or more), or a run's name; a sweep stands for its trials.
Cases are paired by their id: test cases where all runs have them, else validation cases."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight compare``."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run or sweep: id, unique start of one, or name")
    parser.add_argument("--metric", metavar="NAME", help="what to compare (default: what the runs were chosen by)")
    parser.add_argument("--json", metavar="FILE", help="write the comparison as JSON ('-': standard output, no table)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots that needs no other file")


def run(args: argparse.Namespace) -> None:
    """Compare; one finished run alone is summed up over its cases."""
    from medlight.compare.html import page, summary_page
    from medlight.compare.records import collect
    from medlight.compare.summary import summary
    from medlight.compare.table import compare, for_json
    from medlight.compare.text import print_comparison, print_summary

    ready(args.json)
    ready(args.html, "--html")
    selection = collect(args.runs)
    quiet = args.json == "-"
    if len(selection.records) == 1 and not args.metric:
        (record,) = selection.records
        splits = summary(record)
        if not quiet:
            print_summary(f"{record.name} ({record.run_id[:8]}, {record.state})", splits)
        write_json(args.json, for_json({"run_id": record.run_id, "name": record.name, "cases": splits}))
        html = summary_page(record, splits) if args.html else ""
    else:
        comparison = compare(selection, args.metric)
        if not quiet:
            print_comparison(comparison)
        write_json(args.json, comparison.to_dict())
        html = page(comparison) if args.html else ""
    if args.html:
        args.html.write_text(html, encoding="utf-8")
        print(f"page: {args.html.resolve()}", file=sys.stderr if quiet else sys.stdout)
