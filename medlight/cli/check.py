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

The last column says where each lies (ZIP!FOLDER in a zip). With --on, a mended volume is ok and has the shape and the
spacing that will be read; a series that is split is a row for each piece.

Exit code 0 where every verdict is ok, 1 where one isn't, or where nothing was found."""
_COLUMNS = ("case", "modality", "files", "shape", "spacing", "orientation", "verdict", "detail", "where")
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
    from medlight.scans.dicom.survey import row, survey
    from medlight.scans.files import shown

    mends = Mends.parse(args.on)
    with bar("decoding" if args.deep else "reading headers", 0) as progress:
        found = survey(args.paths, args.deep, _workers(args.workers), progress)
    entries, rows = [], []
    judged = [one for stack in found.stacks for one in after(stack, mends)]
    for stack, entry in judged:
        entries.append(entry)
        rows.append((*row(entry, f"{stack.verdict.told}{_hint(stack)}"), where(stack)))
    for path in found.others:
        entry, told = other(path, args.deep)
        entries.append(entry)
        rows.append((*row(entry, told), shown(path)))
    if args.json != "-":
        _show(rows, found.passed_over)
    write_json(args.json, entries)
    return 0 if entries and all(entry["status"] == "ok" for entry in entries) else 1


def _workers(asked: int | None) -> int:
    """Two at least, so that a decoder that dies of a broken frame doesn't take this process with it."""
    if asked is not None and asked < 1:
        raise UsageError(f"--workers {asked}: at least 1; leave it out for one a CPU")
    return asked or max(2, len(os.sched_getaffinity(0)))


def after(stack: Stack, mends: Mends) -> list[tuple[Stack, dict[str, Any]]]:
    """The volumes that mends make of a stack, each as it is judged then, with what a program is told of it.

    What is mended is ``ok``, its detail says by what, and its shape and spacing are those that will be read. Where
    another fault is left, the detail says which. A stack that no mend concerns comes back as it is.
    """
    from medlight.scans.dicom.mend import mended_frames
    from medlight.scans.dicom.survey import as_json

    if stack.kind != "image" or stack.verdict.status == "ok" or not mends.to_dict():
        return [(stack, as_json(stack))]
    return [_mended(piece, stack, mends) for piece in mended_frames(stack, mends)]


def _mended(piece: Stack, stack: Stack, mends: Mends) -> tuple[Stack, dict[str, Any]]:
    """What mends make of a piece of a stack, or of all of it."""
    from dataclasses import replace

    import numpy as np

    from medlight.errors import MedlightError
    from medlight.scans import orientation
    from medlight.scans.dicom.frames import Verdict
    from medlight.scans.dicom.mend import mended_header
    from medlight.scans.dicom.survey import as_json

    before = piece.facts.get("mended", [])
    if not mends.covers(piece.verdict.status):
        said = "; ".join([*before, piece.verdict.detail])
        piece = replace(piece, verdict=replace(piece.verdict, detail=said))
        return piece, as_json(piece)
    try:
        shape, affine, notes = mended_header(piece, mends)
    except MedlightError as error:
        told = str(error).removeprefix(f"{piece.id}: ")
        piece = replace(piece, verdict=replace(piece.verdict, detail=told))
        return piece, as_json(piece)
    done = dict.fromkeys(note.partition(":")[0] for note in notes)
    names = ", ".join(f"{fault}={mends.to_dict()[fault]}" for fault in done)
    piece_of = next((note.removeprefix("gap: split, ") for note in before if note.startswith("gap: split, ")), "")
    said = piece_of or stack.verdict.detail
    spacing = [round(size, 6) for size in np.linalg.norm(affine[:3, :3], axis=0).tolist()]
    placed = {"shape": list(shape), "spacing_mm": spacing, "orientation": orientation(affine)}
    judged = replace(piece, verdict=Verdict("ok", f"{names}: {said}"))
    return judged, {**as_json(judged), **placed}


def _hint(stack: Stack) -> str:
    """The mend that a fault has, where the detail doesn't name one yet."""
    from medlight.scans.dicom.mend import MENDS

    status, detail = stack.verdict.status, stack.verdict.detail
    return f"; --on {status}={MENDS[status]} mends it" if status in MENDS and "=" not in detail else ""


def where(stack: Stack) -> str:
    """Where a stack lies, for a person: its file, the folder of its files, or ``ZIP!FOLDER`` in a zip."""
    from medlight.scans.files import shown

    places = {frame.place for frame in stack.frames}
    archives = {place.path for place in places}
    if len(archives) > 1:
        return shown(Path(os.path.commonpath([path.parent.absolute() for path in archives])))
    (path,) = archives
    members = [place.member.lstrip("/") for place in places]  # a zip may mix both kinds of names
    inside = members[0] if len(members) == 1 else os.path.commonpath([os.path.dirname(member) for member in members])
    return f"{shown(path)}!{inside}".rstrip("!")


def other(path: Path, deep: bool) -> tuple[dict[str, Any], str]:
    """A scan of another format: for a program, its name a digest of how it begins; and the detail for a person."""
    from medlight.scans.files import nameless, shown
    from medlight.scans.headers import facts

    found = facts(path, deep)
    with path.open("rb") as file:
        begins = hashlib.sha256(file.read(_HEAD_BYTES) + str(path.stat().st_size).encode()).hexdigest()[:10]
    entry = {"id": f"file-{begins}", "series_uid": "", "modality": "", "files": 1, **found}
    told = found["detail"].removeprefix(f"{shown(path)}: ")
    entry["detail"] = nameless(told, path)
    return entry, told


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
