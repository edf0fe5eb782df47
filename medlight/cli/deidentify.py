"""``medlight data deidentify``: copies that can be given away."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.errors import UsageError

if TYPE_CHECKING:
    from medlight.scans.deidentify import Copies

HELP = "write copies of DICOM files that name no one"
EPILOG = """\
example:
  medlight data deidentify scans out
  medlight data deidentify scans.zip out --json copies.json

Attributes are treated by the Basic Application Level Confidentiality Profile of DICOM PS3.15 (Table E.1-1, 2026c), at
every depth. Free text, dates, times, overlays and private attributes go, so what only they hold is lost: Siemens
mosaics, the scanners' own b-values, the times and the weight that SUV needs. UIDs are replaced alike in the whole run,
a patient gets one pseudonym, file names are new. Documents and structured reports are left out.
Pixels are copied as they are: what may be written in them, or show a face, is reported.
Exit code 1 where anything was left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data deidentify``."""
    parser.add_argument("source", metavar="IN", type=Path, help="a folder, a zip, a DICOMDIR or a DICOM file")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder, outside IN")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU)")


def run(args: argparse.Namespace) -> int:
    """Write the copies; returns 1 where an object was left out or none was found."""
    from medlight.cli.output import write_json
    from medlight.cli.progress import bar
    from medlight.scans.deidentify import deidentify

    with bar("de-identifying", 0) as progress:
        copies = deidentify(args.source, args.out, processes(args.workers), progress)
    _show(copies, args.out, sys.stderr if args.json == "-" else sys.stdout)
    write_json(args.json, _content(copies))
    return 0 if copies.objects and all(copied.file for copied in copies.objects) else 1


def processes(asked: int | None, least: int = 1) -> int:
    """How many processes to use, by default one a CPU and ``least`` so many; UsageError for a number that can't be."""
    if asked is not None and asked < 1:
        raise UsageError(f"--workers {asked}: at least 1; leave it out for one a CPU")
    return asked or max(least, len(os.sched_getaffinity(0)))


def _show(copies: Copies, out: Path, say: Any) -> None:
    from medlight.cli.table import printable

    written = [copied for copied in copies.objects if copied.file]
    series = {copied.file.parent for copied in written if copied.file}
    subjects = {folder.parent for folder in series}
    print(f"{len(written)} objects in {len(series)} series of {len(subjects)} subjects written to {out}", file=say)
    if copies.passed_over:
        print(f"{copies.passed_over} files passed over: no DICOM", file=say)
    for (risk, folder), count in Counter((c.risk, c.file.parent) for c in written if c.risk and c.file).items():
        print(f"look at {folder}: {risk} ({count} objects)", file=say)
    for copied in copies.objects:
        if not copied.file:
            print(f"left out: {printable(copied.place.title)}: {copied.reason}", file=sys.stderr)


def _content(copies: Copies) -> dict[str, Any]:
    """Plain values that name no input: its file names may be patients'."""
    return {
        "written": [
            {"file": str(copied.file), "modality": copied.modality, "risk": copied.risk}
            for copied in copies.objects
            if copied.file
        ],
        "left_out": dict(Counter(copied.reason for copied in copies.objects if not copied.file)),
        "passed_over": copies.passed_over,
    }
