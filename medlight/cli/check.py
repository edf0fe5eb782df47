"""``medlight data check``: every volume below a path, with its verdict."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on
from medlight.errors import UsageError

if TYPE_CHECKING:
    from medlight.scans.dicom.frames import Stack
    from medlight.scans.dicom.mend import Mends

HELP = "find every series, and say which can be read and what is wrong with the others"
EPILOG = """\
example:
  medlight data check scans
  medlight data check scans.zip other/DICOMDIR --deep --json verdicts.json

Files are found by what they hold, whatever their names: DICOM in folders, zips and behind a DICOMDIR, NIfTI, NRRD,
MetaImage and pictures. Headers are read; --deep decodes the pixels too, which finds frames that are cut off.

verdicts: ok; gap (slices are missing), uneven, tilt, duplicate (each has a mend, see --on); mixed-orientation,
mixed-shape, not-a-volume (a localizer, a screen capture, a single slice), unreadable; for NIfTI and the like also
affine (voxels with no place, or two) and nan. Segmentations, contours and reports are ok: they are no volumes.

Exit code 0 where every verdict is ok, 1 where one isn't, or where nothing was found."""
_COLUMNS = ("case", "modality", "files", "shape", "spacing", "orientation", "verdict", "detail")
_HEAD_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data check``."""
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="folders, zips, DICOMDIRs, files")
    parser.add_argument("--deep", action="store_true", help="decode the pixels too")
    add_on(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU)")


def run(args: argparse.Namespace) -> int:
    """Survey the paths, print the table; 0 where every verdict is ``ok``."""
    from medlight.cli.output import write_json
    from medlight.cli.progress import bar
    from medlight.scans.dicom.mend import Mends
    from medlight.scans.dicom.survey import as_json, row, survey

    mends = Mends.parse(args.on)
    with bar("decoding" if args.deep else "reading headers", 0) as progress:
        found = survey(args.paths, args.deep, _workers(args.workers), progress)
    judged = [after(stack, mends) for stack in found.stacks]
    entries = [as_json(stack) for stack in judged]
    rows = [row(entry, stack.verdict.told) for entry, stack in zip(entries, judged, strict=True)]
    for path in found.others:
        entry, told = other(path, args.deep)
        entries.append(entry)
        rows.append(row(entry, told))
    if args.json != "-":
        _show(rows, found.passed_over)
    write_json(args.json, entries)
    return 0 if entries and all(entry["status"] == "ok" for entry in entries) else 1


def _workers(asked: int | None) -> int:
    """Two at least, so that a decoder that dies of a broken frame doesn't take this process with it."""
    if asked is not None and asked < 1:
        raise UsageError(f"--workers {asked}: at least 1; leave it out for one a CPU")
    return asked or max(2, len(os.sched_getaffinity(0)))


def after(stack: Stack, mends: Mends) -> Stack:
    """The stack as it is judged with mends: ``ok`` where they make it one volume, with what they do as the detail."""
    from dataclasses import replace

    from medlight.scans.dicom.frames import Verdict
    from medlight.scans.dicom.mend import mended_frames

    judged = stack.verdict
    if judged.status == "ok" or not mends.to_dict():
        return stack
    pieces = mended_frames(stack, mends)
    if not all(mends.covers(piece.verdict.status) for piece in pieces):
        return stack
    mend = mends.to_dict().get(judged.status, "mended")
    detail = f"{judged.status}={mend}: {judged.detail}"
    return replace(stack, verdict=Verdict("ok", detail))


def other(path: Path, deep: bool) -> tuple[dict[str, Any], str]:
    """A scan of another format: for a program, its name a digest of how it begins; and what is said to a person."""
    from medlight.scans.files import nameless, shown
    from medlight.scans.headers import facts

    found = facts(path, deep)
    with path.open("rb") as file:
        begins = hashlib.sha256(file.read(_HEAD_BYTES) + str(path.stat().st_size).encode()).hexdigest()[:10]
    entry = {"id": f"file-{begins}", "series_uid": "", "modality": "", "files": 1, **found}
    told = found["detail"].removeprefix(f"{shown(path)}: ")
    entry["detail"] = nameless(told, path)
    return entry, f"{shown(path)}: {told}".removesuffix(": ")


def _show(rows: Sequence[Sequence[str]], passed_over: int) -> None:
    """The table, and the sum: for a pipe on standard error."""
    from medlight.cli.table import show

    show(_COLUMNS, rows)
    print(_sum(rows, passed_over), file=sys.stdout if sys.stdout.isatty() else sys.stderr)


def _sum(rows: Sequence[Sequence[str]], passed_over: int) -> str:
    counts = Counter(one[_COLUMNS.index("verdict")] for one in rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    over = f"; {passed_over} other files passed over" if passed_over else ""
    return f"{told or 'nothing found'}{over}"
