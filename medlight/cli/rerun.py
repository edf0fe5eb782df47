"""rerun: run a recorded run once more, and say whether it comes out the same."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medlight.cli.output import ready, write_json
from medlight.errors import MedlightError

if TYPE_CHECKING:
    from medlight.reproduce.differences import Difference
    from medlight.reproduce.recorded import Recorded
    from medlight.reproduce.rerun import Outcome

EPILOG = """\
example:
  medlight rerun 3f2a91c0
  medlight rerun resenc --anyway --json rerun.json

Configuration, split, labelled cases, seeds, precision and threads are those that the run recorded. Where code (yours
too), packages, machine or data are no longer as they were, it says so and stops; --anyway runs it as things are now.
The rerun is a run of the same study, called NAME-rerun. Exit code 0: identical or within tolerance; 1: different, or
stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight rerun``."""
    parser.add_argument("run", metavar="RUN", help="run: id, unique start of one (4 letters or more), or name")
    parser.add_argument("--anyway", action="store_true", help="go on where something differs that can change a result")
    parser.add_argument("--json", metavar="FILE", help="write what differs and every metric ('-': standard output)")


def run(args: argparse.Namespace) -> int:
    """Say what differs, run it again, and compare."""
    from medlight.launch.fit import quiet
    from medlight.reproduce import recorded as records
    from medlight.reproduce import rerun

    quiet()
    ready(args.json)
    loud = args.json != "-"
    recorded = records.read(args.run)
    if loud:
        print(f"run {recorded.run_id}: {recorded.name} of {recorded.study}", flush=True)
    world = rerun.look(recorded)
    content = _content(recorded, world.found)
    if loud:
        _show_differences(world.found)
    if not world.unchanged and not (args.anyway and world.error is None):
        write_json(args.json, {**content, "verdict": "stopped"})
        if world.error is not None:
            raise world.error
        raise MedlightError("not run again: what differs can change the result; --anyway runs it as things are now")
    outcome = rerun.run(recorded, world)
    if loud:
        _show_outcome(outcome)
    write_json(args.json, {**content, **_judged(outcome)})
    return int(outcome.verdict == "different")


def _show_differences(found: Sequence[Difference]) -> None:
    from medlight.cli.table import show

    if not found:
        print("code, packages, machine and data are as recorded", flush=True)
        return
    ordered = sorted(found, key=lambda one: not one.matters)
    rows = [(one.what, one.recorded, one.now, "yes" if one.matters else "no", one.note) for one in ordered]
    show(("what differs", "recorded", "now", "can change a result", "note"), rows)
    sys.stdout.flush()


def _show_outcome(outcome: Outcome) -> None:
    from medlight.cli.table import show
    from medlight.reproduce.likeness import TOLERANCE

    rows = [
        (one.metric, _number(one.recorded), _number(one.rerun), _gap(one.largest, one.first), one.verdict)
        for one in outcome.metrics
    ]
    show(("metric", "recorded", "rerun", "largest difference", "verdict"), rows)
    words = {True: "identical", False: "not identical", None: "not there to compare"}
    print(f"weights of the best checkpoint: {words[outcome.weights]}")
    if outcome.verdict != "identical":
        print(TOLERANCE)
    counts = [sum(one.verdict == v for one in outcome.metrics) for v in ("identical", "within tolerance", "different")]
    listed = f"{counts[0]} identical, {counts[1]} within tolerance, {counts[2]} different"
    print(f"{outcome.verdict}: {len(outcome.metrics)} metrics, {listed} (run {outcome.run_id})")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _gap(largest: float, first: int | None) -> str:
    if first is None:
        return "0"
    size = "missing or no number" if largest == float("inf") else f"{largest:.2g}"
    return f"{size}, from step {first} on"


def _content(recorded: Recorded, found: Sequence[Difference]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"run_id": recorded.run_id, "name": recorded.name, "differences": [asdict(one) for one in found]}


def _judged(outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    rows = [asdict(one) for one in outcome.metrics]
    for row in rows:
        for name in ("recorded", "rerun", "largest"):
            value = row[name]
            row[name] = value if value is not None and abs(value) < float("inf") else None
    weights = outcome.weights
    return {"rerun": outcome.run_id, "verdict": outcome.verdict, "same_weights": weights, "metrics": rows}
